"""A run's folder: what is in it, that it is enough to repeat the run, and that nothing is ever overwritten."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tiny
import torch
from typer.testing import CliRunner

from finerank.cli.app import verbs
from finerank.data.builder import BatchBuilder
from finerank.data.dataset import Dataset
from finerank.errors import UserError
from finerank.explain.importance import permutation_importance
from finerank.metrics.probability import logloss
from finerank.metrics.ranking import auc, gauc
from finerank.models import registry
from finerank.recipe import Recipe
from finerank.run import SCORED, Result, Run, environment, prepared, reader_notes, run
from finerank.training.checkpoint import Checkpoints, restore
from finerank.training.evaluate import predict
from finerank.typed import plain, to_toml


def table(**training: Any) -> dict[str, Any]:
    """The tiny world as a recipe, two tasks, quick."""
    declared = tiny.schema(tasks=2)
    return {
        "data": {
            "samples": "samples.parquet",
            "events": "events.parquet",
            "keys": plain(tiny.KEYS),
            "split": {"validation": 0.2, "test": 0.2},
        },
        "feature": [plain(f) for f in declared.features],
        "history": [plain(h) for h in declared.histories],
        "task": [plain(t) for t in declared.tasks],
        "model": {"name": "din", "interactions": [{"kind": "tower", "hidden": [8]}]},
        "training": {"epochs": 3, "batch": {"rows": 32}, "keep_memory": False, "threads": 1, "monitor": "logloss"}
        | training,
    }


def logs(folder: Path, seed: int = 0) -> None:
    samples, events = tiny.frames(seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    samples.write_parquet(folder / "samples.parquet")
    events.write_parquet(folder / "events.parquet")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with logs, and a finished run in `run`."""
    folder = tmp_path_factory.mktemp("shop")
    logs(folder)
    run(Recipe.parse(table(), folder), folder / "run")
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ------------------------------------------------------------------------------------------------ what is in it


def test_the_folder_holds_what_it_promises(shop: Path) -> None:
    found = {p.name for p in (shop / "run").iterdir()}
    assert found == {
        "recipe.toml",
        "environment.json",
        "data",
        "curve.csv",
        "checkpoints",
        "best",
        "scores",
        "metrics.json",
        "run.json",
    }
    resolved = Recipe.read(shop / "run" / "recipe.toml")
    assert resolved == Recipe.parse(table(), shop)
    assert 'kind = "adam"' in resolved.toml()  # defaults included
    told = read(shop / "run" / "environment.json")
    assert told == environment(torch.device("cpu")) | {"threads": 1}
    assert told["torch"] == metadata.version("torch")


def test_the_curve_has_a_line_per_epoch(shop: Path) -> None:
    with (shop / "run" / "curve.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    result = read(shop / "run" / "metrics.json")
    assert [line["epoch"] for line in lines] == ["1", "2", "3"]
    assert result["epochs"] == 3
    best = lines[result["best_epoch"] - 1]
    for head, found in result["validation"].items():
        for metric, value in found.items():
            assert float(best[f"{head}.{metric}"]) == pytest.approx(
                math.nan if value is None else value, abs=0, nan_ok=True
            )
    scores = [float(line["click.logloss"]) + float(line["conversion.logloss"]) for line in lines]
    assert scores.index(min(scores)) == result["best_epoch"] - 1
    assert all(float(line["rows_per_second"]) > 0 and math.isfinite(float(line["loss"])) for line in lines)


def test_the_metrics_are_those_of_the_best_weights_on_disk(shop: Path) -> None:
    """Recomputed from nothing but the folder, request by request, with the metrics called by hand."""
    torch.set_num_threads(1)
    recipe = Recipe.read(shop / "run" / "recipe.toml")
    data = Dataset.open(shop / "run" / "data")
    model = registry.build(recipe.model, data.fitted)
    best = Checkpoints(shop / "run" / "best").load()
    assert best is not None
    restore(model, {name.removeprefix("model."): t for name, t in best.tensors.items()}, "best")
    model.eval()
    result = read(shop / "run" / "metrics.json")
    assert best.state["epoch"] == result["best_epoch"] - 1
    assert result["parameters"] == sum(p.numel() for p in model.parameters())
    builder = BatchBuilder(data, model.needs)
    test = np.flatnonzero(data.split == 2)
    assert len(test) == 12
    with torch.inference_mode():
        logits = torch.cat([model(builder.batch(np.array([r]))).logits for r in test]).numpy()
    rows = np.concatenate([np.arange(data.first[r], data.first[r + 1]) for r in test])
    users = np.concatenate([np.full(data.first[r + 1] - data.first[r], data.user[r]) for r in test])
    for i, task in enumerate(("click", "conversion")):
        inside = data.weights[rows, i] != 0
        labels, scores = data.labels[rows, i][inside], logits[inside, i]
        expected = {
            "auc": auc(labels, scores),
            "gauc": gauc(labels, scores, users[inside]).value,
            "logloss": logloss(labels, scores),
            "rows": len(labels),
        }
        got = {k: math.nan if v is None else v for k, v in result["test"][task].items()}
        assert got == pytest.approx(expected, rel=1e-5, nan_ok=True)
    assert result["test"]["conversion"]["rows"] < result["test"]["click"]["rows"]


# ------------------------------------------------------------------------------------------------ again


def lasting(folder: Path) -> tuple[Any, Any]:
    """What must be equal when a run is repeated: all metrics, and the losses; not how long it took."""
    result = read(folder / "metrics.json")
    with (folder / "curve.csv").open(newline="", encoding="utf-8") as file:
        curve = [[v for k, v in line.items() if k != "rows_per_second"] for line in csv.DictReader(file)]
    return {k: v for k, v in result.items() if k not in ("seconds", "training_rows_per_second")}, curve


@pytest.mark.parametrize("data", ["own", "shared"])
def test_its_own_recipe_repeats_it_bit_for_bit(shop: Path, tmp_path: Path, data: str) -> None:
    shared = shop / "run" / "data" if data == "shared" else None
    run(Recipe.read(shop / "run" / "recipe.toml"), tmp_path / "again", shared)
    assert lasting(tmp_path / "again") == lasting(shop / "run")
    kept, again = (Checkpoints(f / "best").load() for f in (shop / "run", tmp_path / "again"))
    assert kept is not None
    assert again is not None
    assert all(torch.equal(t, again.tensors[name]) for name, t in kept.tensors.items())
    assert (tmp_path / "again" / "data").exists() == (data == "own")


def test_another_seed_is_another_run(shop: Path, tmp_path: Path) -> None:
    run(Recipe.parse(table(seed=2), shop), tmp_path / "other", shop / "run" / "data")
    assert lasting(tmp_path / "other") != lasting(shop / "run")


@pytest.mark.parametrize(
    ("more", "resume", "message"),
    [
        ({}, False, r"run: holds a run already; go on with it \(--resume\), remove it, or name another folder"),
        ({"epochs": 4}, False, "run: holds a run already"),
        (
            {"epochs": 4},
            True,
            "run: holds a run of another recipe; resume with the recipe it was started with: "
            "training.epochs is 3 there, got 4$",
        ),
        ({"epochs": 4, "clip": 1.0}, True, r": training\.epochs is 3 there, got 4 \(1 more key differs\)$"),
        ({"clip": 1.0}, True, r": training\.clip is nothing there, got 1\.0$"),
    ],
)
def test_a_folder_with_a_run_is_left_alone(shop: Path, more: dict[str, Any], resume: bool, message: str) -> None:
    before = content(shop / "run")
    with pytest.raises(UserError, match=message):
        run(Recipe.parse(table(**more), shop), shop / "run", resume=resume)
    assert content(shop / "run") == before


def test_resuming_a_finished_run_trains_no_more(shop: Path, tmp_path: Path) -> None:
    shutil.copytree(shop / "run", tmp_path / "run")
    again = run(Recipe.parse(table(), shop), tmp_path / "run", resume=True)
    assert lasting(tmp_path / "run") == lasting(shop / "run")
    assert len(again.history) == 3
    kept = "checkpoints/CURRENT"
    assert (tmp_path / "run" / kept).read_bytes() == (shop / "run" / kept).read_bytes()


def test_resuming_where_nothing_is_begins(shop: Path, tmp_path: Path) -> None:
    """So that a script may always say --resume."""
    run(Recipe.parse(table(), shop), tmp_path / "run", resume=True)
    assert lasting(tmp_path / "run") == lasting(shop / "run")


# ------------------------------------------------------------------------------------------------ prepared data


def test_prepared_data_are_reused(shop: Path) -> None:
    before = content(shop / "run" / "data")
    steps: list[str] = []
    prepared(Recipe.parse(table(epochs=1), shop), shop / "run" / "data", steps.append)
    assert steps == []
    assert content(shop / "run" / "data") == before


@pytest.mark.parametrize("what", ["content", "time alone", "feature", "split", "keys", "another file"])
def test_prepared_data_of_something_else_are_refused(tmp_path: Path, what: str) -> None:
    logs(tmp_path)
    prepared(Recipe.parse(table(), tmp_path), tmp_path / "data")
    other = table()
    if what == "content":
        logs(tmp_path, seed=1)
    elif what == "time alone":
        os.utime(tmp_path / "events.parquet", (1, 1))
    elif what == "feature":
        other["feature"][0]["encoding"] = {"kind": "hashed"}
    elif what == "split":
        other["data"]["split"] = {"validation": 0.2, "test": 0.1}
    elif what == "keys":
        other["data"]["keys"]["time_unit"] = "ms"
    else:
        shutil.copy2(tmp_path / "samples.parquet", tmp_path / "copy.parquet")
        other["data"]["samples"] = "copy.parquet"
    before = content(tmp_path / "data")
    with pytest.raises(UserError, match=r"data: was prepared by another recipe or from files that have changed since"):
        prepared(Recipe.parse(other, tmp_path), tmp_path / "data")
    assert content(tmp_path / "data") == before


def test_data_that_differ_in_notes_alone_are_the_same(shop: Path) -> None:
    """And each recipe's own notes are told, though the prepared data hold those of the first."""
    before = content(shop / "run" / "data")
    noted = table()
    noted["data"]["notes"] = ["looks into the future"]
    recipe = Recipe.parse(noted, shop)
    data = prepared(recipe, shop / "run" / "data")
    assert content(shop / "run" / "data") == before
    assert data.manifest["notes"] == []
    assert reader_notes(recipe, data) == ["looks into the future"]
    assert Recipe.parse(recipe.resolved()) == recipe


def test_files_of_one_name_in_two_folders_are_told_apart(tmp_path: Path) -> None:
    samples, events = tiny.frames()
    for name, frame in (("train", samples), ("past", events)):
        (tmp_path / name).mkdir()
        frame.write_parquet(tmp_path / name / "log.parquet")
    there = table()
    there["data"] |= {"samples": "train/log.parquet", "events": "past/log.parquet"}
    prepared(Recipe.parse(there, tmp_path), tmp_path / "data")
    samples.head(100).write_parquet(tmp_path / "train" / "log.parquet")
    with pytest.raises(UserError, match="files that have changed"):
        prepared(Recipe.parse(there, tmp_path), tmp_path / "data")


def test_absolute_paths_and_patterns(shop: Path, tmp_path: Path) -> None:
    samples = pl.read_parquet(shop / "samples.parquet")
    samples.head(70).write_parquet(tmp_path / "part-1.parquet")
    samples.slice(70).write_parquet(tmp_path / "part-2.parquet")
    there = table()
    there["data"] |= {"samples": str(tmp_path / "part-*.parquet"), "events": str(shop / "events.parquet")}
    found = prepared(Recipe.parse(there, shop), tmp_path / "data")
    assert found.rows == samples.height
    samples.head(3).write_parquet(tmp_path / "part-3.parquet")  # one more hour
    with pytest.raises(UserError, match="files that have changed"):
        prepared(Recipe.parse(there, shop), tmp_path / "data")


@pytest.mark.parametrize("there", ["a file", "a folder with things"])
def test_other_peoples_things_are_left_alone(shop: Path, tmp_path: Path, there: str) -> None:
    place = tmp_path / "data"
    if there == "a file":
        place.write_text("mine")
    else:
        place.mkdir()
        (place / "mine").write_text("mine")
    with pytest.raises(UserError, match="data: exists and is not empty, but holds no prepared data"):
        prepared(Recipe.parse(table(), shop), place)
    assert content(tmp_path) == {"data" if there == "a file" else "data/mine": b"mine"}


@pytest.mark.parametrize("at", ["keys", "fit", "encode", "encode clicks"])
def test_preparing_may_be_cut_off_anywhere(shop: Path, tmp_path: Path, at: str) -> None:
    """As by a kill: what was half written is in nobody's way, and never opened."""

    class Cut(BaseException):
        pass

    def cut(step: str) -> None:
        if step == at:
            # a kill runs no clean-up: keep what is there, to put it back below
            for path in tmp_path.glob("data.partial"):
                shutil.copytree(path, tmp_path / "left", dirs_exist_ok=True)
            raise Cut

    recipe = Recipe.parse(table(), shop)
    with pytest.raises(Cut):
        prepared(recipe, tmp_path / "data", cut)
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / "data.partial").exists()
    if (tmp_path / "left").exists():
        (tmp_path / "left").rename(tmp_path / "data.partial")
    found = prepared(recipe, tmp_path / "data")
    assert content(tmp_path / "data") == content(shop / "run" / "data")
    assert found.rows == Dataset.open(shop / "run" / "data").rows
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_a_mistake_that_was_mended_is_forgotten(shop: Path, tmp_path: Path) -> None:
    """A run that failed before it trained leaves nothing that the next attempt stumbles over."""
    wrong = table()
    wrong["feature"][2]["column"] = "agee"
    with pytest.raises(UserError, match="no column 'agee'; did you mean 'age'"):
        run(Recipe.parse(wrong, shop), tmp_path / "run")
    needs = table()
    needs["model"] = {"name": "esmm"}
    needs["task"] = needs["task"][:1]
    with pytest.raises(UserError, match="model 'esmm' needs two tasks in the schema, and this schema has none"):
        run(Recipe.parse(needs, shop), tmp_path / "run")
    needs["model"] = {"name": "lr"}
    assert len(run(Recipe.parse(needs, shop), tmp_path / "run").history) > 0


# ------------------------------------------------------------------------------------------------ one class only


def one_class(folder: Path, low: float, high: float, label: int, monitor: str) -> Result:
    """A run in which every row between two shares of the log has the same click (one click a request elsewhere)."""
    samples, events = tiny.frames()
    count = samples.height
    number = pl.int_range(pl.len())
    within = (number >= int(low * count)) & (number < int(high * count))
    samples = samples.with_columns(pl.when(within).then(pl.lit(label)).otherwise("click").alias("click"))
    samples.write_parquet(folder / "samples.parquet")
    events.write_parquet(folder / "events.parquet")
    return on_clicks(folder, monitor)


def on_clicks(folder: Path, monitor: str) -> Result:
    there = table(monitor=monitor, epochs=1)
    there["task"] = [{"name": "click"}]
    there["model"] = {"name": "lr"}
    return run(Recipe.parse(there, folder), folder / "run")


def test_one_class_in_the_test_split_is_null_and_no_crash(tmp_path: Path) -> None:
    result = one_class(tmp_path, 0.75, 1.0, 0, "auc")
    assert math.isnan(result.test["click"]["auc"])
    text = (tmp_path / "run" / "metrics.json").read_text(encoding="utf-8")
    assert "NaN" not in text
    found = json.loads(text)["test"]["click"]
    assert (found["auc"], found["gauc"]) == (None, None)
    assert found["logloss"] > 0
    assert found["rows"] > 0


@pytest.mark.parametrize("monitor", ["auc", "gauc"])
def test_one_class_in_validation_is_a_sentence_before_any_training(tmp_path: Path, monitor: str) -> None:
    with pytest.raises(UserError, match=rf"training\.monitor = '{monitor}' is not defined .* monitor logloss"):
        one_class(tmp_path, 0.55, 0.85, 0, monitor)
    assert not (tmp_path / "run" / "checkpoints").exists()
    on_clicks(tmp_path, "logloss")  # the remedy, in the same folder


def test_one_class_in_validation_does_for_logloss(tmp_path: Path) -> None:
    result = one_class(tmp_path, 0.55, 0.85, 0, "logloss")
    assert math.isnan(result.history[0].validation["click"]["auc"])
    assert result.test["click"]["auc"] > 0
    assert "nan" in (tmp_path / "run" / "curve.csv").read_text()


def unlabelled(folder: Path, low: float) -> dict[str, Any]:
    """A recipe on a log whose last rows have no label for a second task: its window was still open."""
    samples, events = tiny.frames()
    late = pl.int_range(pl.len()) >= int(low * samples.height)
    samples.with_columns(late=pl.when(late).then(None).otherwise("click")).write_parquet(folder / "samples.parquet")
    events.write_parquet(folder / "events.parquet")
    there = table(epochs=1)
    there["task"] = [{"name": "late"}, {"name": "click"}]
    there["model"] = {"name": "lr"}
    return there


@pytest.mark.parametrize("monitor", ["auc", "logloss"])
def test_a_task_without_labels_in_validation_is_named_before_any_training(tmp_path: Path, monitor: str) -> None:
    there = unlabelled(tmp_path, 0.5)
    there["training"]["monitor"] = monitor
    with pytest.raises(
        UserError, match=r"no validation row counts for 'late'.*window still open.*data\.split\.validation"
    ):
        run(Recipe.parse(there, tmp_path), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_task_without_labels_in_the_test_split_is_told_of_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(to_toml(unlabelled(tmp_path, 0.77)), encoding="utf-8")
    folder = str(tmp_path / "run")

    def finerank(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(verbs(), arguments)
        assert result.exit_code == code, result.output
        return " ".join(result.output.split())

    told = "counts for 'late': they have no label (a window still open"
    assert told in finerank("train", str(tmp_path / "recipe.toml"), "-o", folder)
    assert told in finerank("evaluate", folder)
    finerank("report", folder)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "AUC of click lost" in page
    assert "AUC of late lost" not in page
    with pytest.raises(
        UserError, match=r"test rows that count for 'late'.*or there are none; accepted: a split with both"
    ):
        permutation_importance(Run.open(tmp_path / "run").trainer(), head="late")


def test_no_validation_and_no_test(shop: Path, tmp_path: Path) -> None:
    there = table()
    there["data"]["split"] = {"validation": 0, "test": 0.2}
    with pytest.raises(UserError, match=r"no validation requests.*data\.split\.validation"):
        run(Recipe.parse(there, shop), tmp_path / "none")
    there["data"]["split"] = {"validation": 0.2, "test": 0}
    there["model"] = {"name": "lr"}
    assert run(Recipe.parse(there, shop), tmp_path / "run").test == {}
    assert read(tmp_path / "run" / "metrics.json")["test"] == {}


def test_a_finished_run_is_read_back(shop: Path) -> None:
    again = Run.open(shop / "run")
    trainer = again.trainer()
    assert again.heads == trainer.model.heads
    for split in SCORED:
        stored = again.predictions(split)
        fresh = predict(trainer.model, trainer.builder, again.dataset.requests_of(split))
        np.testing.assert_array_equal(stored.logits, fresh.logits)
        np.testing.assert_array_equal(stored.labels, fresh.labels)
        np.testing.assert_array_equal(stored.rows, fresh.rows)
    assert again.metrics() == read(shop / "run" / "metrics.json")


def test_a_folder_without_a_finished_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no finished run here .*finerank train"):
        Run.open(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match=r"run.json: damaged"):
        Run.open(tmp_path)


def test_scores_of_other_data_are_refused(shop: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(shop / "run", copy)
    shutil.rmtree(copy / "scores" / "test")
    with pytest.raises(UserError, match="no scores of 'test'"):
        Run.open(copy).predictions("test")
    shutil.copytree(copy / "scores" / "validation", copy / "scores" / "test")
    with pytest.raises(UserError, match="is of another data set"):
        Run.open(copy).predictions("test")


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ({"name": "fm"}, "interaction 'fm' gives one output and the heads need 2"),
        ({"name": "pal"}, "needs train-only ids"),
    ],
)
def test_what_a_schema_is_not_enough_for_is_refused_before_data_are_prepared(
    shop: Path, tmp_path: Path, model: dict[str, Any], sentence: str
) -> None:
    """On a large log preparing takes hours."""
    recipe = table() | {"model": model}
    recipe["feature"] = [f for f in recipe["feature"] if f.get("use") != "train_only"]
    with pytest.raises(UserError, match=sentence):
        run(Recipe.parse(recipe, shop), tmp_path / "run")
    assert not (tmp_path / "run" / "data").exists()
