"""What a schema implies for encoding: which columns each block reads, and which symbol tables there are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from finerank.errors import UserError
from finerank.runtime.values import canonical, split_rank
from finerank.schema import (
    Bucketed,
    Encoding,
    Feature,
    History,
    Level,
    ListFeature,
    MultiValued,
    Numeric,
    Ranked,
    Schema,
    Use,
    column_of,
    field_names,
    segments_of,
    source_columns,
    table_of,
)
from finerank.widths import Dim

_LEVELS: dict[str, Level] = {"request": "request", "candidate": "candidate"}


@dataclass(frozen=True)
class Field:
    """A feature as one block reads it; one with segments is several fields.

    columns  source columns (a cross: several; a weighted list: values, weights)
    name     of the field: the feature's, or that of a segment
    top      of a segment: the greatest rank that it takes in
    """

    feature: Feature
    columns: tuple[str, ...]
    name: str
    top: int | None = None


def fields_of(schema: Schema, name: str, use: Use = "input") -> list[Field]:
    """The fields of the block of `name` ("request", "candidate" or a history) in order, with their source columns."""
    if name in _LEVELS:
        return [field for f in schema.at(_LEVELS[name], use=use) for field in _fields(f, source_columns(f))]
    history = schema.history(name)
    features = [f for f in (schema.field(history, field) for field in history.fields) if f.use == use]
    return [
        field
        for f in features
        for field in _fields(f, (history.columns.get(f.name, column_of(f)), *source_columns(f)[1:]))
    ]


def _fields(feature: Feature, columns: tuple[str, ...]) -> list[Field]:
    named = zip(field_names(feature), segments_of(feature), strict=True)
    return [Field(feature, columns, name, top) for name, top in named]


def is_weighted(feature: Feature) -> bool:
    """Whether the entries of a list feature carry weights."""
    return isinstance(feature, MultiValued) and (feature.weights is not None or feature.weight_separator is not None)


def weight_separator(feature: ListFeature) -> str | None:
    """What stands between an entry's value and its weight; None: entries are values alone."""
    return feature.weight_separator if isinstance(feature, MultiValued) else None


def filler_of(feature: ListFeature) -> str | None:
    """The canonical text of what fills a feature's lists up; None: nothing does."""
    return canonical(feature.padding) if isinstance(feature, MultiValued) else None


def rank_table(feature: Feature) -> str | None:
    """The table of a ranked feature's ranks: 0 (unknown) to `max_rank` are symbols 3 to 3 + max_rank. None: it has none."""
    return f"{feature.name}.rank" if isinstance(feature, Ranked) and feature.rank == "embedded" else None


def tag_and_rank(feature: ListFeature, text: str | None, top: int | None = None) -> tuple[str, int] | None:
    """What an entry of a list says: the text that the feature's table knows, and its rank (0: none).

    text  canonical; top: of a segment, by default the widest. None: there is no such entry in the field
    """
    if text is None or not isinstance(feature, Ranked):
        return None if text is None else (text, 0)
    tag, rank = split_rank(text, feature.max_rank)
    if tag is None:
        return None
    if feature.rank == "segments" and not 1 <= rank <= (top or feature.segments[-1]):
        return None
    return (f"{tag}#{rank}" if feature.rank == "joint" else tag), rank


def age_table(history: str) -> str:
    """The table of the ages of a history's events. None is made for list columns, whose entries have no time."""
    return f"{history}.age"


@dataclass(frozen=True)
class TableSpec:
    """A symbol table as the schema declares it.

    dim   the width: a number, a rule of `finerank.widths`, or None; like: the table whose width and std it has instead
    std   standard deviation of the initial values, or None
    cuts  None where the training rows give them, by `law` and `buckets` (see `Bucketed`)
    """

    encoding: Encoding | Literal["cuts"]
    dim: Dim | None = None
    like: str | None = None
    cuts: tuple[float, ...] | None = None
    law: Literal["quantile", "equal_width", "criteo"] = "quantile"
    buckets: int = 1
    std: float | None = None


def declared_tables(schema: Schema) -> dict[str, TableSpec]:
    """All symbol tables of a schema: of features in declared order, then of ranks, then of ages."""
    specs: dict[str, TableSpec] = {}
    for feature in schema.features:
        if isinstance(feature, Numeric):
            continue
        owned = feature.table or feature.name
        if isinstance(feature, Bucketed):
            spec = TableSpec("cuts", feature.dim, None, feature.cuts or None, feature.law, feature.buckets)
        else:
            spec = TableSpec(feature.encoding, feature.dim)
        known = specs.setdefault(owned, spec)
        if feature.std is not None:  # one of those that share a table may say it for all
            specs[owned] = replace(known, std=feature.std)
    derived = {
        table: TableSpec("cuts", like=table_of(f), cuts=tuple(float(r) for r in range(1, f.max_rank + 1)))
        for f in schema.features
        if isinstance(f, Ranked) and (table := rank_table(f)) is not None
    }
    derived |= {age_table(h.name): TableSpec("cuts", cuts=h.age_cuts) for h in schema.histories if _has_ages(h)}
    for name in derived:
        if name in specs:
            raise UserError(
                f"schema: the table name {name!r} is kept for ranks and ages; name the feature's table otherwise"
            )
    return specs | derived


def _has_ages(history: History) -> bool:
    return not history.lists and len(history.age_cuts) > 0
