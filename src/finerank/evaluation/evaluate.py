"""A run on a split -> its evaluation: metrics with intervals, curves, slices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finerank.evaluation.curves import curves
from finerank.evaluation.document import By, Evaluation, HeadEvaluation, evaluation_path
from finerank.evaluation.measure import HeadRows, estimates
from finerank.evaluation.slices import Slicing, slice_table, slicings
from finerank.metrics.ranking import of_rankings
from finerank.models.composition import Head
from finerank.run import Run
from finerank.training.evaluate import Predictions


def evaluate(run: Run, split: str = "test", by: By = "user", columns: Sequence[str] = ()) -> Evaluation:
    """Judge the stored scores of a split; no model is run.

    by       what the groups of GAUC and of the list metrics are. Intervals are over users either way
    columns  features to slice by, beside what every evaluation has (`evaluation.slices`)
    Raises UserError when the split has no scores, or a column cannot be sliced by.
    """
    data = run.dataset
    found, requests = run.predictions(split), data.requests_of(split)
    of_row = np.repeat(requests, data.first[requests + 1] - data.first[requests])
    questions = slicings(data, requests, columns)
    unit = "users" if (data.user[requests] >= 0).all() else "users and lone requests"
    if (data.user[requests] < 0).all():
        unit = "requests"
    return Evaluation(
        run=str(run.folder),
        model=run.recipe.model.name,
        seed=run.recipe.training.seed,
        split=split,
        by=by,
        requests=len(requests),
        rows=len(found.rows),
        users=len(np.unique(found.groups)),
        heads={
            head.name: _head(head, head_rows(found, i, of_row, by), questions, found.weights[:, i] != 0, unit)
            for i, head in enumerate(found.heads)
        },
    )


def head_rows(found: Predictions, head: int, requests: np.ndarray, by: By) -> HeadRows:
    """The rows of one head's space. requests: int64 [N], the request of each row."""
    return HeadRows.of(
        found.heads[head].link,
        found.labels[:, head],
        found.logits[:, head],
        found.weights[:, head],
        found.groups,
        requests,
        by,
    )


def _head(head: Head, rows: HeadRows, questions: Sequence[Slicing], inside: np.ndarray, unit: str) -> HeadEvaluation:
    n = len(rows.labels)
    binary = head.link == "sigmoid"
    ordered = of_rankings(rows.rankings) if binary else None
    used = np.isfinite(ordered.auc) if ordered is not None else np.zeros(0, dtype=bool)
    share = float(ordered.impressions[used].sum() / ordered.impressions.sum()) if ordered is not None and n else 0.0
    return HeadEvaluation(
        link=head.link,
        task=head.task,
        rows=n,
        users=rows.count,
        positives=int((rows.labels == 1).sum()) if binary else 0,
        rate=float(rows.each @ rows.labels / rows.each.sum()) if n else float("nan"),
        groups=len(rows.owner),
        groups_used=int(used.sum()),
        share_of_rows_used=share,
        metrics=estimates(rows, unit),
        curves=curves(rows),
        slices=tuple(slice_table(rows, question.of_rows(inside)) for question in questions) if n else (),
    )


def write_evaluations(run: Run, splits: Sequence[str] = ("validation", "test")) -> dict[str, Evaluation]:
    """Evaluate the splits that have scores, and write each into the run's folder."""
    out = {split: evaluate(run, split) for split in splits if len(run.dataset.requests_of(split))}
    for split, found in out.items():
        found.write(evaluation_path(run.folder, split))
    return out
