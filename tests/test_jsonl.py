"""JSON lines: the rows and types of a log that is kept so, from end to end too, and the sentence of every complaint."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import polars as pl
import pyarrow as pa
import pytest
import test_run
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from finerank.cli.app import verbs
from finerank.data import source
from finerank.data.source import collect, scan
from finerank.errors import UserError


def written(folder: Path, lines: Iterable[str], name: str = "x.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def held(path: Path, text: Iterable[str] = ()) -> tuple[dict[str, Any], list[tuple[Any, ...]]]:
    """Types and rows."""
    frame = scan(path, set(text))
    found = collect(frame, frame.collect_schema().names(), "samples")
    assert found.schema == frame.collect_schema()
    return dict(found.schema), found.rows()


# ------------------------------------------------------------------------------------------------ rows and types


def test_what_lines_hold(tmp_path: Path) -> None:
    """Each of its kind; what a line lacks, and null, is null; lines of blanks are no rows."""
    lines = ['{"i": 9007199254740993, "f": 1, "b": true, "l": [1, null], "o": {"k": [1]}}', "", " \t"]
    lines += ['{"f": 0.5, "t": "é\\n", "l": [], "e": [], "n": null, "m": 7}', '{"i": -5, "m": "x", "l": null}']
    types, rows = held(written(tmp_path, lines))
    assert types == {"i": pl.Int64, "f": pl.Float64, "b": pl.Boolean, "l": pl.List(pl.Int64), "o": pl.String} | {
        "t": pl.String,
        "e": pl.List(pl.String),
        "n": pl.Null,
        "m": pl.String,
    }
    assert rows == [
        (9007199254740993, 1.0, True, [1, None], '{"k": [1]}', None, None, None, None),
        (None, 0.5, None, [], None, "é\n", [], None, "7"),
        (-5, None, None, None, None, None, None, None, "x"),
    ]


def test_ids_are_exact_whatever_they_look_like(tmp_path: Path) -> None:
    lines = ['{"u": "007", "h": 18446744073709551615, "p": ["007", 9007199254740993]}', '{"u": 7, "h": 7.0, "p": []}']
    types, rows = held(written(tmp_path, lines), ("u", "h", "p", "not there"))
    assert types == {"u": pl.String, "h": pl.String, "p": pl.List(pl.String)}
    assert rows == [("007", "18446744073709551615", ["007", "9007199254740993"]), ("7", "7", [])]
    types, rows = held(written(tmp_path, lines))  # not named: no number of 64 bits is rounded
    assert types["h"] == pl.String
    assert rows[0][1] == "18446744073709551615"


def test_a_column_of_nulls_is_of_no_type_where_all_lines_were_seen(tmp_path: Path) -> None:
    path = written(tmp_path, ['{"a": null}'] * 2)
    assert held(path) == ({"a": pl.Null}, [(None,), (None,)])
    written(tmp_path, ['{"a": null}'] * 10_000 + ['{"a": "x"}'])
    assert held(path)[1][-1] == ("x",)


def test_entries_that_come_late_are_not_lost(tmp_path: Path) -> None:
    """Polars' own types would make nulls of them."""
    lines = ['{"p": []}'] * 10_000 + ['{"p": ["a", 1]}']
    assert held(written(tmp_path, lines))[1][-1] == (["a", "1"],)


def test_some_rows_some_columns(tmp_path: Path) -> None:
    path = written(tmp_path, ["", *(f'{{"a": {i}, "b": "x{i}"}}\n' for i in range(3_000))])
    frame = scan(path)
    assert frame.head(2).collect().rows() == [(0, "x0"), (1, "x1")]
    assert frame.select(pl.len()).collect().item() == 3_000
    assert frame.filter(pl.col("a") % 1_000 == 0).select("b").collect()["b"].to_list() == ["x0", "x1000", "x2000"]
    assert frame.slice(2_990, 3).collect()["a"].to_list() == [2_990, 2_991, 2_992]


def test_files_of_a_pattern_are_of_one_type(tmp_path: Path) -> None:
    """A column that the first file lacks, numbers that turn into others."""
    written(tmp_path, ['{"a": 1}'], "1.jsonl")
    written(tmp_path, ['{"b": [2], "a": 0.5}'], "2.jsonl")
    assert held(tmp_path / "*.jsonl")[1] == [(1.0, None), (0.5, [2])]
    written(tmp_path, ['{"a": 1}', "{"], "3.jsonl")
    with pytest.raises(UserError, match=r"3\.jsonl: line 2 is not JSON"):
        scan(tmp_path / "*.jsonl")


OF_ONE_KIND: list[st.SearchStrategy[Any]] = [
    st.none() | st.integers(-(2**63), 2**63 - 1),
    st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
    st.none() | st.booleans(),
    st.none() | st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.none() | st.lists(st.integers(-(2**63), 2**63 - 1) | st.none(), max_size=3),
    st.none() | st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), max_size=3),
]


@settings(max_examples=100, deadline=None)
@given(st.data(), st.booleans())
def test_what_python_writes_is_read_again(data: st.DataObject, ascii_only: bool) -> None:
    """Types settled by the first two of the lines: a later one either fits or is named."""
    kinds = data.draw(st.lists(st.sampled_from(OF_ONE_KIND), min_size=1, max_size=4))
    rows = data.draw(st.lists(st.tuples(*kinds), min_size=1, max_size=6))
    names = ["a", "b", "c", "d"][: len(kinds)]
    with tempfile.TemporaryDirectory() as folder:
        lines = [json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=ascii_only) for row in rows]
        path = written(Path(folder), lines)
        assert held(path)[1] == rows
        with patch.object(source, "LOOKED_AT", 2):
            try:
                found = held(path)[1]
            except UserError as error:
                fits = "the first 2 lines hold" in str(error)
            else:
                fits = len(found) == len(rows)
            assert fits


# ------------------------------------------------------------------------------------------------ complaints

USUAL = ['{"a": 1, "t": "x", "p": [1]}'] * 2
ONE = "; accepted: one JSON object in every line; "
WRONG = {
    "cut off": ('{"a": 1, "t"', rf"is not JSON \(.*, character \d+\){ONE}mend or remove the line"),
    "two": ('{"a": 1}{"a": 2}', rf"is not JSON \(Extra data, character 9\){ONE}"),
    "no JSON": ("a,t,p", rf"is not JSON \(Expecting value, character 1\){ONE}"),
    "not a number": ('{"a": NaN}', rf"is not JSON \(NaN is no number in JSON: write null\){ONE}"),
    "an array": ("[1, 2]", rf"holds \[1, 2\]{ONE}"),
    "null": ("null", rf"holds null{ONE}"),
}
UNFIT = {
    "text for a number": ('{"a": "1"}', "'a' holds \"1\", and the first 2 lines hold whole numbers of 64 bits there; "),
    "a fraction": ('{"a": 1.5}', r"'a' holds 1\.5, and the first 2 lines hold whole numbers"),
    "true": ('{"a": true}', "'a' holds true, and the first 2 lines hold whole numbers"),
    "too large": ('{"a": 9223372036854775808}', "'a' holds 9223372036854775808, and the first 2 lines hold whole"),
    "one for an array": ('{"p": 1}', "'p' holds 1, and the first 2 lines hold arrays of whole numbers"),
    "other entries": ('{"p": [1, "x"]}', r"'p' holds \[1, \"x\"\], and the first 2 lines hold arrays of whole numbers"),
    "an array for a text": ('{"t": ["x"]}', r"'t' holds \[\"x\"\], and the first 2 lines hold texts there"),
}


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "ndjson.zst"])
@pytest.mark.parametrize("what", [*WRONG, *UNFIT])
def test_a_line_that_does_not_fit_is_named(tmp_path: Path, what: str, kind: str) -> None:
    line, sentence = (WRONG | UNFIT)[what]
    text = "".join(f"{line}\n" for line in [*USUAL, "", line, *USUAL]).encode()
    path = tmp_path / f"x.{kind}"
    path.write_bytes(
        gzip.compress(text) if kind.endswith("gz") else pa.compress(text, "zstd", True) if "." in kind else text
    )
    with patch.object(source, "LOOKED_AT", 2), pytest.raises(UserError, match=rf"x\.{kind}: line 4:? {sentence}"):
        held(path)
    if what in WRONG:  # among the lines that tell the types
        with pytest.raises(UserError, match=rf"x\.{kind}: line 4 {sentence}"):
            scan(path)


def test_other_complaints(tmp_path: Path) -> None:
    for lines, sentence in (
        (["[", '{"a": 1}', "]"], r"line 1 is not JSON .*; of one array of objects, jq -c '\.\[\]' makes lines$"),
        (['[{"a": 1}]'], r'line 1 holds \[{"a": 1}\]; .*; of one array of objects, jq'),
        (["{", '"a": 1', "}"], "line 1 is not JSON .*; of objects over several lines, jq -c . makes lines$"),
        (['\ufeff{"a": 1}'], "line 1 is not JSON .*; save the file without a byte order mark$"),
        (
            ['{"a": 1}', '{"a": [1]}'],
            r"line 2: 'a' holds \[1\], and lines before hold no arrays there; .* as \[\] or null$",
        ),
        (["", " "], "not readable as JSON lines: no line has a key; is the file whole?"),
        (["[" * 100_000], "line 1 is not JSON"),
    ):
        with pytest.raises(UserError, match=rf"x\.jsonl: {sentence}"):
            scan(written(tmp_path, lines))
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": "x"}\n{"a": "x"}\n{"a": "\xe9"}\n')
    for lines_looked_at in (2, 3):
        with (
            patch.object(source, "LOOKED_AT", lines_looked_at),
            pytest.raises(UserError, match=r"x\.jsonl: line 3 is not UTF-8, .*iconv -f latin1 -t utf-8$"),
        ):
            held(path)
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n{"a": 3')
    with pytest.raises(UserError, match=r"x\.jsonl: line 3 is not JSON .*; is the file whole\?$"):
        held(path)
    packed = tmp_path / "x.jsonl.gz"
    packed.write_bytes(gzip.compress(b'{"a": 1}\n' * 100_000)[:-60])
    with pytest.raises(UserError, match=r"x\.jsonl\.gz: cannot be unpacked .*; is the file whole\?$"):
        held(packed)


# ------------------------------------------------------------------------------------------------ from end to end


def finerank(*words: object) -> None:
    verbs()([str(w) for w in words], standalone_mode=False)


def logs() -> tuple[pl.DataFrame, pl.DataFrame]:
    """Samples with lists of tags and of past items, and events."""
    samples, events = tiny.frames(requests=150)
    items = samples["item"].unique().sort()
    past = [[items[(i * k) % len(items)] for k in range(i % 5)] for i in range(samples["request"].n_unique())]
    samples = samples.drop("conversion").with_columns(
        past_item=pl.Series(past).gather(samples["request"].rank("dense") - 1)
    )
    return samples, events


@pytest.mark.parametrize("past", ["lists", "events"])
def test_a_log_gives_what_it_gives_as_parquet(tmp_path: Path, past: str) -> None:
    """A recipe, a run with list columns, scores of users and items never seen, and the judgement of a file."""
    samples, events = logs()
    strange = samples.head(60).with_columns(
        user=pl.lit("nobody"),
        item=pl.when(pl.col("item").is_first_distinct()).then(pl.col("item")).otherwise(pl.lit("new")),
    )
    cold = strange.with_columns(pl.lit(None).alias(name) for name in ("tags", "past_item"))  # nothing but null
    told, runs, scores = [], [], []
    for kind, write in {
        "parquet": pl.DataFrame.write_parquet,
        "jsonl": pl.DataFrame.write_ndjson,
        "jsonl.gz": partial(pl.DataFrame.write_ndjson, compression="gzip"),
    }.items():
        at = tmp_path / kind
        at.mkdir()
        for name, frame in (("samples", samples), ("events", events), ("new", strange), ("cold", cold)):
            write(frame.drop("past_item", strict=False) if past == "events" else frame, at / f"{name}.{kind}")
        log = ("--events", at / f"events.{kind}") if past == "events" else ()
        finerank("init", at / f"samples.{kind}", *log, "--request", "request", "-o", at / "recipe.toml")
        finerank("train", at / "recipe.toml", "-o", at / "run", "--set", "training.epochs=1")
        finerank("evaluate", at / "run", "--samples", at / f"samples.{kind}", *log)
        finerank("predict", at / "run", "--samples", at / f"new.{kind}", "-o", at / f"scores.{kind}")
        judged = next((at / "run").glob("evaluation_*.json")).read_text()
        text = [t.replace(f".{kind}", "").replace(str(at), "") for t in ((at / "recipe.toml").read_text(), judged)]
        told.append(text)
        runs.append(test_run.lasting(at / "run"))
        finerank("predict", at / "run", "--samples", at / f"cold.{kind}", "-o", at / f"scores-cold.{kind}")
        frame = pl.concat([scan(at / f"scores{of}.{kind}", {"user"}).collect() for of in ("", "-cold")])
        scores.append(frame.cast({"request": pl.String}))
    assert "[[history]]" in told[0][0]
    assert ("past_item" in told[0][0]) == (past == "lists")
    assert "multivalued" in told[0][0]
    assert told[1:] == told[:1] * 2
    assert runs[1:] == runs[:1] * 2
    assert scores[0].height == 120
    for other in scores[1:]:
        assert_frame_equal(other, scores[0], check_dtypes=False, rel_tol=1e-6)
