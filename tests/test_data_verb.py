"""finerank data: what it prints and writes, and one sentence for whatever may be wrong."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import test_data_sets

from finerank.cli import app as cli
from finerank.datasets.adapter import adapters

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """`finerank data ...` in a folder with `ml`, a small MovieLens 1M: (exit code, out, err)."""
    (tmp_path / "ml").mkdir()
    test_data_sets.small("movielens_1m", tmp_path / "ml")
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["finerank", "data", *words])
        code = 0
        try:
            cli.main()
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 0
        return code, *capsys.readouterr()

    return call


def test_alone_it_lists_every_data_set_with_its_licence(data: Call) -> None:
    code, out, _ = data()
    assert code == 0
    for known in adapters():
        assert known.name in out
        assert known.about in out


def test_it_tells_the_counts_and_the_next_step(data: Call) -> None:
    code, out, err = data("movielens_1m", "--from", "ml", "-o", "out", "--set", "label=without_3")
    assert (code, err) == (0, "")
    counts = json.loads(Path("out/counts.json").read_text())["counts"]
    for what, count in counts.items():
        assert f"{count:,}  {what}" in out
    assert "note: label without_3" in out
    assert "next: finerank train out/recipe.toml" in out
    assert {p.name for p in Path("out").iterdir()} == {
        "samples.parquet",
        "events.parquet",
        "recipe.toml",
        "counts.json",
    }


def test_a_synthetic_world_needs_no_folder(data: Call) -> None:
    code, _, err = data("world_popularity", "-o", "world")
    assert (code, err) == (0, "")
    assert Path("world/recipe.toml").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("movielens_1",), "did you mean 'movielens_1m'"),
        (("movielens_1m",), "--from FOLDER is missing"),
        (("movielens_1m", "--from", "ml"), "-o OUT is missing"),
        (("movielens_1m", "--from", "ml", "-o", "ml"), "is not empty"),
        (("movielens_1m", "--from", "ml", "-o", "x", "--set", "labl=a"), "did you mean 'label'"),
        (("movielens_1m", "--from", "ml", "-o", "x", "--set", "test=1.5"), "accepted: shares above 0"),
        (("movielens_1m", "--from", "ml", "-o", "x", "--set", "split"), "key=value with a dotted key, such as seed=2"),
        (("movielens_20m", "--from", "ml", "-o", "x"), "no file ratings.csv"),
        (("amazon", "--from", "ml", "-o", "x", "--set", "negatives=papr"), "did you mean 'paper'"),
    ],
)
def test_what_is_wrong_is_one_sentence(data: Call, words: tuple[str, ...], sentence: str) -> None:
    code, _, err = data(*words)
    assert code == 2
    assert sentence in err
    assert len(err.strip().splitlines()) == 1
    assert not Path("x").exists()


def test_a_full_disk_is_one_sentence_and_leaves_nothing(data: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = set(Path().iterdir())
    monkeypatch.setattr("finerank.datasets.adapter.sink", full)
    code, _, err = data("movielens_1m", "--from", "ml", "-o", "out")
    assert code == 2
    assert "out: the disk is full" in err
    assert err.count("\n") == 1
    assert set(Path().iterdir()) == before
