"""Deep & Cross Network. Wang et al., ADKDD 2017, section 2.2.

x_{l+1} = x_0 (x_l · w_l) + b_l + x_l ; the cross network and a deep tower stand beside each other, and since the paper's
last layer is linear over both, their logits add.

Differs from the textbook: no x_l is ever made. Every x_l is a_l x_0 + (b_0 + ... + b_{l-1}), with one number a_l per row,
and a_{l+1} = a_l + x_l · w_l needs of x_0 only its products with the w's. So one product of the rows with all weights, the
request's part of it once per request, is the whole work; exact algebra. The sizes are smaller than the
paper's for Criteo's 45 million rows (6 layers beside 1,024-1,024 with batch normalisation): 3 beside the 200-80 of `base`.
R requests · N candidates · d width of a row · L layers · K outputs
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from finerank.errors import UserError
from finerank.layers.mlp import linear
from finerank.layers.segments import spread
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
        """layers: 2 to 4 are usual, deeper rarely helps; 6 in the paper, on Criteo."""

        kind: ClassVar[str] = "cross"
        layers: int = 3

        def __post_init__(self) -> None:
            if self.layers < 0:
                raise UserError(f"layers = {self.layers}; accepted: 0 (a linear layer alone) or more, usually 2 to 4")

    def __init__(self, fitted: FittedSchema, widths: Widths, outputs: int, options: Options) -> None:
        super().__init__()
        self.request, width = widths.request, widths.request + widths.candidate
        self.weights = nn.Parameter(torch.empty(options.layers, width))
        self.biases = nn.Parameter(torch.zeros(options.layers, width))
        nn.init.normal_(self.weights, std=(2.0 / (width + 1)) ** 0.5)
        self.last = linear(width, outputs, bias=False)

    def forward(self, features: Features) -> Tensor:
        """[N, K]."""
        x_R, x_N = features.sides()
        layers = self.weights.shape[0]
        every_Md = torch.cat([self.weights, self.last.weight])  # M = L + K
        products_NM = x_N @ every_Md[:, self.request :].T
        if self.request:
            products_NM = spread(x_R @ every_Md[:, : self.request].T, features.batch.request_of) + products_NM
        bias_d = self.weights.new_zeros(self.weights.shape[1])  # b_0 + ... + b_{l-1}
        a_N = torch.ones_like(products_NM[:, 0])
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            a_N = a_N + a_N * products_NM[:, i] + bias_d @ weight
            bias_d = bias_d + bias
        return a_N.unsqueeze(1) * products_NM[:, layers:] + self.last.weight @ bias_d


DCN = named(
    Composition(
        name="dcn",
        representation=Plain.Options(),
        interactions=(Cross.Options(), Tower.Options(activation="relu")),
        heads=TaskHeads.Options(),
        paper="1708.05123",
    )
)
