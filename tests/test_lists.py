"""Histories that samples bring along: both engines read the same events out of lists and joined text."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finerank.data.encode import Fitter, encode_block
from finerank.data.lists import list_events
from finerank.errors import UserError
from finerank.runtime.scorer import list_rows
from finerank.schema import Categorical, History, MultiValued, Numeric, Schema

quick = settings(derandomize=True, max_examples=60, deadline=None)
FIELDS = ("item", "price", "tags")
PAST = History(name="past", fields=FIELDS, lists={f: f"past_{f}" for f in FIELDS}, separator="^", max_length=99)
ONE = History(name="one", fields=("item",), lists={"item": "i"}, separator="^")
SCHEMA = Schema(
    features=(
        Categorical(name="item", level="candidate"),
        Numeric(name="price", level="event"),
        MultiValued(name="tags", level="event", separator="|"),
    ),
    histories=(PAST, ONE),
)


def read(column: Any, dtype: Any = None, history: History = ONE) -> list[list[Any]]:
    frame = pl.DataFrame({"i": pl.Series(column, dtype=dtype)})
    events, lengths = list_events(history, frame, np.arange(frame.height))
    ends = np.cumsum(lengths)
    return [events["item"][int(e - n) : int(e)].to_list() for e, n in zip(ends, lengths, strict=True)]


def test_joined_text_by_hand() -> None:
    assert read(["a^b", "", None, "a", "^", "^a", "a^", "a^^b"]) == [
        ["a", "b"],
        [],
        [],
        ["a"],
        [],
        ["a"],
        ["a"],
        ["a", "b"],
    ]
    assert read(["a^b", None], pl.Categorical) == [["a", "b"], []]
    assert read([None, None]) == [[], []]
    assert read(["", ""]) == [[], []]
    assert read([["a", None, ""], [], None]) == [["a"], [], []]
    assert read([[1.0, math.nan], [2.0, None]]) == [[1.0], [2.0]]
    assert read([[1, 2], [3, 4]], pl.Array(pl.Int64, 2)) == [[1, 2], [3, 4]]
    assert read([["x", ""]], pl.List(pl.Categorical)) == [["x"]]


def test_an_entry_of_which_one_field_is_known_stays_in_line() -> None:
    frame = pl.DataFrame({"past_item": ["a^^c^"], "past_price": [[1.0, 2.0, None, None]], "past_tags": ["^x|y^^"]})
    events, lengths = list_events(PAST, frame, np.array([0]))
    assert lengths.tolist() == [3]
    assert events.rows() == [("a", 1.0, ""), ("", 2.0, "x|y"), ("c", None, "")]


def test_empty_text_is_one_missing_entry_beside_lists_of_one() -> None:
    frame = pl.DataFrame(
        {"past_item": ["a", "", "", None], "past_price": [[1.0], [2.0], [], []], "past_tags": ["", None, "x", ""]}
    )
    with pytest.raises(UserError, match="row 2 has 1 entries in 'past_tags' but 0 in 'past_price'"):
        list_events(PAST, frame, np.arange(4))
    events, lengths = list_events(PAST, frame[[0, 1, 3]], np.arange(3))
    assert lengths.tolist() == [1, 1, 0]
    assert events.rows() == [("a", 1.0, None), (None, 2.0, None)]


def test_lists_of_different_lengths_name_their_row() -> None:
    frame = pl.DataFrame({"past_item": ["a", "a^b"], "past_price": [[1.0], [1.0, 2.0]], "past_tags": ["x", "x"]})
    with pytest.raises(UserError) as caught:
        list_events(PAST, frame, np.array([7, 12]))
    assert str(caught.value) == (
        "history 'past': row 12 has 2 entries in 'past_item' but 1 in 'past_tags'; give lists of one length"
    )


ENTRY = st.tuples(
    st.sampled_from([None, "", "a", "b"]),
    st.sampled_from([None, math.nan, 1.0, 2.5]),
    st.lists(st.sampled_from(["x", "y", ""]), max_size=2).map("|".join),
)


@quick
@given(st.lists(st.none() | st.lists(ENTRY, max_size=4), min_size=1, max_size=5), st.booleans())
def test_both_engines_read_the_same_events(rows: list[list[Any] | None], joined: bool) -> None:
    def column(i: int) -> list[Any]:
        return [None if row is None else [entry[i] for entry in row] for row in rows]

    items, tags = column(0), column(2)
    if joined:
        items, tags = ([None if v is None else "^".join(e or "" for e in v) for v in column(i)] for i in (0, 2))
    text: Any = pl.String if joined else pl.List(pl.String)
    frame = pl.DataFrame(
        {
            "past_item": pl.Series(items, dtype=text),
            "past_price": pl.Series(column(1), dtype=pl.List(pl.Float64)),
            "past_tags": pl.Series(tags, dtype=text),
        }
    )
    fitter = Fitter(SCHEMA)
    fitter.add("item", pl.Series(["a"]))
    fitter.add("tags", pl.Series([["x"]]))
    encoder = fitter.finish()
    events, lengths = list_events(PAST, frame, np.arange(len(rows)))
    bulk = encode_block(encoder, "past", events)
    ends = np.cumsum(lengths)
    for i, row in enumerate(frame.iter_rows(named=True)):
        block = encoder.events("past", list_rows(encoder, "past", row))
        these = slice(int(ends[i] - lengths[i]), int(ends[i]))
        assert bulk.ids[these].tolist() == block.ids.tolist()
        assert bulk.numbers[these].tolist() == block.numbers.tolist()
        of = [
            bulk.lists["tags"].ids[bulk.lists["tags"].segments == k].tolist() for k in bulk.lists["tags"].index[these]
        ]
        one = block.lists["tags"]
        assert of == [one.ids[one.segments == k].tolist() for k in one.index]
