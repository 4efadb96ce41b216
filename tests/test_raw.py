"""Delimited raw text: what is malformed is counted, and nothing else is."""

from __future__ import annotations

import gzip
from pathlib import Path

import polars as pl
import pytest

from finerank.datasets.raw import fields, find, marked, numbered, ranks, sound, told
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
