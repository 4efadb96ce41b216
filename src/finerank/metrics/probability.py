"""How good predicted probabilities are: log loss, normalised entropy, calibration.

They take **logits**, not probabilities: a float32 probability is exactly 1 from a logit of 17 on, and its loss is lost.
All sums are float64; rows of weight 0 are outside the task's space and are left out before anything is looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from finerank.errors import UserError

Floats = NDArray[np.float64]


def observed(
    place: str, labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None
) -> tuple[NDArray[np.generic], NDArray[np.floating], Floats | None]:
    """Labels, scores and weights as checked arrays [n], without the rows of weight 0.

    Raises: UserError if shapes differ, a weight is negative or not finite, or a score is NaN.
    """
    y, s = np.asarray(labels), np.asarray(scores)
    if s.dtype.kind != "f":
        s = s.astype(np.float64)
    w = None if weights is None else np.asarray(weights, dtype=np.float64)
    if y.ndim != 1 or y.shape != s.shape or (w is not None and w.shape != y.shape):
        shapes = f"labels {y.shape}, scores {s.shape}" + ("" if w is None else f", weights {w.shape}")
        raise UserError(f"{place}: got {shapes}; accepted: one-dimensional arrays of one length")
    if w is not None:
        wrong = int(np.count_nonzero(~(w >= 0) | np.isinf(w)))
        if wrong:
            raise UserError(
                f"{place}: {wrong} of {len(w)} weights are negative, NaN or infinite; accepted: numbers >= 0"
            )
        if not w.all():
            y, s, w = y[w > 0], s[w > 0], w[w > 0]
    lost = int(np.count_nonzero(np.isnan(s)))
    if lost:
        raise UserError(
            f"{place}: {lost} of {len(s)} scores are NaN; accepted: numbers. The model has diverged, or its input "
            "holds NaN: look at the training loss and at the numeric features"
        )
    return y, s, w


def columns(
    place: str, labels: ArrayLike, logits: ArrayLike, weights: ArrayLike | None
) -> tuple[Floats, Floats, Floats | None]:
    """Labels in [0, 1] and finite logits, float64 [n], and weights, of the rows that weigh. Raises UserError else."""
    some_labels, some_logits, w = observed(place, labels, logits, weights)
    y, z = some_labels.astype(np.float64), some_logits.astype(np.float64)
    wrong = int(np.count_nonzero(~((y >= 0) & (y <= 1))))
    if wrong:
        raise UserError(f"{place}: {wrong} of {len(y)} labels are outside [0, 1] or NaN; give those rows weight 0")
    wrong = int(np.count_nonzero(np.isinf(z)))
    if wrong:
        raise UserError(f"{place}: {wrong} of {len(z)} logits are infinite; accepted: finite logits, see `logit`")
    return y, z, w


def _mean(values: Floats, weights: Floats | None) -> float:
    if not len(values):
        return float("nan")
    return float(values.mean() if weights is None else values @ weights / weights.sum())


def logit(probabilities: ArrayLike) -> Floats:
    """log(p / (1 - p)), for models that only give probabilities. p is kept eps of its own precision away from 0 and 1.

    >>> logit([0.5, 0.8]).round(4).tolist()
    [0.0, 1.3863]
    """
    p = np.asarray(probabilities)
    eps = float(np.finfo(p.dtype if p.dtype.kind == "f" else np.float64).eps)
    wrong = int(np.count_nonzero(~((p >= 0) & (p <= 1))))
    if wrong:
        raise UserError(f"logit: {wrong} of {p.size} values are no probabilities; accepted: [0, 1]. Are they logits?")
    p = np.clip(p.astype(np.float64), eps, 1 - eps)
    return np.asarray(np.log(p) - np.log1p(-p))


def logloss(labels: ArrayLike, logits: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Mean binary cross-entropy: Σ w [y log(1 + e^-z) + (1 - y) log(1 + e^z)] / Σ w, without overflow. NaN if empty.

    labels in [0, 1], logits, weights: [n].

    A coin costs log 2; a logit of log 3 says 3 to 1, which costs log(4/3) = .2877 when right and log 4 = 1.3863 when
    wrong, .8370 on average:

    >>> round(logloss([1, 0], [0.0, 0.0]), 4)
    0.6931
    >>> round(logloss([1, 0], [np.log(3), np.log(3)]), 4)
    0.837
    >>> logloss([0], [1000.0])
    1000.0
    """
    y, z, w = columns("logloss", labels, logits, weights)
    return _mean(y * np.logaddexp(0, -z) + (1 - y) * np.logaddexp(0, z), w)


def normalised_entropy(labels: ArrayLike, logits: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Log loss divided by that of always predicting the base rate: below 1 is better than knowing the rate only.

    He et al., ADKDD 2014. Unlike the log loss it can be compared between data of different rates. NaN if there is one
    class only.

    Half of four rows are positive, so the base costs log 2; the model says 3 to 1 and is right each time:
    log(4/3) / log 2 = .4150.

    >>> round(normalised_entropy([1, 0, 1, 0], np.log([3, 1 / 3, 3, 1 / 3])), 4)
    0.415
    """
    y, _, w = columns("normalised_entropy", labels, logits, weights)
    rate = _mean(y, w)
    if not 0 < rate < 1 or (y == 1).all():  # a weighted mean of ones may round to just below 1
        return float("nan")
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
    return float(logloss(labels, logits, weights) / entropy)


def calibration(labels: ArrayLike, logits: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Predicted over true positives, Σ w σ(z) / Σ w y: 1 is right, above 1 promises too much. NaN without positives.

    Four rows at a probability of .5 promise two positives; one came:

    >>> calibration([1, 0, 0, 0], [0.0, 0.0, 0.0, 0.0])
    2.0
    """
    y, z, w = columns("calibration", labels, logits, weights)
    true = _mean(y, w)
    return _mean(sigmoid(z), w) / true if true > 0 else float("nan")


def sigmoid(logits: Floats) -> Floats:
    """1 / (1 + e^-z) without overflow."""
    out: Floats = np.exp(-np.logaddexp(0, -logits))
    return out


def equal_mass_bins(logits: Floats, bins: int) -> NDArray[np.int64]:
    """[n]: the bin of each row, 0 ... bins - 1 with rising logits, of about equally many rows; equal logits share one.

    A boundary that would part equal logits moves to their nearer end, so there may be fewer bins than asked for. Moved to one
    end always, it would join a score that most rows share to its neighbours, and errors of the two would cancel.
    """
    if bins < 1:
        raise UserError(f"bins = {bins}; accepted: 1 or more")
    if not len(logits):
        return np.zeros(0, dtype=np.int64)
    n, rising = len(logits), np.sort(logits)
    ends = np.arange(1, bins) * n // bins
    left = np.searchsorted(rising, rising[ends], side="left")  # of the equal logits that stand at each boundary
    right = np.searchsorted(rising, rising[ends], side="right")
    ends = np.where(ends - left <= right - ends, left, right)
    # a bin begins at the smallest logit that is in it; at either end of all rows there is nothing to part
    return np.searchsorted(np.unique(rising[ends[(ends > 0) & (ends < n)]]), logits, side="right")


@dataclass(frozen=True)
class Reliability:
    """Bins of about equally many rows by rising prediction: mean prediction, observed rate, rows and weight, [B] each."""

    predicted: Floats
    observed: Floats
    rows: NDArray[np.int64]
    weight: Floats


def reliability(labels: ArrayLike, logits: ArrayLike, weights: ArrayLike | None = None, bins: int = 15) -> Reliability:
    """The reliability curve over equal-mass bins: what was promised against what came.

    Equal-mass and not equal-width: CTRs are small, and nine of ten equal-width bins would be empty or nearly so.

    Two bins of two rows: promised .2 and .8, one of two came in each.

    >>> curve = reliability([0, 1, 1, 0], logit([0.2, 0.2, 0.8, 0.8]), bins=2)
    >>> curve.predicted.round(4).tolist(), curve.observed.tolist()
    ([0.2, 0.8], [0.5, 0.5])
    """
    y, z, w = columns("reliability", labels, logits, weights)
    each = np.ones(len(y)) if w is None else w
    bin_ = equal_mass_bins(z, bins)
    rows = np.bincount(bin_)
    mass = np.bincount(bin_, each).astype(np.float64)
    there = rows > 0
    predicted, came = (np.bincount(bin_, each * values)[there] / mass[there] for values in (sigmoid(z), y))
    return Reliability(predicted, came, rows[there], mass[there])


def ece(labels: ArrayLike, logits: ArrayLike, weights: ArrayLike | None = None, bins: int = 15) -> float:
    """Expected calibration error: Σ_b (weight of bin b) |mean prediction - observed rate|, over equal-mass bins.

    0 is calibrated; NaN if there are no rows. Chance alone keeps it above 0: with n rows at a rate r, by about
    .8 sqrt(r (1 - r) bins / n), and the lower end of an interval goes down by as much. Naeini et al., AAAI 2015;
    equal-mass bins: Nixon et al., CVPR workshops 2019.

    Two bins: promised .2 and .8, half came in each; both are off by .3.

    >>> round(ece([0, 1, 1, 0], logit([0.2, 0.2, 0.8, 0.8]), bins=2), 4)
    0.3
    """
    curve = reliability(labels, logits, weights, bins)
    if not len(curve.rows):
        return float("nan")
    return float(curve.weight @ np.abs(curve.predicted - curve.observed) / curve.weight.sum())


def downsampled(logits: ArrayLike, rate: float) -> Floats:
    """True logits of a model that was trained on all positives but only this share of the negatives: z + log(rate).

    rate  in (0, 1]: the share of negatives that was kept. In probabilities: q = p / (p + (1 - p) / rate), He et al., ADKDD
          2014, section 6.3. Not for models trained with weights 1 / rate on the kept negatives: they are calibrated.

    With one negative in ten kept, even odds are odds of one to ten:

    >>> np.exp(downsampled([0.0], 0.1)).round(4).tolist()
    [0.1]
    """
    if not 0 < rate <= 1:
        raise UserError(
            f"downsampled: rate = {rate}; accepted: above 0, at most 1, the share of negatives that was kept"
        )
    return np.asarray(np.asarray(logits, dtype=np.float64) + np.log(rate))
