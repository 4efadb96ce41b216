"""The versioned map from symbols to embedding rows of a growing table. It lives in the checkpoint.

Encoded data hold symbols, which are never reused; rows are few and are. The map is applied when a batch is built, so an
evicted or not yet admitted symbol reads as out of vocabulary while the data stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from finerank.errors import UserError
from finerank.schema import FIRST, OOV

Int64s: TypeAlias = NDArray[np.int64]

FREE = -1
"""The symbol of a row that nobody holds."""


@dataclass(frozen=True)
class Changes:
    """What one observation changed; all int64.

    admitted_rows     rows that now mean another value: initialise them and their optimiser state anew
    evicted_symbols   symbols that lost their row, in the order of the rows given away
    admitted_symbols  aligned with admitted_rows
    """

    admitted_rows: Int64s
    evicted_symbols: Int64s
    admitted_symbols: Int64s

    def __bool__(self) -> bool:
        return len(self.admitted_rows) > 0


class RowMap:
    """Rows 3 ... capacity + 2 for the symbols of one growing table; symbols 0, 1, 2 are rows 0, 1, 2 always.

    capacity     rows for values; the embedding table has capacity + 3
    admit_after  occurrences until a symbol gets a row; an evicted symbol starts counting again
    version      how many observations changed the map
    """

    def __init__(self, capacity: int, admit_after: int = 1) -> None:
        if capacity < 1 or admit_after < 1:
            raise UserError(f"growing table: capacity {capacity}, admit_after {admit_after}; accepted: at least 1 each")
        self.capacity, self.admit_after = capacity, admit_after
        self.version = 0
        self.time: int | None = None
        self._row_of = np.arange(FIRST, dtype=np.int64)  # by symbol; OOV where it has none
        self._count = np.zeros(FIRST, dtype=np.int64)  # by symbol
        self._symbol_of = np.full(FIRST + capacity, FREE, dtype=np.int64)  # by row
        self._seen = np.zeros(FIRST + capacity, dtype=np.int64)  # by row: when its symbol was last observed
        self._used = FIRST  # rows from here on were never given; a row once given is passed on, never freed

    def rows_of(self, symbols: Int64s) -> Int64s:
        """The row of each symbol (int64, any shape): one gather; a symbol without a row gives 1, out of vocabulary."""
        if symbols.size and int(symbols.max()) < len(self._row_of):
            return self._row_of[symbols]
        known = symbols < len(self._row_of)
        return np.where(known, self._row_of[np.where(known, symbols, OOV)], OOV)

    @property
    def held(self) -> int:
        """How many symbols have a row."""
        return self._used - FIRST

    def counts_of(self, symbols: Int64s) -> Int64s:
        """How often each symbol (int64, any shape) was counted since it last had no row; 0 for what was never seen."""
        known = symbols < len(self._count)
        return np.where(known, self._count[np.where(known, symbols, 0)], 0)

    def observe(self, symbols: Int64s, counts: Int64s, time: int) -> Changes:
        """Count occurrences, admit symbols that have enough, evict those unseen for longest where rows run out.

        symbols  int64 [n], repeats add up; reserved symbols are ignored
        counts   int64 [n], occurrences of each
        time     any clock that does not run back: step, hour

        Where room is short the most counted come first (ties: the lower symbol); a row whose symbol was seen at this
        very time is never taken. A symbol that found no room is considered again when it is next observed.
        """
        if self.time is not None and time < self.time:
            raise UserError(f"growing table: observed time {time} after {self.time}; give times that do not run back")
        self.time = time
        distinct, inverse = np.unique(symbols[symbols >= FIRST], return_inverse=True)
        self._reserve(int(distinct[-1]) + 1 if len(distinct) else 0)
        np.add.at(self._count, distinct[inverse], counts[symbols >= FIRST])
        rows = self._row_of[distinct]
        self._seen[rows[rows >= FIRST]] = time
        waiting = distinct[(rows == OOV) & (self._count[distinct] >= self.admit_after)]
        waiting = waiting[np.lexsort((waiting, -self._count[waiting]))]
        fresh = np.arange(self._used, min(self._used + len(waiting), FIRST + self.capacity), dtype=np.int64)
        taken = self._oldest(len(waiting) - len(fresh), time)
        evicted = self._symbol_of[taken]
        self._row_of[evicted] = OOV
        self._count[evicted] = 0
        granted = np.concatenate([fresh, taken])
        admitted = waiting[: len(granted)]
        self._row_of[admitted], self._symbol_of[granted], self._seen[granted] = granted, admitted, time
        self._used += len(fresh)
        self.version += len(granted) > 0
        return Changes(granted, evicted, admitted)

    def _oldest(self, n: int, time: int) -> Int64s:
        """At most `n` rows whose symbols were last seen before `time`: unseen for longest first, ties by symbol."""
        rows = np.flatnonzero(self._seen[FIRST : self._used] < time) + FIRST if n > 0 else np.zeros(0, dtype=np.int64)
        if n < len(rows):  # the n-th oldest moment, in linear time, leaves few to sort
            rows = rows[self._seen[rows] <= np.partition(self._seen[rows], n - 1)[n - 1]]
        order: Int64s = rows[np.lexsort((self._symbol_of[rows], self._seen[rows]))][: max(n, 0)]
        return order

    def _reserve(self, symbols: int) -> None:
        """Room for so many symbols; doubling, so that growth costs little in total."""
        if symbols > len(self._row_of):
            more = max(symbols, 2 * len(self._row_of)) - len(self._row_of)
            self._row_of = np.concatenate([self._row_of, np.full(more, OOV, dtype=np.int64)])
            self._count = np.concatenate([self._count, np.zeros(more, dtype=np.int64)])

    # -------------------------------------------------------------------------------------------- checkpoint

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything as arrays, copied: `RowMap.from_state(m.state())` goes on as `m` would."""
        time = [] if self.time is None else [self.time]
        return {
            "facts": np.array([self.capacity, self.admit_after, self.version, self._used, *time], dtype=np.int64),
            "row_of": self._row_of.copy(),
            "count": self._count.copy(),
            "symbol_of": self._symbol_of.copy(),
            "seen": self._seen.copy(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]]) -> RowMap:
        """The map that `state` described. Raises UserError if the arrays do not describe one."""
        expected = {"facts", "row_of", "count", "symbol_of", "seen"}
        if set(state) != expected or len(state["facts"]) not in (4, 5):
            raise UserError(
                f"row map: got arrays {sorted(state)}; accepted: {sorted(expected)}; the checkpoint is not whole"
            )
        capacity, admit_after, version, used, *time = (int(v) for v in state["facts"])
        made = cls(capacity, admit_after)
        made.version, made._used, made.time = version, used, time[0] if time else None
        made._row_of, made._count = (state[k].astype(np.int64) for k in ("row_of", "count"))
        made._symbol_of, made._seen = (state[k].astype(np.int64) for k in ("symbol_of", "seen"))
        if not made._sound():
            raise UserError("row map: symbols and rows do not match each other; the checkpoint is not whole")
        return made

    def _sound(self) -> bool:
        """Whether symbols with a row and rows with a symbol are each other's inverse."""
        symbols, rows = self._symbol_of[FIRST : self._used], np.arange(FIRST, self._used)
        return (
            FIRST <= self._used <= FIRST + self.capacity
            and len(self._row_of) == len(self._count) >= FIRST
            and len(self._symbol_of) == len(self._seen) == FIRST + self.capacity
            and bool((self._row_of[:FIRST] == np.arange(FIRST)).all())
            and bool(((symbols >= FIRST) & (symbols < len(self._row_of))).all())
            and np.array_equal(self._row_of[symbols], rows)
            and np.array_equal(np.sort(self._row_of[self._row_of >= FIRST]), rows)
        )
