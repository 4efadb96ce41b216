"""AUC, GAUC and the probability metrics against brute force over all pairs and numbers worked out by hand."""

from __future__ import annotations

import doctest
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finerank.errors import UserError
from finerank.metrics import probability, ranking
from finerank.metrics.probability import calibration, logit, logloss, normalised_entropy
from finerank.metrics.ranking import auc, gauc, per_group_auc, rela_impr


def brute(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> float:
    """All pairs of a positive and a negative, one by one."""
    w = np.ones(len(labels)) if weights is None else weights
    won = total = 0.0
    for i in np.flatnonzero(labels == 1):
        for j in np.flatnonzero(labels == 0):
            total += w[i] * w[j]
            won += w[i] * w[j] * (1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0)
    return won / total if total else float("nan")


rows = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from([-np.inf, -1.5, -0.0, 0.0, 0.25, 3.0, np.inf]), st.integers(0, 3)),
    max_size=30,
)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(rows)
def test_auc_equals_brute_force_with_ties_and_weights(data: list[tuple[int, float, int]]) -> None:
    y, s, w = (np.array([r[i] for r in data], dtype=t) for i, t in enumerate((int, float, float)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert auc(y, s) == pytest.approx(brute(y, s), nan_ok=True, abs=1e-15)
        assert auc(y, s, w * 0.3) == pytest.approx(brute(y, s, w * 0.3), nan_ok=True, abs=1e-12)
        # an integer weight is that many copies of the row
        copies = auc(y.repeat(w.astype(int)), s.repeat(w.astype(int)))
        assert auc(y, s, w) == pytest.approx(copies, nan_ok=True, abs=1e-12)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(rows, st.sampled_from([np.int64, np.uint64, np.int8, str, "huge"]))
def test_every_groups_auc_equals_brute_force(data: list[tuple[int, float, int]], kind: type | str) -> None:
    y, s = (np.array([r[i] for r in data], dtype=t) for i, t in enumerate((int, float)))
    g = np.array([r[2] for r in data], dtype=int)
    # far apart: the keys no longer fit beside the ranks and are renumbered; int8 from end to end overflows int8
    keys = {
        "huge": lambda: np.array([-(2**63), -5, 7, 2**63 - 1])[g],
        np.int8: lambda: np.array([-128, -3, 0, 127], dtype=np.int8)[g],
        np.uint64: lambda: np.array([0, 1, 2**62, 2**64 - 1], dtype=np.uint64)[g],
    }.get(kind, lambda: g.astype(kind))()  # type: ignore[arg-type]
    each = per_group_auc(y, s, keys)
    present = np.unique(g)
    assert each.groups.tolist() == np.unique(keys).tolist()
    for i, group in enumerate(present):
        mine = g == group
        assert each.auc[i] == pytest.approx(brute(y[mine], s[mine]), nan_ok=True, abs=1e-15)
        assert each.impressions[i] == mine.sum()
        assert each.clicks[i] == y[mine].sum()

    sizes = {"impressions": lambda m: m.sum(), "clicks": lambda m: y[m].sum(), "equal": lambda m: 1}
    both = [g == k for k in present if 0 < y[g == k].sum() < (g == k).sum()]
    for weighting, size in sizes.items():
        result = gauc(y, s, keys, weighting)  # type: ignore[arg-type]
        above = sum(size(m) * brute(y[m], s[m]) for m in both)
        below = sum(size(m) for m in both)
        assert result.value == pytest.approx(above / below if below else float("nan"), nan_ok=True, abs=1e-12)
        assert (result.groups_used, result.groups_single_class) == (len(both), len(present) - len(both))
        assert result.share_of_impressions_used == pytest.approx(sum(m.sum() for m in both) / max(1, len(y)))


def test_one_group_is_the_auc_and_monotone_transforms_change_nothing() -> None:
    r = np.random.default_rng(0)
    y, s = r.random(2_000) < 0.1, r.normal(size=2_000).round(2)
    assert gauc(y, s, np.zeros(2_000, int)).value == auc(y, s)
    for same in (s * 3 - 5, np.exp(s), s**3, (s * 100).round().astype(int), s.astype(np.float32)):
        assert auc(y, same) == auc(y, s)
    assert auc(y, -s) == pytest.approx(1 - auc(y, s), abs=1e-15)
    assert auc(y, np.zeros(2_000)) == 0.5
    assert auc(y, y) == 1.0
    assert abs(auc(y, r.random(2_000)) - 0.5) < 0.1


def test_single_class_groups_are_out_of_both_sums() -> None:
    y, s, g = [1, 0, 0, 1], [0.9, 0.2, 0.7, 0.8], [5, 5, 6, 7]
    result = gauc(y, s, g)
    assert result == ranking.GAUC(1.0, 1, 2, 0.5)
    none = gauc([1, 1], [0.0, 1.0], [1, 2])
    assert math.isnan(none.value)
    assert (none.groups_used, none.groups_single_class, none.share_of_impressions_used) == (0, 2, 0.0)


def test_one_positive_and_one_negative_per_user_is_pair_accuracy() -> None:
    """The Amazon test set of DIN; a tie counts one half here and nothing in the authors' code."""
    positive, negative = np.array([0.9, 0.4, 0.7, 0.5]), np.array([0.1, 0.6, 0.2, 0.5])
    users = np.arange(4)
    result = gauc(np.r_[np.ones(4), np.zeros(4)], np.r_[positive, negative], np.r_[users, users])
    assert result.value == (2 + 0.5) / 4


def test_large_and_many_groups() -> None:
    """Two hundred thousand rows in fifty thousand groups: vectorised, and equal to AUC over a handful of groups."""
    r = np.random.default_rng(1)
    y, s, g = r.random(200_000) < 0.3, r.random(200_000, dtype=np.float32).round(2), r.integers(0, 50_000, 200_000)
    each = per_group_auc(y, s, g)
    assert len(each.groups) == len(np.unique(g))
    for i in range(0, len(each.groups), 5_000):
        mine = g == each.groups[i]
        assert each.auc[i] == pytest.approx(auc(y[mine], s[mine]), nan_ok=True)


def test_rows_of_weight_zero_are_never_looked_at() -> None:
    y, s, w = [1, 0, np.nan, 7], [0.3, 0.1, np.nan, 0.2], [1, 1, 0, 0]
    assert auc(y, s, w) == 1.0
    assert logloss(y, s, w) == logloss(y[:2], s[:2])
    assert calibration(y, s, w) == calibration(y[:2], s[:2])


@pytest.mark.parametrize("labels", [[], [0, 0], [1, 1, 1]])
def test_nothing_to_order_is_nan_without_a_warning(labels: list[int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = np.linspace(0, 1, len(labels))
        assert math.isnan(auc(labels, scores))
        assert math.isnan(auc(labels, scores, np.ones(len(labels))))
        assert math.isnan(gauc(labels, scores, np.zeros(len(labels), int)).value)
        assert math.isnan(normalised_entropy(labels, scores))
        assert math.isnan(calibration(labels, scores)) == (1 not in labels)
        assert math.isnan(logloss(labels, scores)) == (not labels)


def test_errors_name_place_count_and_remedy() -> None:
    for make, message in (
        (lambda: auc([1, 0, 1], [0.1, np.nan, np.nan]), "auc: 2 of 3 scores are NaN"),
        (lambda: auc([1, 2], [0.1, 0.2]), "1 of 2 labels"),
        (lambda: auc([1, np.nan], [0.1, 0.2]), "1 of 2 labels"),
        (lambda: auc([1, 0], [0.1]), "one length"),
        (lambda: auc([[1, 0]], [[0.1, 0.2]]), "one-dimensional"),
        (lambda: auc([1, 0], [0.1, 0.2], [1, -1]), "1 of 2 weights"),
        (lambda: auc([1, 0], [0.1, 0.2], [np.nan, np.inf]), "2 of 2 weights"),
        (lambda: gauc([1, 0], [0.1, np.nan], [1, 1]), "1 of 2 scores are NaN"),
        (lambda: gauc([1, 0], [0.1, 0.2], [1.0, np.nan]), "encode it first"),
        (lambda: gauc([1, 0], [0.1, 0.2], [1]), "one per row"),
        (lambda: gauc([1, 0], [0.1, 0.2], [1, 1], "click"), "did you mean 'clicks'"),  # type: ignore[arg-type]
        (lambda: logloss([1, 0], [0.1, np.inf]), "1 of 2 logits are infinite"),
        (lambda: logloss([1, 1.5], [0.1, 0.2]), "1 of 2 labels"),
        (lambda: logit([0.5, 1.2, np.nan]), "2 of 3 values"),
    ):
        with pytest.raises(UserError, match=message):
            make()


def test_logloss_against_the_definition_and_where_probabilities_fail() -> None:
    r = np.random.default_rng(2)
    y, z, w = r.integers(0, 2, 500), r.normal(size=500) * 3, r.random(500)
    p = 1 / (1 + np.exp(-z))
    each = -(y * np.log(p) + (1 - y) * np.log(1 - p))
    assert logloss(y, z) == pytest.approx(each.mean(), rel=1e-12)
    assert logloss(y, z, w) == pytest.approx((each * w).sum() / w.sum(), rel=1e-12)
    assert logloss(y, logit(p)) == pytest.approx(each.mean(), rel=1e-12)
    assert logloss([0.25], [0.0]) == pytest.approx(math.log(2))  # soft labels
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert logloss([0, 1], [800.0, -800.0]) == 800.0
        assert logloss([1], [50.0]) == pytest.approx(math.exp(-50), rel=1e-12, abs=0)
        assert logloss([0], np.float32([60.0])) == 60.0  # where a float32 probability is 1
        assert np.isfinite(logit(np.float32([0, 1]))).all()


def test_one_class_has_no_normalised_entropy_however_it_is_weighed() -> None:
    r = np.random.default_rng(0)
    for _ in range(20):  # of such weights one mean in six is not exactly 1
        assert math.isnan(normalised_entropy(np.ones(101), np.zeros(101), r.random(101)))
    assert normalised_entropy([0.5, 0.5], [0.0, 0.0]) == pytest.approx(1.0)  # soft labels are of both classes


def test_normalised_entropy_and_calibration_of_the_base_rate_are_one() -> None:
    y = np.array([1, 0, 0, 0, 1, 0, 0, 0, 0, 0])
    z = np.full(10, math.log(0.2 / 0.8))
    assert normalised_entropy(y, z) == pytest.approx(1.0, rel=1e-12)
    assert calibration(y, z) == pytest.approx(1.0, rel=1e-12)
    w = np.where(y == 1, 4.0, 1.0)  # weighted, half of the mass is positive
    assert calibration(y, z, w) == pytest.approx(0.4)
    assert normalised_entropy(y, np.zeros(10), w) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize(
    ("base", "models"),
    [
        (0.7300, {0.7263: -1.61, 0.7304: 0.17, 0.7321: 0.91, 0.7324: 1.04, 0.7337: 1.61, 0.7348: 2.09}),
        (0.8624, {0.7742: -24.34, 0.8637: 0.36, 0.8679: 1.52, 0.8683: 1.63, 0.8818: 5.35, 0.8871: 6.82}),
    ],
)
def test_rela_impr_reproduces_the_din_paper(base: float, models: dict[float, float]) -> None:
    """Table 3 of Zhou et al., KDD 2018: MovieLens and Amazon (Electronics)."""
    for value, printed in models.items():
        assert rela_impr(value, base) == pytest.approx(printed, abs=0.01)
    assert rela_impr(base, base) == 0.0
    assert math.isnan(rela_impr(0.6, 0.5))


def test_rela_impr_over_a_base_below_chance_is_not_defined() -> None:
    """The formula would say -662 % of a model that orders better than such a base."""
    assert math.isnan(rela_impr(0.5256, 0.4954))


def test_examples_in_the_docstrings() -> None:
    for module in (ranking, probability):
        result = doctest.testmod(module)
        assert result.attempted > 2
        assert result.failed == 0
