"""AutoInt and AutoInt+. Song et al., CIKM 2019, section 4.

Per head: a_mk = softmax over k of <W_q e_m, W_k e_k>;  e~_m = sum_k a_mk W_v e_k
Per layer: e_m <- relu([e~_m of all heads] + W_res e_m);  logit = w · [e_1, ..., e_F]

A field looks at itself too. AutoInt+ puts a network on the embeddings beside it. Public code often divides the products by
sqrt(d'): `scaled`.

From embeddings as small as usual (0.01) all products are near 0 and attention stays uniform for long; a greater `std` of the
embedding shortens that.

Differs from the textbook: nothing is shared within a request: projecting its fields once and repeating the four wide results
was measured to cost more than projecting them for every candidate.
N candidates · F fields and numbers (a number is value · vector) · D width · H heads · d' width of a head
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from finerank.errors import UserError
from finerank.layers.checks import check_dropout
from finerank.layers.mlp import linear
from finerank.layers.slices import by_slices
from finerank.models.base import Tower
from finerank.models.composition import Features, Interaction, Weighed, Widths
from finerank.models.plain import Plain, TaskHeads
from finerank.models.registry import Composition, named, part
from finerank.models.vectors import FieldVectors, vector_names
from finerank.schema import FittedSchema


@part
class AutoInt(Interaction):
    """Layers of self-attention between the fields of a row, then a linear layer over all of them."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """The interacting layers.

        layers   3 in the paper; 0: a linear layer on the vectors
        heads    2 in the paper
        width    d' of a head: 32 in the paper
        scaled   divide the products by sqrt(d'); the paper does not
        dropout  of the attention weights
        std      of the initial vectors of numbers
        """

        kind: ClassVar[str] = "autoint"
        layers: int = 3
        heads: int = 2
        width: int = 32
        scaled: bool = False
        dropout: float = 0.0
        std: float = 0.01

        def __post_init__(self) -> None:
            check_dropout(dropout=self.dropout)
            if self.layers < 0:
                raise UserError(f"layers = {self.layers}; accepted: 0 (a linear layer alone) or more, usually 3")
            if min(self.heads, self.width) < 1:
                raise UserError(
                    f"heads = {self.heads}, width = {self.width}; accepted: at least 1 each, usually 2 and 32"
                )

    def __init__(self, fitted: FittedSchema, widths: Widths, outputs: int, options: Options) -> None:
        super().__init__()
        self.vectors = FieldVectors(widths, options.std, "interaction 'autoint'")
        self.names = tuple(vector_names(fitted, widths))
        dims = [widths.dim] + [options.heads * options.width] * options.layers
        self.layers = nn.Sequential(*(Interacting(dim, options) for dim in dims[:-1]))
        self.last = linear(self.vectors.fields * dims[-1], outputs, bias=False)

    def between_fields(self, features: Features) -> dict[str, Weighed]:
        """How much each field looks at each, layer by layer: the mean over the heads, which sums to 1 over what is seen."""
        x_NFD, found = self.vectors.rows(features), {}
        for i, layer in enumerate(self.layers, 1):
            assert isinstance(layer, Interacting)
            found[f"attention of layer {i}"] = Weighed(self.names, self.names, layer.weights(x_NFD).mean(1))
            x_NFD = layer(x_NFD)
        return found

    def forward(self, features: Features) -> Tensor:
        """[N, outputs]."""
        out: Tensor = self.last(self.layers(self.vectors.rows(features)).flatten(1))
        return out


class Interacting(nn.Module):
    """One layer: [N, F, D] -> [N, F, H d']."""

    def __init__(self, inputs: int, options: AutoInt.Options) -> None:
        super().__init__()
        self.heads, width = options.heads, options.heads * options.width
        self.query, self.key, self.value, self.residual = (linear(inputs, width, bias=False) for _ in range(4))
        self.scale = options.width**-0.5 if options.scaled else 1.0
        self.dropout = nn.Dropout(options.dropout) if options.dropout else None

    def weights(self, x_NFD: Tensor) -> Tensor:
        """[N, H, F, F]: how much field m (third axis) looks at field k (fourth)."""
        return self._weights(self._by_head(self.query(x_NFD)), self._by_head(self.key(x_NFD)))

    def _weights(self, q: Tensor, k: Tensor) -> Tensor:
        return torch.softmax(self.scale * (q @ k.transpose(2, 3)), dim=3)

    def _met(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor]:
        return (self._weights(q, k) @ v,)

    def _by_head(self, x_NFE: Tensor) -> Tensor:
        n, fields, width = x_NFE.shape
        return x_NFE.view(n, fields, self.heads, width // self.heads).transpose(1, 2)

    def forward(self, x_NFD: Tensor) -> Tensor:
        """[N, F, H d']."""
        v = self._by_head(self.value(x_NFD))
        if self.dropout is not None:
            met = self.dropout(self.weights(x_NFD)) @ v
        else:  # of so few fields this takes half the time of torch's attention, which is made for long sequences
            q, k = self._by_head(self.query(x_NFD)), self._by_head(self.key(x_NFD))
            (met,) = by_slices(self._met, 2 * self.heads * x_NFD.shape[1] ** 2, q, k, v)
        return torch.relu(met.transpose(1, 2).flatten(2) + self.residual(x_NFD))


AUTOINT = named(
    Composition(
        name="autoint",
        representation=Plain.Options(),
        interactions=(AutoInt.Options(),),
        heads=TaskHeads.Options(),
        paper="1810.11921",
    )
)

AUTOINT_PLUS = named(
    Composition(
        name="autoint_plus",
        representation=Plain.Options(),
        interactions=(AutoInt.Options(), Tower.Options(hidden=(400, 400), activation="relu")),
        heads=TaskHeads.Options(),
        paper="1810.11921",
    )
)
