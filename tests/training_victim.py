"""A process to kill while it trains: reads orders from stdin, one JSON per line, and answers each with one line of JSON.

An order {"data", "folder", "point", "kill_at"} is carried out by a forked child that resumes the training in the folder
and kills itself with SIGKILL just before the `kill_at`-th time that it comes to a point of this name (null: never). With
"delay" it is killed from outside after so many seconds; with "model", it is that model's training with all its stages. The
answer tells the signal that ended the child, 0 for none.
Forking spares an import of torch for every kill.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # torch.optim imports it at its first step: here once, not in every child

from finerank.data.dataset import Dataset
from finerank.data.order import Budget
from finerank.models.base import Tower
from finerank.models.registry import composition, parse
from finerank.schema import Growing
from finerank.training.loop import Trainer
from finerank.training.options import L2, TrainingOptions
from finerank.training.stages import after_stages

MODEL = composition("dien")
OPTIONS = TrainingOptions(
    epochs=3,
    patience=9,
    batch=Budget(rows=40),
    regularise=L2(strength=0.5),
    save_every=1,
    threads=1,
    keep_memory=False,
    monitor="logloss",
)
STAGED = replace(OPTIONS, regularise=None, epochs=2)
ENCODING = Growing(capacity=20)


def trainer(data: Dataset, folder: Path, at: Any = lambda point: None) -> Trainer:
    """The training that is killed: a bit of everything that a checkpoint must hold."""
    return Trainer(
        replace(MODEL, interactions=(Tower.Options(hidden=(8,), dropout=0.3),)), data, OPTIONS, folder, at=at
    )


class Killer:
    """Counts the points of a name and ends the process at one of them."""

    def __init__(self, point: str | None, kill_at: int | None) -> None:
        self.point, self.left = point, kill_at

    def __call__(self, point: str) -> None:
        if self.left is not None and point == self.point:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def child(order: dict[str, Any]) -> None:
    killer = Killer(order.get("point"), order.get("kill_at"))
    data, folder = Dataset.open(order["data"]), Path(order["folder"])
    if "model" in order:
        after_stages(parse(order["model"]), data, STAGED, folder, at=killer, resume=True).fit(resume=True)
    else:
        trainer(data, folder, killer).fit(resume=True)


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
        killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        print(json.dumps({"signal": killed, "exit": 0 if killed else os.WEXITSTATUS(status)}), flush=True)


if __name__ == "__main__":
    main()
