"""Transfer between tasks: twins are trained once, learn one task, and the table says what the runs gave."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from finerank.cli.app import verbs
from finerank.datasets.worlds.world import recipe
from finerank.errors import UserError
from finerank.recipe import Recipe
from finerank.report.pictures import gates
from finerank.report.run_report import run_report
from finerank.run import Run, run
from finerank.search.transfer import Transfer, line, markdown, transfer
from finerank.typed import to_toml


@pytest.fixture(scope="module")
def quarrel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, each about a direction of its own, and a bottom that can carry one direction only; `out` holds the runs."""
    folder = tmp_path_factory.mktemp("quarrel")
    draw = np.random.default_rng(0)
    x = draw.standard_normal((3_000, 2))
    label = (draw.random(x.shape) < 1 / (1 + np.exp(-3 * x))).astype(np.int8)
    pl.DataFrame({"a": x[:, 0], "b": x[:, 1], "left": label[:, 0], "right": label[:, 1]}).write_parquet(
        folder / "samples.parquet"
    )
    bottom = {"kind": "shared_bottom", "bottom": [1], "tower": [], "activation": "identity"}
    made = recipe(
        [{"kind": "numeric", "name": n, "level": "candidate", "transform": "none"} for n in "ab"],
        [{"name": "left"}, {"name": "right"}],
        {"name": "shared_bottom", "interactions": [bottom]},
        training={
            "epochs": 3,
            "batch": {"rows": 64},
            "dense": {"kind": "adam", "lr": 0.1},
            "threads": 1,
            "keep_memory": False,
        },
    )
    made["data"] = {"samples": "samples.parquet"} | made["data"]
    (folder / "r.toml").write_text(to_toml(made), encoding="utf-8")
    transfer(folder / "r.toml", folder / "out", seeds=2)
    return folder


def runs(folder: Path, name: str) -> list[Run]:
    return [Run.open(folder / "out" / name / f"seed{seed}") for seed in (1, 2)]


def test_of_two_directions_through_one_neuron_one_is_lost(quarrel: Path) -> None:
    found = {t["head"]: t for t in json.loads((quarrel / "out" / "transfer.json").read_text())["tasks"]}
    assert set(found) == {"left", "right"}
    assert found["right"]["verdict"] == "negative"  # the left took the neuron, and pays nothing that shows
    assert found["left"]["verdict"] == "not shown"
    for head, t in found.items():
        for column, name in (("alone", f"alone_{head}"), ("joint", "joint")):
            aucs = [r.metrics()["test"][head]["auc"] for r in runs(quarrel, name)]
            assert t[column] == pytest.approx(statistics.mean(aucs))
        assert t["difference"] == pytest.approx(t["joint"] - t["alone"])
        assert t["low"] < t["difference"] < t["high"]
        assert (t["high"] < 0) == (t["verdict"] == "negative")
    text = (quarrel / "out" / "transfer.md").read_text()
    assert "| left | auc |" in text
    assert text.count("| negative |") == text.count("| not shown |") == 1


@pytest.mark.parametrize(
    ("p", "ends", "shown"),
    [
        (2e-9, (0.01, 0.02), "| +0.0100 to +0.0200 | < .001 |"),
        (0.25, (-0.01, 0.02), "| -0.0100 to +0.0200 | 0.250 |"),
        (math.nan, (math.nan, math.nan), "|  |  |"),
    ],
)
def test_no_p_is_nought_and_none_is_not_a_number(p: float, ends: tuple[float, float], shown: str) -> None:
    task = Transfer(
        head="left", metric="auc", seeds=2, alone=0.6, joint=0.61, difference=0.01, low=ends[0], high=ends[1], p=p,
        verdict="not shown",
    )  # fmt: skip
    assert f"| left | auc | 0.6000 | 0.6100 | +0.0100 {shown} not shown |" in markdown("t", [task])
    assert "nan" not in line(task)


def test_a_twin_learns_one_task_and_has_the_same_rows_and_size(quarrel: Path) -> None:
    joint, twin = runs(quarrel, "joint")[0], runs(quarrel, "alone_left")[0]
    assert [(h.name, h.trained) for h in twin.heads] == [("left", True), ("right", False)]
    assert twin.recipe.training.tasks is not None
    assert joint.recipe.training.tasks is None
    assert joint.metrics()["parameters"] == twin.metrics()["parameters"]
    assert joint.dataset.folder.resolve() == twin.dataset.folder.resolve()
    weights = twin.trainer().model.state_dict()["interactions.0.bottom.first.weight"][0]
    assert abs(float(weights[0])) > 10 * abs(float(weights[1]))


def test_what_is_there_is_not_trained_again_and_another_recipe_is_refused(quarrel: Path) -> None:
    before = (quarrel / "out" / "joint" / "seed1" / "run.json").stat().st_mtime_ns
    transfer(quarrel / "r.toml", quarrel / "out", seeds=1)
    assert (quarrel / "out" / "joint" / "seed1" / "run.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="holds a run of another recipe; name another folder"):
        transfer(quarrel / "r.toml", quarrel / "out", seeds=1, overrides=["training.epochs=2"])
    transfer(quarrel / "r.toml", quarrel / "out", seeds=2)


def test_a_twin_may_be_another_network(quarrel: Path, tmp_path: Path) -> None:
    sets = {"--twin": 'model={name="lr", representation={kind="plain"}}', "--set": "training.epochs=1", "--seeds": "1"}
    told = [text for pair in sets.items() for text in pair]
    done = CliRunner().invoke(verbs(), ["transfer", str(quarrel / "r.toml"), "-o", str(tmp_path / "out"), *told])
    assert done.exit_code == 0, done.output
    assert "left" in done.output
    assert "written to" in done.output
    assert Run.open(tmp_path / "out" / "alone_left" / "seed1").recipe.model.name == "lr"
    assert Run.open(tmp_path / "out" / "joint" / "seed1").recipe.model.name == "shared_bottom"


def test_transfer_needs_tasks_to_go_between(quarrel: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"has one task; transfer is between tasks, so declare two \[\[task\]\] or more"
    ):
        transfer(quarrel / "r.toml", tmp_path / "a", overrides=['task=[{name="left"}]', 'model={name="lr"}'])
    with pytest.raises(UserError, match="leaves a task out"):
        transfer(quarrel / "r.toml", tmp_path / "b", overrides=['training.tasks={kind="fixed", weights={left=0.0}}'])


def test_a_run_keeps_what_its_gates_do_and_the_report_draws_it(quarrel: Path) -> None:
    assert "monitors" not in runs(quarrel, "joint")[0].metrics()
    assert gates({}) is None
    one = Recipe.read(quarrel / "r.toml", ['model={name="mmoe", interactions=[{kind="mmoe", experts=3}]}'])
    run(one, quarrel / "mmoe", quarrel / "out" / "data")
    made = Run.open(quarrel / "mmoe")
    watched = made.metrics()["monitors"]
    trainer = made.trainer()
    requests = made.dataset.requests_of("validation")
    whole = trainer.model.eval().monitor(trainer.builder.batch(requests))
    assert set(watched) == set(whole)
    for name, values in whole.items():
        assert watched[name] == pytest.approx(values.mean(0).tolist(), rel=1e-5)
    picture = gates(watched)
    assert picture is not None
    assert "Entropy: left" in picture.caption
    assert "experts used by each task" in run_report(made, rows=0)
