"""How a model weighs the fields of a candidate against each other: AFM's and AutoInt's attention, strengths of pairs.

C candidates · F, G fields
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finerank.data.batch import Batch
from finerank.models.composition import Model


@dataclass(frozen=True)
class Between:
    """What weighs (`Interaction.between_fields`), the fields of both axes, and weights [C, F, G]; NaN: not weighed."""

    what: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    weights: NDArray[np.float64]

    def strongest(self, candidates: Sequence[int], most: int) -> list[tuple[str, str, float]]:
        """(row, column, mean over these candidates) of the greatest weights by size, greatest first."""
        mean = self.weights[list(candidates)].mean(0)
        order = np.argsort(-np.abs(np.nan_to_num(mean)).ravel(), kind="stable")
        at = [np.unravel_index(k, mean.shape) for k in order]
        named = [(self.rows[i], self.columns[j], float(mean[i, j])) for i, j in at]
        return [one for one in named if not np.isnan(one[2])][:most]


def between_fields(model: Model, batch: Batch) -> tuple[Between, ...]:
    """All that the model's interactions weigh, in evaluation mode; empty for a model that weighs no fields."""
    found = model.eval().between_fields(batch)
    return tuple(
        Between(what, w.rows, w.columns, w.weights.detach().cpu().double().numpy()) for what, w in found.items()
    )
