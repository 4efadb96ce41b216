"""What draws random numbers in training."""

from __future__ import annotations

from torch import nn


class Noise(nn.Module):
    """A module that is random in training and not in evaluation, like dropout.

    It draws from torch's generator, which the training loop seeds by (seed, epoch, step): so a resumed run draws the same.
    """
