"""From an id to a row of its table: by vocabulary, by hash, or by a vocabulary that grows.

Indices  0 padding · 1 out of vocabulary · 2 missing (null, NaN or empty text) · 3... the values
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from finerank.schema.checks import at_least

PADDING, OOV, MISSING, FIRST = 0, 1, 2, 3
"""The first rows of every table; values start at FIRST."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """One row per value seen at least `min_count` times in training; everything else is out of vocabulary.

    The usual choice. `max_size` keeps only the most frequent values (ties: the text that sorts first).
    """

    kind: ClassVar[str] = "vocabulary"
    min_count: int = 1
    max_size: int | None = None

    def __post_init__(self) -> None:
        at_least(1, min_count=self.min_count, max_size=self.max_size)


@dataclass(frozen=True, kw_only=True)
class Hashed:
    """Row = 3 + hash64(table, value) mod `buckets`: no fitting, new values share rows with old ones (collisions)."""

    kind: ClassVar[str] = "hashed"
    buckets: int = 100_000

    def __post_init__(self) -> None:
        at_least(1, buckets=self.buckets)


@dataclass(frozen=True, kw_only=True)
class Growing:
    """A vocabulary that admits new values and evicts old ones while it trains, within `capacity` rows.

    A value gets a row once it was seen `admit_after` times; when rows run out, those unseen for longest are given
    away. Encoded data stay true: they hold symbols, and the map from symbol to row lives in the checkpoint.
    """

    kind: ClassVar[str] = "growing"
    capacity: int = 100_000
    admit_after: int = 1

    def __post_init__(self) -> None:
        at_least(1, capacity=self.capacity, admit_after=self.admit_after)


Encoding = Vocabulary | Hashed | Growing
