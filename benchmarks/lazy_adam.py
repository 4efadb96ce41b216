"""What lazy Adam changes: test AUC of lazy rows (both bias corrections) beside torch.optim.Adam on whole tables.

    python benchmarks/lazy_adam.py --seeds 3

The base model on Online Retail (task discover), three epochs, no early stopping, no regulariser; the same order of
requests and the same initial values for all three. Under dense Adam a row keeps moving on its momentum while it is absent,
and its second moment decays; under lazy Adam it stands still.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from finerank.cli.demo import demo_recipe
from finerank.metrics.ranking import auc
from finerank.recipe import Recipe
from finerank.run import prepared
from finerank.training.evaluate import predict
from finerank.training.loop import Trainer
from finerank.training.options import Adam, TrainingOptions

EPOCHS = 3


def train(recipe: Recipe, folder: Path, variant: str, seed: int) -> float:
    """Test AUC after the epochs."""
    data = prepared(recipe, folder)
    correction = "row" if variant == "lazy, row" else "global"
    options = TrainingOptions(seed=seed, batch=recipe.training.batch, tables=Adam(correction=correction))
    trainer = Trainer(recipe.model, data, options)
    model = trainer.model
    whole = torch.optim.Adam(model.parameters(), lr=1e-3)
    if variant == "dense":
        for tables in model.embeddings().values():
            tables.sparse = False
    requests = data.requests_of("train")
    for epoch in range(EPOCHS):
        trainer.epoch = epoch
        for i, step in enumerate(trainer.builder.steps(requests, options.batch, epoch)):
            trainer.step = i
            if variant == "dense":
                model.train()
                for batch in trainer.builder.batches(step, epoch):
                    sum(model.losses(batch, model(batch)).values(), torch.zeros(())).backward()
                whole.step()
                whole.zero_grad()
            else:
                trainer.train_step(step)
    found = predict(model, trainer.builder, data.requests_of("test"))
    return auc(found.labels[:, 0], found.logits[:, 0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=Path("runs/lazy_adam_data"))
    given = parser.parse_args()
    recipe = demo_recipe("base")
    variants = ("dense", "lazy, global", "lazy, row")
    found = {v: [train(recipe, given.data, v, seed) for seed in range(1, given.seeds + 1)] for v in variants}
    for name, values in found.items():
        difference = np.array(values) - np.array(found["dense"])
        print(
            f"{name:14} test AUC {np.mean(values):.4f}  to torch.optim.Adam {difference.mean():+.4f} "
            f"({difference.min():+.4f} to {difference.max():+.4f}, {len(values)} seeds)"
        )


if __name__ == "__main__":
    main()
