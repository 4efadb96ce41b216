"""Batches against loops over the data set's arrays (which `test_prepare` proves against the raw log)."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tiny
import torch
from torch import Tensor

from finerank.data import builder as builder_module
from finerank.data.batch import Batch, Jagged, pair_up
from finerank.data.builder import REDRAWS, BatchBuilder
from finerank.data.dataset import Dataset
from finerank.data.order import Budget, Step, shuffled
from finerank.data.prepare import Keys, prepare
from finerank.data.split import Split
from finerank.models.composition import Needs
from finerank.runtime.hashing import mix, uniform
from finerank.schema import AGE_CUTS, FIRST, PADDING, Categorical, Columns, History, Numeric, Schema

BOTH = Needs(frozenset({"clicks"}), frozenset({"clicks"}))
NOTHING = Needs()
SECOND = 1_000_000
KEYS = Keys(request="request", user="user", time="time")
ALL_TRAIN = Split(validation=0, test=0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny.dataset(tmp_path_factory.mktemp("builder") / "data")


# ------------------------------------------------------------------------------------------------ plain twins


def contents(lists: Any, rows: Any) -> list[list[list[int]]]:
    """The entries of each row's list."""
    starts = np.cumsum(np.asarray(lists.lengths)) - np.asarray(lists.lengths)
    out = []
    for row in rows:
        which = int(lists.index[row])
        out.append([[int(i) for i in lists.ids[starts[which] + k]] for k in range(int(lists.lengths[which]))])
    return out


def check_block(block: Any, source: Any, index: list[int], columns: Columns) -> None:
    """A block of tensors holds rows `index` of a source, equal lists once, in the declared order."""
    ids, numbers = np.asarray(source.ids), np.asarray(source.numbers)
    assert block.ids.dtype == torch.int64
    assert block.numbers.dtype == torch.float32
    assert block.ids.tolist() == [ids[i].tolist() for i in index]
    assert block.numbers.tolist() == [numbers[i].tolist() for i in index]
    assert block.numbers.shape == (len(index), len(columns.numbers))
    assert list(block.lists) == [c.name for c in columns.lists]
    for column in columns.lists:
        lists, model = block.lists[column.name], source.lists[column.name]
        expected = contents(model, index)
        assert contents(lists, range(len(index))) == expected
        assert lists.ids.dtype == lists.segments.dtype == lists.index.dtype == lists.lengths.dtype == torch.int64
        distinct = {str(c) for c in expected}
        assert len(lists.lengths) == len(distinct)  # pooled once per distinct list, and no list that nobody has
        assert lists.segments.tolist() == [i for i, n in enumerate(lists.lengths.tolist()) for _ in range(n)]
        assert lists.ids.shape[1] == (1 if column.ranks is None else 2)


def age_bucket(age: int) -> int:
    return FIRST + sum(cut * SECOND <= age for cut in AGE_CUTS)


def check_history(got: Jagged, data: Dataset, name: str, requests: list[int]) -> None:
    slices, table = data.slices[name], data.events[name]
    index = [list(range(slices.start[r], slices.end[r])) for r in requests]
    flat = [e for events in index for e in events]
    assert got.lengths.tolist() == [len(events) for events in index]
    assert got.offsets.tolist() == [0, *np.cumsum([len(events) for events in index]).tolist()]
    assert got.segments.tolist() == [i for i, events in enumerate(index) for _ in events]
    assert got.positions.tolist() == [p for events in index for p in range(len(events))]
    ages = [int(data.time[r]) - int(table.time[e]) for r, events in zip(requests, index, strict=True) for e in events]
    assert got.ages.dtype == torch.int64
    assert got.ages.tolist() == ages
    known = [(int(table.known_at[e]), int(table.sequence[e])) for e in flat]
    for i in range(1, len(flat)):
        assert got.segments[i] != got.segments[i - 1] or known[i - 1] <= known[i]  # oldest first
    columns = data.fitted.histories[name]
    assert columns.ids[-1] == ("age", f"{name}.age")
    assert got.events.ids[:, -1].tolist() == [age_bucket(age) for age in ages]
    check_block(dataclasses.replace(got.events, ids=got.events.ids[:, :-1]), table.block, flat, columns)


def check_batch(batch: Batch, data: Dataset, requests: list[int], rows: list[int] | None = None) -> None:
    of = {r: list(range(data.first[r], data.first[r + 1])) for r in requests}
    rows = [row for r in requests for row in of[r]] if rows is None else rows
    request_of = [next(i for i, r in enumerate(requests) if row in of[r]) for row in rows]
    assert (len(requests), len(rows)) == (batch.R, batch.N)
    assert batch.requests is not None
    assert batch.rows is not None
    assert batch.requests.tolist() == requests
    assert batch.rows.tolist() == rows
    assert batch.request_of.tolist() == request_of
    assert batch.request_of.dtype == torch.int64
    for got, source in ((batch.labels, data.labels), (batch.weights, data.weights)):
        assert got.dtype == torch.float32
        assert np.array_equal(got.numpy(), np.asarray(source)[rows], equal_nan=True)
    fitted = data.fitted
    check_block(batch.request, data.request, requests, fitted.request)
    check_block(batch.candidate, data.candidate, rows, fitted.candidate)
    assert batch.train_only is not None
    check_block(batch.train_only, data.train_only, rows, fitted.train_only)
    for name in fitted.histories:
        check_history(batch.histories[name], data, name, requests)
    for name, pairs in batch.pairs.items():
        lengths, offsets = batch.histories[name].lengths.tolist(), batch.histories[name].offsets.tolist()
        plain = [(n, offsets[r] + t) for n, r in enumerate(request_of) for t in range(lengths[r])]
        assert pairs.candidate.tolist() == [n for n, _ in plain]
        event = list(range(len(plain))) if pairs.event is None else pairs.event.tolist()
        assert event == [e for _, e in plain]


# ------------------------------------------------------------------------------------------------ batches


def test_batches_equal_loops(data: Dataset) -> None:
    builder = BatchBuilder(data, BOTH)
    draw = np.random.default_rng(0)
    for size in (1, 2, 7, data.requests):
        requests = draw.permutation(data.requests)[:size]
        batch = builder.batch(requests)
        check_batch(batch, data, requests.tolist())
        assert batch.rows_in_step == batch.N
    assert int(batch.histories["clicks"].lengths.max()) == 6  # the comparison was about something
    assert int(batch.histories["clicks"].lengths.min()) == 0
    assert batch.pairs["clicks"].event is not None
    assert bool(torch.isfinite(batch.candidate.numbers).all())


def test_the_order_of_tensors_is_declared_and_fixed(data: Dataset) -> None:
    names = ["request", "candidate", "request_of", "histories", "labels", "weights", "pairs", "negatives"]
    names += ["masked", "drawn", "example_age", "train_only", "noise", "requests", "rows", "rows_in_step"]
    assert [f.name for f in dataclasses.fields(Batch)] == names
    fitted = data.fitted
    assert [name for name, _ in fitted.request.ids] == ["user", "country"]
    assert fitted.request.numbers == ("age", "age?")
    assert [c.name for c in fitted.request.lists] == ["interests"]
    assert [name for name, _ in fitted.candidate.ids] == ["item", "category", "price", "country_category"]
    assert fitted.candidate.numbers == ("amount",)
    assert [name for name, _ in fitted.histories["clicks"].ids] == ["item", "category", "price", "age"]
    assert [name for name, _ in fitted.train_only.ids] == ["position"]
    assert "position" not in {name for _, columns in fitted.blocks() for name, _ in columns.ids}
    batch = BatchBuilder(data, BOTH).batch(np.arange(data.requests))
    for columns, block in (
        (fitted.request, batch.request),
        (fitted.candidate, batch.candidate),
        (fitted.histories["clicks"], batch.histories["clicks"].events),
        (fitted.histories["clicks"], batch.negatives["clicks"]),
        (fitted.train_only, batch.train_only),
    ):
        assert block is not None
        assert block.ids.shape[1] == len(columns.ids)
        for j, (_, table) in enumerate(columns.ids):
            assert int(block.ids[:, j].max()) < fitted.tables[table].rows
        assert list(block.lists) == [c.name for c in columns.lists]


def test_what_is_not_asked_for_is_not_made(data: Dataset) -> None:
    batch = BatchBuilder(data, NOTHING).batch(np.arange(5))
    assert batch.pairs == batch.negatives == {}
    check_batch(batch, data, list(range(5)))


def test_one_candidate_each_needs_no_event_index() -> None:
    lengths = torch.tensor([2, 0, 1])
    pairs = pair_up(torch.arange(3), lengths)
    assert pairs.event is None
    assert pairs.candidate.tolist() == [0, 0, 2]
    pairs = pair_up(torch.tensor([0, 0, 2]), lengths)  # as many candidates as requests, but not one each
    assert pairs.event is not None
    assert list(zip(pairs.candidate.tolist(), pairs.event.tolist(), strict=True)) == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
        (2, 2),
    ]


def test_a_batch_is_its_own_and_leaves_the_data_set_alone(data: Dataset) -> None:
    """Tensors are copies: writing to them reaches no file, and the next batch is as before."""
    builder = BatchBuilder(data, BOTH)
    first = builder.batch(np.arange(4))
    for tensor in (first.request.ids, first.candidate.numbers, first.labels, first.histories["clicks"].events.ids):
        tensor += 1
    check_batch(builder.batch(np.arange(4)), data, [0, 1, 2, 3])


# ------------------------------------------------------------------------------------------------ ages


def timed(folder: Path, unit: Any, now: int, before: list[int]) -> Dataset:
    """One request at `now`, and an event so many units before it each."""
    declared = Schema(
        features=(Categorical(name="item", level="candidate"),), histories=(History(name="past", fields=("item",)),)
    )
    samples = pl.DataFrame(
        {"request": [0, 0], "user": ["u", "u"], "time": [now, now], "item": ["a", "b"], "label": [0, 1]}
    )
    events = pl.DataFrame({"user": ["u"] * len(before), "time": [now - b for b in before], "item": ["a"] * len(before)})
    keys = dataclasses.replace(KEYS, time_unit=unit)
    return prepare(folder, declared, samples.lazy(), events.lazy(), keys, ALL_TRAIN)


def test_ages_are_exact_far_beyond_what_a_float_holds(tmp_path: Path) -> None:
    now = 2**57 + 1  # the year 6537 in microseconds: float64 has steps of 32 there
    minute = 60 * SECOND
    before = [1, 2, 3, minute - 1, minute, minute + 1, 2**57, now + 2**57]  # the last event: long before 1970
    data = timed(tmp_path / "d", "us", now, before)
    history = BatchBuilder(data, NOTHING).batch(np.array([0])).histories["past"]
    assert history.ages.tolist() == sorted(before, reverse=True)
    year = FIRST + len(AGE_CUTS)
    assert history.events.ids[:, -1].tolist() == [year, year, FIRST + 1, FIRST + 1, FIRST, FIRST, FIRST, FIRST]


def test_buckets_of_age_by_hand(tmp_path: Path) -> None:
    day = 86_400
    before = [1, 59, 60, 599, 600, day - 1, day, 365 * day - 1, 365 * day]
    data = timed(tmp_path / "d", "s", 10**9, before)
    history = BatchBuilder(data, NOTHING).batch(np.array([0])).histories["past"]
    table = data.encoder.tables["past.age"]
    names = [table.name(i) for i in history.events.ids[:, -1].tolist()][::-1]
    hand = ["[-inf, 60)"] * 2 + ["[60, 600)"] * 2 + ["[600, 3600)", "[21600, 86400)", "[86400, 172800)"]
    assert names == [*hand, "[1.0368e+07, 3.1536e+07)", "[3.1536e+07, inf)"]


# ------------------------------------------------------------------------------------------------ negatives


def popularity(folder: Path, log: list[tuple[str, int, str]], at: list[tuple[str, int]], **more: Any) -> Dataset:
    """log: (user, second, item); at: a request of two rows each. Events carry their number."""
    declared = Schema(
        features=(
            Categorical(name="item", level="candidate"),
            Numeric(name="number", level="event", transform="none"),
        ),
        histories=(History(name="past", fields=("item", "number"), **more),),
    )
    rows = [
        {"request": i, "user": u, "time": t, "item": "a", "label": k} for i, (u, t) in enumerate(at) for k in (0, 1)
    ]
    events = [{"user": u, "time": t, "item": item, "number": i} for i, (u, t, item) in enumerate(log)]
    return prepare(folder, declared, pl.DataFrame(rows).lazy(), pl.DataFrame(events).lazy(), KEYS, ALL_TRAIN)


PAST = Needs(negatives=frozenset({"past"}))


def negatives(data: Dataset, requests: list[int], seed: int = 0, epoch: int = 0) -> tuple[list[int], list[int]]:
    """Numbers of the true events, and of those that stand in for them."""
    batch = BatchBuilder(data, PAST, seed=seed).batch(np.array(requests), epoch)
    true, drawn = batch.histories["past"].events, batch.negatives["past"]
    assert drawn.ids.shape == true.ids.shape
    assert (drawn.ids[:, -1] == PADDING).all()  # a stand-in has no age
    first = batch.histories["past"].positions == 0
    assert ((drawn.ids[:, 0] == PADDING) == first).all()  # nothing comes before a first event, so nothing predicts it
    return true.numbers[:, 0].int().tolist(), drawn.numbers[:, 0].int().tolist()


def test_negatives_follow_occurrences_and_know_no_future(tmp_path: Path) -> None:
    """Chi-square: 20, 40, 60 and 80 of 250 known events, the true item "z" has the rest and is not drawn."""
    often = {"a": 20, "b": 40, "c": 60, "d": 80}
    log = [("other", 1, item) for item, n in often.items() for _ in range(n)]
    log += [("u", 2, "z")] * 50
    log += [("other", 5, "known at the row's moment"), ("other", 50, "later"), ("other", 8, "not yet known")] * 200
    data = popularity(tmp_path / "d", log, [("u", 10)], delay=5, max_length=50)
    seen: Counter[str] = Counter()
    for epoch in range(60):
        true, drawn = negatives(data, [0], epoch=epoch)
        assert {log[i][2] for i in true} == {"z"}
        seen.update(log[i][2] for i in drawn)
    assert sum(seen.values()) == 3_000
    assert set(seen) == {"a", "b", "c", "d"}  # "z" eight times in a row: 1 of 400,000
    chi = sum((seen[item] - 3_000 * n / 200) ** 2 / (3_000 * n / 200) for item, n in often.items())
    assert chi < 16.27  # 3 degrees of freedom, 0.1 %
    flat = sum((seen[item] - 750) ** 2 / 750 for item in often)
    assert flat > 100  # and the test would see another law


def plain_negative(seed: int, epoch: int, request: int, position: int, most: int, known: list[str], true: str) -> int:
    """The rank drawn: the first of `REDRAWS` whose item is not the true one, else the last."""
    rank = 0
    for attempt in range(REDRAWS):
        u = float(uniform(mix(seed, epoch, attempt, 0x4E6), np.array([request * most + position]))[0])
        rank = int(u * len(known))
        if known[rank] != true:
            break
    return rank


def test_negatives_equal_the_plain_twin_and_are_not_the_true_item(tmp_path: Path) -> None:
    draw = np.random.default_rng(4)
    log = sorted(
        ((f"u{draw.integers(3)}", int(draw.integers(0, 20)), "abcd"[draw.integers(4)]) for _ in range(60)),
        key=lambda e: e[1],
    )
    at = [(f"u{draw.integers(3)}", int(draw.integers(1, 25))) for _ in range(30)]
    data = popularity(tmp_path / "d", log, at, max_length=7)
    at = sorted(at, key=lambda a: a[1])
    true_total = stood = 0
    for seed, epoch in ((0, 0), (0, 1), (5, 0)):
        for r, (user, time) in enumerate(at):
            known = [i for i, e in enumerate(log) if e[1] < time]  # the log is in order of time
            own = [i for i in known if log[i][0] == user][-7:]
            true, drawn = negatives(data, [r], seed, epoch)
            assert true == own
            items = [log[i][2] for i in known]
            assert drawn == [known[plain_negative(seed, epoch, r, p, 7, items, log[i][2])] for p, i in enumerate(own)]
            assert set(drawn) <= set(known)
            true_total += len(own)
            pairs = [(log[i][2], log[j][2]) for i, j in zip(true, drawn, strict=True)]
            stood += sum(a == b for a, b in pairs if 3 * items.count(a) < len(items))
    assert true_total > 200
    assert stood == 0  # eight draws in a row of an item that has a third of all: 1 of 6,561


def test_where_only_the_true_item_is_known_it_stands(tmp_path: Path) -> None:
    data = popularity(tmp_path / "d", [("u", 1, "z"), ("v", 2, "z"), ("u", 3, "z"), ("v", 9, "y")], [("u", 5)])
    true, drawn = negatives(data, [0])
    assert true == [0, 2]
    assert set(drawn) <= {0, 1, 2}


def test_negatives_change_with_epoch_and_seed_and_with_nothing_else(tmp_path: Path) -> None:
    log = [("u" if i % 3 else "v", i, f"item {i}") for i in range(200)]
    data = popularity(tmp_path / "d", log, [("u", 100), ("v", 150), ("u", 300)], max_length=20)
    draws = {
        (seed, epoch): tuple(negatives(data, [0, 1, 2], seed, epoch)[1]) for seed in range(4) for epoch in range(4)
    }
    assert len(set(draws.values())) == 16
    assert tuple(negatives(data, [0, 1, 2], 3, 2)[1]) == draws[3, 2]
    alone = [n for r in (0, 1, 2) for n in negatives(data, [r], 3, 2)[1]]
    assert tuple(alone) == draws[3, 2]  # whatever else is in the batch
    assert len(set(draws[0, 0])) > 40  # positions draw apart


# ------------------------------------------------------------------------------------------------ steps and chunks


def test_steps_count_the_pairs_of_the_histories_that_are_paired(data: Dataset) -> None:
    train = data.requests_of("train")
    slices = data.slices["clicks"]
    for needs, factor in ((BOTH, 1), (NOTHING, 0)):
        builder = BatchBuilder(data, needs, seed=9)
        budget = Budget(rows=9, pairs=12)
        made = list(builder.steps(train, budget, epoch=2))
        assert np.array_equal(np.concatenate([s.requests for s in made]), shuffled(train, 9, 2))
        pairs = []
        for step in made:
            rows = data.first[step.requests + 1] - data.first[step.requests]
            here = int((rows * (slices.end - slices.start)[step.requests]).sum()) * factor
            assert step.rows == rows.sum()
            assert step.chunks or (step.rows <= 9 and here <= 12)
            pairs.append(here)
        assert not factor or max(pairs) > 12  # one request alone
        assert any(step.chunks for step in made) == bool(factor)
    plain = builder.steps(train, Budget(rows=50), shuffle=False)
    assert np.concatenate([s.requests for s in plain]).tolist() == train.tolist()


@pytest.mark.parametrize("piece", [1, 2, 7])
@pytest.mark.parametrize("budget", [Budget(rows=9, pairs=12), Budget(rows=40), Budget(rows=1)])
def test_steps_do_not_depend_on_the_piece(
    data: Dataset, budget: Budget, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = np.random.default_rng(5).random(data.rows) < 0.2  # whole pieces are passed over
    for keep in (None, kept):
        builder = BatchBuilder(data, BOTH, seed=9, keep=keep)

        def cut(builder: BatchBuilder = builder) -> list[tuple[Any, ...]]:
            made = builder.steps(data.requests_of("train"), budget, epoch=2)
            return [(s.requests.tolist(), s.rows, s.chunks) for s in made]

        monkeypatch.setattr(builder_module, "PIECE", 1 << 30)
        whole = cut()
        monkeypatch.setattr(builder_module, "PIECE", piece)
        assert cut() == whole


def test_an_oversized_request_is_cut_into_chunks_of_one_step(data: Dataset) -> None:
    builder = BatchBuilder(data, BOTH)
    sizes = np.diff(data.first) * (data.slices["clicks"].end - data.slices["clicks"].start)
    request = int(np.argmax(sizes))
    rows = list(range(data.first[request], data.first[request + 1]))
    assert len(rows) == 4
    [step] = builder.steps(np.array([request]), Budget(rows=3), shuffle=False)
    assert step.chunks == ((0, 3), (3, 4))
    parts = list(builder.batches(step))
    assert [batch.rows_in_step for batch in parts] == [4, 4]
    for batch, own in zip(parts, (rows[:3], rows[3:]), strict=True):
        check_batch(batch, data, [request], own)
    whole = builder.batch(np.array([request]))
    assert torch.equal(torch.cat([b.candidate.ids for b in parts]), whole.candidate.ids)
    assert [n for b in parts for n in b.pairs["clicks"].candidate.tolist()] == [
        n for n in (0, 1, 2, 0) for _ in range(6)
    ]
    [one] = builder.batches(Step(np.array([request]), 4))
    check_batch(one, data, [request])


def test_to_moves_every_tensor(data: Dataset) -> None:
    """Onto the meta device: what stays behind would be found out."""
    batch = BatchBuilder(data, BOTH).batch(np.arange(4)).to(torch.device("meta"))

    def tensors(value: Any) -> list[Tensor]:
        if isinstance(value, Tensor):
            return [value]
        if isinstance(value, dict):
            return [t for v in value.values() for t in tensors(v)]
        if dataclasses.is_dataclass(value):
            return [t for f in dataclasses.fields(value) for t in tensors(getattr(value, f.name))]
        return []

    left = {"requests", "rows"}  # where the rows came from stays on the host
    moved = [t for f in dataclasses.fields(batch) if f.name not in left for t in tensors(getattr(batch, f.name))]
    assert len(moved) > 30
    assert all(t.device.type == "meta" for t in moved)
