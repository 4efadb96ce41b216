"""What all sections share: the page's piece that a world gives, and training on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from finerank.datasets.worlds.world import World
from finerank.fresh.score import FreshScorer
from finerank.recipe import Recipe
from finerank.run import Run, run

Array = np.ndarray[Any, Any]
ADAM = '{kind="adam", lr=0.02}'
QUICK = (f"training.tables={ADAM}", f"training.dense={ADAM}", "training.monitor=logloss", "training.epochs=6")


@dataclass(frozen=True)
class Section:
    """What one world showed: prose, a table (header first), and a picture with what it shows in words."""

    title: str
    text: str
    table: Sequence[Sequence[str]]
    picture: str = ""
    describe: str = ""


def trained(world: World, folder: Path, name: str, overrides: Sequence[str]) -> Run:
    """The world's recipe with overrides, trained in folder/name unless it is there; one prepared data set for all."""
    if not (folder / "world" / "recipe.toml").exists():
        world.converted(name).write(folder / "world")
    at = folder / name
    if not (at / "run.json").exists():
        recipe = Recipe.read(folder / "world" / "recipe.toml", tuple(overrides))
        run(recipe, at, folder / "data", resume=(at / "recipe.toml").exists())
    return Run.open(at)


def predicted(fitted: Run, samples: pl.DataFrame) -> dict[str, Array]:
    """Probability of every row by head, in the order of the samples."""
    scored = [batch.logits for batch in FreshScorer(fitted).batches(samples.lazy())]
    logits = np.concatenate(scored).astype(np.float64)
    return {head.name: 1 / (1 + np.exp(-logits[:, i])) for i, head in enumerate(fitted.heads)}


def last_tenth(world: World) -> Array:
    """bool [rows]: what a split by time keeps for the test, about; worlds are drawn in order of time."""
    rows = world.samples.height
    return np.arange(rows) >= rows - rows // 10


def error(p: Array, true: Array) -> float:
    """Mean absolute difference of two probabilities."""
    return float(np.abs(p - true).mean())


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean and standard deviation over seeds."""
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"
