"""Field-aware Factorization Machine. Juan et al., RecSys 2016, section 3.

logit = w0 + sum_i w_i x_i + sum_{i<j} <v_i,f(j), v_j,f(i)> x_i x_j

A value has one vector for each *other* field, in tables of the machine's own: F - 1 vectors of D, 4 to 8 wide. It
over-fits quickly: stop early. The paper trains with AdaGrad (accumulators from 1, rate 0.2) and L2 of 2e-5; numbers are better
bucketed.

Differs from the textbook: pairs within the request once per request. A number has F - 1 vectors too and enters by its
value. A field of several values is pooled to F - 1 vectors first. Fields that share a table share the vectors at the same
place. Instances are normalised by their pairs alone, as in the authors' code.
R requests · N candidates · F fields and numbers (A of the request, B of the candidate) · D width
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import Function

from finerank.errors import UserError
from finerank.layers.segments import spread
from finerank.models.composition import Features, Interaction, Widths
from finerank.models.lr import Linear, NoFields
from finerank.models.plain import TaskHeads
from finerank.models.registry import Composition, named, part
from finerank.models.vectors import OwnVectors
from finerank.schema import FittedSchema


@part
class FFM(Interaction):
    """Second-order interactions in which a value meets each other field with a vector of its own for that field."""

    single = True

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """The vectors.

        dim        D of each of the F - 1 vectors: 4 in the paper
        normalise  every row to unit length: the sum of pairs over the sum of squares of its x (1 for a field)
        """

        kind: ClassVar[str] = "ffm"
        dim: int = 4
        normalise: bool = True

        def __post_init__(self) -> None:
            if self.dim < 1:
                raise UserError(f"dim = {self.dim}; accepted: at least 1, usually 4 to 8")

    def __init__(self, fitted: FittedSchema, widths: Widths, outputs: int, options: Options) -> None:
        super().__init__()
        self.options = options
        numbers = widths.request_numbers + widths.candidate_numbers
        self.ids = sum(len(block.ids) + len(block.lists) for block in (fitted.request, fitted.candidate))
        fields = self.ids + numbers
        if fields < 2:
            raise UserError(
                f"interaction 'ffm': {fields} field in the schema; accepted: at least 2, or a 'linear' part"
            )
        # uniform from 0 to 1 / sqrt(D), as in the authors' code
        self.vectors = OwnVectors(fitted, widths, (fields - 1) * options.dim, std=0.0, high=options.dim**-0.5)

    def forward(self, features: Features) -> Tensor:
        """[N, 1]."""
        of = features.batch.request_of
        v_RA, v_NB = (self._by_field(v) for v in self.vectors.sides(features))  # [R, A, F - 1, D], [N, B, F - 1, D]
        # a field's vectors are in the order of the other fields: first the request's, then the candidate's
        a = v_RA.shape[1]
        for_request, for_candidate = v_RA[:, :, : max(a - 1, 0)], v_RA[:, :, max(a - 1, 0) :]
        total = met_within(v_NB[:, :, a:]) + spread(met_within(for_request).unsqueeze(1), of)[:, 0]
        if a:
            back_NAB = v_NB[:, :, :a].transpose(1, 2).flatten(1)  # the candidate's vectors for the request
            total = total + (spread(for_candidate.flatten(1), of) * back_NAB).sum(1)
        if self.options.normalise:
            squares_R, squares_N = (x.square().sum(1, keepdim=True) for x in (features.numbers_R, features.numbers_N))
            total = total / (self.ids + spread(squares_R, of) + squares_N)[:, 0]
        return total.unsqueeze(1)

    def _by_field(self, joined: Tensor) -> Tensor:
        n, fields, width = joined.shape
        return joined.view(n, fields, width // self.options.dim, self.options.dim)


class _Met(Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, partner: Tensor) -> Tensor:
        other = v.flatten(1, 2).index_select(1, partner).flatten(1)
        ctx.save_for_backward(other)
        ctx.shape = v.shape
        return 0.5 * torch.bmm(v.flatten(1).unsqueeze(1), other.unsqueeze(2)).flatten()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (other,) = ctx.saved_tensors
        grad: Tensor = other * grads[0].unsqueeze(1)
        return grad.view(ctx.shape), None


def met_within(v_nFOD: Tensor) -> Tensor:
    """[n, F, F - 1, D] -> [n]: sum over i < j of <the vector of i for j, the vector of j for i>.

    Each vector is multiplied with its partner, which counts every pair twice, and is half of its partner's gradient:
    one gathered copy, none scattered.
    """
    fields = v_nFOD.shape[1]
    if fields < 2:
        return v_nFOD.new_zeros(v_nFOD.shape[0])
    i, slot = torch.arange(fields).unsqueeze(1), torch.arange(fields - 1).unsqueeze(0)
    j = slot + (
        slot >= i
    )  # the vector of i at `slot` is for field j; that of j for i is at i, or i - 1 behind its own place
    partner = (j * (fields - 1) + i - (i > j).long()).flatten().to(v_nFOD.device)
    if torch.compiler.is_exporting():
        return 0.5 * (v_nFOD.flatten(1) * v_nFOD.flatten(1, 2).index_select(1, partner).flatten(1)).sum(1)
    out: Tensor = _Met.apply(v_nFOD, partner)  # type: ignore[no-untyped-call]
    return out


FIELD_AWARE = named(
    Composition(
        name="ffm",
        representation=NoFields.Options(),
        interactions=(Linear.Options(), FFM.Options()),
        heads=TaskHeads.Options(),
        paper="10.1145/2959100.2959134",
        exemptions={
            "shapes_and_start": (
                "the paper's vectors begin positive, so an untrained machine is above the base rate by about (F - 1) / 8",
                "test_ffm_begins_above_the_base_rate_by_its_positive_vectors",
            )
        },
    )
)
