"""Ablations: what is asked of a recipe, that it is run once, and that the table says what the runs gave."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
import test_run

from finerank.data.dataset import Dataset
from finerank.errors import UserError
from finerank.recipe import Recipe
from finerank.run import Run
from finerank.search.ablation import ATTENTION, BASE, ablate, variants
from finerank.typed import to_toml

ONLY = ("softmax", "separate, concat", "without country", "without interests.rank", "dropout")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs, a recipe of DIN, and an ablation of it in `out`."""
    folder = tmp_path_factory.mktemp("shop")
    test_run.logs(folder)
    (folder / "r.toml").write_text(to_toml(test_run.table(epochs=1)), encoding="utf-8")
    ablate(folder / "r.toml", folder / "out", seeds=2, only=ONLY)
    return folder


def test_what_is_asked(shop: Path) -> None:
    data = Dataset.open(shop / "out" / "data")
    names = [v.name for v in variants(Recipe.read(shop / "r.toml"), data)]
    assert names[0] == BASE
    assert {v.name for v in ATTENTION} <= set(names)
    for name in ("country", "item", "tags", "clicks", "clicks.item", "clicks.age", "interests.rank"):
        assert f"without {name}" in names
    assert len(names) == len(set(names))
    linear = Recipe.read(shop / "r.toml", ["model.name=lr", "model.interactions=['linear']"])
    assert not {v.name for v in ATTENTION} & {v.name for v in variants(linear, data)}


def test_the_table_is_what_the_runs_gave(shop: Path) -> None:
    found = {o["name"]: o for o in json.loads((shop / "out" / "ablation.json").read_text())["variants"]}
    assert set(found) == {BASE, *ONLY}
    for name, folder in ((BASE, "as_it_is"), ("softmax", "softmax"), ("without country", "without_country")):
        measured = [Run.open(shop / "out" / folder / f"seed{seed}").metrics() for seed in (1, 2)]
        aucs = [m["test"]["click"]["auc"] for m in measured]
        assert found[name]["test"] == pytest.approx(statistics.mean(aucs))
        assert found[name]["spread"] == pytest.approx(statistics.stdev(aucs))
        assert found[name]["validation"] == pytest.approx(
            statistics.mean(m["validation"]["click"]["auc"] for m in measured)
        )
        if name != BASE:
            assert found[name]["difference"] == pytest.approx(found[name]["test"] - found[BASE]["test"])
            assert found[name]["low"] <= found[name]["difference"] <= found[name]["high"]
    text = (shop / "out" / "ablation.md").read_text()
    assert text.count("\n| ") == len([o for o in found.values() if not o["reason"]]) + 1


def test_the_variants_are_what_they_say(shop: Path) -> None:
    softmax = Run.open(shop / "out" / "softmax" / "seed1").recipe
    assert softmax.model.representation.unit.softmax
    assert Run.open(shop / "out" / "without_country" / "seed2").recipe.model.without == ("country",)
    assert Run.open(shop / "out" / "without_country" / "seed2").recipe.training.seed == 2


def test_what_is_finished_is_not_trained_again(shop: Path) -> None:
    at = shop / "out" / "softmax" / "seed1" / "metrics.json"
    before = at.stat().st_mtime_ns
    told: list[str] = []
    again = ablate(shop / "r.toml", shop / "out", seeds=2, only=ONLY, minutes=0, tell=told.append)
    assert at.stat().st_mtime_ns == before
    assert not any(o.reason for o in again)
    late = ablate(shop / "r.toml", shop / "out", seeds=2, only=("dot",), minutes=0)
    assert late[-1].reason.startswith("not run")


def test_what_cannot_be_says_why(shop: Path) -> None:
    with pytest.raises(UserError, match=r"no such variant; .*softmax"):
        ablate(shop / "r.toml", shop / "out", only=("softmx",))
    with pytest.raises(UserError, match="holds a run of another recipe"):
        ablate(shop / "r.toml", shop / "out", overrides=["training.epochs=2"])
