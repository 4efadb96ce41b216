"""The canonical text of a raw value: the one specification that the bulk and the per-request engine share.

    value                               canonical text
    None, NaN, ""                       None: missing
    True, False                         "true", "false"
    an integer                          its decimal digits: 7 -> "7", -3 -> "-3"
    an integral float below 2**53       the same digits, so that 1.0 == 1 == "1"; -0.0 -> "0"
    any other float                     its shortest round trip as a float64: 0.5 -> "0.5", 1e300 -> "1e+300", "inf"
    text                                itself, byte for byte: "01" is not "1", "1.0" stays "1.0", no normal form

numpy scalars count as the Python value they hold; a float32 is widened first (np.float32(0.1) is
0.10000000149011612). From 2**53 on a float no longer says which integer was meant, so it keeps its float text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from finerank.errors import UserError

EXACT = 2.0**53
"""Below this every integer has a float64 of its own."""

CROSS = "\x02"
"""Joins the texts of a cross; no text that people write holds it."""

LONGEST_INTEGER = 4096
"""Bits; Python refuses to print integers much longer than this."""


def canonical(value: object) -> str | None:
    """The canonical text of a raw value, or None when it is missing.

    Errors: text with a lone surrogate, absurdly long integers and other types (dict, list, bytes, datetime...).
    """
    if isinstance(value, str):
        return _sound(value) or None
    if value is None:
        return None
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    if isinstance(value, (int, np.integer)):
        number = int(value)
        if number.bit_length() > LONGEST_INTEGER:
            raise UserError(f"got an integer of {number.bit_length()} bits; accepted: up to {LONGEST_INTEGER} bits")
        return str(number)
    if isinstance(value, (float, np.floating)):
        x = float(value)
        if math.isnan(x):
            return None
        return str(int(x)) if abs(x) < EXACT and x.is_integer() else repr(x)
    raise UserError(
        f"got {shown(value)} of type {type(value).__name__}; accepted: text, integer, float, bool or null; "
        "turn it into text or a number first"
    )


def number(value: object) -> float | None:
    """The float64 of a raw value for a numeric feature, or None when it is missing (None, NaN, "", text "nan").

    Text counts when it reads as a plain decimal number (`" 1.5e3 "` does, `"1_000"` does not); True is 1.
    Errors: infinite numbers, other text, other types.
    """
    x: float
    if value is None:
        return None
    if isinstance(value, str):
        if not value:
            return None
        x = _parse(value)
    elif isinstance(value, (bool, int, float, np.bool_, np.integer, np.floating)):
        try:
            x = float(value)
        except OverflowError:
            x = math.inf
    else:
        raise UserError(
            f"got {shown(value)} of type {type(value).__name__}; accepted: a number, null or text that reads as a number"
        )
    if math.isinf(x):
        raise UserError(f"got {shown(value)}, which is infinite as a float64; accepted: finite numbers or null")
    return None if math.isnan(x) else x


def split_rank(text: str, max_rank: int) -> tuple[str | None, int]:
    """`military#1` -> ("military", 1), split at the last `#`; no rank, or none of 1...`max_rank`: rank 0.

    An empty tag is missing (None). The rank is written in ASCII digits.
    """
    tag, mark, rank = text.rpartition("#")
    if not mark:
        return text or None, 0
    # 18 digits always fit an int64, and int() refuses very long texts
    known = rank.isascii() and rank.isdigit() and len(rank) <= 18 and 1 <= int(rank) <= max_rank
    return tag or None, int(rank) if known else 0


def split_weight(text: str | None, separator: str) -> tuple[str | None, float | None]:
    """`sports:.7` -> ("sports", 0.7), split at the last `:`. An empty value is missing, whatever its weight: (None, None).

    Errors: a value without a weight, or whose weight is no finite number.
    """
    if text is None:
        return None, None
    value, found, weight = text.rpartition(separator)
    if found and not value:
        return None, None
    if math.isnan(w := weight_of(weight) if found else math.nan):
        raise no_weight(text, separator)
    return value, w


def no_weight(text: str, separator: str) -> UserError:
    """What is wrong with an entry that brings no weight."""
    return UserError(
        f"got {shown(text)}, which has no finite number behind its last {separator!r}; accepted: a value and its weight, "
        f"such as {f'sports{separator}0.7'!r}"
    )


def weight_of(text: str) -> float:
    """The number that a text writes; NaN where it writes none, or an infinite one."""
    try:
        found = number(text)
    except UserError:
        return math.nan
    return math.nan if found is None else found


def cross_text(values: Iterable[object]) -> str | None:
    """The canonical texts of several values joined by `CROSS`; None if any is missing."""
    texts = [canonical(value) for value in values]
    return None if None in texts else CROSS.join(text for text in texts if text is not None)


def list_weights(weights: NDArray[np.float64]) -> NDArray[np.float32]:
    """The weights of list entries: [M] float64, NaN where missing -> float32. Raises UserError for one missing or vast."""
    with np.errstate(over="ignore"):
        out = weights.astype(np.float32)
    if not np.isfinite(out).all():
        raise UserError("got an entry whose weight is missing or beyond float32; give a number per entry")
    return out


def shown(value: object) -> str:
    """A value as an error message shows it: at most 60 characters."""
    if isinstance(value, int) and value.bit_length() > LONGEST_INTEGER:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _sound(text: str) -> str:
    """The text as a plain `str`, known to be encodable as UTF-8."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"got {shown(text)}: character {error.start} is half of a surrogate pair and no text; "
                "decode the source as UTF-8 (or UTF-16) before it comes here"
            ) from None
    return text if type(text) is str else str.__str__(text)


def _parse(text: str) -> float:
    if text.isascii() and "_" not in text:  # float() also reads 1_000 and other scripts' digits; columns do not
        try:
            return float(text)
        except ValueError:
            pass
    raise UserError(
        f"got {shown(text)}, which does not read as a number; accepted: decimal numbers such as -1.5e3, or null, which "
        "in files of text is nothing at all"
    )
