"""Whether the scale of a number makes one task's loss drown another's in their sum.

A probability's loss is of the order of 1, a squared error of the order of its label's variance: of seconds watched, a million.
What a head would lose that knew nothing but the mean of its labels says how the sum begins: the variance of a number, the
entropy of a rate, each times the task's weight and the share of rows that lie in its space.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import numpy as np
import torch

from finerank.data.dataset import Dataset
from finerank.models.composition import Head, Model, head_target
from finerank.training.balance import FixedWeights

TIMES = 100
"""How many times as large as another's a task's loss may be without a word."""

PIECE = 1 << 16
"""Requests whose labels are read at a time."""


def outweighed(model: Model, dataset: Dataset, requests: np.ndarray) -> str | None:
    """A sentence for the user where one of two tasks, at least one of them a number, has `TIMES` the other's loss.

    None where weights are learnt, and where no label is a number (then nothing is read). requests: of the training rows
    """
    judged = [head for head in model.heads if head.trained and head.link in ("sigmoid", "identity")]
    numbers = [head for head in judged if head.link == "identity"]
    if not numbers or len(judged) < 2:
        return None
    if not (model.balance is None or type(model.balance) is FixedWeights):  # those that learn are kinds of it
        return None
    found = constant_losses(model, judged, dataset, requests)
    pairs = [(a, b) for a in judged for b in judged if (a in numbers or b in numbers) and found[b.name] > 0]
    if not pairs:
        return None
    large, small = max(pairs, key=lambda pair: found[pair[0].name] / found[pair[1].name])
    more, less = found[large.name], found[small.name]
    if more <= TIMES * less:
        return None
    number, ratio = (large, less / more) if large in numbers else (small, more / less)
    unit = "a larger unit or as its logarithm" if large in numbers else "a smaller unit"
    weight = ratio * (1.0 if model.balance is None else model.balance.of_head[number.name])
    # without a balance there is no `kind` yet, and a weight alone would be refused
    named = json.dumps(number.task, ensure_ascii=False)
    new = f'training.tasks = {{kind = "fixed", weights = {{{named} = {weight:.1g}}}}}'
    remedy = new if model.balance is None else f"training.tasks.weights.{number.task} near {weight:.1g}"
    return (
        f"by its training mean alone task {large.task!r} loses {_written(more)} a row and task {small.task!r} "
        f"{_written(less)}, weights included, so what they share learns nearly {large.task!r} alone; give the label of "
        f"{number.task!r} in {unit}, or set {remedy}, or let "
        'training.tasks = {kind = "uncertainty"} learn the weights, over some thousand steps'
    )


def constant_losses(model: Model, heads: list[Head], dataset: Dataset, requests: np.ndarray) -> Mapping[str, float]:
    """By head: the least mean loss over all rows of these requests that one constant logit gives, weighed as in training.

    Squared errors and cross-entropies alone; rows that `training.sampling` leaves out are counted.
    """
    tasks, rows = dataset.fitted.schema.tasks, 0
    about: dict[str, float] = {}  # a label of each head: of equal labels the variance is then 0, without rounding
    sums = {head.name: np.zeros(3) for head in heads}  # of w, w (y - about), w (y - about)²
    for start in range(0, len(requests), PIECE):
        at = dataset.rows_of(requests[start : start + PIECE])
        rows += len(at)
        labels, weights = (
            torch.from_numpy(dataset.labels[at]).double(),
            torch.from_numpy(dataset.weights[at]).double(),
        )
        for head in heads:
            y, w = head_target(tasks, head, labels, weights)
            if model.balance is not None:
                w = model.balance.rows(head, y, w)
            y, w = y[w != 0], w[w != 0]
            if len(y):
                y = y - about.setdefault(head.name, float(y[0]) if head.link == "identity" else 0.0)
                sums[head.name] += [float(w.sum()), float(w @ y), float(w @ y.square())]
    found = {}
    for head in heads:
        total, first, second = sums[head.name].tolist()
        mean = first / total if total else 0.0
        loss = max(second / total - mean**2, 0.0) if total and head.link == "identity" else _entropy(mean)
        share = torch.tensor(total / max(rows, 1))
        term = loss * share
        found[head.name] = float(term if model.balance is None else model.balance.weighed(head, term, share))
    return found


def _written(loss: float) -> str:
    return f"{loss:,.0f}" if loss >= 100 else f"{loss:.2g}"


def _entropy(rate: float) -> float:
    """In nats; 0 where there is one class only."""
    return -sum(p * math.log(p) for p in (rate, 1 - rate) if p > 0)
