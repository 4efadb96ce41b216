"""How well scores order rows: AUC, AUC within groups (GAUC), and the relative improvement of one over another.

Exact, not binned: a pair of a positive and a negative counts 1 if the positive scores higher, one half if they tie.
(The DIN authors' code counts a tie as 0: a model that gives constant scores gets 0 there and .5 here.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from finerank.errors import UserError, nearest
from finerank.metrics.probability import observed
from finerank.metrics.runs import Rankings, positives, rankings

Weighting = Literal["impressions", "clicks", "equal"]


def auc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """The chance that a positive scores above a negative, ties one half. O(n log n).

    labels   [n], 0 or 1 (numbers or booleans)
    scores   [n], any numbers that order the rows: logits, probabilities; infinite ones are allowed
    weights  [n], >= 0: a pair weighs the product of its rows' weights; rows of weight 0 are left out

    NaN, without a warning, if there are no rows or one class only: there is nothing to order, and .5 would be a claim.
    Raises: UserError for NaN scores (says how many), other labels, shapes that differ.

    Positives .8, .4; negatives .4, .1: of four pairs three are right and one ties.

    >>> auc([1, 1, 0, 0], [0.8, 0.4, 0.4, 0.1])
    0.875
    >>> auc([1, 1], [0.3, 0.7])
    nan
    """
    y, s, w = observed("auc", labels, scores, weights)
    positive = positives("auc", y)
    ups, downs = s[positive], s[~positive]
    if not len(ups) or not len(downs):
        return float("nan")
    if w is None:  # integers: exact, whatever the order of summation
        ups, downs = np.sort(ups), np.sort(downs)
        twice = int(np.searchsorted(downs, ups, "left").sum()) + int(np.searchsorted(downs, ups, "right").sum())
        return twice / 2 / (len(ups) * len(downs))
    up_order, down_order = np.argsort(ups), np.argsort(downs)  # sorted needles as well: the searches then stay in cache
    ups, downs = ups[up_order], downs[down_order]
    w_ups, below = w[positive][up_order], np.concatenate([[0.0], np.cumsum(w[~positive][down_order])])
    beaten = (below[np.searchsorted(downs, ups, "left")] + below[np.searchsorted(downs, ups, "right")]) / 2
    return float(w_ups @ beaten / (w_ups.sum() * below[-1]))


@dataclass(frozen=True)
class GroupAUC:
    """AUC of each group, in ascending order of the groups' keys.

    groups                 [G] the keys
    auc                    float64 [G]; NaN where a group has one class only
    impressions, clicks    [G] rows and positive rows: numbers (int64), or sums of their weights (float64)
    """

    groups: NDArray[Any]
    auc: NDArray[np.float64]
    impressions: NDArray[Any]
    clicks: NDArray[Any]


@dataclass(frozen=True)
class GAUC:
    """Weighted mean of the AUC within groups, and how much of the data it speaks for.

    value                      NaN if no group can be used
    groups_used                groups with both classes
    groups_single_class        groups left out, of the sum and of the weights
    share_of_impressions_used  rows in the groups used / all rows
    """

    value: float
    groups_used: int
    groups_single_class: int
    share_of_impressions_used: float


def per_group_auc(
    labels: ArrayLike, scores: ArrayLike, groups: ArrayLike, weights: ArrayLike | None = None
) -> GroupAUC:
    """`auc` of every group at once: one sort, no loop over groups.

    labels, scores, weights  [n] as for `auc`
    groups                   [n] keys: integers or texts. Not floats, which merge large ids

    >>> per_group_auc([1, 0, 1, 1], [2.0, 1.0, 0.0, 5.0], ["ann", "ann", "bob", "ann"]).auc.tolist()
    [1.0, nan]
    """
    return of_rankings(rankings(labels, scores, groups, weights, "per_group_auc"))


def of_rankings(ranked: Rankings) -> GroupAUC:
    """`per_group_auc` of rows that are sorted already."""
    up, down = ranked.up, ranked.down
    twice = ranked.sums(up * (2 * ranked.before(down) + down))  # [G] twice the pairs won
    clicks, others = ranked.sums(up), ranked.sums(down)
    pairs = clicks * others
    value = np.full(len(ranked.groups), np.nan)
    np.divide(twice, 2 * pairs, out=value, where=pairs > 0)
    return GroupAUC(ranked.groups, value, clicks + others, clicks)


def gauc(
    labels: ArrayLike,
    scores: ArrayLike,
    groups: ArrayLike,
    weighting: Weighting = "impressions",
    weights: ArrayLike | None = None,
) -> GAUC:
    """GAUC = Σ_g w_g AUC_g / Σ_g w_g over the groups (users, requests) that have both classes.

    Zhou et al. (DIN), KDD 2018, section 6.2. It measures what ranking does: order the rows of one user.

    weighting  "impressions": w_g = rows of the group, as in the paper · "clicks": its positives · "equal": 1
    weights    of rows, as for `auc`: a group's impressions and clicks are then sums of weights

    Raises: UserError as `auc` and `per_group_auc`, or for another weighting.

    User 1 (three rows) has AUC 1/2, user 2 (two rows) has AUC 1, user 3 has no click: (3 · .5 + 2 · 1) / 5 = .7.

    >>> result = gauc([1, 0, 0, 1, 0, 0], [0.5, 0.4, 0.6, 0.9, 0.1, 0.3], [1, 1, 1, 2, 2, 3])
    >>> round(result.value, 6), result.groups_used, result.groups_single_class
    (0.7, 2, 1)
    >>> round(result.share_of_impressions_used, 4)  # five of six rows
    0.8333
    """
    each = per_group_auc(labels, scores, groups, weights)
    weight, used = group_weights(each, weighting), ~np.isnan(each.auc)
    if not used.any():
        return GAUC(float("nan"), 0, len(used), 0.0)
    return GAUC(
        value=float(each.auc[used] @ weight[used] / weight.sum()),
        groups_used=int(used.sum()),
        groups_single_class=int((~used).sum()),
        share_of_impressions_used=float(each.impressions[used].sum() / each.impressions.sum()),
    )


def group_weights(each: GroupAUC, weighting: Weighting) -> NDArray[np.float64]:
    """[G] what each group weighs in GAUC; 0 where it has one class only."""
    if weighting not in ("impressions", "clicks", "equal"):
        raise UserError(f"gauc: weighting {weighting!r}; {nearest(weighting, ('impressions', 'clicks', 'equal'))}")
    used = ~np.isnan(each.auc)
    of = {"impressions": each.impressions, "clicks": each.clicks, "equal": np.ones(len(used))}[weighting]
    return np.where(used, of, 0).astype(np.float64)


def rela_impr(auc: float, base: float) -> float:
    """RelaImpr in per cent: how much more of the way from chance (.5) a model goes than the base does.

    ((auc - .5) / (base - .5) - 1) · 100; Yan et al., ICML 2014; DIN section 6.2. NaN where the base is chance itself or
    below it: it has gone no way, and a better model would get a negative number.

    >>> round(rela_impr(0.8818, 0.8624), 2)  # DIN over the base model on Amazon (Electronics), as first published
    5.35
    """
    return ((auc - 0.5) / (base - 0.5) - 1) * 100 if base > 0.5 else float("nan")
