"""Lines of a CSV file as columns, by a compiled loop (`csv.cpp`), where they are plain. Its twin is Polars' reader."""

from __future__ import annotations

import codecs
import ctypes
from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from finerank.kernels.arrow import Handed
from finerank.kernels.build import library

KINDS = {pl.Int64: 1, pl.Float64: 2, pl.String: 3}
"""The types that are read, by number."""

SPARE = 64
"""Bytes behind the lines that the loop may look at."""

MOST = 1 << 30
"""Bytes of lines that are read at a time, at most."""


def fits(separator: str) -> bool:
    """Whether there is a compiled loop for it."""
    return len(separator.encode()) == 1 and separator not in '"\r\n.-+' and library("data") is not None


def read(
    text: NDArray[np.uint8], size: int, separator: str, names: Sequence[str | None], types: Sequence[pl.DataType]
) -> pl.DataFrame | None:
    """The columns of whole lines, the last one ended too; None: they are not plain (see `csv.cpp`), or not UTF-8.

    text   uint8 [size + SPARE], `size` of them of lines
    names  by place in a line, None for what is not read; types: of the columns, in `KINDS`
    """
    loops = library("data")
    assert loops is not None
    assert len(text) >= size + SPARE
    at, ascii_, returns = ctypes.c_void_p(text.ctypes.data), ctypes.c_int(0), ctypes.c_int(0)
    look = loops["csv_look"]
    look.restype = ctypes.c_int64
    n = look(at, ctypes.c_int64(size), ctypes.byref(ascii_), ctypes.byref(returns)) if size <= MOST else -1
    if n < 0 or not (ascii_ or _is_utf8(text[:size])):
        return None
    kinds = np.array(
        [0 if name is None else KINDS[type(dtype)] for name, dtype in zip(names, types, strict=True)], dtype=np.int64
    )
    handed = Handed()
    lines = (at, ctypes.c_int64(size), ctypes.c_int64(n), ctypes.c_int64(len(names)), ctypes.c_int(ord(separator)))
    if not loops["csv_read"](*lines, returns, ctypes.c_void_p(kinds.ctypes.data), handed.schema, handed.array):
        return None
    frame = handed.take().struct.unnest()
    frame.columns = [name for name in names if name is not None]
    return frame


def _is_utf8(text: NDArray[np.uint8]) -> bool:
    try:
        codecs.utf_8_decode(text.data)
    except UnicodeDecodeError:
        return False
    return True
