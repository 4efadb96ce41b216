"""Samples put in order: rows grouped into requests, requests sorted by time, users named by codes.

N rows · R requests · U users
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from finerank.data.samples import Samples
from finerank.data.scratch import Array, Int64s, Scratch
from finerank.data.source import collect
from finerank.errors import UserError
from finerank.runtime.values import shown


@dataclass(frozen=True)
class Requests:
    """The order of the samples, and who asked when. Arrays may be mapped.

    order     int64 [N] into the source: requests by time, rows of a request adjacent, in their own order
    first     int64 [R + 1]: request r has the rows first[r]:first[r + 1] of the order
    heads     int64 [R]: the source rows that stand for their requests, each the first of its own
    rows      the order for who reads columns: None where the source is in order already
    time, sequence  int64 [R], microseconds; place in the log · user: int64 [R] codes, -1 for nobody
    users     [U] texts, sorted · codes: int64, the code of each `Samples.users` code
    """

    order: Int64s
    rows: Int64s | None
    first: Int64s
    heads: Int64s
    time: Int64s
    sequence: Int64s
    user: Int64s
    users: pl.Series
    codes: Int64s

    @property
    def rows_of_heads(self) -> Int64s | None:
        """The heads, None if each row of the source is a request and they are in order."""
        return None if len(self.heads) == len(self.order) and self.rows is None else self.heads

    def __len__(self) -> int:
        return len(self.heads)

    def sizes(self, at: slice) -> Int64s:
        """Rows of these requests: int64 [n]."""
        return np.diff(self.first[at.start : at.stop + 1])

    def spread(self, values: Array, scratch: Scratch) -> Array:
        """[N], in the order: the value of each row's request."""
        return values if len(self) == len(self.order) else scratch.spread(self.first, values)


def requests_of(samples: Samples, scratch: Scratch) -> Requests:
    """Group and sort what was read. Raises UserError for a request of two users, two moments, or two of what is one's."""
    keys, n = samples.keys, samples.rows
    head = _heads(samples, scratch)
    if keys.time is not None:
        _same(
            samples,
            head,
            samples.time,
            scratch,
            f"rows of different times ({keys.time!r}); a request is one user at one moment: give its rows one time",
        )
    users, codes = _coded_users(samples)
    user = None
    if keys.user is not None:
        user = scratch.made(n, lambda at: codes[samples.users.codes(at)])
        _same(
            samples,
            head,
            user,
            scratch,
            f"rows of different users ({keys.user!r}), or some without one; number each user's requests apart",
        )
    _refuse_two_of_one(samples, head, scratch)

    time, sequence = samples.time, samples.sequence
    if sequence is not None and head is not None:
        earliest = scratch.full(n, np.iinfo(np.int64).max)
        for at in scratch.pieces(n):  # a request stands at the first of its rows' places in the log
            np.minimum.at(earliest, head[at], sequence[at])
        sequence = scratch.take(earliest, head)
    each = scratch.made(n + 1, lambda at: np.arange(at.start, at.stop))
    number = each[:-1] if head is None else head
    keys_of_time = [] if time is None else [key for key in (time, sequence) if key is not None]
    order = scratch.order(*keys_of_time, number) if keys_of_time or head is not None else number
    first, heads = each, order  # where each row is a request
    if head is not None:
        first = scratch.runs(scratch.take(head, order))
        heads = scratch.take(order, first[:-1])

    def of_heads(values: Array | None) -> Int64s:
        return heads if values is None else scratch.take(values, heads)

    nobody = scratch.full(len(heads), -1) if user is None else of_heads(user)
    in_order = all((order[at] == np.arange(at.start, at.stop)).all() for at in scratch.pieces(n))
    rows = None if in_order else order
    return Requests(order, rows, first, heads, of_heads(time), of_heads(sequence), nobody, users, codes)


def _heads(samples: Samples, scratch: Scratch) -> Int64s | None:
    """int64 [N]: the first source row of each row's request. None: each row is its own."""
    if samples.request is None:
        return None
    keys = samples.request
    order = scratch.order(*keys)
    starts = scratch.runs(*(scratch.take(key, order) for key in keys))
    of_run = scratch.spread(starts, scratch.take(order, starts[:-1]))
    head = scratch.empty(len(order))
    for at in scratch.pieces(len(order)):
        head[order[at]] = of_run[at]
    return head


def _same(samples: Samples, head: Int64s | None, values: Array | None, scratch: Scratch, what: str) -> None:
    if head is None or values is None:
        return
    for at in scratch.pieces(samples.rows):
        differs = np.flatnonzero(values[at] != values[head[at]])
        if len(differs):
            column = str(samples.keys.request)
            name = collect(samples.frame.slice(at.start + int(differs[0]), 1), [column], "samples")[column][0]
            raise UserError(f"samples: request {shown(name)} has {what}")


def _refuse_two_of_one(samples: Samples, head: Int64s | None, scratch: Scratch) -> None:
    """A request-level column has one value per request; taking the first of several would be a silent choice."""
    hashed = samples.request_hash
    if head is None or hashed is None:
        return
    for at in scratch.pieces(samples.rows):
        differs = np.flatnonzero(hashed[at] != hashed[head[at]])
        if len(differs):
            i = at.start + int(differs[0])
            one, other = (
                collect(samples.frame.slice(row, 1), samples.of_requests, "samples") for row in (i, int(head[i]))
            )
            name = next(c for c in samples.of_requests if not one[c].eq_missing(other[c]).all())
            raise UserError(
                f"samples: column {name!r} belongs to the request, but differs within one: {shown(one[name].to_list()[0])} "
                f"and {shown(other[name].to_list()[0])}; is it a candidate-level feature?"
            )


def _coded_users(samples: Samples) -> tuple[pl.Series, Int64s]:
    """The users' names, sorted, and which of them each code of `samples.users` is (0: nobody)."""
    used = samples.users.used()
    texts = samples.users.texts(used)
    order = texts.arg_sort().to_numpy().astype(np.int64)
    codes = np.full(samples.users.size + 1, -1, dtype=np.int64)
    codes[used[order]] = np.arange(len(used))
    return texts.gather(order).rename("user"), codes
