"""CSV files read by the compiled loop, against Polars' own reader: the same rows, types and complaints, however odd the file."""

from __future__ import annotations

import codecs
import math
import random
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finerank.data import csv, source
from finerank.data.source import scan
from finerank.errors import UserError
from finerank.kernels import build
from finerank.kernels import csv as loops

compiled = pytest.mark.skipif(build.library("data") is None, reason="no compiled loops here")

ODD = ["", "0", "-0", "007", "7", "-7", "+7", " 7", "7 ", "1_0", "9007199254740993", "9" * 18, "9" * 19, "-" + "9" * 19, "1" * 30]
ODD += ["0.5", "-0.0", "1.", ".5", "-.5", "1e5", "1E-5", "1e+5", "1e", "1e400", "1e-400", "5e-324", "0.1" + "0" * 30 + "1", "-", "."]
ODD += ["nan", "NaN", "inf", "-inf", "null", "true", "a", "é", "日本", "\x00", " ", "a b", "x" * 11, "x" * 12, "x" * 13, "y" * 300]
ODD += ["\r", "a\r", "\r\r", "2026-11-27", '"', '"a"', '"a,b"', '"a\nb"', '""', 'a"b', "#", "'"]
PLAIN = ["", "0", "7", "-7", "12", "123456", "0.5", "-1e5", "1e-7", "a", "é", "abcdefgh", "x" * 12, "y" * 40]


DIED = "Polars panics"  # over a field that is one lone quote


@contextmanager
def small(piece: int) -> Iterator[None]:
    """Blocks of so few bytes that they end everywhere."""
    before, csv.BYTES = csv.BYTES, piece
    try:
        yield
    finally:
        csv.BYTES = before


def outcome(frame: pl.LazyFrame, columns: list[str] | None = None) -> Any:
    """The rows, or the complaint."""
    try:
        found = (frame if columns is None else frame.select(columns)).collect()
    except pl.exceptions.PolarsError as error:
        return type(error), str(error)
    except pl.exceptions.PanicException:
        return DIED
    return found.schema, [tuple(map(exact, row)) for row in found.rows()]


def exact(value: Any) -> Any:
    return struct.pack("d", value) if isinstance(value, float) else value


def both(path: Path, text: set[str], columns: list[str] | None = None) -> tuple[Any, Any]:
    """What the file holds by the loop, and by Polars."""
    found = []
    for on in (True, False):
        with build.switched(on):
            try:
                found.append(outcome(scan(path, text), columns))
            except UserError as error:
                found.append((UserError, str(error)))
    return found[0], found[1]


@compiled
@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(ODD) | st.sampled_from(PLAIN), min_size=1, max_size=4), max_size=9),
    st.integers(1, 4),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.integers(1, 60),
    st.integers(0, 3),
    st.booleans(),
)
def test_odd_files_are_what_polars_reads(
    rows: list[list[str]], width: int, newline: str, ended: bool, piece: int, texts: int, ragged: bool
) -> None:
    """Columns of any content, of which the last ones are to be read as text; lines may be of any number of fields."""
    names = ["a", "b", "c", "d"][:width]
    lines = [",".join(row if ragged else (row * width)[:width]) for row in rows]
    content = newline.join([",".join(names), *lines]) + (newline if ended else "")
    with tempfile.TemporaryDirectory() as folder, small(piece):
        path = Path(folder) / "x.csv"
        path.write_bytes(content.encode())
        quick, polars = both(path, set(names[len(names) - texts :]) if texts else set())
        assert quick == polars
        quick, polars = both(path, set(names), names[-1:])
        assert quick == polars


@compiled
@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*(bytes([c]) for c in b',,,,\n\n\n\r"0123.-eE+ ax\x00\xe9\xff'), b"\xc3\xa9", b"\r\n"]), max_size=60), st.integers(1, 40))
def test_any_bytes_are_what_polars_reads(content: list[bytes], piece: int) -> None:
    with tempfile.TemporaryDirectory() as folder, small(piece):
        path = Path(folder) / "x.csv"
        path.write_bytes(b"a,b\n1,x\n" + b"".join(content))
        for text, columns in ((set(), None), ({"b"}, None), ({"a", "b"}, ["b"])):
            quick, polars = both(path, text, columns)
            assert quick == polars or polars == DIED


@compiled
@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.none() | st.integers(-(10**18) + 1, 10**18 - 1),
            st.none() | st.floats(allow_nan=False, allow_infinity=False),
            st.none() | st.text(st.characters(blacklist_characters='",\r\n\ud800', blacklist_categories=["Cs"]), min_size=1),
        ),
        max_size=30,
    ),
    st.integers(20, 200),
    st.sampled_from([repr, "{:e}".format, "{:.3f}".format, "{:.17g}".format]),
)
def test_plain_files_are_read_by_the_loop(rows: list[tuple[Any, ...]], piece: int, write: Any) -> None:
    """Every block of them, and to the last bit."""
    written = [["" if a is None else str(a), "" if b is None else write(b), c or ""] for a, b, c in rows]
    with tempfile.TemporaryDirectory() as folder, small(piece):
        path = Path(folder) / "x.csv"
        path.write_text("\n".join(["a,b,c", *map(",".join, written)]), encoding="utf-8", newline="")
        schema = pl.Schema({"a": pl.Int64, "b": pl.Float64, "c": pl.String})
        if not path.read_bytes().endswith(b"\n") and rows:
            parts = list(csv._File(path, ",", schema).blocks(schema.names()))
            assert all(part is not None for part in parts)
            found = pl.concat([part for part in parts if part is not None])
            wanted = [(a, None if b is None else float(write(b)), c) for a, b, c in rows]
            assert [tuple(map(exact, row)) for row in found.rows()] == [tuple(map(exact, row)) for row in wanted]
            assert found.schema == schema
