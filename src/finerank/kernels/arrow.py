"""Columns that compiled loops hand over to Polars, which takes them as they are: nothing is copied (`arrow.h`)."""

from __future__ import annotations

import ctypes
from typing import Any

import polars as pl
from numpy.typing import NDArray

from finerank.kernels.build import library

SCHEMA, ARRAY = 72, 80
"""Bytes of Arrow's structs."""

RELEASE = {SCHEMA: 56, ARRAY: 64}
"""Where in them the function lies that lets go of the content; null: it is gone."""


class Handed:
    """Room for one column.

    schema, array   where a loop writes an Arrow schema, and an array
    """

    def __init__(self) -> None:
        self._schema, self._array = ctypes.create_string_buffer(SCHEMA), ctypes.create_string_buffer(ARRAY)
        self.schema = ctypes.c_void_p(ctypes.addressof(self._schema))
        self.array = ctypes.c_void_p(ctypes.addressof(self._array))

    def take(self) -> pl.Series:
        """What was written, once."""
        try:
            return pl.Series(self)
        finally:  # of what Polars has only read, or not even that
            _release(self._schema)
            _release(self._array)

    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[Any, Any]:
        """What Polars asks for: it moves the array, and what owns it, out of the struct."""
        capsule = ctypes.pythonapi.PyCapsule_New
        capsule.restype, capsule.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return capsule(self.schema, b"arrow_schema", None), capsule(self.array, b"arrow_array", None)


def pointer(array: NDArray[Any] | None) -> ctypes.c_void_p:
    """Where an array lies, as a loop is told; None: null."""
    return ctypes.c_void_p(None if array is None else array.ctypes.data)


def forget() -> None:
    """Give back the memory that loops keep for the next columns: data are prepared, and training needs it."""
    loops = library("data")
    if loops is not None:
        loops["columns_forget"]()


def _release(struct: ctypes.Array[ctypes.c_char]) -> None:
    release = ctypes.c_void_p.from_buffer(struct, RELEASE[len(struct)])
    if release.value:
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(release.value)(ctypes.addressof(struct))
