"""What declarations check of themselves; a wrong value is one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from finerank.errors import UserError


def at_least(least: int, **values: int | None) -> None:
    """Each of the named values that is given is `least` or more."""
    for name, value in values.items():
        if value is not None and value < least:
            raise UserError(f"{name} = {value}; accepted: {least} or more")


def rising(values: Sequence[float]) -> bool:
    """Whether each value is above the one before it."""
    return all(a < b for a, b in pairwise(values))


def check_separator(separator: str | None, of_weights: str | None = None) -> None:
    """A separator is some text, or there is none; and that of values tears no value from its weight."""
    if separator == "":
        raise UserError("separator is empty; accepted: the text between two values, or none for lists")
    if of_weights == "":
        raise UserError("weight_separator is empty; accepted: the text between a value and its weight, or none")
    if separator is not None and of_weights is not None and separator in of_weights:
        raise UserError(
            f"weight_separator = {of_weights!r} beside separator = {separator!r}; accepted: two texts of which the first "
            "does not hold the second"
        )
