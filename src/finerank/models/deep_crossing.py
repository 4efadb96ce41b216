"""Deep Crossing. Shan et al., KDD 2016, section 4.

s = [relu(W_j x_j + b_j) of every field, numbers];  units x <- x + W1 relu(W0 x + b0) + b1;  logit = w · x

W_j x_j of a field of ids is its embedding, so the first step adds a bias and a ReLU to it. Of the two ReLU layers in a unit
the paper does not say whether the second acts before or after the input is added back: by default none follows the
addition, `post_relu` puts one there.

Differs from the textbook: small fields are embedded like the others, where the paper stacks those below 256 values as they
are; W0 of the first unit multiplies the request's side once per request.
R requests · N candidates · F fields · D width · S width of the stack · K outputs, which share all but the last layer
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from finerank.layers.checks import check_layers
from finerank.layers.mlp import SplitLinear, linear
from finerank.layers.segments import spread
from finerank.models.composition import Features, Interaction, Widths
from finerank.models.plain import EmbeddingOptions, Plain, TaskHeads
from finerank.models.registry import Composition, named, part
from finerank.schema import FittedSchema


@part
class DeepCrossing(Interaction):
    """Residual units over the stack of all fields and numbers, then a linear layer."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """The units.

        hidden     inner width of each residual unit: 512-512-256-128-64 in the paper, over fields 256 wide; for few fields
                   some hundred neurons do; (): logistic regression on the stack
        post_relu  a ReLU after the addition
        """

        kind: ClassVar[str] = "residual_units"
        hidden: tuple[int, ...] = (512, 512, 256, 128, 64)
        post_relu: bool = False

        def __post_init__(self) -> None:
            check_layers(0, hidden=self.hidden)

    def __init__(self, fitted: FittedSchema, widths: Widths, outputs: int, options: Options) -> None:
        super().__init__()
        self.bias_R = nn.Parameter(torch.zeros(widths.request_fields, widths.dim))
        self.bias_N = nn.Parameter(torch.zeros(widths.candidate_fields, widths.dim))
        width = widths.request + widths.candidate
        sides = [(widths.request, widths.candidate)] + [(0, width)] * len(options.hidden)
        self.units = nn.ModuleList(Unit(*side, h) for side, h in zip(sides, options.hidden, strict=False))
        self.post_relu = options.post_relu
        self.last = linear(width, outputs, bias=False)

    def stack(self, features: Features) -> tuple[Tensor, Tensor]:
        """([R, ...], [N, ...]): s of either side."""
        fields_R, fields_N = torch.relu(features.fields_R + self.bias_R), torch.relu(features.fields_N + self.bias_N)
        return (
            torch.cat([fields_R.flatten(1), features.numbers_R], dim=1),
            torch.cat([fields_N.flatten(1), features.numbers_N], dim=1),
        )

    def forward(self, features: Features) -> Tensor:
        """[N, outputs]."""
        x_R, x_N = self.stack(features)
        of = features.batch.request_of
        x = torch.cat([spread(x_R, of), x_N], dim=1)
        for unit in self.units:
            x = x + unit(x_R, x_N, of)
            x = torch.relu(x) if self.post_relu else x
            x_R, x_N = x_R[:, :0], x  # from here on nothing is the request's alone
        out: Tensor = self.last(x)
        return out


class Unit(nn.Module):
    """What a residual unit adds: W1 relu(W0 x + b0) + b1."""

    def __init__(self, request: int, candidate: int, hidden: int) -> None:
        super().__init__()
        self.first = SplitLinear(request, candidate, hidden)
        self.second = linear(hidden, request + candidate)

    def forward(self, x_R: Tensor, x_N: Tensor, of: Tensor) -> Tensor:
        """[R, request], [N, candidate] -> [N, S]."""
        out: Tensor = self.second(torch.relu(self.first(x_R, x_N, of)))
        return out


DEEP_CROSSING = named(
    Composition(
        name="deep_crossing",
        representation=Plain.Options(embedding=EmbeddingOptions(width=256)),
        interactions=(DeepCrossing.Options(),),
        heads=TaskHeads.Options(),
        paper="10.1145/2939672.2939704",
    )
)
