"""Does a value change the chance? P(positive | value) beside the overall rate, with count and interval (notes: experiment by
example before building a model).

Counted on training rows, so that looking costs nothing later.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from finerank.data.dataset import Dataset
from finerank.errors import UserError, nearest
from finerank.metrics.estimate import student_quantile
from finerank.metrics.runs import distinct
from finerank.schema import PADDING

Z95 = 1.959964


@dataclass(frozen=True)
class Lift:
    """One value of a field. rate: positives / rows, with its 95 % interval; lift: rate over the rate of all rows.

    The interval counts users, not rows, where users are known: a user's rows rise and fall together.
    """

    value: str
    rows: int
    positives: int
    rate: float
    low: float
    high: float
    lift: float


@dataclass(frozen=True)
class Lifts:
    """What was counted of a field: its most frequent values, of how many that occur, and the rate of all rows."""

    field: str
    values: tuple[Lift, ...]
    distinct: int
    overall: float

    @property
    def scope(self) -> str:
        """Which values these are, in words."""
        shown = len(self.values)
        return (
            f"all {shown:,} values"
            if shown == self.distinct
            else f"the {shown:,} most frequent of {self.distinct:,} values"
        )


def lift(dataset: Dataset, field: str, task: str | None = None, top: int = 20) -> Lifts:
    """The `top` most frequent values of a request or candidate field (an id or a list), by falling lift.

    task  a binary task; default the first. Rows outside its space do not count
    Raises UserError for a field that is not there, or is a number (bucket it first).
    """
    rows = dataset.rows_of(dataset.requests_of("train"))
    k = _task(dataset, task)
    inside = dataset.weights[rows, k] != 0
    rows = rows[inside]
    labels = dataset.labels[rows, k].astype(np.float64)
    entries, symbols, table = _values(dataset, field, rows)
    symbols_table = dataset.encoder.tables[table]
    # a row counts once, however often a list holds the value
    entries, symbols = np.divmod(distinct(entries * symbols_table.size + symbols), symbols_table.size)
    positive = labels[entries]
    count = np.bincount(symbols, minlength=symbols_table.size)
    hits = np.bincount(symbols, weights=positive, minlength=symbols_table.size)
    overall = float(labels.mean()) if len(labels) else float("nan")
    request_of = np.searchsorted(dataset.first, rows, side="right") - 1
    user = dataset.user[request_of]
    cluster = np.where(user >= 0, user, -1 - request_of)[entries]
    count[PADDING] = 0
    frequent = np.argsort(-count, kind="stable")[:top]
    frequent = frequent[count[frequent] > 0]
    out = []
    for symbol in frequent.tolist():
        here = symbols == symbol
        rate = float(hits[symbol] / count[symbol])
        low, high = _interval(positive[here], cluster[here], rate)
        out.append(
            Lift(
                symbols_table.name(symbol),
                int(count[symbol]),
                int(hits[symbol]),
                rate,
                low,
                high,
                rate / overall if overall else float("nan"),
            )
        )
    return Lifts(field, tuple(sorted(out, key=lambda v: -v.lift)), int(np.count_nonzero(count)), overall)


def counted_task(dataset: Dataset, task: str | None = None) -> str:
    """The task whose lift is counted: this one, or else the first binary one. Raises UserError where it is none."""
    return dataset.fitted.schema.tasks[_task(dataset, task)].name


def _interval(positive: np.ndarray, cluster: np.ndarray, rate: float) -> tuple[float, float]:
    """95 % of a rate: Wilson's interval at the number of rows that the clusters are worth (variance between clusters).

    Of one cluster nothing tells how others differ: it is worth one row, whatever its rows say. Of few, little does: hence t.
    """
    n = len(positive)
    _, of = np.unique(cluster, return_inverse=True)
    surplus = np.bincount(of, weights=positive - rate)
    clusters = len(surplus)
    if clusters == 1 or not 0 < rate < 1:
        worth, z = float(clusters), Z95
    else:
        variance = float((surplus**2).sum()) / n**2 * clusters / (clusters - 1)
        worth, z = rate * (1 - rate) / max(variance, rate * (1 - rate) / n), student_quantile(clusters - 1)
    centre = (rate + z**2 / (2 * worth)) / (1 + z**2 / worth)
    half = z / (1 + z**2 / worth) * (rate * (1 - rate) / worth + z**2 / (4 * worth**2)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def _task(dataset: Dataset, name: str | None) -> int:
    binary = [t.name for t in dataset.fitted.schema.tasks if t.kind == "binary"]
    if not binary:
        raise UserError("lift is of a binary task, and the schema has none")
    if name is not None and name not in binary:
        raise UserError(f"no binary task {name!r}; {nearest(name, binary)}")
    return [t.name for t in dataset.fitted.schema.tasks].index(name or binary[0])


def _values(dataset: Dataset, field: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    """(entry -> position in `rows`, symbol of each entry, table): single ids have one entry a row, lists any number."""
    fitted = dataset.fitted
    request_of = np.searchsorted(dataset.first, rows, side="right") - 1
    known: list[str] = []
    for columns, block, at in (
        (fitted.request, dataset.request, request_of),
        (fitted.candidate, dataset.candidate, rows),
    ):
        for j, (name, table) in enumerate(columns.ids):
            if name == field:
                return np.arange(len(rows)), np.asarray(block.ids[at, j]).astype(np.int64), table
            known.append(name)
        for column in columns.lists:
            if column.name == field:
                lists = block.lists[column.name]
                which = np.asarray(lists.index)[at]
                starts = np.cumsum(lists.lengths) - lists.lengths
                lengths = np.asarray(lists.lengths)[which]
                entries = np.repeat(np.arange(len(rows)), lengths)
                shift = np.repeat(starts[which] - (np.cumsum(lengths) - lengths), lengths)
                return entries, np.asarray(lists.ids)[np.arange(len(entries)) + shift, 0].astype(np.int64), column.table
            known.append(column.name)
    raise UserError(f"no id or list field {field!r} of request or candidate; {nearest(field, known)}")
