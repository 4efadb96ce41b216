"""Factorization Machine. Rendle, ICDM 2010, equations 1 and 5.

logit = w0 + sum_i w_i x_i + 1/2 sum_d [(sum_i v_id x_i)^2 - sum_i v_id^2 x_i^2]

Differs from the textbook: the sums over the request's fields are made once per request and gathered. A multi-valued
field is pooled first (no pairs within the field); a number x has a vector of its own and enters as x·v.
R requests · N candidates · F fields · D width
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import Function

from finerank.errors import UserError
from finerank.layers.segments import spread
from finerank.models.composition import Features, Interaction, Widths
from finerank.models.lr import Linear
from finerank.models.plain import Plain, TaskHeads
from finerank.models.registry import Composition, named, part
from finerank.schema import FittedSchema


@part
class FM(Interaction):
    """Second-order interactions of all fields and numbers of a row; no parameters but the numbers' vectors."""

    single = True

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """std: of the initial vectors of numbers."""

        kind: ClassVar[str] = "fm"
        std: float = 0.01

        def __post_init__(self) -> None:
            if not self.std >= 0:
                raise UserError(f"std = {self.std}; accepted: at least 0, usually 0.01")

    def __init__(self, fitted: FittedSchema, widths: Widths, outputs: int, options: Options) -> None:
        super().__init__()
        if not widths.request + widths.candidate:
            raise UserError(
                "interaction 'fm': the representation gives no fields; accepted: one that embeds fields, such as 'plain' or "
                "'pooled'"
            )
        self.numbers_R = nn.Parameter(torch.randn(widths.request_numbers, widths.dim) * options.std)
        self.numbers_N = nn.Parameter(torch.randn(widths.candidate_numbers, widths.dim) * options.std)

    def forward(self, features: Features) -> Tensor:
        """[N, 1]."""
        sum_R, square_R = self._sums(features.fields_R, features.numbers_R, self.numbers_R)
        sum_N, square_N = self._sums(features.fields_N, features.numbers_N, self.numbers_N)
        of = features.batch.request_of
        total = spread(sum_R, of) + sum_N  # [N, D]
        squares = spread(square_R.unsqueeze(1), of)[:, 0] + square_N  # [N]
        return 0.5 * (total.square().sum(1) - squares).unsqueeze(1)

    def _sums(self, fields: Tensor, numbers: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """(sum of x·v [n, D], sum of |x·v|^2 [n]) of one side."""
        total = fields.sum(1) + numbers @ vectors
        return total, square_norm(fields.flatten(1)) + numbers.square() @ vectors.square().sum(1)


class _SquareNorm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        out: Tensor = torch.linalg.vecdot(x, x)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        grad: Tensor = x * (2 * grads[0]).unsqueeze(1)
        return grad


def square_norm(x: Tensor) -> Tensor:
    """[n, d] -> [n]: |x|^2, in one pass forward and one backward, where the plain operators take two and three."""
    if torch.compiler.is_exporting():
        return x.square().sum(1)
    out: Tensor = _SquareNorm.apply(x)  # type: ignore[no-untyped-call]
    return out


FACTORIZATION_MACHINE = named(
    Composition(
        name="fm",
        representation=Plain.Options(),
        interactions=(Linear.Options(), FM.Options()),
        heads=TaskHeads.Options(),
        paper="10.1109/ICDM.2010.127",
    )
)
