"""Position-bias Aware Learning. Guo et al., RecSys 2019, section 3.

bCTR = ProbSeen(position) · pCTR(x); the loss is one BCE(click, bCTR); pCTR alone is served. Here as heads over any
representation and interactions: `pal` is DeepFM, as in the paper, at the sizes of `deepfm`; PAL around DIN is two lines of a
recipe:

    [model]
    name = "din"
    heads = {kind = "pal", columns = ["position"]}

ProbSeen = sigmoid(s), s a number per position or a small MLP of position and further train-only columns. Differs from the
paper: the product is formed in log space (`esmm.product_logit`); and ProbSeen of one position is held at 1, because
(c ProbSeen, pCTR / c) fit the clicks alike: without an anchor only ratios of ProbSeen mean something and pCTR is off by a
factor. (The factors 1 / (b (1 - b)) that the paper's gradients, equations 4 and 5, lack are autograd's.) It rests on two
assumptions: being seen depends on these columns only, and a click, once seen, not on the position. Items must have stood
at several positions for the two factors to be told apart.

What validation metrics mean here: see docs/positions.md. N candidates · C columns · H heads
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from finerank.data.batch import Batch
from finerank.errors import UserError
from finerank.models.base import Tower
from finerank.models.esmm import product_logit
from finerank.models.fm import FM
from finerank.models.lr import Linear
from finerank.models.plain import EmbeddingOptions, Plain, TaskHeads
from finerank.models.registry import Composition, named, part
from finerank.models.train_only import TrainOnly, judged_tasks, row_of
from finerank.schema import FittedSchema


@part
class SeenHeads(TaskHeads):
    """A head per task; the click's is judged by ProbSeen(position) · pCTR in training, and is pCTR wherever it is read."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """What being seen depends on.

        columns  train-only columns; the anchor is a value of the first. None: all train-only columns with one id per row
        hidden   layers over the columns' vectors; none: a number per value, which add up
        width    of a column's vector, where there are layers
        anchor   the value of the first column at which ProbSeen is 1, whatever the others are; "" for no anchor
        tasks    the tasks that must be seen; none: every binary task that lives within no other
        """

        kind: ClassVar[str] = "pal"
        columns: tuple[str, ...] = ()
        hidden: tuple[int, ...] = ()
        width: int = 8
        anchor: str = "1"
        tasks: tuple[str, ...] = ()

        def __post_init__(self) -> None:
            if min((*self.hidden, self.width)) < 1:
                raise UserError(f"hidden = {list(self.hidden)}, width = {self.width}; accepted: at least 1 each")

    def __init__(self, fitted: FittedSchema, options: Options) -> None:
        super().__init__(fitted, TaskHeads.Options())
        judged = judged_tasks(fitted, options.tasks)
        self.heads = tuple(replace(h, direct=h.task not in judged) for h in self.heads)
        # it begins at a probability of .73: high, with a slope
        self.seen = TrainOnly(fitted, options.columns, 1, options.width, options.hidden, start=1.0)
        first = self.seen.names[0]
        self.anchor = row_of(fitted, first, options.anchor, "heads.anchor") if options.anchor else None

    def logged(self, logits_NH: Tensor, batch: Batch) -> Tensor:
        """The logit of bCTR for the heads that must be seen."""
        ids_NC = self.seen.ids(batch)
        seen_N, out = self.seen(ids_NC)[:, 0], []
        for head, logit_N in zip(self.heads, logits_NH.unbind(1), strict=True):
            both_N = logit_N if head.direct else product_logit([logit_N, seen_N])
            out.append(both_N if self.anchor is None else torch.where(ids_NC[:, 0] == self.anchor, logit_N, both_N))
        return torch.stack(out, dim=1)

    def prob_seen(self, ids_NC: Tensor) -> Tensor:
        """[N]: ProbSeen of rows of the columns' ids. Without an anchor only ratios are known, so watch them, not it."""
        with torch.no_grad():
            seen = torch.sigmoid(self.seen(ids_NC)[:, 0])
        return seen if self.anchor is None else torch.where(ids_NC[:, 0] == self.anchor, 1.0, seen)


PAL = named(
    Composition(
        name="pal",
        representation=Plain.Options(embedding=EmbeddingOptions(width=10)),
        interactions=(
            Linear.Options(),
            FM.Options(),
            Tower.Options(hidden=(400, 400, 400), activation="relu", dropout=0.5),
        ),
        heads=SeenHeads.Options(),
        paper="10.1145/3298689.3347033",
        requires=("train-only ids",),
    )
)
