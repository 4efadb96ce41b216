"""Every registered model on one log: rows a second in training, and the latency of a request when served.

    python benchmarks/models.py docs/measured.json [--only din] [--again]

A fresh process per model; what is in the file is not measured again. The log: the laws of nothing (ids at random, in Zipf's
proportions), for speed does not ask what is learnt. 10,000 users of 50 countries, 5,000 items of 100 categories, a number on
either side, 20,000 requests of ten candidates, some 30 past clicks each. Models at their own defaults, batch 1,024, 2 threads.
Latency: one request from raw values to scores in onnxruntime, one thread, 300 candidates, 50 past clicks, encoding included.
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
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

USERS, COUNTRIES, ITEMS, CATEGORIES = 10_000, 50, 5_000, 100
REQUESTS, CANDIDATES, EVENTS = 20_000, 10, 300_000
STEPS, WARM = 60, 8
DAY = 86_400


def zipf(n: int) -> np.ndarray:
    weights = 1.0 / np.arange(1, n + 1)
    return weights / weights.sum()


def log(seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(samples, events)."""
    draw = np.random.default_rng(seed)
    category, country = draw.integers(0, CATEGORIES, ITEMS), draw.integers(0, COUNTRIES, USERS)
    rows = REQUESTS * CANDIDATES
    user = np.repeat(draw.integers(0, USERS, REQUESTS), CANDIDATES)
    item = draw.choice(ITEMS, rows, p=zipf(ITEMS))
    click = draw.random(rows) < 0.2
    dwell = np.where(click, np.rint(draw.exponential(60, rows)) + 1, 0)
    samples = pl.DataFrame(
        {
            "request": np.repeat(np.arange(REQUESTS), CANDIDATES),
            "user": user,
            "time": np.repeat(10 * DAY + np.arange(REQUESTS), CANDIDATES),
            "country": country[user],
            "years": 20 + user % 50,
            "item": item,
            "category": category[item],
            "price": draw.lognormal(2, 1, rows),
            "position": np.tile(np.arange(1, CANDIDATES + 1), REQUESTS),
            "elapsed": draw.uniform(0, 30 * DAY, rows),
            "delay": draw.exponential(DAY, rows),
            "dwell": dwell,
            "click": click.astype(np.int8),
            "conversion": (click & (draw.random(rows) < 0.3)).astype(np.int8),
        }
    )
    past = draw.choice(ITEMS, EVENTS, p=zipf(ITEMS))
    when = np.sort(draw.integers(0, 10 * DAY, EVENTS))
    who = draw.integers(0, USERS, EVENTS)
    events = pl.DataFrame({"user": who, "time": when, "item": past, "category": category[past]})
    return samples, events


def dataset(folder: Path, tasks: int) -> Any:
    """The prepared log; made at first use."""
    from finerank.data.dataset import Dataset
    from finerank.data.prepare import Keys, prepare
    from finerank.data.split import Split
    from finerank.schema import Categorical, History, Numeric, Schema, Task

    at = folder / f"data_{tasks}"
    if not at.exists():
        schema = Schema(
            features=(
                Categorical(name="user", level="request"),
                Categorical(name="country", level="request"),
                Numeric(name="years", level="request"),
                Categorical(name="item", level="candidate"),
                Categorical(name="category", level="candidate"),
                Numeric(name="price", level="candidate"),
                Categorical(name="position", level="candidate", use="train_only"),
                Numeric(name="elapsed", level="candidate", use="train_only", transform="none"),
            ),
            histories=(History(name="clicks", fields=("item", "category"), max_length=50),),
            tasks=(
                Task(name="click"),
                Task(name="conversion", within="click"),
                Task(name="wait", column="delay", kind="regression", within="conversion"),
            )[:tasks],
        )
        samples, events = log()
        keys = Keys(request="request", user="user", time="time")
        prepare(at, schema, samples.lazy(), events.lazy(), keys, Split(validation=0.1, test=0.1))
    return Dataset.open(at)


def measure(name: str, folder: Path) -> dict[str, float]:
    """Training and serving of one model."""
    from finerank.models import registry
    from finerank.training.loop import Trainer
    from finerank.training.options import TrainingOptions

    composition = registry.composition(name)
    data = dataset(folder, composition.least_tasks)
    trainer = Trainer(composition, data, TrainingOptions(threads=2, seed=1))
    steps = list(islice(trainer.feed.steps(data.requests_of("train"), trainer.options.batch, 0), STEPS + WARM))
    seconds = []
    for step in steps:
        started = time.perf_counter()
        trainer.train_step(step)
        seconds.append(time.perf_counter() - started)
    rows = statistics.mean(step.rows for step in steps[:STEPS])
    found = {"rows_per_second": rows / statistics.median(seconds[WARM:])}
    return found | latency(trainer, data, folder / f"bundle_{name}")


def latency(trainer: Any, data: Any, bundle: Path) -> dict[str, float]:
    """p50 and p99 of a request, in milliseconds."""
    from finerank.export.bundle import write_bundle
    from finerank.runtime.profiles import Past
    from finerank.runtime.scorer import Scorer

    write_bundle(trainer.model, data.fitted, data.encoder, bundle, trainer.row_maps)
    scorer = Scorer.load(bundle, threads=1)
    draw = np.random.default_rng(0)
    request = {"user": 7, "country": 3, "years": 33}
    items = [
        {"item": int(i), "category": int(i) % CATEGORIES, "price": float(p)}
        for i, p in zip(draw.integers(0, ITEMS, 300), draw.lognormal(2, 1, 300), strict=True)
    ]
    rows: list[dict[str, object]] = [{"item": int(i), "category": int(i) % CATEGORIES} for i in range(50)]
    past = Past(data.encoder.events("clicks", rows), np.arange(50, 0, -1) * 3_600_000_000)
    seconds = []
    for _ in range(60):
        started = time.perf_counter()
        scorer.score(request, items, {"clicks": past})
        seconds.append(time.perf_counter() - started)
    ordered = sorted(seconds[10:])
    return {"p50_ms": 1e3 * ordered[len(ordered) // 2], "p99_ms": 1e3 * ordered[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--only", help="one model")
    parser.add_argument("--again", action="store_true", help="measure also what is in the file")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.folder)), flush=True)
        return
    from finerank.models import registry

    found = json.loads(given.results.read_text()) if given.results.exists() else {"models": {}}
    from run import machine

    found["machine"], found["date"] = machine(), time.strftime("%Y-%m-%d")
    found["models"] = {name: found["models"][name] for name in registry.names() if name in found["models"]}
    with tempfile.TemporaryDirectory() as scratch:
        for name in registry.names():
            if (given.only and name != given.only) or (name in found["models"] and not given.again):
                continue
            command = [sys.executable, __file__, str(given.results), "--one", name, "--folder", scratch]
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
            if done.returncode:
                print(f"{name}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr, flush=True)
                continue
            found["models"][name] = {k: round(v, 2) for k, v in json.loads(done.stdout.splitlines()[-1]).items()}
            print(name, found["models"][name], flush=True)
            given.results.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
