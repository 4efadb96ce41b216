"""Lists that were filled up to one length, for libraries that pad."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from finerank.data.encode import canonical_series


def fillers(lists: pl.Series) -> Iterator[tuple[str, int]]:
    """What may have filled lists up, in canonical text, and the end it stands at (-1 or 0): it is there in most of them."""
    lists = lists.drop_nulls()
    if lists.list.len().n_unique() != 1:
        return
    for end in (-1, 0):
        values = canonical_series(lists.list.get(end, null_on_oob=True)).value_counts(sort=True)
        value, rows = values.row(0)
        if value is not None and rows > 0.5 * len(lists):
            yield str(value), end


def filler(lists: pl.Series) -> str | None:
    """What fills lists up, where there are no candidates to tell it from values.

    All of it stands together at one end, and its number differs by two or more from list to list: a property that every
    list names in one place, however common, does not.
    """
    known = lists.drop_nulls()
    for value, end in fillers(known):
        width = known.list.len()[0]
        fills = (canonical_series(known.explode()) == value).fill_null(False).to_numpy().reshape(-1, width)
        run = fills if end == 0 else fills[:, ::-1]
        counts = fills.sum(axis=1)
        if (run.cumprod(axis=1).sum(axis=1) == counts).all() and int(np.ptp(counts)) >= 2:
            return value
    return None
