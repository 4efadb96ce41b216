"""Coded columns side by side, by a compiled loop (`ids.cpp`); its plain twin is in `data.encode`."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

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
    table = np.empty((len(columns), 5), dtype=np.int64)  # struct Column
    for described, (i, (coded, symbols)) in zip(table, columns.items(), strict=True):
        assert coded.codes.dtype.itemsize == symbols.dtype.itemsize == 4
        assert coded.codes.flags.c_contiguous
        assert symbols.flags.c_contiguous
        described[:] = (
            coded.codes.ctypes.data,
            coded.base or 0,
            coded.base is not None,
            symbols.ctypes.data,
            out.ctypes.data + 4 * i,
        )
    named = None if isinstance(rows, slice) else np.ascontiguousarray(rows, dtype=np.int64)
    loops["ids_place"](
        ctypes.c_void_p(table.ctypes.data),
        ctypes.c_int64(len(columns)),
        ctypes.c_void_p(None if named is None else named.ctypes.data),
        ctypes.c_int64(rows.start if isinstance(rows, slice) else 0),
        ctypes.c_int64(len(out)),
        ctypes.c_int64(out.shape[1]),
    )
