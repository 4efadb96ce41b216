"""Why one DIN stands at an AUC of .63 and another at .67: initial values. Test AUC after one epoch, over seeds.

    BENCH_DATA=FOLDER python benchmarks/initialisation.py [seeds]

Needs FOLDER/finerank_A, as `run.py` prepares it. All variants: the plain configuration of the benchmark, DIN on data A.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace

import ours
import torch
from clock import auc, folder, settle
from torch import nn

from finerank.data.dataset import Dataset
from finerank.layers.mlp import SplitLinear
from finerank.models.composition import Model
from finerank.models.plain import EmbeddingOptions
from finerank.training.evaluate import predict
from finerank.training.loop import Trainer
from finerank.training.options import TrainingOptions


def as_torch_does(model: Model) -> None:
    """Initial values of `nn.Linear`: uniform in ±1/sqrt(inputs), for a square layer a third of the variance of Xavier's."""
    for part in model.modules():
        if isinstance(part, nn.Linear | SplitLinear):
            bound = 1 / math.sqrt(part.weight.shape[1])
            for p in (part.weight, part.bias):
                if p is not None:
                    nn.init.uniform_(p, -bound, bound)


def no_prior(model: Model) -> None:
    """The global bias starts at 0 instead of the logit of the base rate."""
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.zero_()


def both(model: Model) -> None:
    as_torch_does(model)
    no_prior(model)


VARIANTS: dict[str, tuple[str, float, Callable[[Model], None]]] = {
    "the defaults: Xavier normal, bias at the base rate, embeddings .01": ("din", 0.01, lambda model: None),
    "bias 0": ("din", 0.01, no_prior),
    "layers as torch initialises them": ("din", 0.01, as_torch_does),
    "both: what the bare loop does": ("din", 0.01, both),
    "embeddings .0001": ("din", 0.0001, lambda model: None),
    "embeddings .05": ("din", 0.05, lambda model: None),
    "batch normalisation in the tower": ("din_bn", 0.01, lambda model: None),
}


def one(task: str, std: float, change: Callable[[Model], None], seed: int) -> float:
    """Test AUC of one training."""
    settle(seed)
    composition = ours.model(task)
    embedding = replace(composition.representation.embedding, std=std)
    assert isinstance(embedding, EmbeddingOptions)
    composition = replace(composition, representation=replace(composition.representation, embedding=embedding))
    data = Dataset.open(folder() / "finerank_A")
    trainer = Trainer(composition, data, TrainingOptions(epochs=1, seed=seed))
    change(trainer.model)
    trainer.fit()
    found = predict(trainer.model, trainer.builder, data.requests_of("test"))
    return auc(found.labels[:, 0], found.logits[:, 0])


def main() -> None:
    seeds = range(1, int(sys.argv[1]) + 1 if len(sys.argv) > 1 else 6)
    print("| | mean | standard error | seeds |\n|---|---|---|---|")
    for name, variant in VARIANTS.items():
        found = [one(*variant, seed) for seed in seeds]
        error = statistics.stdev(found) / len(found) ** 0.5 if len(found) > 1 else math.nan
        print(
            f"| {name} | {statistics.mean(found):.4f} | {error:.4f} | {' '.join(f'{x:.3f}' for x in found)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
