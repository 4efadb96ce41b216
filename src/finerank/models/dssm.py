"""Deep Structured Semantic Model, with the request in place of the query. Huang et al., CIKM 2013, section 3; and its training
with negatives from the batch, Yi et al., RecSys 2019, section 3.

logit = cos(u, v) / temperature,  u = MLP(the request's side), v = MLP(the candidate's side)

`dssm` learns the labels of candidates. `two_tower` learns P(item) = softmax(logit - log Q(item)) of the rows with a positive
label, among the items of the other positive rows of the batch; Q is an item's share of the events known to the request, which
makes up for popular items being negatives more often. Each task has its own softmax. It ranks, and says no probabilities: see
the heads `catalogue`.

The contrast to every other model here: user and candidate meet in one product at the very end (late crossing), so u is
computed once per request and v could be kept per item. What depends on both sides, such as an interest that attends to the
candidate, counts as the candidate's.

Differs from the textbook: DSSM's softmax over a few sampled documents is left to `in_batch`, the words' hashing to the schema's
encodings; Q is counted where Yi et al. estimate it from the stream.
R requests · N candidates · V width of u and v · K outputs, each with a pair of networks of its own
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from finerank.data.drawing import Drawing
from finerank.errors import UserError
from finerank.layers.activation import Activation
from finerank.layers.checks import check_dropout, check_layers
from finerank.layers.cosine import unit_length
from finerank.layers.mlp import MLP
from finerank.layers.segments import spread
from finerank.models.base import Pooled
from finerank.models.catalogue import CatalogueHeads, in_batch_softmax, item_of
from finerank.models.composition import Features, Head, Interaction, Needs, Widths, head_target
from finerank.models.plain import TaskHeads
from finerank.models.registry import Composition, named, part
from finerank.schema import FittedSchema


@part
class LateCrossing(Interaction):
    """A network per side; their outputs meet as cosine or product."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """The two networks and their meeting.

        hidden       layers of either network; the last is the width of u and v. 300-300-128 in the paper
        activation   tanh in the paper, also of the last layer
        dropout      of every layer; off unless asked for
        similarity   cosine as in the paper, or dot, which lengths may scale
        temperature  divides the similarity: a cosine alone spans only -1 to 1 of log-odds. 0.1 is a factor of 10
        in_batch     weight of the softmax over the batch's positive rows; 0: none, and no history is needed
        correct      logits less log Q in that softmax
        """

        kind: ClassVar[str] = "late_crossing"
        hidden: tuple[int, ...] = (300, 300, 128)
        activation: Activation = "tanh"
        dropout: float = 0.0
        similarity: Literal["cosine", "dot"] = "cosine"
        temperature: float = 0.1
        in_batch: float = 0.0
        correct: bool = True

        def __post_init__(self) -> None:
            check_layers(0, hidden=self.hidden)
            check_dropout(dropout=self.dropout)
            if not self.hidden:
                raise UserError("hidden = []; accepted: at least one layer, the last as wide as either side's vector")
            if not self.temperature > 0:
                raise UserError(f"temperature = {self.temperature}; accepted: above 0, usually 0.05 to 1")
            if not self.in_batch >= 0:
                raise UserError(f"in_batch = {self.in_batch}; accepted: 0 (none) or more, usually 1")

    def __init__(self, fitted: FittedSchema, widths: Widths, outputs: int, options: Options) -> None:
        super().__init__()
        o = options
        for side, width in (("request", widths.request), ("candidate", widths.candidate)):
            if not width:
                raise UserError(
                    f"interaction 'late_crossing': no {side}-level inputs; accepted: a schema with features of both "
                    "levels, or a 'tower'"
                )
        self.networks_R, self.networks_N = (
            nn.ModuleList(MLP(width, o.hidden, None, o.activation, o.dropout) for _ in range(outputs))
            for width in (widths.request, widths.candidate)
        )
        self.options = options
        self.tasks = fitted.schema.tasks
        self._met: list[tuple[Tensor, Tensor]] = []  # u and v of each output, in training
        if o.in_batch:
            self.item = item_of(fitted)
            if outputs != len(self.tasks) or not any(t.kind == "binary" for t in self.tasks):
                raise UserError(
                    f"interaction 'late_crossing' with in_batch: {outputs} outputs for {len(self.tasks)} tasks, of which it "
                    "learns the positive rows; accepted: a binary task, and heads with an output a task ('catalogue', 'tasks')"
                )
            self.needs = Needs(drawn={self.item.history: Drawing(count=0, item=self.item.name, of="candidates")})

    def penalties(self, features: Features) -> dict[str, Tensor]:
        """The softmax over the batch, of each binary task."""
        batch, met, losses = features.batch, self._met, {}
        self._met = []
        drawn = batch.drawn.get(self.item.history) if met else None
        if drawn is None:
            return {}
        items_N = batch.candidate.ids[:, self.item.own]
        for task, (u_RV, v_NV) in zip(self.tasks, met, strict=True):
            if task.kind != "binary":
                continue
            labels, weights = head_target(self.tasks, Head(task.name, task.name), batch.labels, batch.weights)
            at = (labels == 1).nonzero().squeeze(1)
            of = batch.request_of.index_select(0, at)
            log_q = drawn.true.index_select(0, at) if self.options.correct else None
            logits = u_RV.index_select(0, of) @ v_NV.index_select(0, at).T / self.options.temperature
            each = in_batch_softmax(logits, items_N.index_select(0, at), of, log_q)
            total = (weights.index_select(0, at) * each).sum() / batch.step_rows
            losses[f"{task.name} in batch"] = self.options.in_batch * total
        return losses

    def forward(self, features: Features) -> Tensor:
        """[N, outputs]."""
        x_R, x_N = features.sides()
        met: list[Tensor] = []
        self._met = []
        for of_R, of_N in zip(self.networks_R, self.networks_N, strict=True):
            u, v = of_R(x_R), of_N(x_N)
            if self.options.similarity == "cosine":
                u, v = unit_length(u), unit_length(v)
            if self.training and self.options.in_batch:
                self._met.append((u, v))
            met.append((spread(u, features.batch.request_of) * v).sum(1))
        return torch.stack(met, dim=1) / self.options.temperature


DSSM = named(
    Composition(
        name="dssm",
        representation=Pooled.Options(),
        interactions=(LateCrossing.Options(),),
        heads=TaskHeads.Options(),
        paper="10.1145/2505515.2505665",
        requires=("history",),
    )
)

TWO_TOWER = named(
    Composition(
        name="two_tower",
        representation=Pooled.Options(),
        interactions=(LateCrossing.Options(in_batch=1.0),),
        heads=CatalogueHeads.Options(),
        paper="10.1145/3298689.3346996",
        requires=("history",),
    )
)
