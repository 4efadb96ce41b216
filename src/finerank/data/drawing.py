"""Items drawn for a request as negatives of a softmax over the catalogue, with the probability that each was drawn by.

The law is the share of an item among the events known to the request, so it needs no table of popularity, follows the time,
and does not change when later events are deleted. E events · R requests · M draws
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from finerank.errors import UserError
from finerank.runtime.hashing import uniform
from finerank.schema import PADDING


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What is drawn.

    count  draws per request; 0: none, the shares alone (negatives are then the other rows of the batch)
    item   the history's column of items
    of     what they are to be told apart from, whose shares are given
    """

    count: int
    item: str
    of: Literal["candidates", "events"]

    def __post_init__(self) -> None:
        if self.count < 0:
            raise UserError(f"count = {self.count}; accepted: 0 (none, the shares alone) or more draws per request")


class Law:
    """Shares of items among the first so many events in the order in which they became known.

    item     [E] of an event table, as it is sorted; by_rank: int64 [E], its events in the order of knowledge
    """

    def __init__(self, item: np.ndarray, by_rank: np.ndarray) -> None:
        self.in_order = np.asarray(item)[by_rank]  # [E] items in the order of knowledge, as narrow as they were
        self.keys = self.in_order * np.int64(len(by_rank) + 1) + np.arange(len(by_rank))
        self.keys.sort()  # item by item, then by rank

    def draw(self, count: int, known: np.ndarray, key: int, requests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(items int64 [R, M], log of their shares float32 [R, M]); padding where nothing is known.

        known  int64 [R]: how many events each request knows; requests: int64 [R], which they are
        """
        u = uniform(key, requests[:, None] * count + np.arange(count))
        ranks = (u * known[:, None]).astype(np.int64)
        some = np.broadcast_to(known[:, None] > 0, ranks.shape)
        items = np.full(ranks.shape, PADDING, dtype=np.int64)
        items[some] = self.in_order[ranks[some]]
        shares = self.log_share(items.ravel(), np.repeat(known, count))
        return items, shares.reshape(items.shape)

    def log_share(self, items: np.ndarray, known: np.ndarray) -> np.ndarray:
        """float32 [n]: log of each item's share of the first `known` events; one not seen yet counts as seen once."""
        base = items.astype(np.int64) * (len(self.keys) + 1)
        seen = np.searchsorted(self.keys, base + known) - np.searchsorted(self.keys, base)
        out: np.ndarray = np.log(np.maximum(seen, 1) / np.maximum(known, 1)).astype(np.float32)
        return out
