"""From samples and events to an encoded data set: once, columns at a time.

    keys ──► requests in time order ──► event tables and slices ──► split ──► fit on what training rows see ──► encode

The encoder is fitted on training rows, and on the events that lie in the history of a training row, as often as they do.
R requests · N rows · E events · K tasks
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from finerank.data.columns import ColumnWriter, block_arrays
from finerank.data.dataset import FORMAT, Dataset, Slices, content_hash
from finerank.data.encode import Fitter, encode_block
from finerank.data.events import EventTable, coverage, flatten
from finerank.data.labels import label_columns, labels_of
from finerank.data.lists import list_events
from finerank.data.overlap import refuse_overlap
from finerank.data.source import TimeUnit, collect, microseconds
from finerank.data.split import NAMES, TRAIN, Split, assign
from finerank.errors import UserError
from finerank.runtime.blocks import Block
from finerank.runtime.encoder import Encoder, age_ids
from finerank.runtime.hashing import hash_texts
from finerank.runtime.values import canonical, shown
from finerank.schema import Cross, Feature, History, MultiValued, Schema, column_of


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Which columns of samples and events say who, when and together.

    request    rows with the same value are one request: one user, one moment, adjacent or not; none: each row is one
    user       None: no users (no event log can be joined, GAUC is by request)
    time       None: rows are in file order and count as one microsecond each
    sequence   position in the log, common to samples and events, for ties = "file_order"; None: the row's number
    known_at   column of the events that says when an event became known; None: its time plus the history's delay
    time_unit  of whole-number times
    """

    request: str | None = None
    user: str | None = None
    time: str | None = None
    sequence: str | None = None
    known_at: str | None = None
    time_unit: TimeUnit = "s"


@dataclass(frozen=True)
class _Rows:
    """Samples put in order: `order` sorts the source's rows into requests by time, requests' rows adjacent."""

    order: np.ndarray  # [N] into the source
    first: np.ndarray  # [R + 1]
    time: np.ndarray  # [R] microseconds
    sequence: np.ndarray  # [R]
    user: np.ndarray  # [R] codes
    users: pl.Series  # [U] texts, sorted

    @property
    def heads(self) -> np.ndarray:
        """[R] source rows that stand for their requests."""
        heads: np.ndarray = self.order[self.first[:-1]]
        return heads

    @property
    def sizes(self) -> np.ndarray:
        """[R] rows of each request."""
        sizes: np.ndarray = np.diff(self.first)
        return sizes


def prepare(
    folder: Path | str,
    schema: Schema,
    samples: pl.LazyFrame,
    events: pl.LazyFrame | None = None,
    keys: Keys = Keys(),
    split: Split = Split(),
    progress: Callable[[str], None] = lambda step: None,
    notes: Sequence[str] = (),
) -> Dataset:
    """Encode samples (and their histories) into `folder`, and open it.

    samples   one row per candidate; events: one row per past event, for histories that are not list columns
    progress  told the name of each step as it begins
    notes     what a reader of results should know of the samples; kept in the manifest
    Raises UserError for missing columns, wrong types, requests with two users or times, one-class labels in training,
    or a folder that is not empty.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: exists and is not empty; remove it or name another folder")
    progress("keys")
    rows, event_users = _rows(samples, events, keys, schema)
    progress("split")
    parts = _split(rows, samples, split, schema, keys)
    weight = np.where(parts == TRAIN, rows.sizes, 0)  # [R] training rows of each request
    if not weight.any():
        raise UserError("no training rows: the split leaves none; give more rows or smaller shares")

    histories = {}
    fitter = Fitter(schema)
    for history in schema.histories:
        progress(f"history {history.name}")
        made = _history(history, schema, samples, events, keys, rows, event_users)
        histories[history.name] = made
        seen = coverage(made.slices.start, made.slices.end, weight, len(made.order))
        weights = np.empty(len(seen), dtype=np.int64)
        weights[made.order] = seen
        for name in history.fields:
            fitter.add(schema.field(history, name), made.frame[name], weights)

    progress("fit")
    in_training = np.repeat(weight > 0, rows.sizes)
    for feature in schema.features:
        if feature.level == "event":
            continue
        frame = collect(samples, _columns(feature), "samples")
        if feature.level == "request":
            _same_within_requests(frame, rows)
            frame, counts = frame[rows.heads], weight
        else:
            frame, counts = frame[rows.order], in_training.astype(np.int64)
        fitter.add(feature, frame.get_columns(), counts)
    encoder = fitter.finish()

    progress("encode")
    labels, weights_NK = _labels(schema, samples, rows)
    base_rates = _base_rates(schema, labels[in_training], weights_NK[in_training])
    request = encode_block(encoder, "request", _block_frame(schema, "request", samples, rows.heads), grow=True)
    with ColumnWriter(folder / "requests") as out:
        out.append({"user": rows.user, "time": rows.time, "sequence": rows.sequence, "split": parts})
        out.append({"first": rows.first})
        out.append(_narrow(block_arrays(request, "block.")))
    source = _block_frame(schema, "candidate", samples, rows.order)
    with ColumnWriter(folder / "candidates") as out:
        out.append({"labels": labels, "weights": weights_NK})
        out.append(_narrow(block_arrays(encode_block(encoder, "candidate", source, grow=True), "block.")))
        train_only = encode_block(encoder, "candidate", source, "train_only", grow=True)
        out.append(_narrow(block_arrays(train_only, "train_only.")))
    for name, made in histories.items():
        progress(f"encode {name}")
        block = encode_block(encoder, name, made.frame, grow=True)
        at = folder / "histories" / name
        EventTable.build(at / "events", made.user, made.time, made.known_at, made.sequence, block, users=made.users)
        with ColumnWriter(at / "slices") as out:
            out.append({"start": made.slices.start, "end": made.slices.end, "known": made.slices.known})
        _count_ages(fitter.counts, encoder, name, made, rows.time, weight)
    with ColumnWriter(folder / "counts") as out:
        out.append(dict(fitter.counts))
    encoder.save(folder / "encoder")
    _write_users(folder / "users.parquet", rows.users)
    manifest = {
        "format": FORMAT,
        "requests": len(rows.time),
        "rows": int(rows.first[-1]),
        "users": len(rows.users),
        "split": {
            name: [int((parts == code).sum()), int(rows.sizes[parts == code].sum())] for name, code in NAMES.items()
        },
        "split_by": split.by,
        "ties": {h.name: h.ties for h in schema.histories},
        "events": {name: len(made.order) for name, made in histories.items()},
        "base_rates": base_rates,
        "notes": list(notes),
        "content": content_hash(folder),
    }
    _write_json(folder / "manifest.json", manifest)  # last: without it the folder is no data set
    return Dataset.open(folder)


# ------------------------------------------------------------------------------------------------ keys


def _rows(
    samples: pl.LazyFrame, events: pl.LazyFrame | None, keys: Keys, schema: Schema
) -> tuple[_Rows, pl.Series | None]:
    """The samples' order, and the users of the events (texts)."""
    wanted = [c for c in (keys.request, keys.user, keys.time, keys.sequence) if c is not None]
    if wanted:
        frame = collect(samples, wanted, "samples")
        count = frame.height
    else:
        frame = pl.DataFrame()
        count = int(samples.select(pl.len()).collect().item())
    if not count:
        raise UserError("samples: no rows; is this the right file?")
    by_position = [h.name for h in schema.histories if h.ties == "file_order" and not h.lists]
    if by_position and keys.sequence is None:
        raise UserError(
            f'history {by_position[0]!r}: ties = "file_order" compares positions in one common log; name the column that '
            "holds them in samples and events: keys.sequence"
        )
    number = np.arange(count)
    time = microseconds(frame[keys.time], keys.time_unit, "samples") if keys.time else number
    sequence = _integers(frame[keys.sequence], "samples") if keys.sequence else number
    request = (
        frame[keys.request].rank("dense").cast(pl.Int64).fill_null(0).to_numpy() if keys.request else number
    )  # [N] some code per request
    if keys.request and frame[keys.request].null_count():
        raise UserError(
            f"samples: {frame[keys.request].null_count()} rows have no {keys.request!r}; name their request"
        )

    names = frame[keys.request] if keys.request else pl.Series(number)
    head = _first_of_group(request)  # [N] the first source row of each row's request
    if keys.time and (time != time[head]).any():
        bad = int(np.flatnonzero(time != time[head])[0])
        raise UserError(
            f"samples: request {names[bad]!r} has rows of different times ({keys.time!r}); "
            "a request is one user at one moment"
        )
    earliest = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(earliest, head, sequence)  # a request stands at the first of its rows' positions in the log
    sequence = earliest[head]
    order = np.lexsort((number, head, sequence, time))
    starts = np.flatnonzero(np.diff(head[order], prepend=-1))
    first = np.append(starts, count)
    heads = order[starts]

    event_users = None
    texts = _texts(frame[keys.user]) if keys.user else pl.Series("user", [None] * 0, dtype=pl.String)
    everyone = texts
    if events is not None:
        if keys.user is None:
            raise UserError("an event log needs keys.user: the column that says whose events they are")
        event_users = _texts(collect(events, [keys.user], "events")[keys.user])
        everyone = pl.concat([texts, event_users])
        if not event_users.is_in(texts.drop_nulls().implode()).any():
            raise UserError(
                f"events: none of their users ({keys.user!r}) is in the samples, so every history would be empty; "
                f"samples hold {texts.drop_nulls().head(2).to_list()}, events {event_users.drop_nulls().head(2).to_list()}"
            )
    users = everyone.drop_nulls().unique().sort()
    if keys.user:
        user = _codes(texts, users)
        if (user != user[head]).any():
            bad = int(np.flatnonzero(user != user[head])[0])
            raise UserError(f"samples: request {names[bad]!r} has rows of different users ({keys.user!r})")
        user = user[heads]
    else:
        user = np.full(len(heads), -1)
    return _Rows(order, first, time[heads], sequence[heads], user, users), event_users


def _first_of_group(codes: np.ndarray) -> np.ndarray:
    """[N] index of the first element with the same code."""
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    return first[inverse]


def _texts(column: pl.Series) -> pl.Series:
    """User keys as canonical text (`runtime.values`); only distinct floats go through Python."""
    from finerank.data.encode import canonical_series

    return canonical_series(column)


def _codes(texts: pl.Series, users: pl.Series) -> np.ndarray:
    """[N] position of each text among the sorted users; -1 for null."""
    lookup = pl.DataFrame({"user": users, "code": pl.Series(range(len(users)), dtype=pl.Int64)})
    joined = pl.DataFrame({"user": texts}).join(lookup, on="user", how="left", maintain_order="left")
    return joined["code"].fill_null(-1).to_numpy()


def _integers(column: pl.Series, where: str) -> np.ndarray:
    if not column.dtype.is_integer() or column.null_count():
        raise UserError(f"{where}: column {column.name!r} is {column.dtype} or has nulls; accepted: whole numbers")
    return column.cast(pl.Int64).to_numpy()


# ------------------------------------------------------------------------------------------------ histories


@dataclass(frozen=True)
class _Made:
    """A history before it is encoded: events in source order, and the requests' slices of the sorted table."""

    frame: pl.DataFrame  # [E], columns named by field
    user: np.ndarray
    users: int
    time: np.ndarray
    known_at: np.ndarray
    sequence: np.ndarray
    order: np.ndarray  # [E] source position of each event of the sorted table
    slices: Slices


def _history(
    history: History,
    schema: Schema,
    samples: pl.LazyFrame,
    events: pl.LazyFrame | None,
    keys: Keys,
    rows: _Rows,
    event_users: pl.Series | None,
) -> _Made:
    if history.lists:
        return _from_lists(history, samples, rows)
    if events is None or keys.time is None or event_users is None:
        raise UserError(
            f"history {history.name!r} reads an event log: give events, keys.user and keys.time, or name list columns"
        )
    columns = {name: history.columns.get(name, column_of(schema.field(history, name))) for name in history.fields}
    weights = {
        f"{name}·weights": f.weights
        for name in history.fields
        if isinstance(f := schema.field(history, name), MultiValued) and f.weights is not None
    }
    extra = [keys.user, keys.time, keys.sequence, keys.known_at]
    frame = collect(events, [*columns.values(), *weights.values(), *history.where, *(c for c in extra if c)], "events")
    keep = event_users.is_not_null()
    for column, value in history.where.items():  # by canonical text, as everywhere: 1, 1.0 and "1" are one value
        keep &= (_texts(frame[column]) == canonical(value)).fill_null(False)
    kept = np.flatnonzero(keep.to_numpy())
    if not len(kept):
        raise UserError(
            f"history {history.name!r}: no event matches where = {dict(history.where)}, so every history would be empty"
        )
    sequence = _integers(frame[keys.sequence], "events") if keys.sequence else np.arange(frame.height)
    frame, sequence, user = frame[kept], sequence[kept], _codes(event_users[kept], rows.users)
    time = microseconds(frame[keys.time], keys.time_unit, "events")
    known_at = (
        microseconds(frame[keys.known_at], keys.time_unit, "events")
        if keys.known_at
        else time + round(history.delay * 1_000_000)
    )
    fields = frame.select(**{name: pl.col(c) for name, c in (columns | weights).items()})
    probe = EventTable.build(None, user, time, known_at, sequence, _numbered(len(user)), users=len(rows.users))
    known = probe.known_before(rows.time, rows.sequence, history.ties)
    start, end = probe.slices(rows.user, rows.time, rows.sequence, history.ties, history.max_length)
    order = probe.block.ids[:, 0].astype(np.int64)
    return _Made(fields, user, len(rows.users), time, known_at, sequence, order, Slices(start, end, known))


def _from_lists(history: History, samples: pl.LazyFrame, rows: _Rows) -> _Made:
    """List columns: every request's list is its own slice. Their events have no time; what is known grows by request."""
    frame = collect(samples, dict.fromkeys(history.list_columns.values()), "samples")
    _same_within_requests(frame, rows)
    frame = frame[rows.heads]
    made, lengths = list_events(history, frame, rows.heads)
    ends = np.cumsum(lengths)
    begins = ends - lengths
    request = np.repeat(np.arange(len(lengths)), lengths)
    position = np.arange(len(request)) - begins[request]
    slices = Slices(np.maximum(begins, ends - history.max_length), ends, ends)
    return _Made(made, request, len(lengths), request, request, position, np.arange(len(request)), slices)


def _count_ages(
    counts: dict[str, np.ndarray], encoder: Encoder, name: str, made: _Made, time: np.ndarray, weight: np.ndarray
) -> None:
    """How often each bucket of age occurs in the training rows: the one id that belongs to a row and an event together."""
    table = f"{name}.age"
    if table not in counts:
        return
    out, event_time = counts[table], made.time[made.order]
    training = np.flatnonzero(weight)
    for chunk in np.array_split(training, max(1, len(training) // 100_000)):
        index, segments, _ = flatten(made.slices.start[chunk], made.slices.end[chunk])
        ages = age_ids(encoder, name, time[chunk][segments] - event_time[index])
        out += np.bincount(ages, weight[chunk][segments], len(out)).astype(np.int64)


def _numbered(count: int) -> Block[np.ndarray]:
    return Block(np.arange(count, dtype=np.int64)[:, None], np.empty((count, 0), np.float32))


def _same_within_requests(frame: pl.DataFrame, rows: _Rows) -> None:
    """A request-level column has one value per request; taking the first of several would be a silent choice."""
    if len(rows.first) == len(rows.order) + 1:
        return
    stands_for = np.empty(len(rows.order), dtype=np.int64)  # [N] the source row that stands for each row's request
    stands_for[rows.order] = np.repeat(rows.heads, rows.sizes)
    for column in frame.get_columns():
        differs = ~column.eq_missing(column.gather(stands_for))
        if differs.any():
            i = int(differs.arg_true()[0])
            one, other = column.gather([i, int(stands_for[i])]).to_list()
            raise UserError(
                f"samples: column {column.name!r} belongs to the request, but differs within one: {shown(one)} and "
                f"{shown(other)}; is it a candidate-level feature?"
            )


# ------------------------------------------------------------------------------------------------ split and labels


def _split(rows: _Rows, samples: pl.LazyFrame, split: Split, schema: Schema, keys: Keys) -> np.ndarray:
    if split.by != "column":
        if split.by == "user" and (rows.user < 0).all():
            raise UserError('split by "user" needs keys.user')
        by_user = split.by == "user"
        return assign(split, rows.time, rows.user, hash_texts("split", rows.users.to_list()) if by_user else None)
    column = collect(samples, [split.column], "samples")[split.column]
    bad = column.filter(~column.cast(pl.String).is_in(list(NAMES)).fill_null(False))
    if len(bad):
        raise UserError(f"samples: column {split.column!r} holds {bad[0]!r}; accepted: {', '.join(NAMES)}")
    given = column.replace_strict(NAMES, return_dtype=pl.Int8).to_numpy()
    _refuse_overlap(given, samples, schema, keys)
    codes = given[rows.order]
    of_request: np.ndarray = codes[rows.first[:-1]]
    if (np.repeat(of_request, rows.sizes) != codes).any():
        raise UserError(f"samples: rows of one request have different values of {split.column!r}; split whole requests")
    return of_request


def _refuse_overlap(part: np.ndarray, samples: pl.LazyFrame, schema: Schema, keys: Keys) -> None:
    """See `data.overlap`; part: int8 [N] in the samples' order."""
    lists = [column for history in schema.histories for column in history.list_columns.values()]
    features = [column for f in schema.features if f.level != "event" for column in _columns(f)]
    who_and_when = [column for column in (keys.user, keys.time, keys.sequence) if column is not None]
    known = keys.user is not None and keys.time is not None
    refuse_overlap(samples, part, list(dict.fromkeys([*who_and_when, *features, *lists])), known)


def _labels(schema: Schema, samples: pl.LazyFrame, rows: _Rows) -> tuple[np.ndarray, np.ndarray]:
    """labels, weights: float32 [N, K], see `labels_of`."""
    return labels_of(schema, collect(samples, label_columns(schema), "samples")[rows.order])


def _base_rates(schema: Schema, labels: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    rates = {}
    for k, task in enumerate(schema.tasks):
        space = weights[:, k] != 0
        if not space.any():
            raise UserError(f"task {task.name!r}: no training row lies in its space; nothing can be learnt")
        rate = float(np.average(labels[space, k].astype(np.float64), weights=weights[space, k].astype(np.float64)))
        if task.kind == "binary" and rate in (0.0, 1.0):
            raise UserError(
                f"task {task.name!r}: every training label is {int(rate)}; both classes are needed. "
                "Is this the right column, and does the split leave both?"
            )
        rates[task.name] = rate
    return rates


# ------------------------------------------------------------------------------------------------ helpers


def _columns(feature: Feature) -> list[str]:
    if isinstance(feature, Cross):
        return list(feature.of)
    weights = [feature.weights] if isinstance(feature, MultiValued) and feature.weights else []
    return [column_of(feature), *weights]


def _block_frame(schema: Schema, level: Any, samples: pl.LazyFrame, index: np.ndarray) -> pl.DataFrame:
    """The source columns of all features of a level, train-only ones included, for these source rows."""
    columns = [c for f in schema.at(level, use=None) for c in _columns(f)]
    if not columns:
        return pl.DataFrame({"·row": index})
    return collect(samples, columns, "samples")[index]


def _narrow(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Symbols as int32 on disk."""
    return {k: a.astype(np.int32) if a.dtype == np.int64 and a.ndim == 2 else a for k, a in arrays.items()}


def _write_users(path: Path, users: pl.Series) -> None:
    users.rename("user").to_frame().write_parquet(path)


def _write_json(path: Path, content: Any) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
