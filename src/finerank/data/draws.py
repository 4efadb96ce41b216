"""Negatives for every positive of a log at once, by a law that may be held to what was known at the time.

E events in order of time · I items · N positives · n negatives each

A negative is drawn in proportion to popularity^power among the items of the first `known` events, and never is one that its
user has among the first `barred` events. With `known` = the events strictly before the positive, nothing in it depends
on the future; with `known` = `barred` = E it does, as the DIN authors' protocol does. `data.negatives` draws exactly by
one pass over all items per request; this draws by rejection, whose cost does not grow with the number of items:

    power 0     an item of those known, all alike
    otherwise   an item as often as it was seen, kept with probability count^(power - 1)   (power at most 1)

Rows that still have no negative after ROUNDS attempts (their user has nearly everything) are drawn by enumeration, by
the same law. Every random number is a function of
(key, slot, round, row): nothing that comes later changes a row's negatives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from finerank.data.negatives import PopularitySampler
from finerank.errors import UserError
from finerank.runtime.hashing import mix, uniform

ROUNDS = 64
_ITEM, _KEEP = 0, 1  # what a random number is for


@dataclass(frozen=True)
class _Occurrences:
    """Where each value occurs: positions of equal values ascend, so that counting before a moment is one search."""

    keys: np.ndarray  # int64 [E]: value * (E + 1) + position, ascending
    size: int

    @staticmethod
    def of(values: np.ndarray) -> _Occurrences:
        size = len(values) + 1
        return _Occurrences(np.sort(values * size + np.arange(len(values))), size)

    def count(self, values: np.ndarray, before: np.ndarray) -> np.ndarray:
        """How often each value occurs among the first `before` events."""
        first: np.ndarray = np.searchsorted(self.keys, values * self.size)
        found: np.ndarray = np.searchsorted(self.keys, values * self.size + before) - first
        return found


class Draws:
    """A log of E events, ready to draw from.

    item, user  int [E], codes from 0 up; items numbered by first appearance (`by_first_appearance`)
    power       0 (uniform) to 1 (as often as seen)
    """

    def __init__(self, item: np.ndarray, user: np.ndarray, power: float = 0.0) -> None:
        if not 0 <= power <= 1:
            raise UserError(f"negatives: power = {power}; accepted: 0 (all items alike) to 1 (as often as seen)")
        self.item, self.user, self.power = item.astype(np.int64), user.astype(np.int64), power
        self.items = int(self.item.max()) + 1 if len(item) else 0
        # number of items among the first i events; the numbering is checked here
        known = np.maximum.accumulate(self.item) + 1
        if len(known) and (known[0] != 1 or (np.diff(known) > 1).any()):
            raise ValueError("items are not numbered by first appearance")
        self.known_items = np.append(0, known)
        pair = self.user * max(self.items, 1) + self.item
        self.pairs, first = np.unique(pair, return_index=True)
        self.first_pair = first  # position at which the user had the item first
        self.occurrences = _Occurrences.of(self.item) if power > 0 else None

    def draw(
        self, user: np.ndarray, known: np.ndarray, barred: np.ndarray, n: int, key: int, row: np.ndarray
    ) -> np.ndarray:
        """int64 [N, n]: different items for each row; -1 where there are no more.

        user           int [N] whose items are barred; a code that the log does not have bars nothing
        known, barred  int [N], 0 ... E: see the module
        key, row       what makes a row's numbers its own: the draw's key, and an integer of each row [N]
        """
        out = np.full((len(user), n), -1, dtype=np.int64)
        for slot in range(n):
            pending = np.flatnonzero(known > 0) if slot == 0 else np.flatnonzero(out[:, slot - 1] >= 0)
            for attempt in range(ROUNDS):
                if not len(pending):
                    break
                found = self._propose(known[pending], row[pending], mix(key, slot, attempt))
                fine = (found >= 0) & ~self._has(user[pending], found, barred[pending])
                fine &= (out[pending, :slot] != found[:, None]).all(axis=1)
                out[pending[fine], slot] = found[fine]
                pending = pending[~fine]
            for i in pending:
                own = self.item[: barred[i]][self.user[: barred[i]] == user[i]]
                out[i, slot] = self._enumerate(
                    int(known[i]), np.append(own, out[i, :slot]), mix(key, slot, ROUNDS, int(row[i]))
                )
        return out

    def _propose(self, known: np.ndarray, rows: np.ndarray, key: int) -> np.ndarray:
        """An item for each row; -1 where this round gives none."""
        u = uniform(mix(key, _ITEM), rows)
        if self.occurrences is None:
            uniformly: np.ndarray = (u * self.known_items[known]).astype(np.int64)
            return uniformly
        found: np.ndarray = self.item[(u * known).astype(np.int64)]
        if self.power == 1:
            return found
        count = self.occurrences.count(found, known)
        keep = uniform(mix(key, _KEEP), rows) < count.astype(np.float64) ** (self.power - 1)
        return np.where(keep, found, -1)

    def _has(self, user: np.ndarray, item: np.ndarray, before: np.ndarray) -> np.ndarray:
        """Whether the user has the item among the first `before` events."""
        pair = user * max(self.items, 1) + item
        at = np.minimum(np.searchsorted(self.pairs, pair), len(self.pairs) - 1)
        has: np.ndarray = (self.pairs[at] == pair) & (self.first_pair[at] < before)
        return has

    def _enumerate(self, known: int, exclude: np.ndarray, key: int) -> int:
        sampler = PopularitySampler(self.power)
        sampler.add(self.item[:known])
        drawn = sampler.draw(1, exclude, key)
        return int(drawn[0]) if len(drawn) else -1


def by_first_appearance(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes renumbered in the order in which they first occur: int64 [E], and the old code of each new one [I]."""
    old, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    order = np.argsort(first)
    new = np.empty_like(order)
    new[order] = np.arange(len(order))
    return new[inverse], old[order]
