"""Samples and events as `prepare` reads them: once, block by block, each column in the form that its readers need.

N rows of the samples · E events · R requests · K tasks
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from finerank.data.labels import label_columns, labels_of
from finerank.data.lists import joined_events, list_events
from finerank.data.overlap import row_hashes
from finerank.data.scratch import Array, Int64s, Pile, Scratch
from finerank.data.source import TimeUnit, blocks, microseconds, whole_numbers
from finerank.data.split import NAMES, Split
from finerank.data.staged import Column, Ids, canonical_series, column_for
from finerank.data.texts import INT64, dictionary
from finerank.errors import UserError
from finerank.runtime.values import canonical, shown
from finerank.schema import SECOND, History, MultiValued, Schema, column_of, source_columns


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Which columns of samples and events say who, when and together.

    request    rows with the same value are one request: one user, one moment, adjacent or not; none: each row is one
    user       None: no users (no event log can be joined, GAUC is by request)
    time       None: rows are in file order and count as one microsecond each
    sequence   position in the log, common to samples and events, for ties = "file_order"; None: the row's number
    known_at   column of the events that says when an event became known; None: its time plus the history's delay
    time_unit  of whole-number times
    """

    request: str | None = None
    user: str | None = None
    time: str | None = None
    sequence: str | None = None
    known_at: str | None = None
    time_unit: TimeUnit = "s"


PIECE = 1 << 16
"""Rows that are read at a time: few enough that the memory of their columns is soon used again."""

NO_ROWS = "samples: no rows; is this the right file?"


@dataclass(frozen=True)
class _Taker:
    """One thing that is made of some columns. take: given a block of the source, and the number of its first row."""

    columns: Sequence[str]
    take: Callable[[pl.DataFrame, int], None]


def _read(frame: pl.LazyFrame, takers: Sequence[_Taker], scratch: Scratch, where: str, keys: Sequence[str] = ()) -> int:
    """Read the columns that the takers want, once, and give each its own; how many rows there were.

    keys   a file that lacks columns is asked for these first: that it is broken, or has no rows, says more
    """
    wanted = list(dict.fromkeys(column for taker in takers for column in taker.columns))
    lacking = keys and not set(wanted) <= set(frame.collect_schema().names())
    if lacking and not sum(block.height for block in blocks(frame, keys, scratch.block, where)):
        raise UserError(NO_ROWS)
    rows, threads = 0, min(len(takers), os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        for block in blocks(frame, wanted, min(scratch.block, PIECE), where):
            _give(block, rows, takers, pool, threads)
            rows += block.height
            del block  # its memory is for the next one
    return rows


def _give(block: pl.DataFrame, start: int, takers: Sequence[_Taker], pool: Executor, threads: int) -> None:
    """Give a block to all takers. Each keeps to itself, so they run side by side; the first one's complaint is raised."""
    todo, complaints = iter(list(enumerate(takers))), []

    def work() -> None:  # one after the other: to wake a thread for each would take longer than many of them do
        for i, taker in todo:
            try:
                taker.take(block, start)
            except UserError as error:
                complaints.append((i, error))
                return

    others = [pool.submit(work) for _ in range(threads - 1)]
    work()
    for done in others:
        done.result()
    if complaints:
        raise min(complaints, key=lambda complaint: complaint[0])[1]


def _into(column: Column, names: Sequence[str]) -> _Taker:
    return _Taker(names, lambda block, start: column.add([block[name] for name in names]))


# ------------------------------------------------------------------------------------------------ samples


class Samples:
    """What was read of the samples, in their own order; see the attributes.

    users             codes of the user keys, samples first; `read_events` adds the events' to them
    time, sequence    int64 [N], None without such keys · request: keys that tell requests apart, [N] each
    columns           by feature's name, of the request's and the candidates' features
    past              by history's name, of histories from list columns
    labels, weights   float32 [N, K]
    split             int8 [N], None unless the split is given by a column
    row_hash          uint64 [N]: of what makes a row what it is (`data.overlap`), None unless the split is given and `known`
    known             whether rows have users and times, so that equal rows are one and the same
    request_hash      uint64 [N]: of what belongs to the request as a whole, None unless requests have several rows
    """

    def __init__(self, schema: Schema, keys: Keys, split: Split, frame: pl.LazyFrame, scratch: Scratch) -> None:
        self.schema, self.keys, self.frame, self.scratch = schema, keys, frame, scratch
        self.known = keys.user is not None and keys.time is not None
        self.users = Ids(scratch, f"column {keys.user!r}")
        self.columns: Mapping[str, Column] = {
            f.name: column_for(f, scratch) for f in schema.features if f.level != "event"
        }
        self.past = {h.name: ListPast(h, schema, scratch) for h in schema.histories if h.lists}
        lists = [column for h in schema.histories for column in h.list_columns.values()]
        features = [f for f in schema.features if f.level != "event"]
        of_requests = [c for f in features if f.level == "request" for c in source_columns(f)]
        self.of_requests = list(dict.fromkeys([*lists, *of_requests]))
        self.of_rows = list(
            dict.fromkeys(
                [c for c in (keys.user, keys.time, keys.sequence) if c is not None]
                + [c for f in features for c in source_columns(f)]
                + lists
            )
        )
        width = len(schema.tasks)
        time, sequence = Pile(scratch, np.int64), Pile(scratch, np.int64)
        request, nameless = [Pile(scratch, np.int64), Pile(scratch, np.int64)], 0
        part, row_hash, request_hash = Pile(scratch, np.int8), Pile(scratch, np.uint64), Pile(scratch, np.uint64)
        labels, weights = Pile(scratch, np.float32, width), Pile(scratch, np.float32, width)
        takers: list[_Taker] = []

        def take(columns: Iterable[str], add: Callable[[pl.DataFrame, int], None]) -> None:
            takers.append(_Taker(list(columns), add))

        def take_request(block: pl.DataFrame, start: int) -> None:
            nonlocal nameless
            nameless += block[str(keys.request)].null_count()
            for pile, key in zip(request, request_keys(block[str(keys.request)]), strict=True):
                pile.append(key)

        def take_labels(block: pl.DataFrame, start: int) -> None:
            found, weigh = labels_of(schema, block)
            labels.append(found)
            weights.append(weigh)

        if keys.request is not None:
            take([keys.request], take_request)
        if keys.user is not None:
            takers.append(_into(self.users, [keys.user]))
        if keys.time is not None:
            at = keys.time
            take([at], lambda block, _: time.append(microseconds(block[at], keys.time_unit, "samples")))
        if keys.sequence is not None:
            place = keys.sequence
            take([place], lambda block, _: sequence.append(whole_numbers(block[place], "samples")))
        if split.by == "column":
            take([split.column], lambda block, _: part.append(_parts(block[split.column])))
        if split.by == "column" and self.known:
            take(self.of_rows, lambda block, _: row_hash.append(row_hashes([block[c] for c in self.of_rows])))
        for past in self.past.values():
            extra = [] if keys.request is None else [keys.request]
            take([*past.history.list_columns.values(), *extra], past.take(keys.request))
        if keys.request is not None and self.of_requests:
            take(
                self.of_requests, lambda block, _: request_hash.append(row_hashes([block[c] for c in self.of_requests]))
            )
        takers += [_into(self.columns[f.name], source_columns(f)) for f in features]
        take(label_columns(schema), take_labels)

        named = (keys.request, keys.user, keys.time, keys.sequence)
        self.rows = _read(frame, takers, scratch, "samples", [column for column in named if column is not None])
        if not self.rows:
            raise UserError(NO_ROWS)
        if nameless:
            raise UserError(f"samples: {nameless} rows have no {keys.request!r}; name their request")
        for column in self.columns.values():
            column.close()
        for past in self.past.values():
            past.close()
        self.time = time.close() if keys.time is not None else None
        self.sequence = sequence.close() if keys.sequence is not None else None
        self.request = [pile.close() for pile in request] if keys.request is not None else None
        self.labels, self.weights = labels.close(), weights.close()
        self.split = part.close() if split.by == "column" else None
        self.row_hash = row_hash.close() if split.by == "column" and self.known else None
        self.request_hash = request_hash.close() if keys.request is not None and self.of_requests else None


def request_keys(column: pl.Series) -> tuple[Int64s, Int64s]:
    """Two integers a row, int64 [n], that are equal where the values are: integers themselves, else 128 bits of hash."""
    if column.dtype in (pl.Categorical, pl.Enum):
        column = column.cast(pl.String)
    if column.dtype in INT64:
        values = column.cast(pl.Int64).fill_null(0).to_numpy()
        return values, np.zeros(len(values), dtype=np.int64)
    return column.hash(0).to_numpy().view(np.int64), column.hash(1).to_numpy().view(np.int64)


def _parts(column: pl.Series) -> Array:
    names = dictionary()
    codes = names.codes(column.cast(pl.String))
    part = np.array([-1, *(NAMES.get(name, -1) for name in names.texts())], dtype=np.int8)
    out: Array = part[codes]
    if (part[1:] < 0).any() or (codes == 0).any():
        bad = column[int(np.flatnonzero(out < 0)[0])]
        raise UserError(f"samples: column {column.name!r} holds {shown(bad)}; accepted: {', '.join(NAMES)}")
    return out


class ListPast:
    """A history from list columns: the events of each row of the samples, one after the other.

    columns  by field's name; lengths: int64 [N], events of each row. Of rows that follow another of their request in
             the same block nothing is kept: a request reads its first row alone.
    """

    def __init__(self, history: History, schema: Schema, scratch: Scratch) -> None:
        self.history, self.scratch = history, scratch
        self.columns = {name: column_for(schema.field(history, name), scratch) for name in history.fields}
        self._lengths = Pile(scratch, np.int64)
        self.lengths: Int64s = np.empty(0, dtype=np.int64)

    def take(self, request: str | None) -> Callable[[pl.DataFrame, int], None]:
        """What adds a block. request: the column that names requests."""

        def add(block: pl.DataFrame, start: int) -> None:
            rows, every = np.arange(block.height), np.zeros(block.height, dtype=np.int64)
            if request is not None:
                rows = np.flatnonzero(block[request].is_first_distinct().to_numpy())
                block = block[rows]
            every[rows] = self._add(block, start + rows)
            self._lengths.append(every)

        return add

    def _add(self, block: pl.DataFrame, rows: Int64s) -> Int64s:
        """Take in the events of these rows; how many each has."""
        plain = {name: column for name, column in self.columns.items() if isinstance(column, Ids)}
        joined = joined_events(self.history, block) if len(plain) == len(self.history.list_columns) else None
        if joined is not None:
            with ThreadPoolExecutor(len(plain)) as pool:  # long columns
                list(pool.map(lambda name: plain[name].add([joined[name]]), plain))
            return joined[self.history.fields[0]].lengths
        events, lengths = list_events(self.history, block, rows)
        for name, column in self.columns.items():
            column.add([events[part] for part in (name, f"{name}·weights") if part in events.columns])
        return lengths

    def close(self) -> None:
        """After the last block."""
        for column in self.columns.values():
            column.close()
        self.lengths = self._lengths.close()


# ------------------------------------------------------------------------------------------------ events


class LogPast:
    """The events of one history that reads the log, in the order of the log.

    columns  by field's name · user: int64 [E], the row of `Samples.users` that names the event's
    """

    def __init__(self, history: History, schema: Schema, keys: Keys, scratch: Scratch) -> None:
        self.history, self.keys = history, keys
        self.columns = {name: column_for(schema.field(history, name), scratch) for name in history.fields}
        self.sources: dict[str, list[str]] = {}
        for name in history.fields:
            feature = schema.field(history, name)
            weights = [feature.weights] if isinstance(feature, MultiValued) and feature.weights is not None else []
            self.sources[name] = [history.columns.get(name, column_of(feature)), *weights]
        self._piles = [Pile(scratch, np.int64) for _ in range(4)]
        self.user: Int64s
        self.time: Int64s
        self.known_at: Int64s
        self.sequence: Int64s

    @property
    def wanted(self) -> list[str]:
        """The columns of the log that it reads."""
        keys = (self.keys.user, self.keys.time, self.keys.sequence, self.keys.known_at)
        sources = [column for columns in self.sources.values() for column in columns]
        return [*sources, *self.history.where, *(column for column in keys if column is not None)]

    def taker(self, before: int) -> _Taker:
        """What takes in the log. before: rows of `Samples.users` that come before the log's."""
        history, keys = self.history, self.keys

        def add(block: pl.DataFrame, start: int) -> None:
            # by canonical text, as everywhere: 1, 1.0 and "1" are one value
            keep = canonical_series(block[str(keys.user)]).is_not_null()
            for column, value in history.where.items():
                keep &= (canonical_series(block[column]) == canonical(value)).fill_null(False)
            kept = np.flatnonzero(keep.to_numpy())
            sequence = start + kept
            if keys.sequence is not None:
                sequence = whole_numbers(block[keys.sequence], "events")[kept]
            if len(kept) < block.height:
                block = block[kept]
            time = microseconds(block[str(keys.time)], keys.time_unit, "events")
            known_at = time + round(history.delay * SECOND)
            if keys.known_at is not None:
                known_at = microseconds(block[keys.known_at], keys.time_unit, "events")
            for pile, values in zip(self._piles, (before + start + kept, time, known_at, sequence), strict=True):
                pile.append(values)
            for name, field in self.columns.items():
                field.add([block[source] for source in self.sources[name]])

        return _Taker(self.wanted, add)

    def close(self) -> None:
        """After the last block."""
        for column in self.columns.values():
            column.close()
        self.user, self.time, self.known_at, self.sequence = (pile.close() for pile in self._piles)


def read_events(samples: Samples, events: pl.LazyFrame) -> dict[str, LogPast]:
    """The log, read once for all histories that read it; its users are added to those of the samples."""
    keys = samples.keys
    if keys.user is None:
        raise UserError("an event log needs keys.user: the column that says whose events they are")
    logs = [h for h in samples.schema.histories if not h.lists]
    if logs and keys.time is None:
        raise no_log(logs[0])
    made = {h.name: LogPast(h, samples.schema, keys, samples.scratch) for h in logs}
    takers = [past.taker(samples.rows) for past in made.values()]
    _read(events, [_into(samples.users, [keys.user]), *takers], samples.scratch, "events")
    samples.users.close()
    for past in made.values():
        past.close()
    return made


def no_log(history: History) -> UserError:
    """What a history lacks that reads the log of events."""
    return UserError(
        f"history {history.name!r} reads an event log: give events, keys.user and keys.time, or name list columns"
    )


def refuse_strangers(samples: Samples) -> None:
    """Raises UserError if no event is of a user of the samples."""
    users, rows = samples.users, samples.rows
    seen = {side: np.zeros(users.size + 1, dtype=bool) for side in ("samples", "events")}
    for at in samples.scratch.pieces(len(users)):
        side: Literal["samples", "events"]
        for side, part in (
            ("samples", slice(at.start, min(at.stop, rows))),
            ("events", slice(max(at.start, rows), at.stop)),
        ):
            if part.start < part.stop:
                seen[side][users.codes(part)] = True
    codes = {side: np.flatnonzero(flags[1:]) + 1 for side, flags in seen.items()}
    if not np.isin(codes["samples"], codes["events"]).any():
        first = {side: users.texts(found[:2]).to_list() for side, found in codes.items()}
        raise UserError(
            f"events: none of their users ({samples.keys.user!r}) is in the samples, so every history would be empty; "
            f"samples hold {first['samples']}, events {first['events']}"
        )
