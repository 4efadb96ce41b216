"""Neural Factorization Machine. He and Chua, SIGIR 2017, section 3.

logit = w0 + sum_i w_i x_i + h · MLP(f),  f = sum_{i<j} v_i x_i ∘ v_j x_j = [(sum_i v_i x_i)^2 - sum_i (v_i x_i)^2] / 2

Batch normalisation and dropout stand on the pooled vector f and on every hidden layer. Without hidden layers, and with h
of ones, it is the factorization machine.

Differs from the textbook: both sums are made once per request for the request's fields. The paper fits targets of -1 and 1
by squared error; here the heads say what is learnt.
R requests · N candidates · F fields and numbers · D width · K outputs, which share all but the last layer
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from finerank.layers.activation import Activation
from finerank.layers.checks import check_dropout, check_layers
from finerank.layers.mlp import MLP, BatchNorm
from finerank.layers.segments import spread
from finerank.models.composition import Features, Interaction, Widths
from finerank.models.lr import Linear
from finerank.models.plain import EmbeddingOptions, Plain, TaskHeads
from finerank.models.registry import Composition, named, part
from finerank.models.vectors import FieldVectors
from finerank.schema import FittedSchema


@part
class BiInteraction(Interaction):
    """The products of all pairs of fields, summed to one vector, and a network over it."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """The network over the pooled products.

        hidden      one layer as wide as a field in the paper; () is its NFM-0
        activation  of hidden layers: ReLU in the paper
        dropout     of the pooled vector and of hidden layers: up to 0.5 in the paper
        batch_norm  of the pooled vector and of hidden layers
        std         of the initial vectors of numbers
        """

        kind: ClassVar[str] = "bi_interaction"
        hidden: tuple[int, ...] = (64,)
        activation: Activation = "relu"
        dropout: float = 0.3
        batch_norm: bool = True
        std: float = 0.01

        def __post_init__(self) -> None:
            check_layers(0, hidden=self.hidden)
            check_dropout(dropout=self.dropout)

    def __init__(self, fitted: FittedSchema, widths: Widths, outputs: int, options: Options) -> None:
        super().__init__()
        o = options
        self.vectors = FieldVectors(widths, o.std, "interaction 'bi_interaction'")
        self.norm = BatchNorm(widths.dim) if o.batch_norm else nn.Identity()
        self.dropout = nn.Dropout(o.dropout) if o.dropout else nn.Identity()
        self.network = MLP(widths.dim, o.hidden, outputs, o.activation, o.dropout, o.batch_norm, bias=False)

    def pooled(self, features: Features) -> Tensor:
        """[N, D]: f."""
        v_RFD, v_NFD = self.vectors.sides(features)
        of = features.batch.request_of
        total = spread(v_RFD.sum(1), of) + v_NFD.sum(1)
        squares = spread(v_RFD.square().sum(1), of) + v_NFD.square().sum(1)
        return 0.5 * (total.square() - squares)

    def forward(self, features: Features) -> Tensor:
        """[N, K]."""
        out: Tensor = self.network(self.dropout(self.norm(self.pooled(features))))
        return out


NFM = named(
    Composition(
        name="nfm",
        representation=Plain.Options(embedding=EmbeddingOptions(width=64)),
        interactions=(Linear.Options(), BiInteraction.Options()),
        heads=TaskHeads.Options(),
        paper="1708.05027",
    )
)
