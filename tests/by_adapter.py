"""What the tests of data-set adapters share: convert raw files, and train the recipe that comes out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from finerank.datasets.adapter import Converted, adapter
from finerank.recipe import Recipe
from finerank.run import Result, run

RAW = Path(__file__).parent / "raw"
"""Typed from the published formats by someone else than the adapters' author; what must come out: EXPECTED.md beside."""


def converted(name: str, folder: Path, **options: Any) -> Converted:
    found = adapter(name)
    return found.convert(folder, found.options(**options))


def samples(name: str, folder: Path, **options: Any) -> pl.DataFrame:
    return converted(name, folder, **options).samples.lazy().collect()


def trained(made: Converted, folder: Path, *overrides: str) -> Result:
    """`finerank train folder/made/recipe.toml`, for one epoch."""
    made.write(folder / "made")
    recipe = Recipe.read(folder / "made" / "recipe.toml", ("training.epochs=1", "training.threads=1", *overrides))
    return run(recipe, folder / "run")


def real(name: str) -> Path:
    """A folder of real files; the test is skipped where there are none."""
    root = os.environ.get("FINERANK_DATA")
    if root is None or not (Path(root) / name).is_dir():
        pytest.skip("needs FINERANK_DATA: a folder with the public data sets by name")
    return Path(root) / name
