"""Where a model is good and where it is not: the rows of a split by the value of something.

Always: the length of each history, new users, new items, the popularity of the item, the hour. On demand: any feature of
the request or the candidate with one id or number per row, by the names of its values.

*New* means not in the training rows (items: nor in the vocabulary). The item is the first field of the first history, or
else the first categorical feature of the candidate. n rows · V slices
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finerank.data.dataset import Dataset
from finerank.errors import UserError, nearest
from finerank.evaluation.document import Slice, SliceTable
from finerank.evaluation.measure import BOUNDS, HeadRows, rmse_influence
from finerank.metrics.estimate import Estimate
from finerank.metrics.influence import auc_influence
from finerank.metrics.probability import calibration, logloss
from finerank.metrics.ranking import auc, gauc
from finerank.metrics.regression import rmse
from finerank.schema import FIRST, Bucketed, Categorical, Columns, Feature, ListFeature, Numeric, table_of

Ints = NDArray[np.int64]

TOP = 10
"""Values of a feature that get a slice of their own; the rest is one."""
LENGTHS = (0, 1, 3, 6, 11, 21, 51)
DECADES = (0, 1, 10, 100, 1_000, 10_000, 100_000)
HOUR = 3_600_000_000
YEAR = 366 * 24 * HOUR
NAN = float("nan")


@dataclass(frozen=True)
class Slicing:
    """A question answered: which slice each row is in, int64 [n], -1 for none; and the slices' names [V]."""

    by: str
    of: Ints
    names: tuple[str, ...]
    note: str

    def of_rows(self, inside: NDArray[np.bool_]) -> Slicing:
        """The same for some of the rows."""
        return replace(self, of=self.of[inside])


@dataclass(frozen=True)
class Question:
    """Something to slice by.

    read  (data set, requests) -> [n], a value for each row of the requests; values of several data sets may be joined
    cut   all values [n] -> the slices
    """

    read: Callable[[Dataset, Ints], NDArray[Any]]
    cut: Callable[[NDArray[Any]], Slicing]


def questions(data: Dataset, columns: Sequence[str] = ()) -> list[Question]:
    """The questions of the module's docstring, as the training rows of `data` put them; columns: features to add.

    Raises UserError for a name that is no feature, or one with several values per row.
    """
    out = [_length(data, name) for name in data.slices]
    if (data.user >= 0).any():
        out.append(_new_user(data))
    item = item_of(data)
    if item is not None:
        out += _item_questions(data, item)
    if len(data.time) and data.time.max() > YEAR:  # else times are rows' numbers, or count from the log's start
        hours, note = tuple(f"{h:02d}" for h in range(24)), "hour of the request's time, as logged"
        out.append(
            Question(
                lambda d, requests: _spread(d, requests, np.asarray(d.time[requests] // HOUR % 24)),
                lambda values: Slicing("hour", values, hours, note),
            )
        )
    return out + [_feature(data, name) for name in columns]


def slicings(data: Dataset, requests: Ints, columns: Sequence[str] = ()) -> list[Slicing]:
    """Every question answered for the rows of these requests."""
    return [q.cut(q.read(data, requests)) for q in questions(data, columns)]


def slice_table(rows: HeadRows, slicing: Slicing, unit: str = "users") -> SliceTable:
    """The metrics of each slice, and of all rows with every slice weighing the same. slicing: of these rows; unit: what
    clusters are, for people."""
    sizes = np.bincount(slicing.of[slicing.of >= 0], rows.each[slicing.of >= 0], len(slicing.names))
    order = np.argsort(slicing.of, kind="stable")
    ends = np.searchsorted(slicing.of[order], np.arange(len(slicing.names) + 1))
    found = [
        _slice(name, rows.take(np.sort(order[ends[v] : ends[v + 1]])), unit)
        for v, name in enumerate(slicing.names)
        if ends[v + 1] > ends[v]
    ]
    inside = np.flatnonzero(slicing.of >= 0)
    equal = np.zeros(len(rows.labels))
    equal[inside] = rows.each[inside] / sizes[slicing.of[inside]]
    even = rows.take(inside, equal * (sizes.sum() / max(1, np.count_nonzero(sizes))))
    return SliceTable(by=slicing.by, slices=tuple(found), even=_summary(even), note=slicing.note)


def _slice(name: str, rows: HeadRows, unit: str) -> Slice:
    binary = rows.link == "sigmoid"
    area = error = Estimate(value=NAN)
    if binary:
        area = auc_influence(rows.runs, rows.clusters, rows.count).estimate(0.0, 1.0, unit)
    else:
        error = rmse_influence(rows).estimate(*BOUNDS["rmse"], unit=unit)
    summary = {"gauc": NAN, "logloss": NAN, "calibration": NAN, "rmse": NAN} | _summary(rows)
    summary.pop("auc", None)  # as an estimate, above
    return Slice(
        name=name,
        rows=len(rows.labels),
        users=rows.count,
        positives=int((rows.labels == 1).sum()) if binary else 0,
        rate=float(rows.each @ rows.labels / rows.each.sum()),
        auc=area,
        rmse_low=error.low,
        rmse_high=error.high,
        **summary,
    )


def _summary(rows: HeadRows) -> dict[str, float]:
    y, z, w = rows.labels, rows.logits, rows.weights
    if rows.link != "sigmoid":
        return {"rmse": rmse(y, rows.predictions, w)}
    return {
        "auc": auc(y, z, w),
        "gauc": gauc(y, z, rows.lists, weights=w).value,
        "logloss": logloss(y, z, w),
        "calibration": calibration(y, z, w),
    }


# ------------------------------------------------------------------------------------------------ the questions


def _length(data: Dataset, name: str) -> Question:
    note = f"events of the history that a row sees, at most {data.fitted.schema.history(name).max_length}"

    def read(d: Dataset, requests: Ints) -> Ints:
        slices = d.slices[name]
        return _spread(d, requests, slices.end[requests] - slices.start[requests])

    return Question(read, lambda values: _edges(f"history {name}", values, LENGTHS, note))


def _new_user(data: Dataset) -> Question:
    users = data.user[data.requests_of("train")]
    known = np.zeros(int(data.user.max()) + 1, dtype=np.bool_)
    known[users[users >= 0]] = True

    def read(d: Dataset, requests: Ints) -> Ints:
        user = d.user[requests]
        inside = (user >= 0) & (user < len(known))
        return _spread(d, requests, np.where(user < 0, -1, ~(inside & known[np.where(inside, user, 0)])))

    note = "new: no training row is of this user"
    return Question(read, lambda values: Slicing("new user", values, ("known", "new"), note))


def _item_questions(data: Dataset, item: str) -> list[Question]:
    """New items, and popularity: by the training rows that have them; 0 for a value without a symbol of its own."""
    rows = data.rows_of(data.requests_of("train"))
    table = data.encoder.tables[str(table_of(data.fitted.schema.feature(item)))]
    counts = np.bincount(candidate_ids(data, rows, item), minlength=table.size)
    counts[:FIRST] = 0

    def read(d: Dataset, requests: Ints) -> Ints:
        out: Ints = counts[candidate_ids(d, d.rows_of(requests), item)]
        return out

    def cut(values: Ints) -> Slicing:
        note = f"new: no training row has this {item!r}, or too few to have an embedding of its own"
        return Slicing("new item", (values == 0).astype(np.int64), ("known", "new"), note)

    note = f"training rows with this {item!r}"
    return [Question(read, cut), Question(read, lambda values: _edges("popularity", values, DECADES, note))]


def _feature(data: Dataset, name: str) -> Question:
    feature = data.fitted.schema.feature(name)
    accepted = [f.name for f in data.fitted.schema.features if f.level != "event" and not isinstance(f, ListFeature)]
    if name not in accepted or (feature.level == "request" and feature.use != "input"):
        raise UserError(f"slice {name!r}: has several values per row, or none in the data; {nearest(name, accepted)}")
    if isinstance(feature, Numeric):
        return Question(lambda d, requests: _numbers(d, requests, feature), lambda x: _fifths(feature, x))

    def read(d: Dataset, requests: Ints) -> Ints:
        if feature.level == "candidate":
            return candidate_ids(d, d.rows_of(requests), name)
        return _spread(d, requests, d.request.ids[requests, _place(d.fitted.request, name)])

    return Question(read, lambda symbols: _top(data, feature, symbols))


def _top(data: Dataset, feature: Feature, symbols: Ints) -> Slicing:
    """A slice for each of the most frequent values, in order of the cuts for a bucketed feature; the rest is one."""
    table = data.encoder.tables[str(table_of(feature))]
    counts = np.bincount(symbols, minlength=table.size)
    if isinstance(feature, Bucketed):
        shown = np.flatnonzero(counts)
    else:
        shown = np.argsort(-counts, kind="stable")[: min(TOP, np.count_nonzero(counts))]
    of = np.full(len(counts), len(shown))
    of[shown] = np.arange(len(shown))
    names = tuple(table.name(int(symbol)) for symbol in shown)
    rest = int(np.count_nonzero(counts)) - len(shown)
    note = f"values of {feature.name!r}" + (f"; the {TOP} most frequent, and {rest:,} others" if rest else "")
    return Slicing(feature.name, of[symbols], (*names, "others") if rest else names, note)


def _numbers(data: Dataset, requests: Ints, feature: Numeric) -> NDArray[np.float32]:
    """[n] a numeric feature as encoded, NaN where it is missing."""
    if feature.level == "request":
        columns, values = data.fitted.request, data.request.numbers[requests]
    else:
        inside = feature.use == "input"
        columns = data.fitted.candidate if inside else data.fitted.train_only
        values = (data.candidate if inside else data.train_only).numbers[data.rows_of(requests)]
    x = np.array(values[:, columns.numbers.index(feature.name)])
    if f"{feature.name}?" in columns.numbers:
        x[values[:, columns.numbers.index(f"{feature.name}?")] == 1] = np.nan
    if feature.level == "request":
        x = data.spread(requests, x)
    return x


def _fifths(feature: Numeric, x: NDArray[np.float32]) -> Slicing:
    there = ~np.isnan(x)
    cuts = np.unique(np.quantile(x[there], [0.2, 0.4, 0.6, 0.8])) if there.any() else np.zeros(0)
    of = np.where(there, np.searchsorted(cuts, x, side="right"), len(cuts) + 1)
    names = tuple(f"part {i + 1} of {len(cuts) + 1}" for i in range(len(cuts) + 1))
    return Slicing(feature.name, of, (*names, "missing"), f"{feature.name!r} in parts of about equal size, rising")


def _edges(by: str, values: Ints, edges: tuple[int, ...], note: str) -> Slicing:
    names = [str(low) if high - low == 1 else f"{low:,}-{high - 1:,}" for low, high in itertools.pairwise(edges)]
    of = np.searchsorted(edges, values, side="right") - 1
    return Slicing(by, of, (*names, f"{edges[-1]:,} or more"), note)


# ------------------------------------------------------------------------------------------------ columns of a data set


def _spread(data: Dataset, requests: Ints, of_requests: NDArray[Any]) -> Ints:
    """[n] a request's value at each of its rows."""
    return data.spread(requests, of_requests).astype(np.int64)


def item_of(data: Dataset) -> str | None:
    """The feature that says which item a candidate is."""
    schema = data.fitted.schema
    first = [schema.field(h, h.fields[0]) for h in schema.histories]
    named: list[Feature] = [*first, *(f for f in schema.at("candidate") if isinstance(f, Categorical))]
    there = {name for name, _ in data.fitted.candidate.ids}
    return next((f.name for f in named if f.level == "candidate" and f.name in there), None)


def candidate_ids(data: Dataset, rows: Ints, name: str) -> Ints:
    """[n] the symbols of a feature with one id, an input or train-only."""
    inside = name in {n for n, _ in data.fitted.candidate.ids}
    columns, block = (data.fitted.candidate, data.candidate) if inside else (data.fitted.train_only, data.train_only)
    return np.asarray(block.ids[rows, _place(columns, name)], dtype=np.int64)


def _place(columns: Columns, name: str) -> int:
    return [n for n, _ in columns.ids].index(name)
