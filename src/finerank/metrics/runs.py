"""Rows in the order of their scores, equal scores together: the one sort that metrics of order are read from.

A *run* is the rows of one score (in `Rankings`: of one group and one score). Nothing tells them apart, so no metric here
depends on the order in which tied rows were given.

n rows · K runs · G groups
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from finerank.errors import UserError
from finerank.metrics.probability import observed

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def positives(place: str, labels: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Which labels are 1. Raises UserError, naming `place`, for labels other than 0 and 1."""
    positive = np.asarray(labels == 1, dtype=np.bool_)
    wrong = int(np.count_nonzero(~positive & (labels != 0)))
    if wrong:
        raise UserError(
            f"{place}: {wrong} of {len(labels)} labels are neither 0 nor 1; give rows outside the task weight 0"
        )
    return positive


def moves_on(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a sorted array moves on to another value; its first entry is one."""
    return np.concatenate([np.ones(min(1, len(values)), dtype=np.bool_), values[1:] != values[:-1]])


def distinct(values: NDArray[Any]) -> NDArray[Any]:
    """The different values, ascending, by a sort: asked for values alone `np.unique` hashes, which takes 30 times as long.

    >>> distinct(np.array([7, 3, 7])).tolist()
    [3, 7]
    """
    rising = np.sort(values)
    out: NDArray[Any] = rising[moves_on(rising)]
    return out


def sums(codes: Ints, values: Floats, count: int) -> Floats:
    """[count]: the sum of the values of each code."""
    return np.asarray(np.bincount(codes, values, count), dtype=np.float64)


def over(above: NDArray[Any], below: NDArray[Any]) -> Floats:
    """above / below, NaN where below is not above 0."""
    out: Floats = np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)
    return out


# ------------------------------------------------------------------------------------------------ all rows


@dataclass(frozen=True)
class Runs:
    """All rows by falling score.

    positive  bool [n], in the order given; weights: float64 [n], ones where none were given
    order     int64 [n]: the row at each place;  run: int64 [n]: the run of each row, in the order given
    up, down  float64 [K]: weight of the positives and of the negatives of each run
    score     [K]
    """

    positive: NDArray[np.bool_]
    weights: Floats
    order: Ints
    run: Ints
    up: Floats
    down: Floats
    score: NDArray[Any]


def runs(place: str, labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> Runs:
    """Sort once. labels [n], 0 or 1; scores [n]; weights [n] > 0 or None. `place` names the metric in errors."""
    y, s, w = observed(place, labels, scores, weights)
    positive = positives(place, y)
    order = np.argsort(-s)
    new = moves_on(s[order])
    place_of_run = np.cumsum(new) - 1
    run = np.empty(len(s), dtype=np.int64)
    run[order] = place_of_run
    each = np.ones(len(s)) if w is None else w
    count = int(new.sum())
    up = sums(place_of_run, (each * positive)[order], count)
    down = sums(place_of_run, (each * ~positive)[order], count)
    return Runs(positive, each, order, run, up, down, s[order][new])


# ------------------------------------------------------------------------------------------------ within groups


@dataclass(frozen=True)
class Rankings:
    """The rows of every group by rising score; groups in the order of their keys.

    groups     [G] keys
    rows       int64 [G] rows of each group;  first: int64 [G] its first run
    size       int64 [K] rows of each run;  above: int64 [K] rows of the same group that score higher
    up, down   [K] positives and negatives of each run: numbers (int64), or sums of weights (float64)
    """

    groups: NDArray[Any]
    rows: Ints
    first: Ints
    size: Ints
    above: Ints
    up: NDArray[Any]
    down: NDArray[Any]

    def sums(self, of_runs: NDArray[Any]) -> NDArray[Any]:
        """[K] -> [G]: the sum over the runs of each group."""
        out: NDArray[Any] = np.add.reduceat(of_runs, self.first) if len(self.first) else of_runs[:0]
        return out

    def spread(self, of_groups: NDArray[Any]) -> NDArray[Any]:
        """[G] -> [K]: a group's value at each of its runs."""
        return np.repeat(of_groups, np.diff(self.first, append=len(self.size)))

    def before(self, of_runs: NDArray[Any]) -> NDArray[Any]:
        """[K] -> [K]: the sum over the runs of the same group that score lower."""
        below = np.cumsum(of_runs) - of_runs
        out: NDArray[Any] = below - self.spread(below[self.first])
        return out

    def after(self, of_runs: NDArray[Any]) -> NDArray[Any]:
        """[K] -> [K]: the sum over the runs of the same group that score higher."""
        out: NDArray[Any] = self.spread(self.sums(of_runs)) - self.before(of_runs) - of_runs
        return out


def rankings(
    labels: ArrayLike, scores: ArrayLike, groups: ArrayLike, weights: ArrayLike | None = None, place: str = "rankings"
) -> Rankings:
    """Sort once, by group and score; no loop over groups.

    labels   [n], 0 or 1 · scores [n] any numbers · groups [n] keys: integers or texts; not floats, which merge large ids
    weights  [n] >= 0: `up` and `down` are sums of weights; rows of weight 0 are left out
    Raises UserError for NaN scores, other labels, other keys, shapes that differ.
    """
    y, s, w = observed(place, labels, scores, weights)
    keys = np.asarray(groups)
    if weights is not None and keys.shape == np.shape(weights):
        keys = keys[np.asarray(weights) > 0]
    if keys.shape != y.shape or keys.dtype.kind not in "biuSU":
        raise UserError(
            f"{place}: groups are {keys.dtype} {keys.shape}, labels {y.shape}; accepted: integers or texts, "
            "one per row (a column with nulls or floats: encode it first)"
        )
    positive = positives(place, y)
    if not len(y):
        none = np.zeros(0, np.int64)
        return Rankings(keys, none, none, none, none, none, none)
    # One sort of (group, rank of the score, label) packed into an integer: a fifth of the time of a sort by two columns.
    order = np.argsort(s)
    rank = np.cumsum(moves_on(s[order])) - 1  # [n] in the order of scores; ties share a rank
    ranks = int(rank[-1]) + 1
    packed = (_codes(keys, 2**62 // ranks)[order] * ranks + rank) * 2 + positive[order]
    if w is None:
        packed.sort()
    else:
        again = np.argsort(packed)
        packed, w = packed[again], w[order][again]
    run, up = packed >> 1, packed & 1  # [n]
    group = run // ranks
    tie, start = np.flatnonzero(moves_on(run)), np.flatnonzero(moves_on(group))  # [K], [G] first row of each
    first = np.searchsorted(tie, start)
    size, rows = np.diff(tie, append=len(s)), np.diff(start, append=len(s))
    end = np.repeat(start + rows, np.diff(first, append=len(tie)))  # [K] where the run's group ends
    if w is None:
        ups: NDArray[Any] = np.add.reduceat(up, tie)
        downs: NDArray[Any] = size - ups
    else:
        ups, downs = np.add.reduceat(w * up, tie), np.add.reduceat(w * (1 - up), tie)
    return Rankings(distinct(keys), rows, first, size, end - tie - size, ups, downs)


def _codes(keys: NDArray[Any], limit: int) -> Ints:
    """Integers in [0, limit) with the order of the keys."""
    if keys.dtype.kind in "iu" and int(keys.max()) - int(keys.min()) < limit:
        wide = keys if keys.dtype.kind == "u" else keys.astype(np.int64)
        return np.asarray(wide - wide.min(), dtype=np.int64)
    return np.asarray(np.unique(keys, return_inverse=True)[1], dtype=np.int64)
