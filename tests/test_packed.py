"""Packed logs from end to end: `finerank init`, train, predict and evaluate give what they give for the same log unpacked."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
import test_run
import tiny

from finerank.cli.app import verbs
from finerank.data.source import scan

LISTS = ("tags", "interests")


def finerank(*words: object) -> None:
    verbs()([str(w) for w in words], standalone_mode=False)


def lived(folder: Path, kind: str) -> tuple[str, Any, pl.DataFrame, str]:
    """(recipe, what lasts of the run, predictions, evaluation of a file) of a log kept as files of this kind."""
    folder.mkdir()
    samples, events = tiny.frames(requests=150)
    for name, frame in (("samples", samples.drop("conversion", *LISTS)), ("events", events.drop("tags"))):
        text = frame.write_csv(separator="\t" if "tsv" in kind else ",").encode()
        if kind.endswith(".gz"):
            text = gzip.compress(text)
        elif kind.endswith(".zst"):
            text = pa.compress(text, codec="zstd", asbytes=True)
        (folder / f"{name}.{kind}").write_bytes(text)
    at = {name: folder / f"{name}.{kind}" for name in ("samples", "events")}
    recipe, run, scores = folder / "recipe.toml", folder / "run", folder / f"scores.{kind}"
    finerank("init", at["samples"], "--events", at["events"], "--request", "request", "-o", recipe)
    finerank("train", recipe, "-o", run, "--set", "training.epochs=1")
    finerank("predict", run, "--samples", folder / f"s*.{kind}", "--events", at["events"], "-o", scores)
    finerank("evaluate", run, "--samples", at["samples"], "--events", at["events"])
    judged = next(run.glob("evaluation_*.json")).read_text()
    shown = [t.replace(f".{kind}", "").replace(str(folder), "") for t in (recipe.read_text(), judged)]
    return shown[0], test_run.lasting(run), scan(scores, {"user"}).collect(), shown[1]


@pytest.mark.parametrize("kind", ["csv.gz", "csv.zst", "tsv.gz"])
def test_a_packed_log_gives_what_the_same_log_gives_unpacked(tmp_path: Path, kind: str) -> None:
    plain, packed = lived(tmp_path / "plain", "csv"), lived(tmp_path / "packed", kind)
    assert plain[0] == packed[0]
    assert plain[1] == packed[1]
    assert plain[2].equals(packed[2])
    assert plain[2].height == tiny.frames(requests=150)[0].height
    assert plain[3] == packed[3]
