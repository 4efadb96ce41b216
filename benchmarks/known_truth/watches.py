"""World 10: minutes watched; the odds of YouTube's weighted logistic regression beside E[T] and E[T] / P(not watched)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.known_truth.pictures import beside, curves
from benchmarks.known_truth.section import Section, last_tenth, predicted, trained
from finerank.datasets.worlds.watches import WatchOptions, watches

BIASES = (-3.0, 0.0)
SETTINGS = [
    'model.representation={kind="plain", embedding={width=8}}',
    'model.interactions=[{kind="tower", hidden=[32], activation="relu"}]',
    'training.tables={kind="adam", lr=0.002}',
    'training.dense={kind="adam", lr=0.001}',
    "training.epochs=12",
    "training.patience=2",
]


def watches_section(folder: Path) -> Section:
    table = [["watched", "mean odds", "mean E[T]", "mean E[T] / P(not watched)", "rank correlation with E[T]"]]
    panels = []
    for bias in BIASES:
        world = watches(WatchOptions(rows=200_000, users=100, items=100, bias=bias))
        rows, share = last_tenth(world), np.asarray(world.truth["watched"])
        fitted = trained(world, folder / f"{bias:g}", "youtube_ranking", SETTINGS)
        p = predicted(fitted, world.samples)["watch"][rows]
        odds, minutes = p / (1 - p), world.samples["true_watch"].to_numpy()[rows]
        exact = minutes / (1 - share[rows])
        ranks = (v.argsort().argsort() for v in (odds, minutes))
        watched = f"{share.mean():.0%}"
        figures = (odds.mean(), minutes.mean(), exact.mean(), np.corrcoef(*ranks)[0, 1])
        table.append([watched, *(f"{v:.3f}" for v in figures)])
        tenths = np.array_split(minutes.argsort(), 10)
        points = [{"x": minutes[t].mean(), "y": odds[t].mean(), "series": "odds, predicted"} for t in tenths]
        points += [{"x": minutes[t].mean(), "y": exact[t].mean(), "series": "E[T] / P(not watched)"} for t in tenths]
        ends = (float(points[0]["x"]), float(points[9]["x"]))
        law = [{"x": v, "y": v} for v in ends]
        log = {"type": "log", "nice": False}
        panels.append(
            curves(points, "E[T], minutes", "minutes", title=f"{watched} watched", law=law, scale_x=log, scale_y=log)
        )
    text = (
        "A row is watched with a known probability and for a known time on average; watched rows weigh as much as they were "
        "watched. The odds exp(z), which are what is served, are found as E[T] / P(not watched). That is the expected watch "
        "time (dashed) where few rows are watched; with half of them watched, odds are three times too high. As a "
        "score to rank by they stay good, and early stopping judges them as such: by the loss they are trained with."
    )
    describe = "predicted odds by true expected watch time, in ten shares of the rows"
    return Section("Watch time: odds and expected minutes", text, table, beside(panels, describe), describe)
