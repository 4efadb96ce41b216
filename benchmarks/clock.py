"""What every measured process shares, ours and the peers': settings, step clock, memory, noise, the result line.

Only the standard library and torch: it is imported in the peers' environments too.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

EMBEDDING, TOWER, UNIT, RATE, HISTORY = 16, [256, 128, 64], [64, 32], 1e-3, 50
BATCH, DEVICE = int(os.environ.get("BENCH_BATCH", "1024")), os.environ.get("BENCH_DEVICE", "cpu")
CROSSES, MAPS, HEADS, FACTOR, RANK, FFM_WIDTH = 3, [100, 100], 2, 16, 32, 4  # of the family: see `zoo.py`
EXPERTS, EXPERT, TASK_TOWER = 4, [128, 64], [32]
FGCNN_MAPS = [14, 16]
WARM = 8  # steps that are not counted where only some steps are measured
NUMBERS = [f"I{i}" for i in range(1, 14)]
CATEGORIES = [f"C{i}" for i in range(1, 27)]
TICKS = os.sysconf("SC_CLK_TCK")


def folder() -> Path:
    """Where generated data and prepared inputs are."""
    return Path(os.environ["BENCH_DATA"])


def _tree() -> list[int]:
    """This process and its descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                after = Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()
            except (OSError, IndexError):
                continue
            children.setdefault(int(after[1]), []).append(int(entry))
    found, todo = [], [os.getpid()]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found


def anonymous() -> int:
    """Bytes of anonymous memory of this process and its descendants: not what maps files."""
    total = 0
    for process in _tree():
        try:
            status = Path(f"/proc/{process}/status").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))
    return total


def _busy() -> float:
    """CPU seconds that the whole machine has been busy."""
    user, nice, system, _, _, irq, soft, steal = (int(x) for x in Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + soft + steal) / TICKS


def _own() -> float:
    """CPU seconds of this process and its descendants."""
    total = 0
    for process in _tree():
        try:
            after = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
        except (OSError, IndexError):
            continue
        total += sum(int(x) for x in after[11:15])
    return total / TICKS


class Noise:
    """`seconds` of a block, and `other`: the share of the machine's CPU that foreign processes took meanwhile."""

    def __enter__(self) -> Noise:
        self.busy, self.own, self.start = _busy(), _own(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self.start
        cores = os.cpu_count() or 1
        self.other = max(0.0, (_busy() - self.busy - (_own() - self.own)) / (self.seconds * cores))


class Memory:
    """The peak of anonymous memory above what `import torch` had left, sampled: in MB."""

    def __enter__(self) -> Memory:
        self.base = self.peak = anonymous()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            self.peak = max(self.peak, anonymous())

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, anonymous())

    @property
    def megabytes(self) -> float:
        """Peak above base."""
        return (self.peak - self.base) / 2**20


class Enough(Exception):  # noqa: N818  no error: it ends a training that has been measured
    """Raised out of a training loop once as many steps as wanted are done."""


def after_torch(tick: Callable[..., None]) -> Callable[[], None]:
    """Have torch call `tick` after each step of an optimiser of its own; returns what ends it."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    ended: Callable[[], None] = register_optimizer_step_post_hook(tick).remove
    return ended


class StepClock:
    """A clock on the optimiser steps of any trainer.

    The rate counts the steps after the first `warm`, loading of batches included, start-up not; `first` is the time until
    the first. `steps`: end the block (not the process) after so many counted steps; 0: whatever the block does.
    `hook`: has a function called after each step, and returns what ends that.
    """

    def __init__(
        self, warm: int = 1, steps: int = 0, hook: Callable[[Callable[..., None]], Callable[[], None]] = after_torch
    ) -> None:
        self.warm, self.limit, self.hook = warm, warm + steps if steps else 0, hook

    def __enter__(self) -> StepClock:
        self.times: list[float] = []
        self.cpu: list[float] = []
        self.start = time.perf_counter()
        self._end = self.hook(self._tick)
        self._noise = Noise().__enter__()
        return self

    def _tick(self, *_: object) -> None:
        self.times.append(time.perf_counter())
        self.cpu.append(time.process_time())
        if len(self.times) == self.limit:
            raise Enough

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        self._noise.__exit__()
        self._end()
        return kind is Enough

    def figures(self, rows_per_step: float = BATCH) -> dict[str, float]:
        """rows_per_s: of all counted steps; median_rows_per_s: of the median one, which a disturbance does not move;
        rows_per_cpu_s: the same rows over the CPU seconds of this process, without those of loaders in other processes.
        """
        times, cpu = self.times[self.warm - 1 :], self.cpu[self.warm - 1 :]
        gaps = sorted(b - a for a, b in pairwise(times))
        return {
            "rows_per_s": rows_per_step * len(gaps) / sum(gaps),
            "median_rows_per_s": rows_per_step / gaps[len(gaps) // 2],
            "rows_per_cpu_s": rows_per_step * len(gaps) / (cpu[-1] - cpu[0]),
            "first_s": self.times[0] - self.start,
            "other_cpu": self._noise.other,
        }


def steps_of(task: str) -> int:
    """How many steps of a model of the family are counted: BENCH_STEPS (60), a third of those that take long."""
    steps = int(os.environ.get("BENCH_STEPS", "60"))
    return steps // 3 if task in ("dien", "dien_aux", "bst", "fgcnn", "xdeepfm") else steps


def rows_of(task: str) -> int:
    """Training rows that they need, and some to spare."""
    return (WARM + steps_of(task) + 4) * BATCH


def for_steps(peer: str, task: str, world: str) -> tuple[dict[str, Any], Any, Any, dict[str, int]]:
    """What a peer that keeps columns trains some steps on: (columns, labels, a second task's labels, sizes of vocabularies).

    F and M are data B with other models; the second task of M is a made one that lives within the clicks.
    """
    import pickle

    import numpy as np

    with (folder() / f"{peer}_{'B' if world in 'FM' else world}.pickle").open("rb") as file:
        columns, labels, sizes, _ = pickle.load(file)
    columns, labels = {k: v[: rows_of(task)] for k, v in columns.items()}, labels[: rows_of(task)]
    if task == "dien_aux":
        for name in ("item_id", "cate_id"):
            columns["neg_hist_" + name] = np.random.permutation(columns["hist_" + name])
    return columns, labels, labels * (columns["I1"] > 0) if world == "M" else None, sizes


def settle(seed: int) -> None:
    """The same for all: threads, seed, freed memory kept for the next step."""
    import numpy as np
    import torch

    torch.set_num_threads(int(os.environ.get("BENCH_THREADS", "2")))
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
    libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


@contextmanager
def preparing() -> Iterator[None]:
    """From raw files to what training reads: time, CPU time and memory as the result line. The same for all."""
    with Memory() as memory:
        start, used = time.perf_counter(), time.process_time()
        yield
        seconds, cpu = time.perf_counter() - start, time.process_time() - used
    emit(seconds=seconds, cpu=cpu, memory_mb=memory.megabytes)


def timed(function: Callable[[], Any]) -> tuple[Any, Noise]:
    """(result, its noise and seconds)."""
    with Noise() as noise:
        found = function()
    return found, noise


def auc(labels: Any, scores: Any) -> float:
    """Area under the ROC curve, ties half: one definition for all."""
    import numpy as np

    labels, scores = np.asarray(labels).ravel() > 0, np.asarray(scores, dtype=np.float64).ravel()
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positive = int(labels.sum())
    return float((rank[labels].sum() - positive * (positive + 1) / 2) / (positive * (len(labels) - positive)))


def emit(**figures: Any) -> None:
    """The result, as the last line of the process's output."""
    print(json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in figures.items()}), flush=True)
