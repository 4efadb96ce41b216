"""A run: recipe -> prepared data -> trained model -> a folder that is enough to repeat it.

recipe.toml       as resolved, defaults included          environment.json  versions, threads, device
data/             the encoded data set (or elsewhere)     curve.csv         a line per epoch
checkpoints/      to go on from     best/ best weights    metrics.json      validation and test, per head
"""

from __future__ import annotations

import csv
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

import finerank
from finerank.data.dataset import Dataset
from finerank.data.prepare import prepare
from finerank.errors import UserError
from finerank.models.composition import Model
from finerank.recipe import Recipe
from finerank.training.evaluate import metrics, predict
from finerank.training.loop import Epoch, Progress, Trainer


@dataclass(frozen=True)
class Result:
    """What a run gave. test: metrics per head; rows_per_second: training; seconds: training and evaluation."""

    model: Model
    dataset: Dataset
    history: list[Epoch]
    test: Mapping[str, Mapping[str, float]]
    rows_per_second: float
    seconds: float


def prepared(recipe: Recipe, folder: Path, progress: Callable[[str], None] = lambda step: None) -> Dataset:
    """The encoded data set of a recipe in `folder`: opened if it is there, else prepared.

    It is written beside its place and renamed when whole: a kill or an error leaves nothing in the way of a new attempt.
    Raises UserError if `folder` holds something else, or a data set of another recipe or of files as they were before.
    """
    wanted = _fingerprint(recipe)
    stamp = folder / "recipe.json"
    if stamp.exists():
        if stamp.read_text(encoding="utf-8") != wanted:
            raise UserError(
                f"{folder}: was prepared by another recipe or from files that have changed since; "
                "remove it or name another folder"
            )
        return Dataset.open(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder}: exists and is not empty, but holds no prepared data; name another folder")
    samples, events = recipe.sources()
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed here
    try:
        prepare(partial, recipe.schema, samples, events, recipe.data.keys, recipe.data.split, progress)
        _write(partial / stamp.name, wanted)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Dataset.open(folder)


def run(
    recipe: Recipe,
    folder: Path,
    data: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    step: Callable[[str], None] = lambda name: None,
) -> Result:
    """Prepare, train, test, and write the run's folder.

    data    where the encoded data set is or goes; None: inside the run's folder
    resume  go on with the run in `folder`; its recipe must be the same
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; name a folder for the run")
    text = recipe.toml()
    at = folder / "recipe.toml"
    if at.exists() and not resume:
        raise UserError(f"{folder}: holds a run already; go on with it (--resume), remove it, or name another folder")
    if at.exists() and at.read_text(encoding="utf-8") != text:
        raise UserError(f"{folder}: holds a run of another recipe; resume with the recipe it was started with")
    folder.mkdir(parents=True, exist_ok=True)
    dataset = prepared(recipe, data or folder / "data", step)
    started = time.perf_counter()
    trainer = Trainer(recipe.model, dataset, recipe.training, folder, progress)
    _write(at, text)  # from here on the folder holds a run
    _write(folder / "environment.json", json.dumps(environment(trainer.device), indent=1))
    history = trainer.fit(resume)
    rows = recipe.training.evaluate_rows
    test = dataset.requests_of("test")
    measured = metrics(predict(trainer.model, trainer.builder, test, rows, trainer.device)) if len(test) else {}
    seconds = time.perf_counter() - started
    best = max(history, key=lambda e: e.score)
    speed = sum(e.rows for e in history) / max(sum(e.seconds for e in history), 1e-9)
    with (folder / "curve.csv").open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        names = [(head, metric) for head, found in history[0].validation.items() for metric in found]
        out.writerow(["epoch", "loss", "rows_per_second", *(f"{h}.{m}" for h, m in names)])
        for e in history:
            out.writerow([e.epoch + 1, e.loss, e.rows_per_second, *(e.validation[h][m] for h, m in names)])
    result = {
        "model": recipe.model.name,
        "best_epoch": best.epoch + 1,
        "epochs": len(history),
        "validation": best.validation,
        "test": measured,
        "training_rows_per_second": speed,
        "seconds": seconds,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
    }
    _write(folder / "metrics.json", json.dumps(_plain(result), indent=1))
    return Result(trainer.model, dataset, history, measured, speed, seconds)


def environment(device: torch.device) -> dict[str, Any]:
    """What must be equal for a run to repeat bit for bit: versions, machine, threads, device, precision."""
    packages = ("torch", "numpy", "polars", "safetensors", "xxhash")
    return {
        "finerank": finerank.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        **{name: metadata.version(name) for name in packages},
        "threads": torch.get_num_threads(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor(),
        "precision": "float32",
    }


def _fingerprint(recipe: Recipe) -> str:
    """What a prepared data set depends on, as JSON: the recipe's data part, and the source files as they stand."""
    there = {str(path): path.stat() for path in recipe.files() if path.exists()}
    files = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in there.items()}
    resolved = recipe.resolved()
    return json.dumps(
        {key: resolved[key] for key in ("data", "feature", "history", "task")} | {"files": files}, indent=1
    )


def _plain(value: Any) -> Any:
    """JSON-able, with NaN as null."""
    if isinstance(value, Mapping):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def _write(path: Path, text: str) -> None:
    """Replace a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(path.suffix + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
