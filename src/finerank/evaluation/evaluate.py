"""A run on a split, or on fresh files -> its evaluation: metrics with intervals, curves, slices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from finerank.data.encode import canonical_series
from finerank.data.labels import label_columns, labels_of
from finerank.errors import UserError, nearest
from finerank.evaluation.beyond import beyond
from finerank.evaluation.curves import curves
from finerank.evaluation.document import By, Evaluation, HeadEvaluation, evaluation_path
from finerank.evaluation.measure import HeadRows, dense, estimates
from finerank.evaluation.slices import Slicing, questions, slice_table, slicings
from finerank.fresh.past import Users
from finerank.fresh.score import FreshScorer
from finerank.metrics.estimate import Estimate
from finerank.metrics.ranking import of_rankings
from finerank.metrics.runs import distinct
from finerank.models.composition import Head
from finerank.run import Run
from finerank.training.evaluate import Predictions, judged


def evaluate(
    run: Run,
    split: str = "test",
    by: By = "user",
    columns: Sequence[str] = (),
    k: int = 10,
    amount: str | None = None,
    order: str | None = None,
) -> Evaluation:
    """Judge the stored scores of a split; no model is run.

    by       what the groups of GAUC and of the list metrics are. Intervals are over users either way
    columns  features to slice by, beside what every evaluation has (`evaluation.slices`)
    k        how long the top of a list is, for what is beyond accuracy (`evaluation.beyond`)
    amount   the regression task that says what a row brought in, for GPM
    order    the feature that says where a row stood, for the distance from the order as shown
    Raises UserError when the split has no scores, or a column cannot be sliced by.
    """
    data = run.dataset
    requests = data.requests_of(split)
    of_row = data.spread(requests, requests)
    found = run.predictions(split)

    def tops(i: int, rows: HeadRows) -> dict[str, Estimate]:
        at = found.rows[found.weights[:, i] != 0]
        return beyond(data, found.heads[i], rows, at, k, amount, run.unit, order)

    return _judge(run, split, found, of_row, slicings(data, requests, columns), by, tops)


def evaluate_files(
    run: Run,
    samples: Path,
    events: Path | None = None,
    by: By = "user",
    columns: Sequence[str] = (),
    advance: Callable[[int], None] = lambda rows: None,
) -> Evaluation:
    """Score raw files with the run (see `fresh`) and judge that; arguments otherwise as in `evaluate`.

    Slices ask what they ask of the run's own splits: an item is new if the run's training rows lack it.
    """
    given, log = run.recipe.sources_in(samples, events)
    keys, schema, asked = run.recipe.data.keys, run.dataset.encoder.schema, questions(run.dataset, columns)
    names = given.collect_schema().names()
    for column in label_columns(schema):
        if column not in names:
            raise UserError(
                f"samples: no label column {column!r}; {nearest(column, names)}. `finerank predict` needs none"
            )
    users = Users(run.dataset.users)
    parts: list[Predictions] = []
    requests: list[np.ndarray] = []
    answers: list[list[np.ndarray]] = [[] for _ in asked]
    done = 0
    for batch in FreshScorer(run, log).batches(given, advance=advance):
        frame, n = batch.frame, batch.frame.height
        labels, weights = labels_of(schema, frame)
        here = np.argsort(batch.order)  # back to the order of the file
        request = np.arange(done, done + n)
        if keys.request:
            request = _hashed(frame[keys.request])
        groups, data = -1 - request, batch.data  # rows of nobody known: a cluster per request
        if keys.user:
            texts = canonical_series(frame[keys.user]).cast(pl.String)
            nobody = texts.is_null().to_numpy()
            groups = np.where(nobody, groups, _hashed(texts))
            found = users.codes(texts)
            stranger = users.count  # somebody whom the run does not know
            user = np.where(nobody, -1, np.where(found < 0, stranger, found))
            data = replace(data, user=user[batch.order[data.first[:-1]]])
        for values, question in zip(answers, asked, strict=True):
            values.append(question.read(data, np.arange(data.requests))[here])
        wholeby = replace(data, labels=labels[batch.order], weights=weights[batch.order])
        one = judged(run.heads, wholeby, np.arange(data.requests))
        parts.append(
            replace(
                one,
                rows=np.arange(done, done + n),
                labels=one.labels[here],
                weights=one.weights[here],
                logits=batch.logits,
                groups=groups,
            )
        )
        requests.append(request)
        done += n
    whole = Predictions(
        run.heads,
        *(np.concatenate([getattr(p, f) for p in parts]) for f in ("rows", "logits", "labels", "weights", "groups")),
    )
    answered = [q.cut(np.concatenate(values)) for q, values in zip(asked, answers, strict=True)]
    return _judge(run, str(samples), whole, dense(np.concatenate(requests)), answered, by)


def _hashed(values: pl.Series) -> np.ndarray:
    """Keys as int64: 64-bit hashes, so that batches need no common codes."""
    return values.hash(seed=0).to_numpy().view(np.int64)


def _judge(
    run: Run,
    split: str,
    found: Predictions,
    requests: np.ndarray,
    answered: Sequence[Slicing],
    by: By,
    tops: Callable[[int, HeadRows], Mapping[str, Estimate]] = lambda i, rows: {},
) -> Evaluation:
    """requests: int64 [N], the request of each row; tops: what is beyond accuracy, of a head and its rows."""
    heads = {}
    for i, head in enumerate(found.heads):
        rows = head_rows(found, i, requests, by)  # of one head at a time: they are as large as the split
        whole = _head(head, rows, answered, found.weights[:, i] != 0, run.unit)
        heads[head.name] = replace(whole, beyond=tops(i, rows))
    return Evaluation(
        run=str(run.folder),
        model=run.recipe.model.name,
        seed=run.recipe.training.seed,
        split=split,
        by=by,
        requests=len(distinct(requests)),
        rows=len(found.rows),
        users=len(distinct(found.groups)),
        unit=run.unit,
        heads=heads,
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


def _head(head: Head, rows: HeadRows, answered: Sequence[Slicing], inside: np.ndarray, unit: str) -> HeadEvaluation:
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
        slices=tuple(slice_table(rows, question.of_rows(inside), unit) for question in answered) if n else (),
    )


def evaluate_run(run: Run) -> Evaluation | None:
    """What `finerank train` ends with: the test split (or, without one, the validation split) judged and written.

    None if neither has rows.
    """
    for split in ("test", "validation"):
        if len(run.dataset.requests_of(split)):
            found = evaluate(run, split)
            found.write(evaluation_path(run.folder, split))
            return found
    return None
