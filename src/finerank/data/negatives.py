"""Negatives drawn in proportion to a power of popularity as known at a moment, without replacement.

I items known so far · E items excluded

The law of word2vec's negatives (Mikolov et al., NIPS 2013, section 2.2: unigram counts to the power 3/4), here on
counts that grow with time, so that a negative never knows the future. Each draw gives every eligible item an
exponential arrival time -log(1 - u) / weight and takes the n that arrive first: this is sampling without replacement
with probability proportional to weight (Efraimidis and Spirakis, Information Processing Letters 2006), in one vector
pass. u is a pure function of (key, item): no generator state, so what one request draws depends on no other request.
"""

from __future__ import annotations

import math

import numpy as np

from finerank.errors import UserError
from finerank.runtime.hashing import uniform


class PopularitySampler:
    """Counts that grow with time, and draws from them. Items are small integers, numbered as they first appear.

    power  0: every known item alike; 1: as often as it is bought; default 0.75, the usual middle. Unpopular items make
           easy negatives and popular ones hard negatives, so a higher power gives a harder task
    """

    def __init__(self, power: float = 0.75) -> None:
        if not (math.isfinite(power) and power >= 0):
            raise UserError(f"popularity sampler: power = {power}; accepted: 0 (uniform) and up, usually 0.75")
        self.power = power
        self._counts = np.zeros(0, dtype=np.int64)
        self._pace = np.zeros(0)  # 1 / weight: an item's mean arrival time; infinite while its count is 0

    @property
    def counts(self) -> np.ndarray:
        """int64 [I]: how often each item was seen so far, up to the last item that was seen at all."""
        return np.trim_zeros(self._counts, "b").copy()

    def add(self, items: np.ndarray, counts: np.ndarray | int = 1) -> None:
        """Let time advance: `items` (int [n]) were seen again, each `counts` times (int [n], or one for all).

        An item given twice counts twice.
        """
        items, more = _indices("items", items), np.asarray(counts)
        if more.dtype.kind not in "iu" or more.shape not in ((), items.shape) or (more.size and more.min() < 0):
            raise UserError(
                f"popularity sampler: counts of type {more.dtype} and shape {more.shape} for {len(items)} items; "
                "accepted: one integer from 0 up for each item, or one for all (what was seen cannot become unseen)"
            )
        if not len(items):
            return
        if (missing := int(items.max()) + 1 - len(self._counts)) > 0:
            missing = max(missing, len(self._counts))  # doubling: adding item after item stays linear
            self._counts = np.pad(self._counts, (0, missing))
            self._pace = np.pad(self._pace, (0, missing), constant_values=np.inf)
        np.add.at(self._counts, items, more)
        seen = items[self._counts[items] > 0]
        self._pace[seen] = self._counts[seen].astype(np.float64) ** -self.power

    def draw(self, n: int, exclude: np.ndarray, key: int) -> np.ndarray:
        """n different items that were seen and are not in `exclude`, in the order drawn; all there are if fewer.

        exclude  int [E]: items that must not be drawn (repeats and items never seen are fine)
        key      what makes this draw its own, such as `mix(seed, request)`: equal keys draw alike

        The first m of n items are what a draw of m items would give.
        """
        if n < 0:
            raise UserError(f"popularity sampler: cannot draw n = {n} items; accepted: 0 and up")
        eligible = self._counts > 0
        exclude = _indices("exclude", exclude)
        eligible[exclude[exclude < len(eligible)]] = False
        items = np.flatnonzero(eligible)
        arrival = -np.log1p(-uniform(key, items)) * self._pace[items]
        n = min(n, len(items))
        first = np.argpartition(arrival, n)[:n] if n < len(items) else np.arange(n)
        return items[first[np.argsort(arrival[first], kind="stable")]]


def _indices(name: str, values: np.ndarray) -> np.ndarray:
    """`values` as one row of item numbers."""
    array = np.asarray(values)
    if not array.size:
        return np.zeros(0, dtype=np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu" or array.min() < 0:
        raise UserError(
            f"popularity sampler: {name} has type {array.dtype} and shape {array.shape}; "
            "accepted: one row of item numbers from 0 up"
        )
    return array.astype(np.int64, copy=False)
