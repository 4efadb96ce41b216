"""World 1: one planted pair and one planted triple of fields decide; no field says anything alone.

logit = bias + second · <a_A, b_B> + third · sum_d c_C d_D e_E, of fields A ... H; F, G and H are noise. FM-like models find
the pair, CIN of two layers and AutoCross the triple, AutoFIS drops the other pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from finerank.datasets.worlds.world import World, WorldOptions, categorical, draws, recipe, sigmoid, world

FIELDS = "ABCDEFGH"
PAIR, TRIPLE = "AB", "CDE"
RANK = 4
"""Width of the planted vectors: an embedding of this width can say it all."""


@dataclass(frozen=True, kw_only=True)
class InteractionOptions(WorldOptions):
    """second, third: how strongly the pair and the triple speak (standard deviation of their part of the logit)."""

    rows: int = 60_000
    values: int = 20
    second: float = 1.5
    third: float = 1.0
    bias: float = -1.0
    seed: int = 0


def interactions(options: InteractionOptions = InteractionOptions()) -> World:
    """The world; truth: the planted `pair` and `triple`."""
    draw = draws(options.seed, "law")
    vectors = {f: draw.standard_normal((options.values, RANK)) for f in PAIR + TRIPLE}
    ids = draws(options.seed, "rows").integers(0, options.values, (options.rows, len(FIELDS)))
    column = {f: ids[:, i] for i, f in enumerate(FIELDS)}

    def product(fields: str) -> np.ndarray:
        """The planted interaction of these fields, mean 0 and standard deviation 1 over all values."""
        part = np.ones((options.rows, RANK))
        for f in fields:
            part *= (vectors[f] - vectors[f].mean(axis=0))[column[f]]  # centred: no main effects
        total: np.ndarray = part.sum(axis=1)
        return total / max(float(total.std()), 1e-12)

    p = sigmoid(options.bias + options.second * product(PAIR) + options.third * product(TRIPLE))
    click = (draws(options.seed, "labels").random(options.rows) < p).astype(np.int8)
    samples = pl.DataFrame({f: column[f] for f in FIELDS} | {"click": click, "true_click": p})
    made = recipe([categorical(f) for f in FIELDS], [{"name": "click"}], {"name": "fm"}, training={"epochs": 10})
    return World(samples, made, truth={"pair": tuple(PAIR), "triple": tuple(TRIPLE)})


world("interactions", InteractionOptions, interactions, "World 1: a planted pair and a planted triple of fields.")
