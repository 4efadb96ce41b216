"""Ablations: what is asked of a recipe, that it is run once, and that the table says what the runs gave."""

from __future__ import annotations

import json
import re
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import test_run

from finerank.data.dataset import Dataset
from finerank.errors import UserError
from finerank.recipe import Recipe
from finerank.run import Run
from finerank.search import ablation
from finerank.search.ablation import BASE, RANK, Outcome, _write, ablate, read, variants
from finerank.search.runs import trained
from finerank.typed import to_toml, with_values

ATTENTION = {
    *("softmax", "dot", "bilinear", "cosine", "separate", "separate, loop", "separate, concat"),
    *("recency", "decay", "with the sum", "pooled", "dropout", "start at .3"),
}
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
    assert set(names) >= ATTENTION
    for name in ("country", "item", "tags", "clicks", "clicks.item", "clicks.age", "interests.rank"):
        assert f"without {name}" in names
    assert len(names) == len(set(names))
    linear = Recipe.read(shop / "r.toml", ["model.name=lr", "model.interactions=['linear']"])
    assert not ATTENTION & {v.name for v in variants(linear, data)}


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


def test_a_table_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the middle, the folder keeps the table it had: a report of half a table could not be drawn."""
    first, second = Outcome(name=BASE, question=""), Outcome(name="softmax", question="?", reason="why")
    _write(tmp_path, Path("r.toml"), [first])

    def killed(self: Path, *_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        _write(tmp_path, Path("r.toml"), [first, second])
    assert [o.name for o in read(tmp_path)[1]] == [BASE]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ablation.json", "ablation.md"]


def test_the_variants_are_what_they_say(shop: Path) -> None:
    softmax = Run.open(shop / "out" / "softmax" / "seed1").recipe
    assert softmax.model.representation.unit.softmax
    assert Run.open(shop / "out" / "without_country" / "seed2").recipe.model.without == ("country",)
    assert Run.open(shop / "out" / "without_country" / "seed2").recipe.training.seed == 2


def asked(shop: Path, *overrides: str) -> tuple[Recipe, dict[str, Recipe]]:
    """(a recipe, what each variant makes of it)."""
    overrides = ("feature.interests.segments=[1]", *overrides)  # the default ends lie beyond its ranks
    recipe, data = Recipe.read(shop / "r.toml", overrides), Dataset.open(shop / "out" / "data")
    made = {v.name: Recipe.parse(with_values(recipe.resolved(), v.changes)) for v in variants(recipe, data)}
    return recipe, made


def test_what_the_recipe_has_is_asked_the_other_way_round(shop: Path) -> None:
    settings = [
        "unit.softmax=true",
        'unit.kind="dot"',
        'mode="separate"',
        'share="loop"',
        'recency="add"',
        "decay=86400.0",
    ]
    overrides = [f"model.representation.{key}" for key in [*settings, "also=['product', 'sum']"]]
    recipe, made = asked(shop, *overrides, "model.interactions.0.dropout=0.5")
    assert made[BASE] == recipe
    assert not {"softmax", "separate", "recency", "decay", "with the sum", "dropout"} & set(made)
    options = {name: one.model.representation for name, one in made.items()}
    assert not options["no softmax"].unit.softmax
    assert options["mlp"].unit.kind == "mlp"
    assert options["joined"].mode == "concat"
    assert options["separate, none"].share == "none"
    assert options["no recency"].recency == "none"
    assert options["no decay"].decay == 0
    assert options["no sum"].also == ("product",)
    assert made["no dropout"].model.interactions[0].dropout == 0
    assert {name for name, one in made.items() if one == recipe} == {BASE, "dot", "separate, loop"}


def test_one_thing_is_changed_at_a_time(shop: Path) -> None:
    parts = "model.interactions=['cross', {kind='tower', hidden=[6, 4]}]"
    options = ["embedding.width=4", "embedding.std=0.1", "decay=86400.0", "also=['product']"]
    recipe, made = asked(shop, parts, *(f"model.representation.{o}" for o in options))
    cross, tower = recipe.model.interactions
    assert made["dropout"].model.interactions == (cross, replace(tower, dropout=0.2))
    pooled, before = made["pooled"].model.representation, recipe.model.representation
    assert (pooled.embedding, pooled.decay) == (before.embedding, before.decay)
    assert made["with the sum"].model.representation.also == ("product", "sum")
    for name, one in made.items():
        assert (one.data, one.training) == (recipe.data, recipe.training)
        assert (one.schema == recipe.schema) == (not name.startswith("rank of"))
        if name not in ("dropout", "no dropout"):
            assert one.model.interactions == recipe.model.interactions


def test_a_rank_is_read_in_other_ways_on_the_same_rows(shop: Path) -> None:
    names = ("rank of interests: joint", "rank of interests: segments")
    overrides = ["feature.interests.segments=[1]"]
    found = ablate(shop / "r.toml", shop / "ranks", 1, overrides, names)
    assert [(o.name, o.question, o.reason) for o in found[1:]] == [(name, RANK, "") for name in names]
    assert all(o.low <= o.difference <= o.high for o in found[1:])
    common = Dataset.open(shop / "ranks" / "data")
    users = pl.read_parquet(common.folder / "users.parquet")
    for name, columns in zip(names, (["interests"], ["interests.top1"]), strict=True):
        data = Run.open(shop / "ranks" / re.sub(r"\W", "_", name) / "seed1").dataset
        assert data.folder.resolve() == (shop / "ranks" / re.sub(r"\W", "_", name) / "data").resolve()
        lists = [(c.name, c.ranks) for c in data.fitted.request.lists]
        assert lists == [(column, None) for column in columns]
        assert pl.read_parquet(data.folder / "users.parquet").equals(users)
        for part in ("user", "time", "split", "first", "labels", "weights"):
            np.testing.assert_array_equal(getattr(data, part), getattr(common, part))
        for block in ("request", "candidate"):  # every other field of every row is as it was
            np.testing.assert_array_equal(getattr(data, block).ids, getattr(common, block).ids)
    told: list[str] = []
    assert not any(o.reason for o in ablate(shop / "r.toml", shop / "ranks", 1, overrides, names, 0, told.append))


def test_ways_that_a_rank_cannot_be_read(shop: Path) -> None:
    found = ablate(
        shop / "r.toml", shop / "out", 2, only=["rank of interests: segments", "rank of interests: joint"], minutes=0
    )
    assert found[-2].reason.startswith("not run")
    assert "accepted: rising ranks from 1 to max_rank = 3" in found[-1].reason  # the default ends are 3 and 20
    assert not (shop / "out" / "rank_of_interests__joint").exists()
    names = set(asked(shop, 'feature.interests.rank="joint"')[1])
    assert {f"rank of interests: {way}" for way in ("embedded", "none")} <= names
    gone = set(asked(shop, 'model.without=["interests"]', 'feature.interests.rank="joint"')[1])
    assert not any(name.startswith("rank of") for name in gone)


def test_a_variant_that_equals_the_recipe_is_not_trained(shop: Path) -> None:
    dot = ablate(shop / "r.toml", shop / "dot", 1, ['model.representation.unit.kind="dot"'], ["dot", "mlp"])
    assert {o.name: o.reason for o in dot} == {BASE: "", "dot": "is the recipe as it is", "mlp": ""}
    assert not (shop / "dot" / "dot").exists()
    assert "- dot: is the recipe as it is\n" in (shop / "dot" / "ablation.md").read_text()
    loop = ['model.representation.share="loop"']
    twice = ablate(shop / "r.toml", shop / "loop", 1, loop, ["separate", "separate, loop"])
    assert twice[-1].reason == "is the same as 'separate'"


def test_what_is_finished_is_not_trained_again(shop: Path) -> None:
    at = shop / "out" / "softmax" / "seed1" / "metrics.json"
    before = at.stat().st_mtime_ns
    told: list[str] = []
    again = ablate(shop / "r.toml", shop / "out", seeds=2, only=ONLY, minutes=0, tell=told.append)
    assert at.stat().st_mtime_ns == before
    assert not any(o.reason for o in again)
    late = ablate(shop / "r.toml", shop / "out", seeds=2, only=("dot",), minutes=0)
    assert late[-1].reason.startswith("not run")


def test_a_refused_training_does_not_end_the_others(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(recipe: Recipe, at: Path, data: Path) -> Run:
        if at.parent.name == "dot":
            raise UserError("the loss became inf in epoch 1, step 3")
        return trained(recipe, at, data)

    monkeypatch.setattr(ablation, "trained", refusing)
    found = {o.name: o for o in ablate(shop / "r.toml", shop / "out", 1, only=["dot", "softmax"])}
    assert found["dot"].reason == "its training was refused: the loss became inf in epoch 1, step 3"
    assert found["softmax"].reason == ""
    assert "- dot: its training was refused: the loss became inf" in (shop / "out" / "ablation.md").read_text()


def test_what_cannot_be_says_why(shop: Path) -> None:
    with pytest.raises(UserError, match=r"no such variant; .*softmax"):
        ablate(shop / "r.toml", shop / "out", only=("softmx",))
    with pytest.raises(
        UserError, match=r"no such variant; accepted: .*'pooled', .*'separate, concat', 'separate, loop'"
    ):
        ablate(shop / "r.toml", shop / "out", only=("nope",))
    with pytest.raises(UserError, match=r"holds a run of another recipe; .*: training\.epochs is 1 there, got 2"):
        ablate(shop / "r.toml", shop / "out", overrides=["training.epochs=2"])
