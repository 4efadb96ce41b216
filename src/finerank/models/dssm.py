"""Deep Structured Semantic Model, with the request in place of the query. Huang et al., CIKM 2013, section 3.

logit = cos(u, v) / temperature,  u = MLP(the request's side), v = MLP(the candidate's side)

The contrast to every other model here: user and candidate meet in one product at the very end (late crossing), so u is
computed once per request and v could be kept per item. What depends on both sides, such as an interest that attends to the
candidate, counts as the candidate's.

Differs from the textbook: trained as a ranking model on labelled candidates, not by a softmax over sampled documents; the
words' hashing is left to the schema's encodings.
R requests · N candidates · V width of u and v · K outputs, each with a pair of networks of its own
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finerank.errors import UserError
from finerank.layers.activation import Activation
from finerank.layers.mlp import MLP, check_layers
from finerank.layers.segments import spread
from finerank.models.base import Pooled
from finerank.models.composition import Features, Interaction, Widths
from finerank.models.plain import TaskHeads
from finerank.models.registry import Composition, named, part
from finerank.schema import FittedSchema


@part
class LateCrossing(Interaction):
    """A network per side; their outputs meet as cosine or product."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """The two networks and their meeting.

        hidden       layers of either network; the last is the width of u and v. 300-300-128 in the paper
        activation   tanh in the paper, also of the last layer
        dropout      of every layer; off unless asked for
        similarity   cosine as in the paper, or dot, which lengths may scale
        temperature  divides the similarity: a cosine alone spans only -1 to 1 of log-odds. 0.1 is a factor of 10
        """

        kind: ClassVar[str] = "late_crossing"
        hidden: tuple[int, ...] = (300, 300, 128)
        activation: Activation = "tanh"
        dropout: float = 0.0
        similarity: Literal["cosine", "dot"] = "cosine"
        temperature: float = 0.1

        def __post_init__(self) -> None:
            check_layers(self.hidden, self.dropout)
            if not self.hidden:
                raise UserError("hidden = []; accepted: at least one layer, the last as wide as either side's vector")
            if not self.temperature > 0:
                raise UserError(f"temperature = {self.temperature}; accepted: above 0, usually 0.05 to 1")

    def __init__(self, fitted: FittedSchema, widths: Widths, outputs: int, options: Options) -> None:
        super().__init__()
        o = options
        for side, width in (("request", widths.request), ("candidate", widths.candidate)):
            if not width:
                raise UserError(
                    f"interaction 'late_crossing': no {side}-level inputs; accepted: a schema with features of both "
                    "levels, or a 'tower'"
                )
        self.networks_R, self.networks_N = (
            nn.ModuleList(MLP(width, o.hidden, None, o.activation, o.dropout) for _ in range(outputs))
            for width in (widths.request, widths.candidate)
        )
        self.options = options

    def forward(self, features: Features) -> Tensor:
        """[N, outputs]."""
        x_R, x_N = features.sides()
        met = []
        for of_R, of_N in zip(self.networks_R, self.networks_N, strict=True):
            u, v = of_R(x_R), of_N(x_N)
            if self.options.similarity == "cosine":
                u, v = F.normalize(u, dim=1), F.normalize(v, dim=1)
            met.append((spread(u, features.batch.request_of) * v).sum(1))
        return torch.stack(met, dim=1) / self.options.temperature


DSSM = named(
    Composition(
        name="dssm",
        representation=Pooled.Options(),
        interactions=(LateCrossing.Options(),),
        heads=TaskHeads.Options(),
        paper="10.1145/2505515.2505665",
        requires=("history",),
    )
)
