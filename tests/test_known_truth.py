"""What docs/known_truth.md measures, on functions and logs where it can be said by hand."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from finerank.datasets.worlds import SequenceOptions, sequences
from finerank.recipe import Recipe
from finerank.run import Run, prepared


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    return importlib.import_module(f"benchmarks.known_truth.{request.param}")


@pytest.mark.parametrize("module", ["interactions"], indirect=True)
def test_strength_is_the_pure_interaction_of_fields(module: ModuleType) -> None:
    draw = np.random.default_rng(0)
    ids = draw.integers(0, module.VALUES, (200_000, 3))
    sign = np.where(ids % 2 == 0, 1.0, -1.0)
    logit = 3.0 * sign[:, 0] + 0.5 * sign[:, 0] * sign[:, 1] + 0.25 * sign.prod(axis=1) + draw.standard_normal(len(ids))
    assert module.strength(logit, ids[:, :2]) == pytest.approx(0.5, abs=0.02)
    assert module.strength(logit, ids[:, [0, 2]]) < 0.05  # neither what one field says, nor noise, nor the triple
    assert module.strength(logit, ids) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("module", ["sequences"], indirect=True)
def test_favourites_of_earlier_items_by_brute_force(module: ModuleType, tmp_path: Path) -> None:
    world = sequences(SequenceOptions(users=20, length=8, items=12))
    world.converted("").write(tmp_path / "world")
    recipe = Recipe.read(tmp_path / "world" / "recipe.toml")
    data = prepared(recipe, tmp_path / "data")
    found = module.favourites(Run(tmp_path, recipe, data, ()), world.truth["favourites"])
    assert world.events is not None
    path = world.events["item"].to_numpy().reshape(20, 8)
    rows = data.rows_of(data.requests_of("test"))
    assert len(found) == len(rows) > 0
    samples = world.samples.sort("time", maintain_order=True)
    assert data.rows == samples.height
    expected = [
        [
            int((world.truth["favourites"][path[user, time - 1 - k]] == item).sum()) if time > k else -1
            for k in range(module.BACK)
        ]
        for user, time, item in samples[rows].select("user", "time", "item").iter_rows()
    ]
    assert found.tolist() == expected
    assert {-1, 0, 1} <= set(found.ravel().tolist())


@pytest.mark.parametrize("module", ["sequences"], indirect=True)
def test_preferred_compares_favourites_of_one_item_alone_with_those_of_none(module: ModuleType) -> None:
    one = np.eye(module.BACK, dtype=np.int64)
    none, early, twice = np.zeros((2, 5), dtype=np.int64), np.full((1, 5), -1), np.ones((1, 5), dtype=np.int64)
    favourite = np.concatenate([one, none, early, twice])
    score = np.array([3.0, 1.5, 0.0, 2.0, 1.0, 1.0, 2.0, 9.0, 9.0])
    assert module.preferred(score, favourite) == pytest.approx([1.0, 0.5, 0.0, 0.75, 0.25])
