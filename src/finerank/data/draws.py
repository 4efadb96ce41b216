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
from finerank.data.scratch import Scratch
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
    def of(values: np.ndarray, scratch: Scratch) -> _Occurrences:
        size = len(values) + 1
        keys = scratch.made(len(values), lambda at: values[at] * size + np.arange(at.start, at.stop))
        keys.sort()  # in place, in a mapped file too
        return _Occurrences(keys, size)

    def count(self, values: np.ndarray, before: np.ndarray) -> np.ndarray:
        """How often each value occurs among the first `before` events."""
        first: np.ndarray = np.searchsorted(self.keys, values * self.size)
        found: np.ndarray = np.searchsorted(self.keys, values * self.size + before) - first
        return found


class Draws:
    """A log of E events, ready to draw from.

    item, user  int [E], codes from 0 up; items numbered by first appearance (`by_first_appearance`)
    power       0 (uniform) to 1 (as often as seen)
    scratch     where arrays as long as the log lie; None: in memory
    """

    def __init__(self, item: np.ndarray, user: np.ndarray, power: float = 0.0, scratch: Scratch | None = None) -> None:
        if not 0 <= power <= 1:
            raise UserError(f"negatives: power = {power}; accepted: 0 (all items alike) to 1 (as often as seen)")
        scratch = scratch or Scratch()
        self.item, self.user, self.power = np.asarray(item, np.int64), np.asarray(user, np.int64), power
        self.items = int(self.item.max()) + 1 if len(item) else 0
        # number of items among the first i events; the numbering is checked here
        self.known_items = scratch.full(len(self.item) + 1, 0)
        for at in scratch.pieces(len(self.item)):
            before = self.known_items[at.start]
            known = np.maximum(np.maximum.accumulate(self.item[at]) + 1, before)
            if (np.diff(known, prepend=before) > 1).any():
                raise ValueError("items are not numbered by first appearance")
            self.known_items[at.start + 1 : at.stop + 1] = known
        # first_pair: position at which the user had the item first
        self.pairs, self.first_pair = self._pairs(scratch)
        self.occurrences = _Occurrences.of(self.item, scratch) if power > 0 else None

    def _pairs(self, scratch: Scratch) -> tuple[np.ndarray, np.ndarray]:
        """(every user and item in one number, rising; where it is first)."""
        order = scratch.order(self.user, self.item)
        pairs, first, count, last = scratch.empty(len(order)), scratch.empty(len(order)), 0, -1
        for at in scratch.pieces(len(order)):
            rows = order[at]
            pair = self.user[rows] * max(self.items, 1) + self.item[rows]
            new = np.diff(pair, prepend=last) != 0
            size = int(np.count_nonzero(new))
            pairs[count : count + size], first[count : count + size] = pair[new], rows[new]
            count, last = count + size, int(pair[-1])
        return pairs[:count], first[:count]

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
