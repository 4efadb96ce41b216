"""All metrics of one head on some rows, each with the influence of every user.

n rows · G clusters (users) · L lists (users or requests)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from finerank.evaluation.document import By
from finerank.metrics import lists
from finerank.metrics.estimate import Estimate, Influence, resampled
from finerank.metrics.influence import (
    auc_influence,
    entropy_influence,
    mean_influence_of,
    pr_auc_influence,
    ratio_influence,
    through,
)
from finerank.metrics.probability import equal_mass_bins
from finerank.metrics.ranking import Weighting, group_weights, of_rankings
from finerank.metrics.regression import odds_losses, pair_parts, watched_rankings
from finerank.metrics.runs import Rankings, Runs, rankings, runs, sums
from finerank.runtime.link import Link, predicted

K = 10
SAMPLED = 9
ECE_BINS = 15
ECE_DRAWS = 200
BOUNDS = {
    "logloss": (0.0, math.inf),
    "ne": (0.0, math.inf),
    "calibration": (0.0, math.inf),
    "odds_loss": (0.0, math.inf),
    "rmse": (0.0, math.inf),
    "mae": (0.0, math.inf),
    "r2": (-math.inf, 1.0),
}
"""Where a metric's values lie, if not between 0 and 1."""
OVER_LISTS = (f"ndcg@{K}", "mrr", f"hr@{K}", f"map@{K}")
"""Metrics that are means over lists with a positive, of two rows or more."""


@dataclass(frozen=True)
class HeadRows:
    """The rows of a head's space, and who they belong to.

    logits    float64 [n]; labels float64 [n]; weights float64 [n] > 0, or None where all are 1
    clusters  int64 [n] codes 0 ... G - 1;  lists: int64 [n] codes 0 ... L - 1
    owner     int64 [L]: the cluster of each list
    """

    link: Link
    labels: NDArray[np.float64]
    logits: NDArray[np.float64]
    weights: NDArray[np.float64] | None
    clusters: NDArray[np.int64]
    lists: NDArray[np.int64]
    owner: NDArray[np.int64]

    @staticmethod
    def of(
        link: Link,
        labels: NDArray[np.floating],
        logits: NDArray[np.floating],
        weights: NDArray[np.floating],
        users: NDArray[np.int64],
        requests: NDArray[np.int64],
        by: By = "user",
    ) -> HeadRows:
        """From the columns of a split, all [n]: rows of weight 0 are left out. users, requests: any integers."""
        inside = weights != 0
        w = weights[inside].astype(np.float64)
        clusters = dense(users[inside])
        groups = clusters if by == "user" else dense(requests[inside])
        owner = np.zeros(int(groups.max()) + 1 if len(groups) else 0, dtype=np.int64)
        owner[groups] = clusters
        return HeadRows(
            link,
            labels[inside].astype(np.float64),
            logits[inside].astype(np.float64),
            None if bool((w == 1).all()) else w,
            clusters,
            groups,
            owner,
        )

    def take(self, rows: NDArray[np.int64], weights: NDArray[np.float64] | None = None) -> HeadRows:
        """Some of the rows, or all of them with other weights."""
        w = self.weights if weights is None else weights
        owner_of = self.clusters[rows]
        groups = dense(self.lists[rows])
        clusters = dense(owner_of)
        owner = np.zeros(int(groups.max()) + 1 if len(groups) else 0, dtype=np.int64)
        owner[groups] = clusters
        return HeadRows(
            self.link, self.labels[rows], self.logits[rows], None if w is None else w[rows], clusters, groups, owner
        )

    @cached_property
    def count(self) -> int:
        """G."""
        return int(self.clusters.max()) + 1 if len(self.clusters) else 0

    @cached_property
    def each(self) -> NDArray[np.float64]:
        """[n] weights, ones where none are given."""
        return np.ones(len(self.labels)) if self.weights is None else self.weights

    @cached_property
    def runs(self) -> Runs:
        """All rows by score, sorted once."""
        return runs("auc", self.labels, self.logits, self.weights)

    @cached_property
    def rankings(self) -> Rankings:
        """Rows within their lists by score, sorted once."""
        return rankings(self.labels, self.logits, self.lists, self.weights)

    @cached_property
    def plain(self) -> Rankings:
        """`rankings` with all rows weighing alike, as places in a list are counted."""
        return self.rankings if self.weights is None else rankings(self.labels, self.logits, self.lists)

    @cached_property
    def predictions(self) -> NDArray[np.float64]:
        """[n] the link applied."""
        return predicted(self.link, self.logits)


def dense(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Any integers as 0, 1, 2, ... in their order, without a sort where they lie close."""
    if not len(codes):
        return codes.astype(np.int64)
    low, span = int(codes.min()), int(codes.max()) - int(codes.min()) + 1
    if span > 8 * len(codes) + 1_000:
        return np.asarray(np.unique(codes, return_inverse=True)[1], dtype=np.int64)
    there = np.zeros(span, dtype=np.bool_)
    there[codes - low] = True
    return np.asarray((np.cumsum(there) - 1)[codes - low], dtype=np.int64)


def influences(rows: HeadRows) -> dict[str, Influence]:
    """Every metric that has a derivative, in the order of `document.METRICS`."""
    return _binary(rows) if rows.link == "sigmoid" else _regression(rows)


def estimates(rows: HeadRows, unit: str = "users") -> dict[str, Estimate]:
    """Every metric of a head with its interval. unit: what clusters are, for people."""
    out = {}
    judged = lists.lists_judged(rows.plain) if rows.link == "sigmoid" else 0
    for name, found in influences(rows).items():
        out[name] = found.estimate(*BOUNDS.get(name, (0.0, 1.0)), unit=unit)
        if name in OVER_LISTS:
            which = f"{judged:,} of {len(rows.owner):,} lists: those with a positive, of two rows and more"
            # without any there is no interval to tell of
            out[name] = replace(out[name], how=f"{which}; {out[name].how}" if judged else which)
        if name == "calibration":
            out["ece"] = _ece(rows, unit)
    return out


def _binary(rows: HeadRows) -> dict[str, Influence]:
    y, z, w, clusters, count = rows.labels, rows.logits, rows.each, rows.clusters, rows.count
    out = {"auc": auc_influence(rows.runs, clusters, count)}
    each = of_rankings(rows.rankings)
    weightings: dict[str, Weighting] = {"gauc": "impressions", "gauc_clicks": "clicks", "gauc_equal": "equal"}
    for name, weighting in weightings.items():
        out[name] = mean_influence_of(each.auc, group_weights(each, weighting), rows.owner, count)
    out["pr_auc"] = pr_auc_influence(rows.runs, clusters, count)
    loss = y * np.logaddexp(0, -z) + (1 - y) * np.logaddexp(0, z)
    out["logloss"] = mean_influence_of(loss, w, clusters, count)
    out["ne"] = entropy_influence(out["logloss"], mean_influence_of(y, w, clusters, count))
    out["calibration"] = ratio_influence(w * rows.predictions, w * y, clusters, count)
    plain = rows.plain
    per_list = (
        lists.ndcg(plain, K),
        lists.reciprocal_rank(plain),
        lists.hit_rate(plain, K),
        lists.average_precision(plain, K),
        lists.sampled_recall(plain, SAMPLED),
    )
    for name, values in zip((*OVER_LISTS, "recall@1"), per_list, strict=True):
        out[name] = mean_influence_of(values, np.ones(len(values)), rows.owner, count)
    return out


def _regression(rows: HeadRows) -> dict[str, Influence]:
    y, w, clusters, count = rows.labels, rows.each, rows.clusters, rows.count
    error = rows.predictions - y
    out = {
        "rmse": rmse_influence(rows),
        "mae": mean_influence_of(np.abs(error), w, clusters, count),
    }
    # equal labels are their own mean, without rounding: they do not vary, and there is no R²
    mean = math.nan if not len(y) else float(y[0]) if np.ptp(y) == 0 else float(w @ y / w.sum())
    unexplained = ratio_influence(w * error**2, w * (y - mean) ** 2, clusters, count)
    out["r2"] = through(unexplained, 1 - unexplained.value, -1.0)
    if len(y) and y.min() == 0:  # some rows are not watched, bought, ...: there are pairs
        lost, total = pair_parts(watched_rankings(y, rows.logits, rows.lists))
        out["pair_loss"] = ratio_influence(lost, total, rows.owner, count)
    if rows.link == "odds":  # first, for it decides: see `Head.judge`
        out = {"odds_loss": mean_influence_of(odds_losses(y, rows.logits), w, clusters, count)} | out
    return out


def rmse_influence(rows: HeadRows) -> Influence:
    """The root of the mean squared error, with what every user does to it."""
    squared = mean_influence_of((rows.predictions - rows.labels) ** 2, rows.each, rows.clusters, rows.count)
    root = math.sqrt(squared.value)
    return through(squared, root, 1 / (2 * root) if root > 0 else math.nan)


def _ece(rows: HeadRows, unit: str) -> Estimate:
    """ECE has a kink wherever a bin is calibrated, so users are resampled; the bins stay.

    Chance adds to it, for a bin is off on either side: nothing where bins are far off, and sqrt(2/π) of each bin's error
    where the model is calibrated, which may be all there is. How much of that it is nobody knows, so the interval goes down
    by all of it: without, it held the truth for one calibrated model in a hundred.
    """
    if not len(rows.labels):
        return Estimate(value=math.nan)
    bins, w = equal_mass_bins(rows.logits, ECE_BINS), rows.each
    size = int(bins.max()) + 1
    gap = sums(rows.clusters * size + bins, w * (rows.predictions - rows.labels), rows.count * size)
    gap, weight = gap.reshape(rows.count, size), sums(rows.clusters, w, rows.count)
    columns = np.column_stack([gap, weight])

    def statistic(totals: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore"):  # of few users, none may be drawn
            out: NDArray[np.float64] = np.abs(totals[:, :-1]).sum(axis=1) / totals[:, -1]
        return out

    value = float(statistic(columns.sum(axis=0, keepdims=True))[0])
    if rows.count < 2:
        return Estimate(value=value)
    se = float(np.nanstd(resampled(columns, statistic, ECE_DRAWS), ddof=1))
    by_user = (gap - np.outer(weight, gap.sum(axis=0) / weight.sum())) / weight.sum()  # what each does to each bin
    chance = math.sqrt(2 / math.pi) * float(np.sqrt((by_user**2).sum(axis=0)).sum())
    method = f"{ECE_DRAWS} weighted resamplings (the lower end less the {chance:.4f} that chance may have added)"
    of = np.full(rows.count, se / math.sqrt(rows.count))  # what each user does to it is not known
    found = Influence(value, of, rows.count, method).estimate(0.0, 1.0, unit)
    return replace(found, low=max(0.0, found.low - chance))
