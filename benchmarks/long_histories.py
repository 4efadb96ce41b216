"""Training on histories of 2,000 events: rows a second and the peak of anonymous memory, each model in a fresh process.

python benchmarks/long_histories.py [--events 2000] [--rows 128] [--steps 4] [model ...]

Users' past events are of 40 categories and 20,000 items; a click is likelier where the candidate's category is frequent in the
whole past, so that looking far back pays. Memory is counted above what importing the package takes, and holds the batch, the
model, its optimiser and everything between.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from itertools import islice
from pathlib import Path

import numpy as np

MODELS = ("base", "din", "sim", "sim_soft", "rnn", "bst", "hstu", "bert4rec")
USERS, ITEMS, CATEGORIES, REQUESTS = 150, 20_000, 40, 8  # requests per user, the last ones of their time


def anonymous() -> int:
    """Bytes of anonymous memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


def data(folder: Path, events: int) -> None:
    """Prepare the world."""
    import polars as pl

    from finerank.data.prepare import Keys, prepare
    from finerank.data.split import Split
    from finerank.schema import Categorical, History, Schema, Task

    draw = np.random.default_rng(0)
    length = events + REQUESTS
    category = draw.integers(0, CATEGORIES, ITEMS)
    user = np.repeat(np.arange(USERS), length)
    item = draw.integers(0, ITEMS, USERS * length)
    log = pl.DataFrame(
        {"user": user, "time": np.tile(np.arange(length) * 600, USERS), "item": item, "category": category[item]}
    )
    rows = USERS * REQUESTS
    wanted = draw.integers(0, ITEMS, rows)
    of = np.repeat(np.arange(USERS), REQUESTS)
    often = np.array([np.bincount(category[item[user == u]], minlength=CATEGORIES) for u in range(USERS)])
    share = often[of, category[wanted]] / length * CATEGORIES
    samples = pl.DataFrame(
        {
            "user": of,
            "time": (events + np.tile(np.arange(REQUESTS), USERS)) * 600,
            "item": wanted,
            "category": category[wanted],
            "click": (draw.random(rows) < 1 / (1 + np.exp(-4 * (share - 1)))).astype(np.int8),
        }
    )
    features = (
        Categorical(name="user", level="request"),
        Categorical(name="item", level="candidate"),
        Categorical(name="category", level="candidate"),
    )
    past = History(name="past", fields=("item", "category"), max_length=events)
    schema = Schema(features=features, histories=(past,), tasks=(Task(name="click"),))
    prepare(
        folder, schema, samples.lazy(), log.lazy(), Keys(user="user", time="time"), Split(validation=0.05, test=0.05)
    )


def measure(folder: Path, name: str, rows: int, count: int) -> dict[str, float]:
    """Train `count` steps of `rows` candidates, after one that is not timed."""
    import torch

    from finerank.data.dataset import Dataset
    from finerank.data.order import Budget
    from finerank.models import registry
    from finerank.training.loop import Trainer
    from finerank.training.options import TrainingOptions

    torch.set_num_threads(1)
    before = anonymous()
    options = TrainingOptions(batch=Budget(rows=rows), threads=1, keep_memory=False)
    trainer = Trainer(registry.composition(name), Dataset.open(folder), options)
    steps = list(islice(trainer.feed.steps(trainer.dataset.requests_of("train"), options.batch), count + 1))
    peak, over = before, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.005):
            peak = max(peak, anonymous())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    trainer.train_step(steps[0])
    started, cpu, done = time.perf_counter(), time.process_time(), 0
    for step in steps[1:]:
        trainer.train_step(step)
        done += step.rows
    seconds, spent = time.perf_counter() - started, time.process_time() - cpu
    over.set()
    watcher.join()
    return {
        "rows": done / len(steps[1:]),
        "a second": done / seconds,
        "per CPU second": done / spent,
        "peak": peak - before,
    }


def main() -> None:
    """A line per model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--events", type=int, default=2_000)
    parser.add_argument("--rows", type=int, default=128, help="candidates a step, one a request")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--one", type=Path, help="measure the one model, in this process, on data that are here")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, *given.models, given.rows, given.steps)))
        return
    with tempfile.TemporaryDirectory() as folder:
        data(Path(folder) / "data", given.events)
        print(
            f"{given.events:,} events a history, {given.rows} rows a step, one candidate a request, one thread",
            flush=True,
        )
        for name in given.models:
            settings = ["--one", str(Path(folder) / "data"), "--rows", str(given.rows), "--steps", str(given.steps)]
            command = [sys.executable, __file__, name, *settings]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                said = done.stderr.strip().splitlines()
                print(
                    f"  {name:<10} failed ({done.returncode}): {said[-1] if said else 'killed, for memory?'}",
                    flush=True,
                )
                continue
            found = json.loads(done.stdout)
            print(
                f"  {name:<10}{found['a second']:10,.1f} rows/s{found['per CPU second']:10,.1f} rows/CPU s"
                f"{found['peak'] / 2**30:8.2f} GiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
