"""Scores of raw rows by a finished run: files that it was not prepared from, ids that it never saw.

    samples ──batches in file order──► encode with the run's own encoder ──► slice the event table ──► model ──► scores

Memory follows the batch, the event log and the names of users, never the samples. Rows keep their order and number. A score
depends on its own row, its request and its user's past alone, so a request whose rows lie in two batches is scored as two;
its rows need not be adjacent. The past is the event log that is given, whole, or else the one that the run was prepared from.

n rows of a batch · R requests · H heads
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from finerank.data.builder import BatchBuilder
from finerank.data.dataset import Dataset, Slices
from finerank.data.encode import canonical_series, encode_block
from finerank.data.events import EventTable, ListTable
from finerank.data.source import collect, microseconds, whole_numbers
from finerank.errors import UserError, nearest
from finerank.fresh.past import Log, from_lists
from finerank.run import Run
from finerank.runtime.fields import fields_of
from finerank.runtime.values import shown
from finerank.training.evaluate import predict

ROWS = 1 << 17
"""Rows read and encoded at a time."""


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
        self.lists = {c: h.name for h in schema.histories for c in h.list_columns.values()}
        self.by_position = any(h.ties == "file_order" and not h.lists for h in schema.histories)

    def batches(
        self, samples: pl.LazyFrame, rows: int = ROWS, advance: Callable[[int], None] = lambda rows: None
    ) -> Iterator[Scored]:
        """Batch by batch in the order of the samples.

        Raises UserError for columns that are missing, values of a wrong type, samples without rows.
        """
        names = samples.collect_schema().names()
        keys = [k for k in (self.keys.request, self.keys.user, self.keys.time) if k]
        needed = {k: "a key of the recipe" for k in keys}
        needed |= {c: f"feature {name!r}" for c, name in self.features.items()}
        needed |= {c: f"history {name!r}" for c, name in self.lists.items()}
        if self.by_position and self.keys.sequence:
            needed[self.keys.sequence] = "a key of the recipe"
        for column, by in needed.items():
            if column not in names:
                raise UserError(f"samples: no column {column!r}, which {by} needs; {nearest(column, names)}")
        standing = self._standing(samples)
        done = 0
        for frame in _frames(samples, rows):
            yield self.score(frame, done, standing)
            done += frame.height
            advance(frame.height)
        if not done:
            raise UserError("samples: no rows; is this the right file?")

    def score(self, frame: pl.DataFrame, first_row: int = 0, standing: pl.DataFrame | None = None) -> Scored:
        """Some rows, in their order. first_row: number of the first among all rows; standing: see `_standing`."""
        number = np.arange(first_row, first_row + frame.height)
        keys = self.keys
        time = microseconds(frame[keys.time], keys.time_unit, "samples") if keys.time else number
        user = self.log.users.codes(canonical_series(frame[keys.user])) if keys.user else np.full(len(number), -1)
        request = frame[keys.request].rank("dense").fill_null(0).cast(pl.Int64).to_numpy() if keys.request else number
        if keys.request and frame[keys.request].null_count():
            raise UserError(f"samples: {frame[keys.request].null_count()} rows have no {keys.request!r}")
        sequence = number
        if standing is not None and keys.request:
            found = frame.select(keys.request).join(standing, on=keys.request, how="left", maintain_order="left")
            sequence = found["·standing"].to_numpy()
        elif keys.sequence and self.by_position:
            sequence = whole_numbers(frame[keys.sequence], "samples")
        order = np.argsort(request, kind="stable")
        starts = np.flatnonzero(np.diff(request[order], prepend=-1))
        heads, sizes = order[starts], np.diff(starts, append=len(order))
        for name, values in ((("times", time),) if keys.time else ()) + (("users", user),):
            bad = np.flatnonzero(values[order] != np.repeat(values[heads], sizes))
            if len(bad):
                at = frame[keys.request][int(order[bad[0]])] if keys.request else first_row + int(order[bad[0]])
                raise UserError(
                    f"samples: request {shown(at)} has rows of different {name}, or some without; a request is one user at one "
                    "moment"
                )
        data = self._dataset(frame, order, heads, number[heads], sizes, user[heads], time[heads], sequence[heads])
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
        rows: np.ndarray,
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
        events: dict[str, EventTable | ListTable] = {}
        slices = {}
        for history in schema.histories:
            if history.lists:
                events[history.name], slices[history.name] = from_lists(self.encoder, history, frame[heads], rows)
            else:
                events[history.name] = table = self.log.tables[history.name]
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
        whole_numbers(frame[self.keys.sequence], "samples")
        return frame.group_by(self.keys.request).agg(pl.col(self.keys.sequence).min().cast(pl.Int64).alias("·standing"))


def _frames(samples: pl.LazyFrame, rows: int) -> Iterator[pl.DataFrame]:
    """The samples in batches, in their order. Only reading is judged here: what becomes of a batch is another's to tell."""
    done = 0
    try:
        for frame in samples.collect_batches(chunk_size=rows, maintain_order=True):
            if frame.height:
                done += frame.height
                yield frame
    except (pl.exceptions.PolarsError, OSError) as error:
        first = str(error).strip().splitlines()
        raise UserError(f"samples: not readable after row {done:,}: {first[0] if first else error}") from error
