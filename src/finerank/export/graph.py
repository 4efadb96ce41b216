"""A model as a graph of plain tensors: the inputs of `runtime.inputs` in; logits [N, H] and attention out.

    outputs  logits [N, H] · per history h attended: h.attention [P] (`Representation.attends`)

R requests · N candidates · T events · P (candidate, event) pairs · H heads. Inputs that a graph does not use are dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from finerank.data.batch import Batch, Jagged, Pairs, TensorBlock, TensorLists, pair_up
from finerank.models.composition import Model
from finerank.runtime.blocks import Block
from finerank.runtime.inputs import Input, inputs_of, named_arrays
from finerank.runtime.noise import SIDES, Noise
from finerank.schema import Columns, FittedSchema


def graph_inputs(fitted: FittedSchema, noise: Noise | None = None) -> tuple[Input, ...]:
    """All inputs that a graph over this schema may have (`runtime.inputs`)."""
    return inputs_of(fitted.request, fitted.candidate, fitted.histories, noise)


def flatten(batch: Batch, fitted: FittedSchema) -> dict[str, Tensor]:
    """The inputs of a graph from a batch, by name, in the declared order."""
    found = named_arrays("request", batch.request) | named_arrays("candidate", batch.candidate)
    found["request_of"] = batch.request_of
    for name in fitted.histories:
        history = batch.histories[name]
        found |= named_arrays(name, history.events)
        found[f"{name}.segments"], found[f"{name}.positions"] = history.segments, history.positions
        found[f"{name}.ages"], found[f"{name}.lengths"] = history.ages, history.lengths
        pairs = batch.pairs.get(name, Pairs(torch.empty(0, dtype=torch.int64), None))
        found[f"{name}.pair_candidate"] = pairs.candidate
        found[f"{name}.pair_event"] = pairs.events()
    ordered = {i.name: found[i.name] for i in graph_inputs(fitted)}
    return ordered | {f"noise.{side}": drawn for side, drawn in batch.noise.items() if drawn.shape[1]}


def example_batch(
    fitted: FittedSchema,
    candidates: Sequence[int] = (2, 3, 2),
    events: Sequence[int] = (2, 1, 3),
    seed: int = 0,
    noise: Noise | None = None,
) -> Batch:
    """A made-up batch, for exporters to follow: by default with several of everything.

    candidates, events  of each request; histories are cut to their length
    Every id lies in its table, every list has entries, and there are pairs for every history, whether or not a model
    reads them.
    """
    draw = np.random.default_rng(seed)
    request_of = torch.repeat_interleave(torch.tensor(candidates))
    rows, requests = len(request_of), len(candidates)

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
        lengths = torch.tensor(events).clamp(max=fitted.schema.history(name).max_length)
        segments = torch.repeat_interleave(lengths)
        positions = torch.arange(len(segments)) - (lengths.cumsum(0) - lengths)[segments]
        ages = torch.from_numpy(draw.integers(0, 10**13, len(segments)))  # up to 116 days
        histories[name] = Jagged(block(columns, len(segments)), segments, positions, lengths, ages)
        pairs[name] = pair_up(request_of, lengths)
    widths = {} if noise is None else noise.widths()
    drawn: dict[str, Tensor] = {
        side: numbers(requests if side == "request" else rows, width) for side, width in widths.items()
    }
    tasks = len(fitted.schema.tasks)
    return Batch(
        request=block(fitted.request, requests),
        candidate=block(fitted.candidate, rows),
        request_of=request_of,
        histories=histories,
        labels=torch.zeros(rows, tasks),
        weights=torch.ones(rows, tasks),
        pairs=pairs,
        noise=drawn,
        rows_in_step=rows,
    )


class Graph(nn.Module):
    """What is exported: tensors in the declared order in, (logits, attention ...) out. Puts the model into eval mode."""

    def __init__(self, model: Model, fitted: FittedSchema) -> None:
        super().__init__()
        self.model, self.fitted = model.eval().served(), fitted
        self.names = [i.name for i in graph_inputs(fitted, model.needs.noise)]

    @staticmethod
    def outputs_of(model: Model) -> list[str]:
        """Names of the outputs."""
        return ["logits", *(f"{name}.attention" for name in sorted(model.attends))]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """See the module's docstring."""
        given = dict(zip(self.names, tensors, strict=True))
        batch = self._batch(given)
        out = self.model(batch)
        return (out.logits, *(out.attention[name] for name in sorted(self.model.attends)))

    def _batch(self, given: Mapping[str, Tensor]) -> Batch:
        request_of = given["request_of"]
        histories, pairs = {}, {}
        fitted = self.fitted
        for name, columns in fitted.histories.items():
            lengths, segments = given[f"{name}.lengths"], given[f"{name}.segments"]
            events = self._block(name, columns, given, segments)
            histories[name] = Jagged(events, segments, given[f"{name}.positions"], lengths, given[f"{name}.ages"])
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
            noise={side: given[f"noise.{side}"] for side in SIDES if f"noise.{side}" in given},
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
    noise = model.needs.noise
    declared = graph_inputs(fitted, noise)
    tensors = tuple(flatten(example_batch(fitted, noise=noise), fitted).values())
    dynamic = tuple(
        {i: torch.export.Dim.DYNAMIC for i, axis in enumerate(d.axes) if isinstance(axis, str)} for d in declared
    )
    with torch.no_grad():
        return torch.export.export(graph, tensors, dynamic_shapes=(dynamic,), strict=False)
