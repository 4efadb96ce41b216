"""Noise of training, drawn from the generator that the loop seeds at every step."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Gaussian(nn.Module):
    """Standard normals of a tensor's shape while training; zeros in evaluation."""

    def forward(self, like: Tensor) -> Tensor:
        """A tensor of the same shape."""
        return torch.randn_like(like) if self.training else torch.zeros_like(like)
