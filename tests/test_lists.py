"""Histories that samples bring along: both engines read the same events out of lists and joined text."""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finerank.data.dataset import Dataset
from finerank.data.encode import Fitter, encode_block
from finerank.data.lists import list_events
from finerank.data.prepare import Keys, prepare
from finerank.data.split import Split
from finerank.errors import UserError
from finerank.runtime.blocks import Block
from finerank.runtime.scorer import list_rows
from finerank.schema import Categorical, History, MultiValued, Numeric, Schema

quick = settings(derandomize=True, max_examples=60, deadline=None)
FIELDS = ("item", "price", "tags")
PAST = History(name="past", fields=FIELDS, lists={f: f"past_{f}" for f in FIELDS}, separator="^", max_length=99)
ONE = History(name="one", fields=("item",), lists={"item": "i"}, separator="^")
PADDED = replace(PAST, name="padded", padding=0)
SCHEMA = Schema(
    features=(
        Categorical(name="item", level="candidate"),
        Numeric(name="price", level="event"),
        MultiValued(name="tags", level="event", separator="|"),
    ),
    histories=(PAST, ONE, PADDED),
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


@pytest.mark.parametrize("padding", [0, "0"])
def test_what_fills_lists_up_is_no_event(padding: int | str) -> None:
    """Lists made for libraries that pad: before or behind, as numbers or text; one value, however it is written."""
    zeros = replace(ONE, padding=padding)
    assert read([[0, 0, 7, 8], [7, 0, 0, 0], [0, 0, 0, 0], None], history=zeros) == [[7, 8], [7], [], []]
    assert read([[0.0, 7.0], [7.0, math.nan]], history=zeros) == [[7.0], [7.0]]
    assert read(["a^0^0", "0^0", "00^a", ""], history=zeros) == [["a"], [], ["00", "a"], []]
    assert read([[0, 7]]) == [[0, 7]]  # a value like any other, unless it is said


def test_a_zero_beside_something_known_is_no_padding() -> None:
    """A free item: its price of 0 stays, and the lists stay in line."""
    frame = pl.DataFrame({"past_item": ["a^b^0"], "past_price": [[2.0, 0.0, 0.0]], "past_tags": ["x^y^0"]})
    events, lengths = list_events(PADDED, frame, np.array([0]))
    assert lengths.tolist() == [2]
    assert events.rows() == [("a", 2.0, "x"), ("b", 0.0, "y")]


def test_padding_of_a_log_is_refused() -> None:
    with pytest.raises(
        UserError, match="history 'past': padding is of lists, and a log of events has none; leave it out"
    ):
        History(name="past", fields=("item",), padding=0)


def test_padding_within_the_list_of_an_event() -> None:
    """What is an event says the history; what is a value of it, the feature."""
    features = (Categorical(name="item", level="candidate"), MultiValued(name="tags", level="event", padding=0))
    lists = {"item": "past_item", "tags": "past_tags"}
    schema = Schema(features=features, histories=(History(name="past", fields=("item", "tags"), lists=lists),))
    frame = pl.DataFrame({"past_item": [["a", "b"]], "past_tags": [[[3, 7, 0], [0, 0, 0]]]})
    events, _ = list_events(schema.histories[0], frame, np.array([0]))
    fitter = Fitter(schema)
    fitter.add("tags", events["tags"])
    encoder = fitter.finish()
    assert encoder.tables["tags"].names[3:] == ["3", "7"]
    bulk = encode_block(encoder, "past", events).lists["tags"]
    one = encoder.events("past", list_rows(encoder, "past", frame.row(0, named=True))).lists["tags"]
    assert bulk.lengths.tolist() == one.lengths.tolist() == [2, 0]
    assert bulk.ids.tolist() == one.ids.tolist() == [[3], [4]]


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
    st.sampled_from([None, "", "a", "b", "0"]),
    st.sampled_from([None, math.nan, 1.0, 2.5, 0.0]),
    st.lists(st.sampled_from(["x", "y", "", "0"]), max_size=2).map("|".join),
)


@quick
@given(
    st.lists(st.none() | st.lists(ENTRY, max_size=4), min_size=1, max_size=5),
    st.booleans(),
    st.sampled_from([PAST, PADDED]),
)
def test_both_engines_read_the_same_events(rows: list[list[Any] | None], joined: bool, past: History) -> None:
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
    events, lengths = list_events(past, frame, np.arange(len(rows)))
    bulk = encode_block(encoder, past.name, events)
    ends = np.cumsum(lengths)
    for i, row in enumerate(frame.iter_rows(named=True)):
        block = encoder.events(past.name, list_rows(encoder, past.name, row))
        these = slice(int(ends[i] - lengths[i]), int(ends[i]))
        assert bulk.ids[these].tolist() == block.ids.tolist()
        assert bulk.numbers[these].tolist() == block.numbers.tolist()
        of = [
            bulk.lists["tags"].ids[bulk.lists["tags"].segments == k].tolist() for k in bulk.lists["tags"].index[these]
        ]
        one = block.lists["tags"]
        assert of == [one.ids[one.segments == k].tolist() for k in one.index]


# ------------------------------------------------------------------------------------------------ weighted entries

TAGS = MultiValued(name="tags", level="event", weights="w", pooling="sum", separator="|")
OWN = MultiValued(name="tags", level="event", weight_separator=":", pooling="sum", separator="|")
FORMS = ["lists", "text in lists", "joined", "one", "own", "own in lists"]
LOG = Schema(
    features=(Categorical(name="item", level="candidate"), TAGS),
    histories=(History(name="past", fields=("item", "tags"), max_length=3, age_cuts=()),),
)
EVENT = st.tuples(
    st.sampled_from(["a", "b", "c"]),
    st.lists(st.tuples(st.sampled_from(["x", "y", "z"]), st.sampled_from([0.5, -2.0, 1.0, 0.1])), max_size=3),
)


def weighted_past(form: str) -> Schema:
    """The same history from columns of the samples. own: the weights stand in the text of the tags."""
    own = form.startswith("own")
    lists, weights = {"item": "past_item", "tags": "past_tags"}, {} if own else {"tags": "past_w"}
    past = History(
        name="past",
        fields=("item", "tags"),
        max_length=3,
        lists=lists,
        weights=weights,
        separator="^" if form in ("joined", "own") else None,
    )
    return Schema(features=(LOG.features[0], OWN) if own else LOG.features, histories=(past,))


def told(block: Block[Any], encoder: Any, these: slice) -> list[tuple[str, list[tuple[str, float]]]]:
    """What the events say, by name: item, and (tag, weight) of each of its tags."""
    items, tags, lists = encoder.tables["item"], encoder.tables["tags"], block.lists["tags"]
    out = []
    for event in range(*these.indices(len(block.ids))):
        mine = lists.segments == lists.index[event]
        entries = zip(lists.ids[mine, 0].tolist(), lists.weights[mine].tolist(), strict=True)
        out.append((items.name(int(block.ids[event, 0])), [(tags.name(t), w) for t, w in entries]))
    return out


def by_request(data: Dataset) -> list[list[tuple[str, list[tuple[str, float]]]]]:
    table, slices = data.events["past"], data.slices["past"]
    ranges = zip(slices.start.tolist(), slices.end.tolist(), strict=True)
    return [told(table.block, data.encoder, slice(start, end)) for start, end in ranges]


def counted(data: Dataset) -> dict[str, dict[str, int]]:
    """How often each value occurs in the training rows, by table."""
    tables = data.encoder.tables.items()
    return {n: dict(zip(t.names, data.fitted.tables[n].counts.tolist(), strict=True)) for n, t in tables}


def columns_of(pasts: list[list[Any]], form: str) -> dict[str, pl.Series]:
    """The columns that hold the pasts: lists of lists, lists of joined text, text joined twice, or one entry per event."""

    def joined(values: list[Any]) -> str:
        return "|".join(f"{v}" for v in values)

    items = [[item for item, _ in past] for past in pasts]
    tags = [[[tag for tag, _ in entries] for _, entries in past] for past in pasts]
    weights = [[[weight for _, weight in entries] for _, entries in past] for past in pasts]
    match form:
        case "lists":
            made = (pl.Series(items, dtype=pl.List(pl.String)), pl.Series(tags), pl.Series(weights))
        case "text in lists":
            texts = [[[joined(v) for v in past] for past in side] for side in (tags, weights)]
            made = tuple(pl.Series(side, dtype=pl.List(pl.String)) for side in (items, *texts))  # type: ignore[assignment]
        case "own" | "own in lists":
            own = [[joined([f"{t}:{w}" for t, w in entries]) for _, entries in past] for past in pasts]
            if form == "own":
                made = (pl.Series(["^".join(v) for v in side], dtype=pl.String) for side in (items, own))  # type: ignore[assignment]
            else:
                made = (pl.Series(side, dtype=pl.List(pl.String)) for side in (items, own))  # type: ignore[assignment]
            return dict(zip(("past_item", "past_tags"), made, strict=True))
        case "joined":
            texts = [[[joined(v) for v in past] for past in side] for side in (tags, weights)]
            made = tuple(pl.Series(["^".join(v) for v in side], dtype=pl.String) for side in (items, *texts))  # type: ignore[assignment]
        case _:
            one = ([[v[0] for v in past] for past in side] for side in (tags, weights))
            made = (pl.Series(items, dtype=pl.List(pl.String)), *(pl.Series(side) for side in one))  # type: ignore[assignment]
    return dict(zip(("past_item", "past_tags", "past_w"), made, strict=True))


@settings(derandomize=True, max_examples=25, deadline=None)
@given(
    st.lists(st.lists(EVENT, max_size=4), min_size=4, max_size=5),
    st.sampled_from(FORMS),
)
def test_weighted_lists_equal_the_event_log(pasts: list[list[Any]], form: str) -> None:
    """Every user has one request, so his past is the past of the request; the encoders are compared by names."""
    if form == "one":  # an event has one tag
        pasts = [[(item, entries[:1]) for item, entries in past if entries] for past in pasts]
    if form in ("joined", "own"):  # text cannot say "two values, both empty" of a single event otherwise
        pasts = [[(item, entries) for item, entries in past if entries] for past in pasts]
    pasts[0] = [("a", [("x", 0.5)]), ("b", [("y", 1.0), ("z", -2.0)][: 1 if form == "one" else 2])]
    n = len(pasts)
    samples = pl.DataFrame(
        {"user": [f"u{i}" for i in range(n)], "time": [1_000 + i for i in range(n)], "item": ["a"] * n}
        | {"label": [i % 2 for i in range(n)]}
    )
    rows = [
        {"user": f"u{i}", "time": t, "item": item, "tags": [tag for tag, _ in entries], "w": [w for _, w in entries]}
        for i, past in enumerate(pasts)
        for t, (item, entries) in enumerate(past)
    ]
    types = {
        "user": pl.String,
        "time": pl.Int64,
        "item": pl.String,
        "tags": pl.List(pl.String),
        "w": pl.List(pl.Float64),
    }
    events = pl.DataFrame(rows, schema=types)
    brought = samples.with_columns(**columns_of(pasts, form))
    keys, split = Keys(user="user", time="time"), Split(validation=0.25, test=0.25)
    with tempfile.TemporaryDirectory() as folder:
        log = prepare(Path(folder) / "log", LOG, samples.lazy(), events.lazy(), keys, split)
        lists = prepare(Path(folder) / "lists", weighted_past(form), brought.lazy(), None, keys, split)
        assert by_request(lists) == by_request(log)
        known = {
            name: dict(zip(t.names, log.fitted.tables[name].counts, strict=True))
            for name, t in log.encoder.tables.items()
        }
        for name, table in lists.encoder.tables.items():
            assert dict(zip(table.names, lists.fitted.tables[name].counts, strict=True)) == known[name]
        for i, row in enumerate(brought.iter_rows(named=True)):  # as a server reads it
            block = lists.encoder.events("past", list_rows(lists.encoder, "past", row))
            assert told(block, lists.encoder, slice(None)) == by_request(lists)[i]


def test_weighted_lists_by_hand() -> None:
    """`a` with x once and y twice as much, `b` with y; a weight alone is no event."""
    schema = weighted_past("joined")
    frame = pl.DataFrame({"past_item": ["a^b^"], "past_tags": ["x|y^y^"], "past_w": ["1|2^0.5^7"]})
    events, lengths = list_events(schema.histories[0], frame, np.array([0]))
    assert lengths.tolist() == [2]
    assert events.columns == ["item", "tags", "tags·weights"]
    assert events.rows() == [("a", "x|y", "1|2"), ("b", "y", "0.5")]


@pytest.mark.parametrize(
    ("history", "sentence"),
    [
        (
            {"weights": {}},
            r"weights names columns for \[\]; accepted: beside lists one for each weighted field, here \['tags'\]",
        ),
        ({"weights": {"item": "w"}}, r"weights names columns for \['item'\]"),
        ({"lists": {}}, "weights names columns for .* none, for there are no lists"),
    ],
)
def test_weights_without_their_column_are_refused(history: dict[str, Any], sentence: str) -> None:
    fields: dict[str, Any] = {"lists": {"item": "i", "tags": "t"}, "weights": {"tags": "w"}} | history
    with pytest.raises(UserError, match=sentence):
        Schema(features=LOG.features, histories=(History(name="past", fields=("item", "tags"), **fields),))


def test_weights_of_another_number_than_values_name_their_row() -> None:
    samples = pl.LazyFrame(
        {"item": ["a", "b"] * 4, "label": [0, 1] * 4, "past_item": [["a"]] * 8, "past_tags": [["x|y"]] * 8}
        | {"past_w": [["1|2"]] * 7 + [["1"]]}
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        pytest.raises(UserError, match="got 2 values but 1 weights; give one weight"),
    ):
        prepare(Path(folder) / "d", weighted_past("lists"), samples, split=Split(validation=0.25, test=0.25))


def test_two_fields_that_read_one_event_column_have_one_list() -> None:
    """A request's events are read by event column, so two lists of one column would be one of them."""
    features = (Categorical(name="item", level="candidate"), Categorical(name="again", level="event", column="item"))
    lists = {"item": "i", "again": "j"}
    with pytest.raises(
        UserError, match="fields 'item' and 'again' both read 'item' of an event, but lists of their own"
    ):
        Schema(features=features, histories=(History(name="past", fields=("item", "again"), lists=lists),))
    for more in ({"columns": {"again": "other"}}, {"lists": {"item": "i", "again": "i"}}):
        given: dict[str, Any] = {"lists": lists} | more
        Schema(features=features, histories=(History(name="past", fields=("item", "again"), **given),))
