"""DeepMCP: matching, correlation and prediction over shared embeddings. Ouyang et al., IJCAI 2019, section 3.

L = L_pred + α L_match + β L_corr; only the prediction subnet is served.

prediction   any interactions; in the paper an MLP 512-256 over all fields
matching     u = MLP(request's side), a = MLP(candidate's side), last layers tanh; BCE(click, sigmoid(u·a)): does the user
             like this
correlation  one MLP, tanh last, over the fields that past events share with candidates: -log sigmoid(t·c)
             - Σ_{q <= Q} log sigmoid(-t·n_q) for a target t and every other event c of the same past within a window: are
             two of them liked by one user. Negatives n are events known to the row, drawn anew in each epoch
             (`Needs.negatives`); what equals t or c is passed over

α = β = 0 is the prediction subnet alone, with no trace of the others. DeepMP is β = 0, which the authors recommend where the
cost of the correlation matters. Differs from the paper: correlation reads the row's own past, which the batch has at hand,
instead of a second stream of user sequences, and is averaged over pairs, so that it does not depend on how long pasts are;
the Q negatives of a pair are the ones drawn for Q events in a row of the same past, from the context's on, round and round.
R requests · N candidates · T events · D width of the last layer
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finerank.data.batch import Batch, Jagged, TensorBlock
from finerank.errors import UserError, nearest
from finerank.layers.checks import check_count, check_layers
from finerank.layers.embedding import BlockVectors
from finerank.layers.mlp import MLP, linear
from finerank.layers.segments import spread
from finerank.models.base import Pooled, Tower
from finerank.models.composition import Features, Head, Needs, head_target
from finerank.models.pairs import pair_up
from finerank.models.plain import TaskHeads
from finerank.models.registry import Composition, named, part
from finerank.schema import FittedSchema


@part
class MatchedAndCorrelated(Pooled):
    """The base model's features (fields, pooled histories); in training they also serve two other ends."""

    @dataclass(frozen=True, kw_only=True)
    class Options(Pooled.Options):
        """As for `pooled`, and the two auxiliary subnets.

        embedding    width and initial spread of the fields; 10 wide in the authors' code, 16 here as for `base`, whose features
                     these are
        pooling      of the past: sum or mean
        decay        seconds after which a past event counts 1/e; 0: all count alike
        alpha, beta  weights of matching and correlation; 5 and .01 in the authors' code. 0 switches a subnet off
        hidden       layers of their towers; the last is tanh
        window       events to either side of one that count as liked together
        negatives    Q of each pair, at most; fewer where the past is short
        task         the task whose label matching learns from; "": the first binary one
        """

        kind: ClassVar[str] = "deepmcp"
        alpha: float = 5.0
        beta: float = 0.01
        hidden: tuple[int, ...] = (512, 256)
        window: int = 2
        negatives: int = 4
        task: str = ""

        def __post_init__(self) -> None:
            super().__post_init__()
            for name in ("alpha", "beta"):
                if not 0 <= getattr(self, name) < float("inf"):
                    raise UserError(f"{name} = {getattr(self, name)}; accepted: 0 (off) or more")
            check_layers(hidden=self.hidden)
            check_count(window=self.window, negatives=self.negatives)

    options: Options

    def __init__(self, fitted: FittedSchema, options: Options) -> None:
        super().__init__(fitted, options)
        self.user = self.ad = None
        self.pairs = pair_up(fitted, self.embed, age=False) if options.beta else []
        self.needs = Needs(negatives=frozenset(p.history for p in self.pairs))
        self.tasks = fitted.schema.tasks
        if options.alpha:
            self.head = Head(options.task, self._task(options.task))
            for side, width in (("request", self.widths.request), ("candidate", self.widths.candidate)):
                if not width:
                    raise UserError(
                        f"representation 'deepmcp': matching meets user and item, and the {side} has no input"
                    )
            self.user = _tower(self.widths.request, options.hidden)
            self.ad = _tower(self.widths.candidate, options.hidden)
        self.items = nn.ModuleList(_tower(self.embed.width_of(p.history, p.names), options.hidden) for p in self.pairs)

    def forward(self, batch: Batch) -> Features:
        """See `Features`; `losses` holds the two terms in training."""
        sampled: dict[str, tuple[str, TensorBlock]] = {}
        if self.training and self.pairs:
            sampled = {f"{name} sampled": (name, block) for name, block in batch.negatives.items()}
        found = self.embed(batch, sampled)
        features = self.features(batch, found)
        if not self.training:
            return features
        return replace(features, losses={**self._matching(features), **self._correlation(batch, found)})

    def _matching(self, features: Features) -> Mapping[str, Tensor]:
        if self.user is None or self.ad is None:
            return {}
        x_R, x_N = features.sides()
        batch = features.batch
        score_N = (spread(self.user(x_R), batch.request_of) * self.ad(x_N)).sum(1)
        labels_N, weights_N = head_target(self.tasks, self.head, batch.labels, batch.weights)
        loss_N = F.binary_cross_entropy_with_logits(score_N, labels_N.to(score_N.dtype), reduction="none")
        return {"matching": self.options.alpha * (weights_N * loss_N).sum() / batch.step_rows}

    def _correlation(self, batch: Batch, found: Mapping[str, BlockVectors]) -> Mapping[str, Tensor]:
        out = {}
        for pair, tower in zip(self.pairs, self.items, strict=True):
            name = pair.history
            if f"{name} sampled" in found:
                t_TD, n_TD = (tower(found[key].joined(pair.names)) for key in (name, f"{name} sampled"))
                same = batch.histories[name].events.ids[:, 0], batch.negatives[name].ids[:, 0]
                mean = correlation_loss(
                    t_TD, n_TD, *same, batch.histories[name], self.options.window, self.options.negatives
                )
                out[f"{name} correlation"] = self.options.beta * batch.share * mean
        return out

    def _task(self, name: str) -> str:
        binary = [t.name for t in self.tasks if t.kind == "binary"]
        if (name and name not in binary) or not binary:
            raise UserError(
                f"representation.task = {name!r} is no binary task; {nearest(name, binary)}"
                if binary
                else "representation 'deepmcp': matching learns from a binary task, and there is none; set alpha = 0"
            )
        return name or binary[0]


def correlation_loss(
    t_TD: Tensor, n_TD: Tensor, item_T: Tensor, negative_T: Tensor, history: Jagged, window: int, most: int
) -> Tensor:
    """Mean over the pairs (target, context) of one past, at most `window` apart, of the loss in the module's docstring.

    t_TD, n_TD          towers of the events, and of what was drawn in their place
    item_T, negative_T  int64: their items
    0 where no past has two events. The negatives of pair (t, t + o) are the draws t + o, t + o + 1, ... of its past, so
    over all pairs there are only 2 window + most different distances: as many products, not as many as pairs.
    """
    position, length = history.positions, history.lengths.index_select(0, history.segments)
    first = torch.arange(len(position), device=position.device) - position
    draws = (length - 1).clamp(min=1)  # the first event of a past has no draw: nothing predicts it
    loss, count = t_TD.new_zeros(()), torch.zeros((), device=position.device)
    weight_of: dict[int, Tensor] = {}
    for o in (o for o in range(-window, window + 1) if o):
        there = (position + o >= 0) & (position + o < length)
        context = torch.where(there, first + position + o, 0)
        loss = loss + (there * F.softplus(-(t_TD * t_TD.index_select(0, context)).sum(1))).sum()
        count = count + there.sum()
        for q in range(most):
            at = _draw(first, position, draws, o + q)
            drawn = negative_T.index_select(0, at)
            differs = (drawn != item_T) & (drawn != item_T.index_select(0, context))
            used = there & (q < length - 1) & differs
            weight_of[o + q] = weight_of.get(o + q, torch.zeros_like(position)) + used
    for distance, weight in weight_of.items():
        at = _draw(first, position, draws, distance)
        loss = loss + (weight * F.softplus((t_TD * n_TD.index_select(0, at)).sum(1))).sum()
    return loss / count.clamp(min=1)


def _draw(first: Tensor, position: Tensor, draws: Tensor, distance: int) -> Tensor:
    """int64 [T]: the draw at a distance from each event, round and round over draws 1 ... length - 1 of its past."""
    return (first + 1 + (position + distance - 1) % draws).clamp(max=len(first) - 1)


def _tower(inputs: int, hidden: tuple[int, ...]) -> nn.Module:
    before = MLP(inputs, hidden[:-1])
    return nn.Sequential(before, linear(hidden[-2] if len(hidden) > 1 else inputs, hidden[-1]), nn.Tanh())


DEEPMCP = named(
    Composition(
        name="deepmcp",
        representation=MatchedAndCorrelated.Options(),
        interactions=(Tower.Options(hidden=(512, 256), activation="relu"),),
        heads=TaskHeads.Options(),
        paper="1906.04365",
        requires=("history",),
    )
)
