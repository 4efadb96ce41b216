"""Statistics of fields against the raw log, counted row by row in Python; percentiles against numpy's."""

from __future__ import annotations

import datetime
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from finerank.data import statistics
from finerank.data.dataset import Dataset
from finerank.data.percentiles import Percentiles
from finerank.data.prepare import prepare
from finerank.data.split import NAMES, Split
from finerank.data.statistics import FieldStatistics, field_statistics
from finerank.schema import Categorical, Growing, Hashed, History, Numeric, Ranked, Schema, Vocabulary
from finerank.typed import build, plain

DAY = 86_400


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, pl.DataFrame, pl.DataFrame]:
    """Several days, rare values below the vocabulary's threshold, missing values of every sort."""
    samples, events = (f.with_columns(time=pl.col("time") * 9) for f in tiny.frames(90, seed=1))
    n = np.arange(samples.height)
    samples = samples.with_columns(
        rare=pl.Series([None if i % 7 == 0 else f"v{int(i**0.8)}" for i in n.tolist()]),
        note=pl.Series([["t1#1", "t2#3", "x"][: i % 4] for i in n.tolist()]),
        late=pl.Series([None if i > len(n) - 20 and i % 2 else i / 3 for i in n.tolist()]),
        holes=pl.Series([None if i % 5 == 0 else float(i * i) for i in n.tolist()]),
    )
    base = tiny.schema(tasks=1)
    features = (
        *base.features,
        Categorical(name="rare", level="candidate", encoding=Vocabulary(min_count=3)),
        Categorical(name="grown", level="candidate", column="rare", encoding=Growing(capacity=50)),
        Categorical(name="hashed", level="candidate", column="rare", encoding=Hashed(buckets=11)),
        Ranked(name="note", level="candidate", rank="segments", segments=(1, 3)),
        Numeric(name="late", level="candidate", transform="none"),
        *(
            Numeric(name=f"holes_{t}", level="candidate", column="holes", transform=t)  # type: ignore[arg-type]
            for t in ("none", "log1p", "standard", "minmax", "powers")
        ),
    )
    clicks = replace(base.histories[0], fields=(*base.histories[0].fields, "amount"))
    schema = Schema(features=features, histories=(clicks,), tasks=base.tasks)
    folder = tmp_path_factory.mktemp("world") / "data"
    data = prepare(folder, schema, samples.lazy(), events.lazy(), tiny.KEYS, Split(validation=0.2, test=0.2))
    return data, samples, events


def by_name(found: tuple[FieldStatistics, ...]) -> dict[tuple[str, str], FieldStatistics]:
    return {(f.block, f.name): f for f in found}


def rows_of(world: Any) -> list[dict[str, Any]]:
    """The raw rows, each with its split, its request and the events in its history (the rule written out)."""
    data, samples, events = world
    split = {code: name for name, code in NAMES.items()}
    rows = samples.to_dicts()
    of_row = np.repeat(np.arange(data.requests), np.diff(data.first))
    log = events.to_dicts()
    for row, r in zip(rows, of_row.tolist(), strict=True):
        row["split"] = split[int(data.split[r])]
        row["past"] = [e for e in log if e["user"] == row["user"] and e["time"] < row["time"]][-6:]
    return rows


def expected_ids(data: Dataset, table: str, values: list[tuple[dict[str, Any], list[Any]]]) -> dict[str, Any]:
    """values: of each row the texts that its field holds (None: missing), however the field came by them."""
    symbols = data.encoder.tables[table]
    trained = data.fitted.tables[table].counts
    train = Counter(v for row, held in values if row["split"] == "train" for v in held if v is not None)
    seen: Counter[int] = Counter()
    for text, n in train.items():
        if symbols.lookup(text) >= 3:
            seen[symbols.lookup(text)] += n

    def share(held: list[list[Any]]) -> tuple[int, float | None, float | None]:
        flat = [v for h in held for v in h if v is not None]
        new = [v for v in flat if (s := symbols.lookup(v)) < 3 or s >= len(trained) or trained[s] == 0]
        missing = [h for h in held if not h or h == [None]]
        return len(held), len(missing) / len(held) if held else None, len(new) / len(flat) if flat else None

    dates = {datetime.datetime.fromtimestamp(row["time"], datetime.UTC).date().isoformat() for row, _ in values}
    return {
        "values": sum(train.values()),
        "distinct": len(seen),
        "singletons": sum(n == 1 for n in seen.values()),
        "coverage": {
            str(k): pytest.approx(sum(n for _, n in seen.most_common(k)) / sum(train.values())) for k in statistics.TOPS
        },
        "splits": {name: share([h for row, h in values if row["split"] == name]) for name in NAMES},
        "days": {d: share([h for row, h in values if day_of(row) == d]) for d in sorted(dates)},
    }


def day_of(row: dict[str, Any]) -> str:
    return datetime.datetime.fromtimestamp(row["time"], datetime.UTC).date().isoformat()


def check_ids(found: FieldStatistics, wanted: dict[str, Any], days: bool = True) -> None:
    ids = found.ids
    assert ids is not None
    assert found.numbers is None
    got = {k: getattr(ids, k) for k in ("values", "distinct", "singletons", "coverage")}
    got["splits"] = {name: (s.rows, s.missing, s.unseen) for name, s in found.splits.items()}
    got["days"] = {name: (s.rows, s.missing, s.unseen) for name, s in found.days.items()}
    assert got == {**wanted, "days": wanted["days"] if days else {}}, found.name


@pytest.mark.parametrize("rows", [7, 1 << 18])
def test_ids_are_counted_as_row_by_row(world: Any, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "ROWS", rows)
    data = world[0]
    found, raw = by_name(field_statistics(data)), rows_of(world)
    assert len(found[("candidate", "rare")].days) > 3
    for name, table, column in (
        ("rare", "rare", "rare"),
        ("grown", "grown", "rare"),
        ("hashed", "hashed", "rare"),
        ("category", "category", "category"),
        ("item", "item", "item"),
    ):
        values = [(row, [None if row[column] is None else str(row[column])]) for row in raw]
        check_ids(found[("candidate", name)], expected_ids(data, table, values))
    check_ids(found[("request", "user")], expected_ids(data, "user", [(row, [row["user"]]) for row in raw]))
    positions = expected_ids(data, "position", [(row, [str(row["position"])]) for row in raw])
    check_ids(found[("train_only", "position")], positions)
    check_ids(found[("candidate", "tags")], expected_ids(data, "tags", [(row, row["tags"]) for row in raw]))
    for top in (1, 3):
        tags = [(row, [t[:2] for t in row["note"] if t[2:] in [f"#{k}" for k in range(1, top + 1)]]) for row in raw]
        check_ids(found[("candidate", f"note.top{top}")], expected_ids(data, "note", tags))
    assert found[("candidate", "note.top3")].feature == "note"
    splits = found[("candidate", "grown")].splits
    assert splits["train"].unseen == 0
    assert (splits["test"].unseen or 0) > 0


@pytest.mark.parametrize("rows", [7, 1 << 18])
def test_a_history_counts_an_event_for_each_row_that_sees_it(
    world: Any, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "ROWS", rows)
    data = world[0]
    found = by_name(field_statistics(data))
    pairs = [(row, event) for row in rows_of(world) for event in row["past"]]
    assert len(pairs) > 100
    for name in ("item", "category"):
        values = [(row, [str(event[name])]) for row, event in pairs]
        check_ids(found[("clicks", name)], expected_ids(data, name, values), days=False)
    tags = [(row, event["tags"]) for row, event in pairs]
    check_ids(found[("clicks", "tags")], expected_ids(data, "tags", tags), days=False)
    amounts = [event["price"] for row, event in pairs if row["split"] == "train"]
    check_numbers(found[("clicks", "amount")], amounts)


def check_numbers(found: FieldStatistics, values: list[float]) -> None:
    numbers = found.numbers
    assert numbers is not None
    close = {"rel": 1e-5, "abs": 1e-5 * max(map(abs, values))}
    assert numbers.least == pytest.approx(min(values), **close)
    assert numbers.greatest == pytest.approx(max(values), **close)
    assert numbers.mean == pytest.approx(np.mean(values), **close)
    wanted = np.percentile(values, statistics.PERCENT, method="inverted_cdf").tolist()
    assert numbers.percentiles == {
        str(p): pytest.approx(x, **close) for p, x in zip(statistics.PERCENT, wanted, strict=True)
    }


@pytest.mark.parametrize("rows", [7, 1 << 18])
def test_numbers_are_measured_in_their_own_units(world: Any, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "ROWS", rows)
    found, raw = by_name(field_statistics(world[0])), rows_of(world)
    train = [row["holes"] for row in raw if row["split"] == "train" and row["holes"] is not None]
    for transform in ("none", "log1p", "standard", "minmax", "powers"):
        field = found[("candidate", f"holes_{transform}")]
        check_numbers(field, train)
        for name, share in field.splits.items():
            these = [row["holes"] for row in raw if row["split"] == name]
            assert (share.rows, share.missing, share.unseen) == (len(these), these.count(None) / len(these), None)
        day, share = next(iter(field.days.items()))
        these = [row["holes"] for row in raw if day_of(row) == day]
        assert (share.rows, share.missing) == (len(these), these.count(None) / len(these))
    ages = [row["age"] for row in raw if row["split"] == "train" and row["age"] is not None]
    check_numbers(found[("request", "age")], ages)  # of requests, for each of their rows
    late = found[("candidate", "late")].splits  # missing in the test split alone, where a 0 cannot be told from it
    assert (late["train"].missing, late["validation"].missing, late["test"].missing) == (0.0, None, None)


def test_the_statistics_are_plain_and_in_the_order_of_the_schema(world: Any) -> None:
    found = field_statistics(world[0])
    assert [f.name for f in found if f.block == "clicks"] == ["item", "category", "tags", "price", "amount"]
    assert [f.block for f in found] == sorted(
        (f.block for f in found), key=["request", "candidate", "train_only", "clicks"].index
    )
    for field in found:
        assert build(FieldStatistics, plain(field)) == field


def test_a_field_without_any_value(tmp_path: Path) -> None:
    schema = Schema(
        features=(
            Categorical(name="none", level="candidate"),
            Numeric(name="void", level="candidate"),
            Categorical(name="item", level="candidate"),
        ),
        histories=(History(name="past", fields=("item",), lists={"item": "i"}),),
    )
    samples = pl.LazyFrame(
        {"none": [None, None], "void": [None, None], "item": ["a", "b"], "i": [None, None], "label": [0, 1]},
        schema_overrides={"void": pl.Float64},
    )
    data = prepare(tmp_path / "d", schema, samples, split=Split(validation=0, test=0))
    found = by_name(field_statistics(data))
    none, void = found[("candidate", "none")], found[("candidate", "void")]
    assert none.ids is not None
    assert (none.ids.values, none.ids.distinct, none.ids.coverage) == (0, 0, {})
    assert none.splits["train"] == statistics.Share(rows=2, missing=1.0)
    assert (void.numbers, void.splits["train"].missing) == (None, 1.0)
    assert none.splits["test"] == statistics.Share(rows=0)
    assert found[("past", "item")].splits["train"] == statistics.Share(rows=0)
    assert none.days == {}  # all of one day


@settings(derandomize=True, max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.floats(width=32, allow_nan=False), st.integers(0, 3)), max_size=40),
    st.integers(0, 40),
)
def test_percentiles_are_exact(values: list[tuple[float, int]], cut: int) -> None:
    x, counts = np.array([v for v, _ in values], np.float32), np.array([n for _, n in values], np.int64)
    percents = (1, 3, 25, 50, 99, 100)
    found = Percentiles(percents)
    pieces = [slice(0, cut), slice(cut, None)]
    for piece in pieces:
        found.add(x[piece], counts[piece])
    for piece in pieces:
        found.add_again(x[piece], counts[piece])
    assert found.total == counts.sum()
    repeated = np.repeat(x, counts)
    wanted = [np.sort(repeated)[-(-p * len(repeated) // 100) - 1] for p in percents] if len(repeated) else []
    assert found.values().tolist() == [float(w) for w in wanted]
