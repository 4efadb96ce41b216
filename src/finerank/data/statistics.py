"""What the fields of an encoded data set hold: how many values, how often, how much of it training never saw.

Everything is counted from the mapped columns, `ROWS` rows of a block at a time, so memory follows the vocabularies and
never the rows. A row is a row of the data set throughout: a request's value counts for each of its candidates, and the
value of a past event for each row in whose history it lies.

n rows of a piece · S = 3 splits, in the order of `split.NAMES`
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from finerank.data.dataset import Dataset, Slices
from finerank.data.percentiles import Percentiles
from finerank.data.split import NAMES, TRAIN
from finerank.runtime.blocks import Block
from finerank.runtime.encoder import NumberStats
from finerank.runtime.fields import Field, fields_of
from finerank.runtime.history import take_lists
from finerank.schema import DAY, FIRST, MISSING, SECOND, Columns, FittedTable, ListFeature, Numeric

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]

ROWS = 1 << 18
"""Rows read at a time."""

TOPS = (1, 10, 100, 1_000, 10_000)
"""How many of the most frequent values `coverage` speaks of."""

PERCENT = (1, 5, 25, 50, 75, 95, 99)
"""Which percentiles of a number are told."""

# ------------------------------------------------------------------------------------------------ results


@dataclass(frozen=True, kw_only=True)
class Share:
    """A field in one split, or on one day.

    rows     how many
    missing  the share of rows without a value (of a list: without entries); None where the encoded data cannot tell: a
             number that no training row lacked
    unseen   of the values that are there (entries, of a list): the share that training has no row for: out of
             vocabulary, or a bucket that no training row fell into; None for numbers, and where there is no value
    """

    rows: int
    missing: float | None = None
    unseen: float | None = None


@dataclass(frozen=True, kw_only=True)
class IdStatistics:
    """The ids of a field in the training rows, missing ones apart.

    values      occurrences, those out of vocabulary included
    distinct    different values with a row of their own (of a hashed table: buckets) · singletons: seen once
    coverage    share of the occurrences that the k most frequent values make up, by k
    """

    table: str
    values: int
    distinct: int
    singletons: int
    coverage: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class NumberStatistics:
    """A number in the training rows, missing ones apart, in the column's own units (to float32's precision).

    percentiles  by percent: the least value that so many percent of the rows do not exceed
    """

    least: float
    mean: float
    greatest: float
    percentiles: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class FieldStatistics:
    """One field of one block.

    block    request, candidate, train_only, or the name of a history
    feature  the feature's name, where `name` is a segment of it; kind: the feature's
    splits   by name · days: by date (UTC), all splits together; empty for histories and for data of a single day
    ids, numbers  one of the two; None also for a number without a value in training
    """

    block: str
    name: str
    feature: str
    kind: str
    splits: Mapping[str, Share]
    days: Mapping[str, Share] = field(default_factory=dict)
    ids: IdStatistics | None = None
    numbers: NumberStatistics | None = None


def field_statistics(dataset: Dataset) -> tuple[FieldStatistics, ...]:
    """The statistics of every field, block by block, in the order of the schema. `typed.plain` writes them down."""
    schema, fitted = dataset.encoder.schema, dataset.fitted
    of_requests, of_candidates = _requests(dataset), _candidates(dataset)
    parts = [
        _Part("request", fields_of(schema, "request"), fitted.request, dataset.request, of_requests),
        _Part("candidate", fields_of(schema, "candidate"), fitted.candidate, dataset.candidate, of_candidates),
        _Part(
            "train_only",
            fields_of(schema, "candidate", "train_only"),
            fitted.train_only,
            dataset.train_only,
            of_candidates,
        ),
    ]
    for name, events in dataset.events.items():
        weigh = _events(dataset, dataset.slices[name])
        parts.append(_Part(name, fields_of(schema, name), fitted.histories[name], events.block, weigh))
    return tuple(found for part in parts for found in _of_part(dataset, part))


# ------------------------------------------------------------------------------------------------ how rows count

Weigh: TypeAlias = Callable[[int, int], tuple[Ints, Ints | None]]
"""(start, stop) of a block's rows -> int64 [S, n]: for how many rows of each split one counts; its day, or None."""


@dataclass(frozen=True)
class _Part:
    """A block, its fields, and how its rows count."""

    name: str
    fields: list[Field]
    columns: Columns
    block: Block[NDArray[Any]]
    weigh: Weigh

    def pieces(self) -> Iterator[tuple[slice, Ints, Ints | None]]:
        """(rows, weights, days) of one piece after the other."""
        for start in range(0, len(self.block) if self.fields else 0, ROWS):
            stop = min(start + ROWS, len(self.block))
            yield slice(start, stop), *self.weigh(start, stop)


def _requests(dataset: Dataset) -> Weigh:
    def weigh(start: int, stop: int) -> tuple[Ints, Ints | None]:
        sizes = np.diff(dataset.first[start : stop + 1])
        return _by_split(dataset.split[start:stop], sizes), dataset.time[start:stop] // (DAY * SECOND)

    return weigh


def _candidates(dataset: Dataset) -> Weigh:
    def weigh(start: int, stop: int) -> tuple[Ints, Ints | None]:
        rows = np.arange(start, stop)
        request = np.searchsorted(dataset.first, rows.astype(dataset.first.dtype), side="right") - 1
        one = np.ones(len(rows), dtype=np.int64)
        return _by_split(dataset.split[request], one), dataset.time[request] // (DAY * SECOND)

    return weigh


def _events(dataset: Dataset, slices: Slices) -> Weigh:
    """An event counts as often as rows have it in their history, and has no day: it is of many rows."""

    def weigh(start: int, stop: int) -> tuple[Ints, Ints | None]:
        rises = np.zeros((len(NAMES), stop - start + 1), dtype=np.int64)  # up where a slice starts, down where it ends
        for at in range(0, dataset.requests, ROWS):
            these = slice(at, at + ROWS)
            begin, end = (np.clip(s[these], start, stop) - start for s in (slices.start, slices.end))
            inside = np.flatnonzero(begin < end)
            sizes = np.diff(dataset.first[at : at + ROWS + 1])[inside]
            split = dataset.split[these][inside]
            np.add.at(rises, (split, begin[inside]), sizes)
            np.subtract.at(rises, (split, end[inside]), sizes)
        return np.cumsum(rises[:, :-1], axis=1), None

    return weigh


def _by_split(split: NDArray[np.int8], count: Ints) -> Ints:
    return np.stack([np.where(split == code, count, 0) for code in NAMES.values()])


# ------------------------------------------------------------------------------------------------ counting


class _Counts:
    """Rows, rows without a value, values and values unseen: of each split, and of each day."""

    def __init__(self) -> None:
        self.splits = np.zeros((len(NAMES), 4), dtype=np.int64)
        self.days: dict[int, Ints] = {}

    def add(self, missing: NDArray[Any], values: NDArray[Any], unseen: NDArray[Any], weights: Ints, days: Any) -> None:
        """missing, values, unseen: [n]; weights [S, n]; days: None, or (distinct days, which of them each row has)."""
        each = np.stack([np.ones(len(missing), np.int64), missing, values, unseen], axis=1).astype(np.int64)  # [n, 4]
        self.splits += weights @ each
        if days is not None:
            names, index = days
            sums = np.zeros((len(names), 4), dtype=np.int64)
            np.add.at(sums, index, each * weights.sum(0)[:, None])
            for day, row in zip(names.tolist(), sums, strict=True):
                self.days[day] = self.days.get(day, 0) + row

    def statistics(
        self,
        part: _Part,
        field: Field,
        told: bool = True,
        ids: IdStatistics | None = None,
        numbers: NumberStatistics | None = None,
    ) -> FieldStatistics:
        """All that is known of a field. told: whether a missing value can be told from others."""

        def share(row: Ints, told: bool) -> Share:
            rows, missing, values, unseen = row.tolist()
            return Share(
                rows=rows,
                missing=missing / rows if told and rows else None,
                unseen=unseen / values if ids and values else None,
            )

        days = {str(np.datetime64(day, "D")): share(row, told) for day, row in sorted(self.days.items())}
        return FieldStatistics(
            block=part.name,
            name=field.name,
            feature=field.feature.name,
            kind=field.feature.kind,
            splits={name: share(self.splits[code], told or code == TRAIN) for name, code in NAMES.items()},
            days=days if len(days) > 1 else {},
            ids=ids,
            numbers=numbers,
        )


class _Ids:
    """Counts the ids of one field, single or in lists."""

    def __init__(self, dataset: Dataset, part: _Part, field: Field) -> None:
        self.field, self.lists = field, isinstance(field.feature, ListFeature)
        names = [name for name, _ in part.columns.ids]
        self.column = -1 if self.lists else names.index(field.name)
        of_lists = {c.name: c.table for c in part.columns.lists}
        self.table = of_lists[field.name] if self.lists else part.columns.ids[self.column][1]
        size = dataset.encoder.tables[self.table].size
        self.known = _known(dataset.fitted.tables[self.table], size)
        self.train = np.zeros(size, dtype=np.int64)
        self.counts = _Counts()

    def add(self, block: Block[NDArray[Any]], rows: slice, weights: Ints, days: Any) -> None:
        """One piece of rows."""
        if self.lists:
            lists = take_lists(block.lists[self.field.name], np.arange(rows.start, rows.stop))
            ids, length = lists.ids[:, 0], len(lists.lengths)
            unseen = np.bincount(lists.segments, ~self.known[ids], length).astype(np.int64)
            trained = np.bincount(lists.index, weights[TRAIN], length).astype(np.int64)
            np.add.at(self.train, ids, trained[lists.segments])
            of_row = lists.lengths[lists.index]
            self.counts.add(of_row == 0, of_row, unseen[lists.index], weights, days)
        else:
            ids = block.ids[rows, self.column].astype(np.int64)
            missing = ids == MISSING
            np.add.at(self.train, ids, weights[TRAIN])
            self.counts.add(missing, ~missing, ~missing & ~self.known[ids], weights, days)

    def result(self, part: _Part) -> FieldStatistics:
        """What was counted."""
        values = int(self.train.sum() - self.train[MISSING])
        seen = np.sort(self.train[FIRST:][self.train[FIRST:] > 0])[::-1]
        total = np.cumsum(seen)
        tops = {str(k): float(total[min(k, len(seen)) - 1] / values) for k in TOPS if len(seen)}
        ids = IdStatistics(
            table=self.table,
            values=values,
            distinct=len(seen),
            singletons=int((seen == 1).sum()),
            coverage=tops,
        )
        return self.counts.statistics(part, self.field, ids=ids)


class _Numbers:
    """Measures one number."""

    def __init__(self, dataset: Dataset, part: _Part, field: Field) -> None:
        assert isinstance(field.feature, Numeric)
        self.field, self.feature, self.stats = field, field.feature, dataset.encoder.numbers[field.name]
        names = part.columns.numbers
        self.column = names.index(field.name)
        self.missing = names.index(f"{field.name}?") if f"{field.name}?" in names else None
        self.percentiles = Percentiles(PERCENT)
        self.sum, self.least, self.greatest = 0.0, np.inf, -np.inf
        self.counts = _Counts()

    def add(self, block: Block[NDArray[Any]], rows: slice, weights: Ints, days: Any) -> None:
        """One piece of rows."""
        x, missing = self._read(block, rows)
        self.counts.add(missing, ~missing, np.zeros_like(missing), weights, days)
        kept = ~missing & (weights[TRAIN] > 0)
        x, count = x[kept], weights[TRAIN][kept]
        if len(x):
            self.percentiles.add(x, count)
            raw = unscaled(self.feature, self.stats, x)
            self.sum += float((raw * count).sum())
            self.least, self.greatest = min(self.least, float(raw.min())), max(self.greatest, float(raw.max()))

    def add_again(self, block: Block[NDArray[Any]], rows: slice, weights: Ints) -> None:
        """One piece of rows in the second pass, which percentiles take."""
        x, missing = self._read(block, rows)
        kept = ~missing & (weights[TRAIN] > 0)
        self.percentiles.add_again(x[kept], weights[TRAIN][kept])

    def result(self, part: _Part) -> FieldStatistics:
        """What was measured."""
        numbers = None
        if total := self.percentiles.total:
            found = unscaled(self.feature, self.stats, self.percentiles.values()).tolist()
            numbers = NumberStatistics(
                least=self.least,
                mean=self.sum / total,
                greatest=self.greatest,
                percentiles={str(p): x for p, x in zip(PERCENT, found, strict=True)},
            )
        return self.counts.statistics(part, self.field, told=self.missing is not None, numbers=numbers)

    def _read(self, block: Block[NDArray[Any]], rows: slice) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        x = np.array(block.numbers[rows, self.column])
        return x, np.zeros(len(x), dtype=bool) if self.missing is None else block.numbers[rows, self.missing] > 0


def _of_part(dataset: Dataset, part: _Part) -> list[FieldStatistics]:
    counters = [(_Numbers if isinstance(f.feature, Numeric) else _Ids)(dataset, part, f) for f in part.fields]
    numbers = [counter for counter in counters if isinstance(counter, _Numbers)]
    for rows, weights, day in part.pieces():
        days = None if day is None else np.unique(day, return_inverse=True)
        for counter in counters:
            counter.add(part.block, rows, weights, days)
    for rows, weights, _ in part.pieces() if numbers else ():
        for number in numbers:
            number.add_again(part.block, rows, weights)
    return [counter.result(part) for counter in counters]


# ------------------------------------------------------------------------------------------------ helpers


def unscaled(feature: Numeric, stats: NumberStats, y: NDArray[np.float32]) -> Floats:
    """The inverse of `runtime.encoder.scaled` and `powers`: what the column held, to float32's precision."""
    x = y.astype(np.float64)
    match feature.transform:
        case "log1p":
            return np.sign(x) * np.expm1(np.abs(x))
        case "powers":
            return np.interp(x, stats.ranks, stats.points) if stats.points else x
        case _:
            return x * stats.scale + stats.shift


def _known(table: FittedTable, size: int) -> NDArray[np.bool_]:
    """Which symbols of a table the training rows hold: bool [size]."""
    known = np.zeros(size, dtype=bool)
    counts = table.counts[:size]
    known[: len(counts)] = counts > 0
    known[:FIRST] = False
    return known
