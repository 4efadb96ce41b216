"""Columns that compiled loops hand over to Polars, which takes them as they are: nothing is copied (`arrow.h`)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import polars as pl

SCHEMA, ARRAY = 72, 80
"""Bytes of Arrow's structs."""


def taken(name: str, fill: Callable[[ctypes.c_void_p, ctypes.c_void_p], object]) -> pl.Series:
    """The column that `fill`, given the addresses of an Arrow schema and of an array, writes there."""
    offer = _Offer()
    fill(offer.address(offer.schema), offer.address(offer.array))
    return pl.Series(name, offer)


class _Offer:
    """What Polars asks for an array of: it moves the content, and what owns it, out of both structs."""

    def __init__(self) -> None:
        self.schema, self.array = ctypes.create_string_buffer(SCHEMA), ctypes.create_string_buffer(ARRAY)

    def address(self, struct: ctypes.Array[ctypes.c_char]) -> ctypes.c_void_p:
        return ctypes.c_void_p(ctypes.addressof(struct))

    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[Any, Any]:
        make = ctypes.pythonapi.PyCapsule_New
        make.restype, make.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return make(self.address(self.schema), b"arrow_schema", None), make(
            self.address(self.array), b"arrow_array", None
        )
