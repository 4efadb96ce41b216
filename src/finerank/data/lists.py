"""Histories that samples bring along: list columns, or text that joins its entries, as events one after the other.

One rule for both engines (the other is `runtime.scorer.list_rows`): the lists of a row are aligned, an empty entry is a
missing value, and an entry of which every field is missing or padding, whatever its weights, is no event, so that a separator
at the end of the line (`a^b^`) adds nothing. Null or empty text is an empty list; beside lists of one entry it is that entry,
missing, for joined text cannot tell the two apart.

R rows · T events of all rows together
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from finerank.data.staged import canonical_series
from finerank.data.texts import Joined
from finerank.errors import UserError
from finerank.runtime.values import canonical
from finerank.schema import History

Int64s: TypeAlias = NDArray[np.int64]


def list_events(history: History, frame: pl.DataFrame, rows: Int64s) -> tuple[pl.DataFrame, Int64s]:
    """The events of all rows, oldest first (T rows, columns as `History.list_columns`), and how many each row has (int64 [R]).

    frame  the columns that the history names, R rows
    rows   their numbers in the source, for errors
    Raises UserError for a column that is neither lists nor joined text, and for a row whose lists differ in length.
    """
    columns = history.list_columns
    given = {name: _as_lists(history, column, frame[column]) for name, column in columns.items()}
    counts = {name: lists.list.len().cast(pl.Int64) for name, lists in given.items()}  # null: null or empty text
    lengths = np.max([count.fill_null(0).to_numpy() for count in counts.values()], axis=0)
    flat = {}
    for name, lists in given.items():
        these = np.where(counts[name].is_null(), lengths == 1, counts[name].fill_null(0).to_numpy())
        if (these != lengths).any():
            bad = int(np.flatnonzero(these != lengths)[0])
            longest = next(c for n, c in columns.items() if counts[n][bad] == lengths[bad])
            raise UserError(
                f"history {history.name!r}: row {rows[bad]} has {lengths[bad]} entries in {longest!r} but {these[bad]} in "
                f"{columns[name]!r}; give lists of one length"
            )
        flat[name] = lists.filter(pl.Series(these > 0)).explode()  # null becomes one null
    events = pl.DataFrame(flat)
    known = np.zeros(events.height, dtype=bool)
    for name in history.lists:
        known |= ~_nothing(events[name], history.padding)
        if known.all():
            return events, lengths
    row = np.repeat(np.arange(len(lengths)), lengths)
    return events.filter(pl.Series(known)), np.bincount(row[known], minlength=len(lengths)).astype(np.int64)


def joined_events(history: History, frame: pl.DataFrame) -> dict[str, Joined] | None:
    """The same of columns that are all joined text, with no text made of an entry; None where `list_events` is needed.

    That is: where an entry is missing or may be padding, lists of a row differ in length, or nothing is compiled.
    """
    columns = history.list_columns
    padded = history.padding is not None
    if padded or history.separator is None or any(frame[column].dtype != pl.String for column in columns.values()):
        return None
    joined = {name: Joined.of(frame[column], history.separator) for name, column in columns.items()}
    found = {name: column for name, column in joined.items() if column is not None and not column.missing}
    alike = len({column.lengths.tobytes() for column in found.values()}) == 1
    return found if alike and len(found) == len(columns) else None


def _as_lists(history: History, name: str, column: pl.Series) -> pl.Series:
    if column.dtype in (pl.Categorical, pl.Enum):
        column = column.cast(pl.String)
    if column.dtype == pl.Null:  # nobody has a past
        return column.cast(pl.List(pl.String))
    if column.dtype == pl.String:
        if history.separator is None:
            raise UserError(f"history {history.name!r}: column {name!r} is text; say how it is joined: separator")
        return column.replace("", None).str.split(history.separator)
    if isinstance(column.dtype, pl.Array):
        return column.arr.to_list()
    if not isinstance(column.dtype, pl.List):
        raise UserError(f"history {history.name!r}: column {name!r} is {column.dtype}; accepted: lists or joined text")
    return column


def _nothing(entries: pl.Series, padding: str | int | None) -> NDArray[np.bool_]:
    """Which entries say nothing: null, NaN, empty text, an empty list, the padding."""
    if entries.dtype in (pl.String, pl.Categorical, pl.Enum):
        missing = entries.cast(pl.String).fill_null("") == ""
    elif entries.dtype.is_float():
        missing = entries.is_null() | entries.is_nan().fill_null(True)
    elif isinstance(entries.dtype, pl.List):
        missing = entries.list.len().fill_null(0) == 0
    else:
        missing = entries.is_null()
    if padding is not None and not isinstance(entries.dtype, pl.List):
        missing |= (canonical_series(entries) == canonical(padding)).fill_null(False)
    return missing.to_numpy()
