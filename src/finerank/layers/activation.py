"""Dice, PReLU and the plain activations, written in elementary operators so that every exporter takes them.

Zhou et al., Deep Interest Network, KDD 2018, section 5.2.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal["relu", "prelu", "dice", "sigmoid", "tanh", "identity"]


class PReLU(nn.Module):
    """s where s > 0, else slope * s; one learnt slope per neuron, 0.1 at the start (the authors' code)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x_PH: Tensor) -> Tensor:
        """[P, H] -> [P, H]."""
        if torch.compiler.is_exporting():  # as one operator it is slow in onnxruntime
            return x_PH.clamp(min=0.0) + self.slope * x_PH.clamp(max=0.0)
        return F.prelu(x_PH, self.slope)


class Dice(nn.Module):
    """p*s + (1 - p)*slope*s with p = sigmoid((s - E[s]) / sqrt(Var[s] + eps)), per neuron over the batch (section 5.2).

    Rows are real positions only: history is jagged, so padding cannot pollute the statistics. Evaluation uses moving
    averages (their weight per step: `momentum`). A training batch of one row, which has no variance, is let through on
    them too, and like one without rows leaves them as they are. The variance is the biased one in both, so that training
    and evaluation agree when the moving statistics equal the batch's.
    """

    mean: Tensor
    var: Tensor
    steps: Tensor

    def __init__(self, width: int, momentum: float = 0.01, eps: float = 1e-8) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(width))
        self.momentum, self.eps = momentum, eps
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("var", torch.ones(width))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x_PH: Tensor) -> Tensor:
        """[P, H] -> [P, H]."""
        if self.training and x_PH.shape[0] > 1:
            var, mean = torch.var_mean(x_PH, dim=0, correction=0)
            with torch.no_grad():
                # the first batches count fully, so that a short training does not evaluate on the initial (0, 1)
                self.steps += 1
                weight = torch.clamp(1.0 / self.steps, min=self.momentum)
                self.mean += weight * (mean - self.mean)
                self.var += weight * (var - self.var)
        else:
            var, mean = self.var, self.mean
        p = torch.sigmoid((x_PH - mean) * torch.rsqrt(var + self.eps))
        return x_PH * (self.slope + p * (1.0 - self.slope))


def activation(name: Activation, width: int) -> nn.Module:
    """The module of this name over `width` neurons."""
    match name:
        case "dice":
            return Dice(width)
        case "prelu":
            return PReLU(width)
        case "relu":
            return nn.ReLU()
        case "sigmoid":
            return nn.Sigmoid()
        case "tanh":
            return nn.Tanh()
        case "identity":
            return nn.Identity()
