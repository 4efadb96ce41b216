"""A shallow tower for the position. Zhao et al. (YouTube), RecSys 2019, section 4.3.

logit = main(x) + bias(position, device); in training the tower's features are dropped from a tenth of the rows, so that
"missing" is learnt, and at serving they are missing everywhere: the graph has main(x) + bias(missing), a constant, and no
position. Unlike PAL's product (`pal.py`) the sum may also raise a logit, and it needs no anchor: what a constant moves
from one summand to the other comes back through bias(missing). N candidates · C columns · H heads
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from finerank.data.batch import Batch
from finerank.errors import UserError
from finerank.models.base import Tower
from finerank.models.plain import Plain, TaskHeads
from finerank.models.registry import Composition, named, part
from finerank.models.train_only import TrainOnly, judged_tasks
from finerank.schema import FittedSchema


@part
class PositionTower(TaskHeads):
    """A head per task; the click's has a bias by position and other train-only columns, which is "missing" when served."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """The tower.

        columns  train-only columns; none: all with one id per row
        hidden   layers over the columns' vectors; none: a number per value, which add up
        width    of a column's vector, where there are layers
        drop     share of the training rows whose columns are made missing, all of a row at once; .1 in the paper
        tasks    the tasks that the position bears on; none: every binary task that lives within no other
        """

        kind: ClassVar[str] = "position_tower"
        columns: tuple[str, ...] = ()
        hidden: tuple[int, ...] = (16,)
        width: int = 8
        drop: float = 0.1
        tasks: tuple[str, ...] = ()

        def __post_init__(self) -> None:
            if min((*self.hidden, self.width)) < 1:
                raise UserError(f"hidden = {list(self.hidden)}, width = {self.width}; accepted: at least 1 each")
            if not 0 < self.drop < 1:
                raise UserError(
                    f"drop = {self.drop}; accepted: above 0, for what is missing at serving must be learnt, and below 1"
                )

    def __init__(self, fitted: FittedSchema, options: Options) -> None:
        super().__init__(fitted, TaskHeads.Options())
        names = judged_tasks(fitted, options.tasks)
        self.biased = [[h.name for h in self.heads].index(name) for name in names]
        self.tower = TrainOnly(fitted, options.columns, len(names), options.width, options.hidden)
        self.drop = nn.Dropout(options.drop)

    def forward(self, logits_NK: Tensor) -> Tensor:
        """[N, K] -> [N, K]: the position is missing."""
        missing = self.tower(self.tower.missing().to(logits_NK.device))
        return logits_NK + self.bias + self._of_heads(missing)

    def logged(self, logits_NH: Tensor, batch: Batch) -> Tensor:
        """The logits at the rows' positions, where they are not dropped."""
        ids, missing = self.tower.ids(batch), self.tower.missing().to(logits_NH.device)
        kept = self.drop(torch.ones(len(ids), 1, device=ids.device)) > 0
        known, unknown = self.tower(torch.where(kept, ids, missing)), self.tower(missing)
        return logits_NH + self._of_heads(known - unknown)

    def _of_heads(self, biases: Tensor) -> Tensor:
        """[n, biased heads] -> [n, H]: 0 for the others."""
        at = torch.tensor(self.biased, device=biases.device)
        return biases.new_zeros(biases.shape[0], len(self.heads)).index_add(1, at, biases)


POSITION_TOWER = named(
    Composition(
        name="position_tower",
        representation=Plain.Options(),
        interactions=(Tower.Options(hidden=(512, 256), activation="relu"),),
        heads=PositionTower.Options(),
        paper="10.1145/3298689.3346997",
        requires=("train-only ids",),
    )
)
