"""Histories of prepared data: the sorted table of events, every request's slice of it, and how often each event is seen.

E events · R requests
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from finerank.data.columns import ColumnWriter
from finerank.data.dataset import Slices
from finerank.data.encode import BlockEncoder, Fitter, Known
from finerank.data.events import EventTable, coverage
from finerank.data.requests import Requests
from finerank.data.samples import ListPast, LogPast
from finerank.data.scratch import Array, Int64s, Scratch
from finerank.data.staged import Column
from finerank.runtime.blocks import Block
from finerank.runtime.encoder import Encoder, age_ids
from finerank.runtime.history import check_known, flatten
from finerank.schema import History

REQUESTS = 100_000
"""Requests whose events are written out at a time."""


@dataclass(frozen=True)
class Past:
    """A history before it is encoded.

    columns   of the events in the order in which they are counted and encoded: that of the log, or of the requests
    index     int64 [E]: the columns' row of each event in that order; None: its own
    table     the sorted table, without columns · order: int64 [E], where in that order its events are; None: as they come
    slices    of the requests
    """

    history: History
    columns: Mapping[str, Column]
    index: Int64s | None
    table: EventTable
    order: Int64s | None
    slices: Slices

    def __len__(self) -> int:
        return len(self.table)

    def fit(self, fitter: Fitter, weight: Array, scratch: Scratch) -> None:
        """Count the events as often as they lie in the history of a training row. weight: [R] training rows of each."""
        weights = coverage(self.slices.start, self.slices.end, weight, len(self), scratch)
        if self.order is not None:
            seen, weights = weights, scratch.empty(len(self))
            for at in scratch.pieces(len(self)):
                weights[self.order[at]] = seen[at]
        for name, column in self.columns.items():
            fitter.count(fitter.schema.field(self.history, name), column, weights, self.index, scratch)

    def write(self, folder: Path, encoder: Encoder, known: Known, scratch: Scratch) -> None:
        """Encode the events, and write the table and the slices."""
        made = BlockEncoder(encoder, self.history.name, self.columns, len(self), self.index, scratch, grow=True, known=known)
        like = made.empty()
        ids = scratch.empty((len(self), like.ids.shape[1]), np.int32)
        numbers = scratch.empty((len(self), like.numbers.shape[1]), np.float32)
        index = {name: scratch.empty(len(self)) for name in like.lists}
        for at in scratch.pieces(len(self)):
            ids[at], numbers[at], of_lists = made.block(at)
            for name, rows in of_lists.items():
                index[name][at] = rows
        replace(self.table, block=Block(ids, numbers, made.lists(index))).save(folder / "events", self.order)
        with ColumnWriter(folder / "slices") as out:
            for name, array in vars(self.slices).items():
                out.append({name: array[:0]})
                for at in scratch.pieces(len(array)):
                    out.append({name: array[at]})

    def count_ages(self, counts: Int64s, encoder: Encoder, requests: Requests, weight: Array) -> None:
        """Add how often each bucket of age occurs in the training rows: the id that a row and an event have together."""
        for start in range(0, len(requests), REQUESTS):
            chunk = start + np.flatnonzero(weight[start : start + REQUESTS])
            index, segments, _ = flatten(self.slices.start[chunk], self.slices.end[chunk])
            ages = age_ids(encoder, self.history.name, requests.time[chunk][segments] - self.table.time[index])
            counts += np.bincount(ages, weight[chunk][segments], len(counts)).astype(np.int64)


def past_of_log(log: LogPast, user: Int64s, requests: Requests, scratch: Scratch) -> Past:
    """The past that a log of events gives to the requests. user: the codes of the events', [E]."""
    history, events = log.history, len(log.user)
    if any((log.known_at[at] < log.time[at]).any() for at in scratch.pieces(events)):
        check_known(log.time, log.known_at)  # raises
    table, order = EventTable.arranged(user, log.time, log.known_at, log.sequence, len(requests.users), scratch)
    start, end, known = (scratch.empty(len(requests)) for _ in range(3))
    for at in scratch.pieces(len(requests)):
        known[at] = table.known_before(requests.time[at], requests.sequence[at], history.ties)
        start[at], end[at] = table.recent(requests.user[at], known[at], history.max_length)
    return Past(history, log.columns, None, table, order, Slices(start, end, known))


def past_of_lists(past: ListPast, requests: Requests, scratch: Scratch) -> Past:
    """List columns: every request's list is its own slice. Their events have no time; what is known grows by request."""
    ends = _running(past.lengths, scratch)  # of the rows' events, in the samples' order
    lengths = scratch.made(len(requests), lambda at: past.lengths[requests.heads[at]])
    end = _running(lengths, scratch)
    start = scratch.made(len(requests), lambda at: np.maximum(end[at] - lengths[at], end[at] - past.history.max_length))
    events = int(end[-1])
    request, position, index = (scratch.empty(events) for _ in range(3))
    in_order = events == int(ends[-1])
    for at in scratch.pieces(len(requests)):
        here = slice(int(end[at.start] - lengths[at.start]), int(end[at.stop - 1]))
        last = ends[requests.heads[at]]
        source, segments, _ = flatten(last - lengths[at], last)
        request[here], index[here] = at.start + segments, source
        position[here] = np.arange(here.start, here.stop) - (end[at] - lengths[at])[segments]
        in_order = in_order and bool((source == np.arange(here.start, here.stop)).all())
    table, _ = EventTable.arranged(request, request, request, position, len(requests), scratch)
    return Past(past.history, past.columns, None if in_order else index, table, None, Slices(start, end, end))


def _running(lengths: Int64s, scratch: Scratch) -> Int64s:
    """int64 [n]: the sum of each and those before it."""
    out, so_far = scratch.empty(len(lengths)), 0
    for at in scratch.pieces(len(lengths)):
        out[at] = so_far + np.cumsum(lengths[at])
        so_far = int(out[at.stop - 1])
    return out
