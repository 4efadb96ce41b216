"""How good the top of each list is: NDCG@k, MRR, HR@k, MAP@k, sampled recall@1. A list is a request's or a user's rows.

**Ties.** Every metric is its expected value when tied rows are put into random order. So it is a number, not a matter of
luck; a model of constant scores gets what chance gets; and no order of the input can flatter it. (The pessimistic rule,
positives last, would call a model of constant scores worse than chance.) It costs nothing: within a run of equal scores
the expectation is a closed form (McSherry and Najork, ECIR 2008; checked here against all orders).

Each function takes `rankings(labels, scores, lists)`, so that one sort serves them all, and gives the value of every
list, float64 [G] in the order of `Rankings.groups`: NaN for a list without a positive, in which nothing can be found, and
for a list of one row, which any model puts first. The metric is their mean, `mean_over_lists`; longer lists of positives
alone count, with 1, as is usual. Rows weigh alike: a rank is no sum.

G lists · K runs of equal scores in a list
"""

from __future__ import annotations

import math

import numpy as np

from finerank.errors import UserError
from finerank.metrics.runs import Floats, Ints, Rankings, over


def mean_over_lists(per_list: Floats) -> float:
    """The mean over the lists that have a value: a positive, and more than one row. NaN if none has.

    >>> mean_over_lists(np.array([1.0, np.nan, 0.5]))
    0.75
    """
    used = ~np.isnan(per_list)
    return float(per_list[used].mean()) if used.any() else float("nan")


def ndcg(ranked: Rankings, k: int | None = 10) -> Floats:
    """DCG@k / the best possible DCG@k, DCG@k = Σ_{i <= k} y_i / log2(i + 1), i the place from the top. [G]

    Järvelin and Kekäläinen, TOIS 2002; labels 0 and 1. k: None takes whole lists.

    The one positive is second of three: 1 / log2(3) = .6309. Tied with the first: (1 + .6309) / 2.

    >>> from finerank.metrics.runs import rankings
    >>> ndcg(rankings([0, 1, 0], [0.9, 0.5, 0.1], [7, 7, 7])).round(4).tolist()
    [0.6309]
    >>> ndcg(rankings([0, 1, 0], [0.9, 0.9, 0.1], [7, 7, 7])).round(4).tolist()
    [0.8155]
    """
    high, low, top = _places(ranked, k)
    gain = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(top) + 2.0))])  # of the first 0, 1, 2, ... places
    found = ranked.sums(ranked.up / ranked.size * (gain[low] - gain[high]))
    return over(found, gain[np.minimum(_positives(ranked), top)])


def hit_rate(ranked: Rankings, k: int = 10) -> Floats:
    """The chance that at least one of the first k places holds a positive: HR@k. [G]

    One of four rows is positive, and ties with one other for the first place:

    >>> from finerank.metrics.runs import rankings
    >>> hit_rate(rankings([1, 0, 0, 0], [0.9, 0.9, 0.2, 0.1], [7, 7, 7, 7]), k=1).tolist()
    [0.5]
    """
    high, low, _ = _places(ranked, k)
    none = _none_of(ranked.size, ranked.up, low - high)
    missed = np.multiply.reduceat(none, ranked.first) if len(none) else none
    return np.where(_positives(ranked) > 0, 1 - missed, np.nan)


def reciprocal_rank(ranked: Rankings) -> Floats:
    """1 / the place of the first positive; its mean is MRR. [G]

    Positives at places 2 and 3: 1/2. Tied for all three places with one negative: 1 with chance 2/3, else 1/2.

    >>> from finerank.metrics.runs import rankings
    >>> reciprocal_rank(rankings([0, 1, 1], [0.9, 0.5, 0.1], [7, 7, 7])).tolist()
    [0.5]
    >>> reciprocal_rank(rankings([0, 1, 1], [0.5, 0.5, 0.5], [7, 7, 7])).round(4).tolist()
    [0.8333]
    """
    judged = ranked.spread(_positives(ranked)) > 0
    # [G'] each list's best run with a positive
    first = np.flatnonzero(judged & (ranked.up > 0) & (ranked.after(ranked.up) == 0))
    size, up, above = ranked.size[first], ranked.up[first], ranked.above[first]
    places = size - up + 1  # where in its run the first positive may stand
    run = np.repeat(np.arange(len(first)), places)
    ahead = np.arange(len(run)) - np.repeat(np.cumsum(places) - places, places)  # negatives of the run before it
    # P(ahead negatives, then a positive) = Π_{j < ahead} (size - up - j) / (size - j) · up / (size - ahead)
    chance = _none_of(size[run], up[run], ahead) * up[run] / (size[run] - ahead)
    out = np.full(len(ranked.groups), np.nan)
    owner = np.searchsorted(ranked.first, first, side="right") - 1
    out[owner] = np.bincount(run, chance / (above[run] + 1 + ahead), len(first))
    return out


def average_precision(ranked: Rankings, k: int | None = 10) -> Floats:
    """AP@k = Σ_{i <= k} y_i · (positives among the first i) / i, over min(positives, k); its mean is MAP@k. [G]

    k: None takes whole lists. Dividing by min(positives, k) makes 1 reachable for every list.

    Positives at places 1 and 3: (1/1 + 2/3) / 2.

    >>> from finerank.metrics.runs import rankings
    >>> average_precision(rankings([1, 0, 1], [0.9, 0.5, 0.1], [7, 7, 7])).round(4).tolist()
    [0.8333]
    """
    high, low, top = _places(ranked, k)
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1.0, top + 1))])
    span = harmonic[low] - harmonic[high]  # Σ 1/i over the run's places
    # at the j-th place of a run (from 0), given a positive there: 1 + those above + j (up - 1) / (size - 1) expected
    more = np.divide(ranked.up - 1, ranked.size - 1, out=np.zeros(len(span)), where=ranked.size > 1)
    along = (low - high) - (ranked.above + 1) * span  # Σ j/i
    found = ranked.up / ranked.size * ((ranked.after(ranked.up) + 1) * span + more * along)
    return over(ranked.sums(found), np.minimum(_positives(ranked), top))


def sampled_recall(ranked: Rankings, negatives: int = 99) -> Floats:
    """The chance that a positive is first among itself and `negatives` negatives of its list, drawn without replacement.

    Recall@1 against sampled negatives, as the expected value over all draws: no random numbers, no luck. A list's value
    is the mean over its positives [G]; a list with fewer negatives gives all it has, one without any is NaN. It depends on
    how many are drawn and from where: compare only where both are equal (Krichene and Rendle, KDD 2020).

    The positive beats two of three negatives. One drawn: 2/3. Two drawn: 1/3.

    >>> from finerank.metrics.runs import rankings
    >>> one = rankings([0, 1, 0, 0], [0.9, 0.5, 0.2, 0.1], [7, 7, 7, 7])
    >>> sampled_recall(one, 1).round(4).tolist(), sampled_recall(one, 2).round(4).tolist()
    ([0.6667], [0.3333])
    """
    if negatives < 1:
        raise UserError(f"sampled_recall: negatives = {negatives}; accepted: 1 or more")
    down, below = ranked.down.astype(np.int64), ranked.before(ranked.down).astype(np.int64)
    others = ranked.sums(down)
    drawn = ranked.spread(np.minimum(others, negatives))
    # Σ_j C(down, j) C(below, drawn - j) / (j + 1) = (C(down + below + 1, drawn + 1) - C(below, drawn + 1)) / (down + 1)
    log_all = _log_choose(ranked.spread(others), drawn)
    either = np.exp(_log_choose(down + below + 1, drawn + 1) - log_all)
    chance = (either - np.exp(_log_choose(below, drawn + 1) - log_all)) / (down + 1)
    found = ranked.sums(ranked.up * chance)
    return over(found, np.where(others > 0, ranked.sums(ranked.up), 0))


def lists_judged(ranked: Rankings) -> int:
    """How many lists have a value: a positive, and more than one row.

    >>> from finerank.metrics.runs import rankings
    >>> lists_judged(rankings([1, 0, 1], [0.9, 0.5, 0.1], [7, 7, 8]))
    1
    """
    return int(np.count_nonzero(_positives(ranked)))


# ------------------------------------------------------------------------------------------------ helpers


def _places(ranked: Rankings, k: int | None) -> tuple[Ints, Ints, int]:
    """Places above each run and with it [K], cut at k; and k, at most the longest list. Errors for weighted rankings."""
    if k is not None and k < 1:
        raise UserError(f"k = {k}; accepted: 1 or more, None for whole lists")
    if ranked.up.dtype.kind == "f":
        raise UserError("rankings with weights; accepted: without, for a rank is no sum. Weigh the lists instead")
    longest = int(ranked.rows.max()) if len(ranked.rows) else 1
    top = longest if k is None else min(k, longest)
    return np.minimum(ranked.above, top), np.minimum(ranked.above + ranked.size, top), top


def _positives(ranked: Rankings) -> Ints:
    """[G]: positives of each list; 0 for a list of one row, whose order no model can get wrong."""
    out: Ints = np.where(ranked.rows > 1, ranked.sums(ranked.up), 0)
    return out


def _none_of(size: Ints, up: Ints, drawn: Ints) -> Floats:
    """The chance that `drawn` of `size` rows hold none of the `up` positives: C(size - up, drawn) / C(size, drawn)."""
    log = _log_choose(size - up, drawn) - _log_choose(size, drawn)
    out: Floats = np.where(up == 0, 1.0, np.exp(log))
    return out


def _log_choose(n: Ints, k: Ints) -> Floats:
    """log C(n, k), -inf where k > n."""
    most = int(n.max()) if len(n) else 0
    log = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1.0, most + 1)))])  # log n!
    fits = k <= n
    inside = np.where(fits, k, 0)
    out: Floats = np.where(fits, log[n] - log[inside] - log[n - inside], -math.inf)
    return out
