"""The fields of a data set as a table: how many values, how often, how much of it training never saw; by day as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finerank.data.dataset import Dataset
from finerank.data.statistics import FieldStatistics, field_statistics
from finerank.report import charts
from finerank.report.page import number, percent
from finerank.report.pictures import Picture

TITLES = (
    "field",
    "kind",
    "missing",
    "distinct",
    "seen once",
    "top 10",
    "top 100",
    "new in validation",
    "new in test",
    "least · mean · greatest",
)
MOST_LINES = 6
"""More lines than these no eye follows: the fields with the most new values are drawn."""


@dataclass(frozen=True)
class FieldTable:
    """Titles, a row of texts per field, and pictures of what changes by day."""

    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    pictures: Sequence[Picture]


def field_table(dataset: Dataset) -> FieldTable:
    """The statistics of every field (`data.statistics`)."""
    found = field_statistics(dataset)
    return FieldTable(TITLES, [_row(f) for f in found], _by_day(found))


def _row(f: FieldStatistics) -> list[str]:
    where = f.name if f.block in ("request", "candidate") else f"{f.block}.{f.name}"
    train = f.splits["train"]
    ids = ["", "", "", ""]
    if f.ids is not None:
        ids = [number(f.ids.distinct), number(f.ids.singletons)]
        ids += [percent(f.ids.coverage.get(k)) if f.ids.distinct > int(k) else "" for k in ("10", "100")]
    spread = ""
    if f.numbers is not None:
        spread = " · ".join(f"{x:,.4g}" for x in (f.numbers.least, f.numbers.mean, f.numbers.greatest))
    new = [
        percent(f.splits[s].unseen, 2) if s in f.splits and f.splits[s].unseen is not None else ""
        for s in ("validation", "test")
    ]
    return [where, f.kind, "" if train.missing is None else percent(train.missing), *ids, *new, spread]


def _by_day(found: Sequence[FieldStatistics]) -> list[Picture]:
    """Values that training has no row for, by day: it rises where a log renews itself."""
    daily = [f for f in found if len(f.days) > 1 and any(day.unseen for day in f.days.values())]
    daily.sort(key=lambda f: -(max((day.unseen or 0.0) for day in f.days.values())))
    values = [
        {"x": day, "y": share.unseen, "series": f.name}
        for f in daily[:MOST_LINES]
        for day, share in f.days.items()
        if share.unseen is not None
    ]
    if not values:
        return []
    drawn = charts.by_date(values, "share not in training", "share of values that training has no row for, by day")
    return [Picture(drawn, "Values that training has no row for, by day: what a model that is not renewed misses.")]
