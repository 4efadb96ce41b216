"""A search: it reads no test row, ends what is hopeless, goes on where it was killed, and writes a recipe that trains."""

from __future__ import annotations

import json
import math
import re
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import polars as pl
import pytest
import test_run
import tiny
from typer.testing import CliRunner

from finerank.cli.app import verbs
from finerank.data.dataset import Dataset
from finerank.errors import UserError
from finerank.models import registry
from finerank.recipe import Recipe
from finerank.run import prepared
from finerank.search.space import Choices, Range, changed, check, default_space, parse_space, read_space
from finerank.search.tune import Tuned, _as_it_is, _Judge, tune
from finerank.training.loop import Epoch, Trainer
from finerank.training.options import Regulariser
from finerank.typed import read_toml, to_toml

ROOT = Path(__file__).parents[1]

SPACE = {
    "training.tables.lr": {"low": 1e-3, "high": 1e-1, "log": True},
    "model.interactions.0.hidden": {"choices": [[8], [4, 4]]},
    "model.representation.embedding.width": {"low": 2, "high": 8, "step": 2},
}


def recipe(folder: Path, space: Any = SPACE, **training: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    table = test_run.table(**{"epochs": 2, **training}) | ({} if space is None else {"tune": space})
    table["model"] = {"name": "base", "interactions": [{"kind": "tower", "hidden": [8]}]}
    (folder / "r.toml").write_text(to_toml(table), encoding="utf-8")
    return folder / "r.toml"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs, a recipe, and a search of 8 trials in `out`."""
    folder = tmp_path_factory.mktemp("shop")
    test_run.logs(folder)
    tune(recipe(folder), folder / "out", trials=8)
    return folder


def settings(found: Tuned) -> list[tuple[str, dict[str, Any], float]]:
    return [(t.state, dict(t.values), t.score) for t in found.trials]


def test_the_space_of_the_page_is_one_of_the_readmes_recipe() -> None:
    def block(page: str, header: str) -> Any:
        blocks = re.findall(r"```toml\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
        (found,) = (b for b in blocks if header in b)
        return tomllib.loads(found)

    table = block("README.md", "[data]") | block("docs/search.md", "[tune]")
    assert len(read_space(table, Recipe.parse(table))) == 4


def test_what_is_written(shop: Path) -> None:
    found = json.loads((shop / "out" / "tune.json").read_text(encoding="utf-8"))
    trials = found["trials"]
    assert len(trials) == 8
    assert {t["state"] for t in trials} <= {"complete", "pruned"}
    complete = [t for t in trials if t["state"] == "complete"]
    best = next(t for t in trials if t["number"] == found["best"])
    assert best["score"] == max(t["score"] for t in complete)
    assert trials[0]["values"]["model.interactions.0.hidden"] == [8]  # the recipe as it is comes first
    assert trials[0]["values"]["training.tables.lr"] == 1e-3
    for t in trials:
        v = t["values"]
        assert 1e-3 <= v["training.tables.lr"] <= 1e-1
        assert v["model.interactions.0.hidden"] in ([8], [4, 4])
        assert v["model.representation.embedding.width"] in (2, 4, 6, 8)
        at = shop / "out" / "trials" / f"{t['number']:04d}"
        assert {p.name for p in at.iterdir()} == {"recipe.toml", "curve.csv"}
        curve = pl.read_csv(at / "curve.csv")
        assert curve.height == t["epochs"]
        assert curve["score"].max() == pytest.approx(t["score"])
    text = (shop / "out" / "tune.md").read_text(encoding="utf-8")
    assert text.count("\n| ") == 9
    assert "the test part was not read" in text


def test_the_best_recipe_trains_to_the_score_it_was_chosen_for(shop: Path) -> None:
    found = json.loads((shop / "out" / "tune.json").read_text(encoding="utf-8"))
    best = next(t for t in found["trials"] if t["number"] == found["best"])
    read = Recipe.read(shop / "out" / "best.toml")
    assert read.training.tables.lr == best["values"]["training.tables.lr"]  # type: ignore[union-attr]
    history = Trainer(read.model, Dataset.open(shop / "out" / "data"), read.training).fit()
    assert max(e.score for e in history) == best["score"]


def test_no_test_row_is_read(shop: Path, tmp_path: Path) -> None:
    """Labels of the test rows turned round, their items unknown, their prices absurd: not one digit of a search moves."""
    samples, events = tiny.frames()
    split = Dataset.open(shop / "out" / "data").split
    test = pl.col("request").is_in(np.flatnonzero(split == 2).tolist())
    assert 5 < samples.filter(test).height < samples.height / 2
    poisoned = samples.with_columns(
        pl.when(test).then(1 - pl.col("click")).otherwise(pl.col("click")).alias("click"),
        pl.when(test).then(0).otherwise(pl.col("conversion")).alias("conversion"),
        pl.when(test).then(pl.lit("poison")).otherwise(pl.col("item")).alias("item"),
        pl.when(test).then(1e9).otherwise(pl.col("price")).alias("price"),
    )
    path = recipe(tmp_path)
    poisoned.write_parquet(tmp_path / "samples.parquet")
    events.write_parquet(tmp_path / "events.parquet")
    found = tune(path, tmp_path / "out", trials=3)
    clean = json.loads((shop / "out" / "tune.json").read_text(encoding="utf-8"))["trials"][:3]
    assert settings(found) == [(t["state"], t["values"], t["score"]) for t in clean]


def test_the_test_part_is_never_asked_for(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    original = Dataset.requests_of

    def listening(self: Dataset, split: str) -> Any:
        asked.append(split)
        return original(self, split)  # type: ignore[arg-type]

    monkeypatch.setattr(Dataset, "requests_of", listening)
    tune(shop / "r.toml", tmp_path / "out", trials=1)
    assert set(asked) == {"train", "validation"}


def test_what_a_stage_notes_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    _Judge(SimpleNamespace(number=3), tmp_path / "curve.csv", told.append).note("stage fm: stopped early")  # type: ignore[arg-type]
    assert told == ["trial 3: stage fm: stopped early"]


class Killed(BaseException):
    pass


def test_a_search_that_was_killed_goes_on_as_if_it_had_not_been(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed within trials 1 and 3: the same settings, scores and states as of the search that ran through."""
    out = tmp_path / "out"
    judge = _Judge.validated
    for kill in (1, 4):  # numbers of attempts: the killed trial takes one

        def validated(self: _Judge, epoch: Epoch, kill: int = kill) -> None:
            if self.trial.number == kill:
                raise Killed
            judge(self, epoch)

        with monkeypatch.context() as patched:
            patched.setattr(_Judge, "validated", validated)
            with pytest.raises(Killed):
                tune(shop / "r.toml", out, trials=6)
    found = tune(shop / "r.toml", out, trials=6)
    whole = json.loads((shop / "out" / "tune.json").read_text(encoding="utf-8"))["trials"][:6]
    assert settings(found) == [(t["state"], t["values"], t["score"]) for t in whole]
    more = tune(shop / "r.toml", out, trials=7)
    assert settings(more)[:6] == settings(found)
    assert len(more.trials) == 7
    assert len(tune(shop / "r.toml", out, trials=7).trials) == 7  # enough is enough


@pytest.mark.slow
def test_hopeless_trials_end_early(tmp_path: Path) -> None:
    """Rates so low that nothing is learnt, after five that learn: ended after the first epoch."""
    test_run.logs(tmp_path)
    space = {"training.tables.lr": {"choices": [0.05, 1e-9]}, "training.dense.lr": {"choices": [0.05, 1e-9]}}
    path = recipe(tmp_path, space, epochs=4, patience=9)
    found = tune(path, tmp_path / "out", trials=14)
    pruned = [t for t in found.trials if t.state == "pruned"]
    assert pruned
    assert all(t.epochs < 4 for t in pruned)
    assert all(t.number >= 5 for t in pruned)
    assert all(t.state == "complete" for t in tune(path, tmp_path / "all", trials=7, prune=False).trials)


def test_a_model_that_trains_in_stages_goes_through_them(tmp_path: Path) -> None:
    """The curve, and what is judged, are those of the model's own training."""
    test_run.logs(tmp_path)
    table = test_run.table(epochs=2)
    table["task"] = table["task"][:1]
    table["model"] = {"name": "fnn"}
    table["tune"] = {"training.dense.lr": {"choices": [0.01]}}
    (tmp_path / "r.toml").write_text(to_toml(table), encoding="utf-8")
    (trial,) = tune(tmp_path / "r.toml", tmp_path / "out", trials=1).trials
    assert trial.state == "complete", trial.reason
    assert pl.read_csv(tmp_path / "out" / "trials" / "0000" / "curve.csv").height == trial.epochs <= 2


def test_settings_are_trained_once_and_a_space_ends(shop: Path, tmp_path: Path) -> None:
    space = {"model.interactions.0.hidden": {"choices": [[8], [4, 4]]}, "training.batch.rows": {"low": 32, "high": 33}}
    told: list[str] = []
    path = recipe(tmp_path, space, epochs=1)
    (tmp_path / "samples.parquet").write_bytes((shop / "samples.parquet").read_bytes())
    (tmp_path / "events.parquet").write_bytes((shop / "events.parquet").read_bytes())
    found = tune(path, tmp_path / "out", minutes=10, tell=told.append)
    assert told[-1] == "every setting of the space has been tried"
    again = [int(line.split()[1].rstrip(":")) for line in told if "so its score" in line]
    assert len(found.trials) == 4 + len(again) > 4  # at this seed Optuna asks for some twice
    for number in again:
        twin = next(t for t in found.trials if t.values == found.trials[number].values)
        assert found.trials[number].score == twin.score
        assert not (tmp_path / "out" / "trials" / f"{number:04d}").exists()


@pytest.mark.parametrize(
    ("entry", "size"),
    [
        (Choices((1, 2)), 2),
        (Range(low=2, high=8, step=2), 4),
        (Range(low=1, high=3), 3),
        (Range(low=0.1, high=0.5, step=0.1), 5),
        (Range(low=0.1, high=0.5), math.inf),
    ],
)
def test_how_large_a_space_is(entry: Choices | Range, size: float) -> None:
    assert entry.size == size


def test_minutes_are_a_budget(shop: Path, tmp_path: Path) -> None:
    assert len(tune(shop / "r.toml", tmp_path / "out", minutes=0.0).trials) <= 1


def test_settings_that_a_model_refuses_are_told_and_searched_around(tmp_path: Path) -> None:
    """Two keys that only go together in some ways."""
    test_run.logs(tmp_path)
    space = {"training.tables": {"choices": [{"kind": "ftrl"}, {"kind": "adam"}]}}
    path = recipe(
        tmp_path, space | {"training.regularise": {"choices": [{"kind": "mini_batch_aware"}, {"kind": "l2"}]}}
    )
    found = tune(path, tmp_path / "out", trials=9)
    refused = [t for t in found.trials if t.state == "refused"]
    assert refused
    assert all("regularise = l2 does not go with tables = ftrl" in t.reason for t in refused)
    assert found.best >= 0
    assert "Refused:" in (tmp_path / "out" / "tune.md").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------ the space


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"training.tables.lrr": {"low": 1, "high": 2}}, r'tune\."training\.tables\.lrr" = 1: .*did you mean \'lr\''),
        ({"training.tables.lr": {"low": 2, "high": 1}}, r"the range from 2 to 1 is empty"),
        ({"training.tables.lr": {"low": "a", "high": 1}}, r"\.low: got 'a'; accepted: a number"),
        ({"training.tables.lr": {"low": True, "high": 1}}, r"\.low: got True; accepted: a number"),
        ({"training.tables.lr": {"low": math.nan, "high": 1}}, r"\.low: got nan; accepted: a number"),
        ({"training.tables.lr": {"low": 0, "high": 1, "log": True}}, r"low = 0 has no logarithm"),
        ({"training.tables.lr": {"low": 1, "high": 2, "log": 1}}, r"\.log: got 1; accepted: true or false"),
        ({"training.tables.lr": {"low": 1, "high": 2, "step": 0}}, r"step = 0; accepted: above 0"),
        ({"training.tables.lr": {"high": 2}}, r"low is missing; accepted: \{low"),
        ({"training.tables.lr": {"lo": 1, "high": 2}}, r"\.lo: unknown key; did you mean 'low'"),
        ({"training.tables.lr": {"choices": []}}, r"accepted: choices = \[a, b, \.\.\.\]"),
        ({"training.tables.lr": 3}, r"got 3; accepted: \{low = 1e-4"),
        ({"training.tables.lr": {"low": -1.0, "high": 1.0}}, r"= -1\.0: .*lr = -1\.0; accepted: a number above 0"),
        ({"data.split.test": {"low": 0.1, "high": 0.2}}, r"accepted: keys of model and training; all trials share"),
        ({"training..lr": {"low": 1, "high": 2}}, r"accepted: a dotted key"),
        ({"model.interactions.3.hidden": {"choices": [[8]]}}, r"has no entry '3'"),
        ({}, r"tune: nothing to search"),
        (5, r"tune: got 5; accepted: a table"),
    ],
)
def test_bad_spaces_are_one_sentence(tmp_path: Path, space: Any, message: str) -> None:
    path = recipe(tmp_path, None)
    read = Recipe.read(path)
    with pytest.raises(UserError, match=message):
        read_space({"tune": space}, read)


def test_where_a_space_may_stand(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    read, table = Recipe.read(path), read_toml(path)
    assert read_space(table, read)["training.tables.lr"] == Range(low=1e-3, high=1e-1, log=True)
    for text in ('"training.epochs" = {low = 1, high = 3}\n', '[tune]\n"training.epochs" = {low = 1, high = 3}\n'):
        (tmp_path / "s.toml").write_text(text, encoding="utf-8")
        found = read_space(table, read, tmp_path / "s.toml")
        assert found == {"training.epochs": Range(low=1, high=3)}
        assert found["training.epochs"].whole  # type: ignore[union-attr]
    assert not parse_space({"training.clip": {"low": 1, "high": 3, "step": 0.5}})["training.clip"].whole  # type: ignore[union-attr]


def test_every_model_has_a_usual_space_that_it_takes(tmp_path: Path) -> None:
    table = test_run.table()
    for name in registry.names():
        table["model"] = {"name": name}
        read = Recipe.parse(table)
        space = default_space(read)
        assert "training.tables.lr" in space
        check(space, read)
        changed(read, {key: entry.ends[-1] for key, entry in space.items()})  # and all at once
    table["model"] = {"name": "din"}
    table["training"] |= {"regularise": {"kind": "l2"}, "first_order": {"kind": "ftrl"}}
    found = default_space(Recipe.parse(table))
    assert set(found) == {
        "training.tables.lr",
        "training.first_order.alpha",
        "training.dense.lr",
        "training.regularise.strength",
        "model.representation.embedding.width",
        "model.representation.embedding.std",
        "model.interactions.0.hidden",
        "model.interactions.0.dropout",
        "model.interactions.0.batch_norm",
        "model.representation.unit.softmax",
        "model.representation.unit.start",
    }
    assert found["model.interactions.0.hidden"] == Choices(([64, 32], [200, 80], [400, 400]))


def test_the_usual_space_holds_the_recipe_s_own_settings_wherever_they_lie(tmp_path: Path) -> None:
    table = read_toml(recipe(tmp_path, None))
    table["model"] = {"name": "base", "interactions": [{"kind": "tower", "hidden": [9], "dropout": 0.6}]}
    table["training"] |= {"regularise": {"kind": "l2", "strength": 5e-6}, "tables": {"kind": "adam", "lr": 0.2}}
    read = Recipe.parse(table)
    space = default_space(read)
    assert space["model.interactions.0.dropout"] == Range(low=0.0, high=0.6)
    assert space["training.regularise.strength"] == Range(low=5e-6, high=1.0, log=True)
    assert set(_as_it_is(read, space)) == set(space)
    for kind in get_args(Regulariser):
        table["training"]["regularise"] = {"kind": kind.kind}
        strength = default_space(Recipe.parse(table))["training.regularise.strength"]
        assert isinstance(strength, Range)
        assert strength.low < kind().strength < strength.high


def test_another_search_in_the_folder_is_refused(shop: Path) -> None:
    with pytest.raises(UserError, match=r"holds a search of another recipe or another space"):
        tune(shop / "r.toml", shop / "out", trials=1, overrides=["training.epochs=3"])


def test_without_optuna_one_sentence_says_what_to_install(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"needs Optuna.*pip install 'finerank\[tune\]'"):
        tune(shop / "r.toml", shop / "elsewhere", trials=1)


def test_a_recipe_with_a_space_trains_as_one_without(tmp_path: Path) -> None:
    with_space, without = (Recipe.read(recipe(tmp_path / n, s)) for n, s in (("a", SPACE), ("b", None)))
    assert with_space.training == without.training
    assert with_space.model == without.model


def test_the_verb(shop: Path) -> None:
    shown = CliRunner().invoke(verbs(), ["tune", str(shop / "r.toml"), "-o", str(shop / "out"), "--trials", "8"])
    assert shown.exit_code == 0, shown.output
    assert "best: trial" in shown.output
    assert "validation logloss (negated) -0." in shown.output
    assert "finerank train" in shown.output
    assert prepared(Recipe.read(shop / "out" / "best.toml"), shop / "out" / "data").rows
