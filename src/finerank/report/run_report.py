"""The report of one run: what came out, how it was learnt, where it is good, what counts, on which data, with which recipe."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from finerank.data.dataset import Dataset
from finerank.errors import UserError
from finerank.evaluation.beyond import title
from finerank.evaluation.document import METRICS, Evaluation, HeadEvaluation, SliceTable, evaluation_path
from finerank.evaluation.evaluate import evaluate
from finerank.explain.importance import permutation_importance
from finerank.explain.past import explain
from finerank.metrics.estimate import Estimate
from finerank.report import pictures
from finerank.report.fields import field_table
from finerank.report.page import number, percent, render
from finerank.report.pictures import Picture
from finerank.run import Run, reader_notes
from finerank.schema import Numeric
from finerank.training.loop import Trainer

TILES = ("auc", "gauc", "logloss", "calibration", "odds_loss", "rmse", "mae", "r2", "pair_loss")


@dataclass(frozen=True)
class Tile:
    """A number that a reader wants first."""

    title: str
    estimate: Estimate


def run_report(
    run: Run, split: str = "test", rows: int = 20_000, step: Callable[[str], None] = lambda name: None
) -> str:
    """The HTML page of a run. rows: on how many the importance of fields is measured; 0 leaves it out.

    A run that was not evaluated on the split yet is evaluated first.
    """
    path = evaluation_path(run.folder, split)
    if not path.exists():
        step("evaluation")
        evaluate(run, split).write(path)
    found = Evaluation.read(path)
    measured = run.metrics()
    trainer = run.trainer()
    importance: list[tuple[str, Markup]] = []
    # by AUC: nothing to lose where the split has one class or none
    if rows and any(head.link == "sigmoid" and 0 < head.positives < head.rows for head in found.heads.values()):
        step("importance of fields")
        by_head = permutation_importance(trainer, split, rows, repeats=2)
        importance = [(name, pictures.importance_chart(of_head)) for name, of_head in by_head.items()]
    step("example")
    example = _example(trainer, split)
    sections = [(f"head-{name}", f"Result: {name}" if len(found.heads) > 1 else "Result") for name in found.heads]
    sections += [("curve", "Learning"), ("slices", "Slices")]
    sections += [("importance", "Fields that count")] if importance else []
    sections += [("past", "A past that lit up")] if example else []
    sections += [("data", "Data"), ("timings", "Timings"), ("recipe", "Recipe")]
    epochs = read_curve(run.folder / "curve.csv")
    used = pictures.gates(measured.get("monitors", {}))
    return render(
        "run.html",
        model=measured["model"],
        split=split,
        summary=f"{found.rows:,} {split} rows in {found.requests:,} requests{_users(found, run)} · {run.folder}",
        sections=sections,
        heads=[_head(name, head, split, measured, run.unit) for name, head in found.heads.items()],
        curves=pictures.learning(epochs, measured["best_epoch"]) + ([used] if used else []),
        unit=run.unit,
        slices=[
            _slice(table, name, head, len(found.heads) > 1)
            for name, head in found.heads.items()
            for table in head.slices
        ],
        importance=importance,
        several=len(found.heads) > 1,
        example=example,
        splits=[(name, *counts) for name, counts in run.dataset.manifest["split"].items()],
        facts=_facts(run.dataset, reader_notes(run.recipe, run.dataset)),
        fields=field_table(run.dataset),
        timings=_timings(measured),
        recipe=run.recipe.toml(),
        environment=list(run.document("environment.json").items()),
    )


def _head(name: str, head: HeadEvaluation, split: str, measured: dict[str, Any], unit: str) -> dict[str, object]:
    auc = head.metrics.get("auc")
    validation = measured["validation"].get(name, {})
    rows = [
        {"title": METRICS[m][0] if m in METRICS else m, "estimate": e, "validation": validation.get(m)}
        for m, e in head.metrics.items()
    ]
    rows += [{"title": title(m), "estimate": e, "validation": None} for m, e in head.beyond.items()]
    return {
        "id": f"head-{name}",
        "title": f"Result: {name}",
        "tiles": [Tile(METRICS[m][0], head.metrics[m]) for m in TILES if m in head.metrics],
        "sentence": _sentence(head, split, unit),
        "pictures": pictures.curves(head.curves, split, auc) if head.curves and auc else [],
        "metrics": rows,
        "validation": bool(validation),
    }


def _users(found: Evaluation, run: Run) -> str:
    """How many, where the recipe names them: else they are the requests."""
    return f" of {found.users:,} users" if run.unit == "users" else ""


def _sentence(head: HeadEvaluation, split: str, unit: str) -> str:
    what = f"{head.rows:,} {split} rows of {head.users:,} {unit}"
    if head.link == "sigmoid":
        what += f", {head.positives:,} of them positive ({percent(head.rate)})"
        what += (
            f"; {head.groups_used:,} of {head.groups:,} lists have both classes and count in GAUC "
            f"({percent(head.share_of_rows_used, 0)} of the rows)"
        )
    return what + ". Intervals cover the choice of " + unit + ", not the seed of the training."


def _slice(table: SliceTable, name: str, head: HeadEvaluation, several: bool) -> dict[str, object]:
    metric = "auc" if head.link == "sigmoid" else "rmse"
    picture = pictures.slice_chart(table, metric, head.metrics[metric].value)
    title = f"by {table.by}" + (f" · {name}" if several else "")
    return {
        "title": title,
        "by": table.by,
        "binary": metric == "auc",
        "svg": picture.svg,
        "note": picture.caption,
        "rows": table.slices,
        "even": dict(table.even),
    }


def _example(trainer: Trainer, split: str) -> dict[str, object] | None:
    """Among the last hundred requests of the split that of the longest past; None where there is no past."""
    data = trainer.dataset
    last = data.requests_of(split)[-100:]
    last = last[data.user[last] >= 0]
    if not data.slices or not len(last):
        return None
    events = sum((s.end[last] - s.start[last] for s in data.slices.values()), np.zeros(len(last), dtype=np.int64))
    if not events.any():
        return None
    user = int(data.user[last[int(np.argmax(events))]])
    name = str(data.users[user])
    try:
        found = explain(trainer, name, split=split)
    except UserError:  # a user whose name is no text of ours cannot be asked for again
        return None
    drawn: list[Picture] = pictures.past(found)
    if not drawn:
        return None
    sentence = (
        f"User {name}: the one of the last {len(last)} {split} requests with the longest past. "
        f"Another one: finerank explain RUN --user USER."
    )
    return {"sentence": sentence, "pictures": drawn}


def _facts(data: Dataset, notes: Sequence[str]) -> list[tuple[str, str]]:
    """What a reader asks of a data set: who, what, how long a past."""
    schema = data.fitted.schema
    users = int(data.manifest["users"])  # 0 where the log names none
    facts = [("users", number(users))] if users else []
    facts.append(("split by", str(data.manifest["split_by"])))
    for task, rate in data.fitted.base_rates.items():
        binary = schema.task(task).kind == "binary"
        facts.append((f"{task}: training {'rate' if binary else 'mean'}", percent(rate, 2) if binary else number(rate)))
    sizes = np.diff(data.first)
    facts.append(("rows per request: median, 95 %, most", _spread(sizes)))
    for name, slices in data.slices.items():
        facts.append((f"{name}: events", number(int(data.manifest["events"][name]))))
        facts.append((f"{name}: length seen by a request: median, 95 %, most", _spread(slices.end - slices.start)))
    kinds = [f for f in schema.features if not isinstance(f, Numeric)]
    facts.append(("features", f"{len(schema.features)}, {len(schema.features) - len(kinds)} of them numbers"))
    return [*facts, *(("note", note) for note in notes)]


def _spread(values: np.ndarray) -> str:
    if not len(values):
        return "–"
    middle, high = np.quantile(values, [0.5, 0.95])
    return f"{middle:,.0f}, {high:,.0f}, {values.max():,}"


def _timings(measured: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("training, rows a second", number(measured["training_rows_per_second"], 0)),
        ("training and evaluation, seconds", number(measured["seconds"], 1)),
        ("epochs (best)", f"{measured['epochs']} ({measured['best_epoch']})"),
        ("parameters", number(int(measured["parameters"]))),
        *((f"before: stage {name}", _stage(told)) for name, told in measured.get("stages", {}).items()),
    ]


def _stage(told: dict[str, Any]) -> str:
    """What a stage gave, on one line."""
    out = [f"{key.replace('_', ' ')} {value}" for key, value in told.items() if isinstance(value, int | str)]
    for head, found in told.get("validation", {}).items():
        out += [
            f"{head} {METRICS[m][0]} {value:.4f}" for m, value in found.items() if m in METRICS and value is not None
        ]
    return " · ".join(out)


def read_curve(path: Path) -> list[dict[str, float]]:
    """The lines of a curve.csv, an epoch each. Raises UserError where the file is gone or damaged."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file, restval="damaged", restkey="damaged"))
        return [{k: float(v) if v else math.nan for k, v in line.items()} for line in lines]
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file, so the run is not whole; train it again") from None
    except (ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: damaged ({error}); train the run again") from error
