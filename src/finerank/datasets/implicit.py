"""Implicit feedback as requests: an event, and beside it items that its user did not choose.

E events · N positives · n negatives each

Two laws. `as_known` is the honest one: a negative was seen in the log strictly before the positive's time, and its user had
it neither before nor at that moment; nothing in a row depends on later events. A positive that nobody had before
makes no row: as a negative it could never occur, so being new would give it away. `paper` is the law of the
publication, for reproduction: it draws from the whole log, which looks into the future.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np

from finerank.data.draws import Draws, by_first_appearance
from finerank.data.scratch import Scratch
from finerank.errors import UserError
from finerank.runtime.hashing import mix, uniform

Law = Literal["as_known", "paper"]
CHUNK = 1 << 20  # positives at a time: what is needed for each lives only so long
_DRAW, _ORDER = 0, 1  # what a request's random numbers are for: an order by the numbers that drew would show the labels


@dataclass(frozen=True)
class Candidates:
    """M rows, those of a request adjacent and in an order by chance.

    event  int64 [M]: the request's event · item: code [M] · label: int8 [M], 1 for the event's own item
    left_out   positives that made no request, by reason
    """

    event: np.ndarray
    item: np.ndarray
    label: np.ndarray
    left_out: dict[str, int]


class Sampler:
    """A log of E events in order of time, int [E] each: user and item (codes from 0 up), time.

    law     see the module
    power   0: all items alike · 1: as often as they were seen · between: popularity^power
    barred  user: whatever the user had (law paper: or will have) · item: the positive alone
    scratch where arrays as long as the log lie; items are then numbered by first appearance already
    """

    def __init__(
        self,
        user: np.ndarray,
        item: np.ndarray,
        time: np.ndarray,
        law: Law = "as_known",
        power: float = 0.0,
        barred: Literal["user", "item"] = "user",
        seed: int = 1,
        scratch: Scratch | None = None,
    ) -> None:
        events = len(item)
        if scratch is None:
            self.item, self.names = by_first_appearance(item)
        else:
            self.item, self.names = item, np.arange(int(item.max()) + 1 if events else 0)
        # "item": every event is a user of its own, who has nothing but the positive
        self.owner = user if barred == "user" else np.arange(events)
        self.draws = Draws(self.item, self.owner, power, scratch)
        self.time, self.law, self.seed = time, law, seed

    def candidates(self, positives: np.ndarray, n: int = 1) -> Candidates:
        """The requests of these events (int [N], rising), each with n negatives, fewer where there are no more."""
        if n < 1:
            raise UserError(f"negatives: {n} for each positive; accepted: 1 or more")
        parts = [self._some(positives[i : i + CHUNK], n) for i in range(0, max(len(positives), 1), CHUNK)]
        event, item, label = (np.concatenate([getattr(p, name) for p in parts]) for name in ("event", "item", "label"))
        return Candidates(event, item, label, dict(sum((Counter(p.left_out) for p in parts), Counter())))

    def _some(self, here: np.ndarray, n: int) -> Candidates:
        known = self._known(here, "left")
        seen = self.item[here] < self.draws.known_items[known]
        left_out = {"first sight of the item": int((~seen).sum())}
        here, known = here[seen], known[seen]
        key = mix(self.seed, _DRAW)
        drawn = self.draws.draw(self.owner[here], known, self._known(here, "right"), n, key, here)
        alone = drawn[:, 0] < 0
        left_out["no negative left"] = int(alone.sum())
        here, drawn = here[~alone], drawn[~alone]
        items = np.column_stack([self.item[here], drawn])
        place = uniform(mix(self.seed, _ORDER), here[:, None] * (n + 1) + np.arange(n + 1))
        order = np.argsort(place, axis=1, kind="stable")
        items, label = np.take_along_axis(items, order, axis=1), (order == 0).astype(np.int8)
        there = items >= 0
        return Candidates(np.repeat(here, there.sum(axis=1)), self.names[items[there]], label[there], left_out)

    def _known(self, here: np.ndarray, side: Literal["left", "right"]) -> np.ndarray:
        """How many events were before these, or by their moment; all of them where the law looks into the future."""
        if self.law == "paper":
            return np.full(len(here), len(self.item))
        found: np.ndarray = np.searchsorted(self.time, self.time[here], side=side)
        return found
