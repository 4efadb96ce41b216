"""A batch: requests x candidates, with jagged histories stored once per request.

R requests · N candidates (rows, in the order of their requests) · T past events of all requests together
P (candidate, event) pairs of the same request · K tasks
Every tensor is named and in a fixed, declared order (`FittedSchema`); `Batch.to` moves all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from finerank.runtime.blocks import Block, Lists

TensorBlock: TypeAlias = Block[Tensor]
TensorLists: TypeAlias = Lists[Tensor]


@dataclass(frozen=True)
class Jagged:
    """The past events of all requests, request after request, oldest first within each.

    events    columns of the T events (ids [T, F], numbers [T, C], nested lists)
    segments  int64 [T]: the request of each event, ascending
    positions int64 [T]: 0 for the oldest event of each request
    lengths   int64 [R]
    ages      int64 [T]: row time minus event time in microseconds, taken before any float
    """

    events: TensorBlock
    segments: Tensor
    positions: Tensor
    lengths: Tensor
    ages: Tensor

    @property
    def offsets(self) -> Tensor:
        """int64 [R + 1]: events of request r are offsets[r]:offsets[r + 1]."""
        return torch.cat([self.lengths.new_zeros(1), self.lengths.cumsum(0)])

    def to(self, device: torch.device) -> Jagged:
        """The same on another device."""
        return Jagged(
            self.events.map(lambda t: t.to(device)),
            self.segments.to(device),
            self.positions.to(device),
            self.lengths.to(device),
            self.ages.to(device),
        )


@dataclass(frozen=True)
class Pairs:
    """Every (candidate, event) pair within its request, candidate after candidate, events oldest first.

    candidate  int64 [P], ascending
    event      int64 [P]; None when each request has one candidate, so that pair p is simply event p
    first, count   int64 [N]: candidate n meets the events [first, first + count); None in an exported graph
    """

    candidate: Tensor
    event: Tensor | None
    first: Tensor | None = None
    count: Tensor | None = None

    def to(self, device: torch.device) -> Pairs:
        """The same on another device."""
        moved = (None if t is None else t.to(device) for t in (self.event, self.first, self.count))
        return Pairs(self.candidate.to(device), *moved)

    def events(self) -> Tensor:
        """int64 [P]: the event of every pair, written out where it is the pair's own number."""
        if self.event is not None:
            return self.event
        return torch.arange(self.candidate.shape[0], device=self.candidate.device)


@dataclass(frozen=True)
class Drawn:
    """Items drawn for each request by their share of the events that it knows (`data.drawing`).

    ids      int64 [R, M]: rows of the item's table; below FIRST: no item
    log_q    float32 [R, M]: log of the share
    true     float32: the same for what is to be told apart from them, [N] candidates or [T] events
    """

    ids: Tensor
    log_q: Tensor
    true: Tensor

    def to(self, device: torch.device) -> Drawn:
        """The same on another device."""
        return Drawn(self.ids.to(device), self.log_q.to(device), self.true.to(device))


@dataclass(frozen=True)
class Batch:
    """What a model sees.

    request, candidate   blocks of R and N rows
    request_of           int64 [N]: the request of each candidate, ascending
    histories            by name
    labels, weights      float32 [N, K]; weight 0 means outside the task's space (its label may then be NaN)
    pairs                by history name, where the model `needs` them
    negatives            by history name, where the model `needs` them: a block of T events, entry t a sampled stand-in
                         for the event that truly came at position t
    masked               by history name, where the model `needs` them: bool [T], the events that are hidden from it
    drawn                by history name, where the model `needs` them: items drawn for each request
    example_age          float32 [R], where the model `needs` it, in training: days from the request to the newest training row
    train_only           candidate-level columns that never reach a served graph
    noise                "request" [R, ..], "candidate" [N, ..], where the model `needs` it, in evaluation (`runtime.noise`)
    requests, rows       int64 [R], [N]: their index in the data set
    rows_in_step         N of the whole optimiser step, where it is more than this batch's: a request was cut into chunks
    """

    request: TensorBlock
    candidate: TensorBlock
    request_of: Tensor
    histories: Mapping[str, Jagged]
    labels: Tensor
    weights: Tensor
    pairs: Mapping[str, Pairs] = field(default_factory=dict)
    negatives: Mapping[str, TensorBlock] = field(default_factory=dict)
    masked: Mapping[str, Tensor] = field(default_factory=dict)
    drawn: Mapping[str, Drawn] = field(default_factory=dict)
    example_age: Tensor | None = None
    train_only: TensorBlock | None = None
    noise: Mapping[str, Tensor] = field(default_factory=dict)
    requests: Tensor | None = None
    rows: Tensor | None = None
    rows_in_step: int = 0

    # sizes as shapes: an exporter keeps them symbolic, which `len` would not

    @property
    def R(self) -> int:
        """Requests."""
        return self.request.ids.shape[0]

    @property
    def N(self) -> int:
        """Candidates."""
        return self.request_of.shape[0]

    @property
    def share(self) -> float:
        """The part of the optimiser step's rows that are in this batch: 1 unless a request was cut into chunks."""
        return self.N / self.step_rows

    @property
    def step_rows(self) -> int:
        """Rows of the optimiser step that this batch is (a part of), 1 or more: what sums over rows are divided by."""
        return max(self.rows_in_step or self.N, 1)

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        if self.request_of.device == device:
            return self

        def move(t: Tensor) -> Tensor:
            return t.to(device, non_blocking=True)

        return replace(
            self,
            request=self.request.map(move),
            candidate=self.candidate.map(move),
            request_of=move(self.request_of),
            histories={name: h.to(device) for name, h in self.histories.items()},
            labels=move(self.labels),
            weights=move(self.weights),
            pairs={name: p.to(device) for name, p in self.pairs.items()},
            negatives={name: b.map(move) for name, b in self.negatives.items()},
            masked={name: move(m) for name, m in self.masked.items()},
            drawn={name: d.to(device) for name, d in self.drawn.items()},
            example_age=None if self.example_age is None else move(self.example_age),
            train_only=None if self.train_only is None else self.train_only.map(move),
            noise={name: move(t) for name, t in self.noise.items()},
        )


def pair_up(request_of: Tensor, lengths: Tensor) -> Pairs:
    """All (candidate, event) pairs within each request, on the CPU.

    request_of  int64 [N], ascending; lengths: int64 [R] events of each request
    """
    of, events = request_of.numpy(), lengths.numpy()  # numpy repeats faster than torch does
    first_event = np.cumsum(events) - events  # [R]
    if len(of) == len(events) and bool((of == np.arange(len(of))).all()):
        return Pairs(torch.from_numpy(np.repeat(of, events)), None, torch.from_numpy(first_event), lengths)
    of_candidate = events[of]  # [N] pairs of each candidate
    candidate = np.repeat(np.arange(len(of)), of_candidate)
    first_event = first_event[of]
    first_pair = np.cumsum(of_candidate) - of_candidate  # [N]
    event = np.arange(len(candidate)) + np.repeat(first_event - first_pair, of_candidate)
    found = (torch.from_numpy(array) for array in (candidate, event, first_event, of_candidate))
    return Pairs(*found)
