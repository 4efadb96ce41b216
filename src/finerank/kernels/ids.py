"""Coded columns read by compiled loops (`ids.cpp`); the plain twins are in `data.encode` and `data.fit`."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from finerank.kernels.arrow import pointer
from finerank.kernels.build import library

Int64s: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Coded:
    """A column of N rows as it is kept. codes: uint32 [N]; or, with a base, int32 distances: `distance - base` is the code,
    and the least int32 the code 0."""

    codes: NDArray[Any]
    base: int | None = None


def fits() -> bool:
    """Whether there is a compiled loop."""
    return library("data") is not None


def place(out: NDArray[np.int32], columns: Mapping[int, tuple[Coded, NDArray[Any]]], rows: slice | Int64s) -> None:
    """Fill columns of out int32 [n, F] with the symbols of these n rows.

    columns  by their place in out: the codes, and the symbol of each code, int32 [U + 1]
    """
    loops = library("data")
    assert loops is not None
    assert out.flags.c_contiguous
    table = np.empty((len(columns), 5), dtype=np.int64)
    for described, (i, (coded, symbols)) in zip(table, columns.items(), strict=True):
        assert symbols.dtype.itemsize == 4
        assert symbols.flags.c_contiguous
        described[:] = (*_described(coded), symbols.ctypes.data, out.ctypes.data + 4 * i)
    named, first = _named(rows)
    loops["ids_place"](
        pointer(table),
        ctypes.c_int64(len(columns)),
        pointer(named),
        ctypes.c_int64(first),
        ctypes.c_int64(len(out)),
        ctypes.c_int64(out.shape[1]),
    )


def count(
    counts: Int64s, firsts: Int64s | None, coded: Coded, rows: slice | Int64s, weights: NDArray[Any], seen: int
) -> int:
    """Add n rows to the counts of their codes, int64 [U + 1]; the number of the next row.

    firsts   int64 [U + 1], or None: in which row each code came first. These rows have the numbers from `seen` on
    weights  bool or int64 [n]: how often each row counts; one of weight 0 is no row, and has no number
    """
    loops = library("data")
    assert loops is not None
    assert counts.dtype == np.int64
    weights = np.ascontiguousarray(weights, dtype=bool if weights.dtype == bool else np.int64)
    table = np.array([*_described(coded), 0, 0], dtype=np.int64)
    named, first = _named(rows)
    call = loops["ids_count"]
    call.restype = ctypes.c_int64
    found = call(
        pointer(table),
        pointer(named),
        ctypes.c_int64(first),
        ctypes.c_int64(len(weights)),
        pointer(weights),
        ctypes.c_int64(weights.itemsize),
        pointer(counts),
        pointer(firsts),
        ctypes.c_int64(seen),
    )
    return int(found)


def _described(coded: Coded) -> tuple[int, int, bool]:
    """The first members of struct Column."""
    assert coded.codes.dtype.itemsize == 4
    assert coded.codes.flags.c_contiguous
    return coded.codes.ctypes.data, coded.base or 0, coded.base is not None


def _named(rows: slice | Int64s) -> tuple[Int64s | None, int]:
    """Which rows these are, or None and the first one."""
    return (None, rows.start) if isinstance(rows, slice) else (np.ascontiguousarray(rows, dtype=np.int64), 0)
