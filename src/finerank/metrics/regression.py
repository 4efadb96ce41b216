"""How good predicted numbers are: RMSE, MAE, R², the loss of odds, and the share of watch time that is ranked wrongly.

All sums are float64; rows of weight 0 are left out before anything is looked at. NaN, without a warning, if no row is left.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from finerank.errors import UserError
from finerank.metrics.probability import observed
from finerank.metrics.runs import Floats, Rankings, rankings


def errors(
    place: str, labels: ArrayLike, predictions: ArrayLike, weights: ArrayLike | None
) -> tuple[Floats, Floats, Floats]:
    """(labels, predictions - labels, weights), float64 [n], of the rows that weigh. UserError if one is not finite."""
    y, p, w = observed(place, labels, predictions, weights)
    truth, predicted = y.astype(np.float64), p.astype(np.float64)
    for name, values in (("labels", truth), ("predictions", predicted)):
        wrong = int(np.count_nonzero(~np.isfinite(values)))
        if wrong:
            raise UserError(f"{place}: {wrong} of {len(values)} {name} are not finite; give such rows weight 0")
    return truth, predicted - truth, np.ones(len(truth)) if w is None else w


def rmse(labels: ArrayLike, predictions: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Root of the mean squared error: sqrt(Σ w (p - y)² / Σ w), in the unit of the label.

    Errors 3 and 4: sqrt((9 + 16) / 2).

    >>> round(rmse([0, 0], [3, 4]), 4)
    3.5355
    """
    _, e, w = errors("rmse", labels, predictions, weights)
    return float(np.sqrt(w @ e**2 / w.sum())) if len(e) else float("nan")


def mae(labels: ArrayLike, predictions: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Mean absolute error: Σ w |p - y| / Σ w. Less moved by a few large errors than `rmse`.

    >>> mae([0, 0], [3, -4])
    3.5
    """
    _, e, w = errors("mae", labels, predictions, weights)
    return float(w @ np.abs(e) / w.sum()) if len(e) else float("nan")


def r2(labels: ArrayLike, predictions: ArrayLike, weights: ArrayLike | None = None) -> float:
    """1 - Σ w (p - y)² / Σ w (y - ȳ)²: the share of the labels' variance that is predicted.

    1 is perfect, 0 is what always predicting the mean gets, below 0 is worse. NaN where all labels are equal.

    Labels 1, 2, 3 vary by 2 around their mean; the errors are 0, 0 and 1:

    >>> r2([1, 2, 3], [1, 2, 4])
    0.5
    """
    y, e, w = errors("r2", labels, predictions, weights)
    # of equal labels the mean may be off by a rounding: they do not vary all the same
    spread = float(w @ (y - w @ y / w.sum()) ** 2) if len(y) and np.ptp(y) > 0 else 0.0
    return float(1 - w @ e**2 / spread) if spread > 0 else float("nan")


def odds_losses(labels: Floats, logits: Floats) -> Floats:
    """[n]: the loss of each row, see `odds_loss`. Raises UserError for labels below 0, which would pass for none at all."""
    if len(labels) and not labels.min() >= 0:
        wrong = int(np.count_nonzero(~(labels >= 0)))
        raise UserError(f"odds_loss: {wrong} of {labels.size} labels are negative or NaN; accepted: 0 or more")
    return np.where(labels > 0, labels * np.logaddexp(0, -logits), np.logaddexp(0, logits))


def odds_loss(labels: ArrayLike, logits: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Mean loss of weighted logistic regression: y log(1 + e^-z) of a row with y > 0, log(1 + e^z) of one without.

    Its odds e^z learn Σ y / (rows with y = 0), which ranks by the expected label but is not on its scale: an RMSE would judge
    the scale. Covington et al., RecSys 2016, section 4.2. labels [n] of at least 0, logits [n]. NaN if empty.

    Even odds cost log 2 a minute watched, and log 2 where nothing was watched, 4 log 2 / 2 here:

    >>> round(odds_loss([3, 0], [0.0, 0.0]), 4)
    1.3863
    """
    y, e, w = errors("odds_loss", labels, logits, weights)
    return float(w @ odds_losses(y, e + y) / w.sum()) if len(y) else float("nan")


def pair_loss(watched: ArrayLike, scores: ArrayLike, groups: ArrayLike) -> float:
    """Watch-time-weighted pair loss: of the watch time in pairs of one list, the share whose pair is in wrong order.

    A pair is a row that was watched (y > 0) and one that was not (y = 0) of the same request or user, and weighs y; it is
    wrong if the unwatched one scores higher, half wrong if they tie. Covington et al., RecSys 2016, section 4.3.

    watched  [n] seconds, or any gain, 0 for none · scores [n] · groups [n] as for `gauc`. NaN if there is no pair.

    90 seconds scored above the unwatched row, 10 below it: 10 of 100 are lost.

    >>> pair_loss([90, 0, 10], [0.9, 0.5, 0.1], [1, 1, 1])
    0.1
    """
    lost, total = pair_parts(watched_rankings(watched, scores, groups))
    return float(lost.sum() / total.sum()) if total.sum() > 0 else float("nan")


def watched_rankings(watched: ArrayLike, scores: ArrayLike, groups: ArrayLike) -> Rankings:
    """Rows sorted within their groups, positives weighing what was watched."""
    y = np.asarray(watched, dtype=np.float64)
    wrong = int(np.count_nonzero(~(y >= 0) | np.isinf(y)))
    if wrong:
        raise UserError(f"pair_loss: {wrong} of {y.size} labels are negative, NaN or infinite; accepted: 0 or more")
    return rankings(y > 0, scores, groups, np.where(y > 0, y, 1.0), "pair_loss")


def pair_parts(ranked: Rankings) -> tuple[Floats, Floats]:
    """[G], [G]: watch time of the pairs of each group that are in wrong order, and of all its pairs."""
    lost = ranked.sums(ranked.up * (ranked.after(ranked.down) + ranked.down / 2))
    return lost, ranked.sums(ranked.up) * ranked.sums(ranked.down)
