"""A model as a graph of plain tensors: fixed names, fixed order, no structures, segment ids and never offsets.

    inputs   request.ids [R, F_u] · request.numbers [R, C_u] · candidate.ids [N, F_i] · candidate.numbers [N, C_i]
             request_of [N] · per history h: h.ids [T, F] · h.numbers [T, C] · h.segments [T] · h.positions [T] ·
             h.lengths [R] · h.pair_candidate [P] · h.pair_event [P]; per list column c of a block b: b.c.index [n] ·
             b.c.ids [M, 1 or 2] · b.c.weights [M] · b.c.segments [M] · b.c.lengths [L]
    outputs  logits [N, H] · per attended history h: h.attention [P]

Train-only columns have no input, so that no graph can read them. Inputs that a graph does not use are dropped from it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from finerank.data.batch import Batch, Jagged, Pairs, TensorBlock, TensorLists, pair_up
from finerank.errors import UserError
from finerank.models.composition import Model
from finerank.runtime.blocks import Block
from finerank.schema import Columns, FittedSchema


@dataclass(frozen=True)
class Input:
    """One input: its name, its dtype, and a letter or a number for each axis (letters vary from call to call)."""

    name: str
    dtype: torch.dtype
    axes: tuple[str | int, ...]


def inputs_of(fitted: FittedSchema) -> tuple[Input, ...]:
    """All inputs that a graph over this schema may have, in the declared order. Columns of width 0 have none.

    Raises UserError where the schema's names would give two inputs one name.
    """
    out: list[Input] = []

    def block(name: str, columns: Columns, axis: str) -> None:
        if columns.ids:
            out.append(Input(f"{name}.ids", torch.int64, (axis, len(columns.ids))))
        if columns.numbers:
            out.append(Input(f"{name}.numbers", torch.float32, (axis, len(columns.numbers))))
        for c in columns.lists:
            entries, lists = f"M {name}.{c.name}", f"L {name}.{c.name}"
            out.append(Input(f"{name}.{c.name}.index", torch.int64, (axis,)))
            out.append(Input(f"{name}.{c.name}.ids", torch.int64, (entries, 2 if c.ranks else 1)))
            if c.weighted:
                out.append(Input(f"{name}.{c.name}.weights", torch.float32, (entries,)))
            out.append(Input(f"{name}.{c.name}.segments", torch.int64, (entries,)))
            out.append(Input(f"{name}.{c.name}.lengths", torch.int64, (lists,)))

    block("request", fitted.request, "R")
    block("candidate", fitted.candidate, "N")
    out.append(Input("request_of", torch.int64, ("N",)))
    for name, columns in fitted.histories.items():
        block(name, columns, f"T {name}")
        for part in ("segments", "positions"):
            out.append(Input(f"{name}.{part}", torch.int64, (f"T {name}",)))
        out.append(Input(f"{name}.lengths", torch.int64, ("R",)))
        for part in ("pair_candidate", "pair_event"):
            out.append(Input(f"{name}.{part}", torch.int64, (f"P {name}",)))
    twice = [name for name, count in Counter(i.name for i in out).items() if count > 1]
    if twice:
        raise UserError(
            f"export: two inputs of the graph would be named {twice[0]!r}; give the history it begins with another name "
            "('request' and 'candidate' are taken)"
        )
    return tuple(out)


def flatten(batch: Batch, fitted: FittedSchema) -> dict[str, Tensor]:
    """The inputs of a graph from a batch, by name, in the declared order."""
    found: dict[str, Tensor] = {"request_of": batch.request_of}

    def block(name: str, columns: Columns, values: TensorBlock) -> None:
        found[f"{name}.ids"], found[f"{name}.numbers"] = values.ids, values.numbers
        for c in columns.lists:
            lists = values.lists[c.name]
            found[f"{name}.{c.name}.index"], found[f"{name}.{c.name}.ids"] = lists.index, lists.ids
            if lists.weights is not None:
                found[f"{name}.{c.name}.weights"] = lists.weights
            found[f"{name}.{c.name}.segments"], found[f"{name}.{c.name}.lengths"] = lists.segments, lists.lengths

    block("request", fitted.request, batch.request)
    block("candidate", fitted.candidate, batch.candidate)
    for name, columns in fitted.histories.items():
        history = batch.histories[name]
        block(name, columns, history.events)
        found[f"{name}.segments"], found[f"{name}.positions"] = history.segments, history.positions
        found[f"{name}.lengths"] = history.lengths
        pairs = batch.pairs.get(name, Pairs(torch.empty(0, dtype=torch.int64), None))
        found[f"{name}.pair_candidate"] = pairs.candidate
        found[f"{name}.pair_event"] = torch.arange(len(pairs.candidate)) if pairs.event is None else pairs.event
    return {i.name: found[i.name] for i in inputs_of(fitted)}


def example_batch(fitted: FittedSchema) -> Batch:
    """A made-up batch with several of everything, for exporters to follow: 3 requests of 2, 3 and 2 candidates.

    Every id lies in its table, every history is within its length, every list has entries, and there are pairs for every
    history, whether or not a model reads them.
    """
    draw = np.random.default_rng(0)
    request_of = torch.tensor([0, 0, 1, 1, 1, 2, 2])
    rows, requests = len(request_of), 3

    def ids(count: int, tables: list[str]) -> Tensor:
        columns = [draw.integers(0, fitted.tables[table].rows, count) for table in tables]
        return torch.from_numpy(np.array(columns, dtype=np.int64).reshape(len(tables), count).T.copy())

    def numbers(*shape: int) -> Tensor:
        return torch.from_numpy(draw.normal(size=shape).astype(np.float32))

    def block(columns: Columns, count: int) -> TensorBlock:
        lists = {}
        for c in columns.lists:  # two distinct lists, of two entries and of three
            entries = ids(5, [c.table, c.ranks] if c.ranks else [c.table])
            weights = numbers(5) if c.weighted else None
            segments, lengths = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([2, 3])
            lists[c.name] = TensorLists(torch.arange(count) % 2, entries, weights, segments, lengths)
        return Block(ids(count, [t for _, t in columns.ids]), numbers(count, len(columns.numbers)), lists)

    histories, pairs = {}, {}
    for name, columns in fitted.histories.items():
        lengths = torch.tensor([2, 1, 3]).clamp(max=fitted.schema.history(name).max_length)
        segments = torch.repeat_interleave(lengths)
        events = len(segments)
        positions = torch.arange(events) - (lengths.cumsum(0) - lengths)[segments]
        ages = torch.zeros(events, dtype=torch.int64)
        histories[name] = Jagged(block(columns, events), segments, positions, lengths, ages)
        pairs[name] = pair_up(request_of, lengths)
    tasks = len(fitted.schema.tasks)
    return Batch(
        request=block(fitted.request, requests),
        candidate=block(fitted.candidate, rows),
        request_of=request_of,
        histories=histories,
        labels=torch.zeros(rows, tasks),
        weights=torch.ones(rows, tasks),
        pairs=pairs,
        rows_in_step=rows,
    )


class Graph(nn.Module):
    """The module that is exported: tensors in the declared order in, (logits, attention weights ...) out."""

    def __init__(self, model: Model, fitted: FittedSchema) -> None:
        super().__init__()
        self.model, self.fitted = model.eval(), fitted
        self.names = [i.name for i in inputs_of(fitted)]

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs."""
        return ["logits", *(f"{name}.attention" for name in sorted(self.model.needs.pairs))]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """See the module's docstring."""
        given = dict(zip(self.names, tensors, strict=True))
        batch = self._batch(given)
        out = self.model(batch)
        return (out.logits, *(out.attention[name] for name in sorted(self.model.needs.pairs)))

    def _batch(self, given: Mapping[str, Tensor]) -> Batch:
        request_of = given["request_of"]
        histories, pairs = {}, {}
        fitted = self.fitted
        for name, columns in fitted.histories.items():
            lengths, segments = given[f"{name}.lengths"], given[f"{name}.segments"]
            events = self._block(name, columns, given, segments)
            histories[name] = Jagged(events, segments, given[f"{name}.positions"], lengths, segments)
            pairs[name] = Pairs(given[f"{name}.pair_candidate"], given[f"{name}.pair_event"])
        rows = next(iter(histories.values())).lengths if histories else request_of
        nothing = request_of.new_zeros((request_of.shape[0], 0), dtype=torch.float32)
        return Batch(
            request=self._block("request", fitted.request, given, rows),
            candidate=self._block("candidate", fitted.candidate, given, request_of),
            request_of=request_of,
            histories=histories,
            labels=nothing,
            weights=nothing,
            pairs=pairs,
        )

    def _block(self, name: str, columns: Columns, given: Mapping[str, Tensor], like: Tensor) -> TensorBlock:
        """A block; `like`: a tensor with as many rows, for the columns of width 0."""
        for key in (*(f"{name}.{c.name}.index" for c in columns.lists), f"{name}.ids", f"{name}.numbers"):
            like = given.get(key, like)
        count = like.shape[0]
        ids = given.get(f"{name}.ids", like.new_zeros((count, 0), dtype=torch.int64))
        numbers = given.get(f"{name}.numbers", like.new_zeros((count, 0), dtype=torch.float32))
        lists = {}
        for c in columns.lists:
            at = f"{name}.{c.name}"
            lists[c.name] = TensorLists(
                given[f"{at}.index"],
                given[f"{at}.ids"],
                given.get(f"{at}.weights"),
                given[f"{at}.segments"],
                given[f"{at}.lengths"],
            )
        return Block(ids, numbers, lists)


def exported(model: Model, fitted: FittedSchema) -> torch.export.ExportedProgram:
    """torch.export of a model in evaluation mode; every lettered axis is dynamic.

    It follows `example_batch`, which has two or more of everything: an axis of size 0 or 1 would be taken for a constant.
    """
    graph = Graph(model, fitted)
    declared = inputs_of(fitted)
    tensors = tuple(flatten(example_batch(fitted), fitted).values())
    dynamic = tuple(
        {i: torch.export.Dim.DYNAMIC for i, axis in enumerate(d.axes) if isinstance(axis, str)} for d in declared
    )
    with torch.no_grad():
        return torch.export.export(graph, tensors, dynamic_shapes=(dynamic,), strict=False)
