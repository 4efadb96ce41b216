"""Preparing block by block: nothing that is written depends on the size of a block, and a full disk leaves nothing."""

from __future__ import annotations

import errno
import os
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from finerank.data import histories
from finerank.data import scratch as scratch_module
from finerank.data.dataset import Dataset
from finerank.data.histories import PastOfLists
from finerank.data.prepare import prepare
from finerank.data.samples import Keys
from finerank.data.scratch import Pile, Scratch, total
from finerank.data.split import Split
from finerank.data.staged import Entries, Ids
from finerank.data.tally import CutsTally
from finerank.errors import UserError
from finerank.runtime.values import canonical
from finerank.schema import (
    Bucketed,
    Categorical,
    Cross,
    Encoding,
    Growing,
    Hashed,
    History,
    MultiValued,
    Numeric,
    Schema,
    Task,
    Vocabulary,
)

BLOCKS = (7, 64, 10_000)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def same_for_all_blocks(folder: Path, *log: Any) -> Dataset:
    made = [prepare(folder / str(block), *log, block=block) for block in BLOCKS]
    first = content(folder / str(BLOCKS[0]))
    assert len(first) > 20
    for data in made[1:]:
        other = content(data.folder)
        assert other.keys() == first.keys()
        assert [name for name in first if other[name] != first[name]] == []
    assert {p.name for p in folder.iterdir()} == {str(block) for block in BLOCKS}  # nothing is left beside them
    made[0].verify()
    return made[0]


@pytest.mark.parametrize(
    ("encoding", "by", "shuffled"),
    [
        (Vocabulary(), "time", False),
        (Growing(capacity=40), "user", True),
        (Hashed(buckets=17), "time", True),
        (Vocabulary(min_count=2, max_size=5), "column", True),
    ],
)
def test_the_tiny_world_is_the_same_for_all_blocks(tmp_path: Path, encoding: Encoding, by: Any, shuffled: bool) -> None:
    """Rows of a request apart, ties, lists, ranks, crosses, events that nobody sees; requests cut by the blocks."""
    samples, events = tiny.frames(60)
    samples = samples.with_columns(
        split=pl.when(pl.col("time") > 25_000).then(pl.lit("test")).otherwise(pl.lit("train"))
    )
    if shuffled:
        samples, events = (f.sample(fraction=1, shuffle=True, seed=3) for f in (samples, events))
    split = Split(by=by, validation=0.2, test=0.2)
    same_for_all_blocks(tmp_path, tiny.schema(encoding=encoding), samples.lazy(), events.lazy(), tiny.KEYS, split)


def wide(n: int) -> pl.DataFrame:
    """What the tiny world lacks: wide and negative integers, floats and bools as ids, weights, joined lists, long tails."""
    draw = np.random.default_rng(0)
    lists = [[f"x{v}" for v in draw.integers(0, 9, draw.integers(0, 4))] for _ in range(n)]
    return pl.DataFrame(
        {
            "user": draw.integers(-5, 30, n),
            "wide": [None if x == 7 else x * 10**9 for x in draw.integers(0, 40, n).tolist()],
            "late": ["z" if i == n - 1 else str(i % 50) for i in range(n)],  # no integer, but for the last one
            "float": draw.normal(size=n).round(1),
            "flag": draw.random(n) < 0.5,
            "number": np.exp(draw.normal(size=n) * 3),
            "past": [
                None if x < 0.1 else "|".join(map(str, draw.integers(0, 50, draw.integers(0, 5))))
                for x in draw.random(n)
            ],
            "list": lists,
            "weight": [[0.5 * len(x) for x in values] for values in lists],
            "time": draw.integers(0, 100, n),
            "label": draw.integers(0, 2, n),
        }
    )


WIDE = Schema(
    features=(
        Categorical(name="user", level="request"),
        Categorical(name="wide", level="candidate", encoding=Growing(capacity=500)),
        Categorical(name="late", level="candidate"),
        Categorical(name="float", level="candidate", encoding=Hashed(buckets=50)),
        Categorical(name="flag", level="candidate"),
        Numeric(name="standard", column="number", level="candidate", transform="standard"),
        Numeric(name="powers", column="number", level="candidate", transform="powers"),
        Numeric(name="minmax", column="number", level="candidate", transform="minmax"),
        Bucketed(name="bucket", column="number", level="candidate", buckets=20),
        MultiValued(name="list", level="candidate", weights="weight"),
        Cross(name="cross", of=("flag", "late"), level="candidate"),
        Categorical(
            name="again",
            column="wide",
            level="candidate",
            use="train_only",
            table="wide",
            encoding=Growing(capacity=500),
        ),
    ),
    histories=(History(name="past", fields=("late",), lists={"late": "past"}, separator="|", max_length=3),),
    tasks=(Task(name="label"),),
)


@pytest.mark.parametrize("keys", [Keys(user="user", time="time"), Keys()])
def test_all_kinds_of_columns_are_the_same_for_all_blocks(tmp_path: Path, keys: Keys) -> None:
    data = same_for_all_blocks(tmp_path, WIDE, wide(400).lazy(), None, keys)
    assert data.encoder.tables["late"].lookup("z") > 0


def test_files_are_read_once_and_may_be_longer_than_a_block(tmp_path: Path) -> None:
    frame = wide(300)
    frame.write_parquet(tmp_path / "log.parquet", row_group_size=50)
    (tmp_path / "d").mkdir()
    from_file = prepare(tmp_path / "d" / "file", WIDE, pl.scan_parquet(tmp_path / "log.parquet"), block=32)
    from_memory = prepare(tmp_path / "d" / "memory", WIDE, frame.lazy())
    assert content(from_file.folder) == content(from_memory.folder)


# ------------------------------------------------------------------------------------------------ a full disk


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, events = (frame.lazy() for frame in tiny.frames(60))

    def attempt(folder: Path, block: int) -> None:
        with pytest.raises(UserError, match=r"the disk is full .* nothing was kept; free some space or name") as error:
            prepare(folder, tiny.schema(), samples, events, tiny.KEYS, Split(), block=block)
        assert "\n" not in str(error.value)
        assert list(tmp_path.iterdir()) == []

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)  # a scratch array
        patched.setattr(scratch_module, "HELD", 0)
        attempt(tmp_path / "mapped", 7)
    with monkeypatch.context() as patched:
        patched.setattr(Pile, "append", full)  # a column while it is read
        attempt(tmp_path / "read", 7)
    with monkeypatch.context() as patched:
        patched.setattr("finerank.data.columns._Stream.append", full)  # the data set itself
        attempt(tmp_path / "written", 10_000)
    assert prepare(tmp_path / "read", tiny.schema(), samples, events, tiny.KEYS, Split()).rows  # space was made


# ------------------------------------------------------------------------------------------------ the parts


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(-(2**63), 2**63 - 1), st.integers(0, 1)), max_size=60),
    st.integers(1, 9),
)
def test_order_is_that_of_a_stable_sort(rows: list[tuple[int, int, int]], block: int) -> None:
    keys = [np.array([row[k] for row in rows], dtype=np.int64) for k in range(3)]
    found = Scratch(None, block).order(*keys).tolist()
    assert found == sorted(range(len(rows)), key=lambda i: rows[i])  # Python's sort is stable


def test_long_arrays_are_files_and_short_ones_are_not(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "s", block=4)
    short = scratch.empty(4)
    assert not (tmp_path / "s").exists()
    pile = Pile(scratch, np.int64)
    for start in range(0, 3_000, 3):
        pile.append(np.arange(start, start + 3))
    long = pile.close()
    order = scratch.order(long[::-1].copy())
    assert len(list((tmp_path / "s").iterdir())) >= 2
    assert long.tolist() == list(range(3_000))
    assert order.tolist() == list(range(2_999, -1, -1))
    assert len(short) == 4


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.sampled_from(["append", "put", "not put"])), max_size=40),
    st.sampled_from([None, 0, 1]),
)
def test_a_pile_is_its_pieces_one_behind_the_other(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[int, str]], block: int | None
) -> None:
    """In memory, in a file, and from the one to the other; a room that was asked for need not be used."""
    folder = tmp_path_factory.mktemp("pile") / "s"
    scratch = Scratch(None if block is None else folder, block or 0)
    pile, expected = Pile(scratch, np.int32), []
    for number, (n, how) in enumerate(pieces):
        piece = [1_000 * number + i for i in range(n)]
        if how == "append":
            pile.append(np.array(piece, dtype=np.int64))
        else:
            room = pile.room(n)
            room[:] = piece
            if how == "put":
                pile.put(room)
        expected += [] if how == "not put" else piece
        assert pile.rows == len(expected)
    assert pile.close().tolist() == expected


def test_runs_and_their_values_reach_over_blocks() -> None:
    for block in (1, 2, 3, 100):
        scratch = Scratch(None, block)
        starts = scratch.runs(np.array([5, 5, 5, 7, 5, 5]), np.array([0, 0, 1, 1, 1, 1]))
        assert starts.tolist() == [0, 2, 3, 4, 6]
        assert scratch.spread(starts, np.array([10, 20, 30, 40])).tolist() == [10, 10, 20, 30, 40, 40]


@pytest.mark.parametrize("block", [1, 2, 100])
def test_running_sums_reach_over_blocks(block: int) -> None:
    values, scratch = np.array([3, 0, -1, 5, 2]), Scratch(None, block)
    assert scratch.running(values).tolist() == [3, 3, 2, 7, 9]
    assert values[-1] == 2  # as before
    assert scratch.running(values, out=values) is values
    assert values.tolist() == [3, 3, 2, 7, 9]
    assert scratch.running(values[:0]).tolist() == []


@pytest.mark.parametrize("block", BLOCKS)
def test_ages_are_counted_a_block_of_events_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    """Not so many requests at a time, of each of which there may be thousands of events."""
    most, flatten = [0], histories.flatten

    def noted(starts: Any, ends: Any) -> Any:
        most.append(int((ends - starts).sum()))
        return flatten(starts, ends)

    monkeypatch.setattr(histories, "flatten", noted)
    schema, samples, events = tiny.schema(), *(frame.lazy() for frame in tiny.frames())
    data = prepare(tmp_path / "data", schema, samples, events, tiny.KEYS, block=block)
    assert 0 < max(most) <= max(block, max(h.max_length for h in schema.histories))
    assert sum(most) > 7
    for history in schema.histories:
        of_training = data.rows_of(data.requests_of("train"))
        slices = data.slices[history.name]
        seen = data.spread(data.requests_of("train"), (slices.end - slices.start)[data.requests_of("train")])
        assert data.fitted.tables[f"{history.name}.age"].counts.sum() == seen.sum() > len(of_training) / 2


@pytest.mark.parametrize("shuffled", [False, True])
def test_memory_of_lists_follows_the_block_and_not_their_length(shuffled: bool) -> None:
    """A block of requests may have a thousand times as many events: they are written out a block of events at a time."""
    n, length, block = 1_000, 2_000, 10_000
    history = History(name="past", fields=("item",), lists={"item": "past"}, max_length=length // 2)
    heads = np.arange(n)[::-1].copy() if shuffled else np.arange(n)
    given: Any = SimpleNamespace(history=history, columns={}, lengths=np.full(n, length))
    requests: Any = SimpleNamespace(heads=heads, rows_of_heads=heads if shuffled else None)
    tracemalloc.start()
    past = PastOfLists(given, requests, Scratch(None, block))
    seen = past._seen(np.arange(n) % 3, Scratch(None, block))
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - held < 10 * 8 * block < seen.nbytes
    assert (seen.reshape(n, 2, -1).max(axis=2) == np.column_stack([np.zeros(n), np.arange(n) % 3])).all()
    if shuffled:
        assert past.index is not None
        assert (past.index.reshape(n, -1)[::-1].ravel() == np.arange(n * length)).all()


def test_memory_of_bucketed_numbers_follows_the_distinct_ones() -> None:
    """Of three hundred blocks of the same numbers a tally keeps about one, and still counts each."""
    tally, block = CutsTally(), np.arange(1_000.0)
    tracemalloc.start()
    for i in range(300):
        tally.add(block if i % 2 else block[::-1], np.full(1_000, i))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 20 * block.nbytes
    values, counts = tally.distinct()
    assert values.tolist() == block.tolist()
    assert set(counts.tolist()) == {sum(range(300))}


def test_a_sum_in_leaves_is_the_sum_of_the_whole() -> None:
    x = np.random.default_rng(0).normal(size=300_001)
    assert total(len(x), x.__getitem__) == float(np.sum(x))
    assert total(0, x.__getitem__) == 0.0


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.lists(
            st.none()
            | st.sampled_from(
                ["", "0", "-0", "+5", "05", " 5", "5.", "1e3", "٣", "a", "7", "-7", "9" * 19, "1" + "0" * 18]
            )
            | st.integers(-(2**63), 2**63 - 1).map(str),
            max_size=6,
        ),
        max_size=4,
    ),
    st.booleans(),
)
def test_codes_stand_for_canonical_texts(blocks: list[list[str | None]], shift: bool) -> None:
    """Whatever the blocks hold: integers first and text later, wide spans, texts that almost are integers."""
    column = Ids(Scratch(None, 3), "x")
    for block in blocks:
        column.add([pl.Series("x", block, dtype=pl.String)])
    column.close()
    codes = column.codes(slice(None))
    used = column.used()
    names = dict(zip(used.tolist(), column.texts(used).to_list(), strict=True))
    assert [names.get(code) for code in codes.tolist()] == [canonical(v) for block in blocks for v in block]
    assert len(set(names.values())) == len(names)


def test_integers_of_any_type_and_span_are_coded() -> None:
    for values in ([3, None, -2, 3], [0, 10**15, None], [-(2**63), 1], [None, None]):
        column = Ids(Scratch(), "x")
        for value in values:
            column.add([pl.Series("x", [value], dtype=pl.Int64)])
        column.close()
        used = column.used()
        names = dict(zip(used.tolist(), column.texts(used).to_list(), strict=True))
        assert [names.get(c) for c in column.codes(slice(None)).tolist()] == [canonical(v) for v in values]


def test_entries_of_any_rows_are_found() -> None:
    column = Entries(MultiValued(name="m", level="candidate"), Scratch(None, 2))
    lists: list[list[str] | None] = [["a", "b"], None, [], ["b"], ["c", "a", "b"]]
    for values in lists:
        column.add([pl.Series("m", [values], dtype=pl.List(pl.String))])
    column.close()
    texts = column.ids.texts(np.arange(1, column.ids.size + 1)).to_list()
    for rows in (np.array([4, 0, 1, 3, 4]), np.array([2]), np.arange(5)):
        entries, lengths = column.of(rows)
        found = [texts[c - 1] for c in column.ids.codes(entries).tolist()]
        assert found == [v for r in rows.tolist() for v in lists[r] or []]
        assert lengths.tolist() == [len(lists[r] or []) for r in rows.tolist()]
    entries, lengths = column.of(slice(3, 5))
    assert [texts[c - 1] for c in column.ids.codes(entries).tolist()] == ["b", "c", "a", "b"]
    assert lengths.tolist() == [1, 3]


def test_a_failed_write_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It said `File too large; mend this` and no more: the system names no file of a write."""
    samples, events = (frame.lazy() for frame in tiny.frames(60))

    def failed(*_: Any) -> None:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    monkeypatch.setattr(Pile, "append", failed)
    with pytest.raises(OSError, match="File too large") as error:
        prepare(tmp_path / "d", tiny.schema(), samples, events, tiny.KEYS, Split())
    assert error.value.filename == str(tmp_path / "d")
