"""What a fitter accumulates while training columns pass by, and how it becomes a symbol table or statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from finerank.errors import UserError
from finerank.runtime.encoder import NumberStats
from finerank.runtime.fields import TableSpec
from finerank.runtime.symbols import CutsTable, GrowingTable, HashedTable, SymbolTable, VocabularyTable
from finerank.schema import MISSING, Growing, Hashed, Numeric, Vocabulary

Int64s: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]


class TextTally:
    """Occurrences of each text of one table, in order of first occurrence."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._missing = 0

    def add(self, texts: Sequence[str | None], counts: Sequence[int]) -> None:
        """Count texts (None is missing), each as often as `counts` says."""
        for text, n in zip(texts, counts, strict=True):
            if text is None:
                self._missing += n
            else:
                self._counts[text] = self._counts.get(text, 0) + n

    def fit(self, name: str, spec: TableSpec) -> tuple[SymbolTable, Int64s]:
        """The table and the occurrences of each symbol."""
        texts = list(self._counts)
        table: SymbolTable
        match spec.encoding:
            case Vocabulary():
                table = VocabularyTable.fit(name, self._counts, spec.encoding)
            case Hashed():
                table = HashedTable(name, spec.encoding.buckets, texts)
            case Growing():
                table = GrowingTable(name, texts)
            case _:
                raise TypeError(f"a table of texts cannot be encoded as {spec.encoding!r}")
        return table, _counted(table, table.lookup_all(texts), np.array(list(self._counts.values())), self._missing)


class CutsTally:
    """Occurrences of each number of one table of cuts."""

    def __init__(self) -> None:
        self._values: list[Floats] = []
        self._counts: list[Int64s] = []
        self._missing = 0

    def add(self, values: Floats, counts: Int64s) -> None:
        """Count numbers (NaN is missing), each as often as `counts` says."""
        known = ~np.isnan(values)
        distinct, inverse = np.unique(values[known], return_inverse=True)
        sums = np.zeros(len(distinct), dtype=np.int64)
        np.add.at(sums, inverse, counts[known])
        self._values.append(distinct)
        self._counts.append(sums)
        self._missing += int(counts[~known].sum())

    def fit(self, name: str, spec: TableSpec) -> tuple[SymbolTable, Int64s]:
        """The table and the occurrences of each symbol."""
        values = np.concatenate([np.zeros(0), *self._values])
        counts = np.concatenate([np.zeros(0, dtype=np.int64), *self._counts])
        table = CutsTable(name, quantile_cuts(values, counts, spec.buckets) if spec.cuts is None else spec.cuts)
        return table, _counted(table, table.bucket(values), counts, self._missing)


class Moments:
    """Mean, spread and range of the numbers that pass by; pieces are merged as in Chan, Golub, LeVeque (1979)."""

    def __init__(self) -> None:
        self.n, self.mean, self.m2 = 0, 0.0, 0.0
        self.low, self.high = math.inf, -math.inf
        self.missing = False

    def add(self, x: Floats, weights: Int64s) -> None:
        """Take in numbers, NaN where missing, each as often as its weight (none is 0)."""
        known = ~np.isnan(x)
        self.missing |= not known.all()
        x, w = x[known], weights[known]
        if not len(x):
            return
        n = int(w.sum())
        with np.errstate(over="ignore", invalid="ignore"):  # `fit` tells of what overflows, where it matters
            mean = float((x * w).sum()) / n
            m2 = float((w * (x - mean) ** 2).sum())
            delta, total = mean - self.mean, self.n + n
            self.mean += delta * n / total
            self.m2 += m2 + float(np.float64(delta) ** 2) * self.n * n / total
        self.n = total
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))

    def fit(self, feature: Numeric) -> NumberStats:
        """The statistics that the feature's transform needs. A constant column becomes 0."""
        shift, scale = 0.0, 1.0
        if self.n and feature.transform == "standard":
            # a constant column may be off its mean by rounding: that is no spread
            shift, scale = (self.low, 0.0) if self.low == self.high else (self.mean, math.sqrt(self.m2 / self.n))
        if self.n and feature.transform == "minmax":
            shift, scale = self.low, self.high - self.low
        if not (math.isfinite(shift) and math.isfinite(scale)):
            raise UserError(
                f"feature {feature.name!r}: training values from {self.low!r} to {self.high!r} are too large for transform = "
                f'{feature.transform!r}; clean the column or use transform = "log1p"'
            )
        return NumberStats(shift=shift, scale=scale or 1.0, missing=self.missing)


def quantile_cuts(values: Floats, counts: Int64s, buckets: int) -> Floats:
    """Cut points that part the occurrences of numbers into about equal shares; distinct, ascending, finite.

    Cut i is the value that leaves nearest to i / buckets of all occurrences strictly below it (a tie: the lower). So no
    bucket is empty, a value that fills several shares gives one cut, and two distinct values always give one.

    >>> quantile_cuts(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1, 1, 1, 1]), 2).tolist()
    [3.0]
    """
    distinct, inverse = np.unique(values, return_inverse=True)
    sums = np.zeros(len(distinct), dtype=np.int64)
    np.add.at(sums, inverse, counts)
    if len(distinct) < 2:
        return np.zeros(0)
    below = np.cumsum(sums)[:-1] * buckets  # of distinct[1:]; shares in integers, so that nothing is rounded
    wanted = np.arange(1, buckets) * sums.sum()
    above = np.searchsorted(below, wanted).clip(max=len(below) - 1)
    under = (above - 1).clip(min=0)
    cuts: Floats = distinct[1:][np.unique(np.where(wanted - below[under] <= below[above] - wanted, under, above))]
    return cuts


def _counted(table: SymbolTable, symbols: Int64s, counts: Int64s, missing: int) -> Int64s:
    out = np.zeros(table.size, dtype=np.int64)
    np.add.at(out, symbols, counts.astype(np.int64))
    out[MISSING] += missing
    return out
