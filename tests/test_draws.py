"""Negatives for a whole log at once: the law, what is barred, and that nothing later matters."""

from __future__ import annotations

import numpy as np
import pytest

from finerank.data.draws import Draws, by_first_appearance
from finerank.datasets.implicit import Sampler
from finerank.errors import UserError


def log(events: int = 400, users: int = 12, items: int = 25, seed: int = 0) -> tuple[np.ndarray, ...]:
    draw = np.random.default_rng(seed)
    item = by_first_appearance((items * draw.random(events) ** 2).astype(np.int64))[0]
    return draw.integers(0, users, events), item, np.sort(draw.integers(0, events // 3, events))


def test_by_first_appearance() -> None:
    codes, old = by_first_appearance(np.array([7, 3, 7, 9, 3]))
    assert codes.tolist() == [0, 1, 0, 2, 1]
    assert old.tolist() == [7, 3, 9]


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_law_is_popularity_to_the_power_of_what_was_known(power: float) -> None:
    """Many draws for one row, against the probabilities worked out."""
    user, item, _ = log()
    known, rows = 150, 60_000
    drawn = Draws(item, user, power).draw(
        np.full(rows, 3), np.full(rows, known), np.full(rows, 200), 1, 5, np.arange(rows)
    )[:, 0]
    count = np.bincount(item[:known], minlength=item.max() + 1).astype(float)
    weight = np.where(count > 0, count**power, 0)
    weight[item[:200][user[:200] == 3]] = 0
    expected = rows * weight / weight.sum()
    found = np.bincount(drawn, minlength=len(expected))
    assert (found[expected == 0] == 0).all()
    some = expected > 0
    chi2 = float((((found - expected) ** 2)[some] / expected[some]).sum())
    assert chi2 < some.sum() + 5 * np.sqrt(2 * some.sum())


@pytest.mark.parametrize("power", [0.0, 0.75, 1.0])
def test_drawn_items_differ_are_known_and_not_the_users(power: float) -> None:
    user, item, _ = log()
    known = np.arange(len(item))
    drawn = Draws(item, user, power).draw(user, known, known + 1, 6, 1, known)
    for i, row in enumerate(drawn):
        able = set(item[:i]) - set(item[: i + 1][user[: i + 1] == user[i]])
        got = [d for d in row if d >= 0]
        assert len(set(got)) == len(got) == min(6, len(able))
        assert set(got) <= able
        assert (row[len(got) :] == -1).all()


def test_a_user_who_has_nearly_everything_gets_what_is_left() -> None:
    item = np.arange(500)
    user = np.where(item == 250, 1, 0)
    drawn = Draws(item, user).draw(np.zeros(1, int), np.array([500]), np.array([500]), 2, 0, np.zeros(1, int))
    assert drawn.tolist() == [[250, -1]]


@pytest.mark.parametrize("power", [0.0, 0.75, 1.0])
def test_rows_do_not_change_when_later_events_are_deleted(power: float) -> None:
    user, item, time = log()
    cut = int(np.searchsorted(time, time[250]))  # a moment stays whole
    whole = Sampler(user, item, time, power=power).candidates(np.arange(len(item)), 3)
    early = Sampler(user[:cut], item[:cut], time[:cut], power=power).candidates(np.arange(cut), 3)
    here = whole.event < cut
    assert here.sum() > 300
    for name in ("event", "item", "label"):
        np.testing.assert_array_equal(getattr(whole, name)[here], getattr(early, name))


def test_as_known_against_a_plain_loop() -> None:
    user, item, time = log()
    made = Sampler(user, item, time).candidates(np.arange(len(item)), 2)
    seen_first = 0
    for e in range(len(item)):
        rows = made.event == e
        before, through = time < time[e], time <= time[e]
        able = set(item[before]) - set(item[through & (user == user[e])])
        if item[e] not in item[before]:
            seen_first += 1
            assert not rows.any()
        elif able:
            assert made.item[rows & (made.label == 1)].tolist() == [item[e]]
            assert set(made.item[rows & (made.label == 0)]) <= able
            assert rows.sum() == 1 + min(2, len(able))
    assert made.left_out["first sight of the item"] == seen_first
    # the positive stands first about as often as any other
    first = made.label[np.flatnonzero(np.diff(made.event, prepend=-1))]
    assert 0.2 < first.mean() < 0.5


def test_paper_bars_the_users_whole_life_or_the_positive_alone() -> None:
    user, item, time = log()
    for barred in ("user", "item"):
        made = Sampler(user, item, time, "paper", 0.0, barred).candidates(np.arange(len(item)), 1)
        own = [i in item[user == user[e]] for e, i in zip(made.event, made.item, strict=True)]
        negative = made.label == 0
        assert any(np.array(own)[negative]) == (barred == "item")
        assert (made.item[negative] != item[made.event[negative]]).all()
        assert set(made.event) == set(range(len(item)))  # none is left out


def test_refusals() -> None:
    user, item, time = log()
    with pytest.raises(UserError, match=r"power = 2"):
        Draws(item, user, 2.0)
    with pytest.raises(UserError, match="1 or more"):
        Sampler(user, item, time).candidates(np.arange(3), 0)
    with pytest.raises(ValueError, match="first appearance"):
        Draws(np.array([1, 0]), np.array([0, 0]))


def test_what_the_user_gets_next_is_not_barred_yet() -> None:
    """Items 0 and 1 are known; user 0 has 0 and takes 1 at position 2: barred with 3 events, not with 2."""
    draws, one = Draws(np.array([0, 1, 1]), np.array([0, 1, 0])), np.zeros(200, int)
    assert (draws.draw(one, one + 2, one + 2, 1, 0, np.arange(200)) == 1).all()
    assert draws._has(one[:1], one[:1] + 1, one[:1] + 2).tolist() == [False]
    assert (draws.draw(one, one + 2, one + 3, 1, 0, np.arange(200)) == -1).all()
