"""Models with published settings (datasets/models/*.toml): each is read, built and trained for a step on made-up raw files.

Widths, layers and batches are those of the file; epochs alone are cut. The raw lines are those of the adapters' own tests.
"""

from __future__ import annotations

import sys
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

from finerank.cli import app as cli
from finerank.data.dataset import Dataset
from finerank.datasets.adapter import published
from finerank.recipe import Recipe, variants
from finerank.run import prepared
from finerank.training.evaluate import metrics, predict
from finerank.training.options import L2InLoss
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


def test_the_page_of_data_sets_names_each_once() -> None:
    lines = (Path(__file__).parents[1] / "docs" / "datasets.md").read_text().splitlines()
    cells = [tuple(cell.strip() for cell in line.split("|")[1:3]) for line in lines if line.startswith("| ")]
    assert [c for c in cells if c[0] in SETS] == [n for name in SETS for n in NAMED if n[0] == name]


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
    rows = data[name].rows_of(data[name].requests_of("train"))
    assert epoch.rows == (len(rows) if trainer.sampled is None else trainer.sampled.keep[rows].sum())
    moved = {n for n, t in trainer.model.named_parameters() if not torch.equal(t, before[n])}
    assert moved
    found = metrics(predict(trainer.model, trainer.builder, data[name].requests_of("test")))
    assert all(np.isfinite(head["logloss"]) for head in found.values() if "logloss" in head)


def test_one_is_trained_and_two_are_compared_by_the_verbs(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["finerank", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert left.value.code == 0
        return capsys.readouterr().out

    made = folders["frappe"]
    recipe, models = made / "recipe.toml", made / "models.toml"
    short = ("--set", "training.epochs=1", "--set", "training.threads=1")
    call("train", recipe, "--variants", models, "--only", "fm", "-o", tmp_path / "fm", *short)
    ran = Recipe.read(tmp_path / "fm" / "recipe.toml")
    assert (ran.model.name, ran.training.batch.rows, ran.training.plateau) == ("fm", 4096, 0.1)  # the recipe's stay
    assert ran.training.regularise == L2InLoss(strength=5e-6)
    words = ("--variants", models, "--only", "lr", "--only", "fm", "--seeds", 1, "--no-isolate", "-o", tmp_path / "b")
    assert "dcn" not in call("bench", recipe, *words, *short)
    assert {p.name for p in (tmp_path / "b" / "runs").iterdir()} == {"lr", "fm"}
    (tmp_path / "raw").mkdir()
    test_leaderboard.write("frappe", tmp_path / "raw")
    out = call("data", "frappe", "--from", tmp_path / "raw", "-o", tmp_path / "again")
    assert "lr, fm, ffm, fwfm" in " ".join(out.split())
