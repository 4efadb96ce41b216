"""Delimited raw text: what is malformed is counted, and nothing else is."""

from __future__ import annotations

import gzip
from pathlib import Path

import polars as pl
import pytest

from finerank.datasets.raw import fields, find, lines, marked, numbered, ranks, raw_lines, sound, told
from finerank.errors import UserError

COLUMNS: dict[str, type[pl.DataType]] = {"a": pl.Int64, "b": pl.String, "c": pl.Float64}


def test_lines_are_kept_or_counted(tmp_path: Path) -> None:
    text = b"1,x,2.5\r\n\n-2,caf\xe9, 3 \n,x,1\n3,,1\n4,x,\n5,x\n6,x,1,1\n7.5,x,1\n8,x,1e1"
    for name in ("t.csv", "t.csv.gz"):
        (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
        frame = fields(tmp_path / name, COLUMNS)
        assert told(frame, "t") == {"t: read": 9, "t: kept": 3, "t: malformed": 6}
        assert sound(frame).collect().rows() == [(1, "x", 2.5), (-2, "caf\ufffd", 3.0), (8, "x", 10.0)]
        assert sound(fields(tmp_path / name, COLUMNS, optional=("b", "c"))).collect()["a"].to_list() == [1, -2, 3, 4, 8]


def test_a_header_is_found_by_name_and_blanks_around_it_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("\ufeffc,a ,other, b\n1,2,3,x\n")
    assert sound(fields(tmp_path / "t.csv", COLUMNS, header=True)).collect().rows() == [(2, "x", 1.0)]
    with pytest.raises(UserError, match="no column 'aa' in the first line; did you mean 'a'"):
        fields(tmp_path / "t.csv", {"aa": pl.Int64}, header=True)
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(UserError, match="no column 'a' in the first line"):
        fields(tmp_path / "empty.csv", COLUMNS, header=True)


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
def test_an_empty_file_has_no_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.json").write_bytes(content)
    assert list(raw_lines(tmp_path / "t.json")) == []


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    text = b"\xef\xbb\xbf1,x,1\n2,y,2\n"
    for name in ("t.csv", "t.csv.gz"):
        (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
        assert list(raw_lines(tmp_path / name)) == [b"1,x,1\n", b"2,y,2\n"]
        assert lines(tmp_path / name).collect()["line"].to_list() == ["1,x,1", "2,y,2"]
        assert sound(fields(tmp_path / name, COLUMNS)).collect()["a"].to_list() == [1, 2]


def test_a_line_may_hold_any_byte(tmp_path: Path) -> None:
    """A control character in one line neither stops the reading of all the others nor cuts its own short."""
    (tmp_path / "t.csv").write_bytes(b"1,x,1\n2,y\x1ez,2\n3,\x00\x1f,3\n\x1e\n")
    frame = fields(tmp_path / "t.csv", COLUMNS)
    assert told(frame) == {"read": 4, "kept": 3, "malformed": 1}
    assert sound(frame).collect()["b"].to_list() == ["x", "y\x1ez", "\x00\x1f"]


@pytest.mark.parametrize(
    "content",
    [
        # without the time, which would name the test otherwise in each of pytest's workers
        pytest.param(gzip.compress(b"a,b,c\n" + b"1,x,1\n" * 5_000, mtime=0)[:-20], id="cut"),
        pytest.param(b"a,b,c\n1,x,1\n", id="not packed"),
    ],
)
def test_a_damaged_gzip_file_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    """Cut, or not packed at all: said by name, whoever reads it."""
    path = tmp_path / "t.csv.gz"
    path.write_bytes(content)
    for read in (lambda: fields(path, COLUMNS, header=True), lambda: lines(path), lambda: list(raw_lines(path))):
        with pytest.raises(UserError, match=r"t\.csv\.gz: cannot be unpacked .* is the file whole\?"):
            read()


def test_a_header_in_another_encoding_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("a,b,c\n1,x,1\n".encode("utf-16"))
    with pytest.raises(UserError, match=r"the first line is no UTF-8 text .* save the file as UTF-8"):
        fields(tmp_path / "t.csv", COLUMNS, header=True)


def test_the_first_fault_counts() -> None:
    frame = pl.LazyFrame({"x": [1, 2, 3, None], "fault": [None, "malformed", None, None]})
    assert told(marked(frame, "large", pl.col("x") > 1)) == {"read": 4, "kept": 2, "large": 1, "malformed": 1}


def test_find(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").touch()
    assert find(tmp_path, "b.csv", "a.csv").name == "a.csv.gz"
    (tmp_path / "a.csv").touch()
    with pytest.raises(UserError, match=r"holds a\.csv and a\.csv\.gz; leave one"):
        find(tmp_path, "a.csv")
    with pytest.raises(UserError, match=r"no file b\.csv"):
        find(tmp_path, "b.csv")


def test_numbers_and_ranks() -> None:
    codes, values = numbered(pl.Series(["b", "a", "b"]))
    assert (codes.tolist(), values.to_list()) == ([0, 1, 0], ["b", "a"])
    assert ranks(pl.Series([5, 5, 3, 5]).to_numpy()).tolist() == [0, 1, 0, 2]
