"""World 8: a log with a long tail, as logs are: item of rank r is taken in proportion to r^-exponent.

For samplers, hashing and vocabularies: everything about frequency is known. Taking an item depends on nothing but its
popularity, so a model against negatives drawn by popularity can learn nothing, and against uniform ones everything.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from finerank.datasets.worlds.world import World, WorldOptions, categorical, draws, recipe, world


@dataclass(frozen=True, kw_only=True)
class PopularityOptions(WorldOptions):
    """power: negatives are drawn in proportion to popularity^power (0: uniform, 1: as positives); negatives: of each event."""

    events: int = 50_000
    users: int = 1_000
    items: int = 2_000
    exponent: float = 1.0
    power: float = 0.0
    negatives: int = 1
    seed: int = 0


def popularity(options: PopularityOptions = PopularityOptions()) -> World:
    """The world; truth: `share` of each item (item 0 is the most popular)."""
    o = options
    share = np.arange(1, o.items + 1.0) ** -o.exponent
    share /= share.sum()
    law = share**o.power
    draw = draws(o.seed, "rows")
    item = draw.choice(o.items, o.events, p=share)
    user = draw.integers(0, o.users, o.events)
    time = np.arange(o.events)
    negative = draw.choice(o.items, (o.events, o.negatives), p=law / law.sum())
    candidates = np.concatenate([item[:, None], negative], axis=1)
    taken = np.zeros(candidates.shape, dtype=np.int8)
    taken[:, 0] = 1
    width = o.negatives + 1
    samples = pl.DataFrame(
        {
            "request": np.repeat(time, width),
            "user": np.repeat(user, width),
            "time": np.repeat(time, width),
            "item": candidates.ravel(),
            "taken": taken.ravel(),
            "true_taken": (
                share[candidates] / (share[candidates] + o.negatives * (law / law.sum())[candidates])
            ).ravel(),
        }
    )
    events = pl.DataFrame({"user": user, "time": time, "item": item})
    made = recipe(
        [categorical("item")],
        [{"name": "taken"}],
        {"name": "base"},
        keys={"request": "request", "user": "user", "time": "time"},
        histories=[{"name": "past", "fields": ["item"]}],
    )
    return World(samples, made, events, {"share": share})


world("popularity", PopularityOptions, popularity, "World 8: a Zipf log, negatives by a power of popularity.")
