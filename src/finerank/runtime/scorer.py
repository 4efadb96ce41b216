"""Raw values in, scores out: a bundle opened for serving, with numpy and onnxruntime alone.

R requests · N candidates · T past events · P (candidate, event) pairs · H heads
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from finerank.errors import UserError, nearest
from finerank.runtime.blocks import Block, Lists
from finerank.runtime.encoder import Encoder, age_ids, list_items
from finerank.runtime.fields import age_table, fields_of
from finerank.runtime.history import concat_blocks, take_block
from finerank.runtime.inputs import history_inputs, history_of, inputs_of, named_arrays
from finerank.runtime.link import predicted
from finerank.runtime.manifest import ENCODER, MODEL, Manifest, rows_file, schema_hash, verified
from finerank.runtime.noise import SIDES, draws, request_key
from finerank.runtime.profiles import Past
from finerank.runtime.rows import RowMap
from finerank.runtime.values import canonical
from finerank.schema import Columns

Array: TypeAlias = NDArray[Any]
LISTS = (list, tuple, np.ndarray)


@dataclass(frozen=True)
class Query:
    """One request: its values by source column, its candidates' values, and what it sees of each history.

    A column that a candidate lacks is taken from the request: in a log both are one row. A history that is not given
    is empty; one that is declared as list columns is read from the request.

    id  of the request, for models whose scores are draws: the same id gives the same draw. Offline it is the request's
        position in the log (the recipe's keys.sequence)
    """

    request: Mapping[str, object]
    candidates: Sequence[Mapping[str, object]]
    histories: Mapping[str, Past] = field(default_factory=dict)
    id: int | str | None = None


@dataclass(frozen=True)
class Scores:
    """By head: logits and predictions (the link applied: a probability, a number), float32 [N]; by history (or
    `history.field`, where its attributes are weighed apart): attention, float32 [N, T], T being the events that the
    request saw."""

    logits: Mapping[str, Array]
    predictions: Mapping[str, Array]
    attention: Mapping[str, Array]


class Scorer:
    """Scores requests; open one with `Scorer.load`. Safe to use from several threads."""

    def __init__(
        self, manifest: Manifest, encoder: Encoder, row_maps: Mapping[str, RowMap], session: ort.InferenceSession
    ) -> None:
        self.manifest, self.encoder, self.heads = manifest, encoder, manifest.heads
        self._row_maps, self._session = row_maps, session
        self._columns = _columns(encoder)
        self._candidate_columns = {c for f in fields_of(encoder.schema, "candidate") for c in f.columns}
        kept = {i.name for i in manifest.inputs}
        self._histories = [
            h.name
            for h in encoder.schema.histories
            if kept & {i.name for i in history_inputs(h.name, self._columns[h.name])}
        ]

    @staticmethod
    def load(folder: Path | str, threads: int = 1) -> Scorer:
        """Open a bundle: every file is read and compared with its hash.

        threads  of one call; 1 is right for a server that answers several requests at a time
        Raises UserError naming the file that is missing, truncated or altered.
        """
        folder = Path(folder)
        manifest = verified(folder)
        encoder = Encoder.load(folder / ENCODER)
        columns = _columns(encoder)
        histories = {h.name: columns[h.name] for h in encoder.schema.histories}
        possible = inputs_of(columns["request"], columns["candidate"], histories, manifest.noise)
        if schema_hash(encoder.schema) != manifest.schema_hash or not set(manifest.inputs) <= set(possible):
            raise UserError(f"{folder}: the graph and the encoder are not of one schema; export the run again")
        row_maps = {}
        for i, table in enumerate(manifest.growing):
            with np.load(folder / rows_file(i), allow_pickle=False) as state:
                row_maps[table] = RowMap.from_state(dict(state))
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors
        session = ort.InferenceSession(folder / MODEL, options, providers=["CPUExecutionProvider"])
        return Scorer(manifest, encoder, row_maps, session)

    def score(
        self,
        request: Mapping[str, object],
        candidates: Sequence[Mapping[str, object]],
        histories: Mapping[str, Past] | None = None,
        id: int | str | None = None,
    ) -> Scores:
        """Scores of one request's candidates; arguments as in `Query`. Raises UserError for a value of a wrong type."""
        return self.score_many([Query(request, candidates, histories or {}, id)])[0]

    def score_many(self, queries: Sequence[Query]) -> list[Scores]:
        """Scores of several requests in one pass over the graph, in order."""
        declared = [h.name for h in self.encoder.schema.histories]
        if unknown := {name for q in queries for name in q.histories} - set(declared):
            name = min(unknown)
            raise UserError(f"histories: {name!r} is not declared; {nearest(name, declared)}")
        sizes = [len(q.candidates) for q in queries]
        pasts = {name: [self._past(name, q) for q in queries] for name in self._histories}
        if not sum(sizes):
            logits, attention = np.empty((0, len(self.heads)), np.float32), {}
        else:
            feed = self._feed(queries, sizes, pasts)
            found = self._session.run(list(self.manifest.outputs), {i.name: feed[i.name] for i in self.manifest.inputs})
            outputs = dict(zip(self.manifest.outputs, found, strict=True))
            logits = outputs.pop("logits")
            attention = {name.removesuffix(".attention"): weights for name, weights in outputs.items()}
        of_output = {name: history_of(name, declared) or name for name in attention}
        out = []
        row, pair = 0, dict.fromkeys(attention, 0)
        for r, size in enumerate(sizes):
            of_head = {h.name: logits[row : row + size, i] for i, h in enumerate(self.heads)}
            of_history = {}
            for name, weights in attention.items():
                events = len(pasts[of_output[name]][r].events)
                of_history[name] = weights[pair[name] : pair[name] + size * events].reshape(size, events)
                pair[name] += size * events
            row += size
            predictions = {h.name: predicted(h.link, of_head[h.name]) for h in self.heads}
            out.append(Scores(of_head, predictions, of_history))
        return out

    # ------------------------------------------------------------------------------------------------ inputs

    def _feed(self, queries: Sequence[Query], sizes: list[int], pasts: Mapping[str, list[Past]]) -> dict[str, Array]:
        """Every array that an input may name."""
        requests = [self.encoder.request(q.request) for q in queries]
        candidates = [self.encoder.candidates(self._completed(q)) for q in queries]
        blocks = {"request": self._rows("request", requests), "candidate": self._rows("candidate", candidates)}
        feed = {key: array for name, block in blocks.items() for key, array in named_arrays(name, block).items()}
        feed["request_of"] = np.repeat(np.arange(len(sizes)), sizes)
        feed |= self._noise(queries, blocks, feed["request_of"])
        first_row = np.cumsum([0, *sizes])
        for name, parts in pasts.items():
            feed |= named_arrays(name, self._rows(name, [p.events for p in parts]))
            lengths = [len(p.events) for p in parts]
            first = np.cumsum([0, *lengths])
            feed[f"{name}.segments"] = np.repeat(np.arange(len(parts)), lengths)
            feed[f"{name}.positions"] = np.concatenate([np.arange(n) for n in lengths])
            feed[f"{name}.ages"] = np.concatenate([p.ages for p in parts]).astype(np.int64, copy=False)
            feed[f"{name}.lengths"] = np.array(lengths, dtype=np.int64)
            each = list(zip(sizes, lengths, strict=True))
            of_candidate = [np.repeat(np.arange(n), t) + first_row[r] for r, (n, t) in enumerate(each)]
            of_event = [np.tile(np.arange(t), n) + first[r] for r, (n, t) in enumerate(each)]
            feed[f"{name}.pair_candidate"] = np.concatenate(of_candidate)
            feed[f"{name}.pair_event"] = np.concatenate(of_event)
        return feed

    def _rows(self, name: str, blocks: list[Block[Array]]) -> Block[Array]:
        block = blocks[0] if len(blocks) == 1 else concat_blocks(blocks)
        return to_rows(self._columns[name], block, self._row_maps)

    def _noise(self, queries: Sequence[Query], blocks: Mapping[str, Block[Array]], of: Array) -> dict[str, Array]:
        """The draw of each request, where scores are draws."""
        noise = self.manifest.noise
        if noise is None:
            return {}
        if any(q.id is None for q in queries):
            raise UserError(
                "this model's scores are draws, one per request: give the query an id (a number or a text); the same id "
                "gives the same scores"
            )
        keys = np.array([request_key(q.id) for q in queries if q.id is not None], dtype=np.uint64)
        of_rows = {"request": keys, "candidate": keys[of]}
        return {f"noise.{side}": draws(noise, side, self._columns[side], blocks[side], of_rows[side]) for side in SIDES}

    def _completed(self, query: Query) -> Sequence[Mapping[str, object]]:
        common = {c: v for c, v in query.request.items() if c in self._candidate_columns}
        return [{**common, **row} for row in query.candidates] if common else query.candidates

    def _past(self, name: str, query: Query) -> Past:
        """The history as the graph reads it: at most `max_length` events, the bucket of their age as the last id."""
        history = self.encoder.schema.history(name)
        past = query.histories.get(name)
        if past is None:
            rows = list_rows(self.encoder, name, query.request) if history.lists else []
            past = Past(self.encoder.events(name, rows), np.zeros(len(rows), dtype=np.int64))
        events, ages = past.events, past.ages
        if len(events) > history.max_length:
            recent = np.arange(len(events) - history.max_length, len(events))
            events, ages = take_block(events, recent), ages[recent]
        if age_table(name) in self.encoder.tables:
            ids = np.column_stack([events.ids, age_ids(self.encoder, name, ages)])
            events = Block(ids, events.numbers, events.lists)
        return Past(events, ages)


def list_rows(encoder: Encoder, history: str, request: Mapping[str, object]) -> list[dict[str, object]]:
    """The events of a history that the request brings as list columns, oldest first, as rows by event column.

    What is missing or empty, and where, means what it means in `data.lists`.
    """
    declared = encoder.schema.history(history)
    event_column: dict[str, str] = {}
    for f in fields_of(encoder.schema, history):
        event_column |= zip((f.feature.name, f"{f.feature.name}·weights"), f.columns, strict=False)
    found: list[list[object]] = []
    lists = declared.list_columns
    for at in lists.values():
        try:
            found.append(list_items(request.get(at), declared.separator))
        except UserError as error:
            raise UserError(f"history {history!r}: column {at!r}: {error}") from None
    length = max(map(len, found))
    for i, at in enumerate(lists.values()):
        if length == 1 and not found[i] and not isinstance(request.get(at), LISTS):
            found[i] = [None]
        if len(found[i]) != length:
            raise UserError(
                f"history {history!r}: column {at!r} has {len(found[i])} entries, the others up to {length}; "
                "give lists of one length"
            )
    columns, fields = [event_column[name] for name in lists], len(declared.lists)
    events = [
        dict(zip(columns, values, strict=True))
        for values in zip(*found, strict=True)
        if not all(_nothing(value, declared.padding) for value in values[:fields])
    ]
    return events[-declared.max_length :]


def _nothing(value: object, padding: str | int | None) -> bool:
    """Whether a value says nothing: null, NaN, empty text, an empty list, the padding."""
    if isinstance(value, LISTS):
        return len(value) == 0
    if value is None or value == "" or (isinstance(value, (float, np.floating)) and bool(np.isnan(value))):
        return True
    return padding is not None and canonical(value) == canonical(padding)


def to_rows(columns: Columns, block: Block[Array], row_maps: Mapping[str, RowMap]) -> Block[Array]:
    """A block with the symbols of growing tables replaced by their embedding rows; others are rows already."""
    if not row_maps:
        return block
    ids, lists = block.ids.copy(), dict(block.lists)
    for j, (_, table) in enumerate(columns.ids):
        if table in row_maps:
            ids[:, j] = row_maps[table].rows_of(ids[:, j])
    for c in columns.lists:
        if c.table in row_maps:
            old = lists[c.name]
            entries = old.ids.copy()
            entries[:, 0] = row_maps[c.table].rows_of(entries[:, 0])
            lists[c.name] = Lists(old.index, entries, old.weights, old.segments, old.lengths)
    return Block(ids, block.numbers, lists)


def _columns(encoder: Encoder) -> dict[str, Columns]:
    names = ["request", "candidate", *(h.name for h in encoder.schema.histories)]
    return {name: encoder.columns(name) for name in names}
