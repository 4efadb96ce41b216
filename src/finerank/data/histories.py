"""Histories of prepared data: the sorted table of events, every request's slice of it, and how often each event is seen.

E events · R requests
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from finerank.data.columns import ColumnWriter
from finerank.data.dataset import Slices
from finerank.data.encode import BlockEncoder
from finerank.data.events import EVENT, EventTable, coverage
from finerank.data.fit import Fitter, Known
from finerank.data.requests import Requests
from finerank.data.samples import ListPast, LogPast
from finerank.data.scratch import Array, Int64s, Scratch
from finerank.data.staged import Column, Ids
from finerank.errors import UserError
from finerank.runtime.blocks import Block
from finerank.runtime.encoder import Encoder, age_ids
from finerank.runtime.history import check_known, flatten
from finerank.schema import History


class Past(ABC):
    """A history before it is encoded.

    columns   of the events in the order in which they are counted and encoded: that of the log, or of the requests
    index     int64 [E]: the columns' row of each event in that order; None: its own
    slices    of the requests
    events    E
    """

    history: History
    columns: Mapping[str, Column]
    index: Int64s | None
    slices: Slices
    events: int

    def fit(self, fitter: Fitter, weight: Array, scratch: Scratch) -> None:
        """Count the events as often as they lie in the history of a training row. weight: [R] training rows of each."""
        weights = self._seen(weight, scratch)
        for name, column in self.columns.items():
            fitter.count(fitter.schema.field(self.history, name), column, weights, self.index, scratch)

    def encoder(self, encoder: Encoder, known: Known, scratch: Scratch) -> BlockEncoder:
        """What encodes the events. Growing tables have grown when it is there."""
        return BlockEncoder(
            encoder, self.history.name, self.columns, self.events, self.index, scratch, grow=True, known=known
        )

    def write(self, folder: Path, made: BlockEncoder, scratch: Scratch) -> None:
        """Write the table of events and the slices."""
        self._write_events(folder / "events", made, scratch)
        with ColumnWriter(folder / "slices") as out:
            for name, array in vars(self.slices).items():
                out.append_all(name, array, scratch.block)

    @abstractmethod
    def _seen(self, weight: Array, scratch: Scratch) -> Array:
        """How often each event lies in a history, integers [E] in the order of the columns."""

    @abstractmethod
    def _write_events(self, folder: Path, made: BlockEncoder, scratch: Scratch) -> None: ...


# ------------------------------------------------------------------------------------------------ from a log


class PastOfLog(Past):
    """What a log of events gives to the requests: a slice of a table sorted by user.

    table   sorted, without columns · order: int64 [E], where in the log its events are
    """

    def __init__(self, log: LogPast, names: Ids, requests: Requests, scratch: Scratch) -> None:
        """names: `Samples.users`."""
        self.history, self.columns, self.index, self.events = log.history, log.columns, None, len(log.user)
        if not self.events:
            raise UserError(
                f"history {self.history.name!r}: no event matches where = {dict(self.history.where)}, "
                "so every history would be empty"
            )
        user = scratch.made(self.events, lambda at: requests.codes[names.codes(log.user[at])])
        if any((log.known_at[at] < log.time[at]).any() for at in scratch.pieces(self.events)):
            check_known(log.time, log.known_at)  # raises
        users = len(requests.users)
        self.table, self.order = EventTable.arranged(user, log.time, log.known_at, log.sequence, users, scratch)
        start, end, known = (scratch.empty(len(requests)) for _ in range(3))
        for at in scratch.pieces(len(requests)):
            known[at] = self.table.known_before(requests.time[at], requests.sequence[at], self.history.ties)
            start[at], end[at] = self.table.recent(requests.user[at], known[at], self.history.max_length)
        self.slices = Slices(start, end, known)

    def _seen(self, weight: Array, scratch: Scratch) -> Array:
        seen = coverage(self.slices.start, self.slices.end, weight, self.events, scratch)
        out = scratch.empty(self.events)
        for at in scratch.pieces(self.events):
            out[self.order[at]] = seen[at]
        return out

    def _write_events(self, folder: Path, made: BlockEncoder, scratch: Scratch) -> None:
        like = made.empty()
        ids = scratch.empty((self.events, like.ids.shape[1]), np.int32)
        numbers = scratch.empty((self.events, like.numbers.shape[1]), np.float32)
        index = {name: scratch.empty(self.events) for name in like.lists}
        for at in scratch.pieces(self.events):
            ids[at], numbers[at], of_lists = made.block(at)
            for name, rows in of_lists.items():
                index[name][at] = rows
        replace(self.table, block=Block(ids, numbers, made.lists(index))).save(folder, self.order)

    def count_ages(self, counts: Int64s, encoder: Encoder, requests: Requests, weight: Array, block: int) -> None:
        """Add how often each bucket of age occurs in the training rows: the id that a row and an event have together.

        block  events that are written out at a time, about
        """
        step = max(1, block // self.history.max_length)
        for start in range(0, len(requests), step):
            chunk = start + np.flatnonzero(weight[start : start + step])
            index, segments, _ = flatten(self.slices.start[chunk], self.slices.end[chunk])
            ages = age_ids(encoder, self.history.name, requests.time[chunk][segments] - self.table.time[index])
            counts += np.bincount(ages, weight[chunk][segments], len(counts)).astype(np.int64)


# ------------------------------------------------------------------------------------------------ from list columns


class PastOfLists(Past):
    """List columns: every request's list is its own slice. Its events have no time; what is known grows by request.

    The table needs neither sorting nor columns beside those of the features.
    """

    def __init__(self, past: ListPast, requests: Requests, scratch: Scratch) -> None:
        self.history, self.columns = past.history, past.columns
        self.lengths = scratch.take(past.lengths, requests.heads)
        end = scratch.running(self.lengths)
        longest = past.history.max_length
        start = scratch.made(len(end), lambda at: np.maximum(end[at] - self.lengths[at], end[at] - longest))
        self.slices, self.events = Slices(start, end, end), int(end[-1])
        self.index = None
        if requests.rows_of_heads is not None:
            self.index = scratch.empty(self.events)
            ends = scratch.running(past.lengths)  # of the rows' events, in the samples' order
            for at in self._pieces(scratch.block):
                last = ends[requests.heads[at]]
                self.index[self._here(at)] = flatten(last - self.lengths[at], last)[0]

    def _pieces(self, block: int) -> Iterator[slice]:
        """The requests, one piece after the other, of at most a block of requests and of events: lists may be long."""
        end, start = self.slices.end, 0
        while start < len(end):
            before = int(end[start] - self.lengths[start])
            fit = int(np.searchsorted(end[start : start + block], before + block, side="right"))
            stop = start + max(1, fit)  # a list that is longer than a block is a piece of its own
            yield slice(start, stop)
            start = stop

    def _here(self, at: slice) -> slice:
        """The events of these requests."""
        end = self.slices.end
        return slice(int(end[at.start] - self.lengths[at.start]), int(end[at.stop - 1]))

    def _seen(self, weight: Array, scratch: Scratch) -> Array:
        small = max((int(weight[at].max()) for at in scratch.pieces(len(weight))), default=0) < 128
        out = scratch.empty(self.events, np.int8 if small else np.int64)  # there are many events
        for at in self._pieces(scratch.block):
            kept = self.slices.end[at] - self.slices.start[at]
            counts, times = self.lengths[at], weight[at]
            if (kept < counts).any():  # of a long list the oldest events are in no history
                counts = np.column_stack([counts - kept, kept]).ravel()
                times = np.column_stack([np.zeros_like(times), times]).ravel()
            out[self._here(at)] = np.repeat(times.astype(out.dtype), counts)
        return out

    def _write_events(self, folder: Path, made: BlockEncoder, scratch: Scratch) -> None:
        with ColumnWriter(folder) as out:
            for write in made.writes(out, EVENT):
                write()
