"""World 4: two regressions whose relation is a dial. Ma et al. (MMoE), KDD 2018, section 3.2.

w1 = c u1, w2 = c (p u1 + sqrt(1 - p²) u2) with orthogonal unit vectors u1, u2; x ~ N(0, I);
y_k = w_k·x + sum_i sin(alpha_i w_k·x + beta_i) + noise of standard deviation .1. The cosine of w1 and w2 is p exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from finerank.datasets.worlds.world import World, WorldOptions, draws, recipe, world

SINES = 4
NOISE = 0.1


@dataclass(frozen=True, kw_only=True)
class SinusoidOptions(WorldOptions):
    """correlation: p, the relation of the tasks; width: d; law: draws of u1, u2 and the sines; seed: of the rows."""

    rows: int = 20_000
    width: int = 100
    correlation: float = 0.5
    scale: float = 1.0
    law: int = 0
    seed: int = 0


def directions(draw: np.random.Generator, width: int, correlation: float, scale: float = 1.0) -> np.ndarray:
    """w1 and w2, [2, d], with the cosine `correlation`."""
    axes, _ = np.linalg.qr(draw.standard_normal((width, 2)))
    u1, u2 = axes.T
    return scale * np.stack([u1, correlation * u1 + np.sqrt(1 - correlation**2) * u2])


def sines(draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(alpha, beta) of the sines."""
    return draw.uniform(1, 3, SINES), draw.uniform(0, 2 * np.pi, SINES)


def sums_of_sines(along: Any, alpha: Any, beta: Any) -> Any:
    """w·x [..., 2] -> E[y] [..., 2]; arrays or tensors."""
    phases = along[..., None] * alpha + beta
    return along + (np.sin(phases) if isinstance(phases, np.ndarray) else phases.sin()).sum(-1)


def sinusoids(options: SinusoidOptions = SinusoidOptions()) -> World:
    """The world; truth: `weights` [2, d]."""
    o = options
    law = draws(o.law, "law")
    weights = directions(law, o.width, o.correlation, o.scale)
    alpha, beta = sines(law)
    draw = draws(o.seed, "rows")
    x = draw.standard_normal((o.rows, o.width))
    mean = sums_of_sines(x @ weights.T, alpha, beta)  # [N, 2]
    y = mean + NOISE * draw.standard_normal(mean.shape)
    columns = {f"x{j}": x[:, j] for j in range(o.width)}
    columns |= {f"y{k + 1}": y[:, k] for k in range(2)} | {f"true_y{k + 1}": mean[:, k] for k in range(2)}
    numbers = [{"kind": "numeric", "name": f"x{j}", "level": "candidate", "transform": "none"} for j in range(o.width)]
    tasks = [{"name": f"y{k + 1}", "kind": "regression"} for k in range(2)]
    made = recipe(numbers, tasks, {"name": "base", "representation": {"kind": "plain"}}, training={"epochs": 10})
    return World(pl.DataFrame(columns), made, truth={"weights": weights})


world("sinusoids", SinusoidOptions, sinusoids, "World 4: two regressions of a chosen correlation (MMoE, section 3.2).")
