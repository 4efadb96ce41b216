"""What a feature is.

Levels   request: one value for a user at a moment · candidate: one value per row to score · event: one per past event
Uses     input: goes into the graph · train_only: may shape the training, never the served graph (position for PAL,
         elapsed time, propensity) · label_side: part of what is predicted
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from finerank.errors import UserError
from finerank.schema.checks import at_least, check_separator, rising
from finerank.schema.encodings import Encoding, Hashed, Vocabulary
from finerank.widths import Dim, check_dim, check_std

Level = Literal["request", "candidate", "event"]
Use = Literal["input", "train_only", "label_side"]


@dataclass(frozen=True, kw_only=True)
class Numeric:
    """A number that reaches the model as a number. Missing (null, NaN) becomes 0 beside an indicator column.

    transform  none · log1p (sign-preserving) · standard · minmax · powers; statistics from training rows only

    powers yields three columns, x~, x~² and √x~, of the share x~ of the training rows that lie below the value (their
    own value: half), read off between stored quantiles: Covington et al. 2016, section 4.1. A value beyond the training
    range counts as its nearer end. Two transforms of one column are two features.
    """

    kind: ClassVar[str] = "numeric"
    name: str
    level: Level
    use: Use = "input"
    column: str | None = None
    transform: Literal["none", "log1p", "standard", "minmax", "powers"] = "standard"


@dataclass(frozen=True, kw_only=True)
class Bucketed:
    """A number cut into buckets, each with an embedding: an ordered categorical. Bucket i holds cuts[i-1] <= x < cuts[i].

    cuts     the cut points; empty: made from the training rows by `law`, and stored. What lies beyond them at serving
             falls into the first or the last bucket; missing has a row of its own
    law      quantile: about equal shares of the rows · equal_width: between the least and the greatest value (several
             granularities, AutoCross's 10, 100, 1000..., are several features on one column) · criteo: the buckets of
             v > 2 -> floor(ln(v)^2), else floor(v) - 2, from the least to the greatest value; usually beside a Numeric
             with transform = "minmax" on the same column, which keeps the order
    buckets  how many at most, for quantile and equal_width
    """

    kind: ClassVar[str] = "bucketed"
    name: str
    level: Level
    use: Use = "input"
    column: str | None = None
    cuts: tuple[float, ...] = ()
    law: Literal["quantile", "equal_width", "criteo"] = "quantile"
    buckets: int = 10
    table: str | None = None
    dim: Dim | None = None
    std: float | None = None

    def __post_init__(self) -> None:
        at_least(2, buckets=self.buckets)
        check_dim(self.dim)
        check_std(self.std)
        if not rising(self.cuts) or not all(map(math.isfinite, self.cuts)):
            raise UserError(
                f"cuts = {list(self.cuts)}; accepted: rising finite numbers, or none to have a law make them"
            )
        if self.cuts and self.law != "quantile":
            raise UserError(f"law = {self.law!r} beside given cuts; accepted: one of the two")


@dataclass(frozen=True, kw_only=True)
class Categorical:
    """One id per row. `table` names the embedding table (default: the feature's own name): equal names share rows.

    dim  its width: a number, or a rule over its n values: log2, quarter (n^1/4), quarter:k (k * n^1/4), dcn (6 * n^1/4),
         see `finerank.widths`; default: the width of the model
    std  standard deviation of its initial values; default: the model's. Of a shared table one of the features may say it
         for all; two that say different things are refused
    """

    kind: ClassVar[str] = "categorical"
    name: str
    level: Level
    use: Use = "input"
    column: str | None = None
    encoding: Encoding = Vocabulary()
    table: str | None = None
    dim: Dim | None = None
    std: float | None = None

    def __post_init__(self) -> None:
        check_dim(self.dim)
        check_std(self.std)


@dataclass(frozen=True, kw_only=True)
class MultiValued:
    """A list of ids per row, pooled to one vector. Null entries are dropped; an empty or null list pools to zero.

    weights           a second list column of the same lengths: the pooled sum is weighted (mean divides by Σ|weight|)
    weight_separator  instead of `weights`, for entries that bring their own (`sports:.7`): what stands before the weight.
                      An entry is split at the last one; without a number behind it, it is an error
    pooling           sum · mean · max
    separator         for text columns that join their values (`a|b|c`); lists need none
    padding           what fills lists up to one length where data were made for padding (often 0): it is dropped, and its
                      weight with it
    """

    kind: ClassVar[str] = "multivalued"
    name: str
    level: Level
    use: Use = "input"
    column: str | None = None
    weights: str | None = None
    weight_separator: str | None = None
    pooling: Literal["sum", "mean", "max"] = "mean"
    separator: str | None = None
    padding: str | int | None = None
    encoding: Encoding = Vocabulary()
    table: str | None = None
    dim: Dim | None = None
    std: float | None = None

    def __post_init__(self) -> None:
        check_dim(self.dim)
        check_std(self.std)
        check_separator(self.separator, self.weight_separator)
        if self.weights is not None and self.weight_separator is not None:
            raise UserError(
                f"weights = {self.weights!r} beside weight_separator = {self.weight_separator!r}; accepted: one of the two"
            )


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A list of `tag#rank` texts (`military#1`), split at the last `#`; a rank that is no 1...`max_rank` is 0 (unknown).

    rank      what becomes of the rank: embedded: the vector of an entry is e_tag + p_rank, each of its own table ·
              joint: tag and rank are one id (`military#1`, unknown: `military#0`) · segments: see below · none: nothing
    segments  for rank = "segments": a field per segment instead of one, `x.top3` of the tags with a rank of 1 to 3, and
              so on. They are nested and share the table; within a segment all tags weigh the same
    """

    kind: ClassVar[str] = "ranked"
    name: str
    level: Level
    use: Use = "input"
    column: str | None = None
    max_rank: int = 20
    rank: Literal["embedded", "joint", "segments", "none"] = "embedded"
    segments: tuple[int, ...] = (3, 20)
    pooling: Literal["sum", "mean", "max"] = "mean"
    separator: str | None = None
    encoding: Encoding = Vocabulary()
    table: str | None = None
    dim: Dim | None = None
    std: float | None = None

    def __post_init__(self) -> None:
        at_least(1, max_rank=self.max_rank)
        check_dim(self.dim)
        check_std(self.std)
        check_separator(self.separator)
        ends = (0, *self.segments, self.max_rank + 1)
        if self.rank == "segments" and not (self.segments and rising(ends)):
            raise UserError(
                f"segments = {list(self.segments)}; accepted: rising ranks from 1 to max_rank = {self.max_rank}"
            )


@dataclass(frozen=True, kw_only=True)
class Cross:
    """The AND of two or three categorical columns as one id, hashed the same way everywhere. `of`: columns."""

    kind: ClassVar[str] = "cross"
    name: str
    level: Level
    of: tuple[str, ...]
    use: Use = "input"
    encoding: Encoding = Hashed()
    table: str | None = None
    dim: Dim | None = None
    std: float | None = None

    def __post_init__(self) -> None:
        check_dim(self.dim)
        check_std(self.std)
        if not 2 <= len(self.of) <= 3:
            raise UserError(f"of = {list(self.of)}; accepted: two or three columns")


Feature = Numeric | Bucketed | Categorical | MultiValued | Ranked | Cross
SingleId = Bucketed | Categorical | Cross
ListFeature = MultiValued | Ranked


def column_of(feature: Feature) -> str:
    """The source column a feature reads (a cross reads several: `feature.of`)."""
    column = None if isinstance(feature, Cross) else feature.column
    return column or feature.name


def source_columns(feature: Feature) -> tuple[str, ...]:
    """The columns that a feature reads: those of a cross, or its own and that of its weights."""
    if isinstance(feature, Cross):
        return feature.of
    weights = feature.weights if isinstance(feature, MultiValued) else None
    return (column_of(feature),) if weights is None else (column_of(feature), weights)


def table_of(feature: Feature) -> str | None:
    """The name of a feature's embedding table; None for numbers."""
    return None if isinstance(feature, Numeric) else (feature.table or feature.name)


def segments_of(feature: Feature) -> tuple[int | None, ...]:
    """The greatest rank that each field of a feature takes in; a feature without segments is one field without a limit."""
    return feature.segments if isinstance(feature, Ranked) and feature.rank == "segments" else (None,)


def field_names(feature: Feature) -> tuple[str, ...]:
    """The names of the fields that a feature yields: its own, or that of each segment."""
    return tuple(feature.name if top is None else f"{feature.name}.top{top}" for top in segments_of(feature))
