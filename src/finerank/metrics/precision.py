"""PR-AUC: precision along recall, for labels so rare that AUC is easy."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from finerank.metrics.runs import Runs, runs


def pr_auc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Average precision: Σ over thresholds of (the recall it adds) · (the precision it has). O(n log n).

    A threshold takes all rows of one score or none: tied rows enter together. It is the area under the steps, not under
    straight lines between points, which promise what no threshold gives (Davis and Goadrich, ICML 2006).

    labels [n], 0 or 1 · scores [n] · weights [n] >= 0. A model of constant scores gets the share of positives.
    NaN without a positive.

    Positives at places 1 and 3 of three: 1/2 · 1/1 + 1/2 · 2/3.

    >>> round(pr_auc([1, 0, 1], [0.9, 0.5, 0.1]), 4)
    0.8333
    >>> pr_auc([1, 0, 0, 0], [0.5, 0.5, 0.5, 0.5])
    0.25
    """
    return of_runs(runs("pr_auc", labels, scores, weights))


def of_runs(sorted_: Runs) -> float:
    """`pr_auc` of rows that are sorted already."""
    total = sorted_.up.sum()
    if not total > 0:
        return float("nan")
    hits = np.cumsum(sorted_.up)
    return float(sorted_.up @ (hits / (hits + np.cumsum(sorted_.down))) / total)
