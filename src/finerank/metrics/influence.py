"""What each user does to each metric: the influences that intervals and paired comparisons are made of.

Every function takes `clusters`, int64 [n] codes 0 ... G - 1 (users), for rows or groups that weigh, and gives an
`Influence`. A metric over groups (GAUC by request) takes the cluster of each group: groups lie within clusters.

n rows · K runs of equal scores · G clusters
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from finerank.metrics import precision
from finerank.metrics.estimate import Floats, Influence
from finerank.metrics.runs import Runs, sums

Codes = NDArray[np.int64]


def auc_influence(sorted_: Runs, clusters: Codes, count: int) -> Influence:
    """AUC by DeLong with clusters: DeLong et al., Biometrics 1988; Obuchowski, Biometrics 1997. O(n log n), ties exact.

    The structural component of a positive is the share of negatives that it beats, of a negative the share of positives
    that beat it (ties one half). Their deviations are summed per cluster: what a cluster's rows have in common counts.
    With every row a cluster of its own it is DeLong's variance. Weighted rows: shares and sums of weights.
    """
    up, down = float(sorted_.up.sum()), float(sorted_.down.sum())
    none = Influence(math.nan, np.full(count, math.nan), 0, "clustered DeLong")
    if not (up > 0 and down > 0):
        return none
    beaten = (down - np.cumsum(sorted_.down) + sorted_.down / 2) / down  # [K] runs fall, so later ones are beaten
    beating = (np.cumsum(sorted_.up) - sorted_.up / 2) / up
    value = float(sorted_.up @ beaten / up)
    positive, w = sorted_.positive, sorted_.weights
    of_up = np.where(positive, w * (beaten[sorted_.run] - value) / up, 0.0)
    of_down = np.where(positive, 0.0, w * (beating[sorted_.run] - value) / down)
    with_up, with_down = (_present(clusters[of], count) for of in (positive, ~positive))
    if with_up < 2 or with_down < 2:
        return Influence(value, none.of, min(with_up, with_down), none.method)
    total = _corrected(sums(clusters, of_up, count), with_up)
    total += _corrected(sums(clusters, of_down, count), with_down)
    return Influence(value, total, min(with_up, with_down), none.method)


def pr_auc_influence(sorted_: Runs, clusters: Codes, count: int) -> Influence:
    """PR-AUC: a row moves the precision at every threshold that takes it, and its own class the recall there.

    AP = Σ_k U_k A_k / (A_k + B_k) / Σ U, U_k: positives of run k, A_k and B_k: positives and negatives down to it. The
    derivative by the weight of a row in run r: (precision_r - AP if positive, plus Σ_{k >= r} U_k dprecision_k) / Σ U.
    """
    value = precision.of_runs(sorted_)
    if math.isnan(value):
        return Influence(value, np.full(count, math.nan), 0)
    hits, misses = np.cumsum(sorted_.up), np.cumsum(sorted_.down)
    taken = hits + misses
    rest_up, rest_down = (np.cumsum((sorted_.up * x / taken**2)[::-1])[::-1] for x in (misses, hits))
    own = hits / taken - value
    each = np.where(sorted_.positive, (own + rest_up)[sorted_.run], -rest_down[sorted_.run])
    return _influence(value, sorted_.weights * each / hits[-1], clusters, count)


def ratio_influence(above: Floats, below: Floats, clusters: Codes, count: int) -> Influence:
    """Σ above / Σ below over rows or groups: the mean of a loss (below: weights), GAUC, calibration, ...

    A cluster's part is (its above - value · its below) / Σ below. Entries that are NaN in `above` are out; clusters that
    give nothing to either sum do not count.
    """
    out = np.isnan(above)
    if out.any():
        above, below = np.where(out, 0.0, above), np.where(out, 0.0, below)
    total = float(below.sum())
    if not total > 0:
        return Influence(math.nan, np.full(count, math.nan), 0)
    value = float(above.sum() / total)
    return _influence(value, (above - value * below) / total, clusters, count, (above != 0) | (below != 0))


def mean_influence_of(values: Floats, weights: Floats, clusters: Codes, count: int) -> Influence:
    """Σ w x / Σ w: `ratio_influence` of a weighted mean; NaN values are out."""
    return ratio_influence(values * weights, weights, clusters, count)


def through(part: Influence, value: float, slope: float) -> Influence:
    """f(part), with f's value and derivative there: the chain rule, as for a root mean square."""
    return Influence(value, part.of * slope, part.clusters, part.method)


def entropy_influence(loss: Influence, rate: Influence) -> Influence:
    """Normalised entropy from the log loss and the base rate r: loss / H(r), dH/dr = log((1 - r) / r)."""
    r = rate.value
    if not 0 < r < 1:
        return Influence(math.nan, np.full(len(loss.of), math.nan), 0)
    entropy = -(r * math.log(r) + (1 - r) * math.log1p(-r))
    slope = -loss.value / entropy**2 * math.log((1 - r) / r)
    return Influence(loss.value / entropy, loss.of / entropy + slope * rate.of, loss.clusters, loss.method)


def _influence(
    value: float, each: Floats, clusters: Codes, count: int, used: NDArray[np.bool_] | None = None
) -> Influence:
    """Parts of rows summed per cluster; `used`: rows whose clusters count (default all)."""
    present = _present(clusters if used is None else clusters[used], count)
    if present < 2:
        return Influence(value, np.full(count, math.nan), present)
    return Influence(value, _corrected(sums(clusters, each, count), present), present)


def _present(clusters: Codes, count: int) -> int:
    """How many different ones there are."""
    there = np.zeros(count, dtype=np.bool_)
    there[clusters] = True
    return int(np.count_nonzero(there))


def _corrected(of: Floats, clusters: int) -> Floats:
    """Times sqrt(G / (G - 1)), for the variance of G deviations from a mean that was estimated from them."""
    return of * math.sqrt(clusters / (clusters - 1))
