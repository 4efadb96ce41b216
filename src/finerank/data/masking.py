"""Which past events are hidden from a model that learns to guess them: the Cloze task of BERT4Rec.

T past events of all requests together. A function of (seed, epoch, request, position): a request that is cut into chunks
has one mask, a resumed training the same ones, and what comes later in the log changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finerank.data.batch import Jagged
from finerank.errors import UserError
from finerank.runtime.hashing import mix, uniform


@dataclass(frozen=True, kw_only=True)
class Masking:
    """How much is hidden.

    rate  the probability of each event; a sequence of which none would be hidden hides one
    last  the share of sequences of which the newest event alone is hidden, which is what a model is asked when it serves
    """

    rate: float = 0.2
    last: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1 or not 0 <= self.last <= 1:
            raise UserError(
                f"rate = {self.rate}, last = {self.last}; accepted: a rate above 0, up to 1; last from 0 to 1"
            )


def hidden(need: Masking, requests: np.ndarray, history: Jagged, most: int, seed: int, epoch: int) -> Tensor:
    """bool [T]: at least one event of every sequence that has any. most: the greatest length of a history."""
    segments, positions, lengths = (t.numpy() for t in (history.segments, history.positions, history.lengths))
    u = uniform(mix(seed, epoch, 0xC10), requests[segments] * most + positions)
    out = u < need.rate
    least = np.full(len(requests), np.inf)
    np.minimum.at(least, segments, u)
    out |= (u == least[segments]) & (least >= need.rate)[segments]
    last = uniform(mix(seed, epoch, 0x1A5), requests) < need.last
    newest = positions == lengths[segments] - 1
    return torch.from_numpy(np.where(last[segments], newest, out))
