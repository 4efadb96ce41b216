"""Beyond accuracy: what the tops of the lists are like, whoever is right about them.

A top is the first k rows of a list (a request's, or a user's): `top`. Functions take columns of the rows of all tops: `lists`
int64 [m], codes 0 ... L - 1, and what the metric is about. Most give a value per list, float64 [L], NaN for a list that
has none; the metric is their mean, `lists.mean_over_lists`, and its interval is over users. Coverage and Gini are of all
tops together; their intervals are over users too, `coverage_se` and `gini_influence`. None has a best value: a shop with one
item is as wrong as a random page.

n rows · m rows of tops · L lists · I items · F attributes · D width
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from finerank.errors import UserError
from finerank.metrics.estimate import Influence
from finerank.metrics.runs import Floats, Ints, distinct, moves_on, over, sums


def top(scores: ArrayLike, lists: Ints, k: int = 10) -> Ints:
    """The rows of every list's top, int64 [m]: list after list, best first. Lists shorter than k are whole.

    Equal scores: in an order that is random, and the same every time; the order of the file may hold the labels.

    >>> top([0.1, 0.9, 0.5, 0.3], np.array([7, 7, 7, 4]), k=2).tolist()
    [3, 1, 2]
    """
    if k < 1:
        raise UserError(f"k = {k}; accepted: 1 or more")
    s = np.asarray(scores, dtype=np.float64)
    chance = np.random.default_rng(0).permutation(len(s))
    order = np.lexsort((chance, -s, lists))
    first = np.flatnonzero(moves_on(lists[order]))
    place = np.arange(len(s)) - np.repeat(first, np.diff(first, append=len(s)))
    out: Ints = order[place < k].astype(np.int64)
    return out


# ------------------------------------------------------------------------------------------------ of all tops


def coverage(items: Ints, catalogue: int) -> float:
    """Distinct items in all tops / items in the catalogue.

    >>> coverage(np.array([3, 3, 8, 3]), catalogue=10)
    0.2
    """
    return len(distinct(items)) / catalogue if catalogue else float("nan")


def coverage_se(items: Ints, clusters: Ints, catalogue: int) -> float:
    """Standard error of `coverage`, users (clusters, int64 [m] codes) being the sample and the catalogue given.

    It is about what as many other users would be shown by the same model, not about all users there are: more users see
    more items, so coverages compare only at like numbers of users. Drawing users again with replacement would not do: a draw
    holds 63 % of them, so fewer items, and the draws lie below the value.

    With f_S the items that exactly the users S have, the variance of the number of distinct items is, for a random number of
    users, the expectation of Σ_S (-1)^(|S| + 1) f_S²: that two items are both missing, less the product, is
    exp(-a) (1 - exp(-b)), where a users have either and b both, and 1 - exp(-b) is that series. For items that know nothing of
    each other it is f1 - f2 + f3 ..., Good and Toulmin's (Biometrika 1956) number of items that as many users more would add.
    The first term is the jackknife's alone, and too much where items are had by many (Efron and Stein 1981); less its mean
    it is that of a given number of users. Later terms weigh P(Binomial(8, 1/2) >= |S|), Efron and Thisted's (1976) way with
    such a series. The result is never taken to be below a third of the first term: chance may have it so. NaN for fewer than
    two users, and where the first term is 0: users of whom none, or each alike, has items that nobody else has.

    >>> items, users = np.array([0, 1, 0, 2, 0, 3, 3, 4]), np.array([0, 0, 1, 1, 2, 2, 3, 3])
    >>> round(coverage_se(items, users, catalogue=10), 3)
    0.08
    """
    users = int(np.count_nonzero(np.bincount(clusters)))
    if users < 2 or not catalogue:
        return math.nan
    item, user, _ = _pairs(_coded(items)[0], clusters)
    first = np.flatnonzero(moves_on(item))
    size = np.diff(first, append=len(item))
    # a set of users is known by the sum of their random numbers
    number = np.random.default_rng(0).integers(0, 1 << 63, int(clusters.max()) + 1, dtype=np.uint64)
    few = size <= len(_SERIES)
    _, at, held = np.unique(np.add.reduceat(number[user], first)[few], return_index=True, return_counts=True)
    terms = np.bincount(size[few][at], held.astype(np.float64) ** 2, len(_SERIES) + 1)[1:]
    terms[0] -= float(np.count_nonzero(size == 1)) ** 2 / users
    variance = max(float(_SERIES @ terms), float(terms[0]) / 3)
    return math.sqrt(variance) / catalogue if terms[0] > 1e-9 else math.nan


_SERIES = np.array([(-1) ** (k + 1) * sum(math.comb(8, j) for j in range(k, 9)) / 256 for k in range(1, 9)])


def gini(items: Ints, catalogue: int) -> float:
    """How unequally the places in tops are spread over the catalogue: 0, all items alike; near 1, all to one.

    The mean absolute difference of two items' counts over twice their mean: Σ_i (2 i - I - 1) c_i / (I Σ c), c rising.

    >>> gini(np.array([0, 1, 2, 3]), 4), gini(np.array([2, 2, 2, 2]), 4)
    (0.0, 0.75)
    """
    counts = np.sort(np.unique(items, return_counts=True)[1])
    if not len(counts) or not catalogue:
        return float("nan")
    rank = np.arange(catalogue - len(counts) + 1, catalogue + 1)  # items without a place come first and add nothing
    return float(((2 * rank - catalogue - 1) * counts).sum() / (catalogue * counts.sum()))


def gini_influence(items: Ints, catalogue: int, clusters: Ints, count: int) -> Influence:
    """`gini` with what each user does to it: the change when the user's places are taken away, to the first order.

    A place less moves an item down to the end of those that have as many: the derivative to the left. That of a weight
    that grows a little, in the middle of equals, is too small by a third where most items have few places. As
    with `coverage_se` it is about as many other users and a given catalogue: more users spread over more items.

    >>> found = gini_influence(np.array([0, 1, 0, 2]), 4, clusters=np.array([0, 0, 1, 1]), count=2)
    >>> found.value, found.se
    (0.375, 0.0)
    """
    value = gini(items, catalogue)
    there = np.bincount(clusters, minlength=count) > 0
    users = int(np.count_nonzero(there))
    if math.isnan(value) or users < 2:
        return Influence(value, np.full(count, math.nan), users)
    places, held = _coded(items)
    of = np.unique(held, return_inverse=True)[1]
    having = np.bincount(of)
    rank = catalogue - np.cumsum(having[::-1])[::-1] + 1  # the first of those with as many places
    each = (((2 * rank - catalogue - 1) / catalogue - value) / len(items))[of][places]
    total = sums(clusters, each, count)
    total[there] -= total[there].mean()
    return Influence(value, total * math.sqrt(users / (users - 1)), users)


# ------------------------------------------------------------------------------------------------ of each top


def personalisation(lists: Ints, items: Ints, k: int = 10) -> Floats:
    """Personalization@k: 1 - the mean of (items in common with another list's top) / k over all other lists. [L]

    Guo et al. (PAL), RecSys 2019. Lists with fewer than k different items are out. 0: all see the same; 1: nothing in common.

    >>> personalisation(np.array([0, 0, 1, 1, 2, 2]), np.array([5, 6, 5, 7, 5, 6]), k=2).tolist()
    [0.25, 0.5, 0.25]
    """
    count = _count(lists)
    of, item, _ = _pairs(lists, np.unique(items, return_inverse=True)[1])
    size = np.bincount(of, minlength=count)
    of, item = of[size[of] >= k], item[size[of] >= k]
    others = int((size >= k).sum()) - 1
    out = np.full(count, np.nan)
    if others < 1:
        return out
    held = np.bincount(item)
    common = np.bincount(of, held[item] - 1, count)
    out[size >= k] = 1 - common[size >= k] / (k * others)
    return out


def diversity(lists: Ints, vectors: ArrayLike) -> Floats:
    """Intra-list diversity: 1 - the mean cosine of two items of the list. [L], NaN for lists of one item.

    vectors  [m, D]; one of length 0 is unlike everything. Ziegler et al., WWW 2005, with the cosine as similarity.

    >>> diversity(np.array([0, 0, 1, 1, 2]), [[1, 0], [0, 2], [3, 0], [5, 0], [1, 1]]).tolist()
    [1.0, 0.0, nan]
    """
    v = np.asarray(vectors, dtype=np.float64)
    length = np.linalg.norm(v, axis=1, keepdims=True)
    v = np.divide(v, length, out=np.zeros_like(v), where=length > 0)
    count = _count(lists)
    total = np.zeros((count, v.shape[1]))
    np.add.at(total, lists, v)
    own = np.bincount(lists, (v**2).sum(axis=1), count)  # pairs of a row with itself
    size = np.bincount(lists, minlength=count)
    return 1 - over((total**2).sum(axis=1) - own, size * (size - 1))


def attribute_diversity(lists: Ints, attributes: NDArray[np.int64]) -> Floats:
    """`diversity` of items described by F attributes each, int64 [m, F]: two are alike as far as attributes are equal.

    That is the cosine of their one-hot vectors side by side, without making them. A negative attribute is unknown, and
    equal to none.

    >>> attribute_diversity(np.array([0, 0, 0]), np.array([[1, 5], [1, 6], [2, 6]])).round(4).tolist()
    [0.6667]
    """
    count, fields = _count(lists), attributes.shape[1]
    alike = np.zeros(count)
    for values in attributes.T:
        known = values >= 0
        of, _, held = _pairs(lists[known], values[known])
        alike += np.bincount(of, held * (held - 1.0), count)
    size = np.bincount(lists, minlength=count)
    return 1 - over(alike, size * (size - 1) * fields)


def novelty(lists: Ints, users_of: ArrayLike, users: int) -> Floats:
    """The mean surprisal of the items: -log2(users who had the item / all users). [L]

    users_of  [m]: of each row's item. An item that nobody had counts as one that a single user had. Zhou et al., PNAS 2010.

    >>> novelty(np.array([0, 0, 1]), [4, 1, 0], users=8).tolist()
    [2.0, 3.0]
    """
    had = np.maximum(np.asarray(users_of, dtype=np.float64), 1.0)
    return _mean(lists, -np.log2(had / users), np.ones(len(lists), dtype=np.bool_))


def surprise(lists: Ints, relevant: NDArray[np.bool_], likeness: ArrayLike) -> Floats:
    """Serendipity: the mean, over the relevant items of a list, of 1 - the likeness to what is most like it in the past. [L]

    relevant  bool [m]: clicked, bought; likeness: [m], of the most similar past event, from 0 (nothing like it) to 1

    >>> surprise(np.array([0, 0, 0, 1]), np.array([True, True, False, False]), [0.25, 0.75, 1.0, 0.0]).tolist()
    [0.5, nan]
    """
    return _mean(lists, 1 - np.asarray(likeness, dtype=np.float64), relevant)


def footrule(lists: Ints, one: ArrayLike, other: ArrayLike) -> Floats:
    """Spearman's footrule of two orders of each list: Σ |place in one - place in the other|, over the greatest possible. [L]

    one, other  [n]: what either orders by, small first (positions; a score enters as -score). Equal values share their mean
                place. 0: the same order; 1: turned round. The greatest is floor(n² / 2). NaN for lists of one row.
    Diaconis and Graham, 1977. Against the realised ranking it tells how far a model would change the page.

    >>> footrule(np.array([0, 0, 0]), [1, 2, 3], [1, 3, 2]).tolist(), footrule(np.zeros(3, int), [1, 2, 3], [3, 2, 1]).tolist()
    ([0.5], [1.0])
    """
    count = _count(lists)
    moved = np.abs(_places(lists, np.asarray(one)) - _places(lists, np.asarray(other)))
    size = np.bincount(lists, minlength=count)
    return over(np.bincount(lists, moved, count), size**2 // 2)


# ------------------------------------------------------------------------------------------------ business


def clicks_per_impression(clicks: ArrayLike, impressions: int) -> float:
    """CTR = clicks / impressions (not: / users).

    >>> clicks_per_impression([1, 0, 0, 1], 4)
    0.5
    """
    return float(np.sum(clicks) / impressions) if impressions else float("nan")


def conversions_per_click(conversions: ArrayLike, clicks: ArrayLike) -> float:
    """CVR = conversions / clicks (not: / impressions, nor / users).

    >>> conversions_per_click([1, 0, 0, 0], [1, 0, 0, 1])
    0.5
    """
    return float(np.sum(conversions) / np.sum(clicks)) if np.sum(clicks) else float("nan")


def amount_per_1000_impressions(amounts: ArrayLike, impressions: int) -> float:
    """GPM = 1000 · Σ amount / impressions: what a thousand rows shown bring in.

    >>> amount_per_1000_impressions([12.5, 0.0, 7.5, 0.0], 4)
    5000.0
    """
    return float(1000 * np.sum(amounts) / impressions) if impressions else float("nan")


# ------------------------------------------------------------------------------------------------ helpers


def _count(lists: Ints) -> int:
    return int(lists.max()) + 1 if len(lists) else 0


def _coded(items: Ints) -> tuple[Ints, Ints]:
    """(codes 0, 1, 2, ... of the items [m], how often each is there), without a sort where they lie close."""
    low, high = int(items.min()), int(items.max())
    if high - low > 8 * len(items) + 1_000:
        _, codes, held = np.unique(items, return_inverse=True, return_counts=True)
        return codes, held
    held = np.bincount(items - low)
    return (np.cumsum(held > 0) - 1)[items - low], held[held > 0]


def _pairs(one: Ints, other: Ints) -> tuple[Ints, Ints, Ints]:
    """(one, other, how often): every pair that there is, of codes of 0 and more; packed into one integer to be sorted."""
    span = int(other.max()) + 1 if len(other) else 1
    packed, held = np.unique(one * span + other, return_counts=True)
    return packed // span, packed % span, held


def _mean(lists: Ints, values: Floats, used: NDArray[np.bool_]) -> Floats:
    count = _count(lists)
    return over(np.bincount(lists[used], values[used], count), np.bincount(lists[used], minlength=count))


def _places(lists: Ints, by: NDArray[np.generic]) -> Floats:
    """[n]: the place of each row in its list, from 0, equal values their mean place."""
    order = np.lexsort((by, lists))
    new_list, rows = moves_on(lists[order]), np.arange(len(order))
    place = rows - np.maximum.accumulate(np.where(new_list, rows, 0))
    run = np.cumsum(new_list | moves_on(by[order])) - 1
    mean = np.bincount(run, place) / np.bincount(run)
    out = np.empty(len(order))
    out[order] = mean[run]
    return out
