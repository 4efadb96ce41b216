"""What a run puts on top of its lists: coverage, diversity, novelty, surprise, and what the tops earned.

The item of a candidate is that of `evaluation.slices` (the first field of the first history, or else the candidate's first
categorical feature); what describes it are the other fields of that history, or else the candidate's other ids. Known
users and items are those of the training rows. n rows of a head · m rows of tops · L lists · F attributes
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from finerank.data.dataset import Dataset
from finerank.data.events import flatten
from finerank.errors import UserError, nearest
from finerank.evaluation.measure import HeadRows, dense
from finerank.evaluation.slices import candidate_ids, item_of
from finerank.metrics import beyond as metrics
from finerank.metrics.estimate import COVERS, FEW, Estimate, estimate_of
from finerank.metrics.influence import mean_influence_of, ratio_influence, through
from finerank.metrics.runs import distinct
from finerank.models.composition import Head
from finerank.schema import FIRST, Task, table_of

Ints = NDArray[np.int64]

AT_ONCE = 1 << 12
"""Rows whose pasts are compared at a time: the pasts of a whole split may be larger than memory."""

TITLES: dict[str, str] = {
    "coverage": "coverage: distinct items / items of the catalogue",
    "gini": "Gini of the items' places: 0 alike, 1 all to one",
    "diversity": "diversity: 1 - likeness of two items of a list",
    "personalisation": "personalisation: 1 - items in common with another list / places",
    "novelty": "novelty: -log2(users who had the item / users; requests where users are unknown)",
    "surprise": "surprise: 1 - likeness of a positive item to the past",
    "footrule": "footrule: how far rows move from the order as shown / the farthest",
    "clicks_per_impression": "CTR: clicks / impressions",
    "conversions_per_click": "CVR: conversions / clicks",
    "amount_per_1000_impressions": "GPM: 1000 · amount / impressions",
}
"""Name, without its @k -> what it is, denominators included; in the order of showing."""


def title(name: str) -> str:
    """`coverage@10` -> its title, for people."""
    metric, _, k = name.partition("@")
    return f"{TITLES[metric]}, top {k}" if k else TITLES[metric]


def beyond(
    data: Dataset,
    head: Head,
    rows: HeadRows,
    at: Ints,
    k: int = 10,
    amount: str | None = None,
    unit: str = "users",
    order: str | None = None,
) -> dict[str, Estimate]:
    """Every metric of TITLES that the data have something for, as `name@k` (the footrule, of whole lists, without).

    rows    of the head, by whose logits lists are ordered; at: int64 [n], the row of the data set that each is
    amount  the regression task that says what a row brought in, for GPM
    order   the feature that says where a row stood (a position, input or train-only), for the footrule; of whole lists
    Rows under no list of two, or a schema without an item: nothing. Raises UserError for an amount that is no such task.
    """
    earned = _amount(data, amount)
    stood = None if order is None else _positions(data, at, order)
    item = item_of(data)
    if item is None or not len(at) or len(rows.owner) == len(at):
        return {}
    tops = metrics.top(rows.logits, rows.lists, k)
    lists, at = rows.lists[tops], at[tops]
    ids = candidate_ids(data, at, item)
    trained = data.rows_of(data.requests_of("train"))
    seen = candidate_ids(data, trained, item)
    # what could be recommended: known items, and those that are there
    catalogue = len(distinct(np.concatenate([seen, ids])))

    def over_lists(values: NDArray[np.float64], slope: float = 1.0, most: float = 1.0) -> Estimate:
        values = np.append(values, np.full(len(rows.owner) - len(values), np.nan))
        found = mean_influence_of(values, np.ones(len(values)), rows.owner, rows.count)
        return through(found, found.value, slope).estimate(0.0, most, unit)

    def ratio(above: NDArray[np.float64], below: NDArray[np.float64], each: float = 1.0) -> Estimate:
        found = ratio_influence(above, below, rows.clusters[tops], rows.count)
        return through(found, each * found.value, each).estimate(0.0, unit=unit)

    users = rows.clusters[tops]
    alike = f"of as many {unit}, all lists together"  # others would see other items, more of them more
    seen_by = len(distinct(users))
    gini = metrics.gini_influence(ids, catalogue, users, rows.count).estimate(0.0, 1.0, unit)
    few = f" (fewer than {FEW}: a rough guide)" if seen_by < FEW else ""
    out = {
        "coverage": estimate_of(
            metrics.coverage(ids, catalogue),
            metrics.coverage_se(ids, users, catalogue),
            seen_by - 1,
            f"{alike}; items that few have, over {seen_by:,} {unit}{few}; {COVERS}"
            if seen_by > 1
            else f"no interval: too few {unit}",
            0.0,
            1.0,
        ),
        "gini": replace(gini, how=f"{alike}; {gini.how}"),
        # a pair has two lists, and each moves it
        "personalisation": over_lists(metrics.personalisation(lists, ids, k), slope=2.0),
        "novelty": over_lists(metrics.novelty(lists, *_users_of(data, head, trained, seen, ids)), most=math.inf),
    }
    names = _attributes(data, item)
    if names:
        described = _known(np.column_stack([candidate_ids(data, at, name) for name in names]))
        out["diversity"] = over_lists(metrics.attribute_diversity(lists, described))
        if data.slices and head.link == "sigmoid":
            relevant = rows.labels[tops] == 1
            out["surprise"] = over_lists(
                metrics.surprise(lists, relevant, _likeness(data, at, relevant, described, names))
            )
    if stood is not None:
        out["footrule"] = over_lists(metrics.footrule(rows.lists, stood, -rows.logits))
    # the rows of a task within another are its positives, a thousand of which are no thousand impressions
    impressions = head.space == "entire" or all(
        t.within is None for t in data.fitted.schema.tasks if t.name == head.task
    )
    shown = np.ones(len(at))
    clicked, bought = _chain(data, head)
    if clicked is not None:
        clicks = _labels(data, at, clicked)
        if impressions:
            out["clicks_per_impression"] = ratio(clicks, shown)
        if bought is not None:
            out["conversions_per_click"] = ratio(clicks * _labels(data, at, bought), clicks)
    if earned is not None and impressions:
        out["amount_per_1000_impressions"] = ratio(_labels(data, at, earned), shown, 1000.0)
    there = (name for name in TITLES if name in out and out[name].value == out[name].value)  # not NaN
    return {name if name == "footrule" else f"{name}@{k}": out[name] for name in there}


def _users_of(data: Dataset, head: Head, trained: Ints, seen: Ints, ids: Ints) -> tuple[NDArray[np.float64], int]:
    """([m]: training users with a positive of each row's item, how many training users there are); requests of nobody
    known are a user each."""
    requests = data.requests_of("train")
    known = data.user[requests]
    user = dense(np.where(known >= 0, known, -1 - np.arange(len(requests))))
    of_row = data.spread(requests, user)
    positive = _labels(data, trained, [t.name for t in data.fitted.schema.tasks].index(head.task)) > 0
    table = data.encoder.tables[str(table_of(data.fitted.schema.feature(str(item_of(data)))))]
    pairs = distinct(of_row[positive] * table.size + seen[positive])  # a user counts once for an item
    had = np.bincount(pairs % table.size, minlength=table.size)
    had[:FIRST] = 0
    return had[ids].astype(np.float64), int(user.max()) + 1 if len(user) else 0


def _attributes(data: Dataset, item: str) -> list[str]:
    """What describes an item, beside itself: ids that the candidate has."""
    of_candidate = [name for name, _ in data.fitted.candidate.ids if name != item]
    for columns in data.fitted.histories.values():
        past = {name for name, _ in columns.ids}
        if shared := [name for name in of_candidate if name in past]:
            return shared
    return of_candidate


def _known(ids: Ints) -> Ints:
    """-1 for what has no value of its own."""
    out: Ints = np.where(ids >= FIRST, ids, -1)
    return out


def _likeness(
    data: Dataset, at: Ints, relevant: NDArray[np.bool_], described: Ints, names: list[str]
) -> NDArray[np.float64]:
    """[m]: for the relevant rows, the share of attributes that the most similar event of any past has too; 0 for the others."""
    out = np.zeros(len(at))
    every = np.flatnonzero(relevant)
    for name, slices in data.slices.items():
        past = [n for n, _ in data.fitted.histories[name].ids]
        if not all(n in past for n in names):
            continue
        for begin in range(0, len(every), AT_ONCE):
            wanted = every[begin : begin + AT_ONCE]
            requests = np.searchsorted(data.first, at[wanted], side="right") - 1
            index, segment, _ = flatten(slices.start[requests], slices.end[requests])
            events = _known(
                np.asarray(data.events[name].block.ids[index], dtype=np.int64)[:, [past.index(n) for n in names]]
            )
            mine = described[wanted][segment]
            alike = ((events == mine) & (mine >= 0)).mean(axis=1)
            best = np.zeros(len(wanted))
            np.maximum.at(best, segment, alike)
            out[wanted] = np.maximum(out[wanted], best)
    return out


def _chain(data: Dataset, head: Head) -> tuple[int | None, int | None]:
    """(the task of clicks, the task of conversions within them): the root of the head's chain, and a binary task in it."""
    tasks = {t.name: t for t in data.fitted.schema.tasks}
    names = list(tasks)
    root = tasks[head.task]
    while root.within is not None:
        root = tasks[root.within]
    if root.kind != "binary":
        return None, None
    within = [t for t in tasks.values() if t.within == root.name and t.kind == "binary"]
    return names.index(root.name), names.index(within[0].name) if within else None


def _amount(data: Dataset, name: str | None) -> int | None:
    if name is None:
        return None
    tasks: tuple[Task, ...] = data.fitted.schema.tasks
    numbers = [t.name for t in tasks if t.kind == "regression"]
    if name not in numbers:
        raise UserError(
            f"amount {name!r} is no regression task; "
            + (nearest(name, numbers) if numbers else "declare a [[task]] of what a row brought in")
        )
    return [t.name for t in tasks].index(name)


def _positions(data: Dataset, at: Ints, name: str) -> NDArray[np.float64]:
    """[n]: a feature with one id, as the numbers that its values are."""
    known = [n for n, _ in (*data.fitted.candidate.ids, *data.fitted.train_only.ids)]
    if name not in known:
        raise UserError(f"order {name!r} is no feature of a candidate with one id; {nearest(name, known)}")
    table = data.encoder.tables[str(table_of(data.fitted.schema.feature(name)))]
    symbols, code = np.unique(candidate_ids(data, at, name), return_inverse=True)
    if table.kind == "cuts":
        return symbols[code].astype(np.float64)  # buckets rise
    try:
        values = [
            float(table.name(int(s))) if s >= FIRST else float("inf") for s in symbols
        ]  # unknown: below all others
    except ValueError as error:
        raise UserError(
            f"order {name!r}: its values are no numbers ({error}); accepted: places such as 1, 2, 3"
        ) from error
    return np.asarray(values)[code]


def _labels(data: Dataset, at: Ints, task: int) -> NDArray[np.float64]:
    """[m]: a task's labels; 0 outside its space."""
    labels = np.asarray(data.labels[at, task], dtype=np.float64)
    out: NDArray[np.float64] = np.where((data.weights[at, task] != 0) & ~np.isnan(labels), labels, 0.0)
    return out
