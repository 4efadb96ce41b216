"""BERT4Rec: a bidirectional transformer that learns to guess hidden items. Sun et al., CIKM 2019, section 3.

R requests · N candidates · T events · D width · L places · V items

    h_0 = e_item + p_place;  blocks of self-attention without a causal mask, post-norm, GELU, D -> 4 D -> D
    u = GELU(W h + b);  P(item) = softmax(u E' + b_item), E the input's own table
    training  hidden items are [mask]; the loss is the mean over hidden items of -log P (Cloze); of a share of the sequences
              the last item alone is hidden, as in serving
    serving   [mask] behind the past, and its u against the candidates; of a past at its full length the oldest is shifted out

Places are counted from the newest element, which is 0: what is cut off at the old end moves nothing, and a [mask] behind T
items stands where a hidden last of T + 1 stands. Only the item is read, neither its attributes nor other fields.
Every request's history is a sequence; masks are drawn by (seed, epoch, request), so a user's longer histories repeat the
shorter ones under other masks. The softmax runs over the whole table or, with `sampled`, over drawn items with - log Q.
Items, [mask] and places begin with a spread of .02 (`embedding.std`), as all weights do in the paper; those of layers begin
Xavier-normal, as everywhere here. On the chain of docs/known_truth.md that made no difference (test AUC .927, the paper's
.926, one seed).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finerank.data.batch import Batch, Jagged
from finerank.data.drawing import Drawing
from finerank.data.masking import Masking
from finerank.errors import UserError
from finerank.layers.mlp import linear
from finerank.layers.segments import gather
from finerank.layers.slices import by_slices
from finerank.layers.transformer import Block, Grid, check_sizes, grids
from finerank.models.catalogue import (
    Catalogue,
    CatalogueHeads,
    Match,
    full_softmax,
    item_of,
    of_rows,
    sampled_logits,
    sampled_softmax,
)
from finerank.models.composition import Features, Needs, Representation, Widths
from finerank.models.plain import EmbeddingOptions
from finerank.models.registry import Composition, named, part
from finerank.schema import FIRST, FittedSchema


@part
class Cloze(Representation):
    """What a bidirectional transformer expects next, against the candidate's item."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """The transformer and its task.

        embedding  width D (16 to 256 in the paper) and initial spread; a feature's own dim is not read here
        history    whose items are guessed; "": the first that has the candidate's item
        blocks, heads   2 and 2 in the paper, heads 32 wide
        feed       hidden width of the blocks' networks, as a multiple of D
        dropout    after attention and network; in the authors' code 0.1 for Steam and MovieLens 20M, 0.2 for MovieLens 1M, 0.5
                   for Beauty, and there of inputs and attention weights as well
        rate       of hidden items: 0.2 for long dense histories (MovieLens), 0.6 for short ones (Beauty)
        last       share of sequences of which the newest item alone is hidden
        sampled    items drawn per request for the softmax; 0: the whole table, which is exact, and cheap to some 10,000 items
        """

        kind: ClassVar[str] = "cloze"
        embedding: EmbeddingOptions = EmbeddingOptions(width=64, std=0.02)
        history: str = ""
        blocks: int = 2
        heads: int = 2
        feed: int = 4
        dropout: float = 0.1
        rate: float = 0.2
        last: float = 0.1
        sampled: int = 0

        def __post_init__(self) -> None:
            check_sizes(self.dropout, blocks=self.blocks, heads=self.heads, feed=self.feed)
            Masking(rate=self.rate, last=self.last)
            if self.sampled < 0:
                raise UserError(f"sampled = {self.sampled}; accepted: 0 (the whole table) or more")

    def __init__(self, fitted: FittedSchema, options: Options) -> None:
        super().__init__()
        o = self.options = options
        self.item = item_of(fitted, o.history)
        name, width = self.item.history, o.embedding.width
        drawing = Drawing(count=o.sampled, item=self.item.name, of="events") if o.sampled else None
        masking = Masking(rate=o.rate, last=o.last)
        self.needs = Needs(masked={name: masking}, drawn={} if drawing is None else {name: drawing})
        self.most = fitted.schema.history(name).max_length
        self.catalogue = Catalogue(self.item, width, o.embedding.std, biased=True)
        self.mask = nn.Parameter(torch.randn(1, width) * o.embedding.std)
        self.places = nn.Parameter(torch.randn(self.most, width) * o.embedding.std)
        self.blocks = nn.ModuleList(Block(width, o.heads, o.feed * width, "gelu", o.dropout) for _ in range(o.blocks))
        self.last = linear(width, width)
        self.widths = Widths(width, 1, 1, 0, 1)

    def forward(self, batch: Batch) -> Features:
        """See `Features`; `losses` holds the Cloze loss in training."""
        history = batch.histories[self.item.history]
        items_T, items_N = history.events.ids[:, self.item.past], batch.candidate.ids[:, self.item.own]
        learns = self.training and self.item.history in batch.masked
        drawn = batch.drawn.get(self.item.history)
        others = [] if not learns else [self.catalogue.all() if drawn is None else drawn.ids]
        e_TD, e_ND, *rest = self.catalogue(items_T, items_N, *others)
        b_N, *rest_b = self.catalogue.bias(items_N, *others, *([items_T] if learns else []))
        losses = {}
        if learns:
            hidden = batch.masked[self.item.history]
            u_TD = self._guessed(e_TD, history, hidden)
            at = (hidden & (items_T >= FIRST)).nonzero().squeeze(1)
            u_nD, true = u_TD.index_select(0, at), items_T.index_select(0, at)
            if drawn is None:
                items_VD, b_V = rest[0], rest_b[0]
                (each,) = by_slices(
                    lambda u, i: (full_softmax(u @ items_VD.T + b_V, i),), 3 * items_VD.shape[0], u_nD, true
                )
            else:
                of = history.segments.index_select(0, at)
                logit = (u_nD * e_TD.index_select(0, at)).sum(1) + rest_b[1].index_select(0, at)
                among = sampled_logits(u_nD, rest[0].index_select(0, of)) + rest_b[0].index_select(0, of)
                ids, log_q = of_rows(drawn, of)
                each = sampled_softmax(logit, true, among, ids, (drawn.true.index_select(0, at), log_q))
            # of a request cut into chunks each has the same loss: all together count once
            losses["cloze"] = batch.share * each.sum() / max(each.shape[0], 1)
        # a second reading of every past, and training mostly learns nothing from it
        asked = not learns or self.scores_learnt
        u_RD = self._expected(e_TD, history) if asked else e_TD.new_zeros((batch.R, e_TD.shape[1]))
        numbers_R = u_RD.new_zeros((u_RD.shape[0], 0))
        return Features(batch, u_RD.unsqueeze(1), e_ND.unsqueeze(1), numbers_R, b_N.unsqueeze(1), losses)

    def _expected(self, e_TD: Tensor, history: Jagged) -> Tensor:
        """[R, D]: u of a [mask] behind each past."""
        lengths, count = history.lengths, history.lengths.shape[0]
        places = self._from_newest(history) + 1
        x = torch.cat([self._placed(e_TD, places), (self.mask + self.places[:1]).expand(count, -1)])
        segments = torch.cat([history.segments, torch.arange(count, device=lengths.device)])
        at = grids(segments, torch.cat([history.positions, lengths]), lengths + 1, self.most + 1)
        # what the [mask] leaves no place for is a group by itself, which nothing else looks at
        out = torch.cat([places >= self.most, torch.zeros_like(lengths, dtype=torch.bool)])
        return self._through(x, at, out.long())[e_TD.shape[0] :]

    def _guessed(self, e_TD: Tensor, history: Jagged, hidden: Tensor) -> Tensor:
        """[T, D]: u of every event where `hidden` ones are masked."""
        seen = torch.where(hidden.unsqueeze(1), self.mask, e_TD)
        at = grids(history.segments, history.positions, history.lengths, self.most)
        return self._through(self._placed(seen, self._from_newest(history)), at, None)

    def _through(self, x: Tensor, at: Sequence[Grid], groups: Tensor | None) -> Tensor:
        for block in self.blocks:
            x = block(x, at, groups)
        return F.gelu(self.last(x))

    @staticmethod
    def _from_newest(history: Jagged) -> Tensor:
        """int64 [T]: how many events came after each."""
        return history.lengths.index_select(0, history.segments) - 1 - history.positions

    def _placed(self, x_TD: Tensor, places: Tensor) -> Tensor:
        return x_TD + gather(self.places, places.clamp(max=self.most - 1))


BERT4REC = named(
    Composition(
        name="bert4rec",
        representation=Cloze.Options(),
        interactions=(Match.Options(),),
        heads=CatalogueHeads.Options(),
        paper="1904.06690",
        exemptions={
            "batch_without_rows_of_a_task_gives_zero": (
                "the Cloze loss learns from the past alone: it reads neither labels nor weights of rows",
                "test_bert4rec_learns_from_the_past_whatever_the_rows_say",
            )
        },
        requires=("history",),
    )
)
