"""What draws random numbers in training."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Noise(nn.Module):
    """A module that is random in training and not in evaluation, like dropout.

    It draws from torch's generator, which the training loop seeds by (seed, epoch, step): so a resumed run draws the same.
    """


class Gaussian(Noise):
    """Standard normals of a tensor's shape while training; zeros in evaluation."""

    def forward(self, like: Tensor) -> Tensor:
        """A tensor of the same shape."""
        return torch.randn_like(like) if self.training else torch.zeros_like(like)
