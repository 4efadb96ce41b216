"""In which order requests are visited, and where a batch ends.

Requests are permuted, never rows. Files beyond memory: blocks of neighbouring requests are permuted first, then requests
within a window of such blocks, so that a pass reads every part of a file about once; a data set smaller than one window
gets a plain permutation. Everything is a function of (seed, epoch).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from finerank.errors import UserError
from finerank.runtime.hashing import mix

BLOCK = 4_096  # neighbouring requests
WINDOW = 256  # blocks: a million requests are shuffled freely


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A batch closes before it exceeds either.

    rows   candidates; 1024 suits Adam at 1e-3
    pairs  (candidate, event) pairs: what attention costs; None: no limit
    """

    rows: int = 1_024
    pairs: int | None = 1_000_000

    def __post_init__(self) -> None:
        if not all(1 <= value < 2**31 for value in (self.rows, self.pairs) if value is not None):
            raise UserError(
                f"batch: rows = {self.rows}, pairs = {self.pairs}; accepted: whole numbers of at least 1, below 2^31"
            )


@dataclass(frozen=True)
class Step:
    """The requests of one optimiser step; `chunks` cuts a single oversized request into row ranges [low, high)."""

    requests: np.ndarray
    rows: int
    chunks: tuple[tuple[int, int], ...] = ()


def shuffled(requests: np.ndarray, seed: int, epoch: int, block: int = BLOCK, window: int = WINDOW) -> np.ndarray:
    """The requests in the order of an epoch."""
    found = list(windows(requests, seed, epoch, block, window))
    return np.concatenate(found) if found else requests


def windows(
    requests: np.ndarray, seed: int, epoch: int, block: int = BLOCK, window: int = WINDOW
) -> Iterator[np.ndarray]:
    """The requests in the order of an epoch, a window at a time: no more than that is held."""
    draw = np.random.Generator(np.random.Philox(key=mix(seed, epoch, 0x0D3)))
    blocks = np.array_split(requests, range(block, len(requests), block))
    order = draw.permutation(len(blocks))
    for start in range(0, len(order), window):
        within = np.concatenate([blocks[i] for i in order[start : start + window]])
        draw.shuffle(within)
        yield within


def steps(requests: np.ndarray, rows: np.ndarray, events: np.ndarray, budget: Budget) -> list[Step]:
    """Cut an order of requests into steps.

    rows, events   [R] candidates and past events of each of `requests`
    """
    pairs = rows * events
    rows_until = np.concatenate([[0], np.cumsum(rows)])
    pairs_until = np.concatenate([[0], np.cumsum(pairs)])
    most_pairs = budget.pairs if budget.pairs is not None else 1 << 62
    out, at = [], 0
    while at < len(requests):
        by_rows = int(np.searchsorted(rows_until, rows_until[at] + budget.rows, side="right")) - 1
        by_pairs = int(np.searchsorted(pairs_until, pairs_until[at] + most_pairs, side="right")) - 1
        end = max(at + 1, min(by_rows, by_pairs))
        chunks: tuple[tuple[int, int], ...] = ()
        if end == at + 1 and (rows[at] > budget.rows or pairs[at] > most_pairs):
            most = min(budget.rows, max(1, most_pairs // int(events[at]))) if events[at] else budget.rows
            chunks = tuple((low, min(low + most, int(rows[at]))) for low in range(0, int(rows[at]), most))
        out.append(Step(requests[at:end], int(rows_until[end] - rows_until[at]), chunks))
        at = end
    return out
