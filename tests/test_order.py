"""The order of an epoch and where its steps end: properties, a plain twin, and cases by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finerank.data.order import Budget, Step, shuffled, steps, windows
from finerank.errors import UserError

quick = settings(derandomize=True, max_examples=150, deadline=None)

# ------------------------------------------------------------------------------------------------ the order


@quick
@given(st.integers(0, 200), st.integers(1, 12), st.integers(1, 5), st.integers(0, 2**40), st.integers(0, 9))
def test_every_request_once_and_nothing_but_seed_and_epoch(
    count: int, block: int, window: int, seed: int, e: int
) -> None:
    requests = np.arange(count) * 3 + 7
    kept = requests.copy()
    order = shuffled(requests, seed, e, block, window)
    assert sorted(order.tolist()) == requests.tolist()
    assert np.array_equal(requests, kept)  # the caller's array is left alone
    np.random.seed(1)  # no hidden state takes part
    assert np.array_equal(shuffled(requests, seed, e, block, window), order)


def test_epochs_and_seeds_give_other_orders() -> None:
    requests = np.arange(300)
    orders = {tuple(shuffled(requests, seed, epoch, 20, 4).tolist()) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16
    assert tuple(requests.tolist()) not in orders


@quick
@given(st.integers(1, 200), st.integers(1, 12), st.integers(1, 5), st.integers(0, 99))
def test_a_window_holds_whole_blocks_and_nothing_else(count: int, block: int, window: int, seed: int) -> None:
    """So a pass reads every part of a file about once, whatever its size: each block is visited within one window."""
    order = shuffled(np.arange(count), seed, 0, block, window)
    block_of = (order // block).tolist()
    at = windows = 0
    while at < count:
        inside = list(dict.fromkeys(block_of[at:]))[:window]  # the blocks of this window, as they are first met
        end = at + sum(min(block, count - b * block) for b in inside)
        assert set(block_of[at:end]) == set(inside)  # all their requests, and none of another block
        at, windows = end, windows + 1
    assert windows == math.ceil(math.ceil(count / block) / window)


def test_blocks_are_in_random_order_and_mixed_within_a_window() -> None:
    order = shuffled(np.arange(1_000), 3, 0, block=10, window=5)
    windows = [set((order[at : at + 50] // 10).tolist()) for at in range(0, 1_000, 50)]
    assert all(len(w) == 5 for w in windows)
    assert max(max(w) - min(w) for w in windows) > 60  # blocks from far apart
    within = order[:50] // 10
    assert sum(a != b for a, b in pairwise(within.tolist())) > 25  # not block after block
    assert not np.array_equal(order[:50], np.sort(order[:50]))


def test_a_set_smaller_than_one_window_is_a_full_permutation() -> None:
    """Every request comes to every place about equally often (chi-square over 1,200 epochs), also across blocks."""
    places = np.zeros((12, 12))
    for epoch in range(1_200):
        order = shuffled(np.arange(12), 5, epoch, block=4, window=3)
        places[order, np.arange(12)] += 1
    chi = ((places - 100) ** 2 / 100).sum()
    assert chi < 190  # 121 degrees of freedom: 0.01 % lies above
    halves = [set(shuffled(np.arange(12), 5, epoch, 4, 3)[:6].tolist()) for epoch in range(50)]
    assert len({frozenset(h) for h in halves}) > 40


# ------------------------------------------------------------------------------------------------ steps


def plain_steps(rows: list[int], events: list[int], budget: Budget) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """One request after the other: it joins the step if both budgets allow, else the step closes before it."""
    most = float("inf") if budget.pairs is None else budget.pairs
    out: list[tuple[list[int], list[tuple[int, int]]]] = []
    here: list[int] = []
    for i, (n, t) in enumerate(zip(rows, events, strict=True)):
        n_all, p_all = sum(rows[j] for j in here) + n, sum(rows[j] * events[j] for j in here) + n * t
        if here and (n_all > budget.rows or p_all > most):
            out.append((here, []))
            here = []
        if n > budget.rows or n * t > most:
            size = 1  # rows that fit into one piece
            while size + 1 <= budget.rows and (size + 1) * t <= most and size < n:
                size += 1
            out.append(([i], [(low, min(n, low + size)) for low in range(0, n, size)]))
        else:
            here.append(i)
    return out + ([(here, [])] if here else [])


@quick
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=40),
    st.integers(1, 20),
    st.one_of(st.none(), st.integers(1, 60)),
)
def test_steps_equal_the_plain_twin_and_keep_the_budgets(
    sizes: list[tuple[int, int]], most: int, pairs: int | None
) -> None:
    rows, events = ([s[i] for s in sizes] for i in (0, 1))
    budget = Budget(rows=most, pairs=pairs)
    requests = 100 + np.arange(len(sizes))
    cut = steps(requests, np.array(rows, dtype=np.int64), np.array(events, dtype=np.int64), budget)
    assert [((s.requests - 100).tolist(), list(s.chunks)) for s in cut] == plain_steps(rows, events, budget)
    assert np.array_equal(np.concatenate([s.requests for s in cut] or [requests]), requests)  # once each, in order
    for step in cut:
        own = step.requests - 100
        n, p = sum(rows[i] for i in own), sum(rows[i] * events[i] for i in own)
        assert step.rows == n
        if not step.chunks:
            assert n <= most
            assert pairs is None or p <= pairs
            continue
        assert len(own) == 1
        assert n > most or (pairs is not None and p > pairs)
        assert [low for low, _ in step.chunks] == [0, *(high for _, high in step.chunks[:-1])]
        assert step.chunks[-1][1] == n
        for low, high in step.chunks:
            assert high - low <= most
            assert pairs is None or (high - low) * events[own[0]] <= pairs or high - low == 1  # a row cannot be cut


def test_steps_by_hand() -> None:
    def cut(
        rows: list[int], events: list[int], budget: Budget
    ) -> list[tuple[list[int], int, tuple[tuple[int, int], ...]]]:
        made = steps(np.arange(len(rows)), np.array(rows), np.array(events), budget)
        return [(s.requests.tolist(), s.rows, s.chunks) for s in made]

    budget = Budget(rows=10, pairs=40)
    assert cut([4, 6, 1], [0, 0, 0], budget) == [([0, 1], 10, ()), ([2], 1, ())]  # full to the last row
    assert cut([2, 2, 2], [10, 10, 0], budget) == [([0, 1, 2], 6, ())]  # 20 + 20 + 0 pairs
    assert cut([2, 2, 2], [10, 11, 0], budget) == [([0], 2, ()), ([1, 2], 4, ())]
    assert cut([25], [0], budget) == [([0], 25, ((0, 10), (10, 20), (20, 25)))]
    assert cut([5], [15], budget) == [([0], 5, ((0, 2), (2, 4), (4, 5)))]  # two rows are 30 pairs, three 45
    assert cut([2], [99], budget) == [([0], 2, ((0, 1), (1, 2)))]  # one row alone is above: it goes alone
    assert cut([1], [99], budget) == [([0], 1, ((0, 1),))]
    assert cut([2, 25, 2], [0, 0, 0], budget)[1][0] == [1]  # an oversized request shares its step with none
    assert cut([25], [99], Budget(rows=100, pairs=None)) == [([0], 25, ())]
    assert cut([], [], budget) == []


def test_what_a_step_is_by_default() -> None:
    assert Step(np.arange(2), 5).chunks == ()
    assert (Budget().rows, Budget().pairs) == (1_024, 1_000_000)


@pytest.mark.parametrize("given_", [{"rows": 0}, {"pairs": 0}, {"rows": -3, "pairs": None}])
def test_a_budget_of_nothing_is_refused(given_: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"batch: rows = .*, pairs = .*; accepted: whole numbers of at least 1"):
        Budget(**given_)


def test_windows_come_one_at_a_time_and_are_the_order() -> None:
    requests = np.arange(1_000) * 3
    found = list(windows(requests, 4, 2, 10, 7))
    assert [len(w) for w in found] == [70] * 14 + [20]
    assert np.array_equal(np.concatenate(found), shuffled(requests, 4, 2, 10, 7))
    assert shuffled(requests[:0], 4, 2).tolist() == [r for w in windows(requests[:0], 4, 2) for r in w] == []
