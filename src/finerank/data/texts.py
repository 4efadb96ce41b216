"""Texts as numbers: integers where they write integers, else codes of a dictionary that grows from block to block.

Both come of compiled loops where there are any (`kernels.texts`), and of Polars otherwise; the numbers mean the same.
n rows · m entries of joined text, all rows one after the other
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from finerank.kernels import texts as loops

Int64s: TypeAlias = NDArray[np.int64]

NULL = np.iinfo(np.int64).min
NOWHERE = np.iinfo(np.int32).min
"""Stands for the distance of a missing integer."""

INT64 = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32)
"""Integer types whose every value is an int64."""

_LEAST = np.array([0] + [10**i for i in range(1, 19)], dtype=np.int64)  # of 1, 2, ... digits; "0" has one


@dataclass(frozen=True)
class Joined:
    """The entries of joined text (`a^b^c`) as one column, without their texts being made.

    column   of texts; null or empty: no entry
    lengths  int64 [n], entries of each row · missing: how many of all entries are empty
    """

    column: pl.Series
    separator: str
    lengths: Int64s
    missing: int

    @staticmethod
    def of(column: pl.Series, separator: str) -> Joined | None:
        """None where there are no loops for it: split it by other means."""
        return Joined(column, separator, *loops.lengths(column, separator)) if loops.fits(separator) else None

    def split(self) -> pl.Series:
        """The entries as texts [m]."""
        return self.column.filter(pl.Series(self.lengths > 0)).str.split(self.separator).explode()

    def __len__(self) -> int:
        return int(self.lengths.sum())


Texts: TypeAlias = pl.Series | Joined


@dataclass(frozen=True)
class Integers:
    """Integers as distances from a base.

    distances  int32 [m], `NOWHERE` where missing · low, high: the least and the greatest integer (low > high: all are missing)
    """

    distances: NDArray[np.int32]
    base: int
    low: int
    high: int

    @staticmethod
    def of(column: Texts, base: int | None, out: NDArray[np.int32] | None = None) -> Integers | None:
        """The column's values, if each is an integer, or the canonical text of one, within an int32 of the base; else None.

        base  None: one of them · out: int32 [m], where the distances are to be; None: anywhere
        """
        out = np.empty(len(column), dtype=np.int32) if out is None else out
        text, separator = (column.column, column.separator) if isinstance(column, Joined) else (column, None)
        if text.dtype == pl.String and loops.fits(separator):
            found = loops.integers(text, separator, base, out)
            return None if found is None else Integers(out, *found)
        if isinstance(column, Joined):
            column = column.split()
        values = _read(column) if column.dtype == pl.String else _taken(column)
        return (
            None if values is None else _plain(values, column.null_count() > 0 or column.dtype == pl.String, base, out)
        )


def _plain(values: Int64s, some_missing: bool, base: int | None, out: NDArray[np.int32]) -> Integers | None:
    missing = values == NULL if some_missing else None
    known = values if missing is None else values[~missing]
    if not len(known):
        out[:] = NOWHERE
        return Integers(out, base or 0, 0, -1)
    low, high = int(known.min()), int(known.max())
    base = low if base is None else base
    if low - base <= NOWHERE or high - base >= -NOWHERE:
        return None
    np.subtract(values, base, out=out, casting="unsafe")  # no int64 array between
    if missing is not None:
        out[missing] = NOWHERE
    return Integers(out, base, low, high)


def _read(column: pl.Series) -> Int64s | None:
    head = column.head(100)
    if head.cast(pl.Int64, strict=False).null_count() > ((head == "") | head.is_null()).sum():
        return None  # no need to look at the rest
    values = column.cast(pl.Int64, strict=False)
    length = column.str.len_bytes()
    missing = values.is_null() if values.null_count() else None
    if missing is not None:
        if (length.filter(missing).fill_null(0) > 0).any():
            return None
        values, length = values.set(missing, 0), length.set(missing, 1)
    out: Int64s = values.to_numpy()
    digits, size = length.to_numpy(), out
    if out.min(initial=0) < 0:
        digits, size = digits - (out < 0), np.abs(out)
    # no plus sign, no zeros in front, no "-0": as many digits as the number needs
    if digits.max(initial=1) > 19 or (size < _LEAST[digits - 1]).any():
        return None
    return out if missing is None else np.where(missing.to_numpy(), NULL, out)


def _taken(column: pl.Series) -> Int64s | None:
    if column.dtype not in INT64:
        return None
    out = column.cast(pl.Int64).fill_null(NULL).to_numpy()
    return None if out.min(initial=0) == NULL and (out == NULL).sum() > column.null_count() else out


def order(column: pl.Series, counts: Int64s | None = None) -> Int64s:
    """int64 [n]: the rows of a column without nulls by falling counts [n], if any, then by their bytes."""
    if loops.fits() and len(column) < 1 << 32:
        return loops.order(column, None if counts is None else np.ascontiguousarray(counts, dtype=np.int64))
    keys = [column.alias("text")] if counts is None else [pl.Series("count", -counts), column.alias("text")]
    return pl.DataFrame(keys).with_row_index("row").sort([key.name for key in keys])["row"].cast(pl.Int64).to_numpy()


def packed(column: pl.Series) -> tuple[NDArray[np.uint8], Int64s]:
    """The texts of a column without nulls one after the other, uint8, and where each begins and ends, int64 [n + 1]."""
    if loops.fits():
        return loops.packed(column)
    ends = np.concatenate([[0], column.str.len_bytes().cast(pl.Int64).cum_sum().to_numpy()])
    return np.frombuffer("".join(column.to_list()).encode(), dtype=np.uint8), ends.astype(np.int64)


# ------------------------------------------------------------------------------------------------ dictionaries


class Dictionary(Protocol):
    """Codes 1...`size` for texts, 0 for null and empty text."""

    @property
    def size(self) -> int:
        """How many texts there are."""
        ...

    def codes(self, column: Texts, out: NDArray[np.uint32] | None = None) -> NDArray[np.uint32]:
        """uint32 [m], in `out` if it is given; texts not met before are added."""
        ...

    def texts(self) -> pl.Series:
        """All of them, by code."""
        ...


def dictionary() -> Dictionary:
    """An empty one."""
    return _Compiled() if loops.fits() else _Plain()


class _Compiled:
    def __init__(self) -> None:
        self._loops = loops.Dictionary()

    @property
    def size(self) -> int:
        return self._loops.size

    def codes(self, column: Texts, out: NDArray[np.uint32] | None = None) -> NDArray[np.uint32]:
        out = np.empty(len(column), dtype=np.uint32) if out is None else out
        text, separator = (column.column, column.separator) if isinstance(column, Joined) else (column, None)
        self._loops.code(text, separator, out)
        return out

    def texts(self) -> pl.Series:
        return self._loops.texts()


class _Plain:
    """By Polars' own categories; they are kept for as long as some series of the type is there."""

    def __init__(self) -> None:
        self.size = 0
        self._texts: list[pl.Series] = []
        self._categories = pl.Series([], dtype=pl.Categorical(pl.Categories.random()))

    def codes(self, column: Texts, out: NDArray[np.uint32] | None = None) -> NDArray[np.uint32]:
        texts = (column.split() if isinstance(column, Joined) else column).replace("", None)
        physical = texts.cast(self._categories.dtype).to_physical().fill_null(np.iinfo(np.uint32).max)
        # one more than the greatest is 0
        codes: NDArray[np.uint32] = np.add(physical.to_numpy().astype(np.uint32, copy=False), np.uint32(1), out=out)
        new = np.flatnonzero(codes > self.size)
        if len(new):
            count = int(codes[new].max()) - self.size
            first = np.empty(count, dtype=np.int64)
            first[codes[new][::-1].astype(np.int64) - self.size - 1] = new[::-1]
            self._texts.append(texts.gather(first))
            self.size += count
        return codes

    def texts(self) -> pl.Series:
        return pl.concat(self._texts) if self._texts else pl.Series([], dtype=pl.String)
