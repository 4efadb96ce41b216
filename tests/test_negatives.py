"""The popularity sampler: its law against numbers worked out by hand, and a plain twin."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finerank.data.negatives import PopularitySampler
from finerank.errors import UserError
from finerank.runtime.hashing import mix, uniform

NONE = np.zeros(0, dtype=np.int64)
CHI2_999 = {4: 18.47, 5: 20.52}
"""Upper 0.1 % points of chi-square, by degrees of freedom."""


def sampler_of(counts: list[int], power: float = 0.75) -> PopularitySampler:
    sampler = PopularitySampler(power)
    sampler.add(np.arange(len(counts)), np.array(counts, dtype=np.int64))
    return sampler


def chi_square(seen: list[int], law: list[float]) -> float:
    expected = [p / sum(law) * sum(seen) for p in law]
    return sum((o - e) ** 2 / e for o, e in zip(seen, expected, strict=True))


@pytest.mark.parametrize("power", [0.0, 0.5, 0.75, 1.0])
def test_first_draw_follows_count_to_the_power_and_no_other(power: float) -> None:
    counts = [1, 3, 9, 27, 81]
    sampler = sampler_of(counts, power)
    drawn = Counter(int(sampler.draw(1, NONE, mix(7, i))[0]) for i in range(8000))
    seen = [drawn[i] for i in range(5)]
    assert chi_square(seen, [c**power for c in counts]) < CHI2_999[4]
    for other in (power - 0.2, power + 0.2):
        assert chi_square(seen, [c**other for c in counts]) > 2 * CHI2_999[4]


def test_two_draws_without_replacement_follow_the_law_worked_out_by_hand() -> None:
    """Weights 1, 2, 3: P(a then b) = w_a / 6 * w_b / (6 - w_a)."""
    law = {(0, 1): 4 / 60, (0, 2): 6 / 60, (1, 0): 5 / 60, (1, 2): 15 / 60, (2, 0): 10 / 60, (2, 1): 20 / 60}
    sampler = sampler_of([1, 2, 3], power=1)
    drawn = Counter(tuple(sampler.draw(2, NONE, mix(11, i)).tolist()) for i in range(9000))
    assert set(drawn) == set(law)
    assert chi_square([drawn[pair] for pair in law], list(law.values())) < CHI2_999[5]


def test_exclusion_leaves_the_law_of_the_others() -> None:
    sampler = sampler_of([5, 50, 5, 10, 20, 40, 3], power=0.75)
    drawn = Counter(int(sampler.draw(1, np.array([1, 6, 1]), mix(3, i))[0]) for i in range(6000))
    assert set(drawn) == {0, 2, 3, 4, 5}
    assert chi_square([drawn[i] for i in (0, 2, 3, 4, 5)], [c**0.75 for c in (5, 5, 10, 20, 40)]) < CHI2_999[4]


@settings(derandomize=True, max_examples=80, deadline=None)
@given(
    counts=st.lists(st.integers(0, 50), min_size=1, max_size=30),
    exclude=st.lists(st.integers(0, 40), max_size=20),
    n=st.integers(0, 35),
    power=st.sampled_from([0.0, 0.75, 1.0]),
    key=st.integers(0, 2**64 - 1),
)
def test_equals_its_plain_twin(counts: list[int], exclude: list[int], n: int, power: float, key: int) -> None:
    arrival = {
        item: -math.log1p(-float(uniform(key, np.array([item]))[0])) / count**power
        for item, count in enumerate(counts)
        if count and item not in exclude
    }
    plain = sorted(arrival, key=lambda item: (arrival[item], item))[:n]
    drawn = sampler_of(counts, power).draw(n, np.array(exclude, dtype=np.int64), key)
    assert drawn.tolist() == plain
    assert len(drawn) == min(n, len(arrival))  # all there are, if fewer than asked


def test_fewer_available_than_asked() -> None:
    sampler = sampler_of([4, 0, 2, 9, 1])
    assert sorted(sampler.draw(10, np.array([3, 77]), key=5).tolist()) == [0, 2, 4]  # 1 was never seen
    assert sampler.draw(2, np.arange(5), key=5).tolist() == []
    assert PopularitySampler().draw(3, NONE, key=5).tolist() == []


def test_fewer_asked_is_a_prefix_and_other_draws_do_not_matter() -> None:
    sampler = sampler_of(list(range(1, 60)))
    five = sampler.draw(5, NONE, key=1)
    assert len(set(five.tolist())) == 5
    sampler.draw(9, NONE, key=2)
    assert sampler.draw(3, NONE, key=1).tolist() == five[:3].tolist()
    assert sampler.draw(5, NONE, key=2).tolist() != five.tolist()


def test_time_advances_by_adding() -> None:
    steps = PopularitySampler(0.75)
    for item in (0, 2, 1, 2, 2, 9):
        steps.add(np.array([item]))
    at_once = PopularitySampler(0.75)
    at_once.add(np.array([2, 0, 9, 2]), np.array([2, 1, 1, 1]))
    at_once.add(np.array([1, 5]), np.array([1, 0]))
    assert steps.counts.tolist() == at_once.counts.tolist() == [1, 1, 3, 0, 0, 0, 0, 0, 0, 1]
    for key in range(50):
        assert steps.draw(4, NONE, key).tolist() == at_once.draw(4, NONE, key).tolist()
    before = steps.draw(4, NONE, key=1)
    steps.add(NONE)
    assert steps.draw(4, NONE, key=1).tolist() == before.tolist()
    steps.add(np.array([7]), 10**6)
    assert steps.draw(1, NONE, key=1).tolist() == [7]
    steps.counts[:] = 0  # a copy
    assert steps.counts[7] == 10**6


@pytest.mark.parametrize("power", [-0.1, math.nan, math.inf])
def test_bad_power(power: float) -> None:
    with pytest.raises(UserError, match="power"):
        PopularitySampler(power)


@pytest.mark.parametrize(
    ("items", "counts", "word"),
    [
        ([-1], 1, "items"),
        ([0.5], 1, "items"),
        ([[1, 2]], 1, "items"),
        ([1, 2], [1, 2, 3], "counts"),
        ([1], -1, "counts"),
        ([1], 0.5, "counts"),
    ],
)
def test_bad_additions_change_nothing(items: list[int], counts: int | list[int], word: str) -> None:
    sampler = sampler_of([1, 2])
    with pytest.raises(UserError, match=word):
        sampler.add(np.array(items), np.array(counts))
    assert sampler.counts.tolist() == [1, 2]


def test_bad_draws() -> None:
    sampler = sampler_of([1, 2])
    with pytest.raises(UserError, match="n = -1"):
        sampler.draw(-1, NONE, key=0)
    with pytest.raises(UserError, match="exclude"):
        sampler.draw(1, np.array([True, False]), key=0)
