"""Training in several steps: kill -9 in each, what is handed over, what a run's folder says, and what is refused."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import training_victim
from test_run import logs
from test_run import table as recipe_table
from torch import Tensor
from typer.testing import CliRunner

from finerank.cli.app import verbs
from finerank.data.dataset import Dataset
from finerank.errors import UserError
from finerank.models.registry import composition, parse
from finerank.recipe import Recipe
from finerank.report.run_report import _timings
from finerank.run import Run, run
from finerank.training.checkpoint import Checkpoints
from finerank.training.loop import Progress, Trainer
from finerank.training.options import FTRL, Adam, TrainingOptions
from finerank.training.stages import after_stages, amended
from finerank.typed import plain, read_toml, to_toml

FNN: dict[str, Any] = {"name": "fnn", "interactions": [{"kind": "fnn", "hidden": [4]}]}
AUTOFIS: dict[str, Any] = {"name": "autofis_fm", "interactions": ["linear", {"kind": "autofis", "c": 0.1}]}
TREES: dict[str, Any] = {"name": "gbdt_lr", "interactions": [{"kind": "leaves", "trees": 5}]}
MODELS: dict[str, dict[str, Any]] = {"fnn": FNN, "autofis_fm": AUTOFIS, "gbdt_lr": TREES}
QUICK = TrainingOptions(epochs=2, keep_memory=False, threads=1, monitor="logloss")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    torch.set_num_threads(1)
    return tiny.dataset(tmp_path_factory.mktemp("data") / "one", tasks=1)


# ------------------------------------------------------------------------------------------------ kill -9


@pytest.fixture(scope="module")
def victim() -> Iterator[Any]:
    command = [sys.executable, training_victim.__file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        to, answers = process.stdin, process.stdout

        def order(**what: Any) -> bool:
            print(json.dumps(what), file=to, flush=True)
            answer = json.loads(answers.readline())
            assert answer["signal"] in (0, signal.SIGKILL)
            assert answer["exit"] == 0, "the child failed: see its traceback above"
            return bool(answer["signal"])

        yield order
        process.stdin.close()


def kept(folder: Path) -> dict[str, Tensor]:
    """All that the checkpoints of a run and of its stages hold."""
    out = {}
    for at in sorted(p.parent for p in folder.rglob("CURRENT")):
        found = Checkpoints(at).load()
        assert found is not None
        out |= {f"{at.relative_to(folder)}: {name}": t for name, t in found.tensors.items()}
    return out


@pytest.mark.parametrize("point", ["write", "step"])
@pytest.mark.parametrize("name", MODELS)
def test_killed_at_every_turn_of_every_stage(name: str, point: str, data: Dataset, victim: Any, tmp_path: Path) -> None:
    """Killed at the first such point, resumed and killed at the second, then the third, ..., until it comes to its end."""
    options = training_victim.STAGED
    after_stages(parse(MODELS[name]), data, options, tmp_path / "whole").fit()
    order = {"data": str(data.folder), "folder": str(tmp_path / "cut"), "point": point, "model": MODELS[name]}
    kills, places = 0, set[str]()
    while victim(**order, kill_at=kills + 1):
        kills += 1
        assert kills < 60
        own = any((tmp_path / "cut" / "checkpoints").glob("generation-*"))
        places.add("own" if own else "stage")
    assert kills >= 2
    assert places == {"own", "stage"} or (name == "gbdt_lr" and point == "step")  # trees take no steps
    expected, found = kept(tmp_path / "whole"), kept(tmp_path / "cut")
    assert found.keys() == expected.keys()
    assert any(key.startswith("stages/") for key in found)
    assert [key for key in found if not torch.equal(found[key], expected[key])] == []


# ------------------------------------------------------------------------------------------------ the contract


def test_a_model_that_trains_in_stages_is_not_trained_without_them(data: Dataset) -> None:
    with pytest.raises(UserError, match=r"'fnn' trains in stages \(fm\) before this training: .*after_stages"):
        Trainer(parse(FNN), data, QUICK).fit()
    assert after_stages(composition("lr"), data, QUICK).stages == {}


def test_stages_change_the_training_by_their_own_keys(data: Dataset) -> None:
    (stage,) = parse(FNN | {"stages": {"fm": {"training": {"epochs": 5, "tables": {"lr": 0.5}}}}}).stages
    assert amended(QUICK, stage) == replace(QUICK, epochs=5, tables=Adam(lr=0.5))
    (stage,) = parse(FNN | {"stages": [{"kind": "fm", "training": {"tables": {"kind": "ftrl", "l1": 1.0}}}]}).stages
    assert amended(QUICK, stage) == replace(QUICK, tables=FTRL(l1=1.0))
    before = replace(QUICK, tables=FTRL(l1=1.0))  # of another kind: nothing is left of this one
    (stage,) = parse(FNN | {"stages": {"fm": {"training": {"tables": {"kind": "adam"}}}}}).stages
    assert amended(before, stage) == replace(QUICK, tables=Adam())
    (stage,) = parse(FNN).stages
    assert amended(QUICK, stage) is QUICK
    trained = after_stages(parse(FNN | {"stages": {"fm": {"training": {"epochs": 1}}}}), data, QUICK)
    assert trained.stages is not None
    assert trained.stages["fm"]["epochs"] == 1
    assert len(trained.fit()) == 2


def test_stages_survive_a_recipe() -> None:
    changed = FNN | {"stages": {"fm": {"training": {"epochs": 5}}}}
    for given in (FNN, changed, FNN | {"stages": []}):
        model = parse(given)
        assert parse(model.table()) == model
    assert parse(FNN | {"stages": []}).stages == ()
    assert "stages" not in composition("din").table()


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"fmm": {}}, r"model\.stages\.fmm: the model has no such stage; did you mean 'fm'\?"),
        ({"fm": {"epochs": 3}}, r"model\.stages\.fm\.epochs: unknown key; accepted: kind, training"),
        ([{"kind": "fmm"}], r"model\.stages\[0\]\.kind: got 'fmm' \(string\); .*fm"),
        (["fm", "fm"], r"model\.stages: 'fm' is given twice"),
        (3, r"model\.stages: got 3; accepted: a list of stages"),
        ("fm", r"model\.stages: got 'fm'; accepted: a list of stages"),
        ({"fm": {"training": {"epoch": 3}}}, r"model\.stages\.fm\.training\.epoch: unknown key; did you mean 'epochs'"),
        ({"fm": {"training": {"epochs": 0}}}, r"model\.stages\.fm\.training: epochs: got 0"),
    ],
)
def test_bad_stages_are_one_sentence_when_the_recipe_is_read(stages: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Recipe.parse(recipe_table() | {"model": FNN | {"stages": stages}})


def test_a_stage_that_the_model_cannot_use_is_refused(data: Dataset) -> None:
    with pytest.raises(UserError, match="stage 'fm' gives values to an interaction 'fnn', and the model has tower"):
        after_stages(parse({"name": "base", "stages": ["fm"]}), data, QUICK)


@pytest.mark.parametrize(("name", "stage"), [("fnn", "fm"), ("autofis_fm", "search"), ("gbdt_lr", "trees")])
def test_a_stage_over_one_network_refuses_separate_ones(name: str, stage: str, data: Dataset) -> None:
    """A search over networks side by side would find no gates and keep all, and say nothing."""
    message = (
        rf"stage '{stage}' serves one network, and separate = true makes one of each output; drop it: stages = \[\]"
    )
    with pytest.raises(UserError, match=message):
        after_stages(parse({"name": name, "separate": True}), data, QUICK)


def test_what_cannot_be_staged_is_refused_before_a_run_is_written(tmp_path: Path) -> None:
    for model, message in (
        ({"name": "din", "stages": ["search"]}, "stage 'search' chooses products of an interaction 'autofis'"),
        (TREES | {"stages": []}, r"'leaves' needs the stage 'trees'; give stages = \['trees'\]"),
    ):
        with pytest.raises(UserError, match=message):
            run(Recipe.parse(recipe_table() | {"model": model}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_stages_of_another_run_are_refused(data: Dataset, tmp_path: Path) -> None:
    after_stages(parse(FNN), data, QUICK, tmp_path)
    with pytest.raises(UserError, match="belongs to another run: options differ"):
        after_stages(parse(FNN), data, replace(QUICK, seed=2), tmp_path, resume=True)


def test_progress_says_which_stage_begins(data: Dataset) -> None:
    heard = []

    class Listener(Progress):
        def stage(self, name: str) -> None:
            heard.append(name)

        def epoch(self, epoch: int, rows: int) -> None:
            heard.append(str(epoch))

    after_stages(parse(FNN), data, QUICK, progress=Listener()).fit()
    assert heard == ["fm", "0", "1", "", "0", "1"]


# ------------------------------------------------------------------------------------------------ a run's folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of FNN by the command line, and its folder."""
    folder = tmp_path_factory.mktemp("run")
    logs(folder)
    given = recipe_table() | {"model": FNN, "task": [plain(t) for t in tiny.schema(tasks=1).tasks]}
    (folder / "recipe.toml").write_text(to_toml(given), encoding="utf-8")
    arguments = ["train", str(folder / "recipe.toml"), "-o", str(folder / "run")]
    shown = CliRunner().invoke(verbs(), [*arguments, "--set", "model.stages.fm.training.epochs=2"])
    assert shown.exit_code == 0, shown.output
    assert "fnn · fm epoch 2" in shown.output
    assert "fnn epoch 3" in shown.output
    return folder / "run"


def test_a_run_tells_what_its_stages_gave(finished: Path) -> None:
    told = json.loads((finished / "metrics.json").read_text())["stages"]
    assert set(told) == {"fm"}
    assert told["fm"]["epochs"] == 2
    assert 0 < told["fm"]["validation"]["click"]["logloss"] < 1
    lines = (finished / "stages" / "fm" / "curve.csv").read_text().splitlines()
    assert len(lines) == 1 + 2
    assert not (finished / "trained.toml").exists()  # nothing was decided that the recipe does not say
    assert read_toml(finished / "recipe.toml")["model"]["stages"] == [{"kind": "fm", "training": {"epochs": 2}}]
    opened = Run.open(finished)
    assert opened.trainer().model.name == "fnn"


def test_a_report_tells_what_its_stages_gave(finished: Path) -> None:
    told = dict(_timings(Run.open(finished).metrics()))
    assert told["before: stage fm"].startswith("epochs 2 · best epoch ")
    assert "click Log loss 0." in told["before: stage fm"] or "click log loss 0." in told["before: stage fm"].lower()


def test_what_a_stage_decided_is_a_recipe_of_its_own(finished: Path, tmp_path: Path) -> None:
    """The recipe stays as it was started with, so that it can be resumed; trained.toml states the decision."""
    given = Recipe.read(finished / "recipe.toml")
    given = replace(given, model=parse(AUTOFIS))
    result = run(given, tmp_path / "run", finished / "data")
    kept = read_toml(tmp_path / "run" / "trained.toml")["model"]["interactions"][1]["kept"]
    assert 0 < len(kept) < 55
    assert "trained.toml" not in given.toml()
    assert Recipe.read(tmp_path / "run" / "recipe.toml") == given
    opened = Run.open(tmp_path / "run")
    assert opened.recipe == replace(given, model=replace(opened.recipe.model, stages=()))
    assert list(opened.recipe.model.interactions[1].kept) == kept
    assert opened.metrics()["stages"]["search"]["products_kept"] == len(kept)
    again = run(given, tmp_path / "run", finished / "data", resume=True)
    for name, weight in opened.trainer().model.state_dict().items():
        assert torch.equal(weight, result.model.state_dict()[name])
        assert torch.equal(weight, again.model.state_dict()[name])
    # training what was decided, without the search, gives the same model: its own start is a function of the seed
    alone = run(opened.recipe, tmp_path / "alone", finished / "data")
    assert alone.test == result.test


def test_a_finished_run_is_resumed_to_itself(finished: Path) -> None:
    opened = Run.open(finished)
    before = opened.metrics()
    again = run(Recipe.read(finished / "recipe.toml"), finished, resume=True)
    after = opened.metrics()
    assert len(again.history) == before["epochs"]
    for key in ("validation", "test", "stages", "best_epoch"):
        assert after[key] == before[key]
