"""Where a model is good and where it is not: the rows of a split by the value of something.

Always: the length of each history, new users, new items, the popularity of the item, the hour. On demand: any feature of
the request or the candidate with one id or number per row, by the names of its values.

*New* means not in the training rows. The item is the first field of the first history, or else the first categorical
feature of the candidate. n rows · V slices
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from finerank.data.dataset import Dataset
from finerank.errors import UserError, nearest
from finerank.evaluation.document import Slice, SliceTable
from finerank.evaluation.measure import HeadRows
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
    """A question: which slice each row is in, int64 [n], -1 for none; and the slices' names [V]."""

    by: str
    of: Ints
    names: tuple[str, ...]
    note: str

    def of_rows(self, inside: NDArray[np.bool_]) -> Slicing:
        """The same question for some of the rows."""
        return replace(self, of=self.of[inside])


def slicings(data: Dataset, requests: Ints, columns: Sequence[str] = ()) -> list[Slicing]:
    """The questions of the module's docstring for the rows of these requests; columns: names of features to add.

    Raises UserError for a name that is no feature, or one with several values per row.
    """
    lengths = data.first[requests + 1] - data.first[requests]
    rows = data.rows_of(requests)

    def spread(of_requests: Ints) -> Ints:
        return np.repeat(of_requests, lengths)

    out = []
    for name, slices in data.slices.items():
        length = (slices.end[requests] - slices.start[requests]).astype(np.int64)
        at_most = data.fitted.schema.history(name).max_length
        note = f"events of the history that a row sees, at most {at_most}"
        out.append(_edges(f"history {name}", spread(length), LENGTHS, note))
    if (data.user >= 0).any():
        users = data.user[data.requests_of("train")]
        known = np.zeros(int(data.user.max()) + 1, dtype=np.bool_)
        known[users[users >= 0]] = True
        user = data.user[requests]
        of = np.where(user < 0, -1, np.where(known[user], 0, 1))
        out.append(Slicing("new user", spread(of), ("known", "new"), "new: no training row is of this user"))
    item = _item(data)
    if item is not None:
        count = _training_count(data, item, _candidate_ids(data, rows, item))
        note = f"new: no training row has this {item!r}"
        out.append(Slicing("new item", (count == 0).astype(np.int64), ("known", "new"), note))
        out.append(_edges("popularity", count, DECADES, f"training rows with this {item!r}"))
    if len(data.time) and data.time.max() > YEAR:  # else times are rows' numbers, or count from the log's start
        hours = spread(np.asarray(data.time[requests] // HOUR % 24, dtype=np.int64))
        out.append(
            Slicing("hour", hours, tuple(f"{h:02d}" for h in range(24)), "hour of the request's time, as logged")
        )
    return out + [_by_feature(data, rows, requests, spread, name) for name in columns]


def slice_table(rows: HeadRows, slicing: Slicing) -> SliceTable:
    """The metrics of each slice, and of all rows with every slice weighing the same. slicing: of these rows."""
    sizes = np.bincount(slicing.of[slicing.of >= 0], rows.each[slicing.of >= 0], len(slicing.names))
    order = np.argsort(slicing.of, kind="stable")
    ends = np.searchsorted(slicing.of[order], np.arange(len(slicing.names) + 1))
    found = [
        _slice(name, rows.take(np.sort(order[ends[v] : ends[v + 1]])))
        for v, name in enumerate(slicing.names)
        if ends[v + 1] > ends[v]
    ]
    inside = np.flatnonzero(slicing.of >= 0)
    equal = np.zeros(len(rows.labels))
    equal[inside] = rows.each[inside] / sizes[slicing.of[inside]]
    even = rows.take(inside, equal * (sizes.sum() / max(1, np.count_nonzero(sizes))))
    return SliceTable(by=slicing.by, slices=tuple(found), even=_summary(even), note=slicing.note)


def _slice(name: str, rows: HeadRows) -> Slice:
    binary = rows.link == "sigmoid"
    area = auc_influence(rows.runs, rows.clusters, rows.count).estimate(0.0, 1.0) if binary else Estimate(value=NAN)
    summary = {"gauc": NAN, "logloss": NAN, "calibration": NAN, "rmse": NAN} | _summary(rows)
    del summary["auc"]
    return Slice(
        name=name,
        rows=len(rows.labels),
        users=rows.count,
        positives=int((rows.labels == 1).sum()) if binary else 0,
        rate=float(rows.each @ rows.labels / rows.each.sum()),
        auc=area,
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


# ------------------------------------------------------------------------------------------------ by feature


def _by_feature(data: Dataset, rows: Ints, requests: Ints, spread: Callable[[Ints], Ints], name: str) -> Slicing:
    feature = data.fitted.schema.feature(name)
    accepted = [f.name for f in data.fitted.schema.features if f.level != "event" and not isinstance(f, ListFeature)]
    if name not in accepted or (feature.level == "request" and feature.use != "input"):
        raise UserError(f"slice {name!r}: has several values per row, or none in the data; {nearest(name, accepted)}")
    if isinstance(feature, Numeric):
        return _fifths(feature, _numbers(data, rows, requests, spread, feature))
    if feature.level == "request":
        symbols = spread(np.asarray(data.request.ids[requests, _place(data.fitted.request, name)], dtype=np.int64))
    else:
        symbols = _candidate_ids(data, rows, name)
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
    note = f"values of {name!r}" + (f"; the {TOP} most frequent, and {rest:,} others" if rest else "")
    return Slicing(name, of[symbols], (*names, "others") if rest else names, note)


def _numbers(
    data: Dataset, rows: Ints, requests: Ints, spread: Callable[[Ints], Ints], feature: Numeric
) -> NDArray[np.float32]:
    """[n] a numeric feature as encoded, NaN where it is missing."""
    if feature.level == "request":
        columns, values = data.fitted.request, data.request.numbers[requests]
        places = spread(np.arange(len(requests)))
    else:
        inside = feature.use == "input"
        columns = data.fitted.candidate if inside else data.fitted.train_only
        values, places = (data.candidate if inside else data.train_only).numbers[rows], np.arange(len(rows))
    at = columns.numbers.index(feature.name)
    x = np.array(values[:, at])
    if f"{feature.name}?" in columns.numbers:
        x[values[:, columns.numbers.index(f"{feature.name}?")] == 1] = np.nan
    out: NDArray[np.float32] = x[places]
    return out


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


# ------------------------------------------------------------------------------------------------ the item


def _item(data: Dataset) -> str | None:
    """The feature that says which item a candidate is."""
    schema = data.fitted.schema
    first = [schema.field(h, h.fields[0]) for h in schema.histories]
    named: list[Feature] = [*first, *(f for f in schema.at("candidate") if isinstance(f, Categorical))]
    there = {name for name, _ in data.fitted.candidate.ids}
    return next((f.name for f in named if f.level == "candidate" and f.name in there), None)


def _training_count(data: Dataset, item: str, symbols: Ints) -> Ints:
    """[n] training rows with the item of each row; 0 for a value that has no symbol of its own."""
    rows = data.rows_of(data.requests_of("train"))
    counts = np.bincount(_candidate_ids(data, rows, item), minlength=int(symbols.max(initial=0)) + 1)
    counts[:FIRST] = 0
    out: Ints = counts[symbols]
    return out


def _candidate_ids(data: Dataset, rows: Ints, name: str) -> Ints:
    inside = name in {n for n, _ in data.fitted.candidate.ids}
    columns, block = (data.fitted.candidate, data.candidate) if inside else (data.fitted.train_only, data.train_only)
    return np.asarray(block.ids[rows, _place(columns, name)], dtype=np.int64)


def _place(columns: Columns, name: str) -> int:
    return [n for n, _ in columns.ids].index(name)
