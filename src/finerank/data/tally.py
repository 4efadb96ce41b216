"""What a fitter accumulates while training columns pass by, and how it becomes a symbol table or statistics."""

from __future__ import annotations

import itertools
import math
from decimal import Context, Decimal
from typing import TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from finerank.data.scratch import total
from finerank.data.texts import order, packed
from finerank.errors import UserError
from finerank.runtime.encoder import NumberStats
from finerank.runtime.fields import TableSpec
from finerank.runtime.symbols import CutsTable, GrowingTable, HashedTable, SymbolTable, Texts, VocabularyTable
from finerank.schema import FIRST, MISSING, OOV, Growing, Hashed, Numeric, Vocabulary

Int64s: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]

_PIECE = {"text": pl.String, "count": pl.Int64, "order": pl.Int64}
_APART = 1 << 44  # more rows than one column has

POINTS = 1_000
"""How many steps of equal share the ranks of transform = "powers" are read off from, at most."""

CRITEO_LOW, CRITEO_HIGH = -100.0, 2.0**63
"""Between these the Criteo rule has a bucket of its own for each of its values, about 2,000 in all."""


class TextTally:
    """Occurrences of each text of one table. What is added first comes first in a growing or hashed table.

    symbols   after `fit` of a vocabulary, if all was added at once: int64 [U], the symbol of each text
    """

    def __init__(self) -> None:
        self.symbols: Int64s | None = None
        self._pieces: list[pl.DataFrame] = []
        self._missing = 0

    def add(self, texts: pl.Series, counts: Int64s, first: Int64s, missing: int = 0) -> None:
        """Count distinct texts [U]. first: the row in which each occurs first, within what is added now."""
        place = first + len(self._pieces) * _APART
        piece = {"text": texts, "count": pl.Series(counts, dtype=pl.Int64), "order": pl.Series(place, dtype=pl.Int64)}
        self._pieces.append(pl.DataFrame(piece))
        self._missing += missing

    def fit(self, name: str, spec: TableSpec) -> tuple[SymbolTable, Int64s, pl.Series]:
        """The table, the occurrences of each symbol, and the texts of the table by symbol (hashed: those seen)."""
        frame = pl.concat(self._pieces) if self._pieces else pl.DataFrame(schema=_PIECE)
        if len(self._pieces) > 1:
            frame = frame.group_by("text").agg(pl.col("count").sum(), pl.col("order").min())
        texts, counts = frame["text"], frame["count"].to_numpy()
        if isinstance(spec.encoding, Vocabulary):  # what is too rare comes last
            enough = int((counts >= spec.encoding.min_count).sum())
            rows = order(texts, counts)[:enough][: spec.encoding.max_size]
        else:
            rows = np.argsort(frame["order"].to_numpy())
        kept = texts.gather(rows)
        match spec.encoding:
            case Vocabulary():
                table: SymbolTable = VocabularyTable(name, Texts(*packed(kept)))
            case Growing():
                table = GrowingTable(name, Texts(*packed(kept)))
            case Hashed(buckets=buckets):
                table = HashedTable(name, buckets, Texts(*packed(kept)))
            case _:
                raise TypeError(f"a table of texts cannot be encoded as {spec.encoding!r}")
        of_symbols = np.zeros(table.size, dtype=np.int64)
        if isinstance(table, HashedTable):
            np.add.at(of_symbols, hashed(table, kept), counts[rows])
        else:
            of_symbols[FIRST:] = counts[rows]
            of_symbols[OOV] = int(counts.sum()) - int(counts[rows].sum())
        of_symbols[MISSING] += self._missing
        if isinstance(spec.encoding, Vocabulary) and len(self._pieces) == 1:
            self.symbols = np.full(len(texts), OOV)
            self.symbols[rows] = FIRST + np.arange(len(rows))
        return table, of_symbols, kept


def hashed(table: HashedTable, texts: pl.Series) -> Int64s:
    """`lookup` of each text, integers without a look at each one."""
    values = texts.cast(pl.Int64, strict=False)
    plain = (values.cast(pl.String) == texts).fill_null(False).to_numpy()
    out = np.empty(len(texts), dtype=np.int64)
    out[plain] = table.lookup_integers(values.filter(pl.Series(plain)).to_numpy())
    out[~plain] = table.lookup_all(texts.filter(pl.Series(~plain)).to_list())
    return out


class NumberTally:
    """Occurrences of each number. Memory follows the distinct ones, not how many pieces they come in."""

    def __init__(self) -> None:
        self._values: list[Floats] = []
        self._counts: list[Int64s] = []
        self.missing = 0

    def add(self, values: Floats, counts: Int64s) -> None:
        """Count numbers (NaN is missing), each as often as `counts` says."""
        known = ~np.isnan(values)
        distinct, sums = _summed(values[known] + 0.0, counts[known])  # -0.0 is 0.0
        self._values.append(distinct)
        self._counts.append(sums)
        self.missing += int(counts[~known].sum())
        if sum(map(len, self._values[1:])) > len(self._values[0]):  # so it costs no more than twice what came since
            self._merge()

    def distinct(self) -> tuple[Floats, Int64s]:
        """The distinct numbers, ascending, and how often each occurs."""
        self._merge()
        return self._values[0], self._counts[0]

    def _merge(self) -> None:
        values = np.concatenate([np.zeros(0), *self._values])
        values, counts = _summed(values, np.concatenate([np.zeros(0, dtype=np.int64), *self._counts]))
        self._values, self._counts = [values], [counts]


class CutsTally(NumberTally):
    """Occurrences of each number of one table of cuts."""

    def fit(self, name: str, spec: TableSpec) -> tuple[SymbolTable, Int64s]:
        """The table and the occurrences of each symbol."""
        values, counts = self.distinct()
        cuts = np.array(made_cuts(spec, values, counts) if spec.cuts is None else spec.cuts, dtype=np.float64)
        table = CutsTable(name, cuts)
        return table, _counted(table, table.bucket(values), counts, self.missing)


class Ranks(NumberTally):
    """The share of the training rows below each number, for transform = "powers"."""

    def fit(self, feature: Numeric) -> NumberStats:
        """At most `POINTS` + 1 of the distinct values, ends included, with their shares. None if all are missing."""
        values, counts = self.distinct()
        missing = self.missing > 0
        if not len(values):
            return NumberStats(missing=missing)
        low, high = float(values[0]), float(values[-1])
        if not math.isfinite(high - low):
            raise _too_large(feature, low, high)
        shares = (np.cumsum(counts) - counts / 2) / counts.sum()
        kept = np.unique(np.searchsorted(shares, np.linspace(shares[0], shares[-1], POINTS + 1)))
        return NumberStats(missing=missing, points=tuple(values[kept].tolist()), ranks=tuple(shares[kept].tolist()))


class Moments:
    """Mean, spread and range of the numbers that pass by; pieces are merged as in Chan, Golub, LeVeque (1979)."""

    def __init__(self) -> None:
        self.n, self.mean, self.m2 = 0, 0.0, 0.0
        self.low, self.high = math.inf, -math.inf
        self.missing = False

    def add(self, x: Floats, weights: Int64s) -> None:
        """Take in a column of numbers, none of them NaN, each as often as its weight (none is 0). It may be mapped."""
        if not len(x):
            return
        with np.errstate(over="ignore", invalid="ignore"):  # `fit` tells of what overflows, where it matters
            n = int(total(len(x), lambda at: weights[at].astype(np.float64)))
            mean = total(len(x), lambda at: x[at] * weights[at]) / n
            m2 = total(len(x), lambda at: weights[at] * (x[at] - mean) ** 2)
            delta, both = mean - self.mean, self.n + n
            self.mean += delta * n / both
            self.m2 += m2 + float(np.float64(delta) ** 2) * self.n * n / both
        self.n = both

    def span(self, x: Floats) -> None:
        """Take in the range of some numbers, and whether one is missing (NaN)."""
        if len(x):
            low, high = float(np.fmin.reduce(x)) + 0.0, float(np.fmax.reduce(x)) + 0.0
            if low <= high:  # else all are NaN
                self.low, self.high = min(self.low, low), max(self.high, high)
            self.missing |= bool(np.isnan(x).any())

    def fit(self, feature: Numeric) -> NumberStats:
        """The statistics that the feature's transform needs. A constant column becomes 0."""
        shift, scale = 0.0, 1.0
        if self.n and feature.transform == "standard":
            # a constant column may be off its mean by rounding: that is no spread
            shift, scale = (self.low, 0.0) if self.low == self.high else (self.mean, math.sqrt(self.m2 / self.n))
        if self.low <= self.high and feature.transform == "minmax":
            shift, scale = self.low, self.high - self.low
        if not (math.isfinite(shift) and math.isfinite(scale)):
            raise _too_large(feature, self.low, self.high)
        return NumberStats(shift=shift, scale=scale or 1.0, missing=self.missing)


def made_cuts(spec: TableSpec, values: Floats, counts: Int64s) -> Floats:
    """The cut points that a table's law makes of the training values. values: distinct, ascending."""
    if len(values) < 2:  # a constant column, or nothing at all: one bucket
        return np.zeros(0)
    match spec.law:
        case "quantile":
            return quantile_cuts(values, counts, spec.buckets)
        case "equal_width":
            return width_cuts(float(values[0]), float(values[-1]), spec.buckets)
        case "criteo":
            return criteo_cuts(float(values[0]), float(values[-1]))


def quantile_cuts(values: Floats, counts: Int64s, buckets: int) -> Floats:
    """Cut points that part the occurrences of numbers into about equal shares; distinct, ascending, finite.

    Cut i is the value that leaves nearest to i / buckets of all occurrences strictly below it (a tie: the lower). So no
    bucket is empty, a value that fills several shares gives one cut, and two distinct values always give one.

    >>> quantile_cuts(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1, 1, 1, 1]), 2).tolist()
    [3.0]
    """
    distinct, sums = _summed(values, counts)
    if len(distinct) < 2:
        return np.zeros(0)
    below = np.cumsum(sums)[:-1] * buckets  # of distinct[1:]; shares in integers, so that nothing is rounded
    wanted = np.arange(1, buckets) * sums.sum()
    above = np.searchsorted(below, wanted).clip(max=len(below) - 1)
    under = (above - 1).clip(min=0)
    cuts: Floats = distinct[1:][np.unique(np.where(wanted - below[under] <= below[above] - wanted, under, above))]
    return cuts


def width_cuts(low: float, high: float, buckets: int) -> Floats:
    """Cut points that part [low, high] into buckets of equal width; the greatest value lies in the last one.

    >>> width_cuts(0.0, 10.0, 4).tolist()
    [2.5, 5.0, 7.5]
    """
    part = np.arange(1, buckets) / buckets
    cuts = np.unique(low * (1 - part) + high * part)  # not low + part * (high - low), which may overflow
    inside: Floats = cuts[(cuts > low) & (cuts <= high)]
    return inside


def criteo_cuts(low: float, high: float) -> Floats:
    """Cut points of the Criteo rule v > 2 -> floor(ln(v)^2), else floor(v) - 2, between a least and a greatest value.

    The rule steps at the whole numbers up to 2 and at e^sqrt(k), k = 1, 2, ..., none of which is a whole number: each is
    the least float64 at or above it, found in decimal arithmetic, so the same on every machine. Values below
    `CRITEO_LOW` share a bucket, and so do those above `CRITEO_HIGH`.

    >>> cuts = criteo_cuts(0, 11)
    >>> [int(np.searchsorted(cuts, v, side="right")) - 2 for v in range(12)]
    [-2, -1, 0, 1, 1, 2, 3, 3, 4, 4, 5, 5]
    """
    low, high = max(low, CRITEO_LOW), min(high, CRITEO_HIGH)
    cuts = [float(v) for v in range(math.floor(low) + 1, math.floor(min(high, 2.0)) + 1)]
    exact = Context(prec=40)
    for k in itertools.count(1):
        edge = exact.exp(exact.sqrt(Decimal(k)))
        cut = float(edge)
        cut = cut if Decimal(cut) >= edge else math.nextafter(cut, math.inf)
        if cut > high:
            return np.array(cuts)
        if cut > low:
            cuts.append(cut)
    raise AssertionError("the edges grow without bound")


def _summed(values: Floats, counts: Int64s) -> tuple[Floats, Int64s]:
    """The distinct values, ascending, and the sum of the counts of each."""
    distinct, inverse = np.unique(values, return_inverse=True)
    sums = np.zeros(len(distinct), dtype=np.int64)
    np.add.at(sums, inverse, counts)
    return distinct, sums


def _too_large(feature: Numeric, low: float, high: float) -> UserError:
    return UserError(
        f"feature {feature.name!r}: training values from {low!r} to {high!r} are too large for transform = "
        f'{feature.transform!r}; clean the column or use transform = "log1p"'
    )


def _counted(table: SymbolTable, symbols: Int64s, counts: Int64s, missing: int) -> Int64s:
    out = np.zeros(table.size, dtype=np.int64)
    np.add.at(out, symbols, counts.astype(np.int64))
    out[MISSING] += missing
    return out
