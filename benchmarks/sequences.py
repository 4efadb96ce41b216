"""Known truth: which models find that the last item decides (world 9, a Markov chain), beside the chain's own law.

python benchmarks/sequences.py [users] [epochs] [model ...]

Users of the test are other users: the chain must be learnt, not the user. `base` pools the past and cannot know what came last.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from finerank.data.dataset import Dataset
from finerank.data.order import Budget
from finerank.data.prepare import Keys, prepare
from finerank.data.split import Split
from finerank.datasets.worlds.sequences import SequenceOptions, sequences
from finerank.datasets.worlds.world import World
from finerank.metrics.ranking import auc, gauc
from finerank.models import registry
from finerank.schema import Categorical, History, Schema, Task
from finerank.training.evaluate import predict
from finerank.training.loop import Trainer
from finerank.training.options import Adam, TrainingOptions

TOWER = {"kind": "tower", "hidden": [64, 32]}
MODELS: dict[str, dict[str, Any]] = {
    "base": {"name": "base", "interactions": [TOWER]},
    "din": {"name": "din", "interactions": [TOWER]},
    "rnn": {"name": "rnn", "interactions": [TOWER]},
    "dien": {"name": "dien", "interactions": [TOWER]},
    "dien, gru": {"name": "dien", "representation": {"cell": "gru"}, "interactions": [TOWER]},
    "dien, no auxiliary": {"name": "dien", "representation": {"auxiliary": 0.0}, "interactions": [TOWER]},
    "bst": {
        "name": "bst",
        "representation": {"position": "order", "heads": 2, "dropout": 0.0},
        "interactions": [TOWER],
    },
    "hstu": {"name": "hstu", "interactions": [TOWER]},
    "bert4rec": {"name": "bert4rec", "representation": {"embedding": {"width": 32}, "last": 0.3}},
    "youtube_candidates": {"name": "youtube_candidates", "representation": {"hidden": [64, 32], "drawn": 20}},
}


def encoded(world: World, folder: Path) -> Dataset:
    """The world, prepared."""
    schema = Schema(
        features=(Categorical(name="item", level="candidate"),),
        histories=(History(name="past", fields=("item",)),),
        tasks=(Task(name="came"),),
    )
    assert world.events is not None
    keys = Keys(request="request", user="user", time="time")
    return prepare(folder, schema, world.samples.lazy(), world.events.lazy(), keys, Split(by="user", test=0.2))


def law(data: Dataset, world: World, options: SequenceOptions) -> np.ndarray:
    """[N] of the test rows: the chain's own probability of each candidate (a negative may be the true next item)."""
    requests = data.requests_of("test")
    names = data.encoder.tables["item"]
    number = np.array([int(names.name(i)) if i >= 3 else -1 for i in range(names.size)])
    last = number[data.events["past"].block.ids[data.slices["past"].end[requests] - 1, 0]]
    rows = data.rows_of(requests)
    item = number[data.candidate.ids[rows, 0]]
    of = np.repeat(last, np.diff(data.first)[requests])
    favourite = (world.truth["favourites"][of] == item[:, None]).sum(1)
    out: np.ndarray = favourite * options.faith / options.branches + (1 - options.faith) / options.items
    return out


def main() -> None:
    """A line per model."""
    users = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    epochs = int(sys.argv[2]) if len(sys.argv) > 2 else 8
    options = SequenceOptions(users=users, length=15)
    world = sequences(options)
    with tempfile.TemporaryDirectory() as folder:
        data = encoded(world, Path(folder) / "data")
        print(f"{data.rows:,} rows of {users:,} users, test AUC and GAUC, at most {epochs} epochs", flush=True)
        for name in sys.argv[3:] or MODELS:
            settings = TrainingOptions(
                epochs=epochs,
                patience=3,
                batch=Budget(rows=256),
                tables=Adam(lr=5e-3),
                dense=Adam(lr=2e-3),
                threads=1,
                keep_memory=False,
            )
            cpu = time.process_time()
            trainer = Trainer(registry.parse(MODELS[name]), data, settings)
            done = trainer.fit()
            found = predict(trainer.model, trainer.builder, data.requests_of("test"))
            y, z = found.labels[:, 0], found.logits[:, 0]
            print(
                f"  {name:<20}{auc(y, z):.4f}  {gauc(y, z, found.groups).value:.4f}"
                f"   {len(done)} epochs, {time.process_time() - cpu:.0f} CPU s",
                flush=True,
            )
        best = law(data, world, options)
        print(f"  {'the law itself':<20}{auc(y, best):.4f}  {gauc(y, best, found.groups).value:.4f}")


if __name__ == "__main__":
    main()
