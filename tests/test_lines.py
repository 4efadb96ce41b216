"""What Polars says nothing about in a CSV file, or does not say where: the sentence of every complaint."""

from __future__ import annotations

import csv as python
import gzip
import io
import tempfile
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finerank.data import lines
from finerank.data.source import blocks, collect, scan
from finerank.errors import UserError
from finerank.kernels import build


@pytest.fixture(params=[True, False], ids=["loops", "Polars"])
def loops(request: pytest.FixtureRequest) -> Iterator[None]:
    with build.switched(request.param):
        yield


# ------------------------------------------------------------------------------------------------ fields of a line

RAGGED = {
    "more": ("a,b\n1,2\n3,4,5\n6,7\n", 'line 3 has 3 fields, and its header has 2; .* Mend the line; .*"quotes"$'),
    "a separator at the end": ("a,b\n1,2,\n", "line 2 has 3 fields, and its header has 2; "),
    "fewer": ("a,b\n1,2\n3\n", "line 3 has 1 field, and its header has 2; accepted: as many.* Mend the line$"),
    "cut off": ("a,b\n1,2\n3", "line 3 has 1 field, and its header has 2"),
    "empty": ("a,b\n1,2\n\n3,4\n", "line 3 is empty, and its header has 2; .* Remove the line$"),
    "empty at the end": ("a,b\r\n1,2\r\n\r\n", "line 3 is empty, and its header has 2"),
    "behind quotes": ('a,b\n"x,\n""y""",2\n3,4,"5\n,"\n', "line 4 has 3 fields, and its header has 2"),
    "far down": ("a,b\n" + "1,2\n" * 29_999 + "1,2,3\n", "line 30,001 has 3 fields, and its header has 2"),
    "behind empty lines": ("\n\na,b\n1,2\n3,4,5\n", "line 5 has 3 fields, and its header has 2"),
}


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize("name", RAGGED)
def test_a_line_of_other_fields_is_named_whatever_is_read(tmp_path: Path, name: str) -> None:
    """Polars cuts it where only some columns are read, and fills it with nulls always."""
    content, sentence = RAGGED[name]
    path = tmp_path / "x.csv"
    path.write_bytes(content.encode())
    for columns in (["a"], ["b"], ["a", "b"]):
        with pytest.raises(UserError, match=rf"x\.csv: {sentence}"):
            collect(scan(path, {"a"}), columns, "samples")
        with pytest.raises(UserError, match=rf"x\.csv: {sentence}"):
            list(blocks(scan(path, {"a", "b"}), columns, 10, "samples"))


@pytest.mark.usefixtures("loops")
@pytest.mark.parametrize(
    "content",
    [
        'a,b\n"1,5",2\n"3\n\n4","x""y,z"\n',
        "a,b\n,\n1,\n,2",
        "\n\r\na,b\n1,2\n",
        '\ufeff"a,x",b\n1,2\n',
        "a\n1\n\n3\n",
        "a,b\n1,x\ry\n",
    ],
)
def test_what_is_whole_is_read(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(content.encode())
    names = scan(path).collect_schema().names()
    assert collect(scan(path), names, "samples").equals(pl.read_csv(path))


@pytest.mark.usefixtures("loops")
def test_lines_of_other_files_are_counted_too(tmp_path: Path) -> None:
    """With tabs, of a pattern."""
    path = tmp_path / "x.tsv"
    path.write_text("a\tb\n1,1\t2\n3\t4\t5\n")
    with pytest.raises(UserError, match=r"x\.tsv: line 3 has 3 fields, and its header has 2"):
        collect(scan(path), ["a"], "samples")
    for name, content in (("1.csv", "a,b\n1,2\n"), ("2.csv", "a,b\n3,4\n5,6,7\n")):
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=r"2\.csv: line 3 has 3 fields, and its header has 2"):
        collect(scan(tmp_path / "*.csv"), ["a"], "samples")


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "gzip in two": lambda text: gzip.compress(text[:7]) + gzip.compress(text[7:]),
    "zlib": zlib.compress,
    "zstd": lambda text: pa.compress(text, codec="zstd", asbytes=True),
}


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("name", RAGGED)
def test_lines_of_a_packed_file_are_counted_too(tmp_path: Path, kind: str, name: str) -> None:
    content, sentence = RAGGED[name]
    path = tmp_path / "x.csv"
    path.write_bytes(PACKED[kind](content.encode()))
    for size in (5, lines.BYTES):
        with patch.object(lines, "BYTES", size), pytest.raises(UserError, match=rf"x\.csv: {sentence}"):
            collect(scan(path, {"a"}), ["a"], "samples")


@pytest.mark.parametrize("kind", PACKED)
def test_a_whole_packed_file_is_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(PACKED[kind](b'a,b\n"1,5",2\n"3\n\n4","x""y,z"\n'))
    assert collect(scan(path), ["a"], "samples")["a"].to_list() == ["1,5", "3\n\n4"]
    path.write_bytes(PACKED[kind](b"a,a\n1,2\n"))
    with pytest.raises(UserError, match=r"x\.csv: its header names the column 'a' twice"):
        scan(path)


@pytest.mark.parametrize("kind", ["gzip", "zlib"])
def test_a_packed_file_that_is_cut_off_is_refused(tmp_path: Path, kind: str) -> None:
    """Of zlib Polars would read what there is."""
    path = tmp_path / "x.csv"
    whole = PACKED[kind](b"a,b\n" + b"".join(b"%d,%d\n" % (i, i * i) for i in range(50_000)))
    path.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"x\.csv: .*; is the file whole\?"):
        collect(scan(path, {"a"}), ["a"], "samples")
    path.write_bytes(whole[:-40_000] + bytes(40_000))
    with pytest.raises(UserError, match=r"x\.csv: .*; is the file whole\?"):
        collect(scan(path, {"a"}), ["a"], "samples")


@pytest.mark.parametrize("kind", PACKED)
def test_a_packed_file_is_never_whole_in_memory(tmp_path: Path, kind: str) -> None:
    """40 MB of lines, packed to some KB, pass in a fifth of that; Polars' own memory is not counted."""
    path = tmp_path / "x.csv"
    path.write_bytes(PACKED[kind](b"a,b\n" + b"1,2\n" * 10_000_000))
    tracemalloc.start()
    with patch.object(lines, "BYTES", 1 << 18):
        lines.refuse_ragged(path, ",")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 8_000_000


def test_the_first_rows_are_read_without_a_look_at_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a,b\n" + '1,"2"\n' * 5_000 + "1\n")
    with patch.object(lines, "BYTES", 100):
        assert scan(path, {"a", "b"}).head(3).collect().height == 3
    with pytest.raises(UserError, match=r"line 5,002 has 1 field"):
        collect(scan(path), ["a"], "samples")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.lists(st.text(st.sampled_from('a1,"\n é'), max_size=4), min_size=1, max_size=3), min_size=1, max_size=8
    ),
    st.integers(1, 30),
    st.booleans(),
)
def test_lines_are_counted_as_python_counts_them(rows: list[list[str]], size: int, ended: bool) -> None:
    written = io.StringIO(newline="")
    python.writer(written, lineterminator="\n", quoting=python.QUOTE_ALL).writerows([["a", "b"], *rows])
    content = written.getvalue() if ended else written.getvalue()[:-1]
    bad = [n for n, row in enumerate(rows) if len(row) != 2]
    with tempfile.TemporaryDirectory() as folder, patch.object(lines, "BYTES", size):
        path = Path(folder) / "x.csv"
        path.write_bytes(content.encode())
        if not bad:
            lines.refuse_ragged(path, ",")
            return
        line = 2 + sum(1 + sum(field.count("\n") for field in row) for row in rows[: bad[0]])
        with pytest.raises(UserError, match=f"line {line} has {len(rows[bad[0]])} field"):
            lines.refuse_ragged(path, ",")


# ------------------------------------------------------------------------------------------------ the header


def test_a_column_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    for header in ("user,cat,cat,label", '"cat",cat,user,cat'):
        path.write_text(f"{header}\n1,2,3,4\n")
        with pytest.raises(UserError, match=r"x\.csv: its header names the column 'cat' twice; rename or remove one"):
            scan(path)
    path.write_text("cat,cat_duplicated_0,,\n1,2,,\n")  # it is called so; and columns without a name ask for nothing
    assert scan(path).collect_schema().names()[:2] == ["cat", "cat_duplicated_0"]


def test_another_separator_is_told(tmp_path: Path) -> None:
    for suffix, separator, sentence in (
        ("csv", ";", r"look separated by semicolons, .*; save it with commas$"),
        ("csv", "|", r"look separated by bars \(\|\), .*; save it with commas$"),
        ("csv", "\t", r"look separated by tabs, and are accepted .* by tabs in \.tsv; rename it to \.tsv$"),
        ("tsv", ",", r"look separated by commas, and are accepted .*; rename it to \.csv$"),
        ("csv.gz", "\t", r"look separated by tabs, .*; rename it to \.tsv\.gz$"),
        ("tsv", ";", r"look separated by semicolons, .*; save it with tabs$"),
    ):
        path = tmp_path / f"x.{suffix}"
        content = separator.join(["request_id", "user_id", "label"]) + "\n" + separator.join("123") + "\n"
        path.write_bytes(gzip.compress(content.encode()) if suffix.endswith("gz") else content.encode())
        with pytest.raises(UserError, match=rf"x\.{suffix}: its header is one column, 'request_id.*': .*{sentence}"):
            scan(path)
    path = tmp_path / "one.csv"
    path.write_text("n\n1\n")
    assert scan(path).collect().rows() == [(1,)]


# ------------------------------------------------------------------------------------------------ the encoding


@pytest.mark.usefixtures("loops")
def test_another_encoding_is_told_with_the_line_and_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    remedy = r"is not UTF-8, .*; save the file as UTF-8, for example with iconv -f latin1 -t utf-8$"
    path.write_bytes("a,b\n1,x\n2,é\n".encode("latin-1"))
    with pytest.raises(UserError, match=rf"x\.csv: line 3 {remedy}"):
        collect(scan(path), ["a", "b"], "samples")
    path.write_bytes("a,é\n1,x\n".encode("latin-1"))
    with pytest.raises(UserError, match=rf"x\.csv: line 1 {remedy}"):
        scan(path)
    path.write_bytes("a,b\n1,x\n".encode("utf-16"))
    with pytest.raises(UserError, match=r"x\.csv: line 1 is not UTF-8.*iconv -f utf-16 -t utf-8$"):
        scan(path)
