"""World 3: every hour some items leave and new ones come, and tastes turn; what was learnt yesterday wears out.

logit = bias + <taste of the user's group at that hour, the item's vector>; the taste turns by `turn` radians an hour. New ids
carry the same sort of vectors, so a model that goes on learning keeps up, and one that stopped falls behind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from finerank.datasets.worlds.world import World, WorldOptions, categorical, draws, recipe, sigmoid, world


@dataclass(frozen=True, kw_only=True)
class DriftOptions(WorldOptions):
    """leave: the share of the shelf that is replaced by new ids each hour; turn: radians an hour."""

    hours: int = 24
    rows_per_hour: int = 4_000
    shelf: int = 300
    groups: int = 20
    leave: float = 0.05
    turn: float = 0.1
    strength: float = 1.5
    bias: float = -1.0
    seed: int = 0


def drift(options: DriftOptions = DriftOptions()) -> World:
    """The world; truth: `new` ids of each hour."""
    o = options
    law, draw = draws(o.seed, "law"), draws(o.seed, "rows")
    angle = law.uniform(0, 2 * np.pi, o.groups)
    shelf = np.arange(o.shelf)
    direction = law.uniform(0, 2 * np.pi, o.shelf)  # of the items on the shelf
    following = o.shelf
    new: list[np.ndarray] = []
    parts = []
    for hour in range(o.hours):
        gone = law.random(o.shelf) < (o.leave if hour else 0.0)
        count = int(gone.sum())
        shelf[gone] = np.arange(following, following + count)
        direction[gone] = law.uniform(0, 2 * np.pi, count)
        following += count
        new.append(shelf[gone].copy())
        group = draw.integers(0, o.groups, o.rows_per_hour)
        place = draw.integers(0, o.shelf, o.rows_per_hour)
        logit = o.bias + o.strength * np.cos(angle[group] + o.turn * hour - direction[place])
        p = sigmoid(logit)
        second = np.sort(draw.integers(0, 3_600, o.rows_per_hour))
        parts.append(
            pl.DataFrame(
                {
                    "time": hour * 3_600 + second,
                    "hour": np.full(o.rows_per_hour, hour),
                    "group": group,
                    "item": shelf[place],
                    "click": (draw.random(o.rows_per_hour) < p).astype(np.int8),
                    "true_click": p,
                }
            )
        )
    features = [categorical("group", "request"), categorical("item", encoding={"kind": "growing", "capacity": 5_000})]
    made = recipe(features, [{"name": "click"}], {"name": "fm"}, keys={"time": "time"}, training={"epochs": 10})
    return World(pl.concat(parts), made, truth={"new": new})


world("drift", DriftOptions, drift, "World 3: a shelf that changes every hour, tastes that turn.")
