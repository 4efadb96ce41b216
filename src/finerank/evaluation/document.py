"""The evaluation of a run on a split, as one document: what `finerank evaluate` writes and the report draws.

    Evaluation                  run, model, split, seed, by, requests, rows, users, unit
      heads {name}              a `HeadEvaluation` per head: rows, users, positives, rate
        metrics {name}          an `Estimate` each: value, low, high, se, how; names and meaning in METRICS
        curves                  points for pictures: ROC, precision-recall, reliability bins, histogram of scores
        beyond {name@k}         an `Estimate` each: coverage, diversity, ... of the tops of the lists
        slices [table]          a `SliceTable` per question: rows of the split by some value
          slices [slice]        rows, users, positives, rate, auc (an Estimate), gauc, logloss, calibration; of a number rmse
          even                  the same metrics with every slice counting equally

`<run>/evaluation_<split>.json` is `Evaluation.write`; `Evaluation.read` gives it back. A NaN is null in the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from finerank.errors import UserError
from finerank.metrics.estimate import Estimate
from finerank.typed import build, plain

FORMAT = "finerank evaluation 1"

By = Literal["user", "request"]

METRICS: dict[str, tuple[str, int]] = {
    "auc": ("AUC", 1),
    "gauc": ("GAUC (impressions)", 1),
    "gauc_clicks": ("GAUC (clicks)", 1),
    "gauc_equal": ("GAUC (groups equal)", 1),
    "pr_auc": ("PR-AUC", 1),
    "logloss": ("log loss", -1),
    "ne": ("normalised entropy", -1),
    "calibration": ("predicted / true positives", 0),
    "ece": ("ECE", -1),
    "ndcg@10": ("NDCG@10", 1),
    "mrr": ("MRR", 1),
    "hr@10": ("HR@10", 1),
    "map@10": ("MAP@10", 1),
    "recall@1": ("recall@1 against 9 sampled negatives", 1),
    "odds_loss": ("weighted log loss of odds", -1),
    "rmse": ("RMSE", -1),
    "mae": ("MAE", -1),
    "r2": ("R²", 1),
    "pair_loss": ("share of the label lost to pairs in wrong order", -1),
}
"""Name -> (title, 1: larger is better, -1: smaller is better, 0: one is best), in the order of showing."""


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Rows of about equal number with neighbouring predictions. low, high: 95 % interval of the observed rate."""

    predicted: float
    observed: float
    low: float
    high: float
    rows: int


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Rows per bin of the predicted probability, by label. edges: one more than bins, rising."""

    edges: tuple[float, ...]
    positives: tuple[int, ...]
    negatives: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Points for pictures, at most 200 a curve.

    roc               (false positive rate, true positive rate), from (0, 0) to (1, 1)
    precision_recall  (recall, precision), recall rising
    reliability       equal-mass bins, predictions rising
    """

    roc: tuple[tuple[float, float], ...]
    precision_recall: tuple[tuple[float, float], ...]
    reliability: tuple[Bin, ...]
    histogram: Histogram


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The metrics of some rows. name: the value they share. For a regression: rmse is set, with its 95 % interval, and the
    others are NaN.
    """

    name: str
    rows: int
    users: int
    positives: int
    rate: float
    auc: Estimate
    gauc: float
    logloss: float
    calibration: float
    rmse: float = math.nan
    rmse_low: float = math.nan
    rmse_high: float = math.nan

    @property
    def error(self) -> Estimate:
        """The RMSE with its interval."""
        return Estimate(value=self.rmse, low=self.rmse_low, high=self.rmse_high)


@dataclass(frozen=True, kw_only=True)
class SliceTable:
    """The rows of a head by the value of something.

    by      what: "history clicks", "new user", "new item", "hour", "popularity", or the name of a feature
    slices  in their natural order, or the most frequent first and the rest last
    even    metrics (auc, gauc, logloss, calibration; rmse) over all rows, weighted so that every slice counts equally:
            far from the metric itself means that the large slices pay for it or gain by it
    note    what the values are, in a sentence
    """

    by: str
    slices: tuple[Slice, ...]
    even: Mapping[str, float]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class HeadEvaluation:
    """One head on the rows of its space.

    link       sigmoid: a probability; identity, exp, odds: a number, which has other metrics and no curves
    task       whose labels it is judged by
    positives  rows with label 1; rate: the (weighted) mean of the labels
    groups     lists that GAUC and the list metrics order: users or requests, see `Evaluation.by`
    groups_used, share_of_rows_used  those with both classes, and the share of rows in them
    beyond     what the tops of the lists are like (`evaluation.beyond`), by `name@k`
    """

    link: str
    task: str
    rows: int
    users: int
    positives: int
    rate: float
    groups: int
    groups_used: int
    share_of_rows_used: float
    metrics: Mapping[str, Estimate]
    curves: Curves | None = None
    slices: tuple[SliceTable, ...] = ()
    beyond: Mapping[str, Estimate] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A run on a split, or on fresh files; see the module's docstring.

    run      the run's folder, as it was given; seed: of its training
    split    "validation", "test", or the name of the file that was scored
    by       what the groups of GAUC and the list metrics are
    users    clusters that intervals rest on: users, and one per request of nobody known
    unit     what these are called: users, or requests where the recipe names no users
    """

    run: str
    model: str
    seed: int
    split: str
    by: By
    requests: int
    rows: int
    users: int
    heads: Mapping[str, HeadEvaluation]
    unit: str = "users"
    format: str = field(default=FORMAT)

    def write(self, path: Path) -> None:
        """As JSON, whole or not at all; NaN is null."""
        write_json(self, path)

    @staticmethod
    def read(path: Path | str) -> Evaluation:
        """The document of a file. Raises UserError when there is none, or it is damaged or of another format."""
        return read_json(Evaluation, FORMAT, Path(path), "finerank evaluate")


def evaluation_path(run: Path, split: str) -> Path:
    """Where the evaluation of a run on one of its splits lies."""
    return run / f"evaluation_{split}.json"


# ------------------------------------------------------------------------------------------------ JSON

T = TypeVar("T")


def write_whole(path: Path, text: str) -> None:
    """Write a text file, whole or not at all; its folder is made if need be."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(document: object, path: Path) -> None:
    """A document of dataclasses as JSON, whole or not at all; NaN as null."""
    write_whole(path, json.dumps(_null(plain(document)), indent=1, allow_nan=False))


def read_json(cls: type[T], form: str, path: Path, verb: str) -> T:
    """The inverse. Raises UserError when there is no such file, or it is damaged or of another format."""
    if not path.exists():
        raise UserError(f"{path}: no such file; make one with `{verb}`")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}: {error}); make it again with `{verb}`") from error
    if found != form:
        raise UserError(f"{path}: format is {found!r}, accepted: {form!r}; make it again with `{verb}`")
    return build(cls, _nan(content), str(path))


def _null(value: Any) -> Any:
    """NaN as null, at any depth."""
    if isinstance(value, dict):
        return {key: _null(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_null(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _nan(value: Any) -> Any:
    """The inverse: the document has no other nulls."""
    if isinstance(value, dict):
        return {key: _nan(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_nan(v) for v in value]
    return math.nan if value is None else value
