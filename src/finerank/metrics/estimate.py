"""A number with its 95 % interval, and where the interval comes from.

Rows of one user are no independent draws: whoever clicks a lot clicks a lot tomorrow. So every interval here takes the
user as the unit of the sample. What a user does to a metric is one number, its influence: to the first order, the change
of the metric when that user weighs a little more. The variance is the sum of their squares (the infinitesimal jackknife,
Efron 1982; for AUC it is DeLong's, by clusters). It is what weighted resampling of users tends to, without the draws, and
influences of two models on the same users subtract, which is all a paired comparison needs. `resampled` draws: the twin,
and the way for metrics that have no derivative. An interval is t standard errors wide on either side; where some users do far
more than others, t has the degrees of freedom of the few that they count as (`Influence.freedom`).

All of it covers the data: other users would give another number. It does not cover the seed of the training.

G clusters (users) · S statistics summed per cluster · B draws
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FEW = 30
"""With fewer clusters than this (or as few as they count for) an interval is a rough guide, and says so."""

COVERS = "covers the data, not the seed of the training"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A metric with its 95 % interval. NaN where it is not defined: no rows, one class only, no interval.

    value      the metric
    low, high  the 95 % interval, cut at the metric's own bounds; none where no user differs from the others
    se         its standard error
    how        one phrase that says how the interval was found and what it covers, or why there is none
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    se: float = math.nan
    how: str = ""


@dataclass(frozen=True)
class Influence:
    """A metric, and what each cluster does to it.

    of        float64 [G]: scaled so that the sum of squares is the variance of `value`
    clusters  how many clusters it rests on (for AUC: the fewer of those with positives and those with negatives)
    method    how it was found, for people
    """

    value: float
    of: Floats
    clusters: int
    method: str = "jackknife"

    @property
    def se(self) -> float:
        """Standard error; NaN with fewer than two clusters."""
        return float(np.sqrt(self.of @ self.of)) if self.clusters > 1 else math.nan

    @property
    def constant(self) -> bool:
        """Whether no cluster moves the metric, but for rounding.

        It tells nothing of others: where each of 25 users has its click among the first ten, a 26th may not, and an error of 0
        would make a certainty of what is seldom missed.
        """
        return self.se <= 1e-12 * abs(self.value)

    @property
    def freedom(self) -> float:
        """Degrees of freedom of the variance: G - 1 where clusters move the metric alike, fewer where some do far more.

        Users differ in activity by powers of ten. Then a few squares make most of the sum, and it is as uncertain as they are:
        as that of 3 (Σ of²)² / Σ of⁴ clusters alike (Satterthwaite 1946, with the fourth moment of normal influences).
        """
        squares = self.of**2
        fourth = float(squares @ squares)
        alike = 3 * float(squares.sum()) ** 2 / fourth if fourth > 0 else math.inf
        return min(self.clusters, alike) - 1

    def __sub__(self, other: Influence) -> Influence:
        """The difference of two models on the same clusters: paired, so what the data do to both cancels."""
        return Influence(
            self.value - other.value, self.of - other.of, min(self.clusters, other.clusters), f"paired {self.method}"
        )

    def estimate(self, low: float = -math.inf, high: float = math.inf, unit: str = "users") -> Estimate:
        """The 95 % interval, value ± t se with `freedom`, cut at the metric's bounds."""
        if math.isnan(self.se):
            return Estimate(value=self.value, how="" if math.isnan(self.value) else f"no interval: too few {unit}")
        if self.constant:
            return Estimate(value=self.value, se=self.se, how=f"no interval: alike for all {self.clusters:,} {unit}")
        found = max(self.clusters, int(np.count_nonzero(self.of)))
        how = f"{self.method} over {found:,} {unit}{self._few(found)}; {COVERS}"
        return estimate_of(self.value, self.se, self.freedom, how, low, high)

    def _few(self, found: int) -> str:
        """Why the interval is a rough guide; "" where it is more."""
        if self.clusters < FEW:
            rare = f"the rarer class has {self.clusters:,}, " if found > self.clusters else ""  # of an AUC alone
            return f" ({rare}fewer than {FEW}: a rough guide)"
        alike = self.freedom + 1
        return f" (so unequal that they count as {alike:.0f}: a rough guide)" if alike < FEW else ""


def estimate_of(
    value: float, se: float, freedom: float, how: str, low: float = -math.inf, high: float = math.inf
) -> Estimate:
    """The 95 % interval of a standard error, value ± t se with these degrees of freedom, cut at the metric's bounds."""
    half = student_quantile(freedom) * se
    return Estimate(
        value=value,
        low=max(low, value - half) if half == half else math.nan,
        high=min(high, value + half) if half == half else math.nan,
        se=se,
        how=how,
    )


def mean_influence(parts: list[Influence]) -> Influence:
    """The mean over models on the same clusters, for example over seeds: what the data do to the mean."""
    return Influence(
        float(np.mean([p.value for p in parts])),
        np.mean([p.of for p in parts], axis=0),
        min(p.clusters for p in parts),
        parts[0].method,
    )


BLOCK = 1 << 24
"""Random numbers that `resampled` holds at a time."""


def resampled(sums: Floats, statistic: Callable[[Floats], Floats], draws: int = 1_000, seed: int = 0) -> Floats:
    """The statistic on `draws` samples of the clusters, each cluster as often as a Poisson(1) number says. [B]

    sums       float64 [G, S]: per cluster, what the statistic is made of (numerators, denominators, ...)
    statistic  [B, S] totals -> [B] values

    Poisson(1) stands for drawing G clusters with replacement: the same in the limit, and clusters draw on their own.

    >>> sums = np.random.default_rng(1).normal([1.0, 1.0], [0.5, 0.0], (400, 2))  # a mean: numerator, denominator
    >>> round(float(resampled(sums, lambda s: s[:, 0] / s[:, 1]).std()), 2)  # .5 / sqrt(400) = .025, as it came out
    0.02
    """
    draw = np.random.default_rng(seed)
    cumulative = np.cumsum([math.exp(-1) / math.factorial(i) for i in range(12)])
    table = np.searchsorted(cumulative, (np.arange(1 << 16) + 0.5) / (1 << 16)).astype(np.float32)  # 16 bits -> Poisson
    step = max(1, BLOCK // draws)
    totals = np.zeros((draws, sums.shape[1]))
    for start in range(0, len(sums), step):
        part = sums[start : start + step]
        counts = table[draw.integers(0, 1 << 16, (draws, len(part)), dtype=np.uint16)]
        totals += counts @ part
    return statistic(totals)


# ------------------------------------------------------------------------------------------------ Student's t


NODES, WEIGHTS = np.polynomial.legendre.leggauss(60)


def student_tail(t: float, df: float) -> float:
    """P(|T| > t) for Student's t with df degrees of freedom (any number > 0; infinite: the normal). NaN for NaN.

    >>> round(student_tail(2.262, 9), 3), round(student_tail(1.96, math.inf), 3)
    (0.05, 0.05)
    """
    t = abs(t)
    if math.isnan(t) or not df > 0:
        return math.nan
    if df > 1e5 or math.isinf(t):
        return math.erfc(t / math.sqrt(2))
    # with t = sqrt(df) tan(a): the density is proportional to cos(a)^(df - 1) on (-π/2, π/2)
    start = math.atan(t / math.sqrt(df))
    width = math.pi / 2 - start
    log_norm = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(math.pi)
    angles = start + width * (NODES + 1) / 2
    with np.errstate(divide="ignore"):
        density = np.exp(log_norm + (df - 1) * np.log(np.cos(angles)))
    return min(1.0, float(WEIGHTS @ density) * width)


@functools.cache
def student_quantile(df: float, level: float = 0.95) -> float:
    """The t with P(|T| <= t) = level: 1.96 for many degrees of freedom, more for few; NaN for none.

    >>> round(student_quantile(9), 3), round(student_quantile(1e9), 3)
    (2.262, 1.96)
    """
    if not df > 0:
        return math.nan
    low, high = 0.0, 1.0
    while student_tail(high, df) > 1 - level:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_tail(middle, df) > 1 - level else (low, middle)
    return (low + high) / 2


def holm(p_values: list[float]) -> list[float]:
    """p-values of several comparisons, adjusted so that one false alarm among all stays at its level (Holm, 1979).

    The smallest is multiplied by their number, the next by one less, ..., never falling. NaN stays out.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    out, worst = list(p_values), 0.0
    for place, i in enumerate(order):
        worst = max(worst, min(1.0, p_values[i] * (len(order) - place)))
        out[i] = worst
    return out
