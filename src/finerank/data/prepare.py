"""From samples and events to an encoded data set: read once, in memory of a block of rows.

    read ──► requests in time order ──► split ──► event tables and slices ──► fit on what training rows see ──► encode

`data.samples` reads; `data.requests` puts in order; `data.histories` makes the past of each request; `data.encode` fits
and encodes. The encoder is fitted on training rows, and on the events that lie in the history of a training row, as often
as they do. Arrays longer than a block are files of a scratch folder (`data.scratch`), within `.<name>.partial` beside the
target: there everything is made, and it becomes the target as a whole or not at all.
N rows · R requests · K tasks
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from finerank.data.columns import ColumnWriter
from finerank.data.dataset import FORMAT, USERS, Dataset, content_hash
from finerank.data.encode import BlockEncoder
from finerank.data.fit import Fitter, counted, rows_at
from finerank.data.folders import vacant, whole_or_nothing
from finerank.data.histories import Past, PastOfLists, PastOfLog
from finerank.data.overlap import refuse_overlap
from finerank.data.requests import Requests, requests_of
from finerank.data.samples import Keys as Keys
from finerank.data.samples import LogPast, Samples, no_log, read_events, refuse_strangers
from finerank.data.scratch import BLOCK, Array, Pile, Scratch, total
from finerank.data.split import NAMES, TRAIN, Split, assign
from finerank.errors import UserError
from finerank.kernels.arrow import forget
from finerank.runtime.encoder import Encoder
from finerank.runtime.hashing import hash_texts
from finerank.schema import FIRST, OOV, Categorical, MultiValued, Schema, Vocabulary, table_of

WRITERS = min(4, os.cpu_count() or 1)
"""Parts of a data set that are written at a time: much of it is Python, which only one of them runs."""


def prepare(
    folder: Path | str,
    schema: Schema,
    samples: pl.LazyFrame,
    events: pl.LazyFrame | None = None,
    keys: Keys = Keys(),
    split: Split = Split(),
    progress: Callable[[str], None] = lambda step: None,
    notes: Sequence[str] = (),
    block: int = BLOCK,
) -> Dataset:
    """Encode samples (and their histories) into `folder`, and open it.

    samples   one row per candidate; events: one row per past event, for histories that are not list columns
    progress  told the name of each step as it begins
    notes     what a reader of results should know of the samples; kept in the manifest
    block     rows in memory at a time; the result does not depend on it. Vocabularies, users, distinct lists and the
              distinct values of bucketed numbers are held in memory besides
    Raises UserError for missing columns, wrong types, requests with two users or times, one-class labels in training,
    a folder that is not empty, or a disk that is full.
    """
    folder = Path(folder)
    vacant(folder)
    with whole_or_nothing(folder, "while it is made, a data set needs about four times its final size") as partial:
        scratch = Scratch(partial / "scratch", block)
        manifest, encoder = _prepared(partial, schema, samples, events, keys, split, progress, scratch)
        shutil.rmtree(partial / "scratch", ignore_errors=True)
        manifest |= {"notes": [*notes, *manifest["notes"]], "content": content_hash(partial)}
        _write_json(partial / "manifest.json", manifest)  # last: without it the folder is no data set
    forget()
    return Dataset.open(folder, encoder)


def _prepared(
    folder: Path,
    schema: Schema,
    frame: pl.LazyFrame,
    events: pl.LazyFrame | None,
    keys: Keys,
    split: Split,
    progress: Callable[[str], None],
    scratch: Scratch,
) -> tuple[dict[str, Any], Encoder]:
    """Write everything but the manifest, which is returned with the encoder."""
    progress("keys")
    by_position = [h.name for h in schema.histories if h.ties == "file_order" and not h.lists]
    if by_position and keys.sequence is None:
        raise UserError(
            f'history {by_position[0]!r}: ties = "file_order" compares positions in one common log; name the column that '
            "holds them in samples and events: keys.sequence"
        )
    samples = Samples(schema, keys, split, frame, scratch)
    logs: Mapping[str, LogPast] = {}
    if events is None:
        samples.users.close()
    else:
        logs = read_events(samples, events)
    requests = requests_of(samples, scratch)
    if events is not None:
        refuse_strangers(samples)

    progress("split")
    parts = _split(samples, requests, split, scratch)
    weight = scratch.made(len(requests), lambda at: np.where(parts[at] == TRAIN, requests.sizes(at), 0))
    if not any(weight[at].any() for at in scratch.pieces(len(weight))):
        raise UserError("no training rows: the split leaves none; give more rows or smaller shares")

    pasts: dict[str, Past] = {}
    fitter = Fitter(schema)
    for history in schema.histories:
        progress(f"history {history.name}")
        past: Past
        if history.lists:
            past = PastOfLists(samples.past[history.name], requests, scratch)
        elif history.name in logs:
            log = logs[history.name]
            past = PastOfLog(log, samples.users, requests, scratch)
        else:
            raise no_log(history)
        past.fit(fitter, weight, scratch)
        pasts[history.name] = past

    progress("fit")
    in_training = requests.spread(scratch.made(len(weight), lambda at: weight[at] > 0, bool), scratch)
    for feature in schema.features:
        if feature.level == "request":
            fitter.count(feature, samples.columns[feature.name], weight, requests.rows_of_heads, scratch)
        elif feature.level == "candidate":
            fitter.count(feature, samples.columns[feature.name], in_training, requests.rows, scratch)
    encoder = fitter.finish()

    progress("encode")
    base_rates = _base_rates(schema, samples, requests, in_training, scratch)

    def encoded(level: str, n: int, index: Array | None, use: Any = "input") -> BlockEncoder:
        return BlockEncoder(encoder, level, samples.columns, n, index, scratch, use, grow=True, known=fitter.known)

    of_requests = encoded("request", len(requests), requests.rows_of_heads)
    of_rows = encoded("candidate", samples.rows, requests.rows)
    train_only = encoded("candidate", samples.rows, requests.rows, "train_only")

    def write_requests() -> None:
        for name in ("user", "time", "sequence"):
            files["requests"].append_all(name, getattr(requests, name), scratch.block)
        files["requests"].append_all("split", parts, scratch.block)
        files["requests"].append_all("first", requests.first, scratch.block)

    def write_candidates() -> None:
        files["candidates"].append_all("labels", samples.labels, scratch.block, requests.rows)
        files["candidates"].append_all("weights", samples.weights, scratch.block, requests.rows)

    def write_encoder() -> None:
        encoder.save(folder / "encoder")
        requests.users.rename("user").to_frame().write_parquet(folder / USERS)

    with ExitStack() as closed, ThreadPoolExecutor(WRITERS) as pool:  # parts of the data set, side by side
        files = {name: closed.enter_context(ColumnWriter(folder / name)) for name in ("requests", "candidates")}
        tasks = [
            *of_rows.writes(files["candidates"], "block."),
            *train_only.writes(files["candidates"], "train_only."),
            *of_requests.writes(files["requests"], "block."),
            write_candidates,
            write_requests,
        ]
        work = [pool.submit(task) for task in tasks]
        for name, past in pasts.items():
            progress(f"encode {name}")
            made = past.encoder(encoder, fitter.known, scratch)
            work.append(pool.submit(past.write, folder / "histories" / name, made, scratch))
            if isinstance(past, PastOfLog) and f"{name}.age" in fitter.counts:
                past.count_ages(fitter.counts[f"{name}.age"], encoder, requests, weight, scratch.block)
        work.append(pool.submit(write_encoder))  # its tables have grown with all the encoders above
        for done in work:
            done.result()
    with ColumnWriter(folder / "counts") as out:
        out.append(dict(fitter.counts))
    manifest = {
        "format": FORMAT,
        "requests": len(requests),
        "rows": samples.rows,
        "users": len(requests.users),
        "split": {name: _size(parts, code, requests, scratch) for name, code in NAMES.items()},
        "split_by": split.by,
        "ties": {h.name: h.ties for h in schema.histories},
        "events": {name: past.events for name, past in pasts.items()},
        "base_rates": base_rates,
        "notes": [*_unlabelled(schema, samples, scratch), *_nothing_known(schema, fitter.counts)],
    }
    return manifest, encoder


# ------------------------------------------------------------------------------------------------ split and labels


def _split(samples: Samples, requests: Requests, split: Split, scratch: Scratch) -> Array:
    """int8 [R]."""
    if split.by == "time":
        return assign(split, requests.time, requests.user)
    if split.by == "user":
        names = hash_texts("split", requests.users.to_list())
        if not len(names) or all((requests.user[at] < 0).all() for at in scratch.pieces(len(requests))):
            raise UserError('split by "user" needs keys.user')
        return scratch.made(
            len(requests), lambda at: assign(split, requests.time[at], requests.user[at], names), np.int8
        )
    given = samples.split
    assert given is not None
    refuse_overlap(samples.frame, given, samples.of_rows, samples.known, samples.row_hash, scratch)
    of_request = scratch.made(len(requests), lambda at: given[requests.heads[at]], np.int8)
    of_row = requests.spread(of_request, scratch)
    if len(requests) < len(given) and any(
        (of_row[at] != given[requests.order[at]]).any() for at in scratch.pieces(len(given))
    ):
        raise UserError(f"samples: rows of one request have different values of {split.column!r}; split whole requests")
    return of_request


def _base_rates(
    schema: Schema, samples: Samples, requests: Requests, in_training: Array, scratch: Scratch
) -> dict[str, float]:
    rates = {}
    for k, task in enumerate(schema.tasks):
        products, weights = Pile(scratch, np.float64), Pile(scratch, np.float64)
        for at in scratch.pieces(samples.rows):
            rows, these = rows_at(requests.rows, at), counted(in_training[at])
            y, w = (array[rows, k][these].astype(np.float64) for array in (samples.labels, samples.weights))
            if not w.all():
                y, w = y[w != 0], w[w != 0]
            products.append(y * w)
            weights.append(w)
        a, w = products.close(), weights.close()
        if not len(w):
            raise UserError(f"task {task.name!r}: no training row lies in its space; nothing can be learnt")
        rate = total(len(a), a.__getitem__) / total(len(w), w.__getitem__)
        if task.kind == "binary" and rate in (0.0, 1.0):
            raise UserError(
                f"task {task.name!r}: every training label is {int(rate)}; both classes are needed. "
                "Is this the right column, and does the split leave both?"
            )
        rates[task.name] = rate
    return rates


def _unlabelled(schema: Schema, samples: Samples, scratch: Scratch) -> list[str]:
    """A sentence for each task of whose space some rows have no label, and for each number above 0 outside its space.

    The latter may be right (a time watched, within what counts as watched long; a delay, within what has come by now), so
    it is told, and not refused as the label 1 of a binary task is there.
    """
    notes, names = [], [t.name for t in schema.tasks]
    for k, task in enumerate(schema.tasks):
        space, missing, beyond, first = 0, 0, 0, ""
        for at in scratch.pieces(samples.rows):
            inside = np.ones(len(samples.labels[at]), dtype=bool)
            if task.within is not None:
                parent = names.index(task.within)
                inside = (samples.labels[at, parent] == 1) & (samples.weights[at, parent] != 0)
                number = samples.labels[at, k]
                away = np.flatnonzero((samples.weights[at, parent] != 0) & ~inside & (number > 0))
                if len(away) and not beyond:
                    first = f"row {(at.start or 0) + int(away[0]):,}, {float(number[away[0]]):g}"
                beyond += len(away)
            space += int(inside.sum())
            missing += int((inside & np.isnan(samples.labels[at, k])).sum())
        if beyond:
            notes.append(
                f"{beyond:,} rows with {task.within} = 0 have a label {task.column or task.name!r} above 0 (the first: "
                f"{first}): {task.name!r} is within {task.within!r}, so for it they weigh 0, in training and in metrics"
            )
        if missing:
            where = f" with {task.within} = 1" if task.within is not None else ""
            notes.append(
                f"{missing:,} of {space:,} rows{where} have no label {task.column or task.name!r} (null or NaN): for the task "
                f"{task.name!r} they weigh 0, in training and in metrics"
            )
    return notes


def _nothing_known(schema: Schema, counts: Mapping[str, Array]) -> list[str]:
    """A sentence for each vocabulary that keeps no value, though there are some. counts: by table, of each symbol."""
    encoded = [f for f in schema.features if isinstance(f, Categorical | MultiValued)]
    least = {str(table_of(f)): f.encoding.min_count for f in encoded if isinstance(f.encoding, Vocabulary)}
    return [
        f"no value of {table!r} occurs {most:,} times in training (its min_count): all {counts[table][OOV]:,} are out of "
        "vocabulary"
        for table, most in least.items()
        if table in counts and counts[table][OOV] > 0 == counts[table][FIRST:].sum()
    ]


def _size(parts: Array, code: int, requests: Requests, scratch: Scratch) -> list[int]:
    """Requests and rows of a part."""
    found, rows = 0, 0
    for at in scratch.pieces(len(parts)):
        here = parts[at] == code
        found, rows = found + int(here.sum()), rows + int(requests.sizes(at)[here].sum())
    return [found, rows]


# ------------------------------------------------------------------------------------------------ files


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
