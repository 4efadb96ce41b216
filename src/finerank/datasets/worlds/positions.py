"""World 6: a click needs a look, and looks fade down the page. Guo et al. (PAL), RecSys 2019.

P(click) = seen[position] · relevance(item). The old ranking puts good items higher (`loyalty`), so clicks alone overrate what
stood above; every item stands at several positions, so seen and relevance can be told apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from finerank.datasets.worlds.world import World, WorldOptions, categorical, draws, recipe, sigmoid, world


@dataclass(frozen=True, kw_only=True)
class PositionOptions(WorldOptions):
    """fade: seen[k] = k^-fade; loyalty: how far the old ranking follows relevance, 0 to 1."""

    requests: int = 10_000
    positions: int = 10
    items: int = 200
    fade: float = 0.8
    loyalty: float = 0.7
    seed: int = 0


def positions(options: PositionOptions = PositionOptions()) -> World:
    """The world; truth: `seen` by position (from 1), `relevance` by item. true_click is P(click | seen)."""
    o = options
    relevance = sigmoid(draws(o.seed, "law").normal(-1, 1, o.items))
    seen = np.arange(1, o.positions + 1.0) ** -o.fade
    draw = draws(o.seed, "rows")
    items = np.stack([draw.choice(o.items, o.positions, replace=False) for _ in range(o.requests)])
    noise = draw.standard_normal(items.shape)
    known = np.log(relevance[items] / (1 - relevance[items]))
    score = o.loyalty * known + np.sqrt(1 - o.loyalty**2) * noise
    items = np.take_along_axis(items, np.argsort(-score, axis=1), axis=1)
    p = relevance[items]
    click = draw.random(items.shape) < p * seen
    samples = pl.DataFrame(
        {
            "request": np.repeat(np.arange(o.requests), o.positions),
            "item": items.ravel(),
            "position": np.tile(np.arange(1, o.positions + 1), o.requests),
            "click": click.ravel().astype(np.int8),
            "true_click": p.ravel(),
        }
    )
    made = recipe(
        [categorical("item"), categorical("position", use="train_only")],
        [{"name": "click"}],
        {"name": "lr"},
        keys={"request": "request"},
    )
    return World(samples, made, truth={"seen": seen, "relevance": relevance})


world("positions", PositionOptions, positions, "World 6: clicks that need a look, looks that fade with the position.")
