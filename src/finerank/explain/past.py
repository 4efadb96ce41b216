"""Which past events lit up for which candidate (DIN, section 6.7: the figure), by name.

R requests · C candidates · T events of one request

Two answers for each event. `weight`: what the activation unit gave it, where the model attends. `effect`: the logit with
the event minus the logit without it, for any model that reads the history; what the model would have said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from finerank.data.batch import Batch, Jagged, pair_up
from finerank.data.builder import BatchBuilder, to_tensors
from finerank.data.columns import take_block
from finerank.data.dataset import Dataset
from finerank.errors import UserError, nearest
from finerank.explain.between import Between, between_fields
from finerank.explain.readable import names_of
from finerank.models.composition import Model
from finerank.runtime.blocks import Block
from finerank.runtime.link import predicted
from finerank.runtime.values import canonical
from finerank.schema import SECOND
from finerank.training.loop import Trainer

PAIRS = 1 << 18
"""Pairs of candidate and event that are scored at a time."""


@dataclass(frozen=True)
class Seen:
    """A past event as one candidate sees it. age: seconds; None where list columns do not say when."""

    history: str
    what: Mapping[str, str]
    age: float | None
    weight: float | None
    effect: float


@dataclass(frozen=True)
class Explained:
    """One candidate of one request: what it is, its score, its label, and the past in order of time.

    score   probability (or predicted number) of `head`
    """

    what: Mapping[str, str]
    label: float
    logit: float
    score: float
    past: tuple[Seen, ...]


@dataclass(frozen=True)
class Explanation:
    """A request, seen through a model.

    time     microseconds as in the data
    between  how fields are weighed against each other
    """

    user: str
    time: int
    head: str
    request: Mapping[str, str]
    candidates: tuple[Explained, ...]
    between: tuple[Between, ...] = ()


def explain(
    trainer: Trainer, user: str, item: str | None = None, split: str = "test", head: str | None = None
) -> Explanation:
    """The user's latest request of the split, candidate by candidate; with `item` only the candidates of that value.

    item   a value of any id column of the candidate. An item that was not in the request is scored as it was last
           offered to anybody before it
    head   which of the model's heads; default the first
    Raises UserError for a user, item or head that is not there.
    """
    data = trainer.dataset
    request = latest_request(data, user, split)
    head, h = head_of(trainer.model, head)
    rows = data.rows_of(np.array([request]))
    if item is not None:
        rows = _rows_of_item(data, rows, item)
    batch = batch_of(trainer.builder, request, rows)
    trainer.model.eval()
    with torch.inference_mode():
        out = trainer.model(batch.to(trainer.device))
        without = _without_each_event(trainer, batch)[:, h]
        between = between_fields(trainer.model, batch.to(trainer.device))
    logits = out.logits[:, h].cpu()
    candidates = names_of(data.encoder, data.fitted.candidate, take_block(data.candidate, rows))
    seen: list[list[Seen]] = [[] for _ in rows]
    offset = 0
    for name, history in batch.histories.items():
        events = len(history.segments)
        what = _event_names(data, name, request)
        ages: list[float | None] = (history.ages.double() / SECOND).tolist()
        if data.fitted.schema.history(name).lists:
            ages = [None] * events
        left_out = without[offset : offset + events * len(rows)].view(events, len(rows))
        offset += events * len(rows)
        weights = _weights(out.attention, name, len(rows), events)
        for c in range(len(rows)):
            for t in range(events):
                weight = None if weights is None else float(weights[c, t])
                seen[c].append(Seen(name, what[t], ages[t], weight, float(logits[c] - left_out[t, c])))
    scores = predicted(trainer.model.heads[h].link, logits.double().numpy())
    task = [t.name for t in data.fitted.schema.tasks].index(trainer.model.heads[h].task)
    explained = tuple(
        Explained(candidates[c], float(data.labels[rows[c], task]), float(logits[c]), float(scores[c]), tuple(seen[c]))
        for c in range(len(rows))
    )
    context = names_of(data.encoder, data.fitted.request, take_block(data.request, np.array([request])))[0]
    return Explanation(user, int(data.time[request]), head, context, explained, between)


def latest_request(data: Dataset, user: str, split: str) -> int:
    """The user's last request of a split. Raises UserError for a user who is unknown or has none there."""
    names = data.users
    code = names.index_of(canonical(user))
    if code is None:
        raise UserError(f"user {user!r} is not in the data; {nearest(user, names.head(100_000))}")
    mine = np.flatnonzero(data.user == code)
    here = mine[np.isin(mine, data.requests_of(split))]
    if not len(here):
        raise UserError(
            f"user {user!r} has no request in the {split} split ({len(mine)} in the others); "
            "accepted: --split train, validation or test"
        )
    return int(here[-1])


def batch_of(builder: BatchBuilder, request: int, rows: np.ndarray) -> Batch:
    """A batch of one request with candidates of our choice, as in evaluation. rows: int64 [C] of the data set."""
    data = builder.dataset
    whole = builder.batch(np.array([request]), epoch=None)
    request_of = torch.zeros(len(rows), dtype=torch.int64)
    return replace(
        whole,
        candidate=to_tensors(data.fitted.candidate, take_block(data.candidate, rows), builder.row_maps),
        request_of=request_of,
        labels=torch.from_numpy(data.labels[rows]),
        weights=torch.from_numpy(data.weights[rows]),
        pairs={name: pair_up(request_of, whole.histories[name].lengths) for name in whole.pairs},
        train_only=to_tensors(data.fitted.train_only, take_block(data.train_only, rows), builder.row_maps),
        rows=torch.from_numpy(rows),
        rows_in_step=len(rows),
    )


def head_of(model: Model, name: str | None) -> tuple[str, int]:
    """(name, number) of a head; None: the first."""
    names = [head.name for head in model.heads]
    if name is not None and name not in names:
        raise UserError(f"no head {name!r}; {nearest(name, names)}")
    return (names[0], 0) if name is None else (name, names.index(name))


def _rows_of_item(data: Dataset, rows: np.ndarray, item: str) -> np.ndarray:
    """Rows of the request whose candidate has the value; else its last row before the request ends."""
    wanted = canonical(item)
    symbols = [(j, data.encoder.tables[table].lookup(wanted)) for j, (_, table) in enumerate(data.fitted.candidate.ids)]
    known = [
        (j, symbol)
        for j, symbol in symbols
        if data.encoder.tables[data.fitted.candidate.ids[j][1]].name(symbol) == item
    ]
    for span in (rows, np.arange(int(rows[-1]) + 1)):
        hit = np.zeros(len(span), dtype=bool)
        for j, symbol in known:
            hit |= data.candidate.ids[span, j] == symbol
        if hit.any():
            return span[hit] if span is rows else span[hit][-1:]
    shown = names_of(data.encoder, data.fitted.candidate, take_block(data.candidate, rows[:3]))
    raise UserError(
        f"item {item!r} was never a candidate up to this request; the request's own candidates begin with "
        f"{[next(iter(s.values()), '') for s in shown]}"
    )


def _event_names(data: Dataset, history: str, request: int) -> list[Mapping[str, str]]:
    slices = data.slices[history]
    block, _ = data.events[history].gather(np.arange(slices.start[request], slices.end[request]))
    return names_of(data.encoder, data.fitted.histories[history], block)


def _weights(attention: Mapping[str, Tensor], history: str, candidates: int, events: int) -> Tensor | None:
    """[C, T]: pairs of one request come candidate after candidate, events oldest first."""
    found = attention.get(history)
    return None if found is None else found.view(candidates, events)


def _without_each_event(trainer: Trainer, batch: Batch) -> Tensor:
    """[T C, heads]: the logits of the request without one event, for each event of each history. Some at a time: all together
    are T² C pairs, gigabytes of them for a long past."""
    total = sum(len(h.segments) for h in batch.histories.values())
    events = torch.split(torch.arange(total), max(1, PAIRS // max(1, total * batch.N)))
    return torch.cat([trainer.model(_left_out(batch, some).to(trainer.device)).logits.cpu() for some in events])


def _left_out(batch: Batch, left_out: Tensor) -> Batch:
    """The request once for each of these events, numbered through all histories, without it. batch: of one request with C
    candidates."""
    total = len(left_out)
    copies = torch.arange(total)
    request_of = copies.repeat_interleave(batch.N)
    histories: dict[str, Jagged] = {}
    first = 0
    for name, history in batch.histories.items():
        events = len(history.segments)
        segments = copies.repeat_interleave(events)
        event = torch.arange(events).repeat(total)
        kept = left_out[segments] != event + first
        lengths = events - ((left_out >= first) & (left_out < first + events)).long()
        starts = lengths.cumsum(0) - lengths
        segments, event = segments[kept], event[kept]
        histories[name] = Jagged(
            _take(history.events, event),
            segments,
            torch.arange(len(segments)) - starts[segments],
            lengths,
            history.ages[event],
        )
        first += events
    return replace(
        batch,
        request=_take(batch.request, torch.zeros(total, dtype=torch.int64)),
        candidate=_take(batch.candidate, torch.arange(batch.N).repeat(total)),
        request_of=request_of,
        histories=histories,
        labels=batch.labels.repeat(total, 1),
        weights=batch.weights.repeat(total, 1),
        pairs={name: pair_up(request_of, histories[name].lengths) for name in batch.pairs},
        train_only=None,
        requests=None,
        rows=None,
        rows_in_step=0,
    )


def _take(block: Block[Tensor], index: Tensor) -> Block[Tensor]:
    """Rows of a block; the distinct lists stay as they are, their order of occurrence does not matter in evaluation."""
    lists = {name: replace(x, index=x.index[index]) for name, x in block.lists.items()}
    return Block(block.ids[index], block.numbers[index], lists)
