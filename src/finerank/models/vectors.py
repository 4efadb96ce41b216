"""Fields and numbers of a row as vectors of one width: what models of pairs of fields work on.

A field is its vector; a number x has a vector v of its own and enters as x·v, as in the factorization machine.
R requests · N candidates · F fields and numbers (request's first) · D width
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from finerank.errors import UserError
from finerank.layers.embedding import Embedding
from finerank.layers.products import pairs, whole_rows
from finerank.models.composition import Features, Widths
from finerank.schema import FittedSchema


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
        return whole_rows(*self.sides(features), features.batch.request_of)


class OwnVectors(nn.Module):
    """Vectors of a part's own, beside those of the representation: for every value of a field and for every number.

    width  of each vector, whatever the schema's features declare
    std    of the initial vectors
    high   they are uniform from 0 to this instead; 0: normal
    """

    def __init__(self, fitted: FittedSchema, widths: Widths, width: int, std: float, high: float = 0.0) -> None:
        super().__init__()
        self.embedding = Embedding(fitted, width, std, ("request", "candidate"), forced=True, ages=False, high=high)
        self.request, self.candidate = (len(self.embedding.order[block]) for block in ("request", "candidate"))
        self.numbers_R, self.numbers_N = (
            nn.Parameter(torch.rand(count, width) * high if high else torch.randn(count, width) * std)
            for count in (widths.request_numbers, widths.candidate_numbers)
        )

    def fields(self, features: Features) -> tuple[Tensor, Tensor]:
        """([R, fields, width], [N, fields, width]): without numbers."""
        found = self.embedding(features.batch)
        fields_R, fields_N = found["request"].vectors, found["candidate"].vectors
        assert isinstance(fields_R, Tensor)
        assert isinstance(fields_N, Tensor)
        return fields_R, fields_N

    def sides(self, features: Features) -> tuple[Tensor, Tensor]:
        """([R, fields and numbers, width], [N, fields and numbers, width])."""
        fields_R, fields_N = self.fields(features)
        return (
            _joined(fields_R, features.numbers_R, self.numbers_R),
            _joined(fields_N, features.numbers_N, self.numbers_N),
        )


def _joined(fields: Tensor, numbers: Tensor, vectors: Tensor) -> Tensor:
    if not numbers.shape[1]:
        return fields
    return torch.cat([fields, numbers.unsqueeze(2) * vectors], dim=1)


def vector_names(fitted: FittedSchema, widths: Widths) -> list[str]:
    """Names of what `FieldVectors` gives, in its order: the request's fields and numbers, then the candidate's."""

    def side(what: str, fields: int, known: Sequence[str], numbers: int, of_numbers: Sequence[str]) -> list[str]:
        made = [*known, *(f"{what}#{i}" for i in range(len(known), fields))]
        return [*made, *of_numbers, *(f"{what} number#{i}" for i in range(len(of_numbers), numbers))]

    return [
        *side("request", widths.request_fields, widths.names_R, widths.request_numbers, fitted.request.numbers),
        *side("candidate", widths.candidate_fields, widths.names_N, widths.candidate_numbers, fitted.candidate.numbers),
    ]


def above_diagonal(weights_nP: Tensor, fields: int) -> Tensor:
    """[n, F (F - 1) / 2] in the order of `pairs` -> [n, F, F]: NaN on the diagonal and below."""
    i, j = pairs(fields)
    out = weights_nP.new_full((weights_nP.shape[0], fields, fields), torch.nan)
    out[:, i, j] = weights_nP
    return out
