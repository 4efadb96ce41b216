"""A number with its 95 % interval, and where the interval comes from.

Rows of one user are no independent draws: whoever clicks a lot clicks a lot tomorrow. So every interval here takes the
user as the unit of the sample. What a user does to a metric is one number, its influence: to the first order the change
of the metric when that user weighs a little more. The variance is the sum of their squares (the infinitesimal jackknife,
Efron 1982; for AUC it is DeLong's). It is what resampling users tends to, without the draws; `resampled` is the twin,
for metrics that have no derivative.

All of it covers the data: other users would give another number. It does not cover the seed of the training.

G clusters (users) · S statistics summed per cluster · B draws
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FEW = 30
"""Below this many users an interval is known to be too narrow, and says so."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A metric with its 95 % interval. NaN where it is not defined: no rows, one class only, no interval.

    value      the metric
    low, high  the 95 % interval, cut at the metric's own bounds
    se         its standard error
    how        one phrase that says what the interval covers, and how it was found
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    se: float = math.nan
    how: str = ""
