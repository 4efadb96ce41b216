"""DCN-V2 and DCN-Mix. Wang et al., WWW 2021, section 3.

    matrix    x_{l+1} = x_0 ∘ (W_l x_l + b_l) + x_l
    low rank  x_{l+1} = sum_i G_i(x_l) x_0 ∘ (U_i g(C_i g(V_i' x_l)) + b_l) + x_l       experts i, gates G

Stacked, a network reads x_L (`hidden`); parallel, it stands beside the cross network: give `hidden = []` and a tower,

    interactions = [{kind = "cross_v2", hidden = []}, {kind = "tower", activation = "relu"}]

whose logits add, since the paper's last layer is linear over both. With W_l = 1 w_l' and b = 0 a layer is that of `dcn`.

Differs from the textbook: W_0 multiplies the request's side of x_0 once per request. The experts' U are applied together:
no tensor [N, experts, d].
R requests · N candidates · d width of a row · E experts · r rank · K outputs, which share all but the last layer
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from finerank.errors import UserError
from finerank.layers.activation import Activation, activation
from finerank.layers.checks import check_dropout, check_layers
from finerank.layers.mlp import MLP, SplitLinear, linear
from finerank.layers.segments import spread
from finerank.models.composition import Features, Interaction, Widths
from finerank.models.plain import Plain, TaskHeads
from finerank.models.registry import Composition, named, part
from finerank.schema import FittedSchema


@part
class CrossV2(Interaction):
    """`layers` cross layers with a matrix, or a mixture of experts of low rank, each; then a network or a linear layer."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """The cross layers and what reads them.

        layers      2 to 4 are usual; 0 leaves the network alone
        rank        0: the whole matrix, d^2 weights a layer; else r per expert, often about d / 4 in all
        experts     with a rank: how many
        gate        softmax over the experts or a sigmoid each; a single expert under softmax has none
        nonlinear   g, with a rank; identity makes it a plain factorisation of W
        hidden      layers of the network that reads x_L (stacked); () for none
        activation, dropout, batch_norm  of that network
        """

        kind: ClassVar[str] = "cross_v2"
        layers: int = 3
        rank: int = 0
        experts: int = 4
        gate: Literal["softmax", "sigmoid"] = "softmax"
        nonlinear: Activation = "tanh"
        hidden: tuple[int, ...] = (256, 128)
        activation: Activation = "relu"
        dropout: float = 0.0
        batch_norm: bool = False

        def __post_init__(self) -> None:
            check_layers(0, hidden=self.hidden)
            check_dropout(dropout=self.dropout)
            if self.layers < 0:
                raise UserError(f"layers = {self.layers}; accepted: 0 (no cross layer) or more, usually 2 to 4")
            if self.rank < 0:
                raise UserError(f"rank = {self.rank}; accepted: 0 (the whole matrix) or more, usually 32 to 256")
            if self.experts < 1:
                raise UserError(f"experts = {self.experts}; accepted: at least 1, usually 4")

        def without_effect(self, stages: Collection[str]) -> Mapping[str, str]:
            """See `models.effects`."""
            if self.rank:
                return {}
            return dict.fromkeys(
                ("experts", "gate", "nonlinear"), "rank = 0 is one whole matrix a layer, without experts"
            )

    def __init__(self, fitted: FittedSchema, widths: Widths, outputs: int, options: Options) -> None:
        super().__init__()
        o, request, candidate = options, widths.request, widths.candidate
        sides = [(request, candidate)] + [(0, request + candidate)] * (o.layers - 1)
        self.layers = nn.ModuleList(
            _Experts(*side, o) if o.rank else SplitLinear(*side, request + candidate) for side in sides[: o.layers]
        )
        self.network = MLP(request + candidate, o.hidden, outputs, o.activation, o.dropout, o.batch_norm, bias=False)

    def forward(self, features: Features) -> Tensor:
        """[N, K]."""
        x_R, x_N = features.sides()
        of = features.batch.request_of
        x0 = x = torch.cat([spread(x_R, of), x_N], dim=1)
        for layer in self.layers:
            x = torch.addcmul(x, x0, layer(x_R, x_N, of))
            x_R, x_N = x_R[:, :0], x  # from here on nothing is the request's alone
        out: Tensor = self.network(x)
        return out


class _Experts(nn.Module):
    """[R, request], [N, candidate] -> [N, d]: sum_i G_i (U_i g(C_i g(V_i' x)) + b)."""

    def __init__(self, request: int, candidate: int, options: CrossV2.Options) -> None:
        super().__init__()
        self.experts, d = options.experts, request + candidate
        self.down = SplitLinear(request, candidate, options.experts * options.rank, bias=False)  # V
        self.core = nn.Parameter(torch.empty(options.experts, options.rank, options.rank))  # C
        self.up = linear(options.experts * options.rank, d, bias=False)  # U
        self.bias = nn.Parameter(torch.zeros(d))
        for core in self.core:
            nn.init.xavier_normal_(core)
        self.first = activation(options.nonlinear, options.experts * options.rank)
        self.second = activation(options.nonlinear, options.experts * options.rank)
        self.softmax = options.gate == "softmax"
        needed = options.experts > 1 or not self.softmax
        self.gate = SplitLinear(request, candidate, options.experts, bias=False) if needed else None

    def forward(self, x_R: Tensor, x_N: Tensor, of: Tensor) -> Tensor:
        h = self.first(self.down(x_R, x_N, of)).unflatten(1, (self.experts, -1))
        h = self.second(torch.einsum("ner,eqr->neq", h, self.core).flatten(1))
        if self.gate is None:
            out: Tensor = self.up(h) + self.bias
            return out
        gate = self.gate(x_R, x_N, of)
        gate = torch.softmax(gate, dim=1) if self.softmax else torch.sigmoid(gate)
        out = self.up((h.unflatten(1, (self.experts, -1)) * gate.unsqueeze(2)).flatten(1))
        return out + gate.sum(1, keepdim=True) * self.bias


def _dcn(name: str, rank: int) -> Composition:
    return named(
        Composition(
            name=name,
            representation=Plain.Options(),
            interactions=(CrossV2.Options(rank=rank),),
            heads=TaskHeads.Options(),
            paper="2008.13535",
        )
    )


DCN_V2 = _dcn("dcn_v2", rank=0)
DCN_MIX = _dcn("dcn_mix", rank=32)
