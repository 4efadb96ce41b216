"""World 5: impressions, clicks, and conversions within clicks, with the conversion rate known where nobody clicked.

The users and items that are clicked differ from those that are not, and their conversion rate with them: a model of
conversions that learns from clicks alone (BASE) is wrong elsewhere; ESMM learns from all impressions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from finerank.datasets.worlds.world import World, WorldOptions, categorical, draws, recipe, sigmoid, world


@dataclass(frozen=True, kw_only=True)
class ConversionOptions(WorldOptions):
    """What ties conversions to clicks.

    relation, user_relation  the correlation of an item's pull to be clicked and to be bought, and of a user's readiness to
                             click and to buy; below 0 the clicked are bought less
    """

    rows: int = 100_000
    users: int = 500
    items: int = 500
    click_bias: float = -2.0
    conversion_bias: float = -1.5
    relation: float = 0.5
    user_relation: float = 0.0
    seed: int = 0


def conversions(options: ConversionOptions = ConversionOptions()) -> World:
    """The world. true_click, true_conversion: P(click), P(conversion | click), known for every impression."""
    o = options
    law, draw = draws(o.seed, "law"), draws(o.seed, "rows")
    click_user, click_item = law.standard_normal(o.users), law.standard_normal(o.items)
    buy_item = _related(click_item, o.relation, law.standard_normal(o.items))
    buy_user = _related(click_user, o.user_relation, law.standard_normal(o.users))
    user, item = draw.integers(0, o.users, o.rows), draw.integers(0, o.items, o.rows)
    p_click = sigmoid(o.click_bias + click_user[user] + click_item[item])
    p_buy = sigmoid(o.conversion_bias + buy_user[user] + buy_item[item])
    click = draw.random(o.rows) < p_click
    conversion = click & (draw.random(o.rows) < p_buy)
    samples = pl.DataFrame(
        {"user": user, "item": item, "click": click.astype(np.int8), "conversion": conversion.astype(np.int8)}
        | {"true_click": p_click, "true_conversion": p_buy}
    )
    made = recipe(
        [categorical("user", "request"), categorical("item")],
        [{"name": "click"}, {"name": "conversion", "within": "click"}],
        {"name": "esmm", "representation": {"kind": "plain"}},  # there is no past to pool
    )
    return World(samples, made)


def _related(x: np.ndarray, correlation: float, other: np.ndarray) -> np.ndarray:
    """Numbers of this correlation with x; other: independent of it."""
    out: np.ndarray = correlation * x + np.sqrt(1 - correlation**2) * other
    return out


world("conversions", ConversionOptions, conversions, "World 5: clicks and conversions within them, both laws known.")
