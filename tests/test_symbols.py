"""Symbol tables keep names and never reuse a symbol; row maps reuse rows and never confuse two values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finerank.data.tally import TextTally
from finerank.errors import UserError
from finerank.runtime.fields import TableSpec
from finerank.runtime.hashing import hash64
from finerank.runtime.rows import RowMap
from finerank.runtime.symbols import CutsTable, GrowingTable, HashedTable, SymbolTable, VocabularyTable
from finerank.schema import FIRST, MISSING, OOV, Vocabulary

quick = settings(derandomize=True, max_examples=60, deadline=None)
TEXTS = ["a", "1", "01", "手机", "e\u0301", "\u00e9", "👩‍👩‍👧", "a\nb", "\x00"]

# ------------------------------------------------------------------------------------------------ tables


def fitted(counts: dict[str, int], encoding: Vocabulary) -> SymbolTable:
    tally = TextTally()
    tally.add(pl.Series(list(counts)), np.array(list(counts.values())), np.arange(len(counts)))
    return tally.fit("t", TableSpec(encoding))[0]


def test_vocabulary_orders_by_count_then_text_and_drops_the_rare() -> None:
    counts = {"b": 5, "a": 5, "z": 9, "rare": 1, "é": 5, "e": 5}
    table = fitted(counts, Vocabulary(min_count=2))
    assert table.names[FIRST:] == ["z", "a", "b", "e", "é"]
    assert [table.lookup(t) for t in ("z", "a", "é", "rare", "never", None)] == [3, 4, 7, OOV, OOV, MISSING]
    assert table.size == 8
    assert fitted(counts, Vocabulary(max_size=2)).names[FIRST:] == ["z", "a"]
    with pytest.raises(UserError, match="max_size = 0; accepted: 1 or more"):
        Vocabulary(max_size=0)
    with pytest.raises(UserError, match="twice"):
        VocabularyTable("t", ["a", "a"])


def test_growing_appends_in_order_of_first_occurrence_and_never_moves() -> None:
    table = GrowingTable("t", ["b"])
    assert table.extend(["c", "b", None, "a", "c"]).tolist() == [4, 3, MISSING, 5, 4]
    before = table.names
    assert table.extend(["new", "a"]).tolist() == [6, 5]
    assert table.names[: len(before)] == before
    assert table.lookup("newer") == OOV
    assert table.size == 7


def test_hashed_is_the_hash_and_keeps_the_names_it_saw() -> None:
    table = HashedTable("t", 4, TEXTS)
    for text in [*TEXTS, "unseen", "-7"]:
        assert table.lookup(text) == FIRST + hash64("t", text) % 4
        assert FIRST <= table.lookup(text) < table.size == 7
    assert table.lookup(None) == MISSING
    for symbol in range(table.size):  # those of a bucket in the order in which they were seen
        assert table.values_in(symbol) == [t for t in TEXTS if table.lookup(t) == symbol]
    for text in TEXTS:
        assert text in table.values_in(table.lookup(text))
        assert text in table.name(table.lookup(text))
    values = np.array([0, -7, 2**62])
    assert table.lookup_integers(values).tolist() == [table.lookup(str(v)) for v in values.tolist()]
    assert HashedTable("t", 4).name(5) == "<bucket 2>"
    with pytest.raises(UserError, match="buckets"):
        HashedTable("t", 0)


def test_cuts_put_a_number_right_of_the_cut_it_equals() -> None:
    table = CutsTable("t", [0.0, 1.5])
    assert table.bucket(np.array([-9.0, -0.0, 1.4999, 1.5, 99.0, np.nan])).tolist() == [3, 4, 4, 5, 5, MISSING]
    assert [table.lookup(t) for t in ("-9", "0", "1.5", None, "abc", "inf")] == [3, 4, 5, MISSING, OOV, OOV]
    assert table.names[FIRST:] == ["[-inf, 0)", "[0, 1.5)", "[1.5, inf)"]
    assert CutsTable("t", []).size == FIRST + 1
    for bad in ([1.0, 1.0], [2.0, 1.0], [float("nan")], [float("inf")]):
        with pytest.raises(UserError, match="ascending"):
            CutsTable("t", bad)


TABLES: list[SymbolTable] = [
    VocabularyTable("a/../b", TEXTS), VocabularyTable("empty", []), GrowingTable("g", TEXTS), HashedTable("h", 5, TEXTS),
    HashedTable("h", 5), CutsTable("c", [-1e300, 0.1, 1 / 3]), CutsTable("none", []),
]  # fmt: skip


@pytest.mark.parametrize("table", TABLES, ids=lambda t: f"{t.kind}-{t.size}")
def test_reading_back_equals(table: SymbolTable, tmp_path: Path) -> None:
    table.save(tmp_path / "t")
    read = SymbolTable.load(tmp_path / "t")
    assert type(read) is type(table)
    assert (read.table, read.size, read.names) == (table.table, table.size, table.names)
    texts = [*TEXTS, "unknown", "0.1", "0.5", None]
    assert read.lookup_all(texts).tolist() == table.lookup_all(texts).tolist()
    assert read.names[:FIRST] == ["<padding>", "<out of vocabulary>", "<missing>"]
    for symbol in (-1, table.size):
        with pytest.raises(UserError, match="no symbol"):
            read.name(symbol)
    if isinstance(read, GrowingTable):
        assert read.extend(["later", "a"]).tolist() == [table.size, FIRST]
    if isinstance(read, CutsTable) and isinstance(table, CutsTable):
        assert read.cuts.tobytes() == table.cuts.tobytes()


@pytest.mark.parametrize("file", ["table.json", "text.npy", "offsets.npy"])
def test_damage_is_told_by_file(file: str, tmp_path: Path) -> None:
    VocabularyTable("t", TEXTS).save(tmp_path)
    path = tmp_path / file
    whole = path.read_bytes()
    middle = len(whole) - 3  # in the content, behind the header
    damaged = [
        b"",
        whole[:-3],
        whole[: len(whole) // 2],
        whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
    ]
    for content in [*damaged, b"PK\x03\x04", b"[1]", b'{"content": {}}', b'{"content": {}, "xxh3": 0}', b"[" * 100_000]:
        path.write_bytes(content)
        with pytest.raises(UserError, match=file):
            SymbolTable.load(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=file):
        SymbolTable.load(tmp_path)


# ------------------------------------------------------------------------------------------------ row maps


def seen(rows: RowMap, symbols: list[int], time: int, counts: list[int] | None = None) -> tuple[list[int], list[int]]:
    changes = rows.observe(np.array(symbols, dtype=np.int64), np.array(counts or [1] * len(symbols)), time)
    assert rows.rows_of(changes.admitted_symbols).tolist() == changes.admitted_rows.tolist()
    return changes.admitted_rows.tolist(), changes.evicted_symbols.tolist()


def rows_of(rows: RowMap, *symbols: int) -> list[int]:
    return rows.rows_of(np.array(symbols, dtype=np.int64)).tolist()


def test_rows_are_reused_and_old_data_stay_true() -> None:
    rows = RowMap(capacity=2)
    assert rows_of(rows, 0, 1, 2, 3, 99) == [0, 1, 2, 1, 1]
    assert seen(rows, [10, 11], 1) == ([3, 4], [])
    assert seen(rows, [10], 2) == ([], [])
    assert rows.version == 1
    assert seen(rows, [12], 3) == ([4], [11])  # 11 is unseen for longest, its row is passed on
    assert rows_of(rows, 10, 11, 12) == [3, OOV, 4]  # data that hold symbol 11 read out of vocabulary now
    assert seen(rows, [11], 4) == ([3], [10])  # and back again, in another row
    assert rows_of(rows, 10, 11, 12, 2) == [OOV, 3, 4, 2]
    assert rows.version == 3


def test_admission_waits_for_enough_occurrences_and_starts_again_after_eviction() -> None:
    rows = RowMap(capacity=1, admit_after=3)
    assert seen(rows, [5, 5], 0) == ([], [])
    assert seen(rows, [5], 1) == ([3], [])
    assert seen(rows, [6], 2, counts=[3]) == ([3], [5])
    assert seen(rows, [5], 3) == ([], [])  # its earlier three do not count any more
    assert seen(rows, [5], 4, counts=[2]) == ([3], [6])


def test_short_room_goes_to_the_most_counted_and_never_from_the_just_seen() -> None:
    rows = RowMap(capacity=2)
    assert seen(rows, [7, 8, 9], 0, counts=[1, 5, 1]) == ([3, 4], [])
    assert rows_of(rows, 7, 8, 9) == [4, 3, OOV]  # 8 counted most; 7 before 9 by symbol
    assert seen(rows, [7, 8, 9], 1) == ([], [])  # 7 and 8 are as recent as 9: no swapping back and forth
    assert seen(rows, [9], 2) == ([3 if rows_of(rows, 7) == [3] else 4], [7])  # a tie goes by symbol: 7 before 8
    assert seen(rows, [0, 1, 2], 3) == ([], [])  # reserved symbols are nobody's


def test_times_do_not_run_back_and_sizes_make_sense() -> None:
    rows = RowMap(capacity=1)
    seen(rows, [3], 5)
    with pytest.raises(UserError, match="run back"):
        seen(rows, [3], 4)
    with pytest.raises(UserError, match="capacity 0"):
        RowMap(capacity=0)


def test_several_evictions_at_once_take_the_oldest_in_order() -> None:
    rows = RowMap(capacity=4)
    for time, symbol in enumerate([13, 12, 11, 10]):
        seen(rows, [symbol], time)
    assert seen(rows, [20, 21, 22], 9) == ([3, 4, 5], [13, 12, 11])
    assert rows_of(rows, 10, 20, 21, 22, 13) == [6, 3, 4, 5, OOV]


class SlowRowMap:
    """The same rules in plain Python."""

    def __init__(self, capacity: int, admit_after: int) -> None:
        self.capacity, self.admit_after = capacity, admit_after
        self.row: dict[int, int] = {}
        self.count: dict[int, int] = {}
        self.last: dict[int, int] = {}

    def observe(self, symbols: list[int], time: int) -> None:
        for s in symbols:
            if s >= FIRST:
                self.count[s] = self.count.get(s, 0) + 1
                self.last[s] = time
        waiting = sorted(
            (s for s in set(symbols) if s >= FIRST and s not in self.row and self.count[s] >= self.admit_after),
            key=lambda s: (-self.count[s], s),
        )
        for s in waiting:
            if len(self.row) < self.capacity:
                self.row[s] = FIRST + len(self.row)
                continue
            old = sorted((o for o in self.row if self.last[o] < time), key=lambda o: (self.last[o], o))
            if not old:
                return
            self.row[s] = self.row.pop(old[0])
            self.count[old[0]] = 0


STEPS = st.lists(st.tuples(st.lists(st.integers(0, 14), max_size=9), st.booleans()), max_size=12)


@quick
@given(st.integers(1, 5), st.integers(1, 3), STEPS)
def test_row_map_equals_its_slow_twin_across_restarts(
    capacity: int, admit_after: int, steps: list[tuple[list[int], bool]]
) -> None:
    fast, slow = RowMap(capacity, admit_after), SlowRowMap(capacity, admit_after)
    for time, (symbols, restart) in enumerate(steps):
        before = {s: fast.rows_of(np.array([s]))[0] for s in range(15)}
        changes = fast.observe(np.array(symbols, dtype=np.int64), np.ones(len(symbols), dtype=np.int64), time)
        slow.observe(symbols, time)
        now = {s: int(fast.rows_of(np.array([s]))[0]) for s in range(15)}
        assert {s: r for s, r in now.items() if s >= FIRST and r != OOV} == slow.row
        live = [r for s, r in now.items() if s >= FIRST and r != OOV]
        assert len(set(live)) == len(live)  # no two live symbols share a row
        assert all(FIRST <= r < FIRST + capacity for r in live)
        assert {s for s in now if now[s] != before[s] and now[s] != OOV} == set(changes.admitted_symbols.tolist())
        assert {s for s in now if before[s] != OOV and now[s] == OOV} == set(changes.evicted_symbols.tolist())
        if restart:
            fast = RowMap.from_state(fast.state())


def test_a_damaged_state_is_refused() -> None:
    rows = RowMap(capacity=3)
    seen(rows, [4, 5], 1)
    whole = rows.state()
    for name, at, value in [
        ("row_of", 4, 4),
        ("symbol_of", 3, 9),
        ("symbol_of", 3, 99),
        ("facts", 3, 99),
        ("facts", 0, 9),
    ]:
        broken = {k: v.copy() for k, v in whole.items()}
        broken[name][at] = value
        with pytest.raises(UserError, match="not whole"):
            RowMap.from_state(broken)
    for broken in (
        {k: v for k, v in whole.items() if k != "seen"},
        whole | {"more": whole["seen"]},
        whole | {"seen": np.zeros(1)},
    ):
        with pytest.raises(UserError, match="not whole"):
            RowMap.from_state(broken)
    assert rows_of(RowMap.from_state(whole), 4, 5, 6) == [3, 4, OOV]
