"""Deep Interest Network. Zhou et al., KDD 2018, sections 4.1-4.3.

R requests · N candidates · T events · P (candidate, event) pairs · K width of an item's joined attributes · D of a field
J entries of a list that ask one by one

Differs from the textbook: history is jagged and stored once per request, so there is no mask to forget and no padding
for Dice to average over; the unit's first layer is factored (same numbers, a quarter of the work); the first layer of the
tower reads the user's side once per request. The age of an event, where the history keeps it, is a further input of the
unit that has no counterpart in the candidate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from finerank.data.batch import Batch, Jagged, Pairs, TensorLists
from finerank.errors import UserError
from finerank.layers.attention import ActivationUnit, UnitOptions, attend, check_decay, log_decay
from finerank.layers.embedding import BlockVectors
from finerank.layers.mlp import BatchNorm, linear
from finerank.layers.segments import gather, segment_sum, spread
from finerank.models.base import Tower
from finerank.models.composition import Features, Needs, Representation
from finerank.models.pairs import AUTO, Paired, arranged, check_ages, histories_of, pair_up, parsed, weight_names
from finerank.models.plain import EmbeddingOptions, FieldEmbedding, TaskHeads, plain_features, plain_widths
from finerank.models.registry import Composition, named, part
from finerank.schema import FittedSchema


@part
class TargetInterest(Representation):
    """The user's past as seen from each candidate: v_N = sum_t a(q_N, k_t) k_t, weights not normalised (section 4.3)."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Who looks at whom, how, and what enters the tower beside the result.

        embedding  width and initial spread of the fields
        pairs      auto: every history, its fields with the candidate's that share their tables · else
                   candidate#history, several joined by a bar, as `models/pairs.py` says
        mode       concat: one weight for an event's joined attributes, as in the paper's figure · separate: one for each
        share      units of the pairs · none: each its own · loop: one for all (other widths are projected to the widest)
                   · concat: one over all of them joined, so one weight for all; pairs of one history
        entries    a list of the candidate asks: 0: as its pooled vector · J: each of its first J entries on its own,
                   the weight is their mean; costs J times as much
        unit       the activation unit
        age        whether the unit sees how long ago an event was (the kind `mlp` alone can)
        recency    position counted from the newest event, as a vector · add: to the event's own, in the unit and in the
                   sum · context: the unit alone sees it (`mlp` again)
        decay      seconds after which an event counts 1/e, whatever the unit says; 0: off; events of list columns never
                   decay
        rework     batch norm and a linear layer over each interest, as in the DIN repository
        also       sum: the pooled history on the request's side · sum_product: candidate * that sum (the DIEN repository's
                   DIN has both) · product: candidate * its interest (the DIN repository)
        """

        kind: ClassVar[str] = "target_interest"
        embedding: EmbeddingOptions = EmbeddingOptions()
        pairs: str = AUTO
        mode: Literal["concat", "separate"] = "concat"
        share: Literal["none", "loop", "concat"] = "none"
        entries: int = 0
        unit: UnitOptions = UnitOptions()
        age: bool = True
        recency: Literal["none", "add", "context"] = "none"
        decay: float = 0.0
        rework: bool = False
        also: tuple[Literal["sum", "sum_product", "product"], ...] = ()

        def __post_init__(self) -> None:
            if self.pairs != AUTO:
                parsed(self.pairs)
            if self.entries < 0:
                raise UserError(f"entries = {self.entries}; accepted: 0 (the pooled list asks) or more, usually 3")
            if self.recency == "context" and self.unit.kind != "mlp":
                raise UserError(
                    f"recency = 'context' and unit.kind = {self.unit.kind!r}; accepted: 'add', or kind 'mlp'"
                )
            check_decay(self.decay)

    def __init__(self, fitted: FittedSchema, options: Options) -> None:
        super().__init__()
        o = self.options = options
        attending = histories_of(fitted, o.pairs)
        check_ages(fitted, attending, o.decay)
        age = o.age and o.unit.kind == "mlp"
        self.embed = FieldEmbedding(fitted, o.embedding, ("request", "candidate", *attending), ages=age)
        pairs = pair_up(fitted, self.embed, age, o.pairs)
        self.pairs = arranged(pairs, o.mode == "separate", o.share == "concat")
        self.attends = dict(zip(weight_names(self.pairs), (p.history for p in self.pairs), strict=True))
        self.needs = Needs(pairs=frozenset(attending))
        self.asking = [_asking(fitted, pair, o.entries) for pair in self.pairs]
        if o.entries and not any(self.asking):
            raise UserError(f"entries = {o.entries}, and no list of the candidate attends; set it to 0, or pair a list")

        query = [self.embed.width_of("candidate", p.query) for p in self.pairs]
        key = [self.embed.width_of(p.history, p.names) for p in self.pairs]
        context = [self._context(fitted, p) if o.unit.kind == "mlp" else 0 for p in self.pairs]
        if o.share == "loop":
            width, most = max(key), max(context)
            self.fits = nn.ModuleList(Fit(*w, width, most) for w in zip(query, key, context, strict=True))
            self.units = nn.ModuleList([ActivationUnit(width, o.unit, most)])
        else:
            each = zip(query, key, context, strict=True)
            self.units = nn.ModuleList(ActivationUnit(k, o.unit, c, query=q) for q, k, c in each)
        if o.recency != "none":  # a row a position, the newest first
            lengths = [fitted.schema.history(p.history).max_length for p in self.pairs]
            vectors = key if o.recency == "add" else [o.embedding.width] * len(key)
            draws = [torch.randn(n, w) * o.embedding.std for n, w in zip(lengths, vectors, strict=True)]
            self.recency = nn.ParameterList(draws)
        if o.rework:
            self.rework = nn.ModuleList(nn.Sequential(BatchNorm(k), linear(k, k)) for k in key)

        fields = sum(len(p.names) for p in self.pairs)
        widths = plain_widths(fitted, self.embed)
        self.widths = replace(
            widths,
            request_fields=widths.request_fields + fields * ("sum" in o.also),
            candidate_fields=widths.candidate_fields + fields * (1 + len(set(o.also) - {"sum"})),
        )

    def _context(self, fitted: FittedSchema, pair: Paired) -> int:
        """C: width of what the unit sees of an event beside its key."""
        width = self.embed.width_of(pair.history, pair.context) + len(fitted.histories[pair.history].numbers)
        return width + (self.options.embedding.width if self.options.recency == "context" else 0)

    def forward(self, batch: Batch) -> Features:
        """See `Features`; `attention` holds the weight of every pair."""
        found = self.embed(batch)
        features = plain_features(batch, self.embed, found)
        fields_R, fields_N, attention = [features.fields_R], [features.fields_N], {}
        also = self.options.also
        for i, (name, pair) in enumerate(zip(self.attends, self.pairs, strict=True)):
            k_TK, context_TC = self._events(i, found[pair.history], batch.histories[pair.history])
            attention[name] = self._weights(i, found["candidate"], k_TK, context_TC, batch)
            interest = attend(attention[name], k_TK, batch.pairs[pair.history], batch.N)
            if self.options.rework:
                interest = self.rework[i](interest)
            v_NFD = self.embed.as_fields(pair.history, pair.names, interest)
            fields_N.append(v_NFD)
            if not also:
                continue
            q_NFD = self.embed.as_fields("candidate", pair.query, pair.queries(found["candidate"]))
            if "product" in also:
                fields_N.append(q_NFD * v_NFD)
            if "sum" in also or "sum_product" in also:
                total = segment_sum(k_TK, batch.histories[pair.history].segments, batch.R)
                sum_RFD = self.embed.as_fields(pair.history, pair.names, total)
                fields_R += [sum_RFD] if "sum" in also else []
            if "sum_product" in also:
                of_candidate = spread(sum_RFD.flatten(1), batch.request_of).view(q_NFD.shape)
                fields_N.append(q_NFD * of_candidate)
        return replace(
            features, fields_R=torch.cat(fields_R, dim=1), fields_N=torch.cat(fields_N, dim=1), attention=attention
        )

    def _events(self, i: int, found: BlockVectors, history: Jagged) -> tuple[Tensor, Tensor | None]:
        """(k_TK, context_TC) of the i-th pair."""
        pair, recency = self.pairs[i], self.options.recency
        k_TK = pair.keys(found)
        context_TC = pair.context_of(found, history) if self.options.unit.kind == "mlp" else None
        if recency == "none":
            return k_TK, context_TC
        newest = history.lengths.index_select(0, history.segments) - 1 - history.positions
        table = self.recency[i]
        p_T = gather(table, newest.clamp(max=table.shape[0] - 1))
        if recency == "add":
            return k_TK + p_T, context_TC
        return k_TK, p_T if context_TC is None else torch.cat([context_TC, p_T], dim=1)

    def _weights(self, i: int, found: BlockVectors, k_TK: Tensor, context_TC: Tensor | None, batch: Batch) -> Tensor:
        """[P] of the i-th pair."""
        pair, lists, decay = self.pairs[i], self.asking[i], self.options.decay
        history, pairs = batch.histories[pair.history], batch.pairs[pair.history]
        log_T = log_decay(history.ages, decay, k_TK) if decay else None
        if lists is None:
            return self._unit(i, pair.queries(found), k_TK, context_TC, pairs, log_T)
        most = self.options.entries
        q_MK, counts = entry_queries(found, pair.query, lists, batch.candidate.lists[lists], most)
        asked, of_pair = entry_pairs(pairs, counts, most)
        weights = self._unit(i, q_MK, k_TK, context_TC, asked, log_T)
        total = weights.new_zeros((pairs.candidate.shape[0], 1)).index_add(0, of_pair, weights.unsqueeze(1))
        return total.squeeze(1) / counts.index_select(0, pairs.candidate)

    def _unit(self, i: int, q: Tensor, k: Tensor, context: Tensor | None, pairs: Pairs, log_T: Tensor | None) -> Tensor:
        if self.options.share == "loop":
            q, k, context = self.fits[i](q, k, context)
        weights: Tensor = self.units[0 if self.options.share == "loop" else i](q, k, context, pairs, log_T)
        return weights


class Fit(nn.Module):
    """What a unit shared by several pairs takes of one: what is not as wide as the unit is projected to it.

    query, key, context, width, most   widths before (three) and after (queries and keys; contexts)
    """

    def __init__(self, query: int, key: int, context: int, width: int, most: int) -> None:
        super().__init__()
        self.most = most
        self.key = linear(key, width, bias=False) if key != width else nn.Identity()
        # of one width they are of one table, mostly, and what is equal before must be equal after
        self.query = None if query == key else (linear(query, width, bias=False) if query != width else nn.Identity())
        self.context = linear(context, most, bias=False) if 0 < context < most else nn.Identity()

    def forward(self, q: Tensor, k: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """(q, k, context) in the unit's widths; an event without context gets zeros."""
        if self.most:
            context = k.new_zeros((k.shape[0], self.most)) if context is None else self.context(context)
        return (self.key if self.query is None else self.query)(q), self.key(k), context


def _asking(fitted: FittedSchema, pair: Paired, entries: int) -> str | None:
    """The list of the candidate whose entries ask one by one; None where the pooled vectors ask."""
    lists = [c.name for c in fitted.candidate.lists if c.name in pair.query] if entries else []
    if len(lists) > 1:
        raise UserError(
            f"entries = {entries}, and {lists} ask together, of which only one list can be taken apart; set "
            "mode = 'separate', or name pairs with one list each"
        )
    return lists[0] if lists else None


def entry_queries(
    found: BlockVectors, names: Sequence[str], name: str, lists: TensorLists, most: int
) -> tuple[Tensor, Tensor]:
    """(queries [J·N, K], the first entries of all candidates, then the second ...; how many of a candidate's count [N]).

    An empty list asks once, with a zero vector: what pooling it gives.
    """
    entries = found.entries[name]
    first = (lists.lengths.cumsum(0) - lists.lengths).index_select(0, lists.index)
    length = lists.lengths.index_select(0, lists.index)
    j = torch.arange(most, device=first.device).unsqueeze(1)
    at = torch.where(j < length, first + j, entries.shape[0]).flatten()  # beyond the last entry: the zero vector
    entries = torch.cat([entries, entries.new_zeros((1, entries.shape[1]))])
    queries = [entries.index_select(0, at) if n == name else found.column(n).repeat(most, 1) for n in names]
    return torch.cat(queries, dim=1), length.clamp(1, most)


def entry_pairs(pairs: Pairs, counts_N: Tensor, most: int) -> tuple[Pairs, Tensor]:
    """(pairs of the queries of `entry_queries` with events, ascending; the pair of the candidate that each belongs to)."""
    j = torch.arange(most, device=counts_N.device).unsqueeze(1)
    j, of_pair = (j < counts_N.index_select(0, pairs.candidate)).nonzero().unbind(1)
    query = j * counts_N.shape[0] + pairs.candidate.index_select(0, of_pair)
    return Pairs(query, of_pair if pairs.event is None else pairs.event.index_select(0, of_pair)), of_pair


DIN = named(
    Composition(
        name="din",
        representation=TargetInterest.Options(),
        interactions=(Tower.Options(),),
        heads=TaskHeads.Options(),
        paper="1706.06978",
        requires=("history",),
    )
)
