"""What a feature, a history, a task are: declarations only.

A schema says what the columns of a log mean; it knows no data, no tensors and no models. `FittedSchema` adds what the
training data taught (sizes, counts, statistics); models are built from it.

Levels   request: one value for a user at a moment · candidate: one value per row to score · event: one per past event
Uses     input: goes into the graph · train_only: may shape the training, never the served graph (position for PAL,
         elapsed time, propensity) · label_side: part of what is predicted
Indices  0 padding · 1 out of vocabulary · 2 missing (null, NaN or empty text) · 3... the values
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np

from finerank.errors import UserError, nearest
from finerank.widths import Dim, check_dim, check_std

PADDING, OOV, MISSING, FIRST = 0, 1, 2, 3
"""The first rows of every table; values start at FIRST."""


def _at_least(least: int, **values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < least:
            raise UserError(f"{name} = {value}; accepted: {least} or more")


def _rising(values: Sequence[float]) -> bool:
    return all(a < b for a, b in pairwise(values))


Level = Literal["request", "candidate", "event"]
Use = Literal["input", "train_only", "label_side"]

# ------------------------------------------------------------------------------------------------ encodings of ids


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """One row per value seen at least `min_count` times in training; everything else is out of vocabulary.

    The usual choice. `max_size` keeps only the most frequent values (ties: the text that sorts first).
    """

    kind: ClassVar[str] = "vocabulary"
    min_count: int = 1
    max_size: int | None = None

    def __post_init__(self) -> None:
        _at_least(1, min_count=self.min_count, max_size=self.max_size)


@dataclass(frozen=True, kw_only=True)
class Hashed:
    """Row = 3 + hash64(table, value) mod `buckets`: no fitting, new values share rows with old ones (collisions)."""

    kind: ClassVar[str] = "hashed"
    buckets: int = 100_000

    def __post_init__(self) -> None:
        _at_least(1, buckets=self.buckets)


@dataclass(frozen=True, kw_only=True)
class Growing:
    """A vocabulary that admits new values and evicts old ones while it trains, within `capacity` rows.

    A value gets a row once it was seen `admit_after` times; when rows run out, those unseen for longest are given
    away. Encoded data stay true: they hold symbols, and the map from symbol to row lives in the checkpoint.
    """

    kind: ClassVar[str] = "growing"
    capacity: int = 100_000
    admit_after: int = 1

    def __post_init__(self) -> None:
        _at_least(1, capacity=self.capacity, admit_after=self.admit_after)


Encoding = Vocabulary | Hashed | Growing

# ------------------------------------------------------------------------------------------------ features


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
        _at_least(2, buckets=self.buckets)
        check_dim(self.dim)
        check_std(self.std)
        if not _rising(self.cuts) or not all(map(math.isfinite, self.cuts)):
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

    weights    a second list column of the same lengths: the pooled sum is weighted (mean divides by Σ|weight|)
    pooling    sum · mean · max
    separator  for text columns that join their values (`a|b|c`); lists need none
    """

    kind: ClassVar[str] = "multivalued"
    name: str
    level: Level
    use: Use = "input"
    column: str | None = None
    weights: str | None = None
    pooling: Literal["sum", "mean", "max"] = "mean"
    separator: str | None = None
    encoding: Encoding = Vocabulary()
    table: str | None = None
    dim: Dim | None = None
    std: float | None = None

    def __post_init__(self) -> None:
        check_dim(self.dim)
        check_std(self.std)
        _check_separator(self.separator)


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
        _at_least(1, max_rank=self.max_rank)
        check_dim(self.dim)
        check_std(self.std)
        _check_separator(self.separator)
        ends = (0, *self.segments, self.max_rank + 1)
        if self.rank == "segments" and not (self.segments and _rising(ends)):
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


def _check_separator(separator: str | None) -> None:
    if separator == "":
        raise UserError("separator is empty; accepted: the text between two values, or none for lists")


Feature = Numeric | Bucketed | Categorical | MultiValued | Ranked | Cross
SingleId = Bucketed | Categorical | Cross
ListFeature = MultiValued | Ranked


def column_of(feature: Feature) -> str:
    """The source column a feature reads (a cross reads several: `feature.of`)."""
    column = None if isinstance(feature, Cross) else feature.column
    return column or feature.name


def table_of(feature: Feature) -> str | None:
    """The name of a feature's embedding table; None for numbers."""
    return None if isinstance(feature, Numeric) else (feature.table or feature.name)


def segments_of(feature: Feature) -> tuple[int | None, ...]:
    """The greatest rank that each field of a feature takes in; a feature without segments is one field without a limit."""
    return feature.segments if isinstance(feature, Ranked) and feature.rank == "segments" else (None,)


def field_names(feature: Feature) -> tuple[str, ...]:
    """The names of the fields that a feature yields: its own, or that of each segment."""
    return tuple(feature.name if top is None else f"{feature.name}.top{top}" for top in segments_of(feature))


# ------------------------------------------------------------------------------------------------ histories and tasks

DAY = 86_400
AGE_CUTS = (
    60,
    600,
    3_600,
    6 * 3_600,
    DAY,
    2 * DAY,
    4 * DAY,
    7 * DAY,
    14 * DAY,
    30 * DAY,
    60 * DAY,
    120 * DAY,
    365 * DAY,
)
"""Default cut points of an event's age, in seconds: a minute to a year."""


@dataclass(frozen=True, kw_only=True)
class History:
    """A user's past events of one sort, as seen by a row: known before its time, the most recent, oldest first.

    fields      names of features: an event-level feature, or a candidate feature whose table, encoding and meaning
                the event's column of that name shares (`product_id` of the past is `product_id` of the candidate)
    columns     event column of a field where it is not the feature's own column
    where       only events whose column equals the value, e.g. {event = "purchase"}
    lists       instead of the event log: columns of the samples that hold the lists, oldest first, field by field
    weights     beside lists: for every weighted field the column that holds its weights, one list (or number) per event
    separator   for list columns that are joined text (`a^b^c`)
    max_length  the most recent so many
    delay       seconds until an event is known: known_at = time + delay, unless the log has a `known_at` column
    ties        strict: only known_at < t counts · file_order: (known_at, sequence) < (t, sequence of the row)
    age_cuts    cut points of the event's age in seconds; the age's bucket is the id column `age`
    """

    name: str
    fields: tuple[str, ...]
    columns: Mapping[str, str] = field(default_factory=dict)
    where: Mapping[str, str | int | bool] = field(default_factory=dict)
    lists: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    separator: str | None = None
    max_length: int = 50
    delay: float = 0.0
    ties: Literal["strict", "file_order"] = "strict"
    age_cuts: tuple[int, ...] = AGE_CUTS

    def __post_init__(self) -> None:
        _at_least(1, max_length=self.max_length)
        if not self.fields:
            raise UserError(f"history {self.name!r}: fields is empty; name what an event is described by")
        _check_separator(self.separator)
        if not 0 <= self.delay < float("inf"):
            raise UserError(f"history {self.name!r}: delay = {self.delay}; accepted: seconds, 0 or more")
        if not _rising(self.age_cuts):
            raise UserError(f"history {self.name!r}: age_cuts = {list(self.age_cuts)}; accepted: rising seconds")

    @property
    def list_columns(self) -> dict[str, str]:
        """The columns of the samples that hold the past, by field; those of weights by `field·weights`."""
        return {**self.lists, **{f"{name}·weights": column for name, column in self.weights.items()}}


@dataclass(frozen=True, kw_only=True)
class Task:
    """Something to predict.

    kind     binary: 0 or 1 · regression: any number
    within   the task in whose positives this one lives (a conversion happens within a click): outside, its weight is 0
    weight   a column of row weights (default 1)
    """

    name: str
    column: str | None = None
    kind: Literal["binary", "regression"] = "binary"
    within: str | None = None
    weight: str | None = None


# ------------------------------------------------------------------------------------------------ the schema


@dataclass(frozen=True, kw_only=True)
class Schema:
    """All declarations of a data set, checked against each other. Order is meaning: fields keep the order given."""

    features: tuple[Feature, ...]
    histories: tuple[History, ...] = ()
    tasks: tuple[Task, ...] = (Task(name="label"),)

    def __post_init__(self) -> None:
        for what, names in (
            ("feature", [f.name for f in self.features]),
            ("field", [name for f in self.features for name in field_names(f)]),
            ("history", [h.name for h in self.histories]),
            ("task", [t.name for t in self.tasks]),
        ):
            twice = sorted({n for n in names if names.count(n) > 1})
            if twice:
                raise UserError(f"schema: {what} {twice[0]!r} is declared twice; names must differ")
            for name in names:  # histories and tables are folders on disk
                if not name or name.startswith(".") or "/" in name or "\\" in name or "\0" in name:
                    raise UserError(f"schema: {what} {name!r}: a name is not empty, has no slash and no dot in front")
        if not self.tasks:
            raise UserError("schema: no task; declare at least one [[task]] with a label column")
        for history in self.histories:
            if history.name in ("request", "candidate"):
                raise UserError(f"history {history.name!r}: the name is taken by a level; name it after its events")
            for name in history.fields:
                feature = self.field(history, name)
                if name == "age":
                    raise UserError(
                        f"history {history.name!r}: a field may not be called 'age': that is the event's age"
                    )
                if feature.use != "input":
                    raise UserError(
                        f"history {history.name!r}: field {name!r} has use {feature.use!r}; what must not reach the graph "
                        "cannot be part of the past either; accepted: features with use = 'input'"
                    )
                if isinstance(feature, Cross) or feature.level == "request":
                    raise UserError(
                        f"history {history.name!r}: field {name!r} is a {feature.level}-level {feature.kind}; accepted: "
                        "event-level features and candidate features that are not crosses"
                    )
            for where, given in (("columns", history.columns), ("lists", history.lists)):
                for name in given:
                    if name not in history.fields:
                        raise UserError(
                            f"history {history.name!r}: {where} names {name!r}; {nearest(name, history.fields)}"
                        )
            if history.lists and set(history.lists) != set(history.fields):
                raise UserError(
                    f"history {history.name!r}: lists must name a column for each of {list(history.fields)}"
                )
            weighted = [n for n in history.fields if getattr(self.feature(n), "weights", None) is not None]
            if set(history.weights) != set(weighted if history.lists else ()):
                raise UserError(
                    f"history {history.name!r}: weights names columns for {sorted(history.weights)}; accepted: beside lists "
                    f"one for each weighted field, here {weighted if history.lists else 'none, for there are no lists'}"
                )
            self._check_events_of_lists(history)
        names = [t.name for t in self.tasks]
        for i, task in enumerate(self.tasks):
            if task.within is not None and task.within not in names[:i]:
                raise UserError(
                    f"task {task.name!r}: within = {task.within!r} must be a task declared before it; "
                    f"{nearest(task.within, names[:i])}"
                )
        sharers: dict[str, tuple[str, object]] = {}
        scales: dict[str, tuple[str, float]] = {}
        for feature in self.features:
            if isinstance(feature, Numeric):
                continue
            if feature.std is not None:
                by, std = scales.setdefault(feature.table or feature.name, (feature.name, feature.std))
                if std != feature.std:
                    raise UserError(
                        f"features {by!r} and {feature.name!r} share the table {feature.table or feature.name!r}, but one says "
                        f"std = {std} and the other {feature.std}; leave it to one of them, or make them equal"
                    )
            made = (feature.cuts, feature.law, feature.buckets) if isinstance(feature, Bucketed) else feature.encoding
            meaning = (made, feature.dim)
            first, known = sharers.setdefault(feature.table or feature.name, (feature.name, meaning))
            if known != meaning:
                raise UserError(
                    f"features {first!r} and {feature.name!r} share the table {feature.table or feature.name!r} but not "
                    "their encoding and dim; make them equal or name another table"
                )

    def _check_events_of_lists(self, history: History) -> None:
        """One event column is one list column: a request's events are read by event column."""
        seen: dict[str, tuple[str, str]] = {}
        for name in history.fields if history.lists else ():
            feature = self.feature(name)
            reads = {history.columns.get(name, column_of(feature)): history.lists[name]}
            if isinstance(feature, MultiValued) and feature.weights is not None:
                reads[feature.weights] = history.weights[name]
            for column, at in reads.items():
                other, before = seen.setdefault(column, (name, at))
                if before != at:
                    raise UserError(
                        f"history {history.name!r}: fields {other!r} and {name!r} both read {column!r} of an event, but "
                        f"lists of their own, {before!r} and {at!r}; tell them apart by `columns` of the history"
                    )

    def feature(self, name: str) -> Feature:
        """The feature of this name."""
        for feature in self.features:
            if feature.name == name:
                return feature
        raise UserError(f"no feature {name!r} in the schema; {nearest(name, [f.name for f in self.features])}")

    def history(self, name: str) -> History:
        """The history of this name."""
        for history in self.histories:
            if history.name == name:
                return history
        raise UserError(f"no history {name!r} in the schema; {nearest(name, [h.name for h in self.histories])}")

    def task(self, name: str) -> Task:
        """The task of this name."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise UserError(f"no task {name!r} in the schema; {nearest(name, [t.name for t in self.tasks])}")

    def field(self, history: History, name: str) -> Feature:
        """The feature that a history's field reads its meaning from."""
        known = [f.name for f in self.features]
        if name not in known:
            raise UserError(f"history {history.name!r}: field {name!r} is no feature; {nearest(name, known)}")
        return self.feature(name)

    def at(self, level: Level, *kinds: type, use: Use | None = "input") -> list[Feature]:
        """The features of one level, of the given kinds, in declared order."""
        return [
            f
            for f in self.features
            if f.level == level and (use is None or f.use == use) and (not kinds or isinstance(f, kinds))
        ]


@dataclass(frozen=True)
class Columns:
    """The fixed, declared order of one block's columns: what `Block.ids`, `.numbers` and `.lists` hold.

    ids       (name, table) of each single-id column; in a history the last one is ("age", "<history>.age")
    numbers   names of number columns; a numeric feature x yields "x" (powers: also "x²" and "√x") and, if training rows
              missed it, "x?"
    lists     (name, table, rank table or None, weighted?, pooling) of each list column
    """

    ids: tuple[tuple[str, str], ...] = ()
    numbers: tuple[str, ...] = ()
    lists: tuple[ListColumn, ...] = ()

    def numbers_of(self, name: str) -> list[int]:
        """Where the columns of a numeric feature stand among `numbers`: it may yield several."""
        return [i for i, column in enumerate(self.numbers) if column in (name, f"{name}²", f"√{name}", f"{name}?")]


@dataclass(frozen=True, kw_only=True)
class ListColumn:
    """A list feature as a column: its name, tables, and how it is pooled."""

    name: str
    table: str
    ranks: str | None = None
    weighted: bool = False
    pooling: str = "mean"


@dataclass(frozen=True)
class FittedTable:
    """What training taught about one embedding table.

    rows      rows of the table, the three reserved ones included (for `growing`: capacity + 3)
    counts    int64 [rows] (for `growing`: per symbol): occurrences in the training rows, histories included
    encoding  the declared encoding, or "cuts" for buckets, ranks and ages
    dim, std  width and standard deviation of the initial values where a feature says them; None: the model's
    """

    rows: int
    counts: np.ndarray
    encoding: Encoding | Literal["cuts"]
    dim: int | None = None
    std: float | None = None


@dataclass(frozen=True)
class FittedSchema:
    """A schema and what the training rows taught: all that a model needs to be built.

    tables          by name
    request, candidate, histories   the column order of each block of a batch (inputs only; train_only apart)
    train_only      columns of candidate-level train-only features
    base_rates      per task: the mean label over its training space (binary: a rate; the initial logit comes from it)
    """

    schema: Schema
    tables: Mapping[str, FittedTable]
    request: Columns
    candidate: Columns
    histories: Mapping[str, Columns]
    train_only: Columns
    base_rates: Mapping[str, float]

    def blocks(self) -> Iterator[tuple[str, Columns]]:
        """(name, columns) of request, candidate and each history, in the order of a batch."""
        yield "request", self.request
        yield "candidate", self.candidate
        yield from self.histories.items()
