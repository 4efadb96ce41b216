"""Training on a part of the negatives, or of the positives of popular items, with scores that stay what they mean.

If of the negatives only a share w is kept, the odds in what is kept are the true ones divided by w. So the loss is taken at

    logit - log w        of the model's logit, for the heads whose labels decided what is kept

and the model's own output is the true logit: nothing is left to correct in evaluation, prediction or serving. With the
probabilities p of a model of the kept rows this is q = p / (p + (1 - p) / w) (He et al., ADKDD 2014, section 6.3), exactly.

    heads that see only positives of the sampled task (a conversion's, within clicks)   untouched: all their rows are kept
    every other head (another task, the product of a chain: its negatives are of two    rows that stand for 1 / w rows weigh
    kinds, one sampled and one not, so that no constant is right; regressions; one      1 / w
    that is judged through a position or a delay)

correction = "weights" gives every head the weights: no offset is needed then, but a few heavy rows make steps noisier.

What is kept is a function of (seed, row), for training rows alone; validation and test are whole.
N rows of the data set · H heads · I symbols of an item's table
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from finerank.data.batch import Batch
from finerank.data.dataset import Dataset
from finerank.errors import UserError, nearest
from finerank.models.composition import Head, Output
from finerank.runtime.hashing import mix, uniform
from finerank.schema import FIRST, Schema, Task
from finerank.training.options import HotItems, Sampling

NEGATIVE, POSITIVE = 0, 1  # what a random number is for
CHUNK = 1 << 20  # rows decided at a time


class Sampled:
    """What a training sees of a data set.

    keep      bool [N]: rows that training sees; those of validation and test are all kept
    offset    float32 [H]: added to the logits in the loss
    weighted  bool [H]: heads for which a kept negative weighs 1 / w
    """

    def __init__(self, dataset: Dataset, heads: Sequence[Head], options: Sampling) -> None:
        schema = dataset.fitted.schema
        self.task, self.rate = _task(schema, options.task), options.negatives
        k = [t.name for t in schema.tasks].index(self.task.name)
        self.k = k
        item = None if options.hot_items is None else _items(dataset, options.hot_items)
        training = np.repeat(dataset.split == 0, np.diff(dataset.first))
        share = (
            _shares(dataset, options.hot_items, item, training, k) if options.hot_items and item is not None else None
        )
        self.keep = np.ones(dataset.rows, dtype=bool)
        for start in range(0, dataset.rows, CHUNK):
            rows = np.arange(start, min(start + CHUNK, dataset.rows))
            known = training[rows] & (dataset.weights[rows, k] != 0)
            positive = dataset.labels[rows, k] == 1
            negatives_go = uniform(mix(options.seed, NEGATIVE), rows) >= self.rate
            dropped = known & ~positive & negatives_go
            if share is not None and item is not None:
                positives_go = uniform(mix(options.seed, POSITIVE), rows) >= share[dataset.candidate.ids[rows, item]]
                dropped |= known & positive & positives_go
            self.keep[rows] = ~dropped
        kept = training & self.keep & (dataset.weights[:, k] != 0)
        for name, label in (("negative", 0), ("positive", 1)):
            if not (dataset.labels[kept, k] == label).any():
                raise UserError(f"training.sampling: no {name} of task {self.task.name!r} is left; keep more of them")
        kinds = [_treatment(head, self.task, schema, options) for head in heads]
        offset = -math.log(self.rate)
        self.offset = torch.tensor([offset if kind == "offset" else 0.0 for kind in kinds])
        self.weighted = torch.tensor([kind == "weights" for kind in kinds])

    def seen(self, batch: Batch, out: Output) -> tuple[Output, Tensor]:
        """What the loss is taken of: the output with its logits moved, and what weights are multiplied by, [N, H]."""
        thinned = (batch.labels[:, self.k] == 0) & (batch.weights[:, self.k] != 0)
        heavy = thinned[:, None] & self.weighted.to(thinned.device)
        factors = torch.where(heavy, 1 / self.rate, 1.0)
        return replace(out, logits=out.logits + self.offset.to(out.logits.device)), factors


def _treatment(head: Head, task: Task, schema: Schema, options: Sampling) -> str:
    """offset, weights or none: see the module."""
    if options.negatives == 1 or options.correction == "none":
        return "none"
    above = schema.task(head.task)
    while head.space == "own" and above.within is not None:
        if above.within == task.name:
            return "none"
        above = schema.task(above.within)
    own = head.task == task.name and (head.space == "own" or task.within is None) and head.link == "sigmoid"
    return "offset" if own and head.direct and options.correction == "logit" else "weights"


def _task(schema: Schema, name: str | None) -> Task:
    binary = [t for t in schema.tasks if t.kind == "binary"]
    if not binary:
        raise UserError("training.sampling: no task is binary; there are no negatives to leave out")
    if name is None:
        return binary[0]
    found = [t for t in binary if t.name == name]
    if not found:
        raise UserError(
            f"training.sampling.task = {name!r} is no binary task; {nearest(name, [t.name for t in binary])}"
        )
    return found[0]


def _items(dataset: Dataset, hot: HotItems) -> int:
    """Which id column of the candidates is the item."""
    names = [name for name, _ in dataset.fitted.candidate.ids]
    if hot.feature not in names:
        raise UserError(
            f"training.sampling.hot_items.feature = {hot.feature!r} is no feature of a candidate with one id; "
            f"{nearest(hot.feature, names)}"
        )
    return names.index(hot.feature)


def _shares(dataset: Dataset, hot: HotItems, item: int, training: np.ndarray, k: int) -> np.ndarray:
    """[I]: the share of each item's training positives that is kept. What has no id of its own is kept whole."""
    rows = np.flatnonzero(training & (dataset.labels[:, k] == 1) & (dataset.weights[:, k] != 0))
    counts = np.bincount(dataset.candidate.ids[rows, item], minlength=int(dataset.candidate.ids[:, item].max()) + 1)
    kept = np.ones(len(counts))
    kept[FIRST:] = kept_share(counts[FIRST:], hot)
    return kept


def kept_share(counts: np.ndarray, hot: HotItems) -> np.ndarray:
    """The share of its positives that each item keeps: min(1, (sqrt(f / t) + 1) t / f) with f = count / all, or cap / count.

    >>> kept_share(np.array([900, 90, 10]), HotItems(feature="item", threshold=0.1)).round(3).tolist()
    [0.444, 1.0, 1.0]
    >>> kept_share(np.array([900, 90, 10]), HotItems(feature="item", cap=45)).tolist()
    [0.05, 0.5, 1.0]
    """
    some = np.maximum(counts, 1).astype(np.float64)
    if hot.cap is not None:
        capped: np.ndarray = np.minimum(1.0, hot.cap / some)
        return capped
    f = some / max(int(counts.sum()), 1)
    share: np.ndarray = np.minimum(1.0, (np.sqrt(f / hot.threshold) + 1) * hot.threshold / f)
    return share
