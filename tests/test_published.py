"""Models with published settings (datasets/models/*.toml): each is read, built and trained for a step on made-up raw files.

Widths, layers and batches are those of the file; epochs alone are cut. The raw lines are those of the adapters' own tests.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_data_sets
import test_leaderboard
import torch
from by_adapter import converted
from test_census_ali_ccp import write_ali_ccp
from test_criteo_avazu import write_avazu, write_criteo

from finerank.data.dataset import Dataset
from finerank.datasets.adapter import published
from finerank.recipe import Recipe, variants
from finerank.run import prepared
from finerank.training.evaluate import metrics, predict
from finerank.training.stages import after_stages
from finerank.typed import read_toml

MODELS = Path(published.__code__.co_filename).parent / "models"
SETS: dict[str, tuple[Any, dict[str, Any]]] = {
    "criteo": (write_criteo, {"min_count": 1}),
    "avazu": (write_avazu, {"min_count": 1}),
    "amazon": (lambda folder: test_data_sets.small("amazon", folder), {}),
    "movielens_20m": (lambda folder: test_data_sets.small("movielens_20m", folder), {}),
    "ali_ccp": (write_ali_ccp, {"min_count": 1}),
    "frappe": (lambda folder: test_leaderboard.write("frappe", folder), {}),
    "movielens_latest": (lambda folder: test_leaderboard.write("movielens_latest", folder), {}),
}
NAMED = [(file.stem, name) for file in sorted(MODELS.glob("*.toml")) for name in read_toml(file)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What `finerank data NAME` writes, by name."""
    out = {}
    for name, (write, options) in SETS.items():
        folder = tmp_path_factory.mktemp(name)
        (folder / "raw").mkdir()
        write(folder / "raw")
        converted(name, folder / "raw", **options).write(folder / "made")
        out[name] = folder / "made"
    return out


@pytest.fixture(scope="module")
def data(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    return {
        name: prepared(Recipe.read(made / "recipe.toml"), tmp_path_factory.mktemp("data") / name)
        for name, made in folders.items()
    }


def test_every_set_has_its_models() -> None:
    assert {file.stem for file in MODELS.glob("*.toml")} == set(SETS)
    assert len(NAMED) > 80


@pytest.mark.parametrize(("name", "model"), NAMED, ids=["-".join(both) for both in NAMED])
def test_it_is_read_built_and_trained(
    name: str, model: str, folders: dict[str, Path], data: dict[str, Dataset]
) -> None:
    made = folders[name]
    table = variants(read_toml(made / "recipe.toml"), made / "models.toml", [model])[model]
    recipe = Recipe.parse(table, made, model)
    options = replace(recipe.training, epochs=1, monitor="logloss", threads=1, keep_memory=False, device="cpu")
    trainer = after_stages(recipe.model, data[name], options)
    before = {n: t.detach().clone() for n, t in trainer.model.named_parameters()}
    (epoch,) = trainer.fit()
    assert np.isfinite(epoch.loss)
    assert epoch.rows == len(data[name].rows_of(data[name].requests_of("train")))
    moved = {n for n, t in trainer.model.named_parameters() if not torch.equal(t, before[n])}
    assert moved
    found = metrics(predict(trainer.model, trainer.builder, data[name].requests_of("test")))
    assert all(np.isfinite(head["logloss"]) for head in found.values() if "logloss" in head)
