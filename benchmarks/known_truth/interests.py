"""World 2: clicks by the number of past clicks of the candidate's category; DIN, its softmax, and pooling."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.known_truth.section import Array, Section, error, last_tenth, predicted, trained
from finerank.datasets.worlds.interests import InterestOptions, interests
from finerank.datasets.worlds.world import World
from finerank.metrics.ranking import auc
from finerank.report import charts


def interests_section(folder: Path) -> Section:
    world = interests(InterestOptions(users=4_000))
    category = np.asarray(world.truth["category"])
    kinds = {
        "DIN": [],
        "DIN, softmax": ["model.representation.unit.softmax=true"],
        "base": ["model.name=base"],
        "base, mean": ["model.name=base", "model.representation.pooling=mean"],
    }
    rows = last_tenth(world)
    true = world.samples["true_click"].to_numpy()[rows]
    count = _same_category(world, category)[rows]
    table, points = [["model", "test AUC", "error of P(click)", "P at 0 of the kind", "P at 8 and more"]], []
    for k in range(9):
        at = count >= k if k == 8 else count == k
        points.append({"x": k, "y": float(true[at].mean()), "series": "truth"})
    for name, overrides in kinds.items():
        fitted = trained(world, folder, name.replace(", ", "_").lower(), [*overrides, "training.epochs=6"])
        p = predicted(fitted, world.samples)["click"][rows]
        means = [float(p[count >= k if k == 8 else count == k].mean()) for k in range(9)]
        points += [{"x": k, "y": mean, "series": name} for k, mean in enumerate(means)]
        label = world.samples["click"].to_numpy()[rows]
        table.append([name, f"{auc(label, p):.4f}", f"{error(p, true):.4f}", f"{means[0]:.3f}", f"{means[-1]:.3f}"])
    text = (
        "A click's probability grows with the number of past clicks of the candidate's category, up to eight; users differ in "
        "how much they click. What softmax keeps, the share of a category, is not what counts."
    )
    drawn = charts.lines(
        points, "past clicks of the candidate's category", "P(click)", "Predicted probability by count"
    )
    return Section("Interests: DIN and the intensity that softmax loses", text, table, str(drawn), "P(click) by count")


def _same_category(world: World, category: Array) -> Array:
    """Past clicks of the candidate's category among the last 50, for every row: from the log, not from a model."""
    assert world.events is not None
    out = np.zeros(world.samples.height, dtype=np.int64)
    log = {u: (t, i) for u, t, i in world.events.group_by("user").agg("time", "item").iter_rows()}
    samples = world.samples.select("user", "time", "item")
    for row, (user, time, item) in enumerate(samples.iter_rows()):
        times, items = log.get(user, ([], []))
        known = np.searchsorted(times, time, side="left")  # strictly before
        past = np.asarray(items[max(0, known - 50) : known], dtype=np.int64)
        out[row] = int((category[past] == category[item]).sum())
    return out
