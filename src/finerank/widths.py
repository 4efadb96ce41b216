"""How wide an embedding is: a number, or a rule of thumb that grows with the number of values n.

    log2        ceil(log2 n)                              10, 14, 17, 20 for n = 10^3, 10^4, 10^5, 10^6
    quarter     n^(1/4), rounded                          6, 10, 18, 32
    quarter:k   k * n^(1/4), rounded, 0 < k <= 16         for k = 4: 22, 40, 71, 126
    dcn         floor(6 * n^(1/4)): Wang et al. 2017, 4.1  33, 60, 106, 189

n counts the values that have a row of their own; a width is at least 1. Whole numbers wherever a rule has a sharp edge,
so that 10^4 values are 60 wide on every machine.
"""

from __future__ import annotations

import math
from typing import TypeAlias

from finerank.errors import UserError, nearest

Dim: TypeAlias = int | str
"""A width as a schema declares it."""

RULES = ("log2", "quarter", "dcn")
LARGEST_FACTOR = 16.0


def check_dim(dim: Dim | None) -> None:
    """Raise UserError for what is neither a width, nor a rule, nor None (the width of the model)."""
    if isinstance(dim, str):
        _parsed(dim)
    elif dim is not None and dim < 1:
        raise UserError(f"dim = {dim}; accepted: 1 or more, or a rule: {', '.join(RULES)}")


def check_std(std: float | None) -> None:
    """Raise UserError for what is no standard deviation of initial values, nor None (the model's)."""
    if std is not None and not 0 <= std < math.inf:
        raise UserError(f"std = {std}; accepted: 0 or more, usually 0.001 to 0.1")


def width_of(dim: Dim, values: int) -> int:
    """The width that `dim` means for a table of so many values.

    >>> [width_of(rule, 10**4) for rule in ("log2", "quarter", "quarter:2.5", "dcn", 8)]
    [14, 10, 25, 60, 8]
    """
    if isinstance(dim, int):
        return dim
    rule, factor = _parsed(dim)
    match rule:
        case "log2":
            width = max(values - 1, 0).bit_length()
        case "quarter":
            width = math.floor(factor * math.sqrt(math.sqrt(values)) + 0.5)
        case _:
            width = math.isqrt(math.isqrt(6**4 * values))  # the floor of a root of a root is the floor of both
    return max(width, 1)


def scaled_width(dim: int, scale: float) -> int:
    """A width times a factor, rounded (halves up), at least 1: half and double are what a search tries."""
    return max(1, math.floor(dim * scale + 0.5))


def _parsed(text: str) -> tuple[str, float]:
    rule, colon, given = text.partition(":")
    if rule not in RULES:
        raise UserError(f"dim = {text!r}; {nearest(rule, RULES)}, or a whole number")
    if not colon:
        return rule, 1.0
    try:
        factor = float(given)
    except ValueError:
        factor = math.nan
    if rule != "quarter" or not 0 < factor <= LARGEST_FACTOR:
        raise UserError(f"dim = {text!r}; accepted: quarter:k with 0 < k <= {LARGEST_FACTOR:g}; other rules take no k")
    return rule, factor
