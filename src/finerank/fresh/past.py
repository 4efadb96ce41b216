"""The past that raw rows are scored with: a log of events, or list columns, encoded by the encoder of a finished run.

n rows · R requests
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from finerank.data.dataset import Dataset, Slices
from finerank.data.encode import canonical_series, encode_block
from finerank.data.events import EventTable, ListTable
from finerank.data.lists import list_events
from finerank.data.prepare import Keys
from finerank.data.source import collect, microseconds, whole_numbers
from finerank.data.texts import dictionary
from finerank.errors import UserError
from finerank.runtime.encoder import Encoder
from finerank.runtime.fields import fields_of
from finerank.runtime.values import canonical
from finerank.schema import SECOND, History

STRANGERS = 1 << 20
"""Names of users who are not there that are kept, at least."""


class Users:
    """The codes of users by name, as canonical text. names: by code, each once.

    Read into a dictionary once: a join would read all of them again for every batch of rows.
    """

    def __init__(self, names: pl.Series) -> None:
        self.names, self.count = names, len(names)
        self._read()

    def _read(self) -> None:
        self._dictionary = dictionary()
        self._dictionary.codes(self.names)  # 1, 2, ... in their order; who is met later is a stranger

    def codes(self, names: pl.Series) -> np.ndarray:
        """int64 [n]: the code of each user, -1 for a stranger or one without a name."""
        if self._dictionary.size > 2 * self.count + STRANGERS:
            self._read()  # strangers' names go: a file may hold any number of them
        found = self._dictionary.codes(names.cast(pl.String)).astype(np.int64)
        return np.where(found <= self.count, found - 1, -1)


@dataclass(frozen=True)
class Log:
    """The past of users: an event table per history that reads the log, and users' codes in them."""

    tables: dict[str, EventTable]
    users: Users

    @staticmethod
    def stored(data: Dataset) -> Log:
        """The events that the run was prepared from."""
        tables = {name: table for name, table in data.events.items() if isinstance(table, EventTable)}
        return Log(tables, Users(data.users))

    @staticmethod
    def read(encoder: Encoder, keys: Keys, events: pl.LazyFrame) -> Log:
        """Another log, encoded as the run's own was; values that it did not know are out of vocabulary."""
        if keys.user is None or keys.time is None:
            raise UserError("events: the run's recipe names no keys.user and keys.time, so it reads no event log")
        histories = [h for h in encoder.schema.histories if not h.lists]
        wanted = {keys.user, keys.time, *(k for k in (keys.sequence, keys.known_at) if k)}
        wanted |= {c for h in histories for f in fields_of(encoder.schema, h.name) for c in f.columns}
        wanted |= {c for h in histories for c in h.where}
        frame = collect(events, sorted(wanted), "events")
        if not frame.height:
            raise UserError(
                "events: no rows; is this the right file? (left out, it is the log the run was prepared from)"
            )
        names = canonical_series(frame[keys.user])
        users = Users(names.drop_nulls().unique().sort())
        code = users.codes(names)
        return Log({h.name: _table(encoder, h, keys, frame, code, users.count) for h in histories}, users)


def _table(
    encoder: Encoder, history: History, keys: Keys, frame: pl.DataFrame, code: np.ndarray, users: int
) -> EventTable:
    """The events that belong to a history (`where`), of users known by name."""
    keep = pl.Series(code >= 0)
    for column, value in history.where.items():  # by canonical text, as everywhere: 1, 1.0 and "1" are one value
        keep &= (canonical_series(frame[column]) == canonical(value)).fill_null(False)
    kept = np.flatnonzero(keep.to_numpy())
    sequence = whole_numbers(frame[keys.sequence], "events") if keys.sequence else np.arange(frame.height)
    part = frame[kept]
    time = microseconds(part[str(keys.time)], keys.time_unit, "events")
    known_at = time + round(history.delay * SECOND)
    if keys.known_at:
        known_at = microseconds(part[keys.known_at], keys.time_unit, "events")
    columns: dict[str, str] = {}
    for field in fields_of(encoder.schema, history.name):
        columns |= dict(zip((field.feature.name, f"{field.feature.name}·weights"), field.columns, strict=False))
    block = encode_block(encoder, history.name, part.select(**{name: pl.col(c) for name, c in columns.items()}))
    return EventTable.build(None, code[kept], time, known_at, sequence[kept], block, users=users)


def from_lists(encoder: Encoder, history: History, heads: pl.DataFrame, rows: np.ndarray) -> tuple[ListTable, Slices]:
    """A history of list columns: every request's list is its own slice of a table of this batch.

    heads  a row per request; rows: [R] their numbers among all rows, for errors
    """
    made, lengths = list_events(history, heads, rows)
    ends = np.cumsum(lengths)
    slices = Slices(np.maximum(ends - lengths, ends - history.max_length), ends, ends)
    return ListTable(encode_block(encoder, history.name, made)), slices
