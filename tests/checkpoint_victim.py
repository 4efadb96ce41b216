"""A process to kill: reads orders from stdin, one JSON per line, and answers each with one line of JSON.

An order {"folder", "steps", "kill_at"} is carried out by a forked child that resumes from the folder and saves
checkpoints whose whole content follows from the step; it kills itself with SIGKILL just before its `kill_at`-th point
(None: never). {"folder", "delay"} instead saves without end and is killed from outside after `delay` seconds.
The answer tells the signal that ended the child, 0 for none. Forking spares an import of torch for every kill.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finerank.training.checkpoint import Checkpoints

TABLE_ROWS = 20


def content(step: int) -> tuple[dict[str, Tensor], dict[str, Any], Tensor]:
    """Tensors, state and table of a step: the table is that of the step before with three rows changed."""
    tensors = {"weight": torch.arange(3000.0).reshape(30, 100) * step, "steps": torch.tensor(step)}
    state = {"epoch": step // 10, "curve": [step / 7] * 50, "best": None}
    table = torch.zeros(TABLE_ROWS, 4)
    for past in range(1, step + 1):
        table[changed(past)] = float(past)
    return tensors, state, table


def changed(step: int) -> Tensor:
    """The rows of the table that a step changes."""
    return torch.tensor([step * 3, step * 5 + 1, step * 7 + 2]) % TABLE_ROWS


def save(checkpoints: Checkpoints, step: int) -> Path:
    """The checkpoint of a step."""
    tensors, state, table = content(step)
    return checkpoints.save(tensors, state, step, rows={"table": (table, changed(step))})


class Killer:
    """Counts points and ends the process at one of them."""

    def __init__(self, kill_at: int | None) -> None:
        self.kill_at, self.points = kill_at, list[str]()

    def __call__(self, point: str) -> None:
        if len(self.points) == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.points.append(point)


def child(order: dict[str, Any]) -> None:
    checkpoints = Checkpoints(order["folder"], at=Killer(order.get("kill_at")))
    found = checkpoints.load()
    first = found.step + 1 if found else 1
    for step in range(first, first + order["steps"]) if "steps" in order else count(first):
        save(checkpoints, step)


def main() -> None:
    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                child(order)
                status = 0
            finally:
                os._exit(status)
        if "delay" in order:
            time.sleep(order["delay"])
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, "exit": status}), flush=True)


if __name__ == "__main__":
    main()
