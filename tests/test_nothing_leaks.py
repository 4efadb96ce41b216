"""Nothing that happens at or after a row's moment reaches the row: neither its history nor its sampled negatives.

Property tests at the level of events, then of whole data sets: what the fit and the training loop may see, and that the
rows up to a moment are the same whether or not the log goes on.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from finerank.data.builder import BatchBuilder
from finerank.data.dataset import Dataset
from finerank.data.events import EventLog, EventTable
from finerank.data.order import Budget, Step
from finerank.data.prepare import prepare
from finerank.data.split import Split
from finerank.models import registry
from finerank.models.composition import Needs
from finerank.runtime.blocks import Block
from finerank.runtime.history import ProfileStore
from finerank.schema import FIRST, Columns, Encoding, Growing, History, Schema, Vocabulary
from finerank.training.loop import Trainer
from finerank.training.options import TrainingOptions

USERS, MOST = 3, 4
quick = settings(derandomize=True, max_examples=150, deadline=None)

Table = NDArray[np.int64]
# an event: user, time, delay, sequence; a row: user, time, sequence. Small ranges, so that nearly everything ties
events_of = st.lists(
    st.tuples(st.integers(0, USERS - 1), st.integers(0, 6), st.integers(0, 3), st.integers(0, 6)), max_size=25
).map(lambda e: np.array(e, dtype=np.int64).reshape(-1, 4))
row_of = st.tuples(st.integers(-1, USERS), st.integers(-1, 11), st.integers(-1, 7))
both_ties = st.sampled_from(["strict", "file_order"])


def table_of(events: Table, numbers: Table) -> EventTable:
    """A table whose block holds nothing but the number of each event."""
    block: Block[Any] = Block(numbers[:, None], np.zeros((len(numbers), 0), dtype=np.float32))
    user, time, delay, sequence = events.T
    return EventTable.build(None, user, time, time + delay, sequence, block, users=USERS)


def log_of(events: Table, numbers: Table, cut: int) -> EventLog:
    """The same events as a base and a segment."""
    return EventLog(table_of(events[:cut], numbers[:cut]), [table_of(events[cut:], numbers[cut:])])


def known_to(row: tuple[int, int, int], events: Table, ties: str) -> NDArray[np.bool_]:
    """Plainly: which events a row may know."""
    _, time, sequence = row
    known_at = events[:, 1] + events[:, 2]
    if ties == "strict":
        return known_at < time
    return (known_at < time) | ((known_at == time) & (events[:, 3] < sequence))


def seen_by(source: EventTable | EventLog, row: tuple[int, int, int], ties: Any) -> list[int]:
    user, time, sequence = (np.array([v]) for v in row)
    index, _, _ = source.histories(user, time, sequence, ties, MOST)
    return source.gather(index)[0].ids[:, 0].tolist()


def drawn_by(source: EventTable | EventLog, row: tuple[int, int, int], ties: Any, u: float) -> list[int]:
    """The event that a uniform number in [0, 1) draws as a negative; none where the row knows no event."""
    known = source.known_before(np.array([row[1]]), np.array([row[2]]), ties)
    if known[0] == 0:
        return []
    return source.gather(source.at_rank((u * known).astype(np.int64)))[0].ids[:, 0].tolist()


uniform = st.floats(0, 1, exclude_max=True)


@quick
@given(events_of, row_of, both_ties, uniform, st.integers(0, 25))
def test_what_a_row_gets_was_known_before_it(
    events: Table, row: tuple[int, int, int], ties: Any, u: float, cut: int
) -> None:
    numbers = np.arange(len(events))
    allowed = set(np.flatnonzero(known_to(row, events, ties)).tolist())
    for source in (table_of(events, numbers), log_of(events, numbers, cut)):
        seen = seen_by(source, row, ties)
        assert set(seen) <= allowed
        assert len(seen) == min(
            MOST, sum(int(events[n, 0]) == row[0] for n in allowed)
        )  # and nothing known is held back
        assert set(drawn_by(source, row, ties, u)) <= allowed
        assert len(drawn_by(source, row, ties, u)) == min(1, len(allowed))


@quick
@given(events_of, row_of, both_ties, uniform, st.integers(0, 25), st.randoms(use_true_random=False))
def test_deleting_all_later_events_changes_nothing(
    events: Table, row: tuple[int, int, int], ties: Any, u: float, cut: int, random: Any
) -> None:
    numbers = np.arange(len(events))
    known = known_to(row, events, ties)
    full, past = table_of(events, numbers), table_of(events[known], numbers[known])
    log, past_log = log_of(events, numbers, cut), log_of(events[known], numbers[known], int(known[:cut].sum()))
    seen, drawn = seen_by(full, row, ties), drawn_by(full, row, ties, u)
    for source in (past, log, past_log):
        assert seen_by(source, row, ties) == seen
        assert drawn_by(source, row, ties, u) == drawn
    # nor does anything that happens later still: half the future is deleted, the rest moves on and changes hands
    later = np.flatnonzero(~known)
    kept = np.sort(np.array(random.sample(later.tolist(), len(later) // 2), dtype=np.int64))
    other = events.copy()
    other[kept, 1] += 3
    other[kept, 0] = (other[kept, 0] + 1) % USERS
    chosen = np.sort(np.concatenate([np.flatnonzero(known), kept]))
    changed = table_of(other[chosen], numbers[chosen])
    assert seen_by(changed, row, ties) == seen
    assert drawn_by(changed, row, ties, u) == drawn


@quick
@given(events_of, row_of, both_ties)
def test_a_profile_that_already_holds_the_future_does_not_show_it(
    events: Table, row: tuple[int, int, int], ties: Any
) -> None:
    """As when logged requests are replayed through a server whose profiles are of today."""
    known = known_to(row, events, ties)
    nothing: Block[Any] = Block(np.zeros((0, 1), dtype=np.int64), np.zeros((0, 0), dtype=np.float32))
    answers = []
    for chosen in (np.arange(len(events)), np.flatnonzero(known)):
        store = ProfileStore(nothing, max_length=MOST, ties=ties)
        for number in chosen:
            user, time, delay, sequence = (int(v) for v in events[number])
            block: Block[Any] = Block(np.array([[number]]), np.zeros((1, 0), dtype=np.float32))
            store.append(str(user), np.array([time + delay]), np.array([time]), np.array([sequence]), block)
        seen, times, known_at = store.history(str(row[0]), row[1], row[2])
        assert (times <= known_at).all()
        assert (known_at < row[1]).all() if ties == "strict" else (known_at <= row[1]).all()
        answers.append(seen.ids[:, 0].tolist())
    assert answers[0] == answers[1] == seen_by(table_of(events, np.arange(len(events))), row, ties)


# ------------------------------------------------------------------------------------------------ whole data sets


def split_at(samples: pl.DataFrame, first: int, second: int) -> pl.DataFrame:
    """The tiny world's samples with a column that says: train before `first`, validation before `second`, then test."""
    time = pl.col("time")
    names = pl.when(time < first).then(pl.lit("train")).when(time < second).then(pl.lit("validation"))
    return samples.with_columns(names.otherwise(pl.lit("test")).alias("split"))


BY_COLUMN = Split(by="column")
HISTORIES = (
    History(name="strict", fields=("item", "category", "tags", "price"), max_length=5),
    History(name="order", fields=("item", "tags"), where={"kind": "click"}, max_length=4, ties="file_order"),
    History(name="late", fields=("item",), delay=1_500, max_length=5),
)
NEGATIVES = Needs(negatives=frozenset({"strict", "order", "late"}))


def declared(encoding: Encoding = Vocabulary()) -> Schema:
    return replace(tiny.schema(encoding=encoding), histories=HISTORIES)


def shuffled_rows(frame: pl.DataFrame, seed: int) -> pl.LazyFrame:
    return frame.sample(fraction=1, shuffle=True, seed=seed).lazy()


@pytest.mark.parametrize("known_at", [None, "known"])
def test_every_history_is_older_than_its_row_through_prepare(known_at: str | None, tmp_path: Path) -> None:
    samples, events = tiny.frames(80, seed=3)
    events = events.with_columns(known=pl.col("time") + pl.col("sequence") * 7 % 4 * 1_000)
    keys = replace(tiny.KEYS, known_at=known_at)
    data = prepare(tmp_path / "d", declared(), shuffled_rows(samples, 1), shuffled_rows(events, 2), keys)
    seen = 0
    for name, slices in data.slices.items():
        table, history = data.events[name], data.fitted.schema.history(name)
        for request in range(data.requests):
            own = slice(slices.start[request], slices.end[request])
            drawable = table.by_rank[: slices.known[request]]
            row = (int(data.time[request]), int(data.sequence[request]))
            for index in (np.arange(own.start, own.stop), drawable):
                moments = list(zip(table.known_at[index].tolist(), table.sequence[index].tolist(), strict=True))
                if history.ties == "strict":
                    assert all(known < row[0] for known, _ in moments)
                else:
                    assert all(moment < row for moment in moments)
                assert all(t <= known for t, (known, _) in zip(table.time[index].tolist(), moments, strict=True))
            assert (table.user[own] == data.user[request]).all()
            seen += own.stop - own.start
    assert seen > 200
    # and known_at is what the log says it is
    log = {s: (t, k) for s, t, k in events.select("sequence", "time", "known").iter_rows()}
    for name, delay in (("strict", 0), ("late", 1_500)):
        table = data.events[name]
        expected = [log[s][1] if known_at else log[s][0] + delay for s in table.sequence.tolist()]
        assert table.known_at.tolist() == [1_000_000 * t for t in expected]


def test_training_visits_the_training_requests_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny.dataset(tmp_path / "d", tasks=1)
    visited: list[list[int]] = [[], []]
    step_of = Trainer.train_step

    def watched(self: Trainer, step: Step, coming: Step | None = None) -> float:
        visited[self.epoch] += step.requests.tolist()
        return step_of(self, step, coming)

    monkeypatch.setattr(Trainer, "train_step", watched)
    options = TrainingOptions(epochs=2, patience=9, batch=Budget(rows=16), threads=1, keep_memory=False)
    Trainer(registry.composition("base"), data, options).fit()
    train, others = data.requests_of("train"), [*data.requests_of("validation"), *data.requests_of("test")]
    assert len(others) == 24
    for epoch in visited:
        assert sorted(epoch) == train.tolist()
        assert not set(epoch) & set(others)
    assert int(data.time[train].max()) < int(data.time[others].min())


def fit_of(data: Dataset) -> dict[str, Any]:
    """All that the fit taught."""
    return {
        "symbols": {name: table.names for name, table in data.encoder.tables.items() if table.kind != "growing"},
        "counts": {name: table.counts.tolist() for name, table in data.fitted.tables.items()},
        "numbers": dict(data.encoder.numbers),
        "base_rates": data.fitted.base_rates,
    }


@pytest.mark.parametrize("encoding", [Vocabulary(), Growing(capacity=20)])
def test_nothing_after_training_enters_the_fit(encoding: Encoding, tmp_path: Path) -> None:
    """Every value of validation and test rows, and of events that no training row may know, is replaced: same fit."""
    samples, events = tiny.frames(80, seed=1)
    first, second = 24_000, 32_000
    samples = split_at(samples, first, second)

    def poisoned(frame: pl.DataFrame) -> pl.DataFrame:
        later = pl.col("time") >= first
        out = frame.with_columns(
            pl.when(later).then(pl.lit("poison")).otherwise(pl.col("item")).alias("item"),
            pl.when(later).then(pl.lit(99)).otherwise(pl.col("category")).alias("category"),
            pl.when(later).then(pl.lit(1e6)).otherwise(pl.col("price")).alias("price"),
            pl.when(later).then(pl.lit(["poison"] * 3)).otherwise(pl.col("tags")).alias("tags"),
        )
        if "age" in frame.columns:
            out = out.with_columns(
                pl.when(later).then(pl.lit(-1e6)).otherwise(pl.col("age")).alias("age"),
                pl.when(later).then(pl.lit("Z")).otherwise(pl.col("country")).alias("country"),
                pl.when(later).then(pl.lit(1) - pl.col("click")).otherwise(pl.col("click")).alias("click"),
                pl.when(later).then(pl.lit(0)).otherwise(pl.col("conversion")).alias("conversion"),
            )
        return out

    made = [
        prepare(tmp_path / str(i), declared(encoding), s.lazy(), e.lazy(), tiny.KEYS, BY_COLUMN)
        for i, (s, e) in enumerate(((samples, events), (poisoned(samples), poisoned(events))))
    ]
    assert fit_of(made[0]) == fit_of(made[1])
    assert not np.array_equal(made[0].labels[:, 0], made[1].labels[:, 0])  # the poison was there
    names = [n for table in made[1].encoder.tables.values() if table.kind != "growing" for n in table.names]
    assert not [n for n in names if "poison" in n or n in ("99", "Z")]
    if isinstance(encoding, Growing):  # it has a symbol, as every value has, but no occurrence: it can get no row
        symbol = made[1].encoder.tables["item"].lookup("poison")
        assert symbol >= FIRST
        assert symbol >= len(made[1].fitted.tables["item"].counts)


def test_labels_of_test_rows_change_no_weight(tmp_path: Path) -> None:
    samples, events = tiny.frames(60)
    samples = split_at(samples, 18_000, 24_000)
    flipped = samples.with_columns(
        click=pl.when(pl.col("split") == "test").then(1 - pl.col("click")).otherwise(pl.col("click"))
    )
    options = TrainingOptions(epochs=2, batch=Budget(rows=16), threads=1, keep_memory=False)
    weights, labels = [], []
    for i, frame in enumerate((samples, flipped)):
        data = prepare(tmp_path / str(i), tiny.schema(tasks=1), frame.lazy(), events.lazy(), tiny.KEYS, BY_COLUMN)
        trainer = Trainer(registry.composition("base"), data, options)
        trainer.fit()
        weights.append({name: t.numpy().tobytes() for name, t in trainer.model.state_dict().items()})
        labels.append(data.labels[data.rows_of(data.requests_of("test"))])
    assert weights[0] == weights[1]
    assert not np.array_equal(labels[0], labels[1])


def by_name(data: Dataset, request: int, seed: int, epoch: int) -> dict[str, Any]:
    """All that a batch says of a request, with the names of values in place of their symbols."""
    batch = BatchBuilder(data, NEGATIVES, seed=seed).batch(np.array([request]), epoch)

    def block(got: Any, columns: Columns) -> dict[str, Any]:
        out: dict[str, Any] = {
            name: [data.encoder.tables[table].name(i) for i in got.ids[:, j].tolist()]
            for j, (name, table) in enumerate(columns.ids)
        }
        out["numbers"] = got.numbers.tolist()
        for column in columns.lists:
            lists = got.lists[column.name]
            table = data.encoder.tables[column.table]
            entries = [
                [
                    table.name(i)
                    for i, s in zip(lists.ids[:, 0].tolist(), lists.segments.tolist(), strict=True)
                    if s == own
                ]
                for own in range(len(lists.lengths))
            ]
            out[column.name] = [entries[i] for i in lists.index.tolist()]
        return out

    fitted = data.fitted
    out = {"request": block(batch.request, fitted.request), "candidate": block(batch.candidate, fitted.candidate)}
    for name, history in batch.histories.items():
        columns = fitted.histories[name]
        out[name] = {"ages": history.ages.tolist(), **block(history.events, columns)}
        out[f"{name} negatives"] = block(batch.negatives[name], columns)
    out["labels"] = {"labels": batch.labels.tolist(), "weights": batch.weights.tolist()}
    out["user"] = {"user": pl.read_parquet(data.folder / "users.parquet")["user"][int(data.user[request])]}
    return out


@pytest.mark.parametrize(
    ("seed", "sequence", "encoding"),
    [(0, "sequence", Vocabulary()), (1, None, Vocabulary()), (2, "sequence", Growing(capacity=20))],
)
def test_a_log_that_ends_earlier_gives_the_same_rows_until_then(
    seed: int, sequence: str | None, encoding: Encoding, tmp_path: Path
) -> None:
    """Histories, labels and negatives of all rows up to a moment do not change when everything later is deleted."""
    samples, events = tiny.frames(100, seed)
    samples = split_at(samples, 20_000, 30_000)
    keys = replace(tiny.KEYS, sequence=sequence)
    made = declared(encoding)
    if sequence is None:  # positions in two files cannot be compared
        made = replace(made, histories=tuple(replace(h, ties="strict") for h in made.histories))
    mixed = [frame.sample(fraction=1, shuffle=True, seed=seed) for frame in (samples, events)]
    full = prepare(tmp_path / "full", made, *(frame.lazy() for frame in mixed), keys, BY_COLUMN)
    for last in (34_000, 23_000):
        known = [frame.filter(pl.col("time") <= last).lazy() for frame in mixed]
        past = prepare(tmp_path / str(last), made, *known, keys, BY_COLUMN)
        assert 40 < past.requests < full.requests
        assert past.time.tolist() == full.time[: past.requests].tolist()
        assert past.first.tolist() == full.first[: past.requests + 1].tolist()
        assert fit_of(past) == fit_of(full)
        drawn = 0
        for request in range(past.requests % 3, past.requests, 3):
            one, other = (by_name(data, request, seed=7, epoch=request % 2) for data in (past, full))
            assert one == other, request
            drawn += len(one["strict negatives"]["item"])
        assert drawn > 10
