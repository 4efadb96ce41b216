"""Points for pictures: ROC, precision along recall, reliability, histogram of scores. Few enough to lie in a document.

n rows · K runs of equal scores · B bins
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from finerank.evaluation.document import Bin, Curves, Histogram
from finerank.evaluation.measure import HeadRows
from finerank.metrics.influence import ratio_influence
from finerank.metrics.probability import equal_mass_bins

POINTS = 200
BINS = 15
BARS = 40


def curves(rows: HeadRows) -> Curves | None:
    """The curves of a head with probabilities; None for numbers, and where a class (or every row) is missing."""
    if rows.link != "sigmoid" or rows.labels.min(initial=1) >= rows.labels.max(initial=0):
        return None
    up, down = np.cumsum(rows.runs.up), np.cumsum(rows.runs.down)
    return Curves(
        roc=_points(np.append(0.0, down / down[-1]), np.append(0.0, up / up[-1])),
        precision_recall=_points(up / up[-1], up / (up + down)),
        reliability=tuple(_reliability(rows)),
        histogram=_histogram(rows),
    )


def _points(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[tuple[float, float], ...]:
    """At most POINTS of a curve, spread evenly over both of its axes; first and last stay."""
    if len(x) > POINTS:
        along = np.abs(np.diff(x, prepend=x[0])).cumsum() + np.abs(np.diff(y, prepend=y[0])).cumsum()
        chosen = np.unique(np.searchsorted(along, np.linspace(0, along[-1], POINTS)).clip(0, len(x) - 1))
        chosen[-1] = len(x) - 1
        x, y = x[chosen], y[chosen]
    return tuple(zip(x.round(6).tolist(), y.round(6).tolist(), strict=True))


def _reliability(rows: HeadRows) -> list[Bin]:
    """Equal-mass bins with an interval of the observed rate over users, as everywhere."""
    bins = equal_mass_bins(rows.logits, BINS)
    w, p = rows.each, rows.predictions
    out = []
    for i in range(int(bins.max()) + 1):
        here = np.flatnonzero(bins == i)
        if not len(here):
            continue
        rate = ratio_influence((w * rows.labels)[here], w[here], rows.clusters[here], rows.count)
        found = rate.estimate(0.0, 1.0)
        predicted = float(w[here] @ p[here] / w[here].sum())
        out.append(Bin(predicted=predicted, observed=rate.value, low=found.low, high=found.high, rows=len(here)))
    return out


def _histogram(rows: HeadRows) -> Histogram:
    """Bars of equal width between the smallest prediction and the largest."""
    p = rows.predictions
    edges = np.linspace(p.min(), max(p.max(), math.nextafter(p.min(), 1)), BARS + 1)
    positives, negatives = (np.histogram(p[rows.labels == label], edges)[0] for label in (1, 0))
    return Histogram(
        edges=tuple(edges.tolist()), positives=tuple(positives.tolist()), negatives=tuple(negatives.tolist())
    )
