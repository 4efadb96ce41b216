"""Predictions of a model over a split, and the metrics of every head.

N rows · H heads
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from finerank.data.builder import BatchBuilder
from finerank.data.order import Budget
from finerank.metrics.probability import logloss
from finerank.metrics.ranking import auc, gauc
from finerank.models.composition import Head, Model, head_target


@dataclass(frozen=True)
class Predictions:
    """rows int64 [N] of the data set, logits float32 [N, H], labels and weights [N, H] of each head, users int64 [N]."""

    heads: tuple[Head, ...]
    rows: np.ndarray
    logits: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    groups: np.ndarray


def predict(
    model: Model,
    builder: BatchBuilder,
    requests: np.ndarray,
    rows_per_batch: int = 8_192,
    device: torch.device | None = None,
    advance: Callable[[int], None] = lambda rows: None,
) -> Predictions:
    """Logits of every row of these requests, in evaluation mode, in the requests' order."""
    model.eval()
    device = device or torch.device("cpu")
    logits, labels, weights, rows = [], [], [], []
    with torch.inference_mode():
        for step in builder.steps(requests, Budget(rows=rows_per_batch), shuffle=False):
            for batch in builder.batches(step):
                logits.append(model(batch.to(device)).logits.cpu())
                targets = [head_target(model.tasks, head, batch.labels, batch.weights) for head in model.heads]
                labels.append(torch.stack([t[0] for t in targets], dim=1))
                weights.append(torch.stack([t[1] for t in targets], dim=1))
                assert batch.rows is not None
                rows.append(batch.rows)
                advance(batch.N)
    heads = len(model.heads)
    empty = torch.empty((0, heads))
    data = builder.dataset
    lengths = data.first[requests + 1] - data.first[requests]
    user = data.user[requests]
    groups = np.repeat(np.where(user >= 0, user, -1 - np.arange(len(user))), lengths)  # nobody known: by request
    return Predictions(
        model.heads,
        torch.cat(rows).numpy() if rows else np.empty(0, np.int64),
        torch.cat(logits or [empty]).numpy(),
        torch.cat(labels or [empty]).numpy(),
        torch.cat(weights or [empty]).numpy(),
        groups,
    )


def metrics(predictions: Predictions) -> dict[str, dict[str, float]]:
    """Per head: binary auc, gauc (by user, weighted by impressions), logloss; regression: rmse. Rows outside weigh 0.

    A metric that is not defined (one class only) is NaN.
    """
    out = {}
    for i, head in enumerate(predictions.heads):
        inside = predictions.weights[:, i] != 0
        labels, logits = predictions.labels[inside, i], predictions.logits[inside, i]
        weights = predictions.weights[inside, i]
        plain = bool((weights == 1).all())
        if head.link == "sigmoid":
            out[head.name] = {
                "auc": auc(labels, logits, None if plain else weights),
                "gauc": gauc(labels, logits, predictions.groups[inside]).value,
                "logloss": logloss(labels, logits, None if plain else weights),
                "rows": float(len(labels)),
            }
        else:
            predicted = np.exp(logits) if head.link == "exp" else logits
            error = (predicted.astype(np.float64) - labels) ** 2
            mean = float(np.average(error, weights=weights)) if len(labels) else math.nan
            out[head.name] = {"rmse": mean**0.5, "rows": float(len(labels))}
    return out


def monitored(model: Model, measured: dict[str, dict[str, float]], name: str) -> float:
    """The number that early stopping watches, larger is better: the metric's mean over the trained heads."""
    values = []
    for head in model.heads:
        if head.trained:
            found = measured[head.name]
            if "rmse" in found:
                values.append(-found["rmse"])
            else:
                values.append(-found[name] if name == "logloss" else found[name])
    return float(np.mean(values))
