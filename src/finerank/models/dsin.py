"""Deep Session Interest Network. Feng et al., IJCAI 2019, sections 3.2-3.5.

R requests · N candidates · T events · P (candidate, event) pairs · K width of an item's joined attributes · S sessions

    division     a new session begins where more than `gap` seconds lie between two events (30 minutes)
    bias         BE(k, t, c) = w_k + w_t + w_c: of the session, of the place within it, of the unit of the embedding
    extractor    self-attention within each session, then the mean of its rows: I_k
    interacting  a bidirectional LSTM over the sessions: H_k
    activating   U_I = sum_k softmax_k(I_k W_I x) I_k,  U_H = sum_k softmax_k(H_k W_H x) H_k,  x the candidate

Sessions are divided from the ages of events, inside the model, so training and serving divide alike; histories of list
columns do not say when, and are refused. A session stands at its first event: sums over sessions are masked sums over
events, whose number a graph knows. Self-attention is computed once per request, confined to sessions by a mask.
Ours: sessions are counted from the newest, so that a bias keeps its meaning when old events are cut off; sessions are not
cut to a fixed number or length, the history's own `max_length` is the limit.
Attributes that only the event has and its numbers are added to it through a linear layer; its age only divides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from finerank.data.batch import Batch, Jagged, Pairs
from finerank.errors import UserError
from finerank.layers.mlp import linear
from finerank.layers.recurrent import LSTM
from finerank.layers.segments import gather, segment_softmax, segment_sum, spread, weighted_sum
from finerank.layers.transformer import MASKED, Block, check_sizes, grids
from finerank.models.base import Tower
from finerank.models.composition import Features, Needs, Representation
from finerank.models.pairs import pair_up
from finerank.models.plain import EmbeddingOptions, FieldEmbedding, TaskHeads, plain_features, plain_widths
from finerank.models.registry import Composition, named, part
from finerank.schema import SECOND, FittedSchema


@dataclass(frozen=True)
class Sessions:
    """Which events are of one session.

    begins   bool [T]: whether an event is the first of its session
    start    int64 [T]: the first event of the session that each event is of
    number   int64 [T]: sessions of the request before that one
    place    int64 [T]: events of the session before this one
    counts   int64 [R]: sessions of each request
    """

    begins: Tensor
    start: Tensor
    number: Tensor
    place: Tensor
    counts: Tensor


def divide(history: Jagged, gap: float) -> Sessions:
    """Sessions of a history. gap: seconds; more than that between two events begins a session."""
    count = history.segments.shape[0]
    index = torch.arange(count, device=history.segments.device)
    before = (index - 1).clamp(min=0)
    pause = history.ages.index_select(0, before) - history.ages  # int64 microseconds: exact
    begins = (history.positions == 0) | (pause > round(gap * SECOND))
    until = begins.to(torch.int64).cumsum(0)
    counts = torch.zeros_like(history.lengths).index_add(0, history.segments, begins.to(torch.int64))
    before_request = (counts.cumsum(0) - counts).index_select(0, history.segments)
    # the first event of each session, by its running number, and back at its events
    firsts = torch.zeros_like(index).index_add(0, until - 1, torch.where(begins, index, 0))
    start = firsts.index_select(0, until - 1)
    return Sessions(begins, start, until - 1 - before_request, index - start, counts)


@part
class SessionInterest(Representation):
    """Interests of sessions, and of sessions in their sequence, as each candidate sees them: fields of the candidate."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Sessions and what is made of them.

        embedding  width and initial spread of the fields
        gap        seconds between two events that part sessions; 1800 in the paper
        heads      of the self-attention; 8 in the paper
        feed       hidden width of its network, as a multiple of K
        dropout    after attention and network
        bias       the bias encoding
        merge      of the two directions of the LSTM · concat: side by side (the paper's symbol) · mean: the authors' code
        """

        kind: ClassVar[str] = "session_interest"
        embedding: EmbeddingOptions = EmbeddingOptions()
        gap: float = 1_800.0
        heads: int = 8
        feed: int = 4
        dropout: float = 0.0
        bias: bool = True
        merge: Literal["concat", "mean"] = "concat"

        def __post_init__(self) -> None:
            check_sizes(self.dropout, heads=self.heads, feed=self.feed)
            if not 0 < self.gap < float("inf"):
                raise UserError(f"gap = {self.gap}; accepted: seconds above 0, usually 1800")

    def __init__(self, fitted: FittedSchema, options: Options) -> None:
        super().__init__()
        o = self.options = options
        for history in fitted.schema.histories:
            if history.lists and history.name in fitted.histories:
                raise UserError(
                    f"session_interest divides the past by time, and events of {history.name!r} have none: list columns do "
                    f"not say when; give it an event log, or leave it out (model.without = [{history.name!r}])"
                )
        self.embed = FieldEmbedding(fitted, o.embedding, ages=False)
        self.pairs = pair_up(fitted, self.embed, age=False)
        names = [p.history for p in self.pairs]
        self.needs = Needs(pairs=frozenset(names))
        self.attends = {name: name for name in names}
        self.steps = {name: fitted.schema.history(name).max_length for name in names}
        self.context, self.blocks, self.forth, self.back = (nn.ModuleList() for _ in range(4))
        self.ask_own, self.ask_met = nn.ModuleList(), nn.ModuleList()  # W_I and W_H
        self.of_session, self.of_place, self.of_unit = (nn.ParameterList() for _ in range(3))
        for pair in self.pairs:
            k = self.embed.width_of(pair.history, pair.names)
            beside = self.embed.width_of(pair.history, pair.context) + len(fitted.histories[pair.history].numbers)
            self.context.append(linear(beside, k, bias=False) if beside else nn.Identity())
            if o.bias:
                for bias, size in (
                    (self.of_session, self.steps[pair.history]),
                    (self.of_place, self.steps[pair.history]),
                ):
                    bias.append(nn.Parameter(torch.randn(size, 1) * o.embedding.std))
                self.of_unit.append(nn.Parameter(torch.randn(k) * o.embedding.std))
            self.blocks.append(Block(k, o.heads, o.feed * k, "relu", o.dropout))
            self.forth.append(LSTM(k, k))
            self.back.append(LSTM(k, k))
            self.ask_own.append(linear(k, k, bias=False))
            self.ask_met.append(linear(k, k * (1 + (o.merge == "concat")), bias=False))
        widths = plain_widths(fitted, self.embed)
        more = sum(len(p.names) for p in self.pairs) * (3 if o.merge == "concat" else 2)
        self.widths = replace(widths, candidate_fields=widths.candidate_fields + more)

    def forward(self, batch: Batch) -> Features:
        """See `Features`; `attention` holds at every event the weight of its session by itself (U_I)."""
        found = self.embed(batch)
        features = plain_features(batch, self.embed, found)
        fields_N, attention = [features.fields_N], {}
        for i, pair in enumerate(self.pairs):
            name, names = pair.history, pair.names
            history, pairs = batch.histories[name], batch.pairs[name]
            k_TK, context_TC = pair.keys(found[name]), pair.context_of(found[name], history)
            if context_TC is not None:
                k_TK = k_TK + self.context[i](context_TC)
            sessions = divide(history, self.options.gap)
            own_TK = self._interests(i, k_TK, history, sessions, self.steps[name])
            met_TK = self._interacting(i, own_TK, history, sessions, self.steps[name])
            q_NK = pair.queries(found["candidate"])
            event = pairs.events()
            begins = sessions.begins.index_select(0, event)
            for ask, rows_TK in ((self.ask_own[i], own_TK), (self.ask_met[i], met_TK)):
                weights = _activated(ask(q_NK), rows_TK, pairs, event, begins)
                v_NK = weighted_sum(weights, rows_TK, pairs.candidate, event, batch.N)
                width = k_TK.shape[1]
                for part_NK in v_NK.split_with_sizes([width] * (v_NK.shape[1] // width), dim=1):
                    fields_N.append(self.embed.as_fields(name, names, part_NK))
                if name not in attention:  # the pair with a session's first event lies as far before as that event does
                    pair_index = torch.arange(event.shape[0], device=event.device)
                    back = (event - sessions.start.index_select(0, event)).clamp(min=0)
                    attention[name] = weights.index_select(0, pair_index - back)
        return replace(features, fields_N=torch.cat(fields_N, dim=1), attention=attention)

    def _interests(self, i: int, k_TK: Tensor, history: Jagged, sessions: Sessions, most: int) -> Tensor:
        """[T, K]: at the first event of each session its interest I_k, elsewhere 0."""
        if self.options.bias:
            from_newest = sessions.counts.index_select(0, history.segments) - 1 - sessions.number
            of_session, of_place = self.of_session[i], self.of_place[i]
            last = of_session.shape[0] - 1
            k_TK = k_TK + gather(of_session, from_newest.clamp(max=last)) + self.of_unit[i]
            k_TK = k_TK + gather(of_place, sessions.place.clamp(max=last))
        at = grids(history.segments, history.positions, history.lengths, most)
        k_TK = self.blocks[i](k_TK, at, sessions.start)
        count = k_TK.shape[0]
        size = segment_sum(k_TK.new_ones((count, 1)), sessions.start, count).clamp(min=1.0)
        return segment_sum(k_TK, sessions.start, count) / size

    def _interacting(self, i: int, own_TK: Tensor, history: Jagged, sessions: Sessions, most: int) -> Tensor:
        """[T, K or 2K]: at the first event of each session its state H_k. Elsewhere anything."""
        segments, number = history.segments, sessions.number
        x, chosen = own_TK, None
        if (
            not torch.compiler.is_exporting()
        ):  # the walk of a graph adds the zeros between; else only sessions take steps
            chosen = sessions.begins.nonzero().squeeze(1)
            x, segments, number = (t.index_select(0, chosen) for t in (own_TK, segments, number))
        down = sessions.counts.index_select(0, segments) - 1 - number
        both = []
        for cell, positions in ((self.forth[i], number), (self.back[i], down)):
            assert isinstance(cell, LSTM)
            both.append(cell(cell.project(x), None, segments, positions, sessions.counts, most)[0])
        met = torch.cat(both, dim=1) if self.options.merge == "concat" else (both[0] + both[1]) / 2
        if chosen is None:
            return met
        return met.new_zeros((own_TK.shape[0], met.shape[1])).index_copy(0, chosen, met)


def _activated(asked_NK: Tensor, rows_TK: Tensor, pairs: Pairs, event: Tensor, begins_P: Tensor) -> Tensor:
    """[P]: softmax over the sessions of a candidate, at their first events; 0 at the others."""
    logits = (spread(asked_NK, pairs.candidate) * gather(rows_TK, event)).sum(1)
    weights = segment_softmax(torch.where(begins_P, logits, MASKED), pairs.candidate, asked_NK.shape[0])
    return weights * begins_P


DSIN = named(
    Composition(
        name="dsin",
        representation=SessionInterest.Options(),
        interactions=(Tower.Options(),),
        heads=TaskHeads.Options(),
        paper="1905.06482",
        requires=("history",),
    )
)
