"""Several processes at one folder: two that would write over each other do not."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from test_run import logs, table

import finerank.run
from finerank.alone import alone, in_turn
from finerank.data.dataset import Dataset
from finerank.errors import UserError
from finerank.recipe import Recipe
from finerank.run import prepared, run
from finerank.search.tune import tune

BUSY = "another process is at work here; wait until it ends, or name another folder"


@contextmanager
def another_at(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that works in a folder until it is killed."""
    code = f"""
import pathlib, time
from finerank.alone import alone
with alone(pathlib.Path({str(folder)!r})):
    print("in", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_folder_is_free_again_after_a_kill(tmp_path: Path) -> None:
    with another_at(tmp_path) as process:
        with pytest.raises(UserError, match=f"{tmp_path}: {BUSY}"), alone(tmp_path):
            pytest.fail("not alone")
        process.kill()
        process.wait()
        with alone(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


def test_errors_within_pass_through(tmp_path: Path) -> None:
    for kind in (BlockingIOError, OSError, UserError):
        with pytest.raises(kind, match="mine"), alone(tmp_path):
            raise kind("mine")
        with pytest.raises(kind, match="mine"), in_turn(tmp_path / "lock"):
            raise kind("mine")
    with alone(tmp_path), in_turn(tmp_path / "lock"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_training_and_searching_where_another_does_is_refused(tmp_path: Path) -> None:
    logs(tmp_path)
    recipe = Recipe.parse(table(epochs=1), tmp_path)
    (tmp_path / "r.toml").write_text(recipe.toml(), encoding="utf-8")
    for name in ("run", "tune"):
        (tmp_path / name).mkdir()
    with another_at(tmp_path / "run"), pytest.raises(UserError, match=BUSY):
        run(recipe, tmp_path / "run")
    with another_at(tmp_path / "tune"), pytest.raises(UserError, match=BUSY):
        tune(tmp_path / "r.toml", tmp_path / "tune", trials=1)
    run(recipe, tmp_path / "run")
    assert len(tune(tmp_path / "r.toml", tmp_path / "tune", trials=1).trials) == 1


@pytest.mark.parametrize("fails", [False, True])
def test_data_that_another_prepares_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """Four at once: one prepares, and if it fails the next one."""
    logs(tmp_path)
    recipe, calls, busy = Recipe.parse(table(), tmp_path), [], []

    def slow(*given: Any) -> Dataset:
        calls.append(given)
        busy.append(1)
        time.sleep(0.05)
        assert len(busy) == 1, "two prepare at once"
        try:
            if fails and len(calls) == 1:
                raise UserError("the first one fails")
            return prepare(*given)
        finally:
            busy.pop()

    prepare = finerank.run.prepare
    monkeypatch.setattr(finerank.run, "prepare", slow)
    found: list[Dataset | UserError] = []

    def one() -> None:
        try:
            found.append(prepared(recipe, tmp_path / "data"))
        except UserError as error:
            found.append(error)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 + fails
    assert sum(isinstance(f, Dataset) for f in found) == 4 - fails
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "events.parquet", "samples.parquet"]
