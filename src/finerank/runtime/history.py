"""The one history rule, offline and online: which events of its user a row sees, and in which order.

A row at (time t, sequence s) sees the events with ``known_at < t`` (ties = "strict"), or with
``(known_at, sequence) < (t, s)`` (ties = "file_order"), ordered by (known_at, sequence): the most recent `max_length`,
oldest first. Times are int64 microseconds; the sequence is the position in the log. Events that agree in both keep the
order in which they arrived.

R rows · T events of all rows together · L distinct lists · M entries of all distinct lists
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from finerank.errors import UserError, nearest
from finerank.runtime.blocks import Block, Lists

Array: TypeAlias = NDArray[Any]
Ints: TypeAlias = NDArray[np.int64]
Ties = Literal["strict", "file_order"]

LAST = np.iinfo(np.int64).max
"""The sequence of a live request: it comes after everything that the log holds."""


def check_ties(ties: str) -> None:
    """Refuse any other word: a misspelt rule must not silently become the other one."""
    if ties not in get_args(Ties):
        raise UserError(f"ties = {ties!r} is no rule for events at the row's own time; {nearest(ties, get_args(Ties))}")


def check_known(time: Array, known_at: Array) -> None:
    """Refuse events that are known before they happen: rows would see the future."""
    early = np.flatnonzero(known_at < time)
    if len(early):
        at = int(early[0])
        raise UserError(
            f"events: {len(early)} of {len(time)} are known before they happen (the first: event {at}, "
            f"time {int(time[at])}, known_at {int(known_at[at])}, in microseconds); known_at must be time or later: "
            "correct the known_at column, or leave it out and declare a delay"
        )


def visible(known_at: Array, sequence: Array, time: int, row_sequence: int, ties: Ties, max_length: int) -> slice:
    """What a row sees of one user's events.

    known_at, sequence   int64 [n], sorted by the pair
    time, row_sequence   of the row; `row_sequence` matters for "file_order" alone
    """
    check_ties(ties)
    end = int(np.searchsorted(known_at, time, side="left"))
    if ties == "file_order":
        same_time = sequence[end : int(np.searchsorted(known_at, time, side="right"))]
        end += int(np.searchsorted(same_time, row_sequence, side="left"))
    return slice(max(0, end - max_length), end)


# ------------------------------------------------------------------------------------------------ blocks


def flatten(starts: Array, ends: Array) -> tuple[Ints, Ints, Ints]:
    """The ranges [starts, ends) of R rows written out one after the other.

    Returns index int64 [T], segments int64 [T] (the row of each), lengths int64 [R].
    """
    lengths = np.asarray(ends - starts, dtype=np.int64)
    segments = np.repeat(np.arange(len(lengths)), lengths)
    shift = starts - (np.cumsum(lengths) - lengths)  # from position in the output to position in the source
    return np.arange(len(segments)) + np.repeat(shift, lengths), segments, lengths


def take_lists(lists: Lists[Array], index: Array) -> Lists[Array]:
    """Rows `index` of a list column: only the distinct lists that occur, renumbered in order of first occurrence.

    Costs what is taken, however many lists there are (they may be memory-mapped).
    """
    old, first, inverse = np.unique(lists.index[index], return_index=True, return_inverse=True)
    by_first = np.argsort(first)
    number = np.empty(len(old), dtype=np.int64)
    number[by_first] = np.arange(len(old))
    old = old[by_first]
    lengths = np.asarray(lists.lengths[old], dtype=np.int64)
    # segments ascend, so a search finds where a list begins; summing all lengths would read all of them.
    # The key has the type of the segments: else numpy would convert the segments, all of them.
    starts = np.searchsorted(lists.segments, old.astype(lists.segments.dtype))
    entries, segments, _ = flatten(starts, starts + lengths)
    weights = None if lists.weights is None else lists.weights[entries]
    return Lists(number[inverse.reshape(-1)], lists.ids[entries].astype(np.int64), weights, segments, lengths)


def take_block(block: Block[Array], index: Array) -> Block[Array]:
    """Rows `index` (any order, repeats allowed) of a block, in memory, ids as int64."""
    lists = {name: take_lists(column, index) for name, column in block.lists.items()}
    # `take` from a plain view: a fourth of the time that an index into a memory map takes
    ids, numbers = (np.asarray(part).take(index, axis=0) for part in (block.ids, block.numbers))
    return Block(ids.astype(np.int64), numbers, lists)


def concat_blocks(blocks: Sequence[Block[Array]]) -> Block[Array]:
    """The rows of several blocks of the same columns, one after the other. Equal lists of two blocks stay two."""
    columns: dict[str, Lists[Array]] = {}
    for name in blocks[0].lists:
        parts = [b.lists[name] for b in blocks]
        shift = np.cumsum([0, *(len(p.lengths) for p in parts)])[:-1]
        weights = [p.weights for p in parts if p.weights is not None]
        columns[name] = Lists(
            np.concatenate([p.index + s for p, s in zip(parts, shift, strict=True)]),
            np.concatenate([p.ids for p in parts]),
            np.concatenate(weights) if weights else None,
            np.concatenate([p.segments + s for p, s in zip(parts, shift, strict=True)]),
            np.concatenate([p.lengths for p in parts]),
        )
    return Block(np.concatenate([b.ids for b in blocks]), np.concatenate([b.numbers for b in blocks]), columns)


# ------------------------------------------------------------------------------------------------ serving


@dataclass(frozen=True)
class _Profile:
    """One user's events, sorted by (known_at, sequence). Never changed, only replaced: readers need no lock."""

    known_at: Ints
    sequence: Ints
    time: Ints
    events: Block[Array]


class ProfileStore:
    """Users' events in memory, for serving: the same rule as the event table, one user at a time.

    like        any block of the history's columns; its rows are not kept, an unknown user's empty block looks like it
    max_length  the most recent so many events make a history
    ties        as declared by the history
    keep        events kept per user, the most recent by (known_at, sequence); None keeps all. Bounds the memory; a
                request is answered exactly while at most `keep - max_length` of its user's events became known since.
    Users are given by their canonical text. Safe to use from several threads.
    """

    def __init__(self, like: Block[Array], *, max_length: int, ties: Ties = "strict", keep: int | None = None) -> None:
        check_ties(ties)
        if keep is not None and keep < max_length:
            raise UserError(
                f"profile store: keep = {keep} is less than max_length = {max_length}; keep at least as many"
            )
        none = np.empty(0, dtype=np.int64)
        self._empty = _Profile(none, none, none, take_block(like, none))
        self._max_length, self._ties, self._keep = max_length, ties, keep
        self._profiles: dict[str, _Profile] = {}
        self._writing = threading.Lock()

    def __len__(self) -> int:
        return len(self._profiles)

    def append(self, user_key: str, known_at: Array, time: Array, sequence: Array, events: Block[Array]) -> None:
        """Add n events of a user, in any order and however late: int64 [n] three times, and a block of n rows."""
        check_known(time, known_at)
        with self._writing:
            old = self._profiles.get(user_key, self._empty)
            known_at, sequence = np.concatenate([old.known_at, known_at]), np.concatenate([old.sequence, sequence])
            order = np.lexsort((sequence, known_at))  # stable: equal pairs stay in order of arrival
            if self._keep is not None:
                order = order[max(0, len(order) - self._keep) :]
            merged = take_block(concat_blocks([old.events, events]), order)
            times = np.concatenate([old.time, time])[order]
            self._profiles[user_key] = _Profile(known_at[order], sequence[order], times, merged)

    def history(self, user_key: str, time: int, row_sequence: int | None = None) -> tuple[Block[Array], Ints, Ints]:
        """What a request of this user at `time` sees: a block of T events, their times and known_at, int64 [T].

        row_sequence  None: the request is live, after everything recorded (matters for "file_order" alone)
        """
        profile = self._profiles.get(user_key, self._empty)
        row = LAST if row_sequence is None else row_sequence
        seen = visible(profile.known_at, profile.sequence, time, row, self._ties, self._max_length)
        return take_block(profile.events, np.arange(seen.start, seen.stop)), profile.time[seen], profile.known_at[seen]
