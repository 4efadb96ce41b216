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
from pathlib import Path
from typing import Any

EMBEDDING, TOWER, UNIT, BATCH, RATE, HISTORY = 16, [256, 128, 64], [64, 32], 1024, 1e-3, 50
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


class StepClock:
    """A clock on the optimiser steps of any trainer: a hook that torch calls after each step of a dense optimiser.

    The rate counts the steps after the first, loading of batches included, start-up not; `first` is the time until then.
    """

    def __enter__(self) -> StepClock:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self.times: list[float] = []
        self.start = time.perf_counter()
        self._hook = register_optimizer_step_post_hook(lambda *_: self.times.append(time.perf_counter()))
        self._noise = Noise().__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._noise.__exit__()
        self._hook.remove()

    def figures(self, rows_per_step: float = BATCH) -> dict[str, float]:
        """rows_per_s: whole epoch; quiet_rows_per_s: of the median step, which a disturbance does not move."""
        gaps = sorted(b - a for a, b in zip(self.times, self.times[1:], strict=False))
        return {
            "rows_per_s": rows_per_step * len(gaps) / sum(gaps),
            "median_rows_per_s": rows_per_step / gaps[len(gaps) // 2],
            "first_s": self.times[0] - self.start,
            "other_cpu": self._noise.other,
        }


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
