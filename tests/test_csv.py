"""CSV files read by the compiled loop, against Polars' own reader: the same rows, types and complaints, whatever the file."""

from __future__ import annotations

import gzip
import struct
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finerank.data import csv
from finerank.data.source import scan
from finerank.errors import UserError
from finerank.kernels import build

compiled = pytest.mark.skipif(build.library("data") is None, reason="no compiled loops here")

ODD = [
    "",
    "0",
    "-0",
    "007",
    "7",
    "-7",
    "+7",
    " 7",
    "7 ",
    "1_0",
    "9007199254740993",
    "9" * 18,
    "9" * 19,
    "-" + "9" * 19,
    "1" * 30,
]
ODD += [
    "0.5",
    "-0.0",
    "1.",
    ".5",
    "-.5",
    "1e5",
    "1E-5",
    "1e+5",
    "1e",
    "1e400",
    "1e-400",
    "5e-324",
    "0.1" + "0" * 30 + "1",
    "-",
    ".",
]
ODD += [
    "nan",
    "NaN",
    "inf",
    "-inf",
    "null",
    "true",
    "a",
    "é",
    "日本",
    "\x00",
    " ",
    "a b",
    "x" * 11,
    "x" * 12,
    "x" * 13,
    "y" * 300,
]
ODD += ["\r", "a\r", "\r\r", "2026-11-27", '"', '"a"', '"a,b"', '"a\nb"', '""', 'a"b', "#", "'"]
PLAIN = ["", "0", "7", "-7", "12", "123456", "0.5", "-1e5", "1e-7", "a", "é", "abcdefgh", "x" * 12, "y" * 40]


DIED = "Polars panics"  # over a field that is one lone quote


def outcome(frame: pl.LazyFrame, columns: list[str] | None = None) -> Any:
    """The rows, or the complaint."""
    try:
        found = (frame if columns is None else frame.select(columns)).collect()
    except (UserError, pl.exceptions.PolarsError) as error:
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
@settings(max_examples=150, deadline=None)
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
    with tempfile.TemporaryDirectory() as folder, patch.object(csv, "BYTES", piece):
        path = Path(folder) / "x.csv"
        path.write_bytes(content.encode())
        quick, polars = both(path, set(names[len(names) - texts :]) if texts else set())
        assert quick == polars
        quick, polars = both(path, set(names), names[-1:])
        assert quick == polars


@compiled
@settings(max_examples=120, deadline=None)
@given(
    st.lists(
        st.sampled_from([*(bytes([c]) for c in b',,,,\n\n\n\r"0123.-eE+ ax\x00\xe9\xff'), b"\xc3\xa9", b"\r\n"]),
        max_size=60,
    ),
    st.integers(1, 40),
)
def test_any_bytes_are_what_polars_reads(content: list[bytes], piece: int) -> None:
    with tempfile.TemporaryDirectory() as folder, patch.object(csv, "BYTES", piece):
        path = Path(folder) / "x.csv"
        path.write_bytes(b"a,b\n1,x\n" + b"".join(content))
        for text, columns in ((set(), None), ({"b"}, None), ({"a", "b"}, ["b"])):
            quick, polars = both(path, text, columns)
            assert quick == polars or polars == DIED


@compiled
@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.none() | st.integers(-(10**18) + 1, 10**18 - 1),
            st.none() | st.floats(allow_nan=False, allow_infinity=False),
            st.none() | st.text(st.characters(exclude_characters='",\r\n', exclude_categories=["Cs"]), min_size=1),
        ),
        min_size=1,
        max_size=30,
    ),
    st.integers(20, 200),
    st.sampled_from([repr, "{:e}".format, "{:.3f}".format, "{:.17g}".format]),
    st.sampled_from(["\n", "\r\n"]),
)
def test_plain_files_are_read_by_the_loop(rows: list[tuple[Any, ...]], piece: int, write: Any, newline: str) -> None:
    """Every block of them, and to the last bit. What is written is Python's, which rounds as IEEE 754 wants it."""
    written = [["" if a is None else str(a), "" if b is None else write(b), c or ""] for a, b, c in rows]
    wanted = [(a, None if b is None else float(write(b)), c) for a, b, c in rows]
    schema = pl.Schema({"a": pl.Int64, "b": pl.Float64, "c": pl.String})
    with tempfile.TemporaryDirectory() as folder, patch.object(csv, "BYTES", piece):
        path = Path(folder) / "x.csv"
        path.write_text(newline.join(["a,b,c", *map(",".join, written), ""]), encoding="utf-8", newline="")
        parts = list(csv._File(path, ",", schema).blocks(schema.names()))
    plain = [part for part in parts if part is not None]
    assert len(plain) == len(parts)
    found = pl.concat(plain)
    assert found.schema == schema
    assert [tuple(map(exact, row)) for row in found.rows()] == [tuple(map(exact, row)) for row in wanted]


@compiled
@pytest.mark.parametrize("line", [4_998, 4_999, 5_000, 9_998, 9_999, 10_000, 10_001, 19_999])
@pytest.mark.parametrize("late", ["0.5", "x", ""])
def test_types_are_those_of_the_lines_that_polars_looks_at(tmp_path: Path, line: int, late: str) -> None:
    """A number with a fraction, text, or the first value at all, so far down the file."""
    path = tmp_path / "x.csv"
    usual = "" if not late else "7"
    values = [usual] * line + [late or "7"] + [usual] * (20_000 - line - 1)
    path.write_text("".join(["a,b\n", *(f"1,{value}\n" for value in values)]))
    quick, polars = both(path, set())
    assert quick == polars
    path.write_text("".join(["a,b\n", *(f"z,{value}\n" for value in values)]))
    quick, polars = both(path, {"a"})
    assert quick == polars


@compiled
def test_types_of_whole_numbers_are_found_without_polars(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("".join(["a,b,c\n", *(f"x{i},{i},{-i}\n" for i in range(20_000))]))
    found = csv.numbered(path, ",", ["a", "b", "c"], {"a"}, 10_000)
    assert found == {"a": pl.String, "b": pl.Int64, "c": pl.Int64}
    assert csv.numbered(path, ",", ["a", "b", "c"], set(), 10_000) is None  # a text
    assert csv.numbered(path, ",", ["a", "b", "c"], {"a"}, 30_000) is None  # fewer lines
    assert csv.numbered(path, ",", ["a", "b", "d"], {"a"}, 10_000) is None  # another file


@compiled
def test_polars_goes_on_where_a_file_is_not_plain(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    lines = [f"{i},x{i}" for i in range(1_000)]
    lines[700] = '700,"x700"'
    path.write_text("\n".join(["a,b", *lines]))
    with patch.object(csv, "BYTES", 500):
        parts = list(csv._File(path, ",", pl.Schema({"a": pl.Int64, "b": pl.String})).blocks(["a", "b"], 0))
        assert parts[0] is not None
        assert sum(part is None for part in parts) == 1
        frame = scan(path, {"b"})
        assert frame.collect().rows() == [(i, f"x{i}") for i in range(1_000)]
        assert frame.select("b").head(800).collect()["b"].to_list() == [f"x{i}" for i in range(800)]
        assert frame.filter(pl.col("a") % 350 == 0).collect()["a"].to_list() == [0, 350, 700]
        assert frame.select(pl.len()).collect().item() == 1_000
        assert frame.slice(695, 10).collect()["a"].to_list() == list(range(695, 705))
        assert sum(block.height for block in frame.collect_batches(chunk_size=64)) == 1_000


@compiled
def test_other_files_are_read_by_polars(tmp_path: Path) -> None:
    content = "a,b\n" + "".join(f"{i},x\n" for i in range(50))
    for name, raw in {
        "bom": b"\xef\xbb\xbf" + content.encode(),
        "gzip": gzip.compress(content.encode()),
        "header": b'"a","b"' + content.encode()[3:],
        "latin": content.replace("x", "é").encode("latin-1"),
        "blank": content.replace("9,x", "\n9,x").encode(),
        "only a header": b"a,b\n",
        "bare header": b"a,b",
        "nothing": b"",
    }.items():
        path = tmp_path / f"{name}.csv"
        path.write_bytes(raw)
        quick, polars = both(path, {"b"})
        assert quick == polars, name


@compiled
def test_what_was_read_is_let_go_of(tmp_path: Path) -> None:
    """The memory of columns is used again, and not kept by what described them."""
    path = tmp_path / "x.csv"
    path.write_text("".join(["a,b\n", *(f"{i},{i:040d}\n" for i in range(100_000))]))

    def read() -> int:
        for _ in range(5):
            for block in scan(path, {"b"}).collect_batches():
                assert block.width == 2
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = read()
    assert read() < before + 20_000_000  # five times 6 MB, had nothing been let go of
