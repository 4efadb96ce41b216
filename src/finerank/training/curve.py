"""curve.csv: a line per epoch, with the validation metrics of every head."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from finerank.training.loop import Epoch


def write_curve(path: Path, history: Sequence[Epoch]) -> None:
    """Write the epochs of a training, at least one."""
    names = [(head, metric) for head, found in history[0].validation.items() for metric in found]
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(["epoch", "loss", "rows_per_second", *(f"{h}.{m}" for h, m in names)])
        for e in history:
            lines.writerow([e.epoch + 1, e.loss, e.rows_per_second, *(e.validation[h][m] for h, m in names)])
