"""World 7: conversions come late, and the log is cut before they all came. Chapelle, KDD 2014.

A click converts with probability p(x) after an exponential delay. At the snapshot a click is `elapsed` old; it counts as
converted when the delay was shorter. The younger the click, the more of its zeros are not yet ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from finerank.datasets.worlds.world import World, WorldOptions, categorical, draws, recipe, sigmoid, world

DAY = 86_400.0


@dataclass(frozen=True, kw_only=True)
class DelayOptions(WorldOptions):
    """days: from the first click to the snapshot; delay: its mean in days, over items."""

    rows: int = 60_000
    users: int = 300
    items: int = 300
    days: float = 10.0
    delay: float = 4.0
    bias: float = -0.5
    seed: int = 0


def delays(options: DelayOptions = DelayOptions()) -> World:
    """The world. conversion: as known at the snapshot; eventual: what it will be; elapsed, delay in seconds (delay null
    where there is no conversion); true_conversion: p."""
    o = options
    law, draw = draws(o.seed, "law"), draws(o.seed, "rows")
    pull_user, pull_item = law.standard_normal(o.users), law.standard_normal(o.items)
    slowness = o.delay * DAY * np.exp(law.normal(0, 0.5, o.items) - 0.125)  # of mean `delay`
    user, item = draw.integers(0, o.users, o.rows), draw.integers(0, o.items, o.rows)
    time = np.sort(draw.uniform(0, o.days * DAY, o.rows))
    p = sigmoid(o.bias + pull_user[user] + pull_item[item])
    eventual = draw.random(o.rows) < p
    delay = draw.exponential(slowness[item])
    elapsed = o.days * DAY - time
    conversion = eventual & (delay < elapsed)
    samples = pl.DataFrame(
        {
            "user": user,
            "item": item,
            "time": time.astype(np.int64),
            "elapsed": elapsed,
            "delay": pl.Series(delay).set(pl.Series(~eventual), None),
            "conversion": conversion.astype(np.int8),
            "eventual": eventual.astype(np.int8),
            "true_conversion": p,
        }
    )
    elapsed_feature = {"kind": "numeric", "name": "elapsed", "level": "candidate", "use": "train_only"}
    elapsed_feature |= {"transform": "none"}
    made = recipe(
        [categorical("user", "request"), categorical("item"), elapsed_feature],
        [{"name": "conversion"}, {"name": "delay", "kind": "regression", "within": "conversion"}],
        {"name": "dfm"},
        keys={"time": "time"},
    )
    return World(samples, made, truth={"mean_delay": slowness})


world("delays", DelayOptions, delays, "World 7: conversions that come late, a log that is cut before.")
