"""Event tables: all events of one declared history, sorted once, so that a row's history is a slice, never a copy.

E events · U users · R rows · T events of all histories together
A history from list columns is a `ListTable`: columns alone. An `EventTable`, of a log, is sorted by (user, known_at,
sequence); equal ones stay in the order in which they were given. The *rank* of an event is its place among all events in
the order (known_at, sequence, user): what a row knows of it is a prefix of the ranks, whatever comes later. Times are int64
microseconds. Users are codes 0 ... U-1: the caller keeps their names (canonical texts) and codes the rows the same way, -1
for a user without a code. The rule itself: `runtime.history`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from finerank.data.columns import ColumnWriter, block_arrays, block_of, narrow, read_columns, without_copies
from finerank.data.scratch import Scratch
from finerank.errors import UserError
from finerank.runtime.blocks import Block
from finerank.runtime.history import Array, Ints, Ties, check_known, check_ties, concat_blocks, take_block
from finerank.runtime.history import flatten as flatten

CHUNK = 1 << 20  # rows written at a time
EVENT = "event."  # the prefix of the block's columns

# ------------------------------------------------------------------------------------------------ vectorised searches


def _search(values: Array, keys: Array, side: Literal["left", "right"]) -> Ints:
    """`np.searchsorted` with the keys in order: it then walks through `values` instead of jumping about in them."""
    order = np.argsort(keys)
    found = np.empty(len(keys), dtype=np.int64)
    found[order] = np.searchsorted(values, keys[order], side=side)
    return found


def _search_within(values: Array, low: Ints, high: Ints, keys: Array, via: Array | None = None) -> Ints:
    """Per row r: the first i of [low[r], high[r]) with values[i] >= keys[r], or high[r]; values ascend in each range.

    via  values are read at via[i]. A binary search of all rows at once: as many passes as the longest range has bits.
    """
    low, high = low.copy(), high.copy()
    open_ = np.flatnonzero(low < high)  # rows still searching
    while len(open_):
        middle = (low[open_] + high[open_]) >> 1
        below = values[middle if via is None else via[middle]] < keys[open_]
        low[open_[below]] = middle[below] + 1
        high[open_[~below]] = middle[~below]
        open_ = open_[low[open_] < high[open_]]
    return low


def coverage(starts: Array, ends: Array, weights: Array, events: int, scratch: Scratch | None = None) -> Ints:
    """How often each event occurs in the histories of rows: int64 [events].

    starts, ends  [R] slices into the sorted table; weights: int64 [R], for example the candidates of each request
    scratch       where arrays of so many events lie; None: in memory
    """
    scratch = scratch or Scratch()
    rises = scratch.full(events + 1, 0)  # up where a slice starts, down where it ends
    for at in scratch.pieces(len(starts)):
        np.add.at(rises, starts[at], weights[at])
        np.subtract.at(rises, ends[at], weights[at])
    return scratch.running(rises, out=rises)[:events]


# ------------------------------------------------------------------------------------------------ one table


@dataclass(frozen=True)
class EventTable:
    """Events sorted by (user, known_at, sequence); immutable, in memory or mapped from column files.

    block      the encoded columns, ids int32
    user, known_at, time, sequence   int64 [E]
    key        int64 [E]: user * (E + 1) + rank, ascending; rank: position in the order (known_at, sequence, user)
    by_rank    int64 [E]: the events by rank; ``by_rank[floor(u * known)]``, u in [0, 1), is an event known to a row
    known      int64 [E]: known_at in the order of ranks
    offsets    int64 [U + 1]: user u has the events offsets[u]:offsets[u + 1]
    """

    block: Block[Array]
    user: Ints
    known_at: Ints
    time: Ints
    sequence: Ints
    key: Ints
    by_rank: Ints
    known: Ints
    offsets: Ints

    @staticmethod
    def build(
        folder: Path | str | None,
        user: Array,
        time: Array,
        known_at: Array,
        sequence: Array,
        block: Block[Array],
        *,
        users: int | None = None,
    ) -> EventTable:
        """Sort E events given in any order and write them to `folder` (None: keep them in memory), then open it.

        user      codes, 0 or more; users: U, at least the largest code + 1 (the default)
        time      when it happened; known_at: when it was known, never before `time`; both microseconds
        sequence  position in the log: breaks ties of known_at, and is compared with rows under ties = "file_order"
        Raises UserError for events known before they happen, codes below 0 or beyond `users`, or unequal lengths.
        """
        user, time, known_at, sequence = (np.asarray(a, dtype=np.int64) for a in (user, time, known_at, sequence))
        lengths = [len(user), len(time), len(known_at), len(sequence), len(block)]
        if len(set(lengths)) > 1:
            raise UserError(
                f"events: user, time, known_at, sequence and columns have {lengths} rows; give one of each per event"
            )
        least, most = (int(user.min()), int(user.max())) if len(user) else (0, -1)
        users = most + 1 if users is None else users
        if least < 0 or most >= users:
            raise UserError(
                f"events: user codes from {least} to {most}; accepted: 0 to {users - 1}. Leave out events of no user"
            )
        check_known(time, known_at)

        table, order = EventTable.arranged(user, time, known_at, sequence, users, Scratch(None, max(1, len(user))))
        # distinct lists keep their place: a row takes along only which one it has
        lists = {name: replace(c, index=c.index[order], ids=narrow(c.ids)) for name, c in block.lists.items()}
        table = replace(table, block=Block(narrow(block.ids)[order], block.numbers[order], lists))
        if folder is None:
            return table
        table.save(folder)
        return EventTable.open(folder)

    @staticmethod
    def arranged(
        user: Ints, time: Ints, known_at: Ints, sequence: Ints, users: int, scratch: Scratch
    ) -> tuple[EventTable, Ints]:
        """The table without columns, and the place [E] in what was given of each of its events. Arrays may be mapped."""
        events = len(user)
        by_time = scratch.order(known_at, sequence, user)
        rank = scratch.order(scratch.take(user, by_time))
        order = scratch.take(by_time, rank)
        by_rank, counts = scratch.empty(events), np.zeros(users, dtype=np.int64)
        for at in scratch.pieces(events):
            by_rank[rank[at]] = np.arange(at.start, at.stop)
            counts += np.bincount(user[at], minlength=users)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        key = scratch.made(events, lambda at: user[order[at]] * (events + 1) + rank[at])
        none: Block[Array] = Block(np.empty((events, 0), dtype=np.int32), np.empty((events, 0), dtype=np.float32))
        table = EventTable(
            block=none,
            user=scratch.take(user, order),
            known_at=scratch.take(known_at, order),
            time=scratch.take(time, order),
            sequence=scratch.take(sequence, order),
            key=key,
            by_rank=by_rank,
            known=scratch.take(known_at, by_time),
            offsets=offsets,
        )
        return table, order

    def save(self, folder: Path | str, order: Ints | None = None) -> None:
        """Write the column files (see `data.columns`): whole or not at all.

        order  the block's row of each event, where its rows are not those of the table
        """
        plain = {name: getattr(self, name) for name in PLAIN}
        with ColumnWriter(folder) as out:
            for name, array in (plain | block_arrays(self.block, EVENT)).items():
                of_rows = name in (f"{EVENT}ids", f"{EVENT}numbers") or name.endswith(".index")
                out.append_all(name, array, CHUNK, order if of_rows else None)

    @staticmethod
    def open(folder: Path | str) -> EventTable:
        """Open a saved table, mapped into memory. Raises UserError if it is damaged or holds something else."""
        arrays = read_columns(folder)
        block = _block_in(folder, arrays, PLAIN)
        return EventTable(block, *(np.asarray(arrays[name]) for name in PLAIN))

    def __len__(self) -> int:
        return len(self.user)

    @property
    def users(self) -> int:
        """U, the number of user codes."""
        return len(self.offsets) - 1

    @property
    def rank(self) -> Ints:
        """int64 [E]: the inverse of `by_rank`; computed, in memory."""
        return self.key - self.user * (len(self) + 1)

    def known_before(self, times: Array, sequences: Array | None, ties: Ties) -> Ints:
        """int64 [R]: how many events of the whole table, of any user, a row at (times, sequences) knows.

        sequences  int64 [R]; read for ties = "file_order" alone, may be None otherwise
        """
        check_ties(ties)
        before = _search(self.known, times, "left")
        if ties == "strict":
            return before
        if sequences is None:
            raise UserError('ties = "file_order" compares positions in the log; give the sequence of each row')
        return _search_within(self.sequence, before, _search(self.known, times, "right"), sequences, via=self.by_rank)

    def slices(
        self, users: Array, times: Array, sequences: Array | None, ties: Ties, max_length: int
    ) -> tuple[Ints, Ints]:
        """The history of each row as [start, end) of the sorted table: int64 [R] each; oldest first.

        users  int64 [R] codes; -1, or a code that this table does not have, sees nothing
        """
        return self.recent(users, self.known_before(times, sequences, ties), max_length)

    def recent(self, users: Array, known: Array, max_length: int) -> tuple[Ints, Ints]:
        """`slices` of rows that know the first `known` events by rank, int64 [R]."""
        coded = (users >= 0) & (users < self.users)
        code = np.where(coded, users, 0)
        start = np.where(coded, self.offsets[code], 0)
        # a user's ranks ascend, and those below `known` are known
        end = np.where(coded, _search(self.key, code * (len(self) + 1) + known, "left"), 0)
        return np.maximum(start, end - max_length), end

    def histories(
        self, users: Array, times: Array, sequences: Array | None, ties: Ties, max_length: int
    ) -> tuple[Ints, Ints, Ints]:
        """The same written out (see `flatten`): index for `gather` int64 [T], segments int64 [T], lengths int64 [R]."""
        return flatten(*self.slices(users, times, sequences, ties, max_length))

    def at_rank(self, ranks: Array) -> Ints:
        """The index, for `gather`, of the events of these ranks."""
        return self.by_rank[ranks]

    def gather(self, index: Array) -> tuple[Block[Array], Ints]:
        """The columns (ids int64) and times of these events, in memory."""
        return take_block(self.block, index), self.time[index]


PLAIN = ("user", "known_at", "time", "sequence", "key", "by_rank", "known", "offsets")


@dataclass(frozen=True)
class ListTable:
    """The events of a history from list columns, request after request; they have neither user nor time.

    What a request knows are the lists of the requests up to its own, so an event's rank is its place.
    """

    block: Block[Array]

    @staticmethod
    def open(folder: Path | str) -> ListTable:
        """Open a saved table, mapped into memory. Raises UserError if it is damaged or holds something else."""
        return ListTable(_block_in(folder, read_columns(folder)))

    def __len__(self) -> int:
        return len(self.block)

    @property
    def by_rank(self) -> Ints:
        """int64 [E]: the events in the order of ranks; made, in memory."""
        return np.arange(len(self))

    def at_rank(self, ranks: Array) -> Ints:
        """The index, for `gather`, of the events of these ranks."""
        return np.asarray(ranks, dtype=np.int64)

    def gather(self, index: Array) -> tuple[Block[Array], Ints]:
        """The columns (ids int64) of these events, in memory; 0 stands for their times, which lists do not tell."""
        return take_block(self.block, index), np.zeros(len(index), dtype=np.int64)


def _block_in(folder: Path | str, arrays: Mapping[str, Array], others: Sequence[str] = ()) -> Block[Array]:
    missing = [name for name in (*others, f"{EVENT}ids", f"{EVENT}numbers") if name not in arrays]
    if missing:
        raise UserError(f"{folder}: not an event table, it has no column {missing[0]!r}; prepare again")
    return block_of(arrays, EVENT)


# ------------------------------------------------------------------------------------------------ a table that grows


class EventLog:
    """A table and the segments that came later: the same answers as a table built anew from all of them.

    Indices run through the parts, one after the other: the base first, then segment by segment. So an index stays true
    while segments are added, and `compact` gives new ones. User codes are common to all parts; a segment may have more.
    What a query costs follows its rows and the number of parts. In memory: the order of the events from the first one
    that a segment came before (8 bytes each); the base's own order stays on disk.
    """

    def __init__(self, base: EventTable, segments: Sequence[EventTable] = ()) -> None:
        self.parts = [base]
        self.bases = np.array([0, len(base)], dtype=np.int64)  # first index of each part, and E
        self._late = np.empty(0, dtype=np.int64)  # indices of the events of ranks len(base) - ... on, see append
        self._head = len(base)  # ranks below it are the base's own
        for segment in segments:
            self.append(segment)

    def __len__(self) -> int:
        return int(self.bases[-1])

    def append(self, segment: EventTable) -> None:
        """Add a segment. Its events may be known before events that are here already."""
        if not len(segment):
            return
        first = segment.by_rank[:1]
        cut = int(self.known_before(segment.known_at[first], segment.sequence[first], "file_order")[0])
        cut = min(cut, self._head)
        late = np.concatenate([self.at_rank(np.arange(cut, len(self))), segment.by_rank + len(self)])
        self.parts.append(segment)
        self.bases = np.append(self.bases, len(self) + len(segment))
        known_at, sequence, user = (self._column(name, late) for name in ("known_at", "sequence", "user"))
        self._late = late[np.lexsort((user, sequence, known_at))]  # stable: equal ones stay in order of arrival
        self._head = cut

    def _part_of(self, index: Array) -> Ints:
        return np.searchsorted(self.bases, index, side="right") - 1

    def _column(self, name: str, index: Array) -> Ints:
        """One of the int64 columns at these indices."""
        part_of, out = self._part_of(index), np.empty(len(index), dtype=np.int64)
        for number, part in enumerate(self.parts):
            here = np.flatnonzero(part_of == number)
            out[here] = getattr(part, name)[index[here] - self.bases[number]]
        return out

    def known_before(self, times: Array, sequences: Array | None, ties: Ties) -> Ints:
        """int64 [R]: how many events of all parts a row knows (see `EventTable.known_before`)."""
        known = np.zeros(len(times), dtype=np.int64)
        for part in self.parts:
            known += part.known_before(times, sequences, ties)
        return known

    def at_rank(self, ranks: Array) -> Ints:
        """The index, for `gather`, of the events of these ranks over all parts."""
        ranks = np.asarray(ranks)
        late = ranks >= self._head
        index = np.empty(len(ranks), dtype=np.int64)
        index[~late] = self.parts[0].by_rank[ranks[~late]]
        index[late] = self._late[ranks[late] - self._head]
        return index

    def histories(
        self, users: Array, times: Array, sequences: Array | None, ties: Ties, max_length: int
    ) -> tuple[Ints, Ints, Ints]:
        """The history of each row over all parts: index for `gather` int64 [T], segments int64 [T] (the row of each),
        lengths int64 [R]; oldest first, the most recent `max_length`. Arguments as `EventTable.slices`."""
        slices = [part.slices(users, times, sequences, ties, max_length) for part in self.parts]
        starts, ends = (np.stack([s[i] for s in slices], axis=1) + self.bases[:-1] for i in (0, 1))  # [R, parts]
        index, pieces, _ = flatten(starts.reshape(-1), ends.reshape(-1))
        row = pieces // len(self.parts)
        if len(self.parts) > 1:
            known_at, sequence = self._column("known_at", index), self._column("sequence", index)
            index = index[np.lexsort((sequence, known_at, row))]  # stable: equal ones stay in order of arrival
        available = np.bincount(row, minlength=len(users))
        after = np.cumsum(available)[row] - np.arange(len(row))  # from here to the end of the row's events
        recent = after <= max_length
        return index[recent], row[recent], np.minimum(available, max_length)

    def gather(self, index: Array) -> tuple[Block[Array], Ints]:
        """The columns (ids int64) and times of these events, in memory. Equal lists of two parts stay two."""
        part_of = self._part_of(index)
        pieces = [(n, np.flatnonzero(part_of == n)) for n in range(len(self.parts))]
        blocks = [take_block(self.parts[n].block, index[here] - self.bases[n]) for n, here in pieces]
        place = np.empty(len(index), dtype=np.int64)
        place[np.concatenate([here for _, here in pieces])] = np.arange(len(index))
        return take_block(concat_blocks(blocks), place), self._column("time", index)

    def compact(self, folder: Path | str | None) -> EventTable:
        """One table of all parts, written to `folder` (None: in memory); lists that are equal are stored once again."""
        block = concat_blocks([part.block for part in self.parts])
        block = replace(block, lists={name: without_copies(lists) for name, lists in block.lists.items()})
        user, time, known_at, sequence = (
            np.concatenate([getattr(part, name) for part in self.parts])
            for name in ("user", "time", "known_at", "sequence")
        )
        users = max(part.users for part in self.parts)
        return EventTable.build(folder, user, time, known_at, sequence, block, users=users)
