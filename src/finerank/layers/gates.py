"""Weights of what a search chooses from: driven to exactly zero while it runs, ordinary weights afterwards."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

PUBLISHED_STEPS = 16_000  # of AutoFIS' search of Avazu: one pass, 2,000 rows a step
LAST_THRESHOLD = 1.15  # what c = 5e-4 and mu = .8, AutoFIS' settings, have come to by then


@dataclass(frozen=True)
class Proximal:
    """How GRDA moves gates (`training.grda`): rate lr; after t steps the threshold is c · lr^½ · (t · lr)^mu.

    c = None: what a search of `steps` steps needs to end at `LAST_THRESHOLD`; PUBLISHED_STEPS and more: what that many need.
    """

    lr: float
    c: float | None
    mu: float
    steps: int = PUBLISHED_STEPS

    @property
    def strength(self) -> float:
        """c itself."""
        if self.c is not None:
            return self.c
        return LAST_THRESHOLD / self._growth(min(self.steps, PUBLISHED_STEPS))

    def threshold(self, t: int) -> float:
        """After t steps."""
        return self.strength * self._growth(t)

    def _growth(self, t: int) -> float:
        return float(self.lr**0.5 * (t * self.lr) ** self.mu)


class Gates(nn.Module):
    """weight [K, P]: a weight per output and product.

    start     initial value of all
    proximal  moved by GRDA instead of the dense optimiser, so that what does not help becomes 0; None: as any parameter
    """

    def __init__(self, outputs: int, count: int, start: float, proximal: Proximal | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((outputs, count), start))
        self.proximal = proximal

    def open(self) -> Tensor:
        """bool [P]: what some output still reads."""
        return (self.weight.detach() != 0).any(dim=0)
