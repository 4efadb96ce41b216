"""What a user gets for a wrong word or a broken file, verb by verb: one sentence, exit code 2, nothing touched.

Every case says the sentence it shows. The lines of our code that refuse are counted: ninety cases that all meet the same
check would prove one.
"""

from __future__ import annotations

import json
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import test_cli
import test_run

import finerank
from finerank.cli import app
from finerank.errors import UserError
from finerank.evaluation.document import evaluation_path
from finerank.evaluation.evaluate import evaluate
from finerank.recipe import Recipe
from finerank.run import Run, run

Break = Callable[[Path], None]
SRC = Path(finerank.__file__).parent


def nothing(shop: Path) -> None:
    pass


def removed(name: str) -> Break:
    def make(shop: Path) -> None:
        at = shop / name
        shutil.rmtree(at) if at.is_dir() else at.unlink()

    return make


def written(name: str, content: str | bytes) -> Break:
    def make(shop: Path) -> None:
        (shop / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def cut(name: str) -> Break:
    def make(shop: Path) -> None:
        whole = (shop / name).read_bytes()
        (shop / name).write_bytes(whole[: len(whole) // 2])

    return make


def changed(name: str, change: Callable[[pl.DataFrame], pl.DataFrame]) -> Break:
    def make(shop: Path) -> None:
        change(pl.read_parquet(shop / name)).write_parquet(shop / name)

    return make


def other_rows(shop: Path) -> None:
    """A second run on a data set with other rows."""
    test_run.logs(shop / "other", seed=5)
    run(Recipe.parse(test_run.table(epochs=1) | {"model": {"name": "lr"}}, shop / "other"), shop / "elsewhere")


def no_such_text(shop: Path) -> None:
    found = json.loads((shop / "lr" / "run.json").read_text())
    found["data"] = "../gone"
    (shop / "lr" / "run.json").write_text(json.dumps(found))


def csv(text: str) -> Break:
    """The recipe reads samples.csv of this text."""

    def make(shop: Path) -> None:
        (shop / "samples.csv").write_text(text)
        recipe = (shop / "r.toml").read_text()
        assert "samples.parquet" in recipe
        (shop / "r.toml").write_text(recipe.replace("samples.parquet", "samples.csv"))

    return make


NEW = ("train", "r.toml", "-o", "new")
SHORT = ("r.toml", "--seeds", "1", "--no-isolate")

CASES: dict[str, tuple[Break, tuple[str, ...], str]] = {
    # a run that is none
    "evaluate: no run": (nothing, ("evaluate", "nope"), "nope: no finished run here (no run.json); train one with"),
    "evaluate: data gone": (no_such_text, ("evaluate", "lr"), "no prepared data set here"),
    "evaluate: run.json cut": (cut("lr/run.json"), ("evaluate", "lr"), "run.json: damaged ("),
    "evaluate: scores gone": (removed("lr/scores"), ("evaluate", "lr"), "no scores of 'test'"),
    "evaluate: scores cut": (
        lambda s: cut(str(next((s / "lr" / "scores" / "test").glob("*logits*.npy")).relative_to(s)))(s),
        ("evaluate", "lr"),
        "logits",
    ),
    "evaluate: no such slice": (nothing, ("evaluate", "lr", "--slice", "contry"), "'contry'"),
    "evaluate: samples of another log": (
        changed("samples.parquet", lambda f: f.rename({"country": "land"})),
        ("evaluate", "lr", "--samples", "samples.parquet"),
        "no column 'country'",
    ),
    # comparing
    "compare: one run": (nothing, ("compare", "lr"), "one run cannot be compared; give two or more"),
    "compare: twice the same": (nothing, ("compare", "lr", "lr"), "given twice; name each run once"),
    "compare: other rows": (other_rows, ("compare", "lr", "elsewhere"), "rows"),
    # predicting
    "predict: no samples": (
        nothing,
        ("predict", "lr", "--samples", "nope.parquet", "-o", "p.csv"),
        "nope.parquet: no such file",
    ),
    "predict: unknown suffix": (
        nothing,
        ("predict", "lr", "--samples", "samples.parquet", "-o", "p.xlsx"),
        "p.xlsx",
    ),
    "predict: a column is missing": (
        changed("samples.parquet", lambda f: f.drop("item")),
        ("predict", "lr", "--samples", "samples.parquet", "-o", "p.parquet"),
        "'item'",
    ),
    "predict: text for a number": (
        changed("samples.parquet", lambda f: f.with_columns(age=pl.lit("old"))),
        ("predict", "lr", "--samples", "samples.parquet", "-o", "p.parquet"),
        "'age'",
    ),
    "predict: no rows": (
        changed("samples.parquet", lambda f: f.head(0)),
        ("predict", "lr", "--samples", "samples.parquet", "-o", "p.parquet"),
        "no rows",
    ),
    "predict: the file is there": (
        written("p.parquet", b"mine"),
        ("predict", "lr", "--samples", "samples.parquet", "-o", "p.parquet"),
        "p.parquet",
    ),
    # explaining
    "explain: nobody": (nothing, ("explain", "din", "--user", "nobody"), "user 'nobody' is not in the data; "),
    "evaluate: out is a folder": (
        lambda s: (s / "x").mkdir(),
        ("evaluate", "din", "-o", "x"),
        "x: is a folder; name a file",
    ),
    "data: a world without rows": (
        nothing,
        ("data", "world_interests", "-o", "x", "--set", "users=-2"),
        "users = -2; accepted: 1 or more",
    ),
    "data: a file without lines": (
        lambda s: ((s / "raw").mkdir(), (s / "raw" / "UserBehavior.csv").write_text("")),
        ("data", "taobao", "--from", "raw", "-o", "x"),
        "taobao from raw: the file has no lines",
    ),
    "explain: item without user": (nothing, ("explain", "din", "--item", "i1"), "name the user with --user"),
    "explain: lift with user": (
        nothing,
        ("explain", "din", "--user", "u1", "--lift", "item"),
        "--lift is of the whole run; leave --user out",
    ),
    "explain: no such binary head": (
        nothing,
        ("explain", "din", "--head", "clik"),
        "no binary head 'clik'; did you mean",
    ),
    "explain: lift of a part": (
        nothing,
        ("explain", "din", "--lift", "item", "--split", "test"),
        "--lift counts training rows; leave --split out",
    ),
    "explain: no such field": (nothing, ("explain", "din", "--lift", "itm"), "no id or list field 'itm' of request or"),
    "explain: no such split": (nothing, ("explain", "din", "--user", "u1", "--split", "tset"), "no split 'tset'; "),
    "explain: no such head": (
        nothing,
        ("explain", "din", "--user", "u1", "--split", "train", "--head", "clik"),
        "no head 'clik'; ",
    ),
    "explain: never a candidate": (
        nothing,
        ("explain", "din", "--user", "u1", "--split", "train", "--item", "i999"),
        "item 'i999' was never a candidate up to this request",
    ),
    "explain: no such map": (
        nothing,
        ("explain", "din", "--user", "u1", "--split", "train", "--map", "price_"),
        "no candidate id field 'price_'; ",
    ),
    "explain: best weights gone": (removed("din/best"), ("explain", "din"), "no best weights here"),
    "explain: best weights cut": (
        lambda s: cut(str(next((s / "din" / "best").rglob("*.safetensors")).relative_to(s)))(s),
        ("explain", "din"),
        "best",
    ),
    # the report
    "report: document damaged": (
        written("lr/evaluation_test.json", "{"),
        ("report", "lr"),
        "evaluation_test.json: damaged",
    ),
    "report: of another format": (
        written("lr/evaluation_test.json", '{"format": "other 3"}'),
        ("report", "lr"),
        "format is 'other 3', accepted:",
    ),
    "report: into a file's place": (written("f", b""), ("report", "lr", "-o", "f/report.html"), "f"),
    # vocabularies
    "vocab: a number": (nothing, ("vocab", "data", "amount"), "a number has no vocabulary"),
    "vocab: no such feature": (nothing, ("vocab", "data", "itm"), "no feature or table 'itm'; did you mean 'item'"),
    "vocab: a table is damaged": (
        written("data/manifest.json", "{"),
        ("vocab", "data", "item"),
        "manifest.json: damaged (",
    ),
    # proposing
    "init: no such file": (nothing, ("init", "nope.csv"), "nope.csv: no such file"),
    "init: the recipe is there": (
        written("recipe.toml", b"mine"),
        ("init", "samples.parquet"),
        "recipe.toml: exists already",
    ),
    "init: no label": (
        changed("samples.parquet", lambda f: f.drop("click", "conversion")),
        ("init", "samples.parquet", "-o", "new.toml"),
        "no column looks like a label",
    ),
    "init: no such column": (
        nothing,
        ("init", "samples.parquet", "--user", "usr", "-o", "new.toml"),
        "--user usr: no such column; ",
    ),
    "init: no rows": (
        changed("samples.parquet", lambda f: f.head(0)),
        ("init", "samples.parquet", "-o", "new.toml"),
        "no rows; is this the right file?",
    ),
    # training again
    "train: a run is there": (nothing, ("train", "r.toml", "-o", "lr"), "lr: holds a run already; go on with it"),
    "train: resume another recipe": (
        nothing,
        ("train", "r.toml", "-o", "lr", "--resume", "--set", "training.seed=9"),
        "lr: holds a run of another recipe",
    ),
    "train: into a file": (
        written("f", b""),
        ("train", "r.toml", "-o", "f"),
        "f: is a file; name a folder for the run",
    ),
    "train: data of another recipe": (
        nothing,
        ("train", "r.toml", "-o", "new", "--data", "data", "--set", "data.split.test=0.3"),
        "data: was prepared by another recipe or from files that have changed since",
    ),
    "train: below a file": (
        written("f", b""),
        ("train", "r.toml", "-o", "f/run"),
        "f/run: Not a directory; a file stands",
    ),
    # a recipe that is none
    "recipe: no such file": (nothing, ("train", "nope.toml"), "nope.toml: no such file"),
    "recipe: a folder": (nothing, ("train", "din"), "din: cannot be read (Is a directory)"),
    "recipe: bytes": (
        written("j.toml", bytes(range(256))),
        ("train", "j.toml"),
        "byte 128 is not UTF-8; save the file as",
    ),
    "recipe: no TOML": (written("j.toml", "a = ["), ("train", "j.toml"), "j.toml: not valid TOML: "),
    "recipe: empty": (written("j.toml", ""), ("train", "j.toml"), "j.toml.model: missing; accepted: a table"),
    "recipe: --set without a value": (
        nothing,
        (*NEW, "--set", "training.epochs"),
        "accepted: key=value with a dotted key",
    ),
    "recipe: an unknown key": (
        nothing,
        (*NEW, "--set", "training.epoch=3"),
        "r.toml.training.epoch: unknown key; did you mean 'epochs'?",
    ),
    "recipe: another type": (nothing, (*NEW, "--set", "training.epochs=2.5"), "got 2.5 (float); accepted: an integer"),
    "recipe: an unknown metric": (
        nothing,
        (*NEW, "--set", "training.monitor=accuracy"),
        "got 'accuracy' (string); accepted: auc, gauc, logloss",
    ),
    "recipe: a negative budget": (
        nothing,
        (*NEW, "--set", "training.batch.rows=-4"),
        "batch: rows = -4, pairs = ",
    ),
    "recipe: a budget beyond all bounds": (nothing, (*NEW, "--set", "training.batch.rows=1e30"), "got 1e+30 (float)"),
    "recipe: no epochs": (
        nothing,
        (*NEW, "--set", "training.epochs=0"),
        "epochs: got 0; accepted: whole numbers of at",
    ),
    "recipe: a rate of infinity": (
        nothing,
        (*NEW, "--set", "training.tables={kind='adam', lr=inf}"),
        "lr = inf; accepted: a number above 0",
    ),
    "recipe: no width": (nothing, (*NEW, "--set", "feature.item.dim=0"), "dim = 0; accepted: 1 or more, or a rule"),
    "recipe: a scale below nothing": (
        nothing,
        (*NEW, "--set", "feature.item.std=-1.0"),
        "std = -1.0; accepted: 0 or more",
    ),
    "recipe: an unknown model": (
        nothing,
        (*NEW, "--set", "model.name=dinn"),
        "'dinn' is not known; did you mean 'din'?",
    ),
    "recipe: more than the memory": (
        nothing,
        (*NEW, "--set", "model.name=din", "--set", f"feature.item.dim={10**14}"),  # beyond any address space
        "not enough memory (",
    ),
    # a log that is none
    "log: no file": (removed("events.parquet"), NEW, "events.parquet: no such file"),
    "log: cut": (cut("samples.parquet"), NEW, "samples.parquet: not readable as parquet: "),
    "log: an empty folder": (
        lambda s: ((s / "samples.parquet").unlink(), (s / "samples.parquet").mkdir())[-1],
        NEW,
        "samples.parquet: is an empty folder",
    ),
    "log: an empty CSV": (csv(""), NEW, "samples.csv: not readable as csv: empty CSV"),
    "log: a header alone": (csv("user,item,click,time,request\n"), NEW, "samples: no "),
    "log: labels of 2": (
        changed("samples.parquet", lambda f: f.with_columns(click=pl.col("click") * 2)),
        NEW,
        "label column 'click' holds 2.0; a binary task accepts 0 and 1",
    ),
    "log: labels of text": (
        changed("samples.parquet", lambda f: f.with_columns(click=pl.lit("yes"))),
        NEW,
        "label column 'click' is String; accepted: numbers or true/false",
    ),
    "log: labels of NaN": (
        changed("samples.parquet", lambda f: f.with_columns(click=pl.lit(float("nan")))),
        NEW,
        "click",
    ),
    "log: an infinite number": (
        changed("samples.parquet", lambda f: f.with_columns(price=pl.lit(float("inf")))),
        NEW,
        "got inf; accepted: finite numbers or null",
    ),
    "log: times of text": (
        changed("samples.parquet", lambda f: f.with_columns(time=pl.lit("yesterday"))),
        NEW,
        "column 'time' holds 'yesterday'; accepted: numbers, datetimes, ISO 8601 texts",
    ),
    "log: nobody has a past": (
        changed("events.parquet", lambda f: f.head(0)),
        NEW,
        "none of their users ('user') is in",
    ),
    # a run half deleted
    "half: no recipe": (
        removed("din/recipe.toml"),
        ("evaluate", "din"),
        "recipe.toml: there is no such file, so the run",
    ),
    "half: no metrics": (
        removed("din/metrics.json"),
        ("report", "din"),
        "metrics.json: there is no such file, so the run",
    ),
    "half: metrics of nothing": (
        written("din/metrics.json", "{}"),
        ("report", "din"),
        "metrics.json: damaged (without mod",
    ),
    "half: metrics cut": (cut("din/metrics.json"), ("report", "din"), "metrics.json: damaged (JSONDecodeError"),
    "half: no curve": (
        removed("din/curve.csv"),
        ("report", "din"),
        "curve.csv: there is no such file, so the run is not",
    ),
    "half: curve of nothing": (written("din/curve.csv", "epoch,loss\n1\n"), ("report", "din"), "curve.csv: damaged ("),
    "half: no encoder": (removed("data/encoder"), ("evaluate", "din"), "encoder.json: cannot be read"),
    "half: no counts": (removed("data/counts"), ("evaluate", "din"), "manifest.json: there is no such file"),
    # beginning with an older run
    "warm: no run": (nothing, (*NEW, "--warm-start", "nope"), "nope: no finished run here (no run.json)"),
    "warm: no weights": (
        removed("din/best"),
        (*NEW, "--warm-start", "din"),
        "best: no weights here; train that run again",
    ),
    "warm: another width": (
        nothing,
        (*NEW, "--set", "model={name='din', representation={embedding={width=8}}}", "--warm-start", "din"),
        "wide there and 8 here; give both the same width",
    ),
    "warm: another encoding": (
        nothing,
        (*NEW, "--set", "model.name=din", "--set", "feature.item.encoding={kind='hashed'}", "--warm-start", "din"),
        "table 'item' is a vocabulary table there and hashed into 100,000 buckets here",
    ),
    # public data, proposals, ablations, the demo
    "data: no such set": (nothing, ("data", "netflix", "--from", ".", "-o", "x"), "no data set 'netflix'; "),
    "data: nothing named": (nothing, ("data", "criteo", "-o", "x"), "--from FOLDER is missing"),
    "data: no folder": (nothing, ("data", "criteo", "--from", "nope", "-o", "x"), "nope: no such folder"),
    "data: no file": (nothing, ("data", "criteo", "--from", "lr", "-o", "x"), "lr: no file train.txt"),
    "data: the folder is there": (
        nothing,
        ("data", "criteo", "--from", "lr", "-o", "din"),
        "din: exists already and is not",
    ),
    "data: an empty file": (
        written("train.txt", ""),
        ("data", "criteo", "--from", ".", "-o", "x"),
        "the file has no lines",
    ),
    "data: no text at all": (
        written("train.txt", bytes(range(256)) * 50),
        ("data", "criteo", "--from", ".", "-o", "x"),
        "no line is left of 51 (1 cut, 50 malformed); is it the right file, and whole?",
    ),
    "init: bytes": (
        written("b.csv", bytes(range(256)) * 20),
        ("init", "b.csv", "-o", "new.toml"),
        "b.csv: line 2 is not UTF-8, and no other encoding is accepted; is it a file of text?",
    ),
    "ablate: no such variant": (
        nothing,
        ("ablate", "r.toml", "-o", "ab", "--only", "dott"),
        "--only dott: no such variant",
    ),
    "ablate: no time": (nothing, ("ablate", "r.toml", "-o", "ab", "--minutes", "0"), "the 0 minutes were over"),
    "ablate: damaged": (written("lr/ablation.json", "{"), ("report", "lr"), "ablation.json: damaged (JSONDecodeError"),
    # searches
    "bench: out is a file": (written("x", "hello"), ("bench", *SHORT, "-o", "x"), "x: is a file; name a folder for"),
    "bench: out is a run": (nothing, ("bench", *SHORT, "-o", "lr"), "lr: holds something else ("),
    "bench: out holds something else": (
        lambda s: ((s / "x").mkdir(), written("x/notes.txt", "mine")(s))[1],
        ("bench", *SHORT, "-o", "x"),
        "x: holds something else (notes.txt); name a new folder, or one that bench began",
    ),
    "bench: no variants": (
        written("v.toml", ""),
        ("bench", *SHORT, "-o", "x", "--variants", "v.toml"),
        "v.toml: names no contestant",
    ),
    "bench: no such variant": (
        written("v.toml", '[small]\nmodel = {name = "lr"}\n'),
        ("bench", *SHORT, "-o", "x", "--variants", "v.toml", "--only", "smal"),
        "--only smal: v.toml has no such table; did you mean 'small'",
    ),
    "bench: only of nothing": (nothing, ("bench", *SHORT, "-o", "x", "--only", "small"), "chooses among variants"),
    "bench: a field that is not there": (
        written("v.toml", '[small]\nmodel = {name = "lr", without = ["contry"]}\n'),
        ("bench", *SHORT, "-o", "x", "--variants", "v.toml"),
        "no contestant runs on this data; model.without: 'contry' is no field",
    ),
    "bench: nothing to stop by": (
        nothing,
        ("bench", *SHORT, "-o", "x", "--set", "data.split.validation=0"),
        "no contestant could be trained; seed 1: no validation requests",
    ),
    "bench: no test": (nothing, ("bench", *SHORT, "-o", "x", "--set", "data.split.test=0"), "bench: no test rows"),
    "tune: out holds something else": (
        lambda s: ((s / "x").mkdir(), written("x/notes.txt", "mine")(s))[1],
        ("tune", "r.toml", "-o", "x", "--trials", "1"),
        "x: holds something else (notes.txt); name a new folder, or one that tune began",
    ),
    "tune: nothing to choose by": (
        nothing,
        ("tune", "r.toml", "-o", "x", "--trials", "1", "--set", "data.split.validation=0"),
        "tune: no validation rows, and they alone choose",
    ),
    "transfer: no test": (nothing, ("transfer", "r.toml", "-o", "x", "--set", "data.split.test=0"), "no test rows"),
    "ablate: no test": (nothing, ("ablate", "r.toml", "-o", "x", "--set", "data.split.test=0"), "ablate: no test rows"),
    "ablate: out is a file": (written("x", "hello"), ("ablate", "r.toml", "-o", "x"), "x: is a file"),
    "defaults: no such feature": (
        nothing,
        ("defaults", "lr", "positon"),
        "lr: 'positon' is no input with one id per row",
    ),
    "defaults: no run": (nothing, ("defaults", "nope", "country"), "nope: no finished run here (no run.json)"),
    "defaults: no such value": (
        nothing,
        ("defaults", "lr", "country", "--value", "A", "--value", "nan"),
        "lr: value 'nan' is none of 'country' in the training rows; accepted: ",
    ),
    "defaults: best weights gone": (
        removed("lr/best"),
        ("defaults", "lr", "country"),
        "lr: no best weights here: the run has not finished its first epoch",
    ),
    "train: a variant without its file": (
        nothing,
        ("train", "r.toml", "-o", "new", "--only", "small"),
        "--variants FILE and --only NAME go together",
    ),
    "prepare: a log that is gone": (
        removed("samples.parquet"),
        ("prepare", "r.toml", "-o", "data"),
        "samples.parquet: no such file any more, and data was prepared from it",
    ),
    "demo: no such model": (nothing, ("demo", "--model", "dinn", "-o", "x"), "--model dinn: the demo has "),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with logs, a recipe, and two finished runs on one data set."""
    folder = tmp_path_factory.mktemp("whole")
    test_run.logs(folder)
    test_cli.write(folder, test_cli.recipe())
    for name, model in (("lr", {"name": "lr"}), ("din", test_run.table()["model"])):
        recipe = (
            Recipe.read(folder / "r.toml")
            if name == "lr"
            else Recipe.parse(test_cli.recipe() | {"model": model}, folder)
        )
        run(recipe, folder / name, folder / "data")
        evaluate(Run.open(folder / name)).write(evaluation_path(folder / name, "test"))
    return folder


def copy(whole: Path, shop: Path) -> None:
    """The folder again at another place, times of change included."""
    shutil.copytree(whole, shop)
    for name in ("data/recipe.json", "lr/recipe.toml", "din/recipe.toml"):  # say where the sources lie
        (shop / name).write_text((shop / name).read_text().replace(str(whole), str(shop)))


def refused(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> tuple[int, list[str]]:
    """Exit code, and the line of our code that refused, innermost last."""
    seen: list[str] = []
    say = app._refuse

    def remember(sentence: str) -> None:
        error = sys.exc_info()[1]
        assert isinstance(error, UserError | OSError | RuntimeError)  # the last: memory that is not there
        frames = traceback.extract_tb(error.__traceback__)
        seen.extend(
            f"{Path(f.filename).relative_to(SRC)}:{f.lineno}" for f in frames if Path(f.filename).is_relative_to(SRC)
        )
        say(sentence)

    monkeypatch.setattr(app, "_refuse", remember)
    monkeypatch.setattr(sys, "argv", ["finerank", *words])
    try:
        app.main()
    except SystemExit as left:
        return (left.code if isinstance(left.code, int) else 1), seen
    return 0, seen


def test_each_is_one_sentence_and_they_meet_different_code(
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    subtests: pytest.Subtests,
) -> None:
    refusing = set()
    for i, (what, (break_it, words, sentence)) in enumerate(CASES.items()):
        shop = tmp_path / f"shop{i}"
        copy(whole, shop)
        monkeypatch.chdir(shop)
        with subtests.test(what):
            break_it(shop)
            before = test_run.content(shop)
            code, lines = refused(words, monkeypatch)
            out, err = capsys.readouterr()
            assert code == 2, out + err
            assert sentence in err
            assert err.startswith("finerank: ")
            assert err.count("\n") == 1
            assert "Traceback" not in err
            after = test_run.content(shop)
            assert {name: after.get(name) for name in before} == before  # nothing that was there is touched
            refusing.add(lines[-1])
        shutil.rmtree(shop)
    assert len(refusing) >= 75
    assert len(CASES) >= 90
