"""Predictions of a model over a split, and the metrics of every head.

N rows · H heads
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from finerank.data.builder import BatchBuilder
from finerank.data.dataset import Dataset
from finerank.metrics.probability import logloss
from finerank.metrics.ranking import auc, gauc
from finerank.metrics.regression import odds_loss, rmse
from finerank.models.composition import Head, Model, head_target
from finerank.runtime.link import predicted


@dataclass(frozen=True)
class Predictions:
    """rows int64 [N] of the data set, logits float32 [N, H], labels and weights [N, H] of each head, groups int64 [N]."""

    heads: tuple[Head, ...]
    rows: np.ndarray
    logits: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    groups: np.ndarray


def judged(heads: tuple[Head, ...], data: Dataset, requests: np.ndarray) -> Predictions:
    """What predictions of these requests are judged by; the logits are 0. `groups`: users, or requests of nobody known."""
    rows = data.rows_of(requests)
    given = torch.from_numpy(data.labels[rows]), torch.from_numpy(data.weights[rows])
    targets = [head_target(data.fitted.schema.tasks, head, *given) for head in heads]
    user = data.user[requests]
    return Predictions(
        heads,
        rows,
        np.zeros((len(rows), len(heads)), dtype=np.float32),
        torch.stack([labels for labels, _ in targets], dim=1).numpy(),
        torch.stack([weights for _, weights in targets], dim=1).numpy(),
        data.spread(requests, np.where(user >= 0, user, -1 - np.arange(len(user)))),
    )


def predict(
    model: Model,
    builder: BatchBuilder,
    requests: np.ndarray,
    rows_per_batch: int = 8_192,
    device: torch.device | None = None,
    advance: Callable[[int], None] = lambda rows: None,
    logged: bool = False,
) -> Predictions:
    """Logits of every row of these requests, in evaluation mode, in the requests' order.

    logged  the logits of what the log holds (`Heads.logged`), as early stopping judges, instead of those that are served
    """
    model.eval()
    device = device or torch.device("cpu")
    logits = [torch.empty((0, len(model.heads)))]
    with torch.inference_mode():
        for batch in builder.in_order(requests, rows_per_batch):
            batch = batch.to(device)
            found = model(batch).logits
            logits.append((model.head.logged(found, batch) if logged else found).cpu())
            advance(batch.N)
    return replace(judged(model.heads, builder.dataset, requests), logits=torch.cat(logits).numpy())


def watched(
    model: Model,
    builder: BatchBuilder,
    requests: np.ndarray,
    rows_per_batch: int = 8_192,
    device: torch.device | None = None,
) -> dict[str, float | list[float]]:
    """Means over all rows of what the model's parts watch (`Interaction.monitor`), by name: a number, or one per expert."""
    model.eval()
    device = device or torch.device("cpu")
    sums: dict[str, torch.Tensor] = {}
    rows = 0
    with torch.inference_mode():
        for batch in builder.in_order(requests, rows_per_batch):
            found = model.monitor(batch.to(device))
            if not found:
                return {}
            rows += batch.N
            for name, values in found.items():
                total = values.double().sum(0).cpu()
                sums[name] = sums[name] + total if name in sums else total
    return {name: (total / rows).tolist() for name, total in sums.items()}


def metrics(predictions: Predictions) -> dict[str, dict[str, float]]:
    """Per head: binary auc, gauc (by user, weighted by impressions), logloss; regression: rmse, and of odds odds_loss.

    Rows outside a head's space weigh 0.

    A metric that is not defined (one class only) is NaN.
    """
    out = {}
    for i, head in enumerate(predictions.heads):
        inside = predictions.weights[:, i] != 0
        labels, logits = predictions.labels[inside, i], predictions.logits[inside, i]
        given = predictions.weights[inside, i]
        weights = None if bool((given == 1).all()) else given
        if head.link == "sigmoid":
            out[head.name] = {
                "auc": auc(labels, logits, weights),
                "gauc": gauc(labels, logits, predictions.groups[inside], weights=weights).value,
                "logloss": logloss(labels, logits, weights),
                "rows": float(len(labels)),
            }
        else:
            out[head.name] = {"rmse": rmse(labels, predicted(head.link, logits), weights), "rows": float(len(labels))}
            if head.link == "odds":
                out[head.name]["odds_loss"] = odds_loss(labels, logits, weights)
    return out


def monitored(model: Model, measured: dict[str, dict[str, float]], name: str) -> float:
    """The number that early stopping watches, larger is better (see `TrainingOptions.monitor`)."""
    # a catalogue model learns from its own loss: none of its heads is trained, and all are judged
    heads = [head for head in model.heads if head.trained] or model.heads
    binary = [measured[head.name][name] for head in heads if name in measured[head.name]]
    if binary:
        return float(np.mean(binary)) * (-1.0 if name == "logloss" else 1.0)
    judged_by = [(head.name, *head.judge) for head in heads]
    return float(np.mean([sign * measured[head][metric] for head, metric, sign in judged_by]))
