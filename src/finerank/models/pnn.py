"""Product-based Neural Network: IPNN, OPNN and both. Qu et al., ICDM 2016, section 3 (extended: TOIS 2018).

l1 = act(W_z · z + W_p · p + b1), then a network; z are the fields themselves, p their products:

    inner, pairs        <e_i, e_j> of all pairs i < j                 F (F - 1) / 2 numbers
    inner, factorised   per neuron |sum_i theta_i e_i|^2: W_p of rank one per neuron (equation 11)
    outer, pairs        e_i e_j' of all pairs i < j                   F (F - 1) / 2 D^2 numbers: for few fields only
    outer, factorised   (sum_i e_i)(sum_i e_i)': the superposition of all outer products

Differs from the textbook: z holds numbers as they are, which is what W_z makes of a number's vector anyway. The superposition
is symmetric, so its upper triangle is all that W_p can read. The factorised forms hold the products of a field with itself,
the pairs do not. A request's own pairs, sums, and their part of the first layer are computed once per request.
R requests · N candidates · F fields and numbers · D width · L neurons of the first layer · K outputs, which share all but
the last layer
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from finerank.layers.activation import Activation
from finerank.layers.checks import check_dropout, check_layers
from finerank.layers.mlp import SplitLinear, after_first
from finerank.layers.products import pairs, split_inner_products, split_pairs, spread_fields, whole_rows
from finerank.layers.segments import spread
from finerank.models.composition import Features, Interaction, Widths
from finerank.models.plain import EmbeddingOptions, Plain, TaskHeads
from finerank.models.registry import Composition, named, part
from finerank.models.vectors import FieldVectors
from finerank.schema import FittedSchema


@dataclass(frozen=True, kw_only=True)
class ProductOptions:
    """The products and the network over them.

    product     inner, outer, or both (PNN*)
    form        pairs, or factorised: see the module for what each costs. Inner pairs are the usual form today
    hidden      layers; without, the output is linear in fields and products
    activation  tanh suits inner products in the paper, relu in later comparisons
    dropout     of hidden layers; 0.5 in the paper of PNN
    batch_norm  of hidden layers; off unless asked for
    std         of the initial vectors of numbers
    """

    product: Literal["inner", "outer", "both"] = "inner"
    form: Literal["pairs", "factorised"] = "pairs"
    hidden: tuple[int, ...] = (400, 400, 400)
    activation: Activation = "relu"
    dropout: float = 0.5
    batch_norm: bool = False
    std: float = 0.01

    def __post_init__(self) -> None:
        check_layers(0, hidden=self.hidden)
        check_dropout(dropout=self.dropout)


class ProductNetwork(nn.Module):
    """z and vectors of either side -> [N, outputs].

    z        (columns of the request's z, of the candidate's)
    vectors  (vectors of the request, of the candidate)
    """

    def __init__(
        self, z: tuple[int, int], vectors: tuple[int, int], dim: int, outputs: int, options: ProductOptions
    ) -> None:
        super().__init__()
        o, first = options, options.hidden[0] if options.hidden else outputs
        self.inner, self.outer = o.product != "outer", o.product != "inner"
        self.factorised = o.form == "factorised"
        request, candidate = z
        (within, _), (others, _) = split_pairs(*vectors)
        each = 0 if self.factorised else self.inner + self.outer * dim**2
        inputs = request + each * len(within), candidate + each * len(others)
        self.first = SplitLinear(*inputs, first, bias=bool(o.hidden), normed=bool(o.hidden) and o.batch_norm)
        if self.factorised and self.inner:
            self.theta_R = nn.Parameter(torch.randn(first, vectors[0]) / sum(vectors) ** 0.5)
            self.theta_N = nn.Parameter(torch.randn(first, vectors[1]) / sum(vectors) ** 0.5)
        if self.factorised and self.outer:
            self.superposed = nn.Linear(dim * (dim + 1) // 2, first, bias=False)
            nn.init.xavier_normal_(self.superposed.weight)
            self.register_buffer("upper", torch.triu_indices(dim, dim), persistent=False)
        self.rest = after_first(o.hidden, outputs, o.activation, o.dropout, o.batch_norm)

    upper: Tensor

    def forward(self, z_R: Tensor, z_N: Tensor, v_RFD: Tensor, v_NFD: Tensor, of: Tensor) -> Tensor:
        """[R, Z_R], [N, Z_N], [R, F_R, D], [N, F_N, D] -> [N, outputs]."""
        if self.factorised:
            l1 = self.first(z_R, z_N, of)
            l1 = l1 + self._inner(v_RFD, v_NFD, of) if self.inner else l1
            l1 = l1 + self._outer(v_RFD, v_NFD, of) if self.outer else l1
        else:
            p_R, p_N = [z_R], [z_N]
            for wanted, product in ((self.inner, split_inner_products), (self.outer, _split_outer_products)):
                if wanted:
                    own, other = product(v_RFD, v_NFD, of)
                    p_R.append(own)
                    p_N.append(other)
            l1 = self.first(torch.cat(p_R, dim=1), torch.cat(p_N, dim=1), of)
        out: Tensor = self.rest(l1)
        return out

    def _inner(self, v_RFD: Tensor, v_NFD: Tensor, of: Tensor) -> Tensor:
        """[N, L]: |sum_i theta_i e_i|^2 per neuron."""
        sums_RLD = self.theta_R @ v_RFD
        sums_NLD = spread_fields(sums_RLD, of) + self.theta_N @ v_NFD
        return sums_NLD.square().sum(2)

    def _outer(self, v_RFD: Tensor, v_NFD: Tensor, of: Tensor) -> Tensor:
        """[N, L]: W_p on the superposition."""
        total_ND = spread(v_RFD.sum(1), of) + v_NFD.sum(1)
        i, j = self.upper
        out: Tensor = self.superposed(total_ND[:, i] * total_ND[:, j])
        return out


def _split_outer_products(v_RFD: Tensor, v_NFD: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
    """([R, pairs within the request · D^2], [N, other pairs · D^2])."""
    request, candidate = v_RFD.shape[1], v_NFD.shape[1]
    _, other = split_pairs(request, candidate)
    return _outer_products(v_RFD, *pairs(request)), _outer_products(whole_rows(v_RFD, v_NFD, of), *other)


def _outer_products(v_nFD: Tensor, i: Tensor, j: Tensor) -> Tensor:
    i, j = i.to(v_nFD.device), j.to(v_nFD.device)
    return (v_nFD.index_select(1, i).unsqueeze(3) * v_nFD.index_select(1, j).unsqueeze(2)).flatten(1)


@part
class PNN(Interaction):
    """A network over the fields and the products of their pairs."""

    @dataclass(frozen=True, kw_only=True)
    class Options(ProductOptions):  # noqa: D106 - its base's
        __doc__ = ProductOptions.__doc__
        kind: ClassVar[str] = "pnn"

    def __init__(self, fitted: FittedSchema, widths: Widths, outputs: int, options: Options) -> None:
        super().__init__()
        self.vectors = FieldVectors(widths, options.std, "interaction 'pnn'")
        counts = (self.vectors.request, self.vectors.candidate)
        self.network = ProductNetwork((widths.request, widths.candidate), counts, widths.dim, outputs, options)

    def forward(self, features: Features) -> Tensor:
        """[N, K]."""
        out: Tensor = self.network(*features.sides(), *self.vectors.sides(features), features.batch.request_of)
        return out


def _pnn(name: str, product: Literal["inner", "outer", "both"], form: Literal["pairs", "factorised"]) -> Composition:
    return named(
        Composition(
            name=name,
            representation=Plain.Options(embedding=EmbeddingOptions(width=10)),
            interactions=(PNN.Options(product=product, form=form),),
            heads=TaskHeads.Options(),
            paper="1611.00144",
        )
    )


IPNN = _pnn("ipnn", "inner", "pairs")
OPNN = _pnn("opnn", "outer", "factorised")
PNN_STAR = _pnn("pnn", "both", "factorised")
