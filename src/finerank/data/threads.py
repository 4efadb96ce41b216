"""Work dealt out to threads, its results in order.

Compiled loops, numpy and Polars let other threads run while they work, so that both reading and encoding gain; what comes
out does not depend on how many threads there are.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

THREADS = min(4, os.cpu_count() or 1)
"""Few: what each of them makes is in memory at the same time."""


def ahead(make: Callable[[T], R], items: Iterable[T], waiting: int = THREADS) -> Iterator[R]:
    """make(item) for each item, in order, `waiting` of them begun before they are asked for.

    So `waiting + 1` results are alive at most, the one that the caller looks at included. The first item's error comes first.
    """
    begun: deque[Future[R]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for item in items:
                begun.append(pool.submit(make, item))
                if len(begun) > waiting:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:  # nobody asks for the rest
            for left in begun:
                left.cancel()


def side_by_side(make: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """make(item) for each item, all begun at once."""
    items = list(items)
    return list(ahead(make, items, len(items)))
