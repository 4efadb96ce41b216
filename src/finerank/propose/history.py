"""The user's past: list columns that hold it already, or a file of events that tells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from finerank.data.encode import canonical_series
from finerank.propose.guess import Guess, dates, mean, plainly
from finerank.propose.padding import fillers

AGE = "age"
"""What the recipe calls how long ago an event was: no field of a history may be called so."""
KNOWN_AT = ("known_at", "available_at", "ingested_at", "ingest_time", "ingestion_time", "arrived_at", "received_at")
"""Names of when an event came to be known, which is later than it happened."""
HISTORY_SHARE = 0.5
"""A list is a history of a column when more than this share of its entries are among the column's values."""


def joined_history(frame: pl.DataFrame, guesses: list[Guess]) -> tuple[dict[str, Any] | None, list[Guess]]:
    """List columns whose entries are values of a candidate column, of equal lengths: the past, already joined.

    Returns the [[history]] table, or None, and the guesses without these columns as features.
    """
    features = {g.column: g.feature for g in guesses if g.feature is not None}
    lists = {column: feature for column, feature in features.items() if feature["kind"] == "multivalued"}
    singles = [
        column
        for column, feature in features.items()
        if feature["kind"] == "categorical"
        and feature["level"] == "candidate"
        and feature.get("use", "input") == "input"
        and feature["name"] != AGE
    ]
    some = frame.head(5_000)
    of: dict[str, str] = {}
    lengths: list[pl.Series] = []
    fillers: set[str | None] = set()
    separators: set[str | None] = set()
    for column, feature in lists.items():
        separator = feature.get("separator")
        values = some[column].str.split(separator) if separator else some[column]
        entries = canonical_series(values.explode().drop_nulls())
        best, share, filler = "", HISTORY_SHARE, None
        for single in singles:
            known = canonical_series(frame[single]).unique().implode()
            fills = _filler(values, known)
            found = entries.filter(entries.ne_missing(fills)).is_in(known)
            alike = 0.2 * (single.lower().split("_")[0] in column.lower())  # of item and category ids both may fit
            if single not in of.values() and mean(found) + alike > share:
                best, share, filler = single, mean(found) + alike, fills
        if best and all(values.list.len().equals(others) for others in lengths) and separators <= {separator}:
            of[column] = best
            lengths.append(values.list.len())
            separators.add(separator)
            fillers.add(filler)
    if not of:
        return None, guesses
    history: dict[str, Any] = {
        "name": "past",
        "fields": [features[single]["name"] for single in of.values()],
        "lists": {features[single]["name"]: column for column, single in of.items()},
        "max_length": 50,
    }
    if separator := next(iter(separators)):
        history["separator"] = separator
    if len(fillers) == 1 and (filler := next(iter(fillers))) is not None:
        history["padding"] = filler
    return history, [
        Guess(g.column, "history", f"its entries are values of {of[g.column]!r}; the oldest must stand first")
        if g.column in of
        else g
        for g in guesses
    ]


def _filler(lists: pl.Series, known: pl.Series) -> str | None:
    """What fills lists up to one length and is no candidate."""
    return next((value for value, _ in fillers(lists) if not pl.Series([value]).is_in(known).item()), None)


def event_history(
    events: pl.DataFrame, guesses: Sequence[Guess], keys: Mapping[str, str], path: str
) -> tuple[dict[str, Any] | None, list[str]]:
    """The [[history]] table: candidate features that the events have too. Its attention is what DIN needs."""
    missing = [role for role in ("user", "time") if role not in keys]
    if missing:
        return None, [f"{path}: not used, because the samples have no {' and no '.join(missing)} column"]
    for role in ("user", "time"):
        if keys[role] not in events.columns:
            return None, [f"{path}: not used, because it has no column {keys[role]!r}; name both files' alike"]
    shared = [
        g.feature["name"]
        for g in guesses
        if g.feature is not None
        and g.feature["level"] == "candidate"
        and g.feature.get("use", "input") == "input"
        and {g.column, g.feature.get("weights", g.column)} <= set(events.columns)
    ]
    if not (fields := [name for name in shared if name != AGE]):
        return None, [f"{path}: not used, because it shares no column with the candidates"]
    of_age = f"{path}: its {AGE!r} is left out of the past, where {AGE!r} is how long ago an event was"
    return {"name": "past", "fields": fields, "max_length": 50}, [of_age] if AGE in shared else []


def known_at(events: pl.DataFrame, time: str) -> str | None:
    """The column of the events that says when each was known: by its name, of the times' own type, and never before them."""
    for column in events.get_columns():
        if plainly(column.name) not in KNOWN_AT or column.name == time or column.dtype != events[time].dtype:
            continue
        if (column.dtype.is_integer() or dates(column)) and bool((column >= events[time]).fill_null(False).all()):
            return column.name
    return None
