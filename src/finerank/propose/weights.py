"""Lists of numbers that weigh the values of a list beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import polars as pl

from finerank.propose.guess import Guess


def fractions(entries: pl.Series) -> bool:
    """Whether all of these are numbers and not all of them whole: sizes, which name nothing."""
    if not (entries.dtype.is_float() or entries.dtype == pl.String):
        return False
    known = entries.drop_nulls()
    if known.dtype == pl.String:
        known = known.filter(known != "")  # of an empty list
    numbers = known.cast(pl.Float64, strict=False)
    return len(known) > 0 and not numbers.null_count() and bool((numbers % 1 != 0).any())


def with_weights(frame: pl.DataFrame, guesses: Sequence[Guess]) -> list[Guess]:
    """The guesses with `weights` at lists of values that have lists of numbers beside them, row by row as long.

    Each list of numbers weighs one list, the first that it fits.
    """
    out, some, taken = list(guesses), frame.head(5_000), set[int]()
    for i, guess in enumerate(guesses):
        feature = guess.feature
        if feature is None or feature["kind"] != "multivalued" or "weight_separator" in feature:
            continue
        separator = feature.get("separator")
        lengths = _lists(some[guess.column], separator).list.len()
        for j, other in enumerate(out):
            dtype = some[other.column].dtype
            fits = dtype == pl.String if separator else isinstance(dtype, pl.List)
            if i == j or j in taken or not fits or other.role not in ("feature", "left out"):
                continue
            weights = _lists(some[other.column], separator)
            if lengths.n_unique() > 1 and weights.list.len().equals(lengths) and fractions(weights.explode()):
                why = f"{guess.why}; weighed by {other.column!r}"
                out[i] = replace(guess, why=why, feature={**feature, "weights": other.column})
                out[j] = Guess(other.column, "left out", f"numbers that weigh the values of {guess.column!r}")
                taken.add(j)
                break
    return out


def _lists(column: pl.Series, separator: str | None) -> pl.Series:
    return column.str.split(separator) if separator else column
