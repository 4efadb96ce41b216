"""DIN training speed on the amazon-like data A, beside a bare PyTorch loop on the same data, in one run.

    python benchmarks/din_speed.py --data FOLDER --bare bare_limit.py --rounds 3

FOLDER holds A_train.parquet and A_test.parquet (raw values) and A.npz (for the bare loop), as its generator `gen.py` writes
them. Both train one whole epoch with embedding 16, attention 64-32 ReLU, tower 256-128-64 ReLU, batch 1,024, Adam 1e-3,
float32, two threads. Every measurement is a fresh process; the two take turns; the ratio is taken within a round. What
finerank's figure includes: reading from disk, building batches, symbols, optimiser, loss; not evaluation.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from finerank.data.dataset import Dataset
from finerank.data.prepare import Keys, prepare
from finerank.data.split import Split
from finerank.metrics.ranking import auc
from finerank.models import registry
from finerank.schema import Categorical, History, Schema, Task
from finerank.training.evaluate import predict
from finerank.training.loop import Trainer
from finerank.training.options import TrainingOptions

SCHEMA = Schema(
    features=(
        Categorical(name="user_id", level="request"),
        Categorical(name="item_id", level="candidate"),
        Categorical(name="cate_id", level="candidate"),
    ),
    histories=(
        History(name="clicks", fields=("item_id", "cate_id"), lists={"item_id": "hist_item", "cate_id": "hist_cate"}),
    ),
    tasks=(Task(name="label"),),
)


def prepared(data: Path, folder: Path) -> None:
    """Encode A: its test part as it is, the last tenth of its training part as validation."""
    train = pl.scan_parquet(data / "A_train.parquet")
    test = pl.scan_parquet(data / "A_test.parquet").with_columns(split=pl.lit("test"))
    rows = train.select(pl.len()).collect().item()
    part = pl.when(pl.int_range(pl.len()) < rows - 1_000).then(pl.lit("train")).otherwise(pl.lit("validation"))
    samples = pl.concat([train.with_columns(split=part), test])
    prepare(folder, SCHEMA, samples, None, Keys(), Split(by="column"))


def one_epoch(folder: Path, seed: int, keep_memory: bool) -> dict[str, float]:
    """Rows a second of one epoch, and the test AUC after it."""
    data = Dataset.open(folder)
    model = registry.parse(
        {
            "name": "din",
            "representation": {"unit": {"hidden": [64, 32], "activation": "relu"}},
            "interactions": [{"kind": "tower", "hidden": [256, 128, 64], "activation": "relu"}],
        }
    )
    trainer = Trainer(model, data, TrainingOptions(epochs=1, threads=2, seed=seed, keep_memory=keep_memory))
    steps = trainer.builder.steps(data.requests_of("train"), trainer.options.batch)
    started = time.perf_counter()
    for step in steps:
        trainer.train_step(step)
    seconds = time.perf_counter() - started
    found = predict(trainer.model, trainer.builder, data.requests_of("test"))
    return {"rows_per_s": sum(s.rows for s in steps) / seconds, "auc": auc(found.labels[:, 0], found.logits[:, 0])}


def bare(script: Path, data: Path, config: str, seed: int) -> dict[str, float]:
    """The same figures of the bare loop."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "results.jsonl"
        env = os.environ | {"BENCH_DATA": str(data), "BENCH_OUT": str(out), "BENCH_WAIT": "5"}
        command = [sys.executable, script.name, "din", "--cfg", config, "--epoch", "--reps", "1"]
        subprocess.run(command, cwd=script.parent, env=env, check=True, stdout=subprocess.DEVNULL)
        found = json.loads(out.read_text().splitlines()[-1])
        return {"rows_per_s": found["rows_per_s"], "auc": found["auc"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bare", type=Path, help="bare_limit.py of the peers' benchmark")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep-memory", action="store_true")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one_epoch(given.one, given.seed, given.keep_memory)))
        return
    folder = given.data / "finerank_A"
    if not folder.exists():
        started = time.perf_counter()
        prepared(given.data, folder)
        print(f"prepared in {time.perf_counter() - started:.1f} s")
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(given.rounds):
        for keep in (False, True):
            command = [sys.executable, __file__, "--data", str(given.data), "--one", str(folder), "--seed", str(seed)]
            run = subprocess.run([*command, *(["--keep-memory"] * keep)], check=True, capture_output=True, text=True)
            ours = f"finerank{', memory kept' if keep else ''}"
            found.setdefault(ours, []).append(json.loads(run.stdout.splitlines()[-1]))
            if given.bare:
                words = "ragged,split,lazy" + (",mallopt" if keep else "")
                found.setdefault(f"bare {words}", []).append(bare(given.bare, given.data, words, seed))
        for name, measured in found.items():
            print(
                f"round {seed}  {name:40}  {measured[-1]['rows_per_s']:9,.0f} rows/s  AUC {measured[-1]['auc']:.4f}",
                flush=True,
            )
    for name, measured in found.items():
        rates = [m["rows_per_s"] for m in measured]
        aucs = [m["auc"] for m in measured]
        print(f"{name:40}  median {statistics.median(rates):9,.0f} rows/s  AUC {np.mean(aucs):.4f}")
    if given.bare:
        for ours, theirs in (
            ("finerank", "bare ragged,split,lazy"),
            ("finerank, memory kept", "bare ragged,split,lazy,mallopt"),
        ):
            ratios = sorted(a["rows_per_s"] / b["rows_per_s"] for a, b in zip(found[ours], found[theirs], strict=True))
            print(f"{ours} / {theirs}: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
