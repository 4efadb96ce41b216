"""World 6: looks fade down the page; PAL, a position tower, and no position at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks.known_truth.section import QUICK, Section, error, last_tenth, predicted, trained
from finerank.datasets.worlds.positions import PositionOptions, positions
from finerank.metrics.ranking import auc
from finerank.models.pal import SeenHeads
from finerank.report import charts


def positions_section(folder: Path) -> Section:
    world = positions(PositionOptions())
    true = world.samples["true_click"].to_numpy()
    kinds = {"plain": "tasks", "PAL": "pal", "shallow tower": "position_tower"}
    table = [
        [
            "model",
            "test AUC, clicks as logged",
            "AUC within a position",
            "error of P(click, if seen)",
            "mean / true mean",
        ]
    ]
    rows, seen = last_tenth(world), np.asarray(world.truth["seen"])
    points = [{"x": k + 1, "y": float(s), "series": "truth"} for k, s in enumerate(seen)]
    for name, heads in kinds.items():
        fitted = trained(world, folder, heads, [f'model.heads={{kind="{heads}"}}', *QUICK])
        p = predicted(fitted, world.samples)["click"][rows]
        label, place = (world.samples[c].to_numpy()[rows] for c in ("click", "position"))
        within = float(np.mean([auc(label[place == k], p[place == k]) for k in range(1, 11)]))
        shown = [
            f"{auc(label, p):.4f}",
            f"{within:.4f}",
            f"{error(p, true[rows]):.4f}",
            f"{p.mean() / true[rows].mean():.3f}",
        ]
        table.append([name, *shown])
        head = fitted.trainer().model.head
        if isinstance(head, SeenHeads):
            symbol = fitted.dataset.encoder.tables["position"].lookup
            curve = head.prob_seen(torch.tensor([[symbol(str(k))] for k in range(1, 11)])).tolist()
            points += [{"x": k + 1, "y": s, "series": "PAL"} for k, s in enumerate(curve)]
    text = (
        "A click needs a look, and looks fade down the page; the old ranking put good items higher. Served scores know no "
        "position. PAL recovers how likely a row is seen (picture) and with it the click of a seen row; the others predict "
        "clicks of rows as they stood. The AUC on clicks as logged favours who repeats the old order; within a position it "
        "does not."
    )
    drawn = charts.lines(points, "position", "P(seen)", "Probability of being seen by position")
    return Section("Positions: PAL and the curve of sight", text, table, str(drawn), "P(seen) by position")
