"""Words that stand for a missing value: they make text of a column of numbers."""

from __future__ import annotations

import re

import polars as pl

NAN = re.compile(r"[+-]?nan", re.IGNORECASE)
"""What training reads as a missing number."""
MISSING = re.compile(r"null|\\n|none|nil|n/?a|#n/a|<na>|nat|undefined|unknown|missing|-+|\?|\.", re.IGNORECASE)
"""What databases, data frames and people write for a missing value, and training reads as a text."""


def read_nan(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with texts of numbers and nan as numbers: whole ones with nulls, as they were before nan came in."""
    out = []
    for column in frame.get_columns():
        words, numbers = _parts(column)
        if words and all(NAN.fullmatch(word) for word in words):
            known = numbers.fill_nan(None)
            whole = len(known.drop_nulls()) > 0 and bool((known.drop_nulls() % 1 == 0).all())
            column = known.cast(pl.Int64, strict=False) if whole else known
        out.append(column)
    return pl.DataFrame(out)


def told(frame: pl.DataFrame) -> list[str]:
    """Of columns that would be numbers, were it not for a word that means none."""
    found = []
    for column in frame.get_columns():
        words, _ = _parts(column)
        if words and all(NAN.fullmatch(word) or MISSING.fullmatch(word) for word in words):
            shown = " and ".join(map(repr, sorted(words)))
            found.append(
                f"{column.name!r} holds numbers but for {shown} in {column.is_in(words).sum():,} of {frame.height:,} rows, "
                "and so is taken for text, each number a name of its own: write nothing (null) there, then look again"
            )
    return found


def _parts(column: pl.Series) -> tuple[list[str], pl.Series]:
    """(the words of a text column of numbers, its numbers): no words, if it is another column or words are most of it."""
    if column.dtype != pl.String:
        return [], column
    numbers = column.cast(pl.Float64, strict=False)
    is_word = column.is_not_null() & (column != "") & (numbers.is_null() | numbers.is_nan())
    known = column.is_not_null() & (column != "")
    if 2 * int(is_word.sum()) >= int(known.sum()):
        return [], numbers
    return column.filter(is_word).unique().to_list(), numbers
