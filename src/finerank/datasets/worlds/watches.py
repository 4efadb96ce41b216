"""World 10: how long what was shown is watched, its expectation known. Who watches, and how long, goes by user and item.

P(watched) = sigmoid(bias + a_user + a_item); minutes of who watches: exponential with mean minutes · exp(b_user + b_item).
The odds of YouTube's weighted logistic regression are E[T] / P(not watched): near E[T] where few watch, above it where many do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from finerank.datasets.worlds.world import World, WorldOptions, categorical, draws, recipe, sigmoid, world


@dataclass(frozen=True, kw_only=True)
class WatchOptions(WorldOptions):
    """What was shown and watched.

    bias     of the log odds of a watch: -3 for some 5 % watched, 0 for half
    minutes  of the median item and user, once watched
    """

    rows: int = 100_000
    users: int = 300
    items: int = 300
    bias: float = -3.0
    minutes: float = 4.0
    seed: int = 0


def watches(options: WatchOptions = WatchOptions()) -> World:
    """The world. watch: minutes, 0 where not watched; true_watch: E[watch]; truth: `watched` [rows], P(watched)."""
    o = options
    law, draw = draws(o.seed, "law"), draws(o.seed, "rows")
    start_user, start_item, stay_user, stay_item = (0.6 * law.standard_normal(n) for n in (o.users, o.items) * 2)
    user, item = draw.integers(0, o.users, o.rows), draw.integers(0, o.items, o.rows)
    share = sigmoid(o.bias + start_user[user] + start_item[item])
    mean = o.minutes * np.exp(stay_user[user] + stay_item[item])
    watched = draw.random(o.rows) < share
    watch = np.where(watched, draw.exponential(mean), 0.0)
    columns = {"user": user, "item": item, "watch": watch, "true_watch": share * mean}
    made = recipe(
        [categorical("user", "request"), categorical("item")],
        [{"name": "watch", "kind": "regression"}],
        {"name": "youtube_ranking", "representation": "plain"},
    )
    return World(pl.DataFrame(columns), made, truth={"watched": share})


world("watches", WatchOptions, watches, "World 10: minutes watched, their expectation known.")
