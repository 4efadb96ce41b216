"""Search-based Interest Model. Pi et al., CIKM 2020, sections 3.1-3.4: histories of thousands of events.

R requests · N candidates · T events · P searched (candidate, event) pairs · K width of an item's joined attributes · S of an
event in the exact unit: K and its time interval · H heads

General search unit, in two forms (section 3.2):

    hard   the events of the candidate's category, the newest `top` of them; no parameters (`sim`)
    soft   the `top` events of greatest r = <W_b e, W_a e_a>, learnt by a loss of its own: a small network over
           U = sum_t r_t e_t and the candidate predicts the tasks (`sim_soft`)

Exact search unit over what was found (section 3.3): each event z = [e, time interval], heads softmax(<W_b z, W_a e_a>) z; or
DIN's unit. Beside it the newest `recent` events, as DIEN reads them (`short`), with DIEN's auxiliary loss over these events
(`next_event`). The loss of section 3.4 names those of the two search units alone, DIEN's own paper adds its own: 0 is the one
reading, 1 the other.

Differs from the textbook: what was found is a jagged list of pairs, so nothing is padded to `top`; hard search embeds only
events that were found; U is M e_a with M = sum_t e_t (W_b e_t)' once per request, which is the same sum.
Weights of pairs are not shown as attention: most pairs never exist.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from finerank.data.batch import Batch, Jagged, Pairs, TensorBlock
from finerank.errors import UserError
from finerank.errors import nearest as nearest_name
from finerank.layers.attention import ActivationUnit, UnitOptions, attend
from finerank.layers.embedding import BlockVectors
from finerank.layers.evolution import Evolution, Newest, newest_events, newest_events_masked, next_event_loss
from finerank.layers.mlp import MLP, linear
from finerank.layers.search import nearest, nearest_mask, newest, newest_mask, of_value, of_value_mask, outer_sums
from finerank.layers.segments import gather, segment_softmax, spread, weighted_sum
from finerank.layers.transformer import MASKED
from finerank.models.base import Tower
from finerank.models.composition import Features, Head, Needs, Representation, head_loss, head_target
from finerank.models.pairs import Paired, pair_up
from finerank.models.plain import EmbeddingOptions, FieldEmbedding, TaskHeads, plain_features, plain_widths
from finerank.models.registry import Composition, named, part
from finerank.schema import FittedSchema


@part
class SearchedInterest(Representation):
    """What each candidate finds in a long past, and what it sees in the recent past, as further fields of the candidate."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """How the past is searched.

        embedding  width and initial spread of the fields
        search     hard: by equal value · soft: by inner product, learnt
        by         of hard search, the field whose value must be equal (in the candidate and in the past); auto: the second
                   that they share, which is the category beside the item, or the only one
        top        events that a search gives at most
        exact      heads: the paper's multi-head attention · din: the activation unit
        heads      of exact = "heads"
        unit       the activation unit, of exact = "din" and of short = "din"
        interval   whether the exact unit sees how long ago an event was; events of list columns have no times
        recent     how many of the newest events are read whole; 10 in the paper's experiments on Amazon; 0: none
        short      how these are read · dien: the last state of an interest evolution, as in the paper · din: the activation
                   unit, which is faster
        auxiliary  weight of the soft search's own loss (alpha in section 3.4; 1 in the paper)
        next_event  of short = "dien", weight of its auxiliary loss: each of the newest events against one that did not come
                   there; 1 as in DIEN's code, 0: off, and no negatives are drawn
        """

        kind: ClassVar[str] = "searched_interest"
        embedding: EmbeddingOptions = EmbeddingOptions()
        search: Literal["hard", "soft"] = "hard"
        by: str = "auto"
        top: int = 100
        exact: Literal["heads", "din"] = "heads"
        heads: int = 2
        unit: UnitOptions = UnitOptions()
        interval: bool = True
        recent: int = 10
        short: Literal["dien", "din"] = "dien"
        auxiliary: float = 1.0
        next_event: float = 1.0

        def __post_init__(self) -> None:
            if self.top < 1 or self.heads < 1 or self.recent < 0:
                raise UserError(
                    f"top = {self.top}, heads = {self.heads}, recent = {self.recent}; accepted: top and heads of at least 1, "
                    "recent of 0 (none) or more"
                )
            if not self.auxiliary > 0:
                raise UserError(
                    f"auxiliary = {self.auxiliary}; accepted: above 0, for nothing else teaches a soft search"
                )
            if not self.next_event >= 0:
                raise UserError(f"next_event = {self.next_event}; accepted: 0 (off) or more, 1 in DIEN's code")
            if self.search == "soft" and self.by != "auto":
                raise UserError(f"by = {self.by!r} beside search = 'soft'; accepted: by with search = 'hard' alone")

    def __init__(self, fitted: FittedSchema, options: Options) -> None:
        super().__init__()
        o = self.options = options
        self.tasks = fitted.schema.tasks
        self.embed = FieldEmbedding(fitted, o.embedding, ages=o.interval)
        self.pairs = pair_up(fitted, self.embed, age=False)
        if o.recent and o.short == "dien" and o.next_event:
            self.needs = Needs(negatives=frozenset(p.history for p in self.pairs))
        self.steps = {p.history: fitted.schema.history(p.history).max_length for p in self.pairs}
        self.columns = {p.history: _searched(fitted, p, o.by) if o.search == "hard" else (0, 0) for p in self.pairs}
        self.ask, self.answer = nn.ModuleList(), nn.ModuleList()  # W_a, W_b of the exact unit's heads
        self.search_ask, self.search_answer, self.judge = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.exact, self.recent = nn.ModuleList(), nn.ModuleList()
        fields = 0
        for pair in self.pairs:
            k = self.embed.width_of(pair.history, pair.names)
            names = self._exact_names(pair)
            s = self.embed.width_of(pair.history, names)
            if o.exact == "heads":
                self.ask.append(linear(k, o.heads * k, bias=False))
                self.answer.append(linear(s, o.heads * k, bias=False))
            else:
                self.exact.append(ActivationUnit(k, o.unit, s - k if o.unit.kind == "mlp" else 0))
            if o.search == "soft":
                self.search_ask.append(linear(k, k, bias=False))
                self.search_answer.append(linear(k, k, bias=False))
                self.judge.append(MLP(2 * k, (200, 80), len(self.tasks), act="prelu"))
            if o.recent:
                self.recent.append(Evolution(k, o.recent) if o.short == "dien" else ActivationUnit(k, o.unit))
            fields += len(names) * o.heads if o.exact == "heads" else len(pair.names)
            fields += len(pair.names) * (o.recent > 0)
        widths = plain_widths(fitted, self.embed)
        self.widths = replace(widths, candidate_fields=widths.candidate_fields + fields)

    def _exact_names(self, pair: Paired) -> tuple[str, ...]:
        """The columns of z: an event's attributes and, where it has one, its age."""
        return (*pair.names, *(("age",) if "age" in self.embed.columns(pair.history) else ()))

    def forward(self, batch: Batch) -> Features:
        """See `Features`; `losses` holds the soft search's in training."""
        exporting = torch.compiler.is_exporting()
        found_by: dict[str, _Found] = {}
        if self.options.search == "hard" and not exporting:  # search first, then embed what was found
            found_by = {p.history: self._by_value(batch, p.history) for p in self.pairs}
            seen = {name: replace(batch.histories[name], events=f.events) for name, f in found_by.items()}
            found = self.embed(replace(batch, histories={**batch.histories, **seen}), self._sampled(batch))
        else:
            found = self.embed(batch, self._sampled(batch))
        features = plain_features(batch, self.embed, found)
        fields_N, losses = [features.fields_N], {}
        for i, pair in enumerate(self.pairs):
            q_NK, k_TK = pair.queries(found["candidate"]), pair.keys(found[pair.history])
            if exporting:
                searched, recent = self._masked(i, batch, pair.history, q_NK, k_TK)
            elif self.options.search == "hard":
                searched, recent = found_by[pair.history].searched, found_by[pair.history].recent
            else:
                searched, recent = self._by_score(i, batch, pair.history, q_NK, k_TK)
                if self.training:
                    losses[f"{pair.history} search"] = self._search_loss(i, batch, pair.history, q_NK, k_TK)
            fields_N.append(self._exactly(i, pair, found[pair.history], q_NK, searched, batch.N))
            if self.options.recent:
                reader = self.recent[i]
                if isinstance(reader, ActivationUnit):
                    v_NK = attend(_weigh(reader, q_NK, k_TK, None, recent), k_TK, recent.pairs, batch.N)
                else:
                    events, k_EK = self._newest(batch.histories[pair.history], recent, k_TK)
                    assert isinstance(reader, Evolution)
                    states_EK = reader.states(k_EK, events)
                    v_NK = reader(q_NK, states_EK, events, batch.request_of)
                    if f"{pair.history} sampled" in found:
                        negatives_EK = found[f"{pair.history} sampled"].joined(pair.names)
                        loss = next_event_loss(states_EK, k_EK, negatives_EK, events.positions)
                        losses[f"{pair.history} next event"] = self.options.next_event * batch.share * loss
                fields_N.append(self.embed.as_fields(pair.history, pair.names, v_NK))
        return replace(features, fields_N=torch.cat(fields_N, dim=1), losses=losses)

    # ------------------------------------------------------------------------------------------------ searching

    def _by_value(self, batch: Batch, name: str) -> _Found:
        history, (asks, answers) = batch.histories[name], self.columns[name]
        searched = of_value(
            batch, history, batch.candidate.ids[:, asks], history.events.ids[:, answers], self.options.top
        )
        recent = newest(batch, history, self.options.recent)
        assert searched.event is not None
        assert recent.event is not None
        used = torch.unique(torch.cat([searched.event, recent.event]))
        first = Pairs(searched.candidate, torch.searchsorted(used, searched.event))
        second = Pairs(recent.candidate, torch.searchsorted(used, recent.event))
        return _Found(_Chosen(first), _Chosen(second, log=recent, used=used), _rows(history.events, used))

    def _sampled(self, batch: Batch) -> dict[str, tuple[str, TensorBlock]]:
        """In training, what did not come in place of each of the newest events."""
        out = {}
        for name, block in batch.negatives.items() if self.training else ():
            history = batch.histories[name]
            first = (history.lengths - self.options.recent).index_select(0, history.segments)
            out[f"{name} sampled"] = name, _rows(block, (history.positions >= first).nonzero().squeeze(1))
        return out

    def _by_score(self, i: int, batch: Batch, name: str, q_NK: Tensor, k_TK: Tensor) -> tuple[_Chosen, _Chosen]:
        history = batch.histories[name]
        with torch.no_grad():
            asked, answered = self.search_ask[i](q_NK), self.search_answer[i](k_TK)
            searched = nearest(batch, history, asked, answered, self.options.top)
        return _Chosen(searched), _Chosen(newest(batch, history, self.options.recent))

    def _masked(self, i: int, batch: Batch, name: str, q_NK: Tensor, k_TK: Tensor) -> tuple[_Chosen, _Chosen]:
        """The same choices as masks over all pairs, which a graph is given."""
        history, pairs, o = batch.histories[name], batch.pairs[name], self.options
        assert pairs.event is not None
        if o.search == "hard":
            asks, answers = self.columns[name]
            ids = batch.candidate.ids[:, asks], history.events.ids[:, answers]
            searched = of_value_mask(*ids, pairs, pairs.event, o.top)
        else:
            asked, answered = self.search_ask[i](q_NK), self.search_answer[i](k_TK)
            searched = nearest_mask(batch, history, asked, answered, pairs, pairs.event, o.top, self.steps[name])
        recent = newest_mask(batch, history, pairs, pairs.event, o.recent)
        return _Chosen(pairs, searched), _Chosen(pairs, recent)

    def _newest(self, history: Jagged, recent: _Chosen, k_TK: Tensor) -> tuple[Newest, Tensor]:
        """The newest events of each request, and k of them."""
        top = self.options.recent
        if recent.mask is not None:
            return newest_events_masked(history, recent.pairs, recent.mask, top), k_TK
        events = newest_events(history, recent.pairs if recent.log is None else recent.log, top)
        at = events.at if recent.used is None else torch.searchsorted(recent.used, events.at)
        return events, gather(k_TK, at)

    def _search_loss(self, i: int, batch: Batch, name: str, q_NK: Tensor, k_TK: Tensor) -> Tensor:
        """What the network over U and the candidate loses on the tasks."""
        sums_RKK = outer_sums(k_TK, self.search_answer[i](k_TK), batch.histories[name])
        asked = self.search_ask[i](q_NK)
        whole_NK = torch.bmm(sums_RKK.index_select(0, batch.request_of), asked.unsqueeze(2)).squeeze(2)
        logits = self.judge[i](torch.cat([whole_NK, q_NK], dim=1))
        total = logits.new_zeros(())
        for j, task in enumerate(self.tasks):
            head = Head(task.name, task.name, "sigmoid" if task.kind == "binary" else "identity")
            labels, weights = head_target(self.tasks, head, batch.labels, batch.weights)
            total = total + (weights * head_loss(head, logits[:, j], labels)).sum()
        loss: Tensor = self.options.auxiliary * total / batch.step_rows
        return loss

    # ------------------------------------------------------------------------------------------------ the exact unit

    def _exactly(self, i: int, pair: Paired, found: BlockVectors, q_NK: Tensor, chosen: _Chosen, count: int) -> Tensor:
        """[N, F, D]: what each candidate sees in what it found."""
        names, k_TK, pairs = self._exact_names(pair), pair.keys(found), chosen.pairs
        z_TS = found.joined(names)
        if self.options.exact == "din":
            unit = self.exact[i]
            assert isinstance(unit, ActivationUnit)
            context = z_TS[:, k_TK.shape[1] :] if len(names) > len(pair.names) and unit.options.kind == "mlp" else None
            weights = _weigh(unit, q_NK, k_TK, context, chosen)
            return self.embed.as_fields(pair.history, pair.names, attend(weights, k_TK, pairs, count))
        heads = self.options.heads
        asked, answered = self.ask[i](q_NK), self.answer[i](z_TS)
        both = spread(asked, pairs.candidate) * gather(answered, pairs.event)
        logits_PH = both.view(both.shape[0], heads, both.shape[1] // heads).sum(2)
        out = []
        for h in range(heads):
            weights = _softmax(logits_PH[:, h], chosen, count)
            v_NS = weighted_sum(weights, z_TS, pairs.candidate, pairs.event, count)
            out.append(self.embed.as_fields(pair.history, names, v_NS))
        return torch.cat(out, dim=1)


@dataclass(frozen=True)
class _Chosen:
    """Pairs that were found.

    mask       while exporting: pairs are all, and those were found (bool [P])
    log, used  where only events that occur in pairs are embedded: the pairs by the place of the event in the whole history,
               and these places
    """

    pairs: Pairs
    mask: Tensor | None = None
    log: Pairs | None = None
    used: Tensor | None = None


@dataclass(frozen=True)
class _Found:
    """What hard search found, and the block of the events that occur in it."""

    searched: _Chosen
    recent: _Chosen
    events: TensorBlock


def _rows(block: TensorBlock, at: Tensor) -> TensorBlock:
    """Some events of a block."""
    lists = {c: replace(column, index=column.index.index_select(0, at)) for c, column in block.lists.items()}
    return replace(block, ids=block.ids.index_select(0, at), numbers=block.numbers.index_select(0, at), lists=lists)


def _softmax(logits_P: Tensor, chosen: _Chosen, count: int) -> Tensor:
    if chosen.mask is None:
        return segment_softmax(logits_P, chosen.pairs.candidate, count)
    logits_P = torch.where(chosen.mask, logits_P, MASKED)
    return segment_softmax(logits_P, chosen.pairs.candidate, count) * chosen.mask


def _weigh(unit: ActivationUnit, q_NK: Tensor, k_TK: Tensor, context: Tensor | None, chosen: _Chosen) -> Tensor:
    """[P]: the unit's weights of what was chosen, 0 for the rest."""
    if chosen.mask is None:
        weights: Tensor = unit(q_NK, k_TK, context, chosen.pairs)
        return weights
    scores = unit.scores(q_NK, k_TK, context, chosen.pairs)
    if not unit.options.softmax:
        return scores * chosen.mask
    return _softmax(unit.scaled(scores), chosen, q_NK.shape[0])


def _searched(fitted: FittedSchema, pair: Paired, by: str) -> tuple[int, int]:
    """Where the searched field stands among the candidate's and the event's single ids."""
    asks = [name for name, _ in fitted.candidate.ids]
    answers = [name for name, _ in fitted.histories[pair.history].ids]
    shared = {
        n: (asks.index(q), answers.index(n))
        for q, n in zip(pair.query, pair.names, strict=True)
        if q in asks and n in answers
    }
    if not shared:
        raise UserError(
            f"search = 'hard': history {pair.history!r} shares no field of one id with the candidate; accepted: search = 'soft'"
        )
    if by == "auto":
        return list(shared.values())[min(1, len(shared) - 1)]
    if by not in shared:
        raise UserError(
            f"by = {by!r} is no field of one id that history {pair.history!r} shares; {nearest_name(by, shared)}"
        )
    return shared[by]


SIM = named(
    Composition(
        name="sim",
        representation=SearchedInterest.Options(),
        interactions=(Tower.Options(),),
        heads=TaskHeads.Options(),
        paper="2006.05639",
        requires=("history",),
    )
)

SIM_SOFT = named(
    Composition(
        name="sim_soft",
        representation=SearchedInterest.Options(search="soft"),
        interactions=(Tower.Options(),),
        heads=TaskHeads.Options(),
        paper="2006.05639",
        requires=("history",),
    )
)
