"""Attentional Factorization Machine. Xiao et al., IJCAI 2017, section 3; defaults: the authors' command
(hexiangnan/attentional_factorization_machine, README).

logit = w0 + sum_i w_i x_i + p · sum_{i<j} a_ij p_ij,  p_ij = v_i x_i ∘ v_j x_j,
a = softmax over all pairs of h · relu(W p_ij + b)

With h = 0 all pairs weigh the same, and with p = (number of pairs) · 1 too it is the factorization machine.

Differs from the textbook: a request's own pairs are multiplied, judged and summed once per request. The softmax spans these
and the other pairs all the same: each part is summed with weights relative to its own largest score, and the two parts are
brought to one scale in the end. Where all pairs of a batch are too many to hold, they are worked out by slices of rows.
R requests · N candidates · F fields and numbers · n pairs · D width · T attention factors · K outputs, which share a
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from finerank.errors import UserError
from finerank.layers.checks import check_dropout
from finerank.layers.mlp import linear
from finerank.layers.products import products, spread_fields
from finerank.layers.segments import spread
from finerank.layers.slices import by_slices
from finerank.models.composition import Features, Interaction, Weighed, Widths
from finerank.models.lr import Linear
from finerank.models.plain import EmbeddingOptions, Plain, TaskHeads
from finerank.models.registry import Composition, named, part
from finerank.models.vectors import FieldVectors, above_diagonal, vector_names
from finerank.schema import FittedSchema


@part
class AttentionalPairs(Interaction):
    """The products of all pairs of fields, summed with weights from an attention network."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """The attention network.

        factor   T, its width: 8 beside vectors 256 wide in the authors' command for MovieLens, 16 beside 16 in their quick one
        dropout  of the pooled products, never within the attention network: as in that command
        l2       times |W|^2, added to the loss: the paper regularises W alone. That command's 2 is for a loss summed over
                 4,096 rows: 2.4e-4 (half the square, half the loss) for a mean; 0 leaves W free
        std      of the initial vectors of numbers
        """

        kind: ClassVar[str] = "attentional_pairs"
        factor: int = 8
        dropout: float = 0.5
        l2: float = 2.4e-4
        std: float = 0.01

        def __post_init__(self) -> None:
            check_dropout(dropout=self.dropout)
            if self.factor < 1:
                raise UserError(f"factor = {self.factor}; accepted: at least 1, usually 16")
            if not self.l2 >= 0:
                raise UserError(f"l2 = {self.l2}; accepted: at least 0")

    def __init__(self, fitted: FittedSchema, widths: Widths, outputs: int, options: Options) -> None:
        super().__init__()
        self.vectors = FieldVectors(widths, options.std, "interaction 'attentional_pairs'")
        self.names = tuple(vector_names(fitted, widths))
        if self.vectors.fields < 2:
            raise UserError("interaction 'attentional_pairs': one field only; accepted: at least 2, or a 'linear' part")
        self.attention = linear(widths.dim, options.factor)  # W, b
        self.score = linear(options.factor, 1, bias=False)  # h
        self.dropout = nn.Dropout(options.dropout) if options.dropout else nn.Identity()
        self.last = linear(widths.dim, outputs, bias=False)  # p
        self.l2, self.each = options.l2, 2 * (widths.dim + options.factor)  # numbers that a pair takes

    def penalties(self, features: Features) -> dict[str, Tensor]:
        """l2 |W|^2."""
        if not self.l2:
            return {}
        return {"attention_l2": self.l2 * self.attention.weight.square().sum() * features.batch.share}

    def between_fields(self, features: Features) -> dict[str, Weighed]:
        """a of every pair, which sum to 1 over a row."""
        v_NFD = self.vectors.rows(features)
        p_NnD = products(v_NFD, v_NFD)
        a_Nn = torch.softmax(self.score(torch.relu(self.attention(p_NnD))).squeeze(2), dim=1)
        return {"attention of pairs": Weighed(self.names, self.names, above_diagonal(a_Nn, self.vectors.fields))}

    def pooled(self, features: Features) -> Tensor:
        """[N, D]: sum of a_ij p_ij."""
        v_RFD, v_NFD = self.vectors.sides(features)
        of, a, b = features.batch.request_of, v_RFD.shape[1], v_NFD.shape[1]
        own, other = a * (a - 1) // 2, a * b + b * (b - 1) // 2
        if own:
            joined = torch.cat(by_slices(self._own, own * self.each, v_RFD), dim=1)
            sum_R, total_R, peak_R = spread(joined, of).split_with_sizes([self.vectors.dim, 1, 1], dim=1)
        if other:
            sum_N, total_N, peak_N = by_slices(self._other, other * self.each, spread_fields(v_RFD, of), v_NFD)
        if not (own and other):
            return sum_R / total_R if own else sum_N / total_N
        peak = torch.maximum(peak_R, peak_N)
        scale_R, scale_N = (peak_R - peak).exp(), (peak_N - peak).exp()
        return (scale_R * sum_R + scale_N * sum_N) / (scale_R * total_R + scale_N * total_N)

    def _own(self, v_RFD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self._part(products(v_RFD, v_RFD))

    def _other(self, v_NAD: Tensor, v_NBD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        across = (v_NAD.unsqueeze(2) * v_NBD.unsqueeze(1)).flatten(1, 2)
        return self._part(torch.cat([across, products(v_NBD, v_NBD)], dim=1))

    def _part(self, p_mnD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(sum of weight · p [m, D], sum of weights [m, 1], largest score [m, 1]); weights relative to the latter."""
        score_mn = self.score(torch.relu(self.attention(p_mnD))).squeeze(2)
        peak = score_mn.detach().amax(1, keepdim=True)
        weight = (score_mn - peak).exp()
        return (weight.unsqueeze(1) @ p_mnD).squeeze(1), weight.sum(1, keepdim=True), peak

    def forward(self, features: Features) -> Tensor:
        """[N, K]."""
        out: Tensor = self.last(self.dropout(self.pooled(features)))
        return out


AFM = named(
    Composition(
        name="afm",
        representation=Plain.Options(embedding=EmbeddingOptions(width=256)),
        interactions=(Linear.Options(), AttentionalPairs.Options()),
        heads=TaskHeads.Options(),
        paper="1708.04617",
    )
)
