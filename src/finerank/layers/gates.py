"""Weights of what a search chooses from: driven to exactly zero while it runs, ordinary weights afterwards."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Proximal:
    """How GRDA moves gates (`training.grda`): rate lr; the threshold grows as c · lr^½ · (t · lr)^mu."""

    lr: float
    c: float
    mu: float


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
