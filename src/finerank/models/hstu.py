"""Hierarchical Sequential Transduction Units as a ranker. Zhai et al., ICML 2024, sections 3.1-3.3 and 4.2.

R requests · N candidates · T events · P (candidate, event) pairs · K width of an item's joined attributes · H heads · d of a
head · n greatest length of a sequence

    U, V, Q, K = SiLU(f1(norm(X)))                 pointwise projection (equation 1)
    A = SiLU(Q K' + rab) / n                       no softmax: how much is kept, as in DIN; causal (equation 2)
    X' = X + f2(norm(A V) * U)                     (equation 3)

rab(i, j) = position[i - j] + time[bucket of the time between i and j], buckets by powers of two of a second.

The candidate is the last element of the sequence; it sees the past and itself, and the past never sees it. So all layers of
the past are computed once per request, and a candidate costs a row of attention per layer (section 3.4's M-FALCON, here
without micro-batches). Items and actions take turns, as in the paper: what an event says beside what the candidate has too
(its sort, a rating, a dwell time) is its action, a linear layer of which follows the item as an element of its own, with the
item's time. Where events say nothing else all actions would be one, and items stand alone. n is the greatest number of
elements, candidate included, a constant, so that the division by it does not depend on who else is in the batch. Events of
list columns have no times, and then positions alone count.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finerank.data.batch import Batch, Jagged, Pairs
from finerank.layers.mlp import linear
from finerank.layers.pointwise import BUCKETS, biases, pointwise
from finerank.layers.segments import gather, segment_sum, spread
from finerank.layers.transformer import Grid, check_sizes, gathered, grids
from finerank.models.base import Tower
from finerank.models.composition import Features, Needs, Representation
from finerank.models.pairs import pair_up
from finerank.models.plain import EmbeddingOptions, FieldEmbedding, TaskHeads, plain_features, plain_widths
from finerank.models.registry import Composition, named, part
from finerank.schema import FittedSchema


@part
class SequentialTransduction(Representation):
    """The candidate as the last element of the past, after pointwise attention, as further fields of the candidate."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """The units.

        embedding  width and initial spread of the fields
        layers     2 in the paper's small model, 8 in its large one
        heads      attention heads
        dropout    before the residual connection
        time       whether the bias also knows the time between two elements
        actions    tokens: elements of their own, as in the paper · added: to their item, which halves the sequence
        """

        kind: ClassVar[str] = "sequential_transduction"
        embedding: EmbeddingOptions = EmbeddingOptions()
        layers: int = 2
        heads: int = 2
        dropout: float = 0.0
        time: bool = True
        actions: Literal["tokens", "added"] = "tokens"

        def __post_init__(self) -> None:
            check_sizes(self.dropout, layers=self.layers, heads=self.heads)

    def __init__(self, fitted: FittedSchema, options: Options) -> None:
        super().__init__()
        self.options = options
        self.embed = FieldEmbedding(fitted, options.embedding, ages=False)
        self.pairs = pair_up(fitted, self.embed, age=False)
        names = [p.history for p in self.pairs]
        self.needs = Needs(pairs=frozenset(names))
        self.attends = {name: name for name in names}
        self.most: dict[str, int] = {}
        self.units, self.context = nn.ModuleList(), nn.ModuleList()
        for pair in self.pairs:
            k = self.embed.width_of(pair.history, pair.names)
            timed = options.time and not fitted.schema.history(pair.history).lists
            beside = self.embed.width_of(pair.history, pair.context) + len(fitted.histories[pair.history].numbers)
            turns = 2 if beside and options.actions == "tokens" else 1
            most = self.most[pair.history] = turns * fitted.schema.history(pair.history).max_length + 1
            units = (Unit(k, options.heads, most, timed, options.dropout) for _ in range(options.layers))
            self.units.append(nn.ModuleList(units))
            self.context.append(linear(beside, k, bias=False) if beside else nn.Identity())
        widths = plain_widths(fitted, self.embed)
        more = sum(len(p.names) for p in self.pairs)
        self.widths = replace(widths, candidate_fields=widths.candidate_fields + more)

    def forward(self, batch: Batch) -> Features:
        """See `Features`; `attention` holds the last layer's weight of every pair, the mean over its heads."""
        found = self.embed(batch)
        features = plain_features(batch, self.embed, found)
        fields_N, attention = [features.fields_N], {}
        for i, pair in enumerate(self.pairs):
            history, pairs = batch.histories[pair.history], batch.pairs[pair.history]
            x_NK, x_TK = pair.queries(found["candidate"]), pair.keys(found[pair.history])
            context_TC = pair.context_of(found[pair.history], history)
            tokens = context_TC is not None and self.options.actions == "tokens"
            if context_TC is not None:
                action_TK = self.context[i](context_TC)
                x_TK = _in_turns(x_TK, action_TK) if tokens else x_TK + action_TK
            if tokens:
                history, pairs = taking_turns(history, pairs)
            at = grids(history.segments, history.positions, history.lengths, self.most[pair.history] - 1)
            units = self.units[i]
            assert isinstance(units, nn.ModuleList)
            for unit in units:
                assert isinstance(unit, Unit)
                x_TK, x_NK, weights_PH = unit(x_TK, x_NK, history, pairs, batch.request_of, at)
            weights_P = weights_PH.mean(1)
            attention[pair.history] = weights_P.view(-1, 2).sum(1) if tokens else weights_P
            fields_N.append(self.embed.as_fields(pair.history, pair.names, x_NK))
        return replace(features, fields_N=torch.cat(fields_N, dim=1), attention=attention)


def _in_turns(first: Tensor, second: Tensor) -> Tensor:
    """[n, ...] twice -> [2 n, ...]: the first of one, the first of the other, the second of one ..."""
    return torch.stack([first, second], dim=1).flatten(0, 1)


def taking_turns(history: Jagged, pairs: Pairs) -> tuple[Jagged, Pairs]:
    """The past and its pairs with two elements for every event, item and action; the columns of events stay as they are."""
    event = pairs.events()
    doubled = replace(
        history,
        segments=_in_turns(history.segments, history.segments),
        positions=_in_turns(2 * history.positions, 2 * history.positions + 1),
        lengths=2 * history.lengths,
        ages=_in_turns(history.ages, history.ages),
    )
    return doubled, Pairs(_in_turns(pairs.candidate, pairs.candidate), _in_turns(2 * event, 2 * event + 1))


class Unit(nn.Module):
    """One layer, over the events of each request and over each candidate behind them.

    most  n, which is also the number of position biases
    """

    def __init__(self, width: int, heads: int, most: int, timed: bool, dropout: float) -> None:
        super().__init__()
        self.heads, self.each, self.most = heads, -(-width // heads), most
        self.project = linear(width, 4 * heads * self.each)
        self.out = linear(heads * self.each, width)
        self.position = nn.Parameter(torch.randn(most) * 0.02)
        self.time = nn.Parameter(torch.randn(BUCKETS) * 0.02) if timed else None
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x_TK: Tensor, x_NK: Tensor, history: Jagged, pairs: Pairs, request_of: Tensor, at: list[Grid]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(events [T, K], candidates [N, K], weights [P, H]) after the layer."""
        of_T, of_N = self._projected(x_TK), self._projected(x_NK)
        taken_NK, weights_PH = self._of_candidates(of_N, of_T, history, pairs, request_of)
        return (
            self._after(x_TK, self._of_events(of_T, history, at), of_T),
            self._after(x_NK, taken_NK, of_N),
            weights_PH,
        )

    def _projected(self, x: Tensor) -> tuple[Tensor, ...]:
        """U, V, Q, K side by side."""
        return F.silu(self.project(F.layer_norm(x, x.shape[1:]))).chunk(4, dim=1)

    def _after(self, x: Tensor, taken: Tensor, projected: tuple[Tensor, ...]) -> Tensor:
        out: Tensor = x + self.dropout(self.out(F.layer_norm(taken, taken.shape[1:]) * projected[0]))
        return out

    def _of_events(self, of_T: tuple[Tensor, ...], history: Jagged, at: list[Grid]) -> Tensor:
        """[T, H d]: what every event takes from those before it and itself."""
        _, v, q, k = of_T
        parts = []
        for grid in at:
            shape = (grid.rows, grid.length, self.heads, self.each)
            q_g, k_g, v_g = (grid.fill(x).view(shape).transpose(1, 2) for x in (q, k, v))  # [B, H, L, d]
            age = grid.fill(history.ages.unsqueeze(1)).squeeze(2)
            met = pointwise(q_g, k_g, v_g, self.position, self.time, age, self.most)
            parts.append((grid, grid.take(met.transpose(1, 2).flatten(2))))
        return gathered(parts, v.shape[0], v)

    def _of_candidates(
        self, of_N: tuple[Tensor, ...], of_T: tuple[Tensor, ...], history: Jagged, pairs: Pairs, request_of: Tensor
    ) -> tuple[Tensor, Tensor]:
        """([N, H d], weights [P, H]): what every candidate takes from its request's events and itself."""
        _, v_N, q_N, k_N = of_N
        _, v_T, _, k_T = of_T
        event = pairs.events()
        length = history.lengths.index_select(0, request_of).index_select(0, pairs.candidate)
        back = length - history.positions.index_select(0, event)
        bias_P = biases(self.position, self.time, back, history.ages.index_select(0, event))
        logits_PH = self._by_head(spread(q_N, pairs.candidate) * gather(k_T, event)).sum(2) + bias_P.unsqueeze(1)
        weights_PH = F.silu(logits_PH) / self.most
        taken = segment_sum(
            (weights_PH.unsqueeze(2) * self._by_head(gather(v_T, event))).flatten(1), pairs.candidate, v_N.shape[0]
        )
        now = biases(self.position, self.time, request_of.new_zeros(1), request_of.new_zeros(1))
        own_NH = F.silu(self._by_head(q_N * k_N).sum(2) + now) / self.most
        return taken + (own_NH.unsqueeze(2) * self._by_head(v_N)).flatten(1), weights_PH

    def _by_head(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], self.heads, self.each)


HSTU = named(
    Composition(
        name="hstu",
        representation=SequentialTransduction.Options(),
        interactions=(Tower.Options(),),
        heads=TaskHeads.Options(),
        paper="2402.17152",
        requires=("history",),
    )
)
