"""A run: recipe -> prepared data -> trained model -> a folder that is enough to repeat it.

recipe.toml       as resolved, defaults included          environment.json  versions, threads, device
data/             the encoded data set (or elsewhere)     curve.csv         a line per epoch
checkpoints/      to go on from     best/ best weights    metrics.json      validation and test, per head
stages/<kind>/    the same for what was trained before    trained.toml      the recipe with what the stages decided
warm_start.json   what was taken over from an older run, where training.warm_start names one
scores/<split>/   logits of every validation and test row, so that evaluating and comparing need no second pass
run.json          where the data set is; written when the run is whole

`Run.open` reads such a folder back.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

import finerank
from finerank.alone import alone, in_turn
from finerank.data.columns import ColumnWriter, read_columns
from finerank.data.dataset import Dataset
from finerank.data.prepare import prepare
from finerank.errors import UserError
from finerank.kernels import build as loops
from finerank.models.composition import Head, Model
from finerank.models.registry import refuse
from finerank.recipe import Recipe
from finerank.training.curve import write_curve
from finerank.training.evaluate import Predictions, judged, metrics, predict, watched
from finerank.training.loop import Epoch, Progress, Trainer
from finerank.training.stages import after_stages, check
from finerank.training.warm_start import OldRun
from finerank.typed import differences, read_toml


@dataclass(frozen=True)
class Result:
    """What a run gave. test: metrics per head; rows_per_second: training; seconds: training and evaluation."""

    model: Model
    dataset: Dataset
    history: list[Epoch]
    test: Mapping[str, Mapping[str, float]]
    rows_per_second: float
    seconds: float


SCORED = ("validation", "test")
STAMP = "recipe.json"
"""Of prepared data: what they were made of."""


@dataclass(frozen=True)
class Run:
    """A finished run, read back from its folder. recipe: of what was trained in the end, where stages decided about it."""

    folder: Path
    recipe: Recipe
    dataset: Dataset
    heads: tuple[Head, ...]

    @staticmethod
    def open(folder: Path | str) -> Run:
        """Raises UserError when the folder holds no finished run, or its data set is gone."""
        folder = Path(folder)
        stamp = folder / "run.json"
        if not stamp.exists():
            raise UserError(f"{folder}: no finished run here (no run.json); train one with `finerank train`")
        try:
            found = json.loads(stamp.read_text(encoding="utf-8"))
            data, heads = folder / found["data"], tuple(Head(**head) for head in found["heads"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{stamp}: damaged ({type(error).__name__}: {error}); train the run again") from error
        decided = folder / "trained.toml"
        if not (folder / "recipe.toml").exists():
            raise UserError(f"{folder / 'recipe.toml'}: there is no such file, so the run is not whole; train it again")
        recipe = Recipe.read(decided if decided.exists() else folder / "recipe.toml")
        return Run(folder, recipe, Dataset.open(data), heads)

    @property
    def unit(self) -> str:
        """What rows belong to, and intervals are over: users, or requests where the recipe names no users."""
        return "users" if self.recipe.data.keys.user else "requests"

    def trainer(self) -> Trainer:
        """A trainer that holds the best model, its row maps and its batch builder: to score, explain or go on with."""
        trainer = Trainer(self.recipe.model, self.dataset, self.recipe.training, self.folder)
        trainer.load_best()
        return trainer

    def metrics(self) -> dict[str, Any]:
        """metrics.json as `run` wrote it: model, best_epoch, epochs, validation, test, training_rows_per_second, ..."""
        return self.document("metrics.json", ("model", "best_epoch", "validation", "test", "training_rows_per_second"))

    def document(self, name: str, keys: Sequence[str] = ()) -> dict[str, Any]:
        """A JSON file of the folder: an object with at least these keys. Raises UserError where it is gone or damaged."""
        at = self.folder / name
        try:
            found = json.loads(at.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{at}: there is no such file, so the run is not whole; train it again") from None
        except ValueError as error:
            raise UserError(f"{at}: damaged ({type(error).__name__}: {error}); train the run again") from error
        if not isinstance(found, dict) or (missing := [key for key in keys if key not in found]):
            what = f"without {', '.join(missing)}" if isinstance(found, dict) else "no JSON object"
            raise UserError(f"{at}: damaged ({what}); train the run again")
        return found

    def predictions(self, split: str) -> Predictions:
        """The stored scores of "validation" or "test", with what they are judged by."""
        requests = self.dataset.requests_of(split)
        at = self.folder / "scores" / split
        if not at.exists():
            raise UserError(f"{self.folder}: no scores of {split!r}; the split has no rows, or the run is not whole")
        try:
            stored = read_columns(at)
        except UserError as error:
            raise UserError(f"{at}: the stored scores are damaged; train the run again ({error})") from error
        wanted = judged(self.heads, self.dataset, requests)
        if not np.array_equal(stored["rows"], wanted.rows):
            raise UserError(f"{at}: is of another data set; train the run again")
        return replace(wanted, logits=np.asarray(stored["logits"]))


def prepared(recipe: Recipe, folder: Path, progress: Callable[[str], None] = lambda step: None) -> Dataset:
    """The encoded data set of a recipe in `folder`: opened if it is there, else prepared.

    It is written beside its place and renamed when whole: a kill or an error leaves nothing in the way of a new attempt.
    Where another process prepares it, this one waits, and opens what that one made.
    Raises UserError if `folder` holds something else, or a data set of another recipe or of files as they were before.
    """
    wanted = _fingerprint(recipe)
    stamp = folder / STAMP
    if stamp.exists():
        if stamp.read_text(encoding="utf-8") != wanted:
            if gone := next((file for file in recipe.files() if not file.exists()), None):
                raise UserError(f"{gone}: no such file any more, and {folder} was prepared from it; bring it back")
            raise UserError(
                f"{folder}: was prepared by another recipe or from files that have changed since; "
                "remove it or name another folder"
            )
        return Dataset.open(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder}: exists and is not empty, but holds no prepared data; name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with in_turn(folder.with_name(f".{folder.name}.lock")):
        if stamp.exists():  # another process prepared it meanwhile
            return prepared(recipe, folder, progress)
        _prepare(recipe, folder, wanted, progress)
    return Dataset.open(folder)


def reader_notes(recipe: Recipe, dataset: Dataset) -> list[str]:
    """What a reader of results should know of the rows: the recipe's notes, then what was noted when they were prepared.

    Both, because prepared data serve recipes that differ in notes alone, and the manifest holds those of the first.
    """
    return list(dict.fromkeys((*recipe.data.notes, *dataset.manifest.get("notes", ()))))


def _prepare(recipe: Recipe, folder: Path, fingerprint: str, progress: Callable[[str], None]) -> None:
    notes = list(recipe.data.notes)
    samples, events = recipe.sources(notes.append)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed here
    try:
        prepare(partial, recipe.schema, samples, events, recipe.data.keys, recipe.data.split, progress, notes)
        _write(partial / STAMP, fingerprint)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def run(
    recipe: Recipe,
    folder: Path | str,
    data: Path | str | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    step: Callable[[str], None] = lambda name: None,
) -> Result:
    """Prepare, train, test, and write the run's folder.

    data    where the encoded data set is or goes; None: inside the run's folder
    resume  go on with the run in `folder`; its recipe must be the same
    Raises UserError, among others, while another process works in `folder`.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; name a folder for the run")
    check(recipe.model, recipe.training)
    refuse(recipe.model, recipe.schema)
    text = recipe.toml()
    at = folder / "recipe.toml"
    if at.exists() and not resume:
        raise UserError(f"{folder}: holds a run already; go on with it (--resume), remove it, or name another folder")
    if at.exists() and at.read_text(encoding="utf-8") != text:
        raise UserError(
            f"{folder}: holds a run of another recipe; resume with the recipe it was started with{what_differs(at, recipe)}"
        )
    beginning = _old_run(recipe, resume)
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        return _run(recipe, folder, Path(data or folder / "data"), resume, beginning, progress, step)


def what_differs(stored: Path, recipe: Recipe) -> str:
    """The first key in which a recipe is not the stored one, for an error; nothing if only the text is another."""
    found = differences(read_toml(stored), recipe.resolved())
    if not found:
        return ""
    (key, there, here), more = found[0], len(found) - 1
    count = f" ({more} more {'key differs' if more == 1 else 'keys differ'})" if more else ""
    return f": {key} is {there} there, got {here}{count}"


def _run(
    recipe: Recipe,
    folder: Path,
    data: Path,
    resume: bool,
    beginning: OldRun | None,
    progress: Progress | None,
    step: Callable[[str], None],
) -> Result:
    dataset = prepared(recipe, data, step)
    started = time.perf_counter()
    trainer = Trainer(recipe.model, dataset, recipe.training, folder, progress, old=beginning)
    _write(folder / "recipe.toml", recipe.toml())  # from here on the folder holds a run
    _write(folder / "environment.json", json.dumps(environment(trainer.device, trainer.options.precision), indent=1))
    try:
        if recipe.model.stages:
            del trainer  # it showed that the model can be built
            trainer = after_stages(
                recipe.model, dataset, recipe.training, folder, progress, resume=resume, old=beginning
            )
            if trainer.composition != recipe.model:
                _write(folder / "trained.toml", replace(recipe, model=trainer.composition).toml())
        history = trainer.fit(resume)
    except UserError:
        if not any(
            (folder / kept).exists() for kept in ("checkpoints", "stages")
        ):  # nothing is learnt: no run is left behind
            for name in ("recipe.toml", "environment.json", "warm_start.json"):
                (folder / name).unlink(missing_ok=True)
        raise
    rows = recipe.training.evaluate_rows
    shutil.rmtree(folder / "scores", ignore_errors=True)
    for old in folder.glob("evaluation_*.json"):  # of other scores
        old.unlink()
    predicted = {}
    for split in SCORED:
        requests = dataset.requests_of(split)
        if len(requests):
            predicted[split] = predict(trainer.model, trainer.builder, requests, rows, trainer.device)
            with ColumnWriter(folder / "scores" / split) as out:
                out.append({"rows": predicted[split].rows, "logits": predicted[split].logits})
    measured = metrics(predicted["test"]) if "test" in predicted else {}
    seconds = time.perf_counter() - started
    best = max(history, key=lambda e: e.score)
    speed = sum(e.rows for e in history) / max(sum(e.seconds for e in history), 1e-9)
    write_curve(folder / "curve.csv", history)
    result = {
        "model": recipe.model.name,
        "best_epoch": best.epoch + 1,
        "epochs": len(history),
        "validation": metrics(predicted["validation"]),
        "test": measured,
        "training_rows_per_second": speed,
        "seconds": seconds,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
    }
    if trainer.stages:
        result["stages"] = trainer.stages
    if monitors := watched(trainer.model, trainer.builder, dataset.requests_of("validation"), rows, trainer.device):
        result["monitors"] = monitors
    _write(folder / "metrics.json", json.dumps(_plain(result), indent=1))
    _write(
        folder / "run.json",
        json.dumps({"data": os.path.relpath(dataset.folder, folder), "heads": [vars(h) for h in trainer.model.heads]}),
    )
    return Result(trainer.model, dataset, history, measured, speed, seconds)


def _old_run(recipe: Recipe, resume: bool) -> OldRun | None:
    """The run that training begins with. One that is gone is none when a run is gone on with."""
    source = recipe.training.warm_start
    if source is None or (resume and not (Path(source) / "run.json").exists()):
        return None
    try:
        found = Run.open(source)
        return OldRun.of(found.folder, found.recipe.model, found.dataset)
    except UserError as error:
        raise UserError(f"training.warm_start: {error}") from error


def environment(device: torch.device, precision: str = "float32") -> dict[str, Any]:
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
        "precision": precision,
        "loops": loops.state(),
    }


def _fingerprint(recipe: Recipe) -> str:
    """What a prepared data set depends on, as JSON: the recipe's data part, and the source files as they stand."""
    there = {str(path): path.stat() for path in recipe.files() if path.exists()}
    files = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in there.items()}
    return json.dumps(recipe.data_part() | {"files": files}, indent=1)


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
