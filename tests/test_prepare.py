"""prepare(): what lands in the encoded data set, against a plain twin that loops over rows and events.

Rows and events carry their own numbers as numeric features, so that a slice can be read as "these events, in this order".
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tiny
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from finerank.data import prepare as prepare_module
from finerank.data.columns import read_manifest
from finerank.data.dataset import Dataset
from finerank.data.prepare import Keys, prepare
from finerank.data.split import NAMES, Split
from finerank.errors import UserError
from finerank.runtime.hashing import hash64
from finerank.runtime.symbols import RESERVED, VocabularyTable
from finerank.schema import (
    AGE_CUTS,
    FIRST,
    OOV,
    Bucketed,
    Categorical,
    Growing,
    History,
    MultiValued,
    Numeric,
    Schema,
    Task,
    Vocabulary,
)

SECOND = 1_000_000
CUTS = (1.0, 3.0)
Row = dict[str, Any]

SCHEMA = Schema(
    features=(
        Categorical(name="user", level="request"),
        Categorical(name="item", level="candidate", encoding=Vocabulary(min_count=2)),
        MultiValued(name="tags", level="candidate"),
        Bucketed(name="price", level="candidate", cuts=CUTS),
        Numeric(name="row", level="candidate", transform="none"),
        Numeric(name="number", level="event", transform="none"),
    ),
    histories=(
        History(name="all", fields=("item", "tags", "price", "number"), max_length=3),
        History(name="bought", fields=("number", "item"), where={"kind": 1}, max_length=2, delay=2, ties="file_order"),
        History(name="cheap", fields=("item", "number"), where={"kind": 1, "shop": "a"}, ties="file_order"),
        History(name="seen", fields=("item",), lists={"item": "seen"}, separator="|", max_length=3),
    ),
    tasks=(Task(name="click"), Task(name="buy", within="click", weight="w"), Task(name="gain", kind="regression")),
)
LOGS = ("all", "bought", "cheap")


def schema_for(keys: Keys) -> Schema:
    """file_order compares positions in one common log: without them all histories are strict."""
    if keys.sequence:
        return SCHEMA
    return replace(SCHEMA, histories=tuple(replace(h, ties="strict") for h in SCHEMA.histories))


# ------------------------------------------------------------------------------------------------ the plain twin


@dataclass
class Request:
    user: str | None
    time: int
    sequence: int
    rows: list[int]
    split: str = "train"


def plain_requests(samples: list[Row], keys: Keys, split: Split) -> list[Request]:
    groups: dict[Any, list[int]] = {}
    for i, row in enumerate(samples):
        groups.setdefault(row["request"], []).append(i)
    made = []
    for rows in groups.values():
        head = samples[rows[0]]
        sequence = min(samples[i]["seq"] for i in rows) if keys.sequence else rows[0]
        made.append(Request(head["user"], head["time"] * SECOND, sequence, rows))
    made.sort(key=lambda r: (r.time, r.sequence, r.rows[0]))
    wanted = {"test": round(split.test * len(made)), "validation": round((split.test + split.validation) * len(made))}
    for name in ("validation", "test"):
        cut = len(made) - wanted[name]
        while 0 < cut < len(made) and made[cut - 1].time == made[cut].time:
            cut -= 1
        for request in made[cut:]:
            request.split = name
    return made


def plain_visible(request: Request, events: list[Row], history: History, keys: Keys) -> list[int]:
    """Numbers of all events, of any user, that pass the filter and that the request may know, by (known_at, sequence)."""
    found = []
    for number, event in enumerate(events):
        if event["user"] is None or any(event[c] is None or str(event[c]) != str(v) for c, v in history.where.items()):
            continue
        known_at = (event["known"] if keys.known_at else event["time"] + int(history.delay)) * SECOND
        sequence = event["seq"] if keys.sequence else number
        before = known_at < request.time
        if history.ties == "file_order":
            before = (known_at, sequence) < (request.time, request.sequence)
        if before:
            found.append((known_at, sequence, number))
    return [number for _, _, number in sorted(found)]


def plain_history(request: Request, events: list[Row], history: History, keys: Keys) -> list[int]:
    seen = [n for n in plain_visible(request, events, history, keys) if events[n]["user"] == request.user]
    return seen[-history.max_length :]


def plain_list(request: Request, samples: list[Row]) -> list[str]:
    text = samples[request.rows[0]]["seen"]
    return text.split("|")[-3:] if text else []


def plain_labels(samples: list[Row], order: list[int]) -> tuple[list[list[float]], list[list[float]]]:
    labels, weights = [], []
    for i in order:
        row = samples[i]
        y = [math.nan if row[t] is None else float(row[t]) for t in ("click", "buy", "gain")]
        w = [1.0, 0.0 if row["w"] is None else float(row["w"]), 1.0]
        if y[0] != 1:
            w[1] = 0.0
        labels.append(y)
        weights.append([0.0 if math.isnan(a) else b for a, b in zip(y, w, strict=True)])
    return labels, weights


def plain_counts(samples: list[Row], events: list[Row], made: list[Request], keys: Keys) -> dict[str, Counter[Any]]:
    """Occurrences by table and value, over training rows: their own, and for each row all of its past."""
    counts: dict[str, Counter[Any]] = {name: Counter() for name in ("user", "item", "tags", "price", "all.age")}
    histories = {name: schema_for(keys).history(name) for name in LOGS}
    for request in made:
        if request.split != "train":
            continue
        for i in request.rows:
            row = samples[i]
            counts["user"][row["user"]] += 1
            past = [events[n] for name in LOGS for n in plain_history(request, events, histories[name], keys)]
            of_all = [events[n] for n in plain_history(request, events, histories["all"], keys)]
            ages = [request.time // SECOND - e["time"] for e in of_all]
            counts["all.age"].update(sum(cut <= age for cut in AGE_CUTS) for age in ages)
            counts["item"].update([row["item"], *(e["item"] for e in past), *plain_list(request, samples)])
            for source in (row, *of_all):
                counts["tags"].update(t for t in source["tags"] or [])
                counts["price"][None if source["price"] is None else sum(c <= source["price"] for c in CUTS)] += 1
    return counts


# ------------------------------------------------------------------------------------------------ the comparison


def numbers_of(data: Dataset, history: str, request: int) -> list[int]:
    slices, table = data.slices[history], data.events[history]
    block, _ = table.gather(np.arange(slices.start[request], slices.end[request]))
    return block.numbers[:, 0].astype(int).tolist()


def names_of(data: Dataset, table: str, ids: Any) -> list[str]:
    return [data.encoder.tables[table].name(int(i)) for i in ids]


def list_names(data: Dataset, lists: Any, rows: Any) -> list[list[str]]:
    """The tags of each row, by name."""
    starts = np.cumsum(lists.lengths) - lists.lengths
    at = [int(lists.index[r]) for r in rows]
    return [names_of(data, "tags", lists.ids[starts[i] : starts[i] + lists.lengths[i], 0]) for i in at]


def compare(data: Dataset, samples: list[Row], events: list[Row], keys: Keys, split: Split) -> None:
    made = plain_requests(samples, keys, split)
    order = [i for r in made for i in r.rows]
    users = data.users.to_list()
    assert users == sorted({x["user"] for x in (*samples, *events) if x["user"] is not None})
    assert [None if u < 0 else users[u] for u in data.user.tolist()] == [r.user for r in made]
    assert data.time.tolist() == [r.time for r in made]
    assert data.sequence.tolist() == [r.sequence for r in made]
    assert data.first.tolist() == [0, *itertools.accumulate(len(r.rows) for r in made)]
    assert data.candidate.numbers[:, 0].tolist() == order
    assert data.split.tolist() == [NAMES[r.split] for r in made]
    for name in NAMES:
        chosen = [i for i, r in enumerate(made) if r.split == name]
        assert data.requests_of(name).tolist() == chosen
        rows = [n for n, i in enumerate(i for i, r in enumerate(made) for _ in r.rows) if i in chosen]
        assert data.rows_of(data.requests_of(name)).tolist() == rows
        assert data.manifest["split"][name] == [len(chosen), len(rows)]

    labels, weights = plain_labels(samples, order)
    assert np.array_equal(data.labels, np.array(labels, dtype=np.float32), equal_nan=True)
    assert np.array_equal(data.weights, np.array(weights, dtype=np.float32))
    in_training = [r.split == "train" for r in made for _ in r.rows]
    for k, task in enumerate(("click", "buy", "gain")):
        inside = [(y[k], w[k]) for y, w, t in zip(labels, weights, in_training, strict=True) if t and w[k]]
        rate = sum(y * w for y, w in inside) / sum(w for _, w in inside)
        assert data.fitted.base_rates[task] == pytest.approx(rate, rel=1e-6)

    counts = plain_counts(samples, events, made, keys)
    for table in ("user", "item", "tags"):
        fitted = data.fitted.tables[table]
        least = 2 if table == "item" else 1
        values = {v: n for v, n in counts[table].items() if v is not None}
        kept = sorted((v for v, n in values.items() if n >= least), key=lambda v: (-values[v], v))
        assert data.encoder.tables[table].names == [*RESERVED, *kept]
        expected = [
            0,
            sum(n for v, n in values.items() if v not in kept),
            counts[table][None],
            *(values[v] for v in kept),
        ]
        assert fitted.counts.tolist() == expected
        assert fitted.rows == len(expected)
    assert data.fitted.tables["price"].counts.tolist() == [0, 0, *(counts["price"][v] for v in (None, 0, 1, 2))]
    ages = data.fitted.tables["all.age"].counts.tolist()
    assert ages == [0, 0, 0, *(counts["all.age"][i] for i in range(len(AGE_CUTS) + 1))]

    def known(table: str, value: str | None) -> str:
        if value is None:
            return RESERVED[2]
        return value if value in data.encoder.tables[table].names[FIRST:] else RESERVED[1]

    assert names_of(data, "user", data.request.ids[:, 0]) == [known("user", r.user) for r in made]
    assert names_of(data, "item", data.candidate.ids[:, 0]) == [known("item", samples[i]["item"]) for i in order]
    tags = list_names(data, data.candidate.lists["tags"], range(len(order)))
    assert tags == [[known("tags", t) for t in samples[i]["tags"] or []] for i in order]

    for name in LOGS:
        history = data.fitted.schema.history(name)
        for i, request in enumerate(made):
            expected = plain_history(request, events, history, keys)
            assert numbers_of(data, name, i) == expected, (name, i)
            visible = plain_visible(request, events, history, keys)
            assert data.slices[name].known[i] == len(visible)
            table = data.events[name]
            drawable = table.gather(table.by_rank[: len(visible)])[0].numbers[:, 0].astype(int).tolist()
            assert sorted(drawable) == sorted(visible)  # negatives come from what any user did and the row may know
            block, time = table.gather(np.arange(data.slices[name].start[i], data.slices[name].end[i]))
            assert time.tolist() == [events[n]["time"] * SECOND for n in expected]
            assert names_of(data, "item", block.ids[:, 0]) == [known("item", events[n]["item"]) for n in expected]
            if name == "all":
                found = list_names(data, block.lists["tags"], range(len(expected)))
                assert found == [[known("tags", t) for t in events[n]["tags"] or []] for n in expected]
    slices, table = data.slices["seen"], data.events["seen"]
    for i, request in enumerate(made):
        block, _ = table.gather(np.arange(slices.start[i], slices.end[i]))
        assert names_of(data, "item", block.ids[:, 0]) == [known("item", v) for v in plain_list(request, samples)]


def made_of(folder: Path, samples: list[Row], events: list[Row], keys: Keys, split: Split) -> Dataset:
    """Prepared from frames whose rows carry their own numbers."""
    types = {"item": pl.String, "user": pl.String, "tags": pl.List(pl.String), "price": pl.Float64}
    numbered = pl.DataFrame([{**row, "row": i} for i, row in enumerate(samples)], schema_overrides=types)
    columns = {"user": pl.String, "time": pl.Int64, "known": pl.Int64, "seq": pl.Int64, "kind": pl.Int64}
    columns |= {"shop": pl.String, "number": pl.Int64, **types}
    log = pl.DataFrame([{**e, "number": i} for i, e in enumerate(events)], schema=columns)
    return prepare(folder, schema_for(keys), numbered.lazy(), log.lazy(), keys, split)


ITEMS, TAGS = st.sampled_from(["p", "q", "r", "07", "7"]), st.sampled_from(["x", "y", "z"])
NULL = st.none()
request_of = st.fixed_dictionaries(
    {
        "user": st.one_of(NULL, st.sampled_from("AB")),
        "time": st.integers(0, 5),
        "seen": st.one_of(NULL, st.just(""), st.lists(ITEMS, min_size=1, max_size=5).map("|".join)),
    }
)
thing = {
    "item": st.one_of(NULL, ITEMS),
    "tags": st.one_of(NULL, st.lists(TAGS, max_size=3)),
    "price": st.one_of(NULL, st.sampled_from([0.5, 1.0, 2.0, 3.0, 9.0])),
}
row_of = st.fixed_dictionaries(
    {
        "of": st.integers(0, 5),
        "seq": st.integers(0, 5),
        "click": st.one_of(NULL, st.integers(0, 1)),
        "buy": st.one_of(NULL, st.integers(0, 1)),
        "w": st.one_of(NULL, st.sampled_from([0.0, 0.5, 2.0])),
        "gain": st.one_of(NULL, st.sampled_from([-1.5, 2.5])),
        **thing,
    }
)
event_of = st.fixed_dictionaries(
    {
        "user": st.one_of(NULL, st.sampled_from("ABC")),
        "time": st.integers(0, 5),
        "known": st.integers(0, 3),
        "seq": st.integers(0, 5),
        "kind": st.one_of(NULL, st.integers(0, 1)),
        "shop": st.one_of(NULL, st.sampled_from("ab")),
        **thing,
    }
)
FIRST_ROWS = [  # an early request that gives every task its two classes in training, whatever follows
    {"request": 99, "user": "A", "time": -9, "seq": 0, "seen": None, "tags": ["x"], "price": 1.0, "item": "p"}
    | {"click": c, "buy": b, "w": 1.0, "gain": 1.0}
    for c, b in ((1, 1), (1, 0), (0, 0))
]


# no shrinking: an example costs a tenth of a second
@settings(derandomize=True, max_examples=12, deadline=None, phases=[Phase.generate])
@given(
    st.lists(request_of, min_size=6, max_size=6),
    st.lists(row_of, max_size=12),
    st.lists(event_of, max_size=14),
    st.booleans(),
    st.booleans(),
)
def test_small_logs_equal_the_plain_twin(
    requests: list[Row], rows: list[Row], events: list[Row], sequence: bool, known_at: bool
) -> None:
    """Rows of a request stand anywhere in the file; everything may tie, be missing, or be known late."""
    samples = [{**requests[row["of"]], **row, "request": row["of"]} for row in rows]
    for row in samples:
        if row["click"] == 0 and row["buy"] == 1:  # a broken log: told elsewhere
            row["buy"] = 0
    samples = samples[: len(rows) // 2] + FIRST_ROWS + samples[len(rows) // 2 :]
    samples = [{k: v for k, v in row.items() if k != "of"} for row in samples]
    first = {
        "user": "A",
        "time": -30,
        "known": 1,
        "seq": 0,
        "kind": 1,
        "shop": "a",
        "item": "p",
        "tags": None,
        "price": 1,
    }
    events = [{**e, "known": e["time"] + e["known"]} for e in (first, *events)]
    keys = Keys(
        request="request",
        user="user",
        time="time",
        sequence="seq" if sequence else None,
        known_at="known" if known_at else None,
    )
    split = Split(validation=0.2, test=0.2)
    with tempfile.TemporaryDirectory() as folder:
        compare(made_of(Path(folder) / "data", samples, events, keys, split), samples, events, keys, split)


def world(seed: int = 0) -> tuple[list[Row], list[Row]]:
    """The tiny world in this module's columns, its rows shuffled."""
    samples, events = tiny.frames(60, seed)
    draw = np.random.default_rng(seed)
    rows = [
        {"request": r["request"], "user": r["user"], "time": r["time"], "seq": r["sequence"], "seen": "p|q"}
        | {"click": r["click"], "buy": r["conversion"], "w": 1.0, "gain": r["price"]}
        | {k: r[k] for k in ("item", "tags", "price")}
        for r in samples.sample(fraction=1, shuffle=True, seed=seed).iter_rows(named=True)
    ]
    log = [
        {"user": e["user"], "time": e["time"], "known": e["time"] + int(draw.integers(0, 3_000)), "seq": e["sequence"]}
        | {"kind": int(draw.integers(0, 2)), "shop": "ab"[int(draw.integers(0, 2))]}
        | {k: e[k] for k in ("item", "tags", "price")}
        for e in events.sample(fraction=1, shuffle=True, seed=seed).iter_rows(named=True)
    ]
    return rows, log


KEYS = Keys(request="request", user="user", time="time", sequence="seq")


@pytest.mark.parametrize("keys", [KEYS, replace(KEYS, known_at="known"), replace(KEYS, sequence=None)])
def test_the_tiny_world_equals_the_plain_twin(keys: Keys, tmp_path: Path) -> None:
    samples, events = world()
    split = Split(validation=0.2, test=0.2)
    data = made_of(tmp_path / "data", samples, events, keys, split)
    compare(data, samples, events, keys, split)
    lengths = data.slices["all"].end - data.slices["all"].start
    assert {0, 1, 2, 3} == set(lengths.tolist())  # the comparison was about something
    assert (data.slices["bought"].end > data.slices["bought"].start).any()
    second = "file_order" if keys.sequence else "strict"
    assert data.manifest["ties"] == {"all": "strict", "bought": second, "cheap": second, "seen": "strict"}


# ------------------------------------------------------------------------------------------------ cases by hand


def log(**columns: list[Any]) -> pl.LazyFrame:
    return pl.DataFrame(columns).lazy()


ITEM = Categorical(name="item", level="candidate")
PLAIN = Schema(features=(ITEM,))


def test_rows_alone_are_requests_in_file_order(tmp_path: Path) -> None:
    data = prepare(
        tmp_path / "d", PLAIN, log(item=["a", "b", "c"], label=[0, 1, 1]), split=Split(validation=0, test=0.3)
    )
    assert data.first.tolist() == [0, 1, 2, 3]
    assert data.time.tolist() == data.sequence.tolist() == [0, 1, 2]
    assert data.user.tolist() == [-1, -1, -1]
    assert data.split.tolist() == [0, 0, 2]
    assert names_of(data, "item", data.candidate.ids[:, 0]) == ["a", "b", RESERVED[1]]  # "c" is of the test row alone


def test_what_no_training_row_sees_is_out_of_vocabulary(tmp_path: Path) -> None:
    """Values of validation and test rows, and events that lie in no training row's history, teach nothing."""
    past = History(name="past", fields=("item",), max_length=2)
    samples = log(
        user=["u", "u", "v", "u", "u"],
        time=[10, 10, 20, 30, 40],
        item=["a", "b", "a", "val", "test"],
        label=[0, 1, 0, 1, 0],
    )
    events = log(
        user=["u", "u", "u", "w", "u", "v"], time=[1, 2, 3, 4, 25, 20], item=["old", "e2", "e3", "other", "late", "tie"]
    )
    keys = Keys(user="user", time="time")
    data = prepare(
        tmp_path / "d", replace(PLAIN, histories=(past,)), samples, events, keys, Split(validation=0.2, test=0.2)
    )
    # old: pushed out by two younger ones; other: its user never asks; late: after training; tie: at the row's own time
    assert data.encoder.tables["item"].names[FIRST:] == ["a", "e2", "e3", "b"]
    assert data.fitted.tables["item"].counts.tolist() == [0, 0, 0, 2, 2, 2, 1]
    assert names_of(data, "item", data.candidate.ids[:, 0]) == ["a", "b", "a", RESERVED[1], RESERVED[1]]


def test_the_statistics_of_numbers_are_of_training_rows(tmp_path: Path) -> None:
    feature = Numeric(name="x", level="candidate", transform="minmax")
    samples = log(x=[1.0, 3.0, 100.0, None], label=[0, 1, 0, 1])
    data = prepare(tmp_path / "d", Schema(features=(feature,)), samples, split=Split(validation=0.25, test=0.25))
    assert data.candidate.numbers[:, 0].tolist() == [0, 1, 49.5, 0]
    assert data.fitted.candidate.numbers == ("x",)  # no indicator: training rows never lacked it
    cut = Bucketed(name="x", level="candidate", buckets=2)
    data = prepare(tmp_path / "e", Schema(features=(cut,)), samples, split=Split(validation=0.25, test=0.25))
    assert data.encoder.tables["x"].names[FIRST:] == ["[-inf, 3)", "[3, inf)"]


def test_where_compares_canonical_values(tmp_path: Path) -> None:
    """1, 1.0, "1" are one value, as in every other column; true is not 1."""
    samples = log(user=["u", "u"], time=[10, 10], item=["a", "b"], label=[0, 1])
    columns: list[tuple[list[Any], Any, list[int]]] = [
        ([1, 2, 1, None], 1, [0, 2]),
        (["1", "01", "1", None], 1, [0, 2]),
        ([1.0, 1.5, 1.0, None], "1", [0, 2]),
        ([True, False, True, None], True, [0, 2]),
        ([True, False, True, None], 1, []),
        ([1, 2, 1, None], "click", []),
        (["01", "1.0", "", None], 1, []),
    ]
    features = (ITEM, Numeric(name="number", level="event", transform="none"))
    for i, (values, wanted, expected) in enumerate(columns):
        events = log(user=["u"] * 4, time=[1, 2, 3, 4], number=[0, 1, 2, 3], kind=values)
        declared = Schema(features=features, histories=(History(name="h", fields=("number",), where={"kind": wanted}),))
        parts = declared, samples, events, Keys(user="user", time="time"), Split(test=0, validation=0)
        if not expected:
            with pytest.raises(UserError, match=r"history 'h': no event matches where = .*, so every history would be"):
                prepare(tmp_path / str(i), *parts)
            continue
        data = prepare(tmp_path / str(i), *parts)
        assert numbers_of(data, "h", 0) == expected, (values, wanted)


def test_list_columns_are_histories_oldest_first(tmp_path: Path) -> None:
    tags = MultiValued(name="tags", level="event")
    declared = Schema(
        features=(ITEM, tags, Categorical(name="place", level="event")),
        histories=(History(name="past", fields=("item", "place"), lists={"item": "i", "place": "p"}, max_length=2),),
    )
    samples = log(
        request=[2, 1, 2, 3, 4],
        time=[20, 10, 20, 30, 40],
        item=["a", "b", "c", "d", "e"],
        i=[["x", "y", "z"], ["x"], ["x", "y", "z"], [], None],
        p=[[1, 2, 3], [None], [1, 2, 3], [], None],
        label=[0, 1, 0, 1, 0],
    )
    keys = Keys(request="request", time="time")
    data = prepare(tmp_path / "d", declared, samples, None, keys, Split(validation=0, test=0))
    table, slices = data.events["past"], data.slices["past"]
    got = []
    for i in range(data.requests):
        block, _ = table.gather(np.arange(slices.start[i], slices.end[i]))
        got.append(
            list(zip(names_of(data, "item", block.ids[:, 0]), names_of(data, "place", block.ids[:, 1]), strict=True))
        )
    assert got == [[("x", RESERVED[2])], [("y", "2"), ("z", "3")], [], []]
    assert slices.known.tolist() == [1, 4, 4, 4]
    assert table.at_rank(np.array([2, 0])).tolist() == table.by_rank[[2, 0]].tolist() == [2, 0]
    assert set(read_manifest(tmp_path / "d" / "histories" / "past" / "events")) == {"event.ids", "event.numbers"}
    counts = dict(zip(data.encoder.tables["item"].names, data.fitted.tables["item"].counts.tolist(), strict=True))
    assert (counts["y"], counts["z"], counts["x"]) == (2, 2, 1)  # the second request has two rows
    assert [name for name, _ in data.fitted.histories["past"].ids] == ["item", "place"]  # no time, so no age


# ------------------------------------------------------------------------------------------------ splits


def test_the_split_by_time_keeps_a_moment_together(tmp_path: Path) -> None:
    def split_of(times: list[int], validation: float, test: float) -> list[int]:
        n = len(times)
        folder = tmp_path / f"{times}{validation}{test}".replace(" ", "")
        keys, split = Keys(time="time"), Split(validation=validation, test=test)
        data = prepare(folder, PLAIN, log(item=["a"] * n, time=times, label=[0, 1] * (n // 2)), None, keys, split)
        assert (np.diff(data.time) >= 0).all()
        return data.split.tolist()

    assert split_of([0, 1, 2, 3, 4, 5], 1 / 6, 2 / 6) == [0, 0, 0, 1, 2, 2]
    assert split_of([0, 1, 2, 4, 4, 4], 1 / 6, 2 / 6) == [0, 0, 0, 2, 2, 2]  # the cut moves back to the moment's start
    assert split_of([0, 1, 2, 2, 4, 5], 1 / 6, 2 / 6) == [0, 0, 1, 1, 2, 2]
    assert split_of([5, 4, 3, 2, 1, 0], 0, 1 / 6) == [0, 0, 0, 0, 0, 2]
    assert split_of([0, 1, 2, 3, 4, 5], 0, 0) == [0] * 6


def test_the_split_by_user_keeps_a_user_together_and_follows_the_hash(tmp_path: Path) -> None:
    n = 600
    users = [f"u{i % 200}" for i in range(n)]
    samples = log(user=users, item=["a"] * n, label=[0, 1] * (n // 2))
    split = Split(by="user", validation=0.25, test=0.25)
    data = prepare(tmp_path / "d", PLAIN, samples, None, Keys(user="user"), split)
    by_user = {int(u): {int(s) for s in data.split[data.user == u]} for u in np.unique(data.user)}
    assert all(len(found) == 1 for found in by_user.values())
    shares = Counter(next(iter(s)) for s in by_user.values())
    assert abs(shares[1] - 50) < 25
    assert abs(shares[2] - 50) < 25
    u = [hash64("split", name) / 2.0**64 for name in sorted(set(users))]
    assert [next(iter(by_user[c])) for c in range(200)] == [2 if x < 0.25 else 1 if x < 0.5 else 0 for x in u]
    more = log(user=[*users, "a newcomer", None], item=["a"] * (n + 2), label=[0, 1] * (n // 2 + 1))
    later = prepare(tmp_path / "e", PLAIN, more, None, Keys(user="user"), split)
    assert later.split[:n].tolist() == data.split.tolist()  # nobody changes sides when others come
    assert later.split[-1] == 0  # rows of nobody are for training


def test_the_split_by_column(tmp_path: Path) -> None:
    samples = pl.DataFrame(
        {"item": ["a", "b", "c", "d"], "part": ["test", "train", "validation", "train"], "label": [0, 1, 0, 0]}
    )
    for i, frame in enumerate((samples, samples.with_columns(pl.col("part").cast(pl.Categorical)))):
        data = prepare(tmp_path / str(i), PLAIN, frame.lazy(), split=Split(by="column", column="part"))
        assert data.split.tolist() == [2, 0, 1, 0]
        assert data.encoder.tables["item"].names[FIRST:] == ["b", "d"]


# ------------------------------------------------------------------------------------------------ files


def arrays_of(value: Any, path: str = "") -> dict[str, np.ndarray]:
    """All arrays of a data set, by path."""
    if isinstance(value, np.ndarray):
        return {path: value}
    found: dict[str, np.ndarray] = {}
    if isinstance(value, dict):
        for key, inner in value.items():
            found |= arrays_of(inner, f"{path}.{key}")
    elif is_dataclass(value):
        for f in fields(value):
            found |= arrays_of(getattr(value, f.name), f"{path}.{f.name}")
    return found


def data_arrays(data: Dataset) -> dict[str, np.ndarray]:
    found = {}
    for f in fields(data):
        if f.name not in ("encoder", "fitted", "manifest", "folder"):
            found |= arrays_of(getattr(data, f.name), f.name)
    return found


def test_opening_again_gives_the_same_and_reads_nothing(tmp_path: Path) -> None:
    data = tiny.dataset(tmp_path / "d")
    again = Dataset.open(str(tmp_path / "d"))
    first, second = data_arrays(data), data_arrays(again)
    assert first.keys() == second.keys()
    assert len(first) > 30
    for name, array in second.items():
        assert np.array_equal(array, first[name], equal_nan=array.dtype.kind == "f"), name
        mapped: Any = array
        while not isinstance(mapped, np.memmap) and mapped.base is not None:
            mapped = mapped.base
        assert isinstance(mapped, np.memmap) or not array.size, name
        assert not array.flags.writeable or not array.size, name
    assert again.fitted.schema == data.fitted.schema
    assert list(again.fitted.blocks()) == list(data.fitted.blocks())
    assert again.fitted.base_rates == data.fitted.base_rates
    assert again.fitted.tables.keys() == data.fitted.tables.keys()
    for name, table in again.fitted.tables.items():
        assert np.array_equal(table.counts, data.fitted.tables[name].counts)
        assert (table.rows, table.encoding) == (data.fitted.tables[name].rows, data.fitted.tables[name].encoding)
    for name, symbols in again.encoder.tables.items():
        assert symbols.names == data.encoder.tables[name].names
    again.verify()


def test_the_same_log_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        tiny.dataset(tmp_path / name)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) > 30
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_a_prepare_that_was_killed_leaves_no_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(Exception):  # noqa: N818
        pass

    steps: list[str] = []
    samples, events = (frame.lazy() for frame in tiny.frames(30))
    prepare(tmp_path / "whole", tiny.schema(), samples, events, tiny.KEYS, Split(), steps.append)
    assert steps == ["keys", "split", "history clicks", "fit", "encode", "encode clicks"]

    def kill_at(name: str) -> Callable[[str], None]:
        def tell(step: str) -> None:
            if step == name:
                raise Killed

        return tell

    for name in steps:
        folder = tmp_path / name
        with pytest.raises(Killed):
            prepare(folder, tiny.schema(), samples, events, tiny.KEYS, Split(), kill_at(name))
        with pytest.raises(UserError, match=r"no prepared data set here \(no manifest\.json\); prepare one first"):
            Dataset.open(folder)

    def never(path: Path, content: Any) -> None:
        raise Killed

    monkeypatch.setattr(prepare_module, "_write_json", never)
    with pytest.raises(Killed):
        prepare(tmp_path / "last", tiny.schema(), samples, events, tiny.KEYS, Split())
    with pytest.raises(UserError, match="no manifest"):  # all columns are there, but nothing says so
        Dataset.open(tmp_path / "last")


def test_damage_is_told_in_one_sentence_that_names_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    tiny.dataset(folder)
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "users.parquet"]
    assert len(files) > 30
    for i, path in enumerate(files):
        whole, name = path.read_bytes(), str(path.relative_to(folder))
        other = whole[: len(whole) // 2] if i % 2 else b"\xff\xfe" + whole[2:]
        for damage in (path.unlink, lambda path=path, other=other: path.write_bytes(other)):
            damage()
            with pytest.raises(UserError) as error:
                Dataset.open(folder)
            assert name in str(error.value), (name, str(error.value))
            assert "prepare" in str(error.value)
            assert "\n" not in str(error.value)
        path.write_bytes(whole)
    manifest = folder / "manifest.json"
    whole_manifest = manifest.read_text(encoding="utf-8")
    for content, word in (
        ("[]", "damaged"),
        ("{}", "damaged"),
        ('{"format": 7, "base_rates": {}}', "format is 7"),
        (
            whole_manifest.replace("data set 2", "data set 1"),
            "format is 'finerank data set 1', accepted: 'finerank data set 2'",
        ),
    ):
        manifest.write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=rf"manifest\.json: {word}.*; prepare again"):
            Dataset.open(folder)


def test_a_flipped_bit_is_found_by_verify(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    tiny.dataset(folder)
    path = next((folder / "requests").glob("*time.npy"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    data = Dataset.open(folder)  # reads no contents
    with pytest.raises(UserError, match=r"time\.npy: its content hashes to"):
        data.verify()


def test_parts_of_two_data_sets_do_not_go_together(tmp_path: Path) -> None:
    for seed in (0, 1):
        tiny.dataset(tmp_path / str(seed), seed=seed)
    shutil.rmtree(tmp_path / "0" / "counts")
    shutil.copytree(tmp_path / "1" / "counts", tmp_path / "0" / "counts")
    with pytest.raises(UserError, match="its parts do not belong together; prepare again"):
        Dataset.open(tmp_path / "0").verify()


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(UserError, match="exists already and is not empty; remove it or name another folder"):
        prepare(tmp_path, PLAIN, log(item=["a"], label=[1]))
    assert (tmp_path / "mine.txt").read_text(encoding="utf-8") == "keep"


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no split 'tset'; did you mean 'test'"):
        tiny.dataset(tmp_path / "d").requests_of("tset")


def test_growing_tables_hold_a_symbol_for_every_value_and_count_training_alone(tmp_path: Path) -> None:
    """The last value is of a test row: it has a symbol with its name, and no occurrence."""
    declared = Schema(features=(Categorical(name="item", level="candidate", encoding=Growing(capacity=5)),))
    samples = log(item=["a", "b", "a", "new"], label=[0, 1, 0, 1])
    data = prepare(tmp_path / "d", declared, samples, split=Split(validation=0, test=0.25))
    assert data.encoder.tables["item"].names[FIRST:] == ["a", "b", "new"]
    assert data.candidate.ids[:, 0].tolist() == [3, 4, 3, 5]
    assert data.fitted.tables["item"].counts.tolist() == [0, 0, 0, 2, 1]
    assert data.fitted.tables["item"].rows == FIRST + 5
    assert isinstance(data.encoder.tables["item"], VocabularyTable)


# ------------------------------------------------------------------------------------------------ errors

PAST = replace(PLAIN, histories=(History(name="past", fields=("item",)),))
LISTS = replace(PLAIN, histories=(History(name="past", fields=("item",), lists={"item": "i"}),))
ORDER = replace(PLAIN, histories=(History(name="past", fields=("item",), ties="file_order"),))
BOUGHT = replace(PLAIN, histories=(History(name="past", fields=("item",), where={"k": "buy"}),))
PAIR = Schema(
    features=(ITEM, Categorical(name="place", level="event")),
    histories=(History(name="past", fields=("item", "place"), lists={"item": "i", "place": "p"}),),
)
PLACE = Schema(features=(ITEM, Categorical(name="place", level="request")))
WITHIN = replace(PLAIN, tasks=(Task(name="click"), Task(name="buy", within="click")))
WEIGHED = replace(PLAIN, tasks=(Task(name="label", weight="w"),))
BASE: dict[str, list[Any]] = {"item": ["a", "b"], "label": [0, 1], "r": [1, 1], "u": ["x", "x"], "t": [5, 5]}
EMPTY: dict[str, list[Any]] = {name: [] for name in BASE}
EVENTS: dict[str, Any] = {"u": ["x"], "t": [1], "item": ["a"], "s": [0], "k": [1]}
WHO = Keys(request="r", user="u", time="t")
NONE = Split(validation=0, test=0)


@pytest.mark.parametrize(
    ("schema", "samples", "events", "keys", "split", "sentence"),
    [
        (PLAIN, EMPTY, None, Keys(), NONE, "samples: no rows; is this the right file"),
        (PLAIN, EMPTY, None, Keys(time="t"), NONE, "samples: no rows"),
        (PLAIN, {"item": None}, None, Keys(), NONE, "samples: no column 'item'"),
        (PLAIN, {"label": None, "lable": [0, 1]}, None, Keys(), NONE, "no column 'label'; did you mean 'lable'"),
        (PLAIN, {}, None, Keys(user="usr"), NONE, "samples: no column 'usr'; accepted: item, label, r, t, u"),
        (PLAIN, {"r": [1, None]}, None, WHO, NONE, "samples: 1 rows have no 'r'; name their request"),
        (
            PLAIN,
            {"t": [5, 6]},
            None,
            WHO,
            NONE,
            r"request 1 has rows of different times \('t'\); a request is one user",
        ),
        (PLAIN, {"u": ["x", "y"]}, None, WHO, NONE, r"request 1 has rows of different users \('u'\)"),
        (PLAIN, {"u": ["x", None]}, None, WHO, NONE, r"request 1 has rows of different users"),
        (PLAIN, {"r": ["x" * 500] * 2, "u": ["x", "y"]}, None, WHO, NONE, r"request 'x{56}\.\.\. has rows"),
        (PLAIN, {"t": [5, None]}, None, Keys(time="t"), NONE, "samples: 1 rows have no time in column 't'"),
        (
            PLAIN,
            {"t": [0.5, 1]},
            None,
            Keys(sequence="t"),
            NONE,
            "samples: column 't' is Float64 or has nulls or .*; accepted: whole",
        ),
        (PLAIN, {"t": [1, None]}, None, Keys(sequence="t"), NONE, "samples: column 't' is Int64 or has nulls"),
        (
            PLAIN,
            {"t": pl.Series([1, 2**63], dtype=pl.UInt64)},
            None,
            Keys(sequence="t"),
            NONE,
            r"samples: column 't' is UInt64 or has nulls or numbers from 2\^63 on; accepted: whole",
        ),
        (PLAIN, {"u": [[1], [2]]}, None, Keys(user="u"), NONE, r"column 'u': got a column of List\(Int64\)"),
        # histories
        (
            PAST,
            {},
            None,
            WHO,
            NONE,
            "history 'past' reads an event log: give events, keys.user and keys.time, or name list",
        ),
        (PAST, {}, EVENTS, Keys(request="r", user="u"), NONE, "history 'past' reads an event log"),
        (PAST, {}, EVENTS, Keys(request="r", time="t"), NONE, "an event log needs keys.user"),
        (PAST, {}, EVENTS | {"item": None}, WHO, NONE, "events: no column 'item'"),
        (PAST, {}, EVENTS | {"u": None}, WHO, NONE, "events: no column 'u'"),
        (PAST, {}, EVENTS | {"t": ["soon"]}, WHO, NONE, "events: column 't' holds 'soon'"),
        (PAST, {"s": [0, 1]}, EVENTS | {"s": ["a"]}, replace(WHO, sequence="s"), NONE, "events: column 's' is String"),
        (PAST, {}, EVENTS | {"k": [0]}, replace(WHO, known_at="k"), NONE, "known before they happen"),
        (
            ORDER,
            {},
            EVENTS,
            WHO,
            NONE,
            "history 'past': ties = \"file_order\" compares positions in one common log; name",
        ),
        (BOUGHT, {}, EVENTS, WHO, NONE, "history 'past': no event matches where = {'k': 'buy'}, so every history"),
        (PAST, {}, EVENTS | {"u": ["y"]}, WHO, NONE, r"events: none of their users \('u'\) is in the samples"),
        (LISTS, {}, None, WHO, NONE, "samples: no column 'i'"),
        (
            LISTS,
            {"i": [["a"], []]},
            None,
            WHO,
            NONE,
            "samples: column 'i' belongs to the request, but differs within one",
        ),
        (
            PLACE,
            {"place": ["p", "q"]},
            None,
            WHO,
            NONE,
            "column 'place' belongs to the request, but differs within one: 'q'",
        ),
        (
            LISTS,
            {"i": ["a|b", "a|b"]},
            None,
            WHO,
            NONE,
            "history 'past': column 'i' is text; say how it is joined: separator",
        ),
        (LISTS, {"i": [1, 1]}, None, WHO, NONE, "history 'past': column 'i' is Int64; accepted: lists or joined text"),
        (
            PAIR,
            {"t": [9, 5], "i": [["a"], ["a"]], "p": [["x", "y"], ["z"]]},
            None,
            Keys(time="t"),
            NONE,
            "history 'past': row 0 has 2 entries in 'p' but 1 in 'i'; give lists of one length",
        ),
        # splits
        (PLAIN, {}, None, Keys(), Split(by="user"), 'split by "user" needs keys.user'),
        (
            PLAIN,
            {"split": ["test", "dev"]},
            None,
            Keys(),
            Split(by="column"),
            "column 'split' holds 'dev'; accepted: train, val",
        ),
        (
            PLAIN,
            {"split": ["test", None]},
            None,
            Keys(),
            Split(by="column"),
            "column 'split' holds None; accepted: train",
        ),
        (
            PLAIN,
            {"split": ["test", "train"]},
            None,
            WHO,
            Split(by="column"),
            "rows of one request have different values of",
        ),
        (
            PLAIN,
            {"split": ["test", "test"]},
            None,
            Keys(),
            Split(by="column"),
            "no training rows: the split leaves none",
        ),
        (PLAIN, {}, None, Keys(), Split(by="column", column="part"), "samples: no column 'part'"),
        # labels
        (
            PLAIN,
            {"label": ["yes", "no"]},
            None,
            Keys(),
            NONE,
            "label column 'label' is String; accepted: numbers or true/false",
        ),
        (PLAIN, {"label": [0.0, math.inf]}, None, Keys(), NONE, "label column 'label' has infinite values"),
        (
            PLAIN,
            {"label": [0, 2]},
            None,
            Keys(),
            NONE,
            r"label column 'label' holds 2\.0; a binary task accepts 0 and 1",
        ),
        (PLAIN, {"label": [None, None]}, None, Keys(), NONE, "label column 'label' is Null; accepted: numbers"),
        (PLAIN, {"label": [math.nan, math.nan]}, None, Keys(), NONE, "task 'label': no training row lies in its space"),
        (
            PLAIN,
            {"label": [1, 1]},
            None,
            Keys(),
            NONE,
            "task 'label': every training label is 1; both classes are needed",
        ),
        (PLAIN, {"label": [0, 0]}, None, Keys(), NONE, "task 'label': every training label is 0"),
        (PLAIN, {}, None, Keys(), Split(validation=0, test=0.5), "task 'label': every training label is 0"),
        (
            WITHIN,
            {"click": [0, 1], "buy": [1, 0]},
            None,
            Keys(),
            NONE,
            "1 rows have buy = 1 but click = 0, and buy happens",
        ),
        (
            WEIGHED,
            {"w": [1, -1]},
            None,
            Keys(),
            NONE,
            "weight column 'w' has negative or infinite values; accepted: 0 or more",
        ),
        (WEIGHED, {"w": [1.0, math.inf]}, None, Keys(), NONE, "weight column 'w' has negative or infinite values"),
        (WEIGHED, {"w": ["a", "b"]}, None, Keys(), NONE, "weight column 'w' is String; accepted: numbers"),
        (WEIGHED, {"w": [0, 0]}, None, Keys(), NONE, "task 'label': no training row lies in its space"),
        (WEIGHED, {}, None, Keys(), NONE, "samples: no column 'w'"),
    ],
)
def test_bad_input_gets_its_sentence_and_writes_nothing(
    schema: Schema,
    samples: dict[str, Any],
    events: dict[str, Any] | None,
    keys: Keys,
    split: Split,
    sentence: str,
    tmp_path: Path,
) -> None:
    def frame(columns: dict[str, Any]) -> pl.LazyFrame:
        return pl.DataFrame({k: v for k, v in columns.items() if v is not None}).lazy()

    given_ = frame(BASE | samples)
    with pytest.raises(UserError, match=sentence) as error:
        prepare(tmp_path / "d", schema, given_, None if events is None else frame(events), keys, split)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "d").exists()  # so that the mended log can go to the same folder


def test_shares_of_the_split_leave_something_to_learn_from() -> None:
    with pytest.raises(UserError, match=r"split: validation = 0\.6, test = 0\.4; accepted: shares of at least 0"):
        Split(validation=0.6, test=0.4)
    with pytest.raises(UserError, match="split"):
        Split(validation=-0.1)


def test_rows_without_a_label_are_counted_and_told(tmp_path: Path) -> None:
    """null and NaN alike; of a task within another only where the other's label is 1."""
    samples, events = tiny.frames()
    row, nan = pl.int_range(pl.len()), float("nan")
    click = pl.when(row < 3).then(None).when(row < 5).then(nan).otherwise(pl.col("click"))
    converted = pl.when(row % 2 == 0).then(None).otherwise(pl.col("conversion"))
    holed = samples.with_columns(click=click, conversion=converted)
    made = prepare(tmp_path / "d", tiny.schema(), holed.lazy(), events.lazy(), tiny.KEYS, block=7, notes=["mine"])
    clicked = [c == 1 and i >= 5 for i, c in enumerate(samples["click"])]
    lost = sum(c for c in clicked[::2])
    assert made.manifest["notes"] == [
        "mine",
        f"5 of {samples.height} rows have no label 'click' (null or NaN): for the task 'click' they weigh 0, in training "
        "and in metrics",
        f"{lost} of {sum(clicked)} rows with click = 1 have no label 'conversion' (null or NaN): for the task 'conversion' "
        "they weigh 0, in training and in metrics",
    ]
    assert int((np.asarray(made.weights)[:, 0] == 0).sum()) == 5


def test_a_vocabulary_that_keeps_nothing_is_told(tmp_path: Path) -> None:
    """Every value is out of vocabulary then: the feature trains, and says nothing."""
    made = tiny.dataset(tmp_path / "d", encoding=Vocabulary(min_count=10_000))
    (note,) = (note for note in made.manifest["notes"] if "'item'" in note)
    at = [name for name, _ in made.fitted.candidate.ids].index("item")
    train = made.rows_of(made.requests_of("train"))
    assert (made.candidate.ids[train, at] == OOV).all()
    assert note.startswith("no value of 'item' occurs 10,000 times in training (its min_count): all ")
    assert not any(
        "'item'" in n for n in tiny.dataset(tmp_path / "e", encoding=Vocabulary(min_count=12)).manifest["notes"]
    )


def test_numbers_outside_their_space_are_counted_and_told(tmp_path: Path) -> None:
    """They weigh 0, and nobody was told; a label 1 of a binary task is refused there."""
    samples, events = tiny.frames()
    tasks = (Task(name="click"), Task(name="seconds", kind="regression", within="click"))
    given = samples.with_columns(seconds=pl.int_range(pl.len()) - 5.0)
    made = prepare(tmp_path / "d", replace(tiny.schema(), tasks=tasks), given.lazy(), events.lazy(), tiny.KEYS, block=7)
    away = given.with_row_index("row").filter((pl.col("click") == 0) & (pl.col("seconds") > 0))
    row, seconds = away["row"][0], away["seconds"][0]
    assert made.manifest["notes"] == [
        f"{away.height} rows with click = 0 have a label 'seconds' above 0 (the first: row {row}, {seconds:g}): 'seconds' is "
        "within 'click', so for it they weigh 0, in training and in metrics"
    ]


def test_the_manifest_says_what_was_done(tmp_path: Path) -> None:
    tiny.dataset(tmp_path / "d")
    manifest = json.loads((tmp_path / "d" / "manifest.json").read_text(encoding="utf-8"))
    samples, events = tiny.frames()
    assert manifest["requests"] == 60
    assert manifest["rows"] == samples.height
    assert manifest["events"] == {"clicks": events.height}
    assert manifest["ties"] == {"clicks": "strict"}
    assert manifest["split_by"] == "time"
    assert [sum(n[i] for n in manifest["split"].values()) for i in (0, 1)] == [60, samples.height]


def test_of_two_complaints_about_a_block_the_first_column_s_is_raised(tmp_path: Path) -> None:
    """Columns are read side by side, but what the user is told does not depend on which thread was faster."""
    fine, bad = [str(i) for i in range(200)], ["x"] * 200
    declared = Schema(
        features=(
            Categorical(name="item", level="candidate"),
            Numeric(name="price", level="candidate"),
            Numeric(name="stock", level="candidate"),
        ),
        tasks=(Task(name="label"),),
    )
    samples = log(item=fine, price=bad, stock=bad, label=[i % 2 for i in range(200)])
    for attempt in range(20):
        with pytest.raises(UserError, match="feature 'price', row 0"):
            prepare(tmp_path / str(attempt), declared, samples)
