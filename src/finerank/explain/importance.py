"""How much each field counts: what the model loses when the field's values are dealt out anew among the rows.

Permutation importance (Breiman, Random Forests, 2001, section 10). Candidate fields change places among rows, request
fields among requests; a history moves as a whole from one request to another. Fields that say the same stand in for each
other: each may look idle while together they carry the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from finerank.data.batch import Batch, pair_up
from finerank.data.builder import BatchBuilder
from finerank.data.order import shuffled
from finerank.errors import UserError, nearest
from finerank.metrics.ranking import auc
from finerank.models.composition import Head, Model
from finerank.runtime.blocks import Block
from finerank.schema import Columns
from finerank.training.loop import Trainer

Change = Callable[[Batch, np.random.Generator], Batch]
REPEATS = 3
"""Deals of each field: the mean of their losses is told, the least and the greatest."""


@dataclass(frozen=True)
class Importance:
    """AUC lost without the field. low, high: the least and the greatest loss over the repeats.

    level  request, candidate, or the history the field belongs to; a history as a whole has the field ""
    """

    level: str
    field: str
    loss: float
    low: float
    high: float


def permutation_importance(
    trainer: Trainer,
    split: str = "test",
    rows: int = 50_000,
    repeats: int = REPEATS,
    seed: int = 0,
    head: str | None = None,
    advance: Callable[[str], None] = lambda field: None,
) -> dict[str, list[Importance]]:
    """The fields of a trained model by head, the most important first: what its AUC loses without each.

    rows     about so many rows are used, whole requests drawn at random; 50,000 settle the second decimal
    repeats  deals per field; low and high are their extremes
    head     only this one; default every binary head of whose rows both classes are there
    advance  told the name of each field as its turn comes
    Raises UserError where there is no such head, or none has both classes.
    """
    heads = _binary_heads(trainer.model, head)
    requests = _some_requests(trainer.builder, split, rows, seed)
    whole = {
        name: found for name, found in _aucs(trainer, requests, heads, None, seed).items() if not math.isnan(found)
    }
    if not whole:
        name, every = heads[0].name, len(trainer.builder.dataset.requests_of(split))
        if len(requests) == every:
            raise UserError(
                f"importance is measured by AUC, and the {split} rows that count for {name!r} are of one class, or there are "
                "none; accepted: a split with both classes"
            )
        raise UserError(
            f"importance is measured by AUC, and the rows drawn from {split!r} are of one class for {name!r}; raise --rows"
        )
    found: dict[str, list[Importance]] = {name: [] for name in whole}
    for level, field, change in _changes(trainer.builder):
        advance(f"{level} {field}".strip())
        without = [_aucs(trainer, requests, heads, change, seed + 1 + k) for k in range(repeats)]
        for name, auc_of_all in whole.items():
            losses = [auc_of_all - aucs[name] for aucs in without]
            found[name].append(Importance(level, field, float(np.mean(losses)), min(losses), max(losses)))
    return {name: sorted(of_head, key=lambda i: -i.loss) for name, of_head in found.items()}


def _binary_heads(model: Model, name: str | None) -> list[Head]:
    """All of them, or the one of this name."""
    binary = {head.name: head for head in model.heads if head.link == "sigmoid"}
    if not binary:
        raise UserError("importance is measured by AUC, and this model has no binary head")
    if name is not None and name not in binary:
        raise UserError(f"no binary head {name!r}; {nearest(name, binary)}")
    return [binary[name]] if name is not None else list(binary.values())


def _some_requests(builder: BatchBuilder, split: str, rows: int, seed: int) -> np.ndarray:
    data = builder.dataset
    order = shuffled(data.requests_of(split), seed, 0)
    if not len(order):
        raise UserError(f"the {split} split is empty; accepted: train, validation or test, where it has rows")
    sizes = np.cumsum(data.first[order + 1] - data.first[order])
    return order[: int(np.searchsorted(sizes, rows)) + 1]


def _aucs(
    trainer: Trainer, requests: np.ndarray, heads: Sequence[Head], change: Change | None, seed: int
) -> dict[str, float]:
    """AUC by head, with `change` applied to every batch. Batches are of requests in random order, so that the rows that
    trade places are a fair sample of all."""
    builder, model = trainer.builder, trainer.model
    draw = np.random.default_rng(seed)
    logits = []
    of_heads: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {head.name: [] for head in heads}
    model.eval()
    with torch.inference_mode():
        for batch in builder.in_order(requests, trainer.options.evaluate_rows):
            changed = batch if change is None else change(batch, draw)
            logits.append(model(changed.to(trainer.device)).logits.cpu())
            for head in heads:
                of_heads[head.name].append(model.target(batch, head))
    scores, found = torch.cat(logits), {}
    for head in heads:
        label, weight = (torch.cat(parts).numpy() for parts in zip(*of_heads[head.name], strict=True))
        score = scores[:, model.heads.index(head)].numpy()
        inside = weight != 0
        found[head.name] = auc(label[inside], score[inside], weight[inside])
    return found


def _changes(builder: BatchBuilder) -> Iterator[tuple[str, str, Change]]:
    """(level, field, change) of every field that the model may read."""
    fitted = builder.dataset.fitted
    for level, columns in (("request", fitted.request), ("candidate", fitted.candidate)):
        for field in _fields(columns):
            yield level, field, _permuting(level, columns, field)
    for history, columns in fitted.histories.items():
        yield history, "", _exchanging(builder, history)
        for field in _fields(columns):
            yield history, field, _permuting(history, columns, field)


def _fields(columns: Columns) -> list[str]:
    more = {i for name in columns.numbers for i in columns.numbers_of(name)[1:]}  # the first is the number itself
    numbers = [name for i, name in enumerate(columns.numbers) if i not in more]
    return [name for name, _ in columns.ids] + numbers + [column.name for column in columns.lists]


def _permuting(level: str, columns: Columns, field: str) -> Change:
    """Deals one field's values out anew within the block of a level: a number together with what comes of it."""
    ids = [j for j, (name, _) in enumerate(columns.ids) if name == field]
    numbers = columns.numbers_of(field)

    def dealt(block: Block[torch.Tensor], draw: np.random.Generator) -> Block[torch.Tensor]:
        order = torch.from_numpy(draw.permutation(len(block)))
        new_ids, new_numbers = block.ids.clone(), block.numbers.clone()
        new_ids[:, ids] = block.ids[order][:, ids]
        new_numbers[:, numbers] = block.numbers[order][:, numbers]
        lists = {name: replace(x, index=x.index[order]) if name == field else x for name, x in block.lists.items()}
        return Block(new_ids, new_numbers, lists)

    def change(batch: Batch, draw: np.random.Generator) -> Batch:
        if level == "request":
            return replace(batch, request=dealt(batch.request, draw))
        if level == "candidate":
            return replace(batch, candidate=dealt(batch.candidate, draw))
        history = batch.histories[level]
        events = replace(history, events=dealt(history.events, draw))
        return replace(batch, histories={**batch.histories, level: events})

    return change


def _exchanging(builder: BatchBuilder, name: str) -> Change:
    """Gives every request the whole history of another."""

    def change(batch: Batch, draw: np.random.Generator) -> Batch:
        assert batch.requests is not None
        history = builder.history(name, draw.permutation(batch.requests.numpy()))
        pairs = dict(batch.pairs)
        if name in pairs:
            pairs[name] = pair_up(batch.request_of, history.lengths)
        return replace(batch, histories={**batch.histories, name: history}, pairs=pairs)

    return change
