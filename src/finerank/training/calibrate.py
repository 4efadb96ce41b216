"""Recalibration: per head, the line through its logits that makes them right on the validation rows.

    sigmoid    logit' = a + b logit by logistic regression (Platt 1999, without his smoothing): the mean probability becomes
               the base rate, exactly
    identity   the same by least squares · exp: a alone, so that the means agree

What sampling by popularity does to a probability depends on the item, so no formula undoes it; a line fitted on whole rows
undoes it on average. It never changes the order of rows while b > 0; where the best line has b <= 0 the head has learnt
nothing of use, and a alone is fitted, with b = 1.
n rows
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from finerank.errors import UserError
from finerank.models.composition import Head

ITERATIONS = 100
PRIOR = 1e-6  # of b around 1, per row: a bound where the rows are separable
FIXED = 1e9  # the same where b is to be 1


class Line(NamedTuple):
    """a and b of one head, and the slope of the best line: `b`, or what is not above 0."""

    a: float
    b: float
    slope: float


def line(head: Head, labels: np.ndarray, logits: np.ndarray, weights: np.ndarray) -> Line:
    """The line of one head. Raises UserError where the rows do not tell: none, or of one class."""
    inside = weights != 0
    y, z, w = (x[inside].astype(np.float64) for x in (labels, logits, weights))
    check(head, y)
    match head.link:
        case "sigmoid":
            a, b = _logistic(y, z, w, PRIOR)
            return Line(a, b, b) if b > 0 else Line(_logistic(y, z, w, FIXED)[0], 1.0, b)
        case "exp" | "odds":
            return Line(float(np.log(w @ y) - np.log(w @ np.exp(z))), 1.0, 1.0)
        case _:
            mean_y, mean_z = np.average(y, weights=w), np.average(z, weights=w)
            spread = w @ (z - mean_z) ** 2
            slope = float(w @ ((z - mean_z) * (y - mean_y)) / spread) if spread > 0 else 1.0
            b = slope if slope > 0 else 1.0
            return Line(float(mean_y - b * mean_z), b, slope)


def check(head: Head, labels: np.ndarray) -> None:
    """Raises UserError if labels (those of weight above 0) cannot tell how a head is off."""
    ends = (labels.min(), labels.max()) if len(labels) else (0.0, 0.0)
    if ends[0] == ends[1] and (
        head.link == "sigmoid" or not len(labels) or (head.link in ("exp", "odds") and not ends[1])
    ):
        raise UserError(
            f"recalibration: the validation rows of head {head.name!r} are {'of one class' if len(labels) else 'none'}; "
            "give more validation rows"
        )


def _logistic(y: np.ndarray, z: np.ndarray, w: np.ndarray, prior_of_b: float) -> tuple[float, float]:
    """Newton's method on the weighted log loss, halving steps that do not lower it; z is centred for conditioning."""
    centre = float(np.average(z, weights=w))
    x = np.stack([np.ones_like(z), z - centre])  # [2, n]
    prior = np.array([0.0, prior_of_b * w.sum()])
    rate = np.average(y, weights=w)
    theta = np.array([np.log(rate) - np.log1p(-rate), 1.0])

    def loss(theta: np.ndarray) -> float:
        logit = theta @ x
        fit = w @ (y * np.logaddexp(0, -logit) + (1 - y) * np.logaddexp(0, logit))
        return float(fit + prior[1] * (theta[1] - 1) ** 2 / 2)

    for _ in range(ITERATIONS):
        p = np.exp(-np.logaddexp(0, -(theta @ x)))
        gradient = x @ (w * (p - y)) + prior * (theta - np.array([0.0, 1.0]))
        hessian = (x * (w * p * (1 - p))) @ x.T + np.diag(prior)
        step = np.linalg.lstsq(hessian, gradient, rcond=None)[0]
        before, size = loss(theta), 1.0
        while loss(theta - size * step) > before and size > 1e-9:
            size /= 2
        theta = theta - size * step
        if np.abs(size * step).max() < 1e-12:
            break
    return float(theta[0] - theta[1] * centre), float(theta[1])
