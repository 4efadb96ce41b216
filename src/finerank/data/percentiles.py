"""Exact percentiles of a float32 column in two passes and memory that does not grow with it.

float32 has 2^32 values in order: the first pass counts the upper half of each value's place in that order, the second the
lower half, for the upper halves that a percentile lies in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Ints: TypeAlias = NDArray[np.int64]
Float32s: TypeAlias = NDArray[np.float32]

HALF = 1 << 16


class Percentiles:
    """`add` every piece of the column, then `add_again` each of them, then read `values`.

    percents  in (0, 100]; the percentile p is the least value that at least p percent do not exceed
    """

    def __init__(self, percents: Sequence[int]) -> None:
        self.percents = tuple(percents)
        self._upper = np.zeros(HALF, dtype=np.int64)
        self._lower: dict[int, Ints] = {}

    @property
    def total(self) -> int:
        """How many values there are, each as often as it counts."""
        return int(self._upper.sum())

    def add(self, x: Float32s, counts: Ints) -> None:
        """First pass. x: [n], no NaN; counts: int64 [n], how often each counts."""
        np.add.at(self._upper, _place(x) // HALF, counts)

    def add_again(self, x: Float32s, counts: Ints) -> None:
        """Second pass, after all of the first."""
        if not self._lower:
            self._lower = {upper: np.zeros(HALF, dtype=np.int64) for upper, _ in self._ranks()}
        place = _place(x)
        for upper, lower in self._lower.items():
            here = place // HALF == upper
            np.add.at(lower, place[here] % HALF, counts[here])

    def values(self) -> Float32s:
        """The percentiles, in the order of `percents`; none of a column without values."""
        places = [
            upper * HALF + int(np.searchsorted(np.cumsum(self._lower[upper]), rank)) for upper, rank in self._ranks()
        ]
        return _at(np.array(places, dtype=np.int64))

    def _ranks(self) -> list[tuple[int, int]]:
        """Of each percentile: its upper half, and how many values with this upper half lie at or below it."""
        sums, out = np.cumsum(self._upper), []
        for percent in self.percents if self.total else ():
            rank = -(-percent * self.total // 100)
            upper = int(np.searchsorted(sums, rank))
            out.append((upper, rank - int(sums[upper] - self._upper[upper])))
        return out


def _place(x: Float32s) -> Ints:
    """The place of each number among all of float32, 0...2^32 - 1, -0.0 before 0.0."""
    bits = x.view(np.uint32).astype(np.int64)
    return np.where(bits >= 1 << 31, 0xFFFF_FFFF - bits, bits + (1 << 31))


def _at(place: NDArray[Any]) -> Float32s:
    """The inverse of `_place`."""
    bits = np.where(place >= 1 << 31, place - (1 << 31), 0xFFFF_FFFF - place)
    return bits.astype(np.uint32).view(np.float32)
