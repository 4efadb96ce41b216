"""The command line, end to end: what it prints, what it writes, and one sentence for whatever may be wrong."""

from __future__ import annotations

import io
import json
import os
import pkgutil
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import test_run
import tiny
import torch
from rich.console import Console
from typer.testing import CliRunner

import finerank.cli
from finerank.cli import app as cli
from finerank.cli import screen
from finerank.models import registry
from finerank.run import Result
from finerank.training.checkpoint import Checkpoints
from finerank.typed import to_toml

VERBS = sorted(m.name for m in pkgutil.iter_modules(finerank.cli.__path__) if m.name not in ("app", "screen"))


class Ran:
    """What a command did: exit code, and what it wrote on either stream."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


Call = Callable[..., Ran]


@pytest.fixture
def finerank(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """The entry point, as a shell would call it, but in this process."""

    def call(*words: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["finerank", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 0 if left.code is None else 1
        return Ran(code, *capsys.readouterr())

    return call


def recipe(**training: Any) -> dict[str, Any]:
    """A recipe for the tiny world that trains in a moment."""
    return test_run.table(epochs=2, **training) | {"model": {"name": "lr"}}


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with logs and `r.toml`, in which one stands."""
    test_run.logs(tmp_path)
    write(tmp_path, recipe())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, table: dict[str, Any]) -> None:
    (folder / "r.toml").write_text(to_toml(table), encoding="utf-8")


# ------------------------------------------------------------------------------------------------ what it does


def test_help_shows_the_verbs_and_each_an_example(finerank: Call) -> None:
    whole = finerank("--help")
    assert whole.code == 0
    assert {command.callback.__name__ for command in cli.verbs().registered_commands if command.callback} == set(VERBS)
    for verb in VERBS:
        assert verb in whole.out
        told = finerank(verb, "--help")
        assert told.code == 0
        assert f"Example: finerank {verb}" in " ".join(told.out.split())
    assert finerank("train", "--help").out.count("--set") >= 1


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--help"], 0, "Convert a public data set."),
        ([], 2, "Convert a public data set."),
        (["--version"], 0, metadata.version("finerank")),
        (["trian"], 2, "Did you mean 'train'"),
        (["--verison"], 2, "--verison"),
    ],
    ids=["help", "nothing", "version", "misspelt verb", "misspelt option"],
)
def test_who_calls_no_verb_waits_for_no_torch(words: list[str], code: int, said: str) -> None:
    """Every verb is listed all the same: what is told of one is read from its file."""
    asked = f"""
import sys
from finerank.cli.app import main
sys.argv = ["finerank", *{words!r}]
try:
    main()
finally:
    assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr


def test_the_list_of_verbs_is_the_one_that_they_give_themselves(finerank: Call) -> None:
    def listed(text: str) -> list[str]:
        return sorted(text.split("Commands:")[1].splitlines())

    told = listed(finerank("--help").out)
    assert len([line for line in told if line]) == len(VERBS)
    assert told == listed(CliRunner().invoke(cli.verbs(), ["--help"]).output)


def test_models_lists_every_model_uncut(finerank: Call) -> None:
    told = finerank("models")
    assert told.code == 0
    assert [line.split()[0] for line in told.out.splitlines()[1:]] == registry.names()
    assert "…" not in told.out
    for name in registry.names():
        assert registry.composition(name).paper in told.out


def test_without_test_rows_a_word_says_what_to_judge_by(finerank: Call, shop: Path) -> None:
    told = finerank("train", "r.toml", "-o", "run", "--set", "data.split={by='time', validation=0.3, test=0.0}")
    assert told.code == 0
    assert "there are no test rows; judge it by: finerank evaluate run --split validation" in " ".join(told.out.split())
    assert finerank("evaluate", "run", "--split", "validation").code == 0


def test_rows_of_a_file_are_judged_whatever_where_says(finerank: Call, shop: Path) -> None:
    samples = pl.read_parquet("samples.parquet")
    kept = samples["category"].drop_nulls()[0]
    assert finerank("train", "r.toml", "-o", "run", "--set", f'data.where={{category="{kept}"}}').code == 0
    told = finerank("evaluate", "run", "--samples", "samples.parquet", "--events", "events.parquet")
    assert told.code == 0
    assert f"samples.parquet: {samples.height} rows of" in " ".join(told.out.split())
    assert "every row of samples.parquet was judged" in " ".join(told.out.split())


def test_train_end_to_end(finerank: Call, shop: Path) -> None:
    told = finerank("train", "r.toml", "-o", "run")
    assert (told.code, told.err) == (0, "")
    epochs = [line for line in told.out.splitlines() if line.startswith("lr epoch")]
    assert len(epochs) == 2
    assert "loss" in epochs[0]
    assert "click auc" in epochs[0]
    assert "written to run" in told.out
    found = json.loads((shop / "run" / "metrics.json").read_text())
    assert f"{found['test']['click']['auc']:.4f}" in told.out
    assert found["epochs"] == 2
    assert not any(sign in told.out for sign in ("\x1b", "\r", "━"))  # no bar, no colours: this is no terminal


def test_on_a_terminal_there_is_a_bar(finerank: Call, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(screen, "console", Console(file=terminal, force_terminal=True, width=100))
    assert finerank("train", "r.toml", "-o", "run").code == 0
    assert "━" in terminal.getvalue()
    assert "preparing: fit" in terminal.getvalue()


def test_set_and_resume(finerank: Call, shop: Path) -> None:
    told = finerank(
        "train", "r.toml", "-o", "a/b/run", "--data", "data", "--set", "training.epochs=1", "--set", "model.name=base"
    )
    assert told.code == 0
    assert json.loads((shop / "a/b/run/metrics.json").read_text())["model"] == "base"
    assert json.loads((shop / "a/b/run/metrics.json").read_text())["epochs"] == 1
    assert (shop / "data" / "manifest.json").exists()
    assert not (shop / "a/b/run/data").exists()
    overrides = ("--set", "training.epochs=1", "--set", "model.name=base")
    before = (shop / "a/b/run/curve.csv").read_text()
    again = finerank("train", "r.toml", "-o", "a/b/run", "--data", "data", "--resume", *overrides)
    assert again.code == 0
    assert not any(line.startswith("base epoch") for line in again.out.splitlines())
    assert (shop / "a/b/run/curve.csv").read_text() == before
    # the run's own recipe, from elsewhere
    os.chdir("a")
    assert finerank("train", "b/run/recipe.toml", "-o", "again").code == 0
    assert (shop / "a/again/metrics.json").exists()


def test_prepare_says_what_there_is(finerank: Call, shop: Path) -> None:
    told = finerank("prepare", "r.toml", "-o", "data [1]")  # brackets are no markup
    samples = tiny.frames()[0]
    assert told.code == 0
    assert told.out.splitlines()[0] == (
        f"{samples['request'].n_unique()} requests, {samples.height} rows, {tiny.USERS} users in data [1]"
    )
    assert [line.split(":")[0].strip() for line in told.out.splitlines()[1:]] == ["train", "validation", "test"]
    assert finerank("prepare", "r.toml", "-o", "data [1]").out == told.out  # opened, not made again


def test_csv_is_read_like_parquet(finerank: Call, shop: Path) -> None:
    """Ids stay text, whatever they look like: the metrics are the same."""
    plain = recipe()
    plain["feature"] = [f for f in plain["feature"] if f["name"] not in ("tags", "interests")]
    plain["history"][0]["fields"] = ["item", "category"]
    write(shop, plain)
    assert finerank("train", "r.toml", "-o", "one").code == 0
    for name in ("samples", "events"):
        pl.read_parquet(f"{name}.parquet").drop("tags", "interests", strict=False).write_csv(f"{name}.csv")
        plain["data"][name] = f"{name}.csv"
    write(shop, plain)
    assert finerank("train", "r.toml", "-o", "two").code == 0
    assert test_run.lasting(shop / "one") == test_run.lasting(shop / "two")


# ------------------------------------------------------------------------------------------------ what may be wrong


def parquet(name: str, change: Callable[[pl.DataFrame], pl.DataFrame]) -> Callable[[Path], None]:
    return lambda shop: change(pl.read_parquet(shop / f"{name}.parquet")).write_parquet(shop / f"{name}.parquet")


def cut(name: str) -> Callable[[Path], None]:
    def at_half(shop: Path) -> None:
        whole = (shop / name).read_bytes()
        (shop / name).write_bytes(whole[: len(whole) // 2])

    return at_half


def with_recipe(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def make(shop: Path) -> None:
        table = recipe()
        change(table)
        write(shop, table)

    return make


def source(key: str, value: str) -> Callable[[Path], None]:
    return with_recipe(lambda t: t["data"].update({key: value}))


def text(content: bytes) -> Callable[[Path], None]:
    return lambda shop: (shop / "r.toml").write_bytes(content) and None


def csv(content: str) -> Callable[[Path], None]:
    def make(shop: Path) -> None:
        (shop / "s.csv").write_text(content)
        source("samples", "s.csv")(shop)

    return make


def column(name: str, value: Any) -> Callable[[Path], None]:
    return parquet("samples", lambda f: f.with_columns(pl.Series(name, value(f[name].to_list()))))


def nothing(shop: Path) -> None:
    pass


def folder_with_things(shop: Path) -> None:
    (shop / "data").mkdir()
    (shop / "data" / "thesis.tex").write_text("mine")


def one_class_at_the_end(labels: list[int]) -> list[int]:
    return [*labels[: len(labels) // 2], *[0] * (len(labels) - len(labels) // 2)]


def no_conversion(shop: Path) -> None:
    """One task, so that its clicks may be changed at will."""
    table = recipe(monitor="auc")
    table["task"] = table["task"][:1]
    write(shop, table)


def both(*steps: Callable[[Path], None]) -> Callable[[Path], None]:
    def make(shop: Path) -> None:
        for step in steps:
            step(shop)

    return make


TRAIN = ("train", "r.toml", "-o", "run")
Wrong = tuple[Callable[[Path], None], tuple[str, ...], str]
WRONG: dict[str, Wrong] = {
    # files
    "no recipe": (nothing, ("train", "nope.toml"), "nope.toml: no such file; accepted: the path of a TOML file"),
    "recipe is a folder": (lambda s: (s / "d").mkdir(), ("train", "d"), "d: cannot be read (Is a directory)"),
    "no samples": (
        source("samples", "smaples.parquet"),
        TRAIN,
        "smaples.parquet: no such file; paths in a recipe are rel",
    ),
    "wrong suffix": (
        source("samples", "r.toml"),
        TRAIN,
        "r.toml: cannot tell what it holds from its name; accepted: .pa",
    ),
    "truncated parquet": (cut("samples.parquet"), TRAIN, "samples.parquet: not readable as parquet: "),
    "truncated events": (cut("events.parquet"), TRAIN, "events.parquet: not readable as parquet: "),
    "not parquet at all": (text(b""), ("train", "r.toml", "--set", "data.samples=r.toml"), "r.toml.model: missing"),
    "empty csv": (csv(""), TRAIN, "s.csv: not readable as csv: "),
    "csv without rows": (csv("request,user,time,sequence\n"), TRAIN, "samples: no rows; is this the right file?"),
    "ragged csv": (
        csv("request,user,time,sequence\n1,u,1\n1,u,1,1,9,9\n"),
        TRAIN,
        "s.csv: line 2 has 3 fields, and its",
    ),
    "csv of semicolons": (
        csv("request;user;time\n1;u;1\n"),
        TRAIN,
        "s.csv: its header is one column, 'request;user;time'",
    ),
    # the recipe
    "bad toml": (text(b"[data\nx = 1"), TRAIN, "r.toml: not valid TOML: "),
    "not utf-8": (text(b"x = '\xff'"), TRAIN, "r.toml: byte 5 is not UTF-8; save the file as UTF-8"),
    "typo in a key": (
        nothing,
        (*TRAIN, "--set", "training.epoch=1"),
        "r.toml.training.epoch: unknown key; did you mean",
    ),
    "unknown model": (
        nothing,
        (*TRAIN, "--set", "model.name=dinn"),
        "r.toml.model.name = 'dinn' is not known; did you",
    ),
    "unknown feature": (
        nothing,
        (*TRAIN, "--set", "feature.itm.dim=3"),
        "--set feature.itm.dim=3: feature has no entry 'i",
    ),
    "no equals sign": (nothing, (*TRAIN, "--set", "training"), "--set training: accepted: key=value with a dotted key"),
    "model needs more": (
        no_conversion,
        (*TRAIN, "--set", "model.name=esmm"),
        "model 'esmm' needs two tasks in the schema",
    ),
    "no validation": (
        nothing,
        (*TRAIN, "--set", "data.split.validation=0"),
        "no validation requests, and early stopping needs some; set data.split.validation above 0",
    ),
    "no events": (
        with_recipe(lambda t: t["data"].pop("events")),
        TRAIN,
        "history 'clicks' reads an event log: give events",
    ),
    # columns
    "missing column": (
        parquet("samples", lambda f: f.rename({"country": "contry"})),
        TRAIN,
        "samples: no column 'country'; did you mean 'contry'?",
    ),
    "missing event column": (parquet("events", lambda f: f.drop("kind")), TRAIN, "events: no column 'kind'; "),
    "missing label": (
        parquet("samples", lambda f: f.rename({"click": "clicks"})),
        TRAIN,
        "samples: no column 'click'; did you mean 'clicks'?",
    ),
    "missing key": (parquet("samples", lambda f: f.drop("user")), TRAIN, "samples: no column 'user'; "),
    "text in a number": (column("age", lambda v: ["old"] * len(v)), TRAIN, "age"),
    "infinite number": (column("age", lambda v: [float("inf")] * len(v)), TRAIN, "accepted: finite numbers or null"),
    # labels
    "labels of two": (
        column("click", lambda v: [2, *v[1:]]),
        TRAIN,
        "samples: label column 'click' holds 2.0; a binary task accepts 0 and 1",
    ),
    "labels as text": (
        column("click", lambda v: ["yes"] * len(v)),
        TRAIN,
        "samples: label column 'click' is String; accepted: numbers or",
    ),
    "one class only": (
        both(no_conversion, column("click", lambda v: [0] * len(v))),
        TRAIN,
        "task 'click': every training label is 0; both classes",
    ),
    "one class in validation": (
        both(no_conversion, column("click", one_class_at_the_end)),
        TRAIN,
        "training.monitor = 'auc' is not defined on the validation rows",
    ),
    "conversion without click": (
        column("conversion", lambda v: [1] * len(v)),
        TRAIN,
        "rows have conversion = 1 but click = 0",
    ),
    # who and when
    "time as words": (
        column("time", lambda v: ["yesterday"] * len(v)),
        TRAIN,
        "samples: column 'time' holds 'yesterday'; accepted: numbers, datetimes, ISO",
    ),
    "no time": (
        column("time", lambda v: [None, *v[1:]]),
        TRAIN,
        "samples: 1 rows have no time in column 'time'; drop them",
    ),
    "time with a fraction": (
        column("time", lambda v: [0.5] * len(v)),
        TRAIN,
        "samples: column 'time' has times with a fraction",
    ),
    "two users in a request": (
        parquet("samples", lambda f: f.with_columns(request=pl.lit(1), time=pl.lit(0))),
        TRAIN,
        "samples: request 1 has rows of different users ('user')",
    ),
    "two times in a request": (
        parquet("samples", lambda f: f.with_columns(request=pl.lit(1), user=pl.lit("u"))),
        TRAIN,
        "samples: request 1 has rows of different times ('time')",
    ),
    # where it goes
    "data folder has things": (
        folder_with_things,
        (*TRAIN, "--data", "data"),
        "data: exists and is not empty, but holds no prepared data",
    ),
    "prepare into it": (
        folder_with_things,
        ("prepare", "r.toml", "-o", "data"),
        "data: exists and is not empty, but holds no prepared",
    ),
    "out is a file": (
        nothing,
        ("train", "r.toml", "-o", "events.parquet"),
        "events.parquet: is a file; name a folder for the run",
    ),
    "out is in a file": (
        nothing,
        ("train", "r.toml", "-o", "events.parquet/run"),
        "events.parquet/run: Not a directory",
    ),
    # the demo
    "no such demo": (nothing, ("demo", "--model", "nope"), "--model nope: the demo has lr, fm, base, "),
    "no such task": (
        nothing,
        ("demo", "--task", "buy"),
        "data.dataset.task: got 'buy' (string); accepted: basket, discover",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_user_error_is_one_sentence(what: str, finerank: Call, shop: Path) -> None:
    break_it, words, message = WRONG[what]
    break_it(shop)
    before = test_run.content(shop)
    told = finerank(*words)
    assert told.code == 2, told.err
    assert message in told.err
    assert told.err.startswith("finerank: ")
    assert told.err.count("\n") == 1
    assert told.out == ""
    after = test_run.content(shop)
    assert {name: after.get(name) for name in before} == before  # nothing that was there is touched


def test_there_are_many_ways() -> None:
    assert len(WRONG) > 30


@pytest.mark.parametrize(
    "words",
    [
        ("trian",),
        ("train",),
        ("train", "r.toml", "--outt", "x"),
        ("prepare", "r.toml"),
        ("train", "r.toml", "two.toml"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_two_as_well(words: tuple[str, ...], finerank: Call, shop: Path) -> None:
    told = finerank(*words)
    assert told.code == 2
    assert "Usage:" in told.err
    assert "--help" in told.err
    assert "Traceback" not in told.err


def test_a_second_run_in_the_folder_is_refused(finerank: Call, shop: Path) -> None:
    assert finerank(*TRAIN).code == 0
    before = test_run.content(shop)
    for words, message in (
        (TRAIN, "run: holds a run already; go on with it (--resume), remove it, or name another folder"),
        ((*TRAIN, "--resume", "--set", "training.seed=5"), "run: holds a run of another recipe"),
        (("prepare", "r.toml", "-o", "run"), "run: exists and is not empty"),
        (
            ("prepare", "r.toml", "-o", "run/data", "--set", "data.split.test=0.1"),
            "data: was prepared by another recipe",
        ),
    ):
        told = finerank(*words)
        assert told.code == 2
        assert message in told.err
    assert test_run.content(shop) == before


def test_a_full_disk_is_a_sentence(finerank: Call, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the system reports it, wherever that happens."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "run/data.partial/x")

    monkeypatch.setattr("finerank.run.prepare", full)
    told = finerank(*TRAIN)
    assert told.code == 2
    assert told.err.startswith("finerank: run/data.partial/x: No space left on device; ")
    assert told.err.count("\n") == 1


def test_a_bug_is_no_users_error(finerank: Call, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its traceback is wanted: only what a user can mend is made short."""
    monkeypatch.setattr("finerank.run.prepare", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        finerank(*TRAIN)


# ------------------------------------------------------------------------------------------------ as a process


def test_as_a_process(shop: Path) -> None:
    """The installed command, and the package run as a module: a bad recipe, seen as a script sees it."""
    for command in ([Path(sys.executable).with_name("finerank")], [sys.executable, "-m", "finerank"]):
        done = subprocess.run([*command, "train", "no.toml"], capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 2
        assert done.stderr == "finerank: no.toml: no such file; accepted: the path of a TOML file\n"
        assert done.stdout == ""


def test_ctrl_c_is_130_and_what_was_saved_stays(finerank: Call, shop: Path) -> None:
    endless = ["--set", "training.epochs=1000000", "--set", "training.patience=1000000"]
    code = "from finerank.cli.app import main; main()"
    command = [sys.executable, "-c", code, *TRAIN, *endless]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("lr epoch 1 ")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "\x1b" not in out
    found = Checkpoints(shop / "run" / "checkpoints").load()
    assert found is not None
    assert found.state["epoch"] >= 1
    torch.set_num_threads(1)
    epochs = found.state["epoch"] + 1
    # the same run goes on: its recipe is the one in the folder
    text = (shop / "run" / "recipe.toml").read_text().replace("epochs = 1000000", f"epochs = {epochs}")
    (shop / "run" / "recipe.toml").write_text(text)
    told = finerank("train", "run/recipe.toml", "-o", "run", "--resume")
    assert told.code == 0
    assert told.out.count("lr epoch") == 1


def test_what_predicts_a_number_has_its_error_in_the_table_of_results() -> None:
    """Its line was blank. Where no task is of numbers there is no such column."""

    def shown(test: dict[str, dict[str, float]]) -> list[str]:
        out = io.StringIO()
        result: Any = Result(model=None, dataset=None, history=[], test=test, rows_per_second=9.0, seconds=1.0)
        Console(file=out, width=200).print(screen.results_table([("mmoe", result, None)]))
        return out.getvalue().splitlines()

    click = {"click": {"auc": 0.7, "gauc": 0.6, "logloss": 0.5}}
    title, first, second = shown(click | {"watch": {"rmse": 36.25, "mae": 24.4}})
    assert "RMSE" in title
    assert "36.2500" in second
    assert "36.2500" not in first
    assert not any("RMSE" in line for line in shown(click))
