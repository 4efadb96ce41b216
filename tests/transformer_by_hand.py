"""The transformer's equations over lists of vectors, one row and one head at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from by_hand import softmax

Vector = np.ndarray


def attend(
    p: Mapping[str, Vector], at: str, heads: int, x: Vector, others: Sequence[Vector]
) -> tuple[Vector, list[list[float]]]:
    """What x takes from the others, and its weights by head."""
    query, key, value = (p[f"{at}.{name}.weight"] for name in ("query", "key", "value"))
    each = len(query) // heads
    found, weights = [], []
    for h in range(heads):
        rows = slice(h * each, (h + 1) * each)
        q = query[rows] @ x
        w = softmax([float(q @ (key[rows] @ o)) / math.sqrt(each) for o in others])
        weights.append(w)
        found.append(sum((a * (value[rows] @ o) for a, o in zip(w, others, strict=True)), np.zeros(each)))
    return p[f"{at}.out.weight"] @ np.concatenate(found) + p[f"{at}.out.bias"], weights


def norm(p: Mapping[str, Vector], at: str, x: Vector) -> Vector:
    centred = x - x.mean()
    scaled: Vector = centred / math.sqrt(float(np.mean(centred**2)) + 1e-5)
    return scaled * p[f"{at}.weight"] + p[f"{at}.bias"]


def gelu(v: float) -> float:
    return 0.5 * v * (1 + math.erf(v / math.sqrt(2)))


ACT = {"leaky_relu": lambda v: v if v > 0 else 0.01 * v, "relu": lambda v: max(v, 0.0), "gelu": gelu}


def block(
    p: Mapping[str, Vector], at: str, heads: int, act: str, x: Vector, others: Sequence[Vector]
) -> tuple[Vector, list[list[float]]]:
    """One row of one block: x among the others (itself included, where it sees itself)."""
    attended, weights = attend(p, f"{at}.attention", heads, x, others)
    y = norm(p, f"{at}.norms.0", x + attended)
    hidden = np.array([ACT[act](v) for v in p[f"{at}.first.weight"] @ y + p[f"{at}.first.bias"]])
    return norm(p, f"{at}.norms.1", y + p[f"{at}.second.weight"] @ hidden + p[f"{at}.second.bias"]), weights
