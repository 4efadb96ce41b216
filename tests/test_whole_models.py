"""Whole models by the pencil, where tests of single parts leave open how parts and heads are put together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import test_delay
import test_pal
from by_hand import (
    AGES,
    CATEGORIES,
    ITEMS,
    OF,
    PRICES,
    SMALL,
    USERS,
    Hand,
    batch_of,
    fitted,
    model_of,
    same,
    sigmoid,
    tower,
)
from test_autofis import product_by_hand, vectors_by_hand
from test_interactions_networks import cin_by_hand
from test_wide_deep import fm_by_hand, ids_by_hand, numbers_by_hand

from finerank.models.composition import Model
from finerank.schema import MISSING

# ------------------------------------------------------------------------------------------------ sums of logits


def products(model: Model, hand: Hand, n: int) -> float:
    at = "interactions.1.products"
    names = model.interactions[1].products.names  # type: ignore[union-attr]
    x, alpha = vectors_by_hand(hand, n, f"{at}.vectors"), hand.p[f"{at}.gates.weight"][0]
    return sum(a * product_by_hand(x, tuple(name.split("*"))) for a, name in zip(alpha, names, strict=True))


def linear(hand: Hand, n: int) -> float:
    return ids_by_hand(hand, n) + numbers_by_hand(hand, n)


NETWORK = tower("relu")
CIN = {"kind": "cin", "maps": [3, 2]}
MATCHED = SMALL | {"hidden": [3, 2]}
SUMS: dict[str, tuple[dict[str, Any], Callable[[Model, Hand, int], float]]] = {
    "autofis_fm": ({}, lambda model, hand, n: linear(hand, n) + products(model, hand, n)),
    "autofis_deepfm": (
        {"interactions": ["linear", "autofis", NETWORK]},
        lambda model, hand, n: linear(hand, n) + products(model, hand, n) + hand.tower(hand.row(n), 2),
    ),
    "xdeepfm": (
        {"interactions": ["linear", CIN, NETWORK]},
        lambda _, hand, n: (
            linear(hand, n) + cin_by_hand(hand, n, False, lambda x: x, "interactions.1") + hand.tower(hand.row(n), 2)
        ),
    ),
    "deepmcp": (
        {"representation": MATCHED, "interactions": [NETWORK]},
        lambda _, hand, n: hand.tower(hand.row(n, [hand.pooled(n)])),
    ),
    "youtube_ranking": (
        {"interactions": [NETWORK]},
        lambda _, hand, n: hand.tower(hand.row(n, [hand.pooled(n, mean=True)])),
    ),
}


@pytest.mark.parametrize("name", SUMS)
def test_logits_add_over_one_representation(name: str) -> None:
    table, logit = SUMS[name]
    model = model_of({"name": name, "representation": SMALL} | table)
    hand = Hand(model)
    expected = [logit(model, hand, n) + hand.p["head.bias"][0] for n in range(5)]
    assert same(model(batch_of()).logits[:, 0], expected)


# ------------------------------------------------------------------------------------------------ what training alone knows


def test_pal_serves_deepfm_and_judges_it_through_the_position() -> None:
    table = {"name": "pal", "representation": SMALL, "interactions": ["linear", "fm", NETWORK]}
    model = model_of(table, test_pal.fitted())
    hand, served, judged = Hand(model), [], []
    for n, position in enumerate(test_pal.POSITIONS):
        logit = linear(hand, n) + fm_by_hand(hand, n) + hand.tower(hand.row(n), 2) + float(hand.p["head.bias"][0])
        seen = 1.0 if position == 3 else sigmoid(1.0 + test_pal.values(model.head.seen, n))  # type: ignore[arg-type]
        served.append(logit)
        judged.append(math.log(seen * sigmoid(logit) / (1 - seen * sigmoid(logit))))
    logits = model(test_pal.batch()).logits
    assert same(logits[:, 0], served)
    assert same(model.head.logged(logits, test_pal.batch())[:, 0], judged)


def test_position_tower_serves_a_network_at_no_position_and_judges_it_at_the_true_one() -> None:
    heads = {"hidden": []}
    table = {"name": "position_tower", "representation": SMALL, "interactions": [NETWORK], "heads": heads}
    model = model_of(table, test_pal.fitted())
    hand, beside = Hand(model), model.head.tower
    main = [hand.tower(hand.row(n)) + hand.p["head.bias"][0] for n in range(5)]
    missing = sum(float(values.weight[MISSING, 0].detach()) for values in beside.values)  # type: ignore[union-attr]
    logits = model(test_pal.batch()).logits
    assert same(logits[:, 0], [logit + missing for logit in main])
    judged = model.head.logged(logits, test_pal.batch())[:, 0]
    assert same(judged, [logit + test_pal.values(beside, n) for n, logit in enumerate(main)])  # type: ignore[arg-type]


def test_dfm_is_two_sums_of_weights() -> None:
    """One for the conversion, one for the logarithm of the delay."""
    model = model_of({"name": "dfm"}, test_delay.fitted())
    hand = Hand(model)
    w = hand.rows_of("interactions.0.weights.tables.2.weight")
    numbers_R, numbers_N = (hand.p[f"interactions.0.numbers_{side}"][0] for side in "RN")
    expected = [
        w["user"][USERS[OF[n]]] + w["item"][ITEMS[n]] + w["category"][CATEGORIES[n]] + hand.p["head.bias"]
        + AGES[OF[n]] * numbers_R + PRICES[n] * numbers_N
        for n in range(5)
    ]  # fmt: skip
    assert same(model(test_delay.batch()).logits, expected)


# ------------------------------------------------------------------------------------------------ a network per task


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def own(model: Model, k: int) -> Hand:
    """The pencil over the parts of output k alone."""
    hand = Hand(model)
    hand.p = {name.replace(f".of.{k}.", "."): value for name, value in hand.p.items()}
    return hand


CHAINS: dict[str, Callable[[float, float], Sequence[float]]] = {
    "cvr_base": lambda a, b: [a, b],
    "unbias": lambda a, b: [a, b],
    "esmm_ns": lambda a, b: [a, b, logit(sigmoid(a) * sigmoid(b))],
    "aman": lambda a, b: [a, b, b],
    "division": lambda a, b: [a, logit(min(sigmoid(b) / sigmoid(a), 1 - 1e-6)), b],
}
"""From the logits of both networks to those of the heads: click, conversion within clicks, click and conversion."""


@pytest.mark.parametrize("name", CHAINS)
def test_two_networks_that_share_nothing_and_their_heads(name: str) -> None:
    table = {"name": name, "representation": SMALL, "interactions": [NETWORK]}
    model = model_of(table, fitted(("click", "conversion")))
    hands, bias = [own(model, k) for k in range(2)], Hand(model).p["head.bias"]
    expected = []
    for n in range(5):
        a, b = (hand.tower(hand.row(n, [hand.pooled(n)])) + bias[k] for k, hand in enumerate(hands))
        expected.append(CHAINS[name](a, b))
    assert same(model(batch_of(labels=[[0.0, 0.0]] * 5)).logits, expected)
