"""Numbers that heads cannot learn: a time watched or waited for is none if it is below 0.

Prepared data serve any model, and a regression may well be of negative numbers: so it is the heads that are asked.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finerank.data.dataset import Dataset
from finerank.errors import UserError
from finerank.models.composition import Head

CHUNK = 1 << 20  # rows read at a time


def check_signs(dataset: Dataset, heads: Sequence[Head]) -> None:
    """Raise UserError for a label below 0 of a head that learns odds or the logarithm of a mean.

    Weighted logistic regression would take the row for one that was not watched, and the likelihood of an exponential law
    has no bound there.
    """
    names = [t.name for t in dataset.fitted.schema.tasks]
    for head in heads:
        if head.link not in ("odds", "exp"):
            continue
        k = names.index(head.task)
        for start in range(0, dataset.rows, CHUNK):
            rows = slice(start, start + CHUNK)
            below = np.flatnonzero((dataset.weights[rows, k] != 0) & (dataset.labels[rows, k] < 0))
            if len(below):
                row = start + int(below[0])
                raise UserError(
                    f"task {head.task!r}: row {row:,} of {dataset.folder} has the label {float(dataset.labels[row, k]):g}, and "
                    f"its head learns {'odds' if head.link == 'odds' else 'a mean above 0'}; accepted: 0 or more. Leave the "
                    "label empty where nothing is known, or take heads that learn any number"
                )
