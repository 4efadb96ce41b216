"""Which of the candidate's fields look at which of the past's: by table, or as a recipe says.

    pairs = "auto"                                  every history, with the fields whose tables it shares
    pairs = "item+category#clicks | tag#profile"    candidate # history, candidate # history
    pairs = "item#clicks.item | shop#clicks.shop"   attribute by attribute

    pairs := pair ("|" pair)*    pair := query "#" past    query := name ("+" name)*    past := history ["." field]

Left stands who asks: features of the candidate. Right stands who answers: a history, with the fields that share the
tables of the asking features (of a history of one field, that field, whatever its table), or one named field of it. Blanks
around names do not matter. What one attends to is a history: a list in the samples (a profile of tags, say) becomes one
by `lists`. This is not the parser of values such as `military#1`, which are split at their last `#`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from finerank.data.batch import Jagged
from finerank.errors import UserError, nearest
from finerank.layers.embedding import BlockVectors
from finerank.models.plain import FieldEmbedding
from finerank.runtime.inputs import history_of
from finerank.schema import FittedSchema, ListFeature, Numeric

AUTO = "auto"
GRAMMAR = "accepted: auto, or candidate#history or candidate#history.field, several joined by '|'"


@dataclass(frozen=True)
class Paired:
    """How a history meets the candidate: names[i] of an event answers query[i] of the candidate; `context` nobody asks."""

    history: str
    query: tuple[str, ...]
    names: tuple[str, ...]
    context: tuple[str, ...]

    def queries(self, found: BlockVectors) -> Tensor:
        """q_NK of the candidate's block."""
        return found.joined(self.query)

    def keys(self, found: BlockVectors) -> Tensor:
        """k_TK of the history's block."""
        return found.joined(self.names)

    def context_of(self, found: BlockVectors, history: Jagged) -> Tensor | None:
        """[T, C]: embeddings of age and of other attributes of the event alone, and its numbers; None when there are none."""
        parts = [found.column(name) for name in self.context]
        if history.events.numbers.shape[1]:
            parts.append(history.events.numbers)
        return torch.cat(parts, dim=1) if parts else None


def attributes(embed: FieldEmbedding, history: str) -> tuple[str, ...]:
    """The columns of a history that describe the event itself: all but its age."""
    return tuple(name for name in embed.columns(history) if name != "age")


def check_ages(fitted: FittedSchema, histories: Iterable[str], decay: float) -> None:
    """Refuse decay where no history has ages: it would do nothing, silently."""
    if decay and all(fitted.schema.history(name).lists for name in histories):
        raise UserError(
            f"decay = {decay}, and no event has a time: list columns do not say when; set it to 0, or give the history "
            "an event log"
        )


def parsed(pairs: str) -> list[tuple[tuple[str, ...], str]]:
    """[(names that ask, history or history.field)]: the grammar alone, names unchecked. Raises UserError."""
    out = []
    for i, item in enumerate(pairs.split("|"), 1):
        place = f"pairs = {pairs!r}: item {i}"
        if not item.strip():
            raise UserError(f"{place} is empty; {GRAMMAR}")
        if (signs := item.count("#")) != 1:
            raise UserError(f"{place}, {item.strip()!r}, has {signs} signs '#'; {GRAMMAR}")
        asks, _, past = item.partition("#")
        query = tuple(name.strip() for name in asks.split("+"))
        if not all(query) or not past.strip():
            raise UserError(f"{place}, {item.strip()!r}, lacks a name; {GRAMMAR}")
        out.append((query, past.strip()))
    return out


def histories_of(fitted: FittedSchema, pairs: str = AUTO) -> tuple[str, ...]:
    """The histories that attend, in the schema's order; unknown names are left for `pair_up` to refuse."""
    named = (
        {history_of(past, fitted.histories) for _, past in parsed(pairs)} if pairs != AUTO else set(fitted.histories)
    )
    return tuple(name for name in fitted.histories if name in named)


def pair_up(fitted: FittedSchema, embed: FieldEmbedding, age: bool = True, pairs: str = AUTO) -> list[Paired]:
    """The pairs of a recipe, names checked. age: let the unit see how long ago an event was.

    With "auto", a field of the past meets the candidate's field of its name or, failing that, the first that shares its
    table; one without a partner is context. Raises UserError naming the pair and what would be accepted.
    """
    if not fitted.histories:
        raise UserError("the schema has no history, so there is nothing to attend to; declare a [[history]]")
    if pairs == AUTO:
        met = [(history, *_by_table(embed, history)) for history in fitted.histories]
    else:
        met = [_named(fitted, embed, query, past) for query, past in parsed(pairs)]
        seen = [(history, name) for history, _, names in met for name in names]
        if twice := [f"{history}.{name}" for history, name in seen if seen.count((history, name)) > 1]:
            raise UserError(f"pairs = {pairs!r}: {twice[0]!r} answers twice; name each history, or field of it, once")
    out = []
    for history, query, names in met:
        asked = {name for h, _, others in met if h == history for name in others}
        context = tuple(name for name in attributes(embed, history) if name not in asked)
        has_age = age and "age" in embed.columns(history)
        out.append(Paired(history, query, names, context + (("age",) if has_age else ())))
    return out


def arranged(pairs: list[Paired], apart: bool, joined: bool) -> list[Paired]:
    """Pairs cut into one per attribute (apart), then joined into one per history (joined): what units are made for."""
    if apart:
        pairs = [replace(p, query=(q,), names=(n,)) for p in pairs for q, n in zip(p.query, p.names, strict=True)]
    if not joined:
        return pairs
    if len(histories := {p.history for p in pairs}) > 1:
        raise UserError(
            f"share = 'concat' puts the pairs of each event side by side, and events of {sorted(histories)} do not stand "
            "side by side; accepted: pairs of one history (lists of equal lengths can be its fields), or share = 'loop'"
        )
    query, names = (tuple(n for p in pairs for n in getattr(p, side)) for side in ("query", "names"))
    return [replace(pairs[0], query=query, names=names)]


def weight_names(pairs: list[Paired]) -> list[str]:
    """The key of each pair's weights: its history, or `history.field+field` where several pairs share the history."""
    of = [p.history for p in pairs]
    keys = [p.history if of.count(p.history) == 1 else f"{p.history}.{'+'.join(p.names)}" for p in pairs]
    if len(set(keys)) < len(keys):
        raise UserError(
            f"attention: {max(keys, key=keys.count)!r} would name two weights; rename the history called so"
        )
    return keys


# ------------------------------------------------------------------------------------------------ resolving


def _tables(embed: FieldEmbedding, block: str) -> dict[str, str]:
    """The table of each column that can ask ("candidate") or answer (a history)."""
    names = embed.columns(block) if block == "candidate" else attributes(embed, block)
    return {name: embed.table_of[block][name] for name in names}


def _partner(name: str, table: str, among: dict[str, str]) -> str | None:
    """Of the columns `among` (name -> table) that have this table: the one of this name, else the first."""
    alike = [other for other, its in among.items() if its == table]
    return name if name in alike else next(iter(alike), None)


def _by_table(embed: FieldEmbedding, history: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    own, candidate = _tables(embed, history), _tables(embed, "candidate")
    met = [(_partner(name, table, candidate), name) for name, table in own.items()]
    query = tuple(asks for asks, _ in met if asks is not None)
    if not query:
        raise UserError(
            f"history {history!r} shares no table with the candidate, so nothing can attend to it; "
            f"its fields: {list(own)}, the candidate's: {list(candidate)}"
        )
    return query, tuple(name for asks, name in met if asks is not None)


def _named(
    fitted: FittedSchema, embed: FieldEmbedding, query: tuple[str, ...], past: str
) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """(history, who asks, who answers) of one pair of the grammar."""
    written = f"pairs: {'+'.join(query)}#{past}"
    candidate = _tables(embed, "candidate")
    for name in query:
        if name not in candidate:
            raise UserError(f"{written}: {_no_vector(fitted, name, 'the candidate')}; {nearest(name, candidate)}")
    history = history_of(past, fitted.histories)
    if history is None:
        feature = next((f for f in fitted.schema.features if f.name == past), None)
        remedy = f"declare a [[history]] with lists = {{{past} = ...}}; " if isinstance(feature, ListFeature) else ""
        raise UserError(f"{written}: {past!r} is no history; {remedy}{nearest(past, fitted.histories)}")
    own = _tables(embed, history)
    if past != history:
        field = past.removeprefix(f"{history}.")
        if field not in own:
            raise UserError(f"{written}: {_no_vector(fitted, field, f'history {history!r}')}; {nearest(field, own)}")
        if len(query) > 1:
            raise UserError(f"{written}: {len(query)} features ask and one field answers; give the field one feature")
        return history, query, (field,)
    if len(own) == 1 and len(query) == 1:
        return history, query, tuple(own)
    names = tuple(_partner(name, candidate[name], own) for name in query)
    if None in names:
        raise UserError(
            f"{written}: no field of {history!r} shares the table of {query[names.index(None)]!r}; name the field that "
            f"answers as {history}.field; accepted: {', '.join(own)}"
        )
    return history, query, tuple(name for name in names if name is not None)


def _no_vector(fitted: FittedSchema, name: str, place: str) -> str:
    """Why a name cannot be attended with: unknown, elsewhere, or a number."""
    feature = next((f for f in fitted.schema.features if f.name == name), None)
    if isinstance(feature, Numeric):
        return f"{name!r} is a number, which has no vector to attend with (bucketed, it has)"
    what = "" if feature is None else f" but a {feature.level}-level {feature.kind} ({feature.use})"
    return f"{name!r} is no field of {place}{what}"
