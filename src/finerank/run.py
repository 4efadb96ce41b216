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

    Raises UserError if `folder` holds a data set that another recipe prepared.
    """
    wanted = _fingerprint(recipe)
    stamp = folder / "recipe.json"
    if (folder / "manifest.json").exists():
        found = json.loads(stamp.read_text(encoding="utf-8")) if stamp.exists() else None
        if found != wanted:
            raise UserError(
                f"{folder}: was prepared by another recipe or from files that have changed since; "
                "remove it or name another folder"
            )
        return Dataset.open(folder)
    samples, events = recipe.sources()
    dataset = prepare(folder, recipe.schema, samples, events, recipe.data.keys, recipe.data.split, progress)
    _write(stamp, json.dumps(wanted, indent=1))
    return dataset


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
    text = recipe.toml()
    at = folder / "recipe.toml"
    if at.exists() and not resume:
        raise UserError(f"{folder}: holds a run already; go on with it (--resume), remove it, or name another folder")
    if at.exists() and at.read_text(encoding="utf-8") != text:
        raise UserError(f"{folder}: holds a run of another recipe; resume with the recipe it was started with")
    folder.mkdir(parents=True, exist_ok=True)
    dataset = prepared(recipe, data or folder / "data", step)
    _write(at, text)
    started = time.perf_counter()
    trainer = Trainer(recipe.model, dataset, recipe.training, folder, progress)
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


def _fingerprint(recipe: Recipe) -> dict[str, Any]:
    """What a prepared data set depends on: the recipe's data part, and the source files as they stand."""
    files = {}
    for name in (recipe.data.samples, recipe.data.events):
        for path in sorted(recipe.folder.glob(name)) if name else []:
            files[str(path.name)] = [path.stat().st_size, path.stat().st_mtime_ns]
    resolved = recipe.resolved()
    parts = {key: resolved[key] for key in ("data", "feature", "history", "task")}
    found: dict[str, Any] = json.loads(json.dumps(parts | {"files": files}))
    return found


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
