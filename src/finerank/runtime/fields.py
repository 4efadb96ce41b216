"""What a schema implies for encoding: which columns each block reads, and which symbol tables there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from finerank.errors import UserError
from finerank.schema import (
    Bucketed,
    Cross,
    Encoding,
    Feature,
    History,
    Level,
    MultiValued,
    Numeric,
    Ranked,
    Schema,
    Use,
    column_of,
    table_of,
)

_LEVELS: dict[str, Level] = {"request": "request", "candidate": "candidate"}


@dataclass(frozen=True)
class Field:
    """A feature as one block reads it. columns: source columns (a cross: several; a weighted list: values, weights)."""

    feature: Feature
    columns: tuple[str, ...]


def fields_of(schema: Schema, name: str, use: Use = "input") -> list[Field]:
    """The fields of the block of `name` ("request", "candidate" or a history) in order, with their source columns."""
    if name in _LEVELS:
        return [Field(feature, source_columns(feature)) for feature in schema.at(_LEVELS[name], use=use)]
    history = schema.history(name)
    features = [schema.field(history, field) for field in history.fields]
    return [
        Field(f, (history.columns.get(f.name, column_of(f)), *source_columns(f)[1:])) for f in features if f.use == use
    ]


def source_columns(feature: Feature) -> tuple[str, ...]:
    """The columns that a feature reads: those of a cross, or its own and that of its weights."""
    if isinstance(feature, Cross):
        return feature.of
    weights = feature.weights if isinstance(feature, MultiValued) else None
    return (column_of(feature),) if weights is None else (column_of(feature), weights)


def is_weighted(feature: Feature) -> bool:
    """Whether the entries of a list feature carry weights."""
    return isinstance(feature, MultiValued) and feature.weights is not None


def rank_table(feature: Ranked) -> str:
    """The table of a ranked feature's ranks: 0 (unknown) to `max_rank` are symbols 3 to 3 + max_rank."""
    return f"{feature.name}.rank"


def age_table(history: str) -> str:
    """The table of the ages of a history's events. None is made for list columns, whose entries have no time."""
    return f"{history}.age"


@dataclass(frozen=True)
class TableSpec:
    """A symbol table as the schema declares it. cuts: None where the training rows give them (`buckets` quantiles)."""

    encoding: Encoding | Literal["cuts"]
    dim: int | None = None
    cuts: tuple[float, ...] | None = None
    buckets: int = 1


def declared_tables(schema: Schema) -> dict[str, TableSpec]:
    """All symbol tables of a schema: of features in declared order, then of ranks, then of ages."""
    specs: dict[str, TableSpec] = {}
    for feature in schema.features:
        table = table_of(feature)
        if isinstance(feature, Bucketed):
            spec = TableSpec("cuts", feature.dim, feature.cuts or None, feature.buckets)
        elif not isinstance(feature, Numeric):
            spec = TableSpec(feature.encoding, feature.dim)
        if table is not None:
            specs.setdefault(table, spec)
    derived = {
        rank_table(f): TableSpec("cuts", f.dim, tuple(float(r) for r in range(1, f.max_rank + 1)))
        for f in schema.features
        if isinstance(f, Ranked)
    }
    derived |= {age_table(h.name): TableSpec("cuts", None, h.age_cuts) for h in schema.histories if _has_ages(h)}
    for name in derived:
        if name in specs:
            raise UserError(
                f"schema: the table name {name!r} is kept for ranks and ages; name the feature's table otherwise"
            )
    return specs | derived


def _has_ages(history: History) -> bool:
    return not history.lists and len(history.age_cuts) > 0
