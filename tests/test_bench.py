"""A bench: the table is what the runs gave, it goes on where it was stopped, and what cannot run says why."""

from __future__ import annotations

import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import test_run
from typer.testing import CliRunner

from finerank.cli.app import verbs
from finerank.errors import UserError
from finerank.evaluation.compare import compare
from finerank.recipe import Recipe
from finerank.run import Run
from finerank.search.bench import bench, contestants, inapplicable
from finerank.search.runs import peak_memory, trained
from finerank.search.standings import Bench
from finerank.training.options import Sampling
from finerank.typed import to_toml

MODELS = ("lr", "base", "dfm")  # the last one wants a delay, which this shop lacks


def recipe(folder: Path, **changes: Any) -> Path:
    table = test_run.table(epochs=1) | {"model": {"name": "lr"}} | changes
    (folder / "r.toml").write_text(to_toml(table), encoding="utf-8")
    return folder / "r.toml"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs, a recipe, and a bench in `out`."""
    folder = tmp_path_factory.mktemp("shop")
    test_run.logs(folder)
    bench([recipe(folder)], folder / "out", 2, "lr", models=MODELS, isolate=False)
    return folder


def read(shop: Path) -> dict[str, Any]:
    found = json.loads((shop / "out" / "bench.json").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def test_the_table_is_what_the_runs_gave(shop: Path) -> None:
    found = {s["name"]: s for s in read(shop)["standings"]}
    runs = {n: [Run.open(shop / "out" / "runs" / n / f"seed{s}") for s in (1, 2)] for n in ("lr", "base")}
    for name, of in runs.items():
        assert {r.dataset.folder.resolve() for r in of} == {(shop / "out" / "data").resolve()}
        tests = [r.metrics()["test"]["click"]["auc"] for r in of]
        s = found[name]
        assert s["test"]["value"] == pytest.approx(statistics.mean(tests))
        assert s["spread"] == pytest.approx(statistics.stdev(tests))
        assert s["validation"] == pytest.approx(statistics.mean(r.metrics()["validation"]["click"]["auc"] for r in of))
        assert s["test"]["low"] < s["test"]["value"] < s["test"]["high"]
        assert s["parameters"] == of[0].metrics()["parameters"]
    against = next(a for a in compare([*runs["lr"], *runs["base"]]).against if a.head == "click").differences["auc"]
    assert found["base"]["difference"]["value"] == pytest.approx(against.value)
    assert found["base"]["p"] == pytest.approx(against.p_holm)
    assert found["lr"]["difference"]["value"] is None


def test_a_contestant_may_ask_for_more_seeds(shop: Path) -> None:
    (shop / "seeds.toml").write_text("[one]\nmodel.name = 'lr'\n[three]\nseeds = 3\nmodel.name = 'base'\n")
    found = bench([shop / "r.toml"], shop / "seeds", 1, variants=shop / "seeds.toml", isolate=False)
    assert {s.name: s.seeds for s in found.standings} == {"one": 1, "three": 3}
    for wrong in ("0", "true", "1.5"):
        (shop / "wrong.toml").write_text(f"[one]\nseeds = {wrong}\n")
        with pytest.raises(UserError, match=r"one\.seeds = .*; accepted: a whole number of at least 1"):
            bench([shop / "r.toml"], shop / "wrong", variants=shop / "wrong.toml")


def test_what_cannot_run_says_why_and_the_order_is_that_of_validation(shop: Path) -> None:
    found = read(shop)
    done = [s for s in found["standings"] if not s["reason"]]
    assert [s["validation"] for s in done] == sorted((s["validation"] for s in done), reverse=True)
    left = [s for s in found["standings"] if s["reason"]]
    assert [s["name"] for s in left] == ["dfm"]
    assert "needs delay in the schema" in left[0]["reason"]
    text = (shop / "out" / "bench.md").read_text(encoding="utf-8")
    assert "- dfm: model 'dfm' needs delay in the schema" in text
    assert f"By the validation part, which alone chooses, {done[0]['name']} is best" in text


def test_the_table_tells_what_is_to_be_known_of_the_data(shop: Path, tmp_path: Path) -> None:
    """Notes of any contestant; they do not make its data another."""
    table = tomllib.loads((shop / "r.toml").read_text(encoding="utf-8"))
    noted = Recipe.parse(table | {"data": table["data"] | {"notes": ["looks [far] ahead"]}}, shop)
    (tmp_path / "noted.toml").write_text(noted.toml(), encoding="utf-8")
    other = Recipe.parse(table | {"model": {"name": "base"}}, shop)
    (tmp_path / "other.toml").write_text(other.toml(), encoding="utf-8")
    bench([tmp_path / "other.toml", tmp_path / "noted.toml"], tmp_path / "out", 1, isolate=False)
    assert "Of the data: looks [far] ahead" in (tmp_path / "out" / "bench.md").read_text(encoding="utf-8")


def test_what_is_done_is_not_done_again_and_more_can_be_asked(shop: Path) -> None:
    def stamp() -> dict[str, float]:
        return {str(p): p.stat().st_mtime for p in (shop / "out" / "runs").rglob("run.json")}

    before = stamp()
    found = bench([shop / "r.toml"], shop / "out", 2, "lr", models=(*MODELS, "fm"), minutes=0, isolate=False)
    assert stamp() == before
    reasons = {s.name: s.reason for s in found.standings}
    assert reasons["lr"] == reasons["base"] == ""
    assert reasons["fm"].startswith("interaction 'fm' gives one output and the heads need 2; use a tower for several")
    again = bench([shop / "r.toml"], shop / "out", 3, "lr", models=(*MODELS, "din"), minutes=0, isolate=False)
    assert {s.name: (s.seeds, s.reason) for s in again.standings} == {
        "lr": (2, ""),  # its third seed is for another day
        "base": (2, ""),
        "din": (0, "not run: the 0 minutes were over"),
        "dfm": (0, reasons["dfm"]),
    }


def test_a_training_that_was_killed_goes_on(shop: Path, tmp_path: Path) -> None:
    """Killed within: the next attempt takes up its checkpoint and ends with the bits of one that ran through."""
    data = shop / "out" / "data"
    whole = Recipe.read(shop / "r.toml", ["training.epochs=3", "training.patience=9"])
    one = trained(whole, tmp_path / "one", data)

    class Killed(BaseException):
        pass

    from finerank.run import run
    from finerank.training.loop import Epoch, Progress

    class Stop(Progress):
        def validated(self, epoch: Epoch) -> None:
            if epoch.epoch == 1:
                raise Killed

    with pytest.raises(Killed):
        run(whole, tmp_path / "two", data, progress=Stop())
    two = trained(whole, tmp_path / "two", data)
    assert (one.predictions("test").logits == two.predictions("test").logits).all()


@pytest.mark.slow
def test_a_process_of_its_own_tells_its_memory_and_its_errors(shop: Path, tmp_path: Path) -> None:
    read = Recipe.read(shop / "r.toml")
    made = trained(read, tmp_path / "run", shop / "out" / "data", isolate=True)
    assert 2**26 < peak_memory(made.folder) < 2**34
    assert math.isnan(peak_memory(shop / "out" / "runs" / "lr" / "seed1"))
    loud = replace(read, training=replace(read.training, sampling=Sampling(task="clik")))
    with pytest.raises(UserError, match=r"training\.sampling\.task = 'clik' is no binary task"):
        trained(loud, tmp_path / "loud", shop / "out" / "data", isolate=True)


@pytest.mark.slow
def test_kill_minus_9_at_any_moment(shop: Path, tmp_path: Path) -> None:
    """The whole bench killed again and again: it ends, and with the table of one that was left alone."""
    code = (
        "import sys; from pathlib import Path; from finerank.search.bench import bench\n"
        "bench([Path(sys.argv[1])], Path(sys.argv[2]), 2, 'lr', models=('lr', 'base'), isolate=False)"
    )
    command = [sys.executable, "-c", code, str(shop / "r.toml"), str(tmp_path / "out")]
    for wait in (4.0, 5.0, 6.0):
        process = subprocess.Popen(command, env={**os.environ})
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert subprocess.run(command, env={**os.environ}, check=False).returncode == 0
    alone = bench([shop / "r.toml"], shop / "out", 2, "lr", models=("lr", "base"), minutes=0, isolate=False)
    killed = json.loads((tmp_path / "out" / "bench.json").read_text(encoding="utf-8"))["standings"]
    assert {s["name"]: s["test"]["value"] for s in killed} == {s.name: s.test.value for s in alone.standings}


def test_contestants_from_files_variants_and_names(tmp_path: Path) -> None:
    base = recipe(tmp_path)
    assert list(contestants([base], models=["lr", "din"])) == ["lr", "din"]
    everything = contestants([base], every=True)
    assert {"lr", "din", "pal", "esmm"} <= set(everything)
    (tmp_path / "v.toml").write_text(
        '[small]\nmodel = {name = "din"}\ntraining = {epochs = 7}\n[plain]\nmodel = {name = "lr"}\n', encoding="utf-8"
    )
    found = contestants([base], tmp_path / "v.toml", overrides=["training.seed=4"])
    assert found["small"]["model"] == {"name": "din"}
    assert (found["small"]["training"]["epochs"], found["plain"]["training"]["epochs"]) == (7, 1)
    assert found["plain"]["training"]["seed"] == 4
    assert found["small"]["training"]["batch"] == {"rows": 32}
    other = tmp_path / "other.toml"
    other.write_text(to_toml(test_run.table()), encoding="utf-8")
    assert list(contestants([base, other])) == ["r", "other"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"models": ["lrr"]}, r"--model lrr: no such model; did you mean 'lr'"),
        ({"models": ["lr"], "base": "din"}, r"--base din: no such contestant"),
        ({"models": ["lr", "dfm"], "base": "dfm"}, r"--base dfm: does not run on this data: model 'dfm' needs delay"),
        ({"models": ["dfm"]}, r"no contestant runs on this data"),
        ({"variants": "v.toml"}, r"'two' and 'one' are the same recipe; drop one"),
        ({"variants": "w.toml"}, r"'two' and 'one' differ in data"),
        ({"variants": "x.toml"}, r"x\.toml: one is no table; accepted: \[name\]"),
        ({"variants": "y.toml"}, r"'a/b' names a folder"),
    ],
)
def test_refusals(shop: Path, tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    files = {
        "v.toml": '[one]\nmodel = {name = "lr"}\n[two]\nmodel = {name = "lr"}\n',
        "w.toml": '[one]\nmodel = {name = "lr"}\n[two]\nmodel = {name = "din"}\n'
        '[two.data]\nsamples = "samples.parquet"\n',
        "x.toml": "one = 1\n",
        "y.toml": '["a/b"]\nmodel = {name = "lr"}\n',
    }
    for name, text in files.items():
        (shop / name).write_text(text, encoding="utf-8")
    if "variants" in arguments:
        arguments = arguments | {"variants": shop / arguments["variants"]}
    with pytest.raises(UserError, match=message):
        bench([shop / "r.toml"], tmp_path / "out", 1, isolate=False, **arguments)


def test_without_test_rows_there_is_nothing_to_compare(shop: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no test rows, and contestants are compared on them; set data\.split\.test"):
        bench([shop / "r.toml"], tmp_path / "out", 1, models=["lr"], overrides=["data.split.test=0.0"], isolate=False)


def test_a_recipe_that_does_not_parse_is_left_out(shop: Path, tmp_path: Path) -> None:
    (shop / "z.toml").write_text(
        '[good]\nmodel = {name = "lr"}\n[bad]\nmodel = {name = "din", heads = "tsks"}\n', encoding="utf-8"
    )
    found = bench([shop / "r.toml"], tmp_path / "out", 1, variants=shop / "z.toml", isolate=False)
    assert [s.name for s in found.standings] == ["good", "bad"]
    assert "bad.model.heads" in found.standings[1].reason


def test_the_verb_and_its_page(shop: Path) -> None:
    shown = CliRunner().invoke(
        verbs(),
        ["bench", str(shop / "r.toml"), "-o", str(shop / "out"), "--base", "lr", "--no-isolate"]
        + [word for name in MODELS for word in ("--model", name)],
    )
    assert shown.exit_code == 0, shown.output
    assert "left out: dfm: model 'dfm' needs delay" in shown.output
    page = (shop / "out" / "bench.html").read_text(encoding="utf-8")
    assert "<h2>Standings</h2>" in page
    assert page.count("<svg") == 3
    assert "needs delay in the schema" in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_what_comes_before_a_model_is_asked_of_the_schema_too(shop: Path) -> None:
    """FNN is built for two tasks, but the factorization machine before it is not: known before anything is trained."""
    data = Run.open(shop / "out" / "runs" / "lr" / "seed1").dataset
    assert len(data.fitted.schema.tasks) == 2

    def reason(**model: Any) -> str:
        return inapplicable(Recipe.parse(test_run.table() | {"model": model}), data)

    assert "stage 'fm': interaction 'fm' gives one output and the heads need 2; drop it" in reason(name="fnn")
    assert "stage 'trees' serves one network" in reason(name="gbdt_lr", separate=True)
    assert reason(name="fnn", stages=[]) == reason(name="unbias") == reason(name="gbdt_lr") == ""


def test_applicable_is_asked_of_the_schema(shop: Path) -> None:
    opened = Run.open(shop / "out" / "runs" / "lr" / "seed1")
    assert inapplicable(opened.recipe, opened.dataset) == ""
    assert isinstance(bench([shop / "r.toml"], shop / "out", 2, "lr", models=MODELS, minutes=0, isolate=False), Bench)
