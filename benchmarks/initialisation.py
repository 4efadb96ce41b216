"""Why one DIN stands at an AUC of .63 and another at .67: test AUC after one epoch by what differs, over seeds.

    BENCH_DATA=FOLDER python benchmarks/initialisation.py TASK WORLD RESULTS.jsonl [seeds]

TASK and WORLD as in `run.py` (din A, din R, deepfm B), whose prepared data it reads. All variants change one thing of the
benchmark's plain configuration. A line of RESULTS.jsonl is a training; one that is there is not repeated.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ours
import torch
from clock import auc, folder, settle
from torch import nn

from finerank.data.dataset import Dataset
from finerank.data.order import Budget
from finerank.layers.mlp import SplitLinear, SplitMLP
from finerank.models.composition import Model
from finerank.models.registry import Composition
from finerank.training.evaluate import predict
from finerank.training.loop import Trainer
from finerank.training.options import L2, MiniBatchAware, TrainingOptions


def as_torch_does(model: Model) -> None:
    """Initial values of `nn.Linear`: uniform in ±1/sqrt(inputs), for a square layer a third of the variance of Xavier's."""
    for part in model.modules():
        if isinstance(part, nn.Linear | SplitLinear):
            bound = 1 / math.sqrt(part.weight.shape[1])
            for p in (part.weight, part.bias):
                if p is not None:
                    nn.init.uniform_(p, -bound, bound)


def he(model: Model) -> None:
    """Initial values of He et al. 2015: variance 2 / inputs."""
    for part in model.modules():
        if isinstance(part, nn.Linear | SplitLinear):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")


def xavier(model: Model) -> None:
    """Xavier-normal also before and behind a batch normalisation, where the defaults begin smaller."""
    for part in model.modules():
        if isinstance(part, nn.Linear | SplitLinear):
            nn.init.xavier_normal_(part.weight)


def last(scale: float | None) -> Callable[[Model], None]:
    """The towers' last layers uniform within scale / sqrt(inputs), or, with None, Xavier-normal."""

    def change(model: Model) -> None:
        for part in model.modules():
            if isinstance(part, SplitMLP) and isinstance(part.rest, nn.Sequential):
                weight = part.rest[1].layers[-1].weight
                if scale is None:
                    nn.init.xavier_normal_(weight)
                else:
                    bound = scale / math.sqrt(weight.shape[1])
                    nn.init.uniform_(weight, -bound, bound)

    return change


def no_prior(model: Model) -> None:
    """The global bias starts at 0 instead of the logit of the base rate."""
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.zero_()


def both(model: Model) -> None:
    as_torch_does(model)
    no_prior(model)


class DenseAdam:
    """`torch.optim.Adam` over a whole table in the place of a row optimiser: absent rows keep moving."""

    def __init__(self, old: Any) -> None:
        self.weight = nn.Parameter(old.weight)
        self.inner = torch.optim.Adam([self.weight], lr=old.lr, fused=True)
        self.lr = old.lr

    def step(self, rows: torch.Tensor, grad: torch.Tensor) -> None:
        self.weight.grad = torch.zeros_like(self.weight)
        self.weight.grad[rows] = grad
        self.inner.step()


@dataclass(frozen=True)
class Variant:
    """What differs. tower, unit, embedding: of the options; change: of the built model; dense: Adam on whole tables."""

    change: Callable[[Model], None] = lambda model: None
    tower: dict[str, Any] = field(default_factory=dict)
    unit: dict[str, Any] = field(default_factory=dict)
    embedding: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    dense: bool = False


BN = {"batch_norm": True}
VARIANTS = {
    "the defaults: Xavier normal, bias at the base rate, embeddings .01": Variant(),
    "embeddings .0001": Variant(embedding={"std": 1e-4}),
    "embeddings .03": Variant(embedding={"std": 0.03}),
    "embeddings .1": Variant(embedding={"std": 0.1}),
    "batch normalisation in the tower": Variant(tower=BN),
    "batch normalisation, embeddings .1": Variant(tower=BN, embedding={"std": 0.1}),
    "batch normalisation, embeddings .0001": Variant(tower=BN, embedding={"std": 1e-4}),
    "batch normalisation, Xavier before and behind it": Variant(xavier, tower=BN),
    "batch normalisation, Xavier behind it": Variant(last(None), tower=BN),
    "batch normalisation, ten times the default behind it": Variant(last(1.0), tower=BN),
    "batch normalisation, zeros behind it": Variant(last(0.0), tower=BN),
    "a tenth of torch's values in the last layer": Variant(last(0.1)),
    "batch normalisation, torch's layers": Variant(as_torch_does, tower=BN),
    "batch normalisation, torch's layers, bias 0, embeddings .0001, dense Adam": Variant(
        both, tower=BN, embedding={"std": 1e-4}, dense=True
    ),
    "layers as torch initialises them": Variant(as_torch_does),
    "layers as He et al.": Variant(he),
    "bias 0": Variant(no_prior),
    "torch's layers and bias 0: what the bare loop does": Variant(both),
    "dense Adam": Variant(dense=True),
    "dense Adam, torch's layers, bias 0": Variant(both, dense=True),
    "Dice in the tower": Variant(tower={"activation": "dice"}),
    "PReLU in the tower": Variant(tower={"activation": "prelu"}),
    "the unit begins at .1": Variant(unit={"start": 0.1}),
    "the unit begins at .3": Variant(unit={"start": 0.3}),
    "the unit begins at 1": Variant(unit={"start": 1.0}),
    "batch normalisation, the unit begins at .3": Variant(tower=BN, unit={"start": 0.3}),
    "PReLU in the unit": Variant(unit={"activation": "prelu"}),
    "softmax in the unit": Variant(unit={"softmax": True}),
    "batch normalisation, softmax in the unit": Variant(tower=BN, unit={"softmax": True}),
    "mini-batch-aware .01": Variant(training={"regularise": MiniBatchAware(strength=0.01)}),
    "L2 .01": Variant(training={"regularise": L2(strength=0.01)}),
}


def composed(task: str, variant: Variant) -> Composition:
    """The composition of a variant."""
    found = ours.model(task)
    o = found.representation
    o = replace(o, embedding=replace(o.embedding, **variant.embedding))
    if variant.unit:
        o = replace(o, unit=replace(o.unit, **variant.unit))
    towers = tuple(replace(i, **variant.tower) if i.kind == "tower" else i for i in found.interactions)
    return replace(found, representation=o, interactions=towers)


def one(task: str, world: str, variant: Variant, seed: int) -> float:
    """Test AUC of one training."""
    settle(seed)
    data = Dataset.open(folder() / f"finerank_{world}")
    given = TrainingOptions(
        epochs=1, seed=seed, threads=torch.get_num_threads(), batch=Budget(rows=1024), **variant.training
    )
    trainer = Trainer(composed(task, variant), data, given)
    variant.change(trainer.model)
    if variant.dense:
        rows: dict[str, Any] = trainer.optimisers.rows
        for name in rows:
            rows[name] = DenseAdam(rows[name])
    trainer.fit()
    found = predict(trainer.model, trainer.builder, data.requests_of("test"))
    return auc(found.labels[:, 0], found.logits[:, 0])


def main() -> None:
    task, world, at = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    seeds = range(1, int(sys.argv[4]) + 1 if len(sys.argv) > 4 else 6)
    records = [json.loads(line) for line in at.read_text().splitlines()] if at.exists() else []
    found = {(r["task"], r["world"], r["variant"], r["seed"]): r["auc"] for r in records}
    variants = {name: v for name, v in VARIANTS.items() if not (v.unit and task != "din")}
    for seed in seeds:
        for name, variant in variants.items():
            key = (task, world, name, seed)
            if key not in found:
                found[key] = one(task, world, variant, seed)
                line = dict(zip(("task", "world", "variant", "seed"), key, strict=True)) | {"auc": found[key]}
                with at.open("a") as file:
                    file.write(json.dumps(line) + "\n")
    base = [found[task, world, next(iter(variants)), seed] for seed in seeds]
    print("| | test AUC | difference from the defaults, by seed |\n|---|---|---|")
    for name in variants:
        aucs = [found[task, world, name, seed] for seed in seeds]
        gains = [a - b for a, b in zip(aucs, base, strict=True)]
        error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else math.nan
        print(f"| {name} | {statistics.mean(aucs):.4f} | {statistics.mean(gains):+.4f} ± {error:.4f} |", flush=True)


if __name__ == "__main__":
    main()
