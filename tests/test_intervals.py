"""Intervals against brute force (DeLong by pairs, leaving users out), against resampling, and against the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from finerank.evaluation.compare import differences
from finerank.evaluation.curves import curves
from finerank.evaluation.measure import HeadRows, estimates, influences
from finerank.metrics.estimate import Influence, holm, mean_influence, resampled, student_quantile, student_tail
from finerank.metrics.influence import auc_influence, pr_auc_influence, ratio_influence
from finerank.metrics.precision import pr_auc
from finerank.metrics.ranking import auc
from finerank.metrics.runs import runs
from finerank.runtime.link import Link


def world(seed: int, users: int = 60, rows: int = 12, clustered: float = 1.5) -> HeadRows:
    """Users that differ in how often they click and in the score that they get: rows of one user are alike."""
    r = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), r.integers(1, 2 * rows, users))
    own = clustered * r.normal(size=users)[user]
    logits = own + r.normal(size=len(user)).round(1)
    taste = clustered * r.normal(size=users)[user]  # of which the score knows nothing
    labels = (r.random(len(user)) < 1 / (1 + np.exp(-(logits + taste - 1.5)))).astype(float)
    request = np.arange(len(user)) // 3 * 10_000 + user
    return HeadRows.of("sigmoid", labels, logits, np.ones(len(user)), user, request)


def test_delong_without_clusters_is_the_formula_over_all_pairs() -> None:
    r = np.random.default_rng(0)
    y = r.random(300) < 0.3
    s = (r.normal(size=300) + y).round(1)  # with ties
    found = auc_influence(runs("auc", y, s), np.arange(300), 300)
    won = (s[y][:, None] > s[~y]) + 0.5 * (s[y][:, None] == s[~y])
    ups, downs = won.mean(axis=1), won.mean(axis=0)
    assert found.value == pytest.approx(auc(y, s), abs=1e-14)
    assert found.se == pytest.approx(math.sqrt(ups.var(ddof=1) / len(ups) + downs.var(ddof=1) / len(downs)), rel=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_leaving_one_user_out_agrees(weighted: bool) -> None:
    rows = world(1, users=150)
    w = np.random.default_rng(2).random(len(rows.labels)) + 0.2 if weighted else None
    for metric, influence in ((auc, auc_influence), (pr_auc, pr_auc_influence)):
        found = influence(runs("x", rows.labels, rows.logits, w), rows.clusters, rows.count)
        left = []
        for user in range(rows.count):
            others = rows.clusters != user
            left.append(metric(rows.labels[others], rows.logits[others], None if w is None else w[others]))
        jackknife = math.sqrt((len(left) - 1) * np.var(left))
        assert found.value == pytest.approx(metric(rows.labels, rows.logits, w), abs=1e-13)
        assert found.se == pytest.approx(jackknife, rel=0.02)


def test_every_metric_agrees_with_leaving_users_out() -> None:
    rows = world(3, users=120)
    left: dict[str, list[float]] = {}
    for user in range(rows.count):
        for name, found in influences(rows.take(np.flatnonzero(rows.clusters != user))).items():
            left.setdefault(name, []).append(found.value)
    for name, found in influences(rows).items():
        jackknife = math.sqrt((rows.count - 1) * np.var(left[name]))
        assert found.se == pytest.approx(jackknife, rel=0.05), name


@pytest.mark.parametrize("link", ["exp", "odds"])
def test_numbers_agree_with_leaving_users_out(link: Link) -> None:
    r = np.random.default_rng(4)
    user = r.integers(0, 120, 1_500)
    p = r.normal(size=1_500) + r.normal(size=120)[user]
    y = np.where(r.random(1_500) < 0.4, 0.0, np.exp(p / 2 + r.normal(size=1_500) / 2))
    rows = HeadRows.of(link, y, p / 2, r.integers(0, 3, 1_500).astype(float), user, user)
    found = influences(rows)
    assert list(found) == ["odds_loss"] * (link == "odds") + ["rmse", "mae", "r2", "pair_loss"]
    left = [influences(rows.take(np.flatnonzero(rows.clusters != u))) for u in range(rows.count)]
    for name, one in found.items():
        assert one.se == pytest.approx(math.sqrt((rows.count - 1) * np.var([o[name].value for o in left])), rel=0.1)


def test_resampling_users_gives_the_same_error() -> None:
    """The twin: Poisson weights for users, everything computed again."""
    rows = world(5, users=200)
    loss = np.logaddexp(0, np.where(rows.labels == 1, -rows.logits, rows.logits))
    found = ratio_influence(loss, np.ones(len(loss)), rows.clusters, rows.count)
    sums = np.column_stack([np.bincount(rows.clusters, loss), np.bincount(rows.clusters)])
    drawn = resampled(sums, lambda s: s[:, 0] / s[:, 1], draws=4_000, seed=1)
    assert found.se == pytest.approx(drawn.std(), rel=0.06)
    assert drawn.mean() == pytest.approx(found.value, abs=0.1 * found.se)
    again = resampled(sums, lambda s: s[:, 0] / s[:, 1], draws=4_000, seed=1)
    assert (again == drawn).all()
    r = np.random.default_rng(6)
    areas = [auc(rows.labels, rows.logits, r.poisson(1, rows.count)[rows.clusters]) for _ in range(600)]
    assert auc_influence(rows.runs, rows.clusters, rows.count).se == pytest.approx(np.std(areas), rel=0.1)


def test_intervals_cover_the_truth_and_naive_ones_do_not() -> None:
    """The truth: AUC and log loss of a hundred thousand users; rows alike within users."""
    large = world(100, users=100_000)
    truth = {name: influences(large)[name].value for name in ("auc", "logloss", "gauc")}
    times = 300
    inside = dict.fromkeys([*truth, "naive"], 0)
    for seed in range(times):
        rows = world(seed + 1_000)
        found = influences(rows)
        for name, value in truth.items():
            e = found[name].estimate()
            inside[name] += e.low <= value <= e.high
        n = len(rows.labels)
        naive = auc_influence(rows.runs, np.arange(n), n).estimate()
        inside["naive"] += naive.low <= truth["auc"] <= naive.high
    for name in truth:
        assert 0.92 <= inside[name] / times <= 0.98, (name, inside[name] / times)
    assert inside["naive"] / times < 0.85


def test_interval_of_ece_holds_the_truth_where_chance_is_most_of_it() -> None:
    """Calibrated but for an offset: none (the true error is 0), and one that chance is a part of."""
    times = 100
    for offset in (0.0, 0.15):
        inside, values = 0, []
        for seed in range(times):
            r = np.random.default_rng(seed)
            user = np.repeat(np.arange(150), r.integers(1, 20, 150))
            logits = r.normal(-1.5, 1.0, len(user))
            labels = (r.random(len(user)) < 1 / (1 + np.exp(-logits))).astype(float)
            true = float(np.abs(1 / (1 + np.exp(-logits)) - 1 / (1 + np.exp(-logits - offset))).mean())
            found = estimates(HeadRows.of("sigmoid", labels, logits + offset, np.ones(len(user)), user, user))["ece"]
            inside += found.low <= true <= found.high
            values.append(found.value)
        assert inside / times >= 0.93, (offset, inside / times)
        assert np.mean(values) > true  # chance adds to it
        assert "chance may have added" in found.how


def test_pairing_is_narrower_and_a_model_against_itself_is_nothing() -> None:
    rows = world(7, users=300)
    better = HeadRows(
        "sigmoid",
        rows.labels,
        rows.logits + 0.2 * np.random.default_rng(8).normal(size=len(rows.labels)),
        None,
        rows.clusters,
        rows.lists,
        rows.owner,
    )
    one, other = influences(rows)["auc"], influences(better)["auc"]
    paired = other - one
    assert paired.value == other.value - one.value
    assert paired.se < 0.5 * math.hypot(one.se, other.se)
    same = one - one
    assert (same.value, same.se) == (0.0, 0.0)
    assert mean_influence([one, other]).value == pytest.approx((one.value + other.value) / 2)


def test_equal_labels_have_no_r2() -> None:
    """Three times .1 have a mean that is not .1 in floats, and so a spread of 1e-34."""
    rows = HeadRows.of("identity", np.full(3, 0.1), np.array([0.1, 0.1, 0.2]), np.ones(3), np.arange(3), np.arange(3))
    assert math.isnan(estimates(rows)["r2"].value)


def test_what_is_not_defined_is_nan_and_what_is_says_so() -> None:
    rows = HeadRows.of("sigmoid", np.ones(4), np.arange(4.0), np.ones(4), np.array([1, 1, 2, 2]), np.arange(4))
    found = estimates(rows)
    assert math.isnan(found["auc"].value)
    assert math.isnan(found["auc"].low)
    assert found["logloss"].value > 0
    single = HeadRows.of("sigmoid", np.array([1.0, 0]), np.arange(2.0), np.ones(2), np.zeros(2, int), np.arange(2))
    assert estimates(single)["auc"].value == 0.0
    assert math.isnan(estimates(single)["auc"].low)  # one user has no interval
    assert estimates(single)["auc"].how == "no interval: too few users"
    assert found["auc"].how == ""  # of what there is not, nothing is told
    empty = HeadRows.of("sigmoid", np.ones(2), np.ones(2), np.zeros(2), np.zeros(2, int), np.arange(2))
    assert all(math.isnan(e.value) for e in estimates(empty).values())
    some = estimates(world(9, users=10))["auc"]
    assert "10 users (the rarer class has 7, fewer than 30" in some.how
    assert some.how.endswith("covers the data, not the seed of the training")
    n = 80  # a row each, and positives of five of them: forty users are not "fewer than 30"
    rare = HeadRows.of(
        "sigmoid", np.arange(n) % 2 * (np.arange(n) < 10.0), np.arange(n) % 7.0, np.ones(n), *[np.arange(n) // 2] * 2
    )
    assert "over 40 users (the rarer class has 5, fewer than 30: a rough guide)" in estimates(rare)["auc"].how
    assert estimates(world(9, users=60))["ece"].how.startswith("200 weighted resamplings")
    assert 0 <= some.low < some.value < some.high <= 1


def test_where_no_user_differs_there_is_no_interval() -> None:
    """HR@10 of short lists is 1 for every user seen, and an AUC without a wrong pair 1: neither is known to a hair."""
    n = 60
    labels = (np.arange(n) % 3 == 0).astype(float)
    rows = HeadRows.of("sigmoid", labels, labels - 0.5, np.ones(n), np.arange(n) // 3, np.arange(n) // 3)
    found = estimates(rows)
    for name in ("auc", "hr@10", "mrr"):
        assert found[name].value == 1.0
        assert math.isnan(found[name].low)
        assert math.isnan(found[name].high)
        assert found[name].how.endswith("no interval: alike for all 20 users")
    weighted = HeadRows.of("sigmoid", labels, labels - 0.5, np.full(n, 0.1), np.arange(n) // 3, np.arange(n) // 3)
    assert math.isnan(estimates(weighted)["auc"].low)  # rounding is no difference
    drawn = curves(world(4, users=20))
    assert drawn is not None
    assert all(math.isnan(b.low) for b in drawn.reliability if b.observed in (0.0, 1.0))
    (apart,) = differences([[Influence(0.0, np.zeros(5), 5)], [Influence(1.0, np.zeros(5), 5)]])
    assert all(math.isnan(x) for x in (apart.low, apart.high, apart.p))
    (same,) = differences([[Influence(1.0, np.zeros(5), 5)], [Influence(1.0, np.zeros(5), 5)]])
    assert (same.low, same.high, same.p) == (0.0, 0.0, 1.0)


def test_students_t_against_tables() -> None:
    for df, t in ((1, 12.706), (2, 4.303), (5, 2.571), (30, 2.042), (1e9, 1.960)):
        assert student_quantile(df) == pytest.approx(t, abs=5e-4)
        assert student_tail(student_quantile(df), df) == pytest.approx(0.05, abs=1e-6)
    assert student_tail(0, 7) == pytest.approx(1)
    assert student_tail(-2.5, 12.5) == student_tail(2.5, 12.5)
    assert math.isnan(student_quantile(0))
    assert math.isnan(student_tail(math.nan, 3))


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, math.nan]) == pytest.approx([0.03, 0.06, 0.06, math.nan], nan_ok=True)
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]


def test_few_clusters_widen_the_interval() -> None:
    narrow, wide = (Influence(0.5, np.full(n, 0.02 / math.sqrt(n)), n, "x").estimate() for n in (1_000, 4))
    assert narrow.se == pytest.approx(wide.se)
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_users_that_do_far_more_than_others_count_as_few() -> None:
    r = np.random.default_rng(0)
    alike = Influence(0.5, 0.01 * r.normal(size=5_000), 5_000)
    assert alike.freedom == pytest.approx(4_999, rel=0.1)
    assert "rough" not in alike.estimate().how
    assert Influence(0.5, np.array([0.01, -0.01] * 20), 40).freedom == 39  # never more than there are
    unequal = Influence(0.5, np.append(alike.of, [1.0, -1.0]), 5_002)
    assert unequal.freedom == pytest.approx(3 * 2.5**2 / 2 - 1, rel=0.1)
    assert "5,002 users (so unequal that they count as" in unequal.estimate().how


def test_intervals_cover_the_truth_where_users_differ_in_activity() -> None:
    """The mean of rows: users differ in theirs, and in how many they have, by a factor of a hundred."""
    inside = dict.fromkeys(("freedom", "clusters"), 0)
    times = 400
    for seed in range(times):
        r = np.random.default_rng(seed)
        rows = np.exp(r.normal(2, 1.5, 100)).round() + 1
        found = ratio_influence(rows * r.normal(size=100), rows, np.arange(100), 100)
        inside["freedom"] += found.estimate().low <= 0 <= found.estimate().high
        inside["clusters"] += abs(found.value) <= student_quantile(99) * found.se
    assert inside["freedom"] / times >= 0.93 > inside["clusters"] / times
