"""Texts as numbers: the compiled loops and their plain twins against loops in Python, and each other in a whole data set."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_blocks import WIDE, content, wide

from finerank.data.fit import Occurrences
from finerank.data.lists import joined_events, list_events
from finerank.data.prepare import prepare
from finerank.data.scratch import Scratch
from finerank.data.staged import Ids
from finerank.data.texts import NOWHERE, NULL, Integers, Joined, dictionary, order, packed
from finerank.kernels import build, texts
from finerank.schema import History

compiled = pytest.mark.skipif(build.library("data") is None, reason="no compiled loops here")

ODD = [
    "",
    "0",
    "-0",
    "00",
    "+5",
    "05",
    "-",
    "--1",
    " 5",
    "5 ",
    "5.",
    "1e3",
    "٣",
    "é",
    "\x00",
    "a" * 40,
    "1" * 8,
    "b" * 8,
]
ODD += [str(2**63 - 1), str(2**63), str(-(2**63)), str(-(2**63) + 1), "9" * 19, "1" + "0" * 18, "1" * 30]
TEXT = st.none() | st.sampled_from(ODD) | st.integers(-30, 30).map(str) | st.text(max_size=14)


def entries(rows: list[str | None], separator: str | None) -> list[str | None]:
    """What a column holds, entry by entry; None: missing."""
    if separator is None:
        return [row or None for row in rows]
    return [entry or None for row in rows if row for entry in row.split(separator)]


def as_integer(entry: str | None) -> int | None:
    """The int64 that an entry writes, `NULL` for none at all, None for anything else."""
    if entry is None:
        return NULL
    try:
        value = int(entry)
    except ValueError:
        return None
    return value if str(value) == entry and -(2**63) < value < 2**63 else None


def column_of(rows: list[str | None], separator: str | None) -> pl.Series | Joined:
    column = pl.Series("x", [None, *rows, "cut"], dtype=pl.String)[1:-1]  # a slice: it begins within its buffers
    if separator is None:
        return column
    made = Joined.of(column, separator)
    if made is None:  # switched off
        lengths = [len(entries([row], separator)) for row in rows]
        made = Joined(column, separator, np.array(lengths, dtype=np.int64), entries(rows, separator).count(None))
    return made


@settings(max_examples=150, deadline=None)
@given(
    st.lists(TEXT | st.lists(TEXT.filter(bool), max_size=4).map("^".join), max_size=12),
    st.sampled_from([None, "^"]),
    st.sampled_from([None, 0, -7, 2**31, 2**63 - 1]),
    st.booleans(),
)
def test_integers_are_what_python_reads(
    rows: list[str | None], separator: str | None, base: int | None, loops: bool
) -> None:
    expected = [as_integer(entry) for entry in entries(rows, separator)]
    with build.switched(loops):
        found = Integers.of(column_of(rows, separator), base)
    known = [value for value in expected if value is not None and value != NULL]
    if None in expected or (base is not None and any(abs(value - base) >= 2**31 for value in known)):
        assert found is None
        return
    if found is None:  # from no base of theirs are all within reach
        assert base is None
        assert max(known) - min(known) >= 2**31
        return
    distances = found.distances.tolist()
    assert [NULL if d == NOWHERE else found.base + d for d in distances] == expected
    assert base is None or found.base == base
    assert (found.low, found.high) == (min(known), max(known)) if known else found.low > found.high


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(TEXT, max_size=9), max_size=4), st.sampled_from([None, "^"]), st.booleans())
def test_codes_stand_for_texts(blocks: list[list[str | None]], separator: str | None, loops: bool) -> None:
    with build.switched(loops):
        codes = dictionary()
        found = [code for rows in blocks for code in codes.codes(column_of(rows, separator)).tolist()]
        names = [None, *codes.texts().to_list()]
        assert codes.size == len(names) - 1 == len(set(names[1:]))
    assert [names[code] for code in found] == [entry for rows in blocks for entry in entries(rows, separator)]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(ODD) | st.text(st.sampled_from("a\x00é~"), max_size=12), max_size=20),
    st.integers(0, 3),
    st.booleans(),
)
def test_texts_are_put_in_order_and_packed(rows: list[str], most: int, loops: bool) -> None:
    """By falling counts, then by bytes; equal ones stay as they came."""
    column = column_of([*rows], None)
    assert isinstance(column, pl.Series)
    counts = np.array([(7 * i) % (most + 1) for i in range(len(rows))], dtype=np.int64)
    with build.switched(loops):
        ordered, plain = order(column, counts).tolist(), order(column).tolist()
        bytes_, ends = packed(column)
    assert plain == sorted(range(len(rows)), key=lambda i: rows[i].encode())
    assert ordered == sorted(range(len(rows)), key=lambda i: (-counts[i], rows[i].encode()))
    assert bytes_.tobytes() == "".join(rows).encode()
    assert [bytes_[a:b].tobytes().decode() for a, b in pairwise(ends.tolist())] == rows


@compiled
def test_a_dictionary_grows_beyond_its_first_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long and short texts, of which many share their first or last bytes, over chunks of a column."""
    names = [f"{'x' * (i % 23)}{i % 5_000}{'y' * (i % 13)}" for i in range(20_000)]
    column = pl.concat([pl.Series(names[:7_000]), pl.Series(names[7_000:])], rechunk=False)
    assert column.n_chunks() == 2
    codes = texts.Dictionary()
    found = np.empty(len(column), dtype=np.uint32)
    codes.code(column, None, found)
    first = {name: code for code, name in enumerate(dict.fromkeys(names), 1)}
    assert found.tolist() == [first[name] for name in names]
    assert codes.texts().to_list() == list(first)
    monkeypatch.setattr(texts, "WINDOW", 1_000)
    assert codes.texts().to_list() == list(first)
    again = np.empty_like(found)
    codes.code(column, None, again)
    assert again.tolist() == found.tolist()


@compiled
@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([None, "", "^", "1", "1^2", "a^b^", "^a", "a^^b", "x^y^z"]), max_size=8))
def test_joined_events_are_those_of_lists(rows: list[str | None]) -> None:
    """Where the quick way takes a block, it finds what the other finds."""
    past = History(name="past", fields=("a", "b"), lists={"a": "x", "b": "y"}, separator="^")
    frame = pl.DataFrame({"x": rows, "y": rows}, schema={"x": pl.String, "y": pl.String})
    quick = joined_events(past, frame)
    events, lengths = list_events(past, frame, np.arange(len(rows)))
    missing = any(entry is None for entry in entries(rows, "^"))
    assert (quick is None) == missing
    if quick is not None:
        assert {name: column.split().to_list() for name, column in quick.items()} == events.to_dict(as_series=False)
        assert all(column.lengths.tolist() == lengths.tolist() for column in quick.values())


def test_uneven_lists_and_other_columns_are_left_to_lists() -> None:
    past = History(name="past", fields=("a", "b"), lists={"a": "x", "b": "y"}, separator="^")
    assert joined_events(past, pl.DataFrame({"x": ["1^2"], "y": ["1"]})) is None
    assert joined_events(past, pl.DataFrame({"x": [["1", "2"]], "y": ["1^2"]})) is None
    wide_mark = History(name="past", fields=("a",), lists={"a": "x"}, separator="::")
    assert joined_events(wide_mark, pl.DataFrame({"x": ["1::2"]})) is None


@settings(max_examples=100, deadline=None)
@given(st.data(), st.sampled_from([TEXT, st.none() | st.integers(-30, 30).map(str)]), st.booleans(), st.booleans())
def test_occurrences_are_counted_in_order(
    data: st.DataObject, value: st.SearchStrategy, plain: bool, named: bool
) -> None:
    """Codes by dictionary and by distance; rows as a slice or by number; weights as flags or as numbers."""
    rows = data.draw(st.lists(value, min_size=1, max_size=30))
    column = Ids(Scratch(), "x")
    column.add([pl.Series(rows, dtype=pl.String)])
    column.close()
    at = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=40)) if named else list(range(len(rows)))
    weights = [data.draw(st.integers(0, 1 if plain else 3)) for _ in at]
    found: dict[bool, list[tuple[str, int]]] = {}
    for loops in (True, False):
        with build.switched(loops):
            seen, half = Occurrences(column.size, True), len(at) // 2
            for piece in (slice(0, half), slice(half, len(at))):
                these = np.array(at[piece], dtype=np.int64) if named else piece
                seen.add(column, these, np.array(weights[piece], dtype=bool if plain else np.int64))
            found[loops] = list(zip(column.texts(seen.used()), seen.counts[seen.used()].tolist(), strict=True))
            missing = int(seen.counts[0])
    expected = Counter[str | None]()
    for row, weight in zip(at, weights, strict=True):
        if weight:
            expected[rows[row] or None] += weight
    assert missing == expected.pop(None, 0)
    assert found[True] == found[False] == list(expected.items())


@compiled
@pytest.mark.parametrize("block", [32, 10_000])
def test_a_data_set_is_the_same_with_and_without_loops(tmp_path: Path, block: int) -> None:
    for loops in (True, False):
        with build.switched(loops):
            prepare(tmp_path / str(loops), WIDE, wide(400).lazy(), block=block)
    assert content(tmp_path / "True") == content(tmp_path / "False")
