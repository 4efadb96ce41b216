"""What fields read of a source, taken in block by block and kept as numbers: values as codes, numbers, entries of lists.

A value is looked at once, when its block is read. Afterwards a column is an array of small integers beside its distinct
values, so counting, looking up and encoding cost a few array operations a row, and a look at each distinct value.

n rows · U distinct values · M entries of all lists
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from finerank.data.scratch import Array, Int64s, Pile, Scratch
from finerank.data.texts import NOWHERE, Integers, Joined, Texts, dictionary
from finerank.errors import UserError, nearest
from finerank.kernels.ids import Coded
from finerank.runtime.fields import filler_of, weight_separator
from finerank.runtime.history import flatten
from finerank.runtime.values import CROSS, canonical, list_weights, no_weight, number, weight_of
from finerank.schema import Bucketed, Feature, ListFeature, Numeric, source_columns

Floats: TypeAlias = NDArray[np.float64]
Columns: TypeAlias = pl.Series | Sequence[pl.Series]
Rows: TypeAlias = slice | Int64s

WIDEST = 1 << 24
"""Integers that span less are their own codes; see `Ids`."""


# ------------------------------------------------------------------------------------------------ columns


class Ids:
    """A column of values: codes 1...U for its canonical texts (`runtime.values`), 0 for missing.

    Integers of a narrow span, and texts that write such integers, are coded by their distance from the least, without a
    look at what is distinct; anything else by a dictionary that grows from block to block. Codes are therefore no
    contract: symbols are, and come out the same.

    size   codes run to `size`; not each need occur, see `used`
    """

    def __init__(self, scratch: Scratch, place: str) -> None:
        self.scratch, self.place = scratch, place
        self.size = 0
        self._low, self._high = 0, -1
        self._missing = False  # whether some integer is
        self._base: int | None = None  # integers are kept as their distance from one of them
        self._integers: Pile | None = Pile(scratch, np.int32)
        self._codes = Pile(scratch, np.uint32)
        self._dictionary = dictionary()
        self._texts = pl.Series([], dtype=pl.String)
        self._closed: Array = np.empty(0, dtype=np.uint32)

    def add(self, columns: Sequence[Texts]) -> None:
        """The next rows: of a cross all its columns; or the entries of joined text."""
        columns = [c if isinstance(c, Joined) else simple(c, self.place) for c in columns]
        if self._integers is not None:
            room = self._integers.room(len(columns[0]))
            found = Integers.of(columns[0], self._base, room) if len(columns) == 1 else None
            if found is not None and self._narrow(found):
                self._integers.put(room)
                self._missing |= bool(room.min(initial=0) == NOWHERE)
                return
            self._leave_integers()
        first, *others = columns
        if others:
            texts = [canonical_series(c) for c in columns if isinstance(c, pl.Series)]
            first = pl.select(pl.concat_str(texts, separator=CROSS)).to_series()
        elif isinstance(first, pl.Series) and first.dtype != pl.String:
            first = canonical_series(first)
        coded = self._codes.room(len(first))
        self._dictionary.codes(first, coded)
        self._codes.put(coded)

    def close(self) -> None:
        """After the last `add`."""
        if self._integers is None:
            self._closed, self._texts = self._codes.close(), self._dictionary.texts()
            self.size = len(self._texts)
            self._dictionary = dictionary()  # what it held is free again
        else:
            self._closed = self._integers.close()
            self.size = self._high - self._low + 1

    def __len__(self) -> int:
        return len(self._closed)

    def codes(self, rows: Rows) -> Int64s:
        """int64 [n]."""
        coded = self.coded
        found: Int64s = coded.codes[rows].astype(np.int64)
        if coded.base is None:
            return found
        missing = found == NOWHERE if self._missing else None
        found -= coded.base
        if missing is not None:
            found[missing] = 0
        return found

    @property
    def coded(self) -> Coded:
        """All rows as they are kept."""
        return Coded(self._closed, None if self._integers is None else self._low - (self._base or 0) - 1)

    def used(self) -> Int64s:
        """The codes that occur, ascending, 0 left out."""
        if self._integers is None:
            return np.arange(1, self.size + 1)
        seen = np.zeros(self.size + 1, dtype=bool)
        for at in self.scratch.pieces(len(self._closed)):
            seen[self.codes(at)] = True
        return np.flatnonzero(seen[1:]) + 1

    def texts(self, codes: Int64s) -> pl.Series:
        """The values of these codes, none of them 0."""
        if self._integers is not None:
            return pl.Series(codes + (self._low - 1), dtype=pl.Int64).cast(pl.String)
        return self._texts.gather(codes - 1)

    def _narrow(self, found: Integers) -> bool:
        """Whether these integers and those before span little enough."""
        assert self._integers is not None
        low, high = found.low, found.high
        if low > high:
            return True
        if self._high >= self._low:
            low, high = min(low, self._low), max(high, self._high)
        rows = self._integers.rows + len(found.distances)
        if high - low >= max(1 << 16, min(WIDEST, 8 * rows)):
            return False
        self._base, self._low, self._high = found.base, low, high
        return True

    def _leave_integers(self) -> None:
        """Code the rows so far by dictionary after all."""
        assert self._integers is not None
        before, self._integers = self._integers.close(), None
        for at in self.scratch.pieces(len(before)):
            values = pl.Series(before[at].astype(np.int64))
            texts = pl.select(pl.when(values != NOWHERE).then(values + (self._base or 0))).to_series().cast(pl.String)
            self._codes.append(self._dictionary.codes(texts))


class Numbers:
    """A column of numbers: float64, NaN where missing. place: names a row in an error message."""

    def __init__(self, scratch: Scratch, place: str) -> None:
        self.place = place
        self._pile = Pile(scratch, np.float64)
        self._closed: Floats = np.empty(0)

    def add(self, columns: Sequence[pl.Series]) -> None:
        """The next rows."""
        start = self._pile.rows
        self._pile.append(floats(columns[0], self.place, range(start, start + len(columns[0]))))

    def close(self) -> None:
        """After the last `add`."""
        self._closed = self._pile.close()

    def read(self, rows: Rows) -> Floats:
        """float64 [n]."""
        return self._closed[rows]


class Entries:
    """A column of lists: the codes of their entries, and the weights beside them if the feature has any.

    ids   of the entries of all rows, one after the other
    """

    def __init__(self, feature: ListFeature, scratch: Scratch) -> None:
        self.feature, self.scratch = feature, scratch
        self.place = f"feature {feature.name!r}"
        self.ids = Ids(scratch, self.place)
        self._own, self._filler = weight_separator(feature), filler_of(feature)
        self._lengths = Pile(scratch, np.int64)
        self._weights = Pile(scratch, np.float64)
        self._ends: Int64s = np.empty(0, dtype=np.int64)
        self._closed: Floats = np.empty(0)

    def add(self, columns: Sequence[pl.Series]) -> None:
        """The next rows: the lists, and their column of weights if they have one (which counting does not need)."""
        start = self._lengths.rows
        lengths = self._add(columns[0], start)
        self._lengths.append(lengths)
        if len(columns) == 1:
            return
        given, given_lengths = flat_weights(self.feature, columns[1])
        uneven = np.flatnonzero(given_lengths != lengths)
        if len(uneven):
            i = int(uneven[0])
            raise UserError(
                f"{self.place}, row {start + i}: got {lengths[i]} values but {given_lengths[i]} weights; "
                "give one weight per value"
            )
        self._weights.append(floats(given, self.place, np.repeat(np.arange(start, start + len(lengths)), lengths)))

    def _add(self, column: pl.Series, start: int) -> Int64s:
        plain = column.dtype == pl.String and self._own is None and self._filler is None
        separator = self.feature.separator if plain else None
        joined = None if separator is None else Joined.of(column, separator)
        if joined is not None:
            self.ids.add([joined])
            return joined.lengths
        flat, lengths = flat_entries(self.feature, column)
        if self._own is not None:
            rows = np.repeat(np.arange(start, start + len(lengths)), lengths)
            flat, weights = _split_weights(self._known(flat), self._own, self.place, rows)
            self._weights.append(weights)
        self.ids.add([self._known(flat)])
        return lengths

    def _known(self, entries: pl.Series) -> pl.Series:
        """The entries, those that fill up lists turned into missing ones, which nothing counts or keeps."""
        entries = simple(entries, self.place)
        if self._filler is None:
            return entries
        fills = canonical_series(entries) == self._filler
        return pl.select(pl.when(~fills.fill_null(False)).then(entries)).to_series()

    def close(self) -> None:
        """After the last `add`."""
        self._ends = self.scratch.running(self._lengths.close())
        self.ids.close()
        self._closed = self._weights.close()

    def lengths(self, rows: Rows) -> Int64s:
        """int64 [n]."""
        if isinstance(rows, slice):
            return np.diff(self._ends[rows], prepend=self._ends[rows.start - 1] if rows.start else 0)
        return self._ends[rows] - self._starts(rows)

    def of(self, rows: Rows) -> tuple[Rows, Int64s]:
        """Where the entries of these rows are [M], and the length of each row [n]."""
        lengths = self.lengths(rows)
        if isinstance(rows, slice):
            start = int(self._ends[rows.start - 1]) if rows.start else 0
            return slice(start, start + int(lengths.sum())), lengths
        starts = self._starts(rows)
        return flatten(starts, starts + lengths)[0], lengths

    def weights(self, entries: Rows) -> NDArray[np.float32]:
        """The weights of entries, float32 [M]. Raises UserError for one that is missing or vast."""
        try:
            return list_weights(self._closed[entries])
        except UserError as error:
            raise UserError(f"{self.place}: {error}") from None

    def _starts(self, rows: Int64s) -> Int64s:
        return np.where(rows > 0, self._ends[rows - 1], 0)


Column: TypeAlias = Ids | Numbers | Entries


def column_for(feature: Feature, scratch: Scratch) -> Column:
    """An empty column of the kind that the feature reads."""
    place = f"feature {feature.name!r}"
    if isinstance(feature, Numeric | Bucketed):
        return Numbers(scratch, place)
    return Entries(feature, scratch) if isinstance(feature, ListFeature) else Ids(scratch, place)


def staged(feature: Feature, columns: Sequence[pl.Series], scratch: Scratch) -> Column:
    """A whole column in one go."""
    column = column_for(feature, scratch)
    column.add(columns)
    column.close()
    return column


# ------------------------------------------------------------------------------------------------ series


def canonical_series(series: pl.Series) -> pl.Series:
    """The canonical text (`runtime.values`) of each row, as a String column; null is missing."""
    series = simple(series, f"column {series.name!r}")
    if series.dtype.is_integer():
        return series.cast(pl.String)
    if series.dtype == pl.String:
        empty = series == ""
        return series.set(empty, None) if empty.any() else series
    values, _, inverse = distinct([series])
    texts = pl.Series(series.name, [canonical(value) for (value,) in values.iter_rows()], dtype=pl.String)
    return texts.gather(inverse)


def distinct(columns: Sequence[pl.Series]) -> tuple[pl.DataFrame, Int64s, Int64s]:
    """The distinct rows of some columns in order of first occurrence [U], the first row of each [U], and each row's [n]."""
    frame = pl.DataFrame([column.alias(str(i)) for i, column in enumerate(columns)])
    groups = frame.with_row_index("row").group_by(frame.columns, maintain_order=True).agg("row")
    rows = groups["row"].explode().cast(pl.Int64).to_numpy()  # of one group after the other; no group is empty
    sizes = groups["row"].list.len().cast(pl.Int64).to_numpy()
    index = np.empty(len(rows), dtype=np.int64)
    index[rows] = np.repeat(np.arange(len(sizes)), sizes)
    return groups.select(frame.columns), rows[np.cumsum(sizes) - sizes], index


def simple(series: pl.Series, place: str) -> pl.Series:
    """A column of integers, floats, bools or text."""
    dtype = series.dtype
    if dtype in (pl.Categorical, pl.Enum, pl.Null):
        return series.cast(pl.String)
    if dtype.is_integer() or dtype.is_float() or dtype in (pl.String, pl.Boolean):
        return series
    raise UserError(
        f"{place}: got a column of {dtype}; accepted: integers, floats, bool or text; cast it to one of these"
    )


def floats(series: pl.Series, place: str, rows: range | Int64s) -> Floats:
    """Numbers as float64 [n], NaN where missing; the values that `number` takes. rows: [n], where each is, for errors."""
    series = simple(series, place)
    if series.dtype == pl.String:
        values, first, inverse = distinct([series])
        found = []
        for (value,), row in zip(values.iter_rows(), first.tolist(), strict=True):
            try:
                found.append(number(value))
            except UserError as error:
                raise UserError(f"{place}, row {rows[row]}: {error}") from None
        return np.array([np.nan if x is None else x for x in found], dtype=np.float64)[inverse]
    if series.dtype.is_integer():
        return series.to_numpy().astype(np.float64, copy=False)  # NaN where null
    out: Floats = series.cast(pl.Float64).to_numpy()
    infinite = np.flatnonzero(np.isinf(out))
    if len(infinite):
        i = int(infinite[0])
        raise UserError(f"{place}, row {rows[i]}: got {out[i]}; accepted: finite numbers or null")
    return out


def flat_entries(feature: ListFeature, series: pl.Series) -> tuple[pl.Series, Int64s]:
    """A list column as its entries one after the other, and the length of each row's list (null: 0)."""
    if series.dtype in (pl.Categorical, pl.Enum):
        series = series.cast(pl.String)
    if series.dtype == pl.Null:
        return pl.Series([], dtype=pl.String), np.zeros(len(series), dtype=np.int64)
    if series.dtype == pl.String and feature.separator:
        series = canonical_series(series).str.split(feature.separator)
    if isinstance(series.dtype, pl.Array):
        series = series.arr.to_list()
    if not isinstance(series.dtype, pl.List):
        remedy = "say how the text is joined: separator" if series.dtype == pl.String else "put the values into lists"
        raise UserError(f"feature {feature.name!r}: got a column of {series.dtype}; accepted: lists; {remedy}")
    lengths = series.list.len().fill_null(0).cast(pl.Int64)
    return series.filter(lengths > 0).explode(), lengths.to_numpy()


def flat_weights(feature: ListFeature, series: pl.Series) -> tuple[pl.Series, Int64s]:
    """`flat_entries` of a column of weights, where one number is the weight of a list of one."""
    if not (series.dtype.is_integer() or series.dtype.is_float()):
        return flat_entries(feature, series)
    known = series.is_not_null() & series.cast(pl.Float64).is_not_nan().fill_null(True)
    return series.filter(known), known.cast(pl.Int64).to_numpy()


def _split_weights(entries: pl.Series, separator: str, place: str, rows: Int64s) -> tuple[pl.Series, Floats]:
    """`split_weight` of each entry: values (null where missing) and their weights [M]. rows: [M], where each is, for errors."""
    texts = canonical_series(entries)
    pattern = f"(?s)^(.*){pl.escape_regex(separator)}(.*)$"  # the first part takes all it can: split at the last one
    values, behind = texts.str.extract_groups(pattern).struct.unnest().get_columns()
    distinct_weights, _, inverse = distinct([behind])
    weights = np.array([weight_of(w or "") for (w,) in distinct_weights.iter_rows()], dtype=np.float64)[inverse]
    empty = (values == "").fill_null(False) | texts.is_null()
    bad = np.flatnonzero(np.isnan(weights) & ~empty.to_numpy())
    if len(bad):
        i = int(bad[0])
        raise UserError(f"{place}, row {rows[i]}: {no_weight(texts[i], separator)}")
    return values.replace("", None), weights


def columns_of(feature: Feature, series: Columns) -> list[pl.Series]:
    """The columns a feature reads, from one series, several, or a struct of them."""
    if not isinstance(series, pl.Series):
        return list(series)
    if not isinstance(series.dtype, pl.Struct):
        return [series]
    parts: Mapping[str, pl.Series] = series.struct.unnest().to_dict()
    for column in source_columns(feature):
        if column not in parts:
            raise UserError(f"feature {feature.name!r}: no {column!r} in the struct; {nearest(column, parts)}")
    return [parts[column] for column in source_columns(feature)]
