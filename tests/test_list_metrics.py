"""Metrics of lists against every order of the tied rows; PR-AUC and regression metrics against their definitions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finerank.errors import UserError
from finerank.evaluation.measure import HeadRows, estimates
from finerank.metrics import lists
from finerank.metrics.precision import pr_auc
from finerank.metrics.probability import downsampled, ece, equal_mass_bins, logit, reliability
from finerank.metrics.ranking import auc, gauc, per_group_auc
from finerank.metrics.regression import mae, pair_loss, r2, rmse
from finerank.metrics.runs import rankings

List = list[tuple[int, int]]  # (label, score) of each row
one_list = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2)), min_size=1, max_size=6)
quick = settings(derandomize=True, max_examples=60, deadline=None)


def expected(rows: List, metric: Callable[[list[int]], float]) -> float:
    """The mean of a metric of the labels from the top, over all orders that the scores allow."""
    if not any(y for y, _ in rows):
        return math.nan
    values = [
        metric([rows[i][0] for i in order])
        for order in itertools.permutations(range(len(rows)))
        if all(rows[a][1] >= rows[b][1] for a, b in itertools.pairwise(order))
    ]
    return float(np.mean(values))


def dcg(labels: list[int], k: int) -> float:
    return sum(y / math.log2(i + 2) for i, y in enumerate(labels[:k]))


def plain_ap(labels: list[int], k: int) -> float:
    hits = [sum(labels[: i + 1]) / (i + 1) for i, y in enumerate(labels[:k]) if y]
    return sum(hits) / min(k, sum(labels))


@quick
@given(st.lists(one_list, min_size=1, max_size=3), st.integers(1, 7))
def test_every_metric_is_its_mean_over_all_orders_of_tied_rows(many: list[List], k: int) -> None:
    y, s = (np.array([row[i] for rows in many for row in rows]) for i in (0, 1))
    groups = np.repeat(np.arange(len(many)) * 7 - 3, [len(rows) for rows in many])
    mixed = np.random.default_rng(len(y)).permutation(len(y))  # the order in which rows are given says nothing
    ranked = rankings(y[mixed], s[mixed], groups[mixed])
    plain: dict[str, Callable[[list[int]], float]] = {
        "ndcg": lambda o: dcg(o, k) / dcg(sorted(o, reverse=True), k),
        "hit": lambda o: float(any(o[:k])),
        "rr": lambda o: 1 / (o.index(1) + 1),
        "ap": lambda o: plain_ap(o, k),
    }
    found = {
        "ndcg": lists.ndcg(ranked, k),
        "hit": lists.hit_rate(ranked, k),
        "rr": lists.reciprocal_rank(ranked),
        "ap": lists.average_precision(ranked, k),
    }
    for name, metric in plain.items():
        wanted = [expected(rows, metric) if len(rows) > 1 else math.nan for rows in many]
        assert found[name] == pytest.approx(wanted, nan_ok=True, abs=1e-12), name


@quick
@given(one_list, st.integers(1, 5))
def test_sampled_recall_is_its_mean_over_all_draws_and_orders(rows: List, negatives: int) -> None:
    ups, downs = ([s for y, s in rows if y == label] for label in (1, 0))
    each = []
    for up in ups:
        for drawn in itertools.combinations(downs, min(negatives, len(downs))):
            ties = sum(d == up for d in drawn)
            each.append(0.0 if any(d > up for d in drawn) else 1 / (1 + ties))
    wanted = float(np.mean(each)) if ups and downs else math.nan
    y, s = zip(*rows, strict=True)
    found = lists.sampled_recall(rankings(y, s, [0] * len(rows)), negatives)
    assert found == pytest.approx([wanted], nan_ok=True, abs=1e-12)


def test_constant_scores_get_what_chance_gets() -> None:
    y = np.array([1, 0, 0, 0, 0])
    ranked = rankings(y, np.zeros(5), np.zeros(5, int))
    assert lists.hit_rate(ranked, 1) == pytest.approx([0.2])
    assert lists.reciprocal_rank(ranked) == pytest.approx([np.mean(1 / np.arange(1, 6))])
    assert lists.sampled_recall(ranked, 4) == pytest.approx([0.2])
    assert pr_auc(y, np.zeros(5)) == pytest.approx(0.2)


def test_lists_without_a_positive_are_out_and_none_is_nan() -> None:
    ranked = rankings([1, 0, 0, 0], [2, 1, 2, 1], [1, 1, 2, 2])
    for metric in (lists.ndcg, lists.hit_rate, lists.reciprocal_rank, lists.average_precision, lists.sampled_recall):
        assert metric(ranked) == pytest.approx([1.0, math.nan], nan_ok=True)  # type: ignore[operator]
        assert lists.mean_over_lists(metric(ranked)) == 1.0  # type: ignore[operator]
        empty = rankings([], [], np.zeros(0, int))
        assert math.isnan(lists.mean_over_lists(metric(empty)))  # type: ignore[operator]
    assert np.isnan(lists.sampled_recall(rankings([1, 1], [1, 2], [0, 0]))).all()  # nothing to draw


def test_lists_of_one_row_tell_nothing_and_are_out() -> None:
    """They counted as perfect: a log without users and requests had an NDCG of 1."""
    ranked = rankings([1, 0, 1, 1], [1, 2, 0, 0], [1, 1, 2, 3])
    for metric, alone in ((lists.ndcg, 1 / math.log2(3)), (lists.reciprocal_rank, 0.5), (lists.average_precision, 0.5)):
        assert lists.mean_over_lists(metric(ranked)) == pytest.approx(alone)  # type: ignore[operator]
    assert lists.mean_over_lists(lists.hit_rate(ranked, 1)) == 0.0
    assert lists.lists_judged(ranked) == 1
    both = rankings([1, 1], [1, 2], [1, 1])  # positives alone, but a list: as usual
    assert lists.ndcg(both).tolist() == [1.0]


def test_an_evaluation_says_which_lists_it_judged() -> None:
    y, z = np.array([1.0, 0, 1, 0]), np.array([0.5, 0.1, 0.2, 0.3])
    users, ones = np.arange(4), np.ones(4)
    alone = estimates(HeadRows.of("sigmoid", y, z, ones, users, users))
    pairs = estimates(HeadRows.of("sigmoid", y, z, ones, users // 2, users))
    for name in ("ndcg@10", "mrr", "hr@10", "map@10"):
        assert math.isnan(alone[name].value)
        assert alone[name].how == "0 of 4 lists: those with a positive, of two rows and more"
        assert pairs[name].how.startswith(
            "2 of 2 lists: those with a positive, of two rows and more; "
            + ("no interval: alike for all 2 users" if name == "hr@10" else "jackknife over 2 users")
        )


def test_k_and_weights_are_judged() -> None:
    ranked = rankings([1, 0], [1, 0], [0, 0])
    with pytest.raises(UserError, match="k = 0"):
        lists.ndcg(ranked, 0)
    with pytest.raises(UserError, match="negatives = 0"):
        lists.sampled_recall(ranked, 0)
    with pytest.raises(UserError, match="no sum"):
        lists.hit_rate(rankings([1, 0], [1, 0], [0, 0], [1.0, 2.0]))


# ------------------------------------------------------------------------------------------------ weights of rows


weighted = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from([-1.0, 0.0, 0.5, 2.0]), st.integers(0, 3), st.integers(0, 2)),
    min_size=1,
    max_size=25,
)


@quick
@given(weighted)
def test_a_weight_is_so_many_copies_of_the_row(data: list[tuple[int, float, int, int]]) -> None:
    y, s, w, g = (np.array(column) for column in zip(*data, strict=True))
    y2, s2, g2 = y.repeat(w), s.repeat(w), g.repeat(w)
    assert pr_auc(y, s, w) == pytest.approx(pr_auc(y2, s2), nan_ok=True, abs=1e-12)
    for weighting in ("impressions", "clicks", "equal"):
        one, many = (gauc(y, s, g, weighting, w), gauc(y2, s2, g2, weighting))  # type: ignore[arg-type]
        assert one.value == pytest.approx(many.value, nan_ok=True, abs=1e-12)
        assert (one.groups_used, one.groups_single_class) == (many.groups_used, many.groups_single_class)
        assert one.share_of_impressions_used == pytest.approx(many.share_of_impressions_used, nan_ok=True)
    assert per_group_auc(y, s, g, w * 0.3).groups.tolist() == np.unique(g2).tolist()
    for metric in (rmse, mae, r2):
        assert metric(y, s, w) == pytest.approx(metric(y2, s2), nan_ok=True, abs=1e-9)
    if len(y2):
        assert gauc(y, s, np.zeros_like(g), weights=w).value == pytest.approx(auc(y2, s2), nan_ok=True, abs=1e-12)


# ------------------------------------------------------------------------------------------------ PR-AUC, numbers


@quick
@given(weighted)
def test_pr_auc_is_the_sum_over_thresholds(data: list[tuple[int, float, int, int]]) -> None:
    y, s = (np.array([row[i] for row in data]) for i in (0, 1))
    total, before, wanted = y.sum(), 0, 0.0
    for threshold in sorted(set(s.tolist()), reverse=True):
        taken = s >= threshold
        hits = y[taken].sum()
        wanted += (hits - before) * hits / taken.sum()
        before = hits
    assert pr_auc(y, s) == pytest.approx(wanted / total if total else math.nan, nan_ok=True, abs=1e-12)


watched = st.lists(st.tuples(st.sampled_from([0, 0, 3, 8]), st.integers(0, 3), st.integers(0, 2)), max_size=15)


@quick
@given(watched)
def test_pair_loss_is_the_sum_over_pairs(data: list[tuple[int, int, int]]) -> None:
    lost = total = 0.0
    for y, s, g in data:
        for y2, s2, g2 in data:
            if g == g2 and y > 0 and y2 == 0:
                total += y
                lost += y * (1.0 if s2 > s else 0.5 if s2 == s else 0.0)
    y, s, g = (np.array([row[i] for row in data], dtype=int) for i in range(3))
    assert pair_loss(y, s, g) == pytest.approx(lost / total if total else math.nan, nan_ok=True, abs=1e-12)


def test_regression_by_hand() -> None:
    assert rmse([0, 0, 9], [3, 4, 0], [1, 1, 0]) == pytest.approx(math.sqrt(12.5))
    assert mae([1, 1], [0, 3], [3, 1]) == pytest.approx(5 / 4)
    assert r2([1, 2, 3], [2, 2, 2]) == 0.0
    assert r2([1, 2, 3], [1, 2, 3]) == 1.0
    assert math.isnan(r2([2, 2], [1, 3]))
    assert math.isnan(r2([0.1] * 3, [0.1, 0.1, 0.2]))  # whose mean is not .1 in floats
    assert math.isnan(rmse([], []))
    assert math.isnan(mae([1.0], [1.0], [0.0]))
    with pytest.raises(UserError, match="1 of 2 predictions are not finite"):
        rmse([0, 0], [1, np.inf])
    with pytest.raises(UserError, match="1 of 2 labels are negative"):
        pair_loss([-1, 0], [1, 2], [0, 0])


# ------------------------------------------------------------------------------------------------ calibration


@quick
@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0, 3.0]), max_size=30), st.integers(1, 8))
def test_bins_rise_keep_ties_together_and_are_even_without_ties(z: list[float], bins: int) -> None:
    logits = np.array(z)
    found = equal_mass_bins(logits, bins)
    assert len(set(found.tolist())) <= bins
    for a, b in itertools.combinations(range(len(z)), 2):
        if z[a] == z[b]:
            assert found[a] == found[b]
        if z[a] < z[b]:
            assert found[a] <= found[b]
    distinct = equal_mass_bins(np.arange(len(z)) * 1.0, bins)
    sizes = np.bincount(distinct, minlength=min(bins, len(z)))
    assert len(z) == 0 or sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("low", [40, 50, 60])
def test_two_scores_are_two_bins_whichever_more_rows_have(low: int) -> None:
    """Zeros promise .5 and get nothing, twos promise .88 and get all: joined, the two errors would cancel in part."""
    z = np.repeat([0.0, 2.0], [low, 100 - low])
    assert np.bincount(equal_mass_bins(z, 2)).tolist() == [low, 100 - low]
    promised = 1 / (1 + math.exp(-2.0))
    wanted = (low * 0.5 + (100 - low) * (1 - promised)) / 100
    assert ece((z > 0).astype(int), z, bins=2) == pytest.approx(wanted)


def test_ece_and_reliability_against_a_loop() -> None:
    r = np.random.default_rng(3)
    z, w = r.normal(size=1_000), r.random(1_000)
    p = 1 / (1 + np.exp(-z))
    y = (r.random(1_000) < p**2).astype(float)
    order = np.argsort(z)
    total = 0.0
    for part in np.array_split(order, 10):
        total += abs((w[part] * (p[part] - y[part])).sum())
    assert ece(y, z, w, bins=10) == pytest.approx(total / w.sum(), rel=1e-9)
    curve = reliability(y, z, w, bins=10)
    assert curve.rows.tolist() == [100] * 10
    assert (np.diff(curve.predicted) > 0).all()
    assert curve.weight.sum() == pytest.approx(w.sum())
    assert ece([1, 0], [0.0, 0.0]) == 0.0
    assert math.isnan(ece([], []))


def test_the_recalibrated_mean_is_the_base_rate() -> None:
    """A model fitted on all positives and a tenth of the negatives, brought back."""
    r = np.random.default_rng(4)
    y = r.random(400_000) < 0.03
    kept = y | (r.random(400_000) < 0.1)
    rate = y[kept].mean()
    p = 1 / (1 + np.exp(-downsampled(np.full(1, logit(rate)), 0.1)))
    assert p[0] == pytest.approx(0.03, rel=0.03)
    with pytest.raises(UserError, match="rate = 0"):
        downsampled([0.0], 0)
