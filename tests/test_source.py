"""Sources: what each kind of file gives, how times are read, and the sentence of every error."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pytest

from finerank.data.prepare import Keys
from finerank.data.source import can_write, collect, microseconds, scan, sink
from finerank.errors import UserError
from finerank.models import registry
from finerank.recipe import DataOptions, Recipe
from finerank.schema import Categorical, Cross, History, Numeric, Schema, Task

FRAME = pl.DataFrame({"id": ["007", "7", "x"], "n": [1, 2, 3], "tags": ["a|b", "", None]})
SECOND = 1_000_000
Y2020 = 1_577_836_800 * SECOND
"""Microseconds until 2020-01-01 UTC."""


def write_tsv(frame: pl.DataFrame, path: Path) -> None:
    frame.write_csv(path, separator="\t")


def packed(kind: Literal["gzip", "zstd"], separator: str) -> Callable[[pl.DataFrame, Path], None]:
    return lambda frame, path: frame.write_csv(path, separator=separator, compression=kind, check_extension=False)


WRITERS: dict[str, Callable[[pl.DataFrame, Path], Any]] = {
    "parquet": pl.DataFrame.write_parquet,
    "csv": pl.DataFrame.write_csv,
    "tsv": write_tsv,
    "csv.gz": packed("gzip", ","),
    "tsv.gz": packed("gzip", "\t"),
    "csv.zst": packed("zstd", ","),
    "TSV.ZST": packed("zstd", "\t"),
    "jsonl": pl.DataFrame.write_ndjson,
    "ndjson": pl.DataFrame.write_ndjson,
    "jsonl.gz": partial(pl.DataFrame.write_ndjson, compression="gzip"),
    "ndjson.zst": partial(pl.DataFrame.write_ndjson, compression="zstd"),
    "arrow": pl.DataFrame.write_ipc,
    "feather": pl.DataFrame.write_ipc,
    "ipc": pl.DataFrame.write_ipc,
}


# ------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_file_gives_the_same_rows(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"log.{kind}"
    WRITERS[kind](FRAME, path)
    got = collect(scan(path, text=["id"]), ["n", "id", "n"], "samples")
    assert got.columns == ["n", "id"]  # asked for twice, given once
    assert got.rows() == [(1, "007"), (2, "7"), (3, "x")]
    assert scan(str(path)).collect_schema().names() == FRAME.columns


@pytest.mark.parametrize("kind", WRITERS)
def test_a_pattern_reads_all_its_files_in_the_order_of_their_names(kind: str, tmp_path: Path) -> None:
    for day in (3, 1, 2):
        (tmp_path / f"day={day}").mkdir()
        for hour in (1, 0):
            WRITERS[kind](pl.DataFrame({"hour": [10 * day + hour]}), tmp_path / f"day={day}" / f"h{hour}.{kind}")
    one = scan(tmp_path / "day=2" / f"h*.{kind}").collect()
    assert one["hour"].to_list() == [20, 21]
    every = scan(tmp_path / "day=*" / f"h*.{kind}").collect()  # a pattern in the folder's name too
    assert every["hour"].to_list() == [10, 11, 20, 21, 30, 31]


@pytest.mark.parametrize(
    ("kind", "other", "told"),
    [
        (
            "parquet",
            pl.DataFrame({"x": [1], "y": ["a"]}),
            "data type mismatch for column x: incoming: Int64 != target: Float64",
        ),
        (
            "parquet",
            pl.DataFrame({"x": [1.5], "y": [1.5]}, schema={"x": pl.Float32, "y": pl.Float64}),
            "mismatch for column x",
        ),
        ("parquet", pl.DataFrame({"y": ["a"]}), "did not find column x"),
        ("csv", pl.DataFrame({"y": ["a"], "x": [1.5]}), "schema names differ"),
        ("csv", pl.DataFrame({"x": [1.5], "y": ["a"], "z": [1]}), "schema lengths differ"),
    ],
)
def test_files_of_a_pattern_that_differ_are_no_broken_files(
    kind: str, other: pl.DataFrame, told: str, tmp_path: Path
) -> None:
    """It asked whether the file was whole, and gave advice on Polars' own arguments."""
    WRITERS[kind](pl.DataFrame({"x": [0.5], "y": ["a"]}), tmp_path / f"day-1.{kind}")
    WRITERS[kind](other, tmp_path / f"day-2.{kind}")
    with pytest.raises(UserError, match=told) as error:
        collect(scan(tmp_path / f"day-*.{kind}"), ["x"], "samples")
    assert str(error.value).endswith(
        "the files differ: write the same columns, of the same types and in one order, into all"
    )
    assert "hint" not in str(error.value)
    assert "consider" not in str(error.value)


def test_a_column_that_later_files_have_does_no_harm(tmp_path: Path) -> None:
    """A log that had got one column more was refused, though nothing asked for it."""
    pl.DataFrame({"x": [0.5]}).write_parquet(tmp_path / "day-1.parquet")
    pl.DataFrame({"new": ["a"], "x": [1.5]}).write_parquet(tmp_path / "day-2.parquet")
    assert collect(scan(tmp_path / "day-*.parquet"), ["x"], "samples")["x"].to_list() == [0.5, 1.5]


def test_ids_of_csv_are_text_only_where_asked(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("id,n\n007,007\n7,7\n", encoding="utf-8")
    got = scan(path, text={"id", "not there"}).collect()
    assert got["id"].to_list() == ["007", "7"]
    assert got["n"].to_list() == [7, 7]


def test_a_recipe_asks_for_text_where_ids_are_and_for_numbers_where_numbers_are(tmp_path: Path) -> None:
    """The user "007" of the events is the user "007" of the samples, whatever else their columns hold."""
    samples, events = tmp_path / "samples.csv", tmp_path / "events.csv"
    samples.write_text("request,user,time,item,a,price,label\n00,007,5,01,1,2.5,1\n", encoding="utf-8")
    events.write_text("user,time,thing,kind\n007,3,01,1\nbob,4,02,2\n", encoding="utf-8")
    declared = Schema(
        features=(
            Categorical(name="item", level="candidate"),
            Cross(name="ab", level="candidate", of=("a", "item")),
            Numeric(name="price", level="candidate"),
        ),
        histories=(History(name="past", fields=("item",), columns={"item": "thing"}),),
        tasks=(Task(name="label"),),
    )
    keys = Keys(request="request", user="user", time="time")
    options = DataOptions(samples=str(samples), events=str(events), keys=keys)
    recipe = Recipe(data=options, schema=declared, model=registry.composition("lr"))
    got, past = recipe.sources()
    assert past is not None
    row = got.collect().row(0, named=True)
    assert row == {"request": "00", "user": "007", "time": 5, "item": "01", "a": "1", "price": 2.5, "label": 1}
    assert past.collect().rows() == [("007", 3, "01", 1), ("bob", 4, "02", 2)]


def test_reading_is_lazy(tmp_path: Path) -> None:
    """Opening looks at the head of a file; a bad row is told when it is read."""
    path = tmp_path / "log.csv"
    path.write_text("n\n" + "1\n" * 10_000 + "one\n", encoding="utf-8")
    frame = scan(path)
    with pytest.raises(UserError, match=r"samples: reading \['n'\] failed: .*is the file whole\?"):
        collect(frame, ["n"], "samples")


def damaged(kind: str, path: Path) -> None:
    WRITERS[kind](FRAME, path)
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize("kind", ["parquet", "ipc", "arrow"])
def test_a_truncated_file_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"log.{kind}"
    damaged(kind, path)
    with pytest.raises(UserError, match=rf"log\.{kind}: not readable as {kind}: .*; is the file whole\?$"):
        scan(path)


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    for kind in WRITERS:
        path = tmp_path / f"log.{kind}"
        path.write_bytes(b"")
        with pytest.raises(UserError, match=rf"log\.{kind}: not readable as "):
            scan(path)


def test_a_file_that_is_not_there_or_of_no_known_kind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.csv: no such file; paths in a recipe are relative"):
        scan(tmp_path / "no.csv")
    with pytest.raises(UserError, match=r"\*\.csv: no such file"):
        scan(tmp_path / "*.csv")
    with pytest.raises(
        UserError, match=r"log\.xlsx: cannot tell what it holds from its name; accepted: \.parquet, \.csv"
    ):
        scan(tmp_path / "log.xlsx")
    for name in ("log.parquet.gz", "log.gz", "log.csv.gz.zst"):  # what is no text is not packed as a whole
        with pytest.raises(UserError, match=r"accepted: .*; files of text packed too \(\.csv\.gz, \.csv\.zst\)"):
            scan(tmp_path / name)


@pytest.mark.parametrize("kind", ["parquet", "csv", "tsv", "csv.gz", "csv.zst", "tsv.gz", "jsonl", "ndjson.gz"])
def test_what_is_written_is_what_its_name_says(kind: str, tmp_path: Path) -> None:
    """Under another name at first too; and a packed file is a packed one."""
    frame = FRAME.drop("tags")
    for first in (tmp_path / f"a.csv.{kind}", tmp_path / f"b.{kind}.partial"):
        last = tmp_path / first.name.removesuffix(".partial")
        sink(frame.lazy(), first, last)
        first.rename(last)
        assert can_write(last)
        assert scan(last, {"id"}).collect().equals(frame)
        begins = {"gz": b"\x1f\x8b", "zst": b"\x28\xb5", "parquet": b"PAR1"}.get(kind.rpartition(".")[2])
        assert last.read_bytes().startswith(begins or (b"{" if kind == "jsonl" else b"id"))
    assert not can_write(tmp_path / "x.parquet.gz")


def test_a_missing_column_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"events: no column 'itme'; did you mean 'item'\? accepted: item, user"):
        collect(pl.LazyFrame({"user": [1], "item": [2]}), ["user", "itme"], "events")


# ------------------------------------------------------------------------------------------------ times

ZONE = timezone(timedelta(hours=2))


@pytest.mark.parametrize(
    ("values", "dtype", "unit", "expected"),
    [
        ([5, -1], pl.Int64, "s", [5 * SECOND, -SECOND]),
        ([5], pl.Int32, "ms", [5_000]),
        ([5], pl.UInt64, "us", [5]),
        ([Y2020 + 1, 2**53 + 1], pl.Int64, "us", [Y2020 + 1, 2**53 + 1]),  # never through a float
        ([1e9, 2.0], pl.Float64, "s", [10**9 * SECOND, 2 * SECOND]),
        ([date(2020, 1, 1), date(2020, 1, 2)], pl.Date, "s", [Y2020, Y2020 + 86_400 * SECOND]),
        ([datetime(2020, 1, 1, 0, 0, 0, 7)], pl.Datetime("us"), "s", [Y2020 + 7]),
        ([datetime(2020, 1, 1)], pl.Datetime("ms"), "us", [Y2020]),
        ([datetime(2020, 1, 1)], pl.Datetime("ns"), "s", [Y2020]),
        ([datetime(2020, 1, 1, 2, tzinfo=ZONE)], None, "s", [Y2020]),  # the moment, not the clock on the wall
        (["2020-01-01", "2020-01-02"], pl.String, "s", [Y2020, Y2020 + 86_400 * SECOND]),
        (["2020-01-01 00:00:00", "2020-01-01 00:00:01.5"], pl.String, "s", [Y2020, Y2020 + 1_500_000]),
        (["2020-01-01T00:00:00.000007"], pl.String, "s", [Y2020 + 7]),
        (["2020-01-01T02:00:00+02:00"], pl.String, "s", [Y2020]),
        (["2020-01-01T00:00:00Z"], pl.String, "s", [Y2020]),
        (["2020-01-01T00:00", "2020-01-01 00:01"], pl.String, "s", [Y2020, Y2020 + 60 * SECOND]),
        # each text by itself, whatever stands before it
        (
            ["2020-01-01", "2020-01-01T00:00:00.5Z", "2020-01-01 00:00-01"],
            pl.String,
            "s",
            [Y2020, Y2020 + 500_000, Y2020 + 3_600 * SECOND],
        ),
        ([253_402_300_799], pl.Int64, "s", [253_402_300_799 * SECOND]),
    ],
)
def test_times_are_microseconds(values: list[Any], dtype: Any, unit: Any, expected: list[int]) -> None:
    got = microseconds(pl.Series("t", values, dtype=dtype), unit, "samples")
    assert got.dtype == "int64"
    assert got.tolist() == expected


@pytest.mark.parametrize(
    ("series", "unit", "sentence"),
    [
        (pl.Series("t", [1, None]), "s", r"samples: 1 rows have no time in column 't'; drop them first"),
        (pl.Series("t", [1.5]), "s", r"samples: column 't' has times with a fraction; give whole s or datetimes"),
        (pl.Series("t", [float("nan")]), "ms", r"times with a fraction; give whole ms"),
        (pl.Series("t", [float("inf")]), "ms", r"times with a fraction"),
        (
            pl.Series("t", ["2020-01-01", "yesterday"]),
            "s",
            r"column 't' holds 'yesterday'; accepted: numbers, datetimes",
        ),
        (pl.Series("t", ["soon", "2020-01-01"]), "s", r"column 't' holds 'soon'; accepted: numbers, datetimes, ISO"),
        (pl.Series("t", ["1700000000"]), "s", r"ISO 8601 texts; these are texts: make whole numbers of the column$"),
        (pl.Series("t", [True]), "s", r"column 't' is Boolean; accepted for times: integers, dates, datetimes"),
        (pl.Series("t", [[1]]), "s", r"column 't' is List\(Int64\); accepted for times"),
        # a wrong unit: microseconds taken for seconds would wrap around in silence
        (
            pl.Series("t", [Y2020]),
            "s",
            rf"column 't' holds {Y2020}, which in s is beyond the year 9999; is the unit right",
        ),
        (pl.Series("t", [253_402_300_801]), "s", r"holds 253402300801, which in s is beyond the year 9999"),
        (pl.Series("t", [-Y2020]), "ms", r"which in ms is beyond the year 9999"),
        (pl.Series("t", [1e30]), "us", r"which in us is beyond the year 9999"),
        (pl.Series("t", [2**64 - 1], dtype=pl.UInt64), "us", r"beyond the year 9999"),
    ],
)
def test_bad_times_are_told(series: pl.Series, unit: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        microseconds(series, unit, "samples")


@pytest.mark.parametrize(
    "text",
    [
        "05/04/2023",
        "11/04/2023",
        "14.11.2023",
        "05-04-2023 10:00",
        "2023/11/14",
        "2023-1-5",
        "2023-11-04 22",
        "2023-11-04 25:00",
        "2023-02-30",
        "2023-11-04\n",
        " 2023-11-04",
        "20231104",
        "",
    ],
)
@pytest.mark.parametrize("first", [[], ["2023-11-04 22:17"]])
def test_texts_whose_order_is_a_guess_are_no_times(text: str, first: list[str]) -> None:
    """05/04/2023 is May in America and April elsewhere: nothing is guessed, whichever text stands first."""
    with pytest.raises(UserError) as told:
        microseconds(pl.Series("t", [*first, text]), "s", "samples")
    accepted = "numbers, datetimes, ISO 8601 texts; write them as 2023-11-04 22:17"
    assert str(told.value) == f"samples: column 't' holds {text!r}; accepted: {accepted}"


def test_times_of_a_csv_file_are_read_whole(tmp_path: Path) -> None:
    """Quoted or not, at the line's end, and with the line ends of Windows."""
    (tmp_path / "t.csv").write_bytes(b'x,t\r\n1,2020-01-01 00:00:01\r\n2,"2020-01-01T00:00"\r\n')
    column = collect(scan(tmp_path / "t.csv"), ["t"], "samples")["t"]
    assert microseconds(column, "s", "samples").tolist() == [Y2020 + SECOND, Y2020]
