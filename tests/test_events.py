"""Event tables, logs and profiles against a brute-force loop, and column files that come back as they were written."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from finerank.data import columns
from finerank.data.columns import ColumnWriter, block_arrays, block_of, read_columns, verify, without_copies
from finerank.data.events import EventLog, EventTable, coverage, flatten
from finerank.errors import UserError
from finerank.runtime.blocks import Block, Lists
from finerank.runtime.history import ProfileStore, concat_blocks, take_block, visible

USERS = 4
quick = settings(derandomize=True, max_examples=120, deadline=None)


@dataclass(frozen=True)
class Event:
    number: int  # its id in the block: how the tests recognise it
    user: int
    time: int
    known_at: int
    sequence: int


@dataclass(frozen=True)
class Row:
    user: int
    time: int
    sequence: int


# small ranges on purpose: most events tie with others in known_at, many in sequence as well
event_tuples = st.lists(
    st.tuples(st.integers(0, USERS - 1), st.integers(-3, 6), st.integers(0, 3), st.integers(0, 8)), max_size=30
)
rows_of = st.lists(
    st.builds(Row, user=st.integers(-1, USERS + 1), time=st.integers(-4, 11), sequence=st.integers(-1, 9)), max_size=20
)
both_ties = st.sampled_from(["strict", "file_order"])


def make(tuples: Sequence[tuple[int, int, int, int]]) -> list[Event]:
    return [Event(i, user, time, time + delay, seq) for i, (user, time, delay, seq) in enumerate(tuples)]


def tags_of(number: int) -> list[int]:
    """The list column of an event: few distinct lists, one of them empty."""
    return [[], [3], [3, 4], [5, 3, 4]][number % 4]


def block_for(events: Sequence[Event]) -> Block[Any]:
    """ids: (number + 3, user); one number; a list column with ranks and weights, distinct lists stored once."""
    numbers = [e.number for e in events]
    kinds, index = np.unique([n % 4 for n in numbers], return_inverse=True)
    lists = [tags_of(int(k)) for k in kinds]
    entries = [t for one in lists for t in one]
    tags = Lists(
        index.reshape(-1).astype(np.int64),
        np.array([[t, t + 10] for t in entries], dtype=np.int64).reshape(-1, 2),
        np.array([t / 8 for t in entries], dtype=np.float32),
        np.repeat(np.arange(len(lists)), [len(one) for one in lists]),
        np.array([len(one) for one in lists], dtype=np.int64),
    )
    ids = np.array([[e.number + 3, e.user] for e in events], dtype=np.int64).reshape(-1, 2)
    return Block(ids, np.array([[n / 2] for n in numbers], dtype=np.float32).reshape(-1, 1), {"tags": tags})


def rows_in(block: Block[Any]) -> list[Any]:
    """A block row by row, lists written out: what must be equal, however the lists are stored."""
    out = []
    for i in range(len(block)):
        one: list[Any] = [block.ids[i].tolist(), block.numbers[i].tolist()]
        for name, lists in block.lists.items():
            mine = [k for k, s in enumerate(lists.segments) if s == lists.index[i]]
            assert len(mine) == lists.lengths[lists.index[i]]
            weights = None if lists.weights is None else [float(lists.weights[k]) for k in mine]
            one.append((name, [lists.ids[k].tolist() for k in mine], weights))
        out.append(one)
    return out


def table_of(events: Sequence[Event], folder: Path | None = None, users: int | None = USERS) -> EventTable:
    user, time, known_at, sequence = (
        np.array([getattr(e, name) for e in events], dtype=np.int64)
        for name in ("user", "time", "known_at", "sequence")
    )
    return EventTable.build(folder, user, time, known_at, sequence, block_for(events), users=users)


def numbers_of(block: Block[Any]) -> list[int]:
    return [int(n) - 3 for n in block.ids[:, 0]]


def arrays_of(rows: Sequence[Row]) -> tuple[Any, Any, Any]:
    return tuple(np.array([getattr(r, n) for r in rows], dtype=np.int64) for n in ("user", "time", "sequence"))  # type: ignore[return-value]


def knows(row: Row, event: Event, ties: str) -> bool:
    if ties == "strict":
        return event.known_at < row.time
    return (event.known_at, event.sequence) < (row.time, row.sequence)


def brute_force(events: Sequence[Event], row: Row, ties: str, max_length: int) -> list[int]:
    seen = [e for e in events if e.user == row.user and knows(row, e, ties)]
    seen.sort(key=lambda e: (e.known_at, e.sequence))
    return [e.number for e in seen[max(0, len(seen) - max_length) :]]


def histories(source: EventTable | EventLog, rows: Sequence[Row], ties: Any, max_length: int) -> list[list[int]]:
    users, times, sequences = arrays_of(rows)
    index, segments, lengths = source.histories(users, times, sequences, ties, max_length)
    numbers = numbers_of(source.gather(index)[0])
    assert segments.tolist() == [r for r, n in enumerate(lengths) for _ in range(n)]
    return [[n for n, s in zip(numbers, segments, strict=True) if s == r] for r in range(len(rows))]


# ------------------------------------------------------------------------------------------------ one table


@quick
@given(event_tuples, rows_of, both_ties, st.integers(0, 6))
@example([], [Row(0, 5, 5), Row(-1, 5, 5)], "file_order", 3)
@example([(2, t, 0, 0) for t in range(30)], [Row(2, t, 4) for t in range(31)], "strict", 5)  # one user has them all
def test_a_rows_history_is_what_a_plain_loop_finds(
    tuples: list[tuple[int, int, int, int]], rows: list[Row], ties: Any, max_length: int
) -> None:
    events = make(tuples)
    table = table_of(events)
    assert histories(table, rows, ties, max_length) == [brute_force(events, r, ties, max_length) for r in rows]
    users, times, sequences = arrays_of(rows)
    known = table.known_before(times, sequences, ties)
    assert known.tolist() == [sum(knows(r, e, ties) for e in events) for r in rows]
    starts, ends = table.slices(users, times, sequences, ties, max_length)
    if len(rows):
        assert table.user[flatten(starts, ends)[0]].tolist() == np.repeat(users, ends - starts).tolist()


@quick
@given(event_tuples)
def test_ranks_order_all_events_and_by_rank_inverts_them(tuples: list[tuple[int, int, int, int]]) -> None:
    events = make(tuples)
    table = table_of(events)
    in_order = [e.number for e in sorted(events, key=lambda e: (e.known_at, e.sequence, e.user))]
    assert numbers_of(table.gather(table.by_rank)[0]) == in_order
    assert table.rank[table.by_rank].tolist() == list(range(len(events)))
    by_user = sorted(events, key=lambda e: (e.user, e.known_at, e.sequence))
    assert numbers_of(table.block) == [e.number for e in by_user]
    assert table.offsets.tolist() == [sum(e.user < u for e in events) for u in range(USERS + 1)]


def test_by_hand() -> None:
    """User 0 did a, b, c at 10, 20, 20; b is known only at 25; user 1 did d at 20."""
    events = [Event(0, 0, 10, 10, 0), Event(1, 0, 20, 25, 1), Event(2, 0, 20, 20, 2), Event(3, 1, 20, 20, 3)]
    table = table_of(events)
    rows = [Row(0, 20, 2), Row(0, 20, 3), Row(0, 21, 9), Row(0, 26, 9), Row(1, 20, 3), Row(3, 99, 9)]
    assert histories(table, rows, "strict", 2) == [[0], [0], [0, 2], [2, 1], [], []]
    assert histories(table, rows, "file_order", 2) == [[0], [0, 2], [0, 2], [2, 1], [], []]
    assert table.gather(np.array([2, 0]))[1].tolist() == [20, 10]  # the time of b is when it happened
    times = np.array([20, 21, 26])
    assert table.known_before(times, None, "strict").tolist() == [1, 3, 4]


def test_coverage_counts_rows_by_their_candidates() -> None:
    starts, ends = np.array([0, 1, 2, 0]), np.array([3, 1, 4, 0])
    assert coverage(starts, ends, np.array([10, 100, 1, 1000]), 5).tolist() == [10, 10, 11, 1, 0]
    assert coverage(starts[:0], ends[:0], starts[:0], 2).tolist() == [0, 0]


@quick
@given(event_tuples, rows_of, both_ties)
def test_coverage_is_what_the_rows_see(tuples: list[tuple[int, int, int, int]], rows: list[Row], ties: Any) -> None:
    table = table_of(make(tuples))
    users, times, sequences = arrays_of(rows)
    weights = np.arange(1, len(rows) + 1)
    starts, ends = table.slices(users, times, sequences, ties, 4)
    index, segments, _ = flatten(starts, ends)
    plain = [sum(int(weights[s]) for i, s in zip(index, segments, strict=True) if i == e) for e in range(len(table))]
    assert coverage(starts, ends, weights, len(table)).tolist() == plain


def test_a_table_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    events = [Event(i, int(u), int(t), int(t) + i % 3, i) for i, (u, t) in enumerate(rng.integers(0, 40, (200, 2)))]
    built, plain = table_of(events, tmp_path / "events", users=50), table_of(events, users=50)
    for table in (built, EventTable.open(tmp_path / "events")):
        for name in ("user", "known_at", "time", "sequence", "key", "rank", "by_rank", "known", "offsets"):
            got, expected = getattr(table, name), getattr(plain, name)
            assert got.dtype == np.int64
            np.testing.assert_array_equal(got, expected, strict=True)
        assert rows_in(table.block) == rows_in(plain.block)
        assert table.block.ids.dtype == np.int32
        assert isinstance(table.user.base, np.memmap)
        block, time = table.gather(np.array([5, 5, 0]))
        assert block.ids.dtype == np.int64
        assert rows_in(block) == [rows_in(plain.block)[i] for i in (5, 5, 0)]
        assert time.tolist() == plain.time[[5, 5, 0]].tolist()
    verify(tmp_path / "events")


def test_a_table_without_events_opens_and_answers(tmp_path: Path) -> None:
    table = table_of([], tmp_path / "events", users=None)
    assert (len(table), table.users) == (0, 0)
    assert histories(table, [Row(0, 5, 5), Row(-1, 5, 5)], "file_order", 3) == [[], []]
    assert table.block.ids.shape == (0, 2)
    verify(tmp_path / "events")


def test_what_cannot_be_a_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"1 of 2 are known before they happen.*event 1, time 9, known_at 8.*known_at column"
    ):
        table_of([Event(0, 0, 5, 5, 0), Event(1, 0, 9, 8, 1)])
    with pytest.raises(UserError, match="user codes from -1 to 2; accepted: 0 to 3"):
        table_of([Event(0, -1, 5, 5, 0), Event(1, 2, 5, 5, 1)])
    with pytest.raises(UserError, match="user codes from 1 to 4; accepted: 0 to 3"):
        table_of([Event(0, 4, 5, 5, 0), Event(1, 1, 5, 5, 1)])
    one = np.zeros(1, dtype=np.int64)
    with pytest.raises(UserError, match=r"\[1, 1, 1, 1, 0\] rows"):
        EventTable.build(None, one, one, one, one, block_for([]))
    table = table_of([Event(0, 0, 5, 5, 0)])
    with pytest.raises(UserError, match="did you mean 'file_order'"):
        table.known_before(one, one, "file-order")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="give the sequence of each row"):
        table.known_before(one, None, "file_order")
    with ColumnWriter(tmp_path / "other") as out:
        out.append({"user": one})
    with pytest.raises(UserError, match="not an event table, it has no column 'known_at'"):
        EventTable.open(tmp_path / "other")


# ------------------------------------------------------------------------------------------------ a growing log


@quick
@given(st.lists(event_tuples, min_size=1, max_size=4), rows_of, both_ties, st.integers(0, 6))
def test_a_log_equals_a_full_rebuild_before_and_after_compaction(
    parts: list[list[tuple[int, int, int, int]]], rows: list[Row], ties: Any, max_length: int
) -> None:
    events = make([t for part in parts for t in part])
    cuts = np.cumsum([0, *(len(p) for p in parts)])
    # each part knows only the users it has: later parts bring new ones
    tables = [table_of(events[a:b], users=None) for a, b in itertools.pairwise(cuts)]
    log, rebuilt = EventLog(tables[0], tables[1:]), table_of(events, users=None)
    compacted = log.compact(None)
    _, times, sequences = arrays_of(rows)
    expected = histories(rebuilt, rows, ties, max_length)
    assert expected == [brute_force(events, r, ties, max_length) for r in rows]
    everything = np.arange(len(events))
    for source in (log, compacted, EventLog(compacted)):
        assert len(source) == len(events)
        assert histories(source, rows, ties, max_length) == expected
        known = source.known_before(times, sequences, ties)
        np.testing.assert_array_equal(known, rebuilt.known_before(times, sequences, ties))
        (got, got_time), (wanted, wanted_time) = (s.gather(s.at_rank(everything)) for s in (source, rebuilt))
        assert rows_in(got) == rows_in(wanted)
        assert got_time.tolist() == wanted_time.tolist()
    for name in ("user", "known_at", "time", "sequence", "key", "rank", "by_rank", "known", "offsets"):
        np.testing.assert_array_equal(getattr(compacted, name), getattr(rebuilt, name), strict=True)
    assert len(compacted.block.lists["tags"].lengths) <= 4  # equal lists of several parts are one again


def test_segments_in_order_leave_the_base_order_on_disk() -> None:
    hours = [[Event(10 * h + i, i % 3, 10 * h + i, 10 * h + i, i) for i in range(10)] for h in range(3)]
    log = EventLog(table_of(hours[0]), [table_of(h) for h in hours[1:]])
    assert len(log._late) == 20
    assert numbers_of(log.gather(log.at_rank(np.arange(30)))[0]) == list(range(30))
    log.append(table_of([Event(99, 0, 5, 5, 99)]))  # comes after the sixth event
    assert len(log._late) == 25
    assert numbers_of(log.gather(log.at_rank(np.arange(4, 8)))[0]) == [4, 5, 99, 6]


def test_an_index_of_a_log_stays_true_while_it_grows_and_compacts_to_disk(tmp_path: Path) -> None:
    events = make([(i % 3, 20 - i, 0, i) for i in range(20)])  # every segment is older than the ones before
    log = EventLog(table_of(events[:10]), [table_of(events[10:15])])
    index = np.arange(15)
    before = rows_in(log.gather(index)[0])
    log.append(table_of(events[15:]))
    assert rows_in(log.gather(index)[0]) == before
    compacted = log.compact(tmp_path / "events")
    verify(tmp_path / "events")
    assert rows_in(compacted.block) == rows_in(table_of(events).block)


# ------------------------------------------------------------------------------------------------ profiles


@quick
@given(event_tuples, rows_of, both_ties, st.integers(0, 6), st.integers(1, 7))
def test_profiles_equal_the_table_however_events_arrive(
    tuples: list[tuple[int, int, int, int]], rows: list[Row], ties: Any, max_length: int, piece: int
) -> None:
    events = make(tuples)
    table = table_of(events)
    store = ProfileStore(block_for([]), max_length=max_length, ties=ties)
    for start in range(0, len(events), piece):  # in the order of the log, which is not the order of known_at
        arrived = events[start : start + piece]
        for user in {e.user for e in arrived}:
            mine = [e for e in arrived if e.user == user]
            known_at, time, sequence = (
                np.array([getattr(e, n) for e in mine], dtype=np.int64) for n in ("known_at", "time", "sequence")
            )
            store.append(f"user {user}", known_at, time, sequence, block_for(mine))
    users, times, sequences = arrays_of(rows)
    starts, ends = table.slices(users, times, sequences, ties, max_length)
    for row, start, end in zip(rows, starts, ends, strict=True):
        block, time, known_at = store.history(f"user {row.user}", row.time, row.sequence)
        expected, expected_time = table.gather(np.arange(start, end))
        assert rows_in(block) == rows_in(expected)
        assert time.tolist() == expected_time.tolist()
        assert known_at.tolist() == table.known_at[start:end].tolist()
        assert (block.ids.dtype, block.numbers.dtype) == (np.int64, np.float32)


def test_a_profile_keeps_the_most_recent_and_a_live_request_sees_its_own_moment() -> None:
    store = ProfileStore(block_for([]), max_length=2, ties="file_order", keep=3)
    for number, known_at in enumerate([10, 30, 20, 40]):
        one = np.array([known_at])
        store.append("u", one, one, np.array([number]), block_for([Event(number, 0, known_at, known_at, number)]))
    assert len(store) == 1
    assert numbers_of(store.history("u", 40)[0]) == [1, 3]  # live: after everything recorded, 40 included
    assert numbers_of(store.history("u", 40, 3)[0]) == [2, 1]  # as row 3 of the log: its own event is not there yet
    assert numbers_of(store.history("u", 25)[0]) == [2]  # event 0 was let go
    empty, times, known_at = store.history("nobody", 40)
    assert (empty.ids.shape, empty.numbers.shape, len(times), len(known_at)) == ((0, 2), (0, 1), 0, 0)
    assert empty.lists["tags"].ids.shape == (0, 2)
    with pytest.raises(UserError, match="known before they happen"):
        store.append("u", np.array([1]), np.array([2]), np.array([9]), block_for([Event(9, 0, 2, 1, 9)]))
    with pytest.raises(UserError, match="keep = 1 is less than max_length = 2"):
        ProfileStore(block_for([]), max_length=2, keep=1)


def test_the_rule_by_hand() -> None:
    known_at, sequence = np.array([1, 5, 5, 5, 8]), np.array([0, 1, 3, 4, 5])
    assert visible(known_at, sequence, 5, 3, "strict", 9) == slice(0, 1)
    assert visible(known_at, sequence, 5, 3, "file_order", 9) == slice(0, 2)
    assert visible(known_at, sequence, 6, 0, "strict", 2) == slice(2, 4)
    assert visible(known_at, sequence, 9, 9, "strict", 0) == slice(5, 5)
    assert visible(known_at[:0], sequence[:0], 9, 9, "file_order", 3) == slice(0, 0)
    with pytest.raises(UserError, match="accepted: file_order, strict"):
        visible(known_at, sequence, 5, 3, "loose", 9)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ column files


def test_columns_come_back_and_numpy_reads_them_too(tmp_path: Path) -> None:
    ids, time = np.arange(12, dtype=np.int32).reshape(6, 2), np.array([2**53 + 1, -5], dtype=np.int64)
    odd = {"品类/..": np.array([True, False]), "品类:..": np.array([1.5], dtype=">f8")}  # look the same as file names
    with ColumnWriter(tmp_path / "x") as out:
        out.append({"ids": ids[:4]})
        out.append({"time": time, **odd})
        out.append({"ids": ids[4:5]})
        out.append(
            {"ids": ids[5:], "none": np.empty((0, 3), dtype=np.float32), "wide": np.empty((7, 0), dtype=np.int32)}
        )
    got = read_columns(tmp_path / "x")
    assert list(got) == ["ids", "time", *odd, "none", "wide"]
    np.testing.assert_array_equal(got["ids"], ids, strict=True)
    np.testing.assert_array_equal(got["time"], time, strict=True)
    assert [got[name].tolist() for name in odd] == [[True, False], [1.5]]
    assert (got["none"].shape, got["none"].dtype, got["wide"].shape) == ((0, 3), np.float32, (7, 0))
    assert isinstance(got["ids"], np.memmap)
    assert not got["ids"].flags.writeable
    verify(tmp_path / "x")
    for name, column in columns.read_manifest(tmp_path / "x").items():
        np.testing.assert_array_equal(np.load(tmp_path / "x" / column.file), got[name], strict=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x"]


def test_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    rows = np.arange(3)
    with pytest.raises(ValueError, match=r"column 'a': rows are <f8 \[3\], the rows before them <i8 \[3\]"):  # noqa: PT012, SIM117
        with ColumnWriter(tmp_path / "x") as out:
            out.append({"a": rows})
            out.append({"a": rows / 2})
    assert list(tmp_path.iterdir()) == []
    left = ColumnWriter(tmp_path / "x")  # a run that was killed: never closed
    left.append({"a": rows})
    assert not (tmp_path / "x").exists()
    with ColumnWriter(tmp_path / "x") as out:
        out.append({"b": rows})
    assert list(read_columns(tmp_path / "x")) == ["b"]
    with pytest.raises(UserError, match="exists already"):
        ColumnWriter(tmp_path / "x")
    assert list(read_columns(tmp_path / "x")) == ["b"]
    with pytest.raises(ValueError, match="accepted"), ColumnWriter(tmp_path / "y") as out:
        out.append({"a": np.array([object()])})


def test_damage_is_named(tmp_path: Path) -> None:
    def fresh() -> Path:
        folder = Path(tempfile.mkdtemp(dir=tmp_path)) / "x"
        with ColumnWriter(folder) as out:
            out.append({"a": np.arange(100), "b": np.arange(10)})
        return folder

    folder = fresh()
    with (folder / "00.a.npy").open("r+b") as file:
        file.truncate(300)
    with pytest.raises(UserError, match=r"00\.a\.npy: has 300 bytes, not 928; .*prepare again"):
        read_columns(folder)

    folder = fresh()
    with (folder / "01.b.npy").open("r+b") as file:
        file.seek(128 + 30)
        file.write(b"\x01")
    read_columns(folder)  # opening reads no content
    with pytest.raises(UserError, match=r"01\.b\.npy: its content hashes to .*prepare again"):
        verify(folder)

    folder = fresh()
    with (folder / "01.b.npy").open("r+b") as file:
        file.seek(21)
        file.write(b"f")  # the type in the header
    with pytest.raises(UserError, match=r"01\.b\.npy: its header is not that of <i8 \[10\]"):
        read_columns(folder)

    folder = fresh()
    (folder / "01.b.npy").unlink()
    with pytest.raises(UserError, match=r"01\.b\.npy: there is no such file; .*prepare again"):
        read_columns(folder)

    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    for name, change in {"file": "../a.npy", "dtype": "|O8", "shape": [-1]}.items():
        changed = manifest | {"columns": {"a": manifest["columns"]["a"] | {name: change}}}
        (folder / "manifest.json").write_text(json.dumps(changed), "utf-8")
        with pytest.raises(UserError, match=r"manifest\.json: column 'a' is described as"):
            read_columns(folder)
    for text in ("", "[]", "{}", '{"format": "finerank columns 1", "columns": {"a": 3}}', '{"format": "other"}'):
        (folder / "manifest.json").write_text(text, "utf-8")
        with pytest.raises(UserError, match=r"manifest\.json: .*prepare again"):
            read_columns(folder)
    with pytest.raises(UserError, match=r"manifest\.json: there is no such file"):
        read_columns(tmp_path / "nowhere")


# ------------------------------------------------------------------------------------------------ blocks


def test_a_block_goes_to_disk_and_back(tmp_path: Path) -> None:
    block = block_for(make([(0, 0, 0, 0)] * 9))
    block = Block(block.ids, block.numbers, {**block.lists, "a.b": Lists(*vars(block.lists["tags"]).values())})
    with ColumnWriter(tmp_path / "x") as out:
        out.append(block_arrays(block, "row."))
    back = block_of(read_columns(tmp_path / "x"), "row.")
    assert rows_in(back) == rows_in(block)
    assert list(back.lists) == ["tags", "a.b"]
    assert (back.ids.dtype, back.lists["tags"].ids.dtype) == (np.int32, np.int32)
    plain = Block(block.ids, block.numbers, {"t": Lists(*(vars(block.lists["tags"]) | {"weights": None}).values())})
    assert block_of(block_arrays(plain)).lists["t"].weights is None
    with pytest.raises(UserError, match="at most 2,147,483,647 rows"):
        block_arrays(Block(np.array([[2**31]]), block.numbers[:1]))


def test_take_keeps_the_distinct_lists_that_occur_by_first_occurrence() -> None:
    block = block_for(make([(0, 0, 0, 0)] * 8))  # rows 0..7 have lists [], [3], [3, 4], [5, 3, 4], [], ...
    taken = take_block(block, np.array([6, 3, 4, 2, 3]))
    assert rows_in(taken) == [rows_in(block)[i] for i in (6, 3, 4, 2, 3)]
    tags = taken.lists["tags"]
    assert tags.index.tolist() == [0, 1, 2, 0, 1]
    assert tags.lengths.tolist() == [2, 3, 0]
    assert tags.segments.tolist() == [0, 0, 1, 1, 1]
    assert tags.ids.tolist() == [[3, 13], [4, 14], [5, 15], [3, 13], [4, 14]]
    none = take_block(block, np.array([], dtype=np.int64))
    assert (none.ids.shape, none.numbers.shape, none.lists["tags"].ids.shape) == ((0, 2), (0, 1), (0, 2))


@quick
@given(st.lists(st.tuples(st.lists(st.integers(3, 4), max_size=3), st.integers(0, 1)), max_size=12))
def test_equal_lists_become_one(rows: list[tuple[list[int], int]]) -> None:
    """Every row brings its own list; weights differ by row, so that lists of equal ids may still be different lists."""
    ids = np.array([t for one, _ in rows for t in one], dtype=np.int64).reshape(-1, 1)
    weights = np.array([w for one, w in rows for _ in one], dtype=np.float32)
    lengths = np.array([len(one) for one, _ in rows], dtype=np.int64)
    given_ = Lists(np.arange(len(rows)), ids, weights, np.repeat(np.arange(len(rows)), lengths), lengths)
    merged = without_copies(given_)
    nothing = np.zeros((len(rows), 0))
    assert rows_in(Block(nothing, nothing, {"x": merged})) == rows_in(Block(nothing, nothing, {"x": given_}))
    assert len(merged.lengths) == len({(tuple(one), w if one else 0) for one, w in rows})


def test_blocks_join_row_after_row() -> None:
    events = make([(0, 0, 0, 0)] * 9)
    joined = concat_blocks([block_for(events[:3]), block_for([]), block_for(events[3:])])
    assert rows_in(joined) == rows_in(block_for(events))


def test_ranges_are_written_out_one_after_the_other() -> None:
    index, segments, lengths = flatten(np.array([4, 7, 0]), np.array([6, 7, 3]))
    assert (index.tolist(), segments.tolist(), lengths.tolist()) == ([4, 5, 0, 1, 2], [0, 0, 2, 2, 2], [2, 0, 3])
    assert [a.tolist() for a in flatten(np.array([], dtype=np.int64), np.array([], dtype=np.int64))] == [[], [], []]
