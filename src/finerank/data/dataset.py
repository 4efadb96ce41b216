"""The encoded data set: column files and a manifest. Opening one maps files; nothing is read until a batch asks.

    encoder/                  the schema and the fitted encoder (`runtime.encoder`)
    requests/                 user, time, sequence, first (row of its first candidate), split; the request-level block
    candidates/               labels, weights [N, tasks]; the candidate-level block; train-only columns
    histories/<name>/         a table of events (`data.events`), and the slice of every request beside it
    counts/                   per table, occurrences of each symbol in the training rows
    users.parquet             the users' names, by code
    manifest.json             counts, base rates, the law of ties; each folder has one of its own with content hashes

Everything holds symbols; the map from symbol to embedding row is applied when a batch is built.
R requests · N candidates · K tasks · E events
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import xxhash

from finerank.data.columns import block_of, read_columns, verify
from finerank.data.events import EventTable, ListTable
from finerank.data.split import NAMES
from finerank.errors import UserError, nearest
from finerank.runtime.blocks import Block
from finerank.runtime.encoder import Encoder
from finerank.schema import FittedSchema

FORMAT = "finerank data set 2"
USERS = "users.parquet"


@dataclass(frozen=True)
class Slices:
    """Per request: its history is [start, end) of the sorted event table; it knows the first `known` events by rank."""

    start: np.ndarray
    end: np.ndarray
    known: np.ndarray


@dataclass(frozen=True)
class Dataset:
    """An opened data set. Arrays are mapped; see the module's docstring.

    user, time, sequence, split   [R]; user: codes, -1 for none
    first    [R + 1]: rows of request r are first[r]:first[r + 1]
    """

    folder: Path
    manifest: Mapping[str, Any]
    encoder: Encoder
    fitted: FittedSchema
    user: np.ndarray
    time: np.ndarray
    sequence: np.ndarray
    split: np.ndarray
    first: np.ndarray
    request: Block[np.ndarray]
    candidate: Block[np.ndarray]
    train_only: Block[np.ndarray]
    labels: np.ndarray
    weights: np.ndarray
    events: Mapping[str, EventTable | ListTable]
    slices: Mapping[str, Slices]

    @property
    def requests(self) -> int:
        """R."""
        return len(self.time)

    @property
    def rows(self) -> int:
        """N."""
        return len(self.labels)

    @cached_property
    def users(self) -> pl.Series:
        """The users' names by code, as canonical text. Raises UserError where their file is gone or damaged."""
        try:
            return pl.read_parquet(self.folder / USERS)["user"]
        except (OSError, pl.exceptions.PolarsError) as error:
            raise UserError(f"{self.folder / USERS}: not readable ({type(error).__name__}); prepare again") from error

    def requests_of(self, split: str) -> np.ndarray:
        """int64: the requests of "train", "validation" or "test", in time order."""
        if split not in NAMES:
            raise UserError(f"no split {split!r}; {nearest(split, NAMES)}")
        return np.flatnonzero(self.split == NAMES[split])

    def rows_of(self, requests: np.ndarray) -> np.ndarray:
        """int64: the rows of these requests, request after request."""
        lengths = self.first[requests + 1] - self.first[requests]
        ends = np.cumsum(lengths)
        shift: np.ndarray = np.repeat(self.first[requests] - (ends - lengths), lengths)
        rows: np.ndarray = np.arange(len(shift)) + shift
        return rows

    def spread(self, requests: np.ndarray, values: np.ndarray) -> np.ndarray:
        """[n]: the value of each of these requests at each of its rows, in the order of `rows_of`."""
        out: np.ndarray = np.repeat(values, self.first[requests + 1] - self.first[requests])
        return out

    def verify(self) -> None:
        """Read every file and compare it with its hash: UserError naming the first that differs. Opening does not."""
        for manifest in sorted(self.folder.rglob("manifest.json")):
            if manifest.parent != self.folder:
                verify(manifest.parent)
        if content_hash(self.folder) != self.manifest["content"]:
            raise UserError(f"{self.folder}: its parts do not belong together; prepare again")

    @staticmethod
    def open(folder: Path | str, encoder: Encoder | None = None) -> Dataset:
        """Open a prepared data set. Raises UserError when the folder holds none, or a part of it is damaged.

        encoder   the one that lies in the folder, if it is at hand; None: it is read
        """
        folder = Path(folder)
        path = folder / "manifest.json"
        if not path.exists():
            raise UserError(f"{folder}: no prepared data set here (no manifest.json); prepare one first")
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            found, _ = manifest["format"], manifest["base_rates"]
        except (ValueError, KeyError, TypeError) as error:  # no JSON, no text at all, or JSON of something else
            raise UserError(f"{path}: damaged ({type(error).__name__}: {error}); prepare again") from error
        if found != FORMAT:
            raise UserError(f"{path}: format is {found!r}, accepted: {FORMAT!r}; prepare again")
        try:
            return _opened(folder, manifest, encoder or Encoder.load(folder / "encoder"))
        except KeyError as error:
            raise UserError(f"{folder}: damaged, it has no column {error}; prepare again") from error


def _opened(folder: Path, manifest: Mapping[str, Any], encoder: Encoder) -> Dataset:
    requests, candidates = read_columns(folder / "requests"), read_columns(folder / "candidates")
    counts = read_columns(folder / "counts")
    events: dict[str, EventTable | ListTable] = {}
    slices = {}
    for history in encoder.schema.histories:
        at = folder / "histories" / history.name
        events[history.name] = (ListTable if history.lists else EventTable).open(at / "events")
        parts = read_columns(at / "slices")
        slices[history.name] = Slices(parts["start"], parts["end"], parts["known"])
    fitted = fitted_schema(encoder, dict(counts), manifest["base_rates"])
    return Dataset(
        folder=folder,
        manifest=manifest,
        encoder=encoder,
        fitted=fitted,
        user=np.asarray(requests["user"]),
        time=np.asarray(requests["time"]),
        sequence=np.asarray(requests["sequence"]),
        split=np.asarray(requests["split"]),
        first=np.asarray(requests["first"]),
        request=block_of(requests, "block."),
        candidate=block_of(candidates, "block."),
        train_only=block_of(candidates, "train_only."),
        labels=np.asarray(candidates["labels"]),
        weights=np.asarray(candidates["weights"]),
        events=events,
        slices=slices,
    )


def content_hash(folder: Path) -> str:
    """One hash over the content hashes of all column folders of a data set."""
    manifests = sorted(p for p in folder.rglob("manifest.json") if p.parent != folder)
    return xxhash.xxh3_64_hexdigest(b"".join(p.read_bytes() for p in manifests))


def fitted_schema(encoder: Encoder, counts: Mapping[str, np.ndarray], base_rates: Mapping[str, float]) -> FittedSchema:
    """What models are built from. counts: per table, occurrences of each symbol in the training rows."""
    return FittedSchema(
        schema=encoder.schema,
        tables=encoder.fitted_tables(counts),
        request=encoder.columns("request"),
        candidate=encoder.columns("candidate"),
        histories={h.name: encoder.columns(h.name) for h in encoder.schema.histories},
        train_only=encoder.columns("candidate", use="train_only"),
        base_rates=dict(base_rates),
    )
