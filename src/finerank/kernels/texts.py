"""Columns of text read by compiled loops (`texts.cpp`), straight from the buffers of Polars. `data.texts` has the plain twins.

n rows · m entries: those of all rows one after the other, or the rows themselves where nothing is split
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from finerank.kernels.arrow import Handed, pointer
from finerank.kernels.build import library

Int64s: TypeAlias = NDArray[np.int64]

WINDOW = 1 << 30
"""Bytes of texts from one buffer of Polars to the next, which counts them in 32 bits."""


def fits(separator: str | None = None) -> bool:
    """Whether there are compiled loops, and this separator (None: nothing is split) is one byte."""
    return (separator is None or len(separator.encode()) == 1) and library("data") is not None


def lengths(column: pl.Series, separator: str) -> tuple[Int64s, int]:
    """How many entries each text has, int64 [n] (null and empty text have none), and how many of all entries are empty."""
    out = np.empty(len(column), dtype=np.int64)
    with _opened(column) as handle:
        missing = _function("texts_lengths", ctypes.c_int64)(handle, _byte(separator), pointer(out))
    return out, int(missing)


def integers(
    column: pl.Series, separator: str | None, base: int | None, out: NDArray[np.int32]
) -> tuple[int, int, int] | None:
    """(the base, the least entry, the greatest), and in `out` [m] the entries' distances from the base; None: not all are
    integers that far. The least int32 where missing; base None: the first integer."""
    facts = np.array([base or 0, 0, 0], dtype=np.int64)
    with _opened(column) as handle:
        call, based = _function("texts_integers", ctypes.c_int), ctypes.c_int(base is not None)
        if not call(handle, _byte(separator), based, pointer(out), pointer(facts)):
            return None
    found: tuple[int, int, int] = tuple(facts.tolist())
    return found


def order(column: pl.Series, counts: Int64s | None) -> Int64s:
    """int64 [n]: the rows of a column without nulls by falling counts [n], if any, then by their bytes."""
    out = np.empty(len(column), dtype=np.int64)
    with _opened(column) as handle:
        _function("texts_order", None)(handle, ctypes.c_int64(len(column)), pointer(counts), pointer(out))
    return out


def packed(column: pl.Series) -> tuple[NDArray[np.uint8], Int64s]:
    """The texts of a column one after the other, uint8, and where each begins and ends, int64 [n + 1]."""
    ends, pack = np.empty(len(column) + 1, dtype=np.int64), _function("texts_packed", None)
    with _opened(column) as handle:
        pack(handle, pointer(ends), None)
        out = np.empty(ends[-1], dtype=np.uint8)
        pack(handle, pointer(ends), pointer(out))
    return out, ends


class Dictionary:
    """Codes 1...`size` for texts in the order of their first occurrence, 0 for null and empty text."""

    def __init__(self) -> None:
        self._handle = _function("dictionary_new", ctypes.c_void_p)()
        weakref.finalize(self, _function("dictionary_free", None), ctypes.c_void_p(self._handle))

    def code(self, column: pl.Series, separator: str | None, out: NDArray[np.uint32]) -> None:
        """Write the codes to `out` [m]; texts not met before are added."""
        with _opened(column) as handle:
            call = _function("texts_codes", None)
            call(handle, _byte(separator), ctypes.c_void_p(self._handle), pointer(out))

    @property
    def size(self) -> int:
        """How many texts there are."""
        return int(_function("dictionary_size", ctypes.c_int64)(ctypes.c_void_p(self._handle)))

    def texts(self) -> pl.Series:
        """All of them, by code."""
        handed, window = Handed(), ctypes.c_int64(WINDOW)
        _function("dictionary_all", None)(ctypes.c_void_p(self._handle), window, handed.schema, handed.array)
        return handed.take()


@contextmanager
def _opened(column: pl.Series) -> Iterator[ctypes.c_void_p]:
    """A column of the loops, for as long as it is read."""
    capsule = column.__arrow_c_stream__(None)
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    handle = _function("texts_open", ctypes.c_void_p)(ctypes.c_void_p(pointer(capsule, b"arrow_array_stream")))
    if handle is None:
        raise TypeError(f"column {column.name!r} is {column.dtype}, no text")
    try:
        yield ctypes.c_void_p(handle)
    finally:
        _function("texts_close", None)(ctypes.c_void_p(handle))


def _function(name: str, gives: Any) -> Any:
    loops = library("data")
    assert loops is not None
    function = loops[name]  # of its own: no other caller sets its type
    function.restype = gives
    return function


def _byte(separator: str | None) -> ctypes.c_int:
    return ctypes.c_int(-1 if separator is None else separator.encode()[0])
