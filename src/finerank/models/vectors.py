"""Fields and numbers of a row as vectors of one width: what models of pairs of fields work on.

A field is its vector; a number x has a vector v of its own and enters as x·v, as in the factorization machine.
R requests · N candidates · F fields and numbers (request's first) · D width
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from finerank.errors import UserError
from finerank.layers.segments import spread
from finerank.models.composition import Features, Widths


class FieldVectors(nn.Module):
    """Makes the vectors [.., F, D] of either side, or of whole rows.

    std     of the initial vectors of numbers
    who     the part that asks, for the error where there is nothing to pair
    """

    def __init__(self, widths: Widths, std: float = 0.01, who: str = "interaction") -> None:
        super().__init__()
        if not std >= 0:
            raise UserError(f"std = {std}; accepted: at least 0, usually 0.01")
        self.request = widths.request_fields + widths.request_numbers
        self.candidate = widths.candidate_fields + widths.candidate_numbers
        self.fields, self.dim = self.request + self.candidate, widths.dim
        if not self.fields:
            raise UserError(
                f"{who}: the representation gives no fields; accepted: one that embeds fields, such as 'plain' or 'pooled'"
            )
        self.numbers_R = nn.Parameter(torch.randn(widths.request_numbers, widths.dim) * std)
        self.numbers_N = nn.Parameter(torch.randn(widths.candidate_numbers, widths.dim) * std)

    def sides(self, features: Features) -> tuple[Tensor, Tensor]:
        """([R, F_R, D], [N, F_N, D]): the request's side is not repeated."""
        return (
            _joined(features.fields_R, features.numbers_R, self.numbers_R),
            _joined(features.fields_N, features.numbers_N, self.numbers_N),
        )

    def rows(self, features: Features) -> Tensor:
        """[N, F, D]: the request's vectors repeated for each candidate, then the candidate's."""
        x_RFD, x_NFD = self.sides(features)
        repeated = spread(x_RFD.flatten(1), features.batch.request_of).view(-1, self.request, self.dim)
        return torch.cat([repeated, x_NFD], dim=1)


def _joined(fields: Tensor, numbers: Tensor, vectors: Tensor) -> Tensor:
    if not numbers.shape[1]:
        return fields
    return torch.cat([fields, numbers.unsqueeze(2) * vectors], dim=1)


def pairs(fields: int) -> tuple[Tensor, Tensor]:
    """(i, j) int64 [F (F - 1) / 2] each: all pairs i < j of fields, row after row."""
    i, j = torch.triu_indices(fields, fields, offset=1)
    return i, j
