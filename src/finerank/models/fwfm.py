"""Field-weighted Factorization Machine. Pan et al., WWW 2018, section 3.

logit = w0 + L(x) + sum_{i<j} r_ij <v_i, v_j> x_i x_j

r_ij belongs to the pair of fields, not to their values: F (F - 1) / 2 numbers where a field-aware machine has F - 1 vectors a
value. The linear part L is one of the paper's three:

    LW     sum_i w_i x_i            a number per value
    FeLV   sum_i <v_i, w_i> x_i     a vector per value
    FiLV   sum_i <v_i, w_f(i)> x_i  a vector per field: values have no weight but their embedding

Differs from the textbook: r starts at 1, so training starts from a factorization machine (near 0 no gradient would reach
the vectors); with R the symmetric matrix of the r, the sum is sum_i <v_i, (R v)_i> / 2, without a tensor of pairs, and a
request's own pairs are summed once per request.
R requests · N candidates · F fields and numbers · D width · K outputs, each with r and linear part of its own
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from finerank.errors import UserError
from finerank.layers.products import pairs
from finerank.layers.segments import spread
from finerank.models.composition import Features, Interaction, Weighed, Widths
from finerank.models.lr import Linear
from finerank.models.plain import EmbeddingOptions, Plain, TaskHeads
from finerank.models.registry import Composition, named, part
from finerank.models.vectors import FieldVectors, OwnVectors, above_diagonal, vector_names
from finerank.schema import FittedSchema


@part
class FwFM(Interaction):
    """Products of all pairs of fields, weighted by pair, and a linear part."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """The linear part and the numbers.

        linear  LW, FeLV or FiLV (see the module); FiLV has the fewest parameters
        std     of the initial vectors of numbers
        """

        kind: ClassVar[str] = "fwfm"
        linear: Literal["LW", "FeLV", "FiLV"] = "FiLV"
        std: float = 0.01

    place: Tensor

    def __init__(self, fitted: FittedSchema, widths: Widths, outputs: int, options: Options) -> None:
        super().__init__()
        self.vectors = FieldVectors(widths, options.std, "interaction 'fwfm'")
        self.names = tuple(vector_names(fitted, widths))
        fields = self.vectors.fields
        i, j = pairs(fields)
        self.weights = nn.Parameter(torch.ones(outputs, len(i)))
        # the place of r_ij in `weights`; the diagonal's is a 0 behind them
        square = torch.full((fields, fields), len(i))
        square[i, j] = square[j, i] = torch.arange(len(i))
        self.register_buffer("place", square, persistent=False)
        self.linear: nn.Module
        match options.linear:
            case "LW":
                self.linear = Linear(fitted, widths, outputs, Linear.Options())
            case "FeLV":
                self.linear = _VectorOfValue(fitted, widths, outputs)
            case "FiLV":
                self.linear = _VectorOfField(self.vectors, outputs)

    def matrix(self) -> Tensor:
        """[K, F, F]: r as a symmetric matrix with a diagonal of 0."""
        padded = torch.cat([self.weights, self.weights.new_zeros(len(self.weights), 1)], dim=1)
        return padded.index_select(1, self.place.flatten()).view(-1, *self.place.shape)

    def between_fields(self, features: Features) -> dict[str, Weighed]:
        """r of every pair, the same for all rows; of each output where there are several."""
        square_KFF = above_diagonal(self.weights, self.vectors.fields)
        names = ["r"] if len(square_KFF) == 1 else [f"r of output {k}" for k in range(1, len(square_KFF) + 1)]
        rows = (features.batch.N, -1, -1)
        return {n: Weighed(self.names, self.names, r.expand(rows)) for n, r in zip(names, square_KFF, strict=True)}

    def forward(self, features: Features) -> Tensor:
        """[N, K]."""
        v_RFD, v_NFD = self.vectors.sides(features)
        of, request = features.batch.request_of, self.vectors.request
        out = []
        for r_FF in self.matrix().unbind(0):
            to_R, to_N = r_FF[:, :request] @ v_RFD, r_FF[request:, request:] @ v_NFD  # [R, F, D], [N, F_N, D]
            own = 0.5 * (v_RFD * to_R[:, :request]).flatten(1).sum(1, keepdim=True)
            met = spread(to_R[:, request:].flatten(1), of) + 0.5 * to_N.flatten(1)
            out.append(spread(own, of) + (v_NFD.flatten(1) * met).sum(1, keepdim=True))
        of_values = (features,) if isinstance(self.linear, Linear) else (features, v_RFD, v_NFD)
        linear: Tensor = self.linear(*of_values)
        return torch.cat(out, dim=1) + linear


class _VectorOfField(nn.Module):
    """FiLV: <v_i, w_i> with one w for each field and number."""

    def __init__(self, vectors: FieldVectors, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, vectors.fields * vectors.dim))
        self.request = vectors.request * vectors.dim

    def forward(self, features: Features, v_RFD: Tensor, v_NFD: Tensor) -> Tensor:
        per_request = v_RFD.flatten(1) @ self.weight[:, : self.request].T
        return spread(per_request, features.batch.request_of) + v_NFD.flatten(1) @ self.weight[:, self.request :].T


class _VectorOfValue(nn.Module):
    """FeLV: <v_i, w> with a w for each value of a field, from tables of its own, and one for each number."""

    def __init__(self, fitted: FittedSchema, widths: Widths, outputs: int) -> None:
        super().__init__()
        self.weights = OwnVectors(fitted, widths, outputs * widths.dim, std=0.0)
        found = (self.weights.request, self.weights.candidate)
        if found != (widths.request_fields, widths.candidate_fields):
            raise UserError(
                f"fwfm.linear = 'FeLV': the representation gives {widths.request_fields} and {widths.candidate_fields} "
                f"fields and the schema has {found[0]} and {found[1]} with values; accepted: 'plain', or linear = 'FiLV'"
            )
        self.outputs = outputs

    def forward(self, features: Features, v_RFD: Tensor, v_NFD: Tensor) -> Tensor:
        w_R, w_N = self.weights.fields(features)
        per_request = self._side(w_R, self.weights.numbers_R, v_RFD)
        return spread(per_request, features.batch.request_of) + self._side(w_N, self.weights.numbers_N, v_NFD)

    def _side(self, values: Tensor, numbers: Tensor, v_nFD: Tensor) -> Tensor:
        """[n, K] of one side. A number's value is in its v."""
        n, fields, dim = v_nFD.shape
        w = torch.cat([values, numbers.expand(n, -1, -1)], dim=1).view(n, fields, self.outputs, dim)
        return torch.einsum("nfkd,nfd->nk", w, v_nFD)


FWFM = named(
    Composition(
        name="fwfm",
        representation=Plain.Options(embedding=EmbeddingOptions(width=10)),
        interactions=(FwFM.Options(),),
        heads=TaskHeads.Options(),
        paper="1806.03514",
    )
)
