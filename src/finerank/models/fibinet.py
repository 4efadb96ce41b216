"""FiBiNET: squeeze and excitation of fields, bilinear products. Huang et al., RecSys 2019, section 3.

    z_i = mean of e_i;  A = relu(W2 relu(W1 z));  v_i = A_i e_i
    all          (e_i W) ∘ e_j        one W
    each         (e_i W_i) ∘ e_j      one W a left field
    interaction  (e_i W_ij) ∘ e_j     one W a pair
    logit = linear + MLP([products of the e, products of the v])

Each of the two groups of products has W of its own. With W = 1 they are plain products, with A = 1 both groups read the same.

Differs from the textbook: the e's products within the request, and their part of the network's first layer, are worked out
once per request; the v's cannot be, since A depends on the candidate.
R requests · N candidates · F fields and numbers · D width · K outputs, which share all but the last layer
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.autograd import Function

from finerank.errors import UserError
from finerank.layers.activation import Activation
from finerank.layers.checks import check_dropout, check_layers
from finerank.layers.mlp import SplitLinear, SplitMLP, linear
from finerank.layers.products import split_products, spread_fields, whole_rows
from finerank.models.composition import Features, Interaction, Weighed, Widths
from finerank.models.lr import Linear
from finerank.models.plain import EmbeddingOptions, Plain, TaskHeads
from finerank.models.registry import Composition, named, part
from finerank.models.vectors import FieldVectors, vector_names
from finerank.schema import FittedSchema

Kind = Literal["all", "each", "interaction"]


@part
class FiBiNET(Interaction):
    """A network over the bilinear products of fields, as they are and re-weighted."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Weighting, products and network.

        bilinear    all, each or interaction: see the module; more matrices, more to learn
        products    of the fields as they are: bilinear, or plain (hadamard), which public code calls the mix "01"
        reduction   r: W1 leads from F to F / r fields (at least 1)
        excitation  relu as in the paper: a field may go out for good; or sigmoid
        hidden      400-400-400 on Criteo, 2000-2000-2000 on Avazu
        activation  of hidden layers: ReLU in the paper
        dropout     of hidden layers: 0.5 in the paper
        batch_norm  of hidden layers; off unless asked for
        std         of the initial vectors of numbers
        """

        kind: ClassVar[str] = "fibinet"
        bilinear: Kind = "interaction"
        products: Literal["bilinear", "hadamard"] = "bilinear"
        reduction: int = 3
        excitation: Literal["relu", "sigmoid"] = "relu"
        hidden: tuple[int, ...] = (400, 400, 400)
        activation: Activation = "relu"
        dropout: float = 0.5
        batch_norm: bool = False
        std: float = 0.01

        def __post_init__(self) -> None:
            check_layers(0, hidden=self.hidden)
            check_dropout(dropout=self.dropout)
            if self.reduction < 1:
                raise UserError(f"reduction = {self.reduction}; accepted: at least 1, usually 3")

    def __init__(self, fitted: FittedSchema, widths: Widths, outputs: int, options: Options) -> None:
        super().__init__()
        o = options
        self.vectors = FieldVectors(widths, o.std, "interaction 'fibinet'")
        self.names = tuple(vector_names(fitted, widths))
        request, candidate = self.vectors.request, self.vectors.candidate
        if self.vectors.fields < 2:
            raise UserError("interaction 'fibinet': one field only; accepted: at least 2, or a 'linear' part")
        self.weighting = Squeeze(request, candidate, o.reduction, o.excitation)
        plain = o.products == "hadamard"
        self.of_fields = None if plain else Bilinear(o.bilinear, request, candidate, widths.dim)
        self.of_weighted = Bilinear(o.bilinear, 0, request + candidate, widths.dim)
        own = request * (request - 1) // 2
        pairs = self.vectors.fields * (self.vectors.fields - 1) // 2
        d = widths.dim
        self.network = SplitMLP(
            own * d, (2 * pairs - own) * d, o.hidden, outputs, o.activation, o.dropout, o.batch_norm
        )

    def between_fields(self, features: Features) -> dict[str, Weighed]:
        """A of every field (SENET)."""
        weights_NF = self.weighting(*self.vectors.sides(features), features.batch.request_of)
        return {"weights of fields": Weighed(("weight",), self.names, weights_NF.unsqueeze(1))}

    def forward(self, features: Features) -> Tensor:
        """[N, K]."""
        v_RFD, v_NFD = self.vectors.sides(features)
        of = features.batch.request_of
        multiply = split_products if self.of_fields is None else self.of_fields
        own_R, other_N = multiply(v_RFD, v_NFD, of)
        weighted_NFD = whole_rows(v_RFD, v_NFD, of) * self.weighting(v_RFD, v_NFD, of).unsqueeze(2)
        _, again_N = self.of_weighted(weighted_NFD[:, :0], weighted_NFD, of)
        joined = torch.cat([other_N.flatten(1), again_N.flatten(1)], dim=1)
        out: Tensor = self.network(own_R.flatten(1), joined, of)
        return out


class Squeeze(nn.Module):
    """[R, F_R, D], [N, F_N, D] -> A [N, F]: what each field weighs in this row (SENET)."""

    def __init__(self, request: int, candidate: int, reduction: int, excitation: Literal["relu", "sigmoid"]) -> None:
        super().__init__()
        fields = request + candidate
        squeezed = max(fields // reduction, 1)
        self.squeeze = SplitLinear(request, candidate, squeezed, bias=False)
        self.excite = linear(squeezed, fields, bias=False)
        self.out = torch.relu if excitation == "relu" else torch.sigmoid

    def forward(self, v_RFD: Tensor, v_NFD: Tensor, of: Tensor) -> Tensor:
        """[N, F]."""
        squeezed = torch.relu(self.squeeze(v_RFD.mean(2), v_NFD.mean(2), of))
        return self.out(self.excite(squeezed))


class Bilinear(nn.Module):
    """([R, pairs within the request, D], [N, other pairs, D]) of fields, in the order of `split_pairs`."""

    def __init__(self, kind: Kind, request: int, candidate: int, dim: int) -> None:
        super().__init__()
        fields = request + candidate
        self.kind, self.request = kind, request
        matrices = {"all": 1, "each": fields - 1, "interaction": fields * (fields - 1) // 2}[kind]
        self.weight = nn.Parameter(torch.empty(matrices, dim, dim))
        for matrix in self.weight:
            nn.init.xavier_normal_(matrix)

    def forward(self, v_RFD: Tensor, v_NFD: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        match self.kind:
            case "all":
                return split_products(v_RFD, v_NFD, of, (v_RFD @ self.weight[0], v_NFD @ self.weight[0]))
            case "each":
                r = self.request
                return split_products(v_RFD, v_NFD, of, (_each(v_RFD, self.weight[:r]), _each(v_NFD, self.weight[r:])))
            case "interaction":
                a, b = v_RFD.shape[1], v_NFD.shape[1]
                own, across, others = self.weight.split_with_sizes([a * (a - 1) // 2, a * b, b * (b - 1) // 2])
                left_RPD = torch.einsum("rad,abde->rabe", v_RFD, across.view(a, b, *across.shape[1:])).flatten(1, 2)
                met_NPD = spread_fields(left_RPD, of) * v_NFD.repeat(1, a, 1)
                return _by_pair(v_RFD, own), torch.cat([met_NPD, _by_pair(v_NFD, others)], dim=1)


def _each(v_nFD: Tensor, weight: Tensor) -> Tensor:
    """[n, F, D]: field by field times its matrix; the last field of all is never on the left and has none."""
    left = torch.einsum("nfd,fde->nfe", v_nFD[:, : len(weight)], weight)
    return torch.cat([left, v_nFD[:, len(weight) :]], dim=1)


class _ByPair(Function):
    """Left fields times their matrices are made again in the backward pass: they are as many as the products."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        out = x.new_empty((len(x), len(weight), x.shape[2]))
        for i, at, w in _blocks(x, weight):
            torch.mul((x[:, i] @ w).view(len(x), -1, x.shape[2]), x[:, i + 1 :], out=out[:, at])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        n, _, d = x.shape
        of_x, of_weight = torch.zeros_like(x), torch.empty_like(weight)
        for i, at, w in _blocks(x, weight):
            left, grad = (x[:, i] @ w).view(n, -1, d), grads[0][:, at]
            of_left = (grad * x[:, i + 1 :]).view(n, -1)
            of_x[:, i] += of_left @ w.T
            of_x[:, i + 1 :].addcmul_(grad, left)
            of_weight[at] = (x[:, i].T @ of_left).view(d, -1, d).transpose(0, 1)
        return of_x, of_weight


def _blocks(x_nFD: Tensor, weight_PDD: Tensor) -> Iterator[tuple[int, slice, Tensor]]:
    """(left field, its pairs, their matrices side by side [D, pairs · D])."""
    at, d = 0, x_nFD.shape[2]
    for i in range(x_nFD.shape[1] - 1):
        pairs_of = slice(at, at + x_nFD.shape[1] - 1 - i)
        at = pairs_of.stop
        yield i, pairs_of, weight_PDD[pairs_of].transpose(0, 1).reshape(d, -1)


def _by_pair(v_nFD: Tensor, weight_PDD: Tensor) -> Tensor:
    """[n, F (F - 1) / 2, D]: (v_i W_ij) ∘ v_j, one left field at a time."""
    if v_nFD.shape[1] < 2:
        return v_nFD[:, :0]
    if torch.compiler.is_exporting():
        n, _, d = v_nFD.shape
        blocks = _blocks(v_nFD, weight_PDD)
        return torch.cat([(v_nFD[:, i] @ w).view(n, -1, d) * v_nFD[:, i + 1 :] for i, _, w in blocks], dim=1)
    out: Tensor = _ByPair.apply(v_nFD, weight_PDD)  # type: ignore[no-untyped-call]
    return out


FIBINET = named(
    Composition(
        name="fibinet",
        representation=Plain.Options(embedding=EmbeddingOptions(width=10)),
        interactions=(Linear.Options(), FiBiNET.Options()),
        heads=TaskHeads.Options(),
        paper="1905.09433",
    )
)
