"""Deep & Cross Network. Wang et al., ADKDD 2017, section 2.2.

x_{l+1} = x_0 (x_l · w_l) + b_l + x_l ; the cross network and a deep tower stand beside each other, and since the paper's
last layer is linear over both, their logits add. N candidates · d width of a row
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from finerank.errors import UserError
from finerank.layers.mlp import linear
from finerank.models.base import Tower
from finerank.models.composition import Features, Interaction, Widths
from finerank.models.plain import Plain, TaskHeads
from finerank.models.registry import Composition, named, part
from finerank.schema import FittedSchema


@part
class Cross(Interaction):
    """`layers` cross layers over the whole row, then a linear layer to the logits; 0 layers: that linear layer alone."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """layers: 2 to 4 are usual, deeper rarely helps."""

        kind: ClassVar[str] = "cross"
        layers: int = 3

        def __post_init__(self) -> None:
            if self.layers < 0:
                raise UserError(f"layers = {self.layers}; accepted: 0 (a linear layer alone) or more, usually 2 to 4")

    def __init__(self, fitted: FittedSchema, widths: Widths, outputs: int, options: Options) -> None:
        super().__init__()
        width = widths.request + widths.candidate
        self.weights = nn.Parameter(torch.empty(options.layers, width))
        self.biases = nn.Parameter(torch.zeros(options.layers, width))
        nn.init.normal_(self.weights, std=(2.0 / (width + 1)) ** 0.5)
        self.last = linear(width, outputs, bias=False)

    def forward(self, features: Features) -> Tensor:
        """[N, outputs]."""
        x0 = x = features.rows()
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = torch.addcmul(x + bias, x0, (x @ weight).unsqueeze(1))
        out: Tensor = self.last(x)
        return out


DCN = named(
    Composition(
        name="dcn",
        representation=Plain.Options(),
        interactions=(Cross.Options(), Tower.Options(activation="relu")),
        heads=TaskHeads.Options(),
        paper="1708.05123",
    )
)
