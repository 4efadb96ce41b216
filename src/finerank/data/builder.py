"""Builds batches from an encoded data set: vectorised gathers, no per-row Python, nothing of the user side repeated.

R requests · N candidates · T events · P pairs · K tasks
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from finerank.data.batch import Batch, Drawn, Jagged, TensorBlock, pair_up
from finerank.data.columns import take_block
from finerank.data.dataset import Dataset
from finerank.data.drawing import Drawing, Law
from finerank.data.events import EventTable, flatten
from finerank.data.masking import Masking, hidden
from finerank.data.order import Budget, Step, steps, windows
from finerank.runtime.blocks import Block
from finerank.runtime.encoder import age_ids
from finerank.runtime.hashing import mix, uniform
from finerank.runtime.noise import Noise, draws, request_keys
from finerank.runtime.rows import RowMap
from finerank.schema import DAY, PADDING, SECOND, Columns

PIECE = 16_384  # requests that are cut into steps at a time
REDRAWS = 8  # attempts at a negative that is not the true event


class Wanted(Protocol):
    """What a model asks for (`models.composition.Needs`)."""

    @property
    def pairs(self) -> frozenset[str]:
        """Histories whose (candidate, event) pairs it reads."""
        ...

    @property
    def negatives(self) -> frozenset[str]:
        """Histories for which it wants sampled events."""
        ...

    @property
    def noise(self) -> Noise | None:
        """Normals that its scores depend on."""
        ...

    @property
    def masked(self) -> Mapping[str, Masking]:
        """Histories of which it wants events hidden."""
        ...

    @property
    def drawn(self) -> Mapping[str, Drawing]:
        """Histories of whose items it wants some drawn for each request."""
        ...

    @property
    def example_age(self) -> bool:
        """Whether it wants to know how old a training example is."""
        ...


class BatchBuilder:
    """Batches of a data set for one model.

    needs     what to make beside the columns
    row_maps  symbol -> embedding row of growing tables, applied here; tables not named keep their symbols
    seed      of negatives, masks and draws, together with the epoch, the request and the position
    keep      bool [N]: rows of the data set that there are (None: all); a request without any is passed over
    """

    def __init__(
        self,
        dataset: Dataset,
        needs: Wanted,
        row_maps: Mapping[str, RowMap] | None = None,
        seed: int = 0,
        keep: np.ndarray | None = None,
    ) -> None:
        self.dataset, self.needs, self.seed, self.keep = dataset, needs, seed, keep
        self.first = dataset.first if keep is None else np.append(0, np.cumsum(keep))[dataset.first]
        self.laws: dict[str, Law] = {}  # of draws, by history; made when first asked for
        self.row_maps = {} if row_maps is None else row_maps  # not a copy: a resumed training replaces its maps

    def rows(self, requests: np.ndarray) -> int:
        """How many rows these requests have."""
        return sum(int((self.first[p + 1] - self.first[p]).sum()) for p in _pieces([requests]))

    def steps(self, requests: np.ndarray, budget: Budget, epoch: int = 0, shuffle: bool = True) -> Iterator[Step]:
        """The optimiser steps of one epoch over these requests, cut as they are asked for: nothing is held for each."""
        ahead, left = len(requests), np.empty(0, dtype=np.int64)
        for part in _pieces(windows(requests, self.seed, epoch) if shuffle else [requests]):
            ahead -= len(part)
            piece = np.concatenate([left, part])
            rows = self.first[piece + 1] - self.first[piece]
            if self.keep is not None:
                piece, rows = piece[rows > 0], rows[rows > 0]
            events = np.zeros(len(piece), dtype=np.int64)
            for name in self.needs.pairs:
                slices = self.dataset.slices[name]
                events += slices.end[piece] - slices.start[piece]
            found = steps(piece, rows, events, budget)
            if ahead:  # the last step may go on in the next piece
                left = found.pop().requests if found else piece
            yield from found

    def batches(self, step: Step, epoch: int | None = 0) -> Iterator[Batch]:
        """The batches of one step: one, or as many as an oversized request was cut into. epoch: as in `batch`."""
        if not step.chunks:
            yield self.batch(step.requests, epoch)
        for low, high in step.chunks:
            yield self.batch(step.requests, epoch, (low, high), step.rows)

    def in_order(self, requests: np.ndarray, rows: int) -> Iterator[Batch]:
        """Batches of about so many rows as evaluation reads them: in the requests' order, with no part drawn by epoch."""
        for step in self.steps(requests, Budget(rows=rows), shuffle=False):
            yield from self.batches(step, epoch=None)

    def batch(
        self,
        requests: np.ndarray,
        epoch: int | None = 0,
        chunk: tuple[int, int] | None = None,
        rows_in_step: int | None = None,
    ) -> Batch:
        """The batch of these requests.

        epoch  whose negatives, masks and draws to make; None: none, as in evaluation
        chunk  only this row range of the (single) request
        """
        data = self.dataset
        rows = data.rows_of(requests)
        lengths = self.first[requests + 1] - self.first[requests]
        if self.keep is not None:
            rows = rows[self.keep[rows]]
        if chunk is not None:
            rows = rows[chunk[0] : chunk[1]]
            lengths = np.array([len(rows)])
        request_of = torch.from_numpy(np.repeat(np.arange(len(requests)), lengths))
        histories, negatives, masked, drawn = {}, {}, {}, {}
        for name in data.fitted.histories:
            histories[name], index = self._history(name, requests)
            if epoch is None:
                continue
            if name in self.needs.negatives:
                negatives[name] = self._negatives(name, requests, epoch, histories[name], index)
            if name in self.needs.masked:
                most = data.fitted.schema.history(name).max_length
                masked[name] = hidden(self.needs.masked[name], requests, histories[name], most, self.seed, epoch)
            if name in self.needs.drawn:
                drawn[name] = self._drawn(name, requests, epoch, histories[name], index, rows, request_of)
        request = self._block(data.fitted.request, take_block(data.request, requests))
        candidate = self._block(data.fitted.candidate, take_block(data.candidate, rows))
        return Batch(
            request=request,
            candidate=candidate,
            request_of=request_of,
            histories=histories,
            labels=torch.from_numpy(data.labels[rows]),
            weights=torch.from_numpy(data.weights[rows]),
            pairs={name: pair_up(request_of, histories[name].lengths) for name in sorted(self.needs.pairs)},
            negatives=negatives,
            masked=masked,
            drawn=drawn,
            example_age=self._example_age(requests) if self.needs.example_age and epoch is not None else None,
            train_only=self._block(data.fitted.train_only, take_block(data.train_only, rows)),
            noise={} if epoch is not None else self._noise(request, candidate, request_of.numpy(), requests),
            requests=torch.from_numpy(requests),
            rows=torch.from_numpy(rows),
            rows_in_step=len(rows) if rows_in_step is None else rows_in_step,
        )

    def _noise(
        self, request: TensorBlock, candidate: TensorBlock, of: np.ndarray, requests: np.ndarray
    ) -> dict[str, Tensor]:
        """The noise that scores of these requests depend on; they go by their position in the log."""
        wanted, fitted = self.needs.noise, self.dataset.fitted
        if wanted is None:
            return {}
        keys = request_keys(self.dataset.sequence[requests])
        drawn = {
            "request": draws(wanted, "request", fitted.request, request.map(Tensor.numpy), keys),
            "candidate": draws(wanted, "candidate", fitted.candidate, candidate.map(Tensor.numpy), keys[of]),
        }
        return {side: torch.from_numpy(noise) for side, noise in drawn.items()}

    def history(self, name: str, requests: np.ndarray) -> Jagged:
        """One history of these requests, in their order."""
        return self._history(name, requests)[0]

    def _block(self, columns: Columns, block: Block[np.ndarray]) -> TensorBlock:
        return to_tensors(columns, block, self.row_maps)

    def _history(self, name: str, requests: np.ndarray) -> tuple[Jagged, np.ndarray]:
        """The histories of these requests and the table's index of each event."""
        data = self.dataset
        slices, table, columns = data.slices[name], data.events[name], data.fitted.histories[name]
        index, segments, lengths = flatten(slices.start[requests], slices.end[requests])
        block = take_block(table.block, index)
        if isinstance(table, EventTable):
            ages = data.time[requests][segments] - table.time.take(index)
        else:
            ages = np.zeros(len(index), dtype=np.int64)  # list columns do not say when
        if has_age(columns):
            block = with_age(block, age_ids(data.encoder, name, ages))
        positions = np.arange(len(index)) - (np.cumsum(lengths) - lengths)[segments]
        jagged = Jagged(
            self._block(columns, block),
            torch.from_numpy(segments),
            torch.from_numpy(positions),
            torch.from_numpy(lengths),
            torch.from_numpy(ages),
        )
        return jagged, index

    def _drawn(
        self,
        name: str,
        requests: np.ndarray,
        epoch: int,
        history: Jagged,
        index: np.ndarray,
        rows: np.ndarray,
        request_of: Tensor,
    ) -> Drawn:
        """Items for each request, and the shares of its candidates' or events' own items."""
        data, need = self.dataset, self.needs.drawn[name]
        table, columns = data.events[name], data.fitted.histories[name]
        at = [column for column, _ in columns.ids].index(need.item)
        item_table = columns.ids[at][1]
        if name not in self.laws:
            self.laws[name] = Law(table.block.ids[:, at], table.by_rank)
        law, known = self.laws[name], data.slices[name].known[requests]
        ids, log_q = law.draw(need.count, known, mix(self.seed, epoch, 0xD2A), requests)
        if need.of == "candidates":
            own = [table_ for _, table_ in data.fitted.candidate.ids].index(item_table)
            true = law.log_share(data.candidate.ids[rows, own], known[request_of.numpy()])
        else:
            true = law.log_share(table.block.ids[index, at], known[history.segments.numpy()])
        if item_table in self.row_maps:
            ids = self.row_maps[item_table].rows_of(ids)
        return Drawn(_tensor(ids), _tensor(log_q), _tensor(true))

    @cached_property
    def _newest(self) -> int:
        """The time of the newest training request, for which all of them are looked at."""
        return int(self.dataset.time[self.dataset.requests_of("train")].max())

    def _example_age(self, requests: np.ndarray) -> Tensor:
        """float32 [R]: days from each request to the newest training request; 0 for what is newer."""
        microseconds = np.maximum(self._newest - self.dataset.time[requests], 0)
        return _tensor((microseconds / (DAY * SECOND)).astype(np.float32))

    def _negatives(
        self, name: str, requests: np.ndarray, epoch: int, history: Jagged, index: np.ndarray
    ) -> TensorBlock:
        """An event known to the row, drawn as often as it occurs in the log, whose item is not the true one.

        The first field of a history is its item. A function of (seed, epoch, request, position): what comes later in
        the log changes nothing. Where `REDRAWS` draws in a row gave the true item (it may be all that is known), it stands.
        """
        data = self.dataset
        table, columns = data.events[name], data.fitted.histories[name]
        request = requests[history.segments.numpy()]
        known = data.slices[name].known[request]
        counter = request * data.fitted.schema.history(name).max_length + history.positions.numpy()
        items, true = table.block.ids[:, 0], table.block.ids[index, 0]
        drawn = np.empty(len(index), dtype=np.int64)
        todo = np.arange(len(index))
        for attempt in range(REDRAWS):
            u = uniform(mix(self.seed, epoch, attempt, 0x4E6), counter[todo])
            drawn[todo] = table.at_rank((u * known[todo]).astype(np.int64))
            todo = todo[items[drawn[todo]] == true[todo]]
            if not len(todo):
                break
        block, _ = table.gather(drawn)
        if has_age(columns):
            block = with_age(block, np.full(len(drawn), PADDING, dtype=np.int64))
        # nothing comes before a first event, so nothing predicts it
        block.ids[history.positions.numpy() == 0] = PADDING
        return self._block(columns, block)


def _pieces(arrays: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    for array in arrays:
        yield from (array[at : at + PIECE] for at in range(0, len(array), PIECE))


def has_age(columns: Columns) -> bool:
    """Whether a history's last id column is the age of its events."""
    return bool(columns.ids) and columns.ids[-1][0] == "age"


def with_age(block: Block[np.ndarray], ages: np.ndarray) -> Block[np.ndarray]:
    """A block of events with the bucket of their age as the last id column."""
    return Block(np.concatenate([block.ids, ages[:, None]], axis=1), block.numbers, block.lists)


def to_tensors(columns: Columns, block: Block[np.ndarray], row_maps: Mapping[str, RowMap] | None = None) -> TensorBlock:
    """A block of numpy arrays as tensors; symbols of growing tables become embedding rows."""
    ids = block.ids
    if row_maps:
        for j, (_, table) in enumerate(columns.ids):
            if table in row_maps:
                ids[:, j] = row_maps[table].rows_of(ids[:, j])
        for column in columns.lists:
            if column.table in row_maps:
                entries = block.lists[column.name].ids
                entries[:, 0] = row_maps[column.table].rows_of(entries[:, 0])
    return block.map(_tensor)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
