"""Scores of raw rows by a finished run: files that it was not prepared from, ids that it never saw.

    samples ──batches in file order──► encode with the run's own encoder ──► slice the event table ──► model ──► scores

Memory follows the batch and the event log, never the samples. Rows keep their order and number. A score depends on its
own row, its request and its user's past alone, so a request whose rows lie in two batches is scored as two; its rows need
not be adjacent. The past is the event log that is given, whole, or else the one that the run was prepared from.

n rows of a batch · R requests · H heads
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from finerank.data.builder import BatchBuilder
from finerank.data.dataset import Dataset, Slices
from finerank.data.encode import canonical_series, encode_block
from finerank.data.events import EventTable
from finerank.data.prepare import Keys
from finerank.data.source import collect, microseconds
from finerank.errors import UserError, nearest
from finerank.run import Run
from finerank.runtime.blocks import Block
from finerank.runtime.encoder import Encoder
from finerank.runtime.fields import fields_of
from finerank.runtime.scorer import predicted
from finerank.runtime.values import canonical
from finerank.schema import History
from finerank.training.evaluate import predict

ROWS = 1 << 17
"""Rows read and encoded at a time."""


@dataclass(frozen=True)
class Log:
    """The past of users: an event table per history that reads the log, and users' codes in them."""

    tables: dict[str, EventTable]
    users: pl.DataFrame  # user (text), code (int64)

    @staticmethod
    def stored(data: Dataset) -> Log:
        """The events that the run was prepared from."""
        users = pl.read_parquet(data.folder / "users.parquet")
        tables = {h.name: data.events[h.name] for h in data.encoder.schema.histories if not h.lists}
        return Log(tables, _coded(users["user"]))

    @staticmethod
    def read(encoder: Encoder, keys: Keys, events: pl.LazyFrame) -> Log:
        """Another log, encoded as the run's own was; values that it did not know are out of vocabulary."""
        if keys.user is None or keys.time is None:
            raise UserError("events: the run's recipe names no keys.user and keys.time, so it reads no event log")
        histories = [h for h in encoder.schema.histories if not h.lists]
        wanted = {keys.user, keys.time, *(k for k in (keys.sequence, keys.known_at) if k)}
        wanted |= {c for h in histories for f in fields_of(encoder.schema, h.name) for c in f.columns}
        wanted |= {c for h in histories for c in h.where}
        frame = collect(events, sorted(wanted), "events")
        names = canonical_series(frame[keys.user])
        users = _coded(names.drop_nulls().unique().sort())
        code = _codes(names, users)
        return Log({h.name: _table(encoder, h, keys, frame, code, len(users)) for h in histories}, users)


def _table(
    encoder: Encoder, history: History, keys: Keys, frame: pl.DataFrame, code: np.ndarray, users: int
) -> EventTable:
    """The events that belong to a history (`where`), of users known by name."""
    keep = pl.Series(code >= 0)
    for column, value in history.where.items():  # by canonical text, as everywhere: 1, 1.0 and "1" are one value
        keep &= (canonical_series(frame[column]) == canonical(value)).fill_null(False)
    kept = np.flatnonzero(keep.to_numpy())
    sequence = _whole(frame, keys.sequence, "events") if keys.sequence else np.arange(frame.height)
    part = frame[kept]
    time = microseconds(part[str(keys.time)], keys.time_unit, "events")
    known_at = time + round(history.delay * 1_000_000)
    if keys.known_at:
        known_at = microseconds(part[keys.known_at], keys.time_unit, "events")
    columns: dict[str, str] = {}
    for field in fields_of(encoder.schema, history.name):
        columns |= dict(zip((field.feature.name, f"{field.feature.name}·weights"), field.columns, strict=False))
    block = encode_block(encoder, history.name, part.select(**{name: pl.col(c) for name, c in columns.items()}))
    return EventTable.build(None, code[kept], time, known_at, sequence[kept], block, users=users)


@dataclass(frozen=True)
class Scored:
    """A batch of rows, as they were read, with their scores.

    frame   n rows;  logits: float32 [n, H]
    data    the same rows encoded, request after request;  order: int64 [n], which row of the frame each of them is
    """

    frame: pl.DataFrame
    logits: np.ndarray
    data: Dataset
    order: np.ndarray


class FreshScorer:
    """A finished run that scores raw frames. See the module's docstring.

    events  the whole event log as the run's recipe reads it; None: the log that the run was prepared from
    """

    def __init__(self, run: Run, events: pl.LazyFrame | None = None) -> None:
        trainer = run.trainer()
        self.model, self.device, self.row_maps = trainer.model, trainer.device, trainer.row_maps
        self.data, self.keys = run.dataset, run.recipe.data.keys
        self.rows_per_batch = run.recipe.training.evaluate_rows
        self.encoder = run.dataset.encoder
        self.log = Log.stored(run.dataset) if events is None else Log.read(self.encoder, self.keys, events)
        schema = self.encoder.schema
        levels = [f for level in ("request", "candidate") for f in fields_of(schema, level)]
        self.features = {column: f.feature.name for f in levels for column in f.columns}
        self.lists = {c: h.name for h in schema.histories for c in h.lists.values()}
        self.by_position = any(h.ties == "file_order" and not h.lists for h in schema.histories)

    def batches(
        self, samples: pl.LazyFrame, rows: int = ROWS, advance: Callable[[int], None] = lambda rows: None
    ) -> Iterator[Scored]:
        """Batch by batch in the order of the samples.

        Raises UserError for columns that are missing, values of a wrong type, samples without rows.
        """
        names = samples.collect_schema().names()
        keys = [k for k in (self.keys.request, self.keys.user, self.keys.time) if k]
        needed = {k: "the recipe's keys" for k in keys}
        needed |= {c: f"feature {name!r}" for c, name in self.features.items()}
        needed |= {c: f"history {name!r}" for c, name in self.lists.items()}
        if self.by_position and self.keys.sequence:
            needed[self.keys.sequence] = "the recipe's keys"
        for column, by in needed.items():
            if column not in names:
                raise UserError(f"samples: no column {column!r}, which {by} needs; {nearest(column, names)}")
        standing = self._standing(samples)
        done = 0
        try:
            for frame in samples.collect_batches(chunk_size=rows, maintain_order=True):
                if frame.height:
                    yield self.score(frame, done, standing)
                    done += frame.height
                    advance(frame.height)
        except (pl.exceptions.PolarsError, OSError) as error:
            first = str(error).strip().splitlines()
            raise UserError(f"samples: not readable after row {done:,}: {first[0] if first else error}") from error
        if not done:
            raise UserError("samples: no rows; is this the right file?")

    def score(self, frame: pl.DataFrame, first_row: int = 0, standing: pl.DataFrame | None = None) -> Scored:
        """Some rows, in their order. first_row: number of the first among all rows; standing: see `_standing`."""
        number = np.arange(first_row, first_row + frame.height)
        keys = self.keys
        time = microseconds(frame[keys.time], keys.time_unit, "samples") if keys.time else number
        user = _codes(canonical_series(frame[keys.user]), self.log.users) if keys.user else np.full(len(number), -1)
        request = frame[keys.request].rank("dense").fill_null(0).cast(pl.Int64).to_numpy() if keys.request else number
        if keys.request and frame[keys.request].null_count():
            raise UserError(f"samples: {frame[keys.request].null_count()} rows have no {keys.request!r}")
        sequence = number
        if standing is not None and keys.request:
            found = frame.select(keys.request).join(standing, on=keys.request, how="left", maintain_order="left")
            sequence = found["·standing"].to_numpy()
        elif keys.sequence and self.by_position:
            sequence = _whole(frame, keys.sequence, "samples")
        order = np.argsort(request, kind="stable")
        starts = np.flatnonzero(np.diff(request[order], prepend=-1))
        heads, sizes = order[starts], np.diff(starts, append=len(order))
        for name, values in (("times", time), ("users", user)):
            bad = np.flatnonzero(values[order] != np.repeat(values[heads], sizes))
            if len(bad):
                at = frame[keys.request][int(order[bad[0]])] if keys.request else first_row + int(order[bad[0]])
                raise UserError(
                    f"samples: request {at!r} has rows of different {name}; a request is one user, one moment"
                )
        data = self._dataset(frame, order, heads, sizes, user[heads], time[heads], sequence[heads])
        builder = BatchBuilder(data, self.model.needs, self.row_maps)
        requests = np.arange(len(heads))
        found_logits = predict(self.model, builder, requests, self.rows_per_batch, self.device).logits
        logits = np.empty_like(found_logits)
        logits[order] = found_logits
        return Scored(frame, logits, data, order)

    def _dataset(
        self,
        frame: pl.DataFrame,
        order: np.ndarray,
        heads: np.ndarray,
        sizes: np.ndarray,
        user: np.ndarray,
        time: np.ndarray,
        sequence: np.ndarray,
    ) -> Dataset:
        """The rows as a data set in memory, of which a batch builder makes batches."""
        schema = self.encoder.schema
        train_only = {c: None for f in fields_of(schema, "candidate", "train_only") for c in f.columns}
        absent = [pl.lit(None, pl.String).alias(c) for c in train_only if c not in frame.columns]
        candidates = frame[order].with_columns(absent)  # what shaped the training is not asked for
        events, slices = dict(self.log.tables), {}
        for history in schema.histories:
            if history.lists:
                events[history.name], slices[history.name] = _from_lists(self.encoder, history, frame[heads])
            else:
                table = events[history.name]
                start, end = table.slices(user, time, sequence, history.ties, history.max_length)
                slices[history.name] = Slices(start, end, end)
        nothing = np.zeros((len(order), len(schema.tasks)), dtype=np.float32)
        return Dataset(
            folder=self.data.folder,
            manifest=self.data.manifest,
            encoder=self.encoder,
            fitted=self.data.fitted,
            user=user,
            time=time,
            sequence=sequence,
            split=np.full(len(heads), -1),
            first=np.concatenate([[0], np.cumsum(sizes)]),
            request=encode_block(self.encoder, "request", frame[heads]),
            candidate=encode_block(self.encoder, "candidate", candidates),
            train_only=encode_block(self.encoder, "candidate", candidates, "train_only"),
            labels=nothing,
            weights=nothing,
            events=events,
            slices=slices,
        )

    def _standing(self, samples: pl.LazyFrame) -> pl.DataFrame | None:
        """Where each request stands in the log: the first position of its rows, which may lie in several batches."""
        if not (self.by_position and self.keys.request and self.keys.sequence):
            return None
        frame = collect(samples, [self.keys.request, self.keys.sequence], "samples")
        _whole(frame, self.keys.sequence, "samples")
        return frame.group_by(self.keys.request).agg(pl.col(self.keys.sequence).min().cast(pl.Int64).alias("·standing"))


def predict_file(
    run: Run,
    samples: Path,
    events: Path | None,
    out: Path,
    rows: int = ROWS,
    advance: Callable[[int], None] = lambda rows: None,
) -> int:
    """Score a file of samples and write keys and predictions, row for row, to `out` (.parquet or .csv).

    Columns: those of the recipe's keys that the samples have (else `row`), and one per head: a probability, or a number.
    Returns the number of rows. The file is written whole or not at all.
    """
    if out.suffix not in (".parquet", ".csv"):
        raise UserError(f"{out}: cannot tell what to write from its name; accepted: .parquet, .csv")
    if out.exists():
        raise UserError(f"{out}: exists; remove it or name another file")
    given, log = run.recipe.sources_in(samples, events)
    scorer = FreshScorer(run, log)
    keys = [k for k in (run.recipe.data.keys.request, run.recipe.data.keys.user, run.recipe.data.keys.time) if k]
    heads = run.heads
    clash = [h.name for h in heads if h.name in keys]
    if clash:
        raise UserError(f"head {clash[0]!r} has the name of a key column; rename the task in the recipe")
    done = 0
    parts = out.with_name(f"{out.name}.parts")
    partial = out.with_name(f"{out.name}.partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(parts, ignore_errors=True)  # of a run that was killed here
    parts.mkdir()
    try:
        for batch in scorer.batches(given, rows, advance):
            frame, logits = batch.frame, batch.logits
            shown = frame.select(keys) if keys else pl.DataFrame({"row": np.arange(done, done + frame.height)})
            scores = [pl.Series(h.name, predicted(h.link, logits[:, i])) for i, h in enumerate(heads)]
            shown.with_columns(scores).write_parquet(parts / f"{done:015d}.parquet")
            done += frame.height
        whole = pl.scan_parquet(parts / "*.parquet")
        if out.suffix == ".csv":
            whole.sink_csv(partial)
        else:
            whole.sink_parquet(partial)
        partial.replace(out)
    finally:
        shutil.rmtree(parts, ignore_errors=True)
        partial.unlink(missing_ok=True)
    return done


# ------------------------------------------------------------------------------------------------ helpers


def _coded(users: pl.Series) -> pl.DataFrame:
    return pl.DataFrame({"user": users, "code": pl.Series(range(len(users)), dtype=pl.Int64)})


def _codes(names: pl.Series, users: pl.DataFrame) -> np.ndarray:
    """int64 [n]: the code of each user, -1 for one without events or name."""
    joined = pl.DataFrame({"user": names.cast(pl.String)}).join(users, on="user", how="left", maintain_order="left")
    return joined["code"].fill_null(-1).to_numpy()


def _whole(frame: pl.DataFrame, column: str, where: str) -> np.ndarray:
    values = frame[column]
    if not values.dtype.is_integer() or values.null_count():
        raise UserError(f"{where}: column {column!r} is {values.dtype} or has nulls; accepted: whole numbers")
    return values.cast(pl.Int64).to_numpy()


def _from_lists(encoder: Encoder, history: History, heads: pl.DataFrame) -> tuple[EventTable, Slices]:
    """A history of list columns: every request's list is its own slice of a table of this batch."""
    fields, lengths = {}, np.zeros(heads.height, dtype=np.int64)
    for i, (name, column) in enumerate(history.lists.items()):
        lists = heads[column]
        if lists.dtype == pl.Null:
            lists = lists.cast(pl.List(pl.String))
        if lists.dtype == pl.String:
            if history.separator is None:
                raise UserError(f"history {history.name!r}: column {column!r} is text; say how it is joined: separator")
            lists = lists.replace("", None).str.split(history.separator)
        if not isinstance(lists.dtype, pl.List):
            raise UserError(
                f"history {history.name!r}: column {column!r} is {lists.dtype}; accepted: lists or joined text"
            )
        these = lists.list.len().fill_null(0).cast(pl.Int64).to_numpy()
        if i and (these != lengths).any():
            raise UserError(f"history {history.name!r}: column {column!r} differs in length from the others")
        lengths = these
        fields[name] = lists.filter(pl.Series(these > 0)).explode()
    block: Block[np.ndarray] = encode_block(encoder, history.name, pl.DataFrame(fields))
    request = np.repeat(np.arange(len(lengths)), lengths)
    ends = np.cumsum(lengths)
    position = np.arange(len(request)) - np.repeat(ends - lengths, lengths)
    table = EventTable.build(None, request, request, request, position, block, users=len(lengths))
    return table, Slices(np.maximum(ends - lengths, ends - history.max_length), ends, ends)
