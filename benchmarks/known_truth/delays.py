"""World 7: conversions that come late; the delayed feedback model and a plain one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.known_truth.section import QUICK, Section, error, last_tenth, predicted, trained
from finerank.datasets.worlds.delays import DelayOptions, delays
from finerank.report import charts


def delays_section(folder: Path) -> Section:
    table = [["log, days", "conversions still to come", "model", "mean / true mean", "error of P(conversion)"]]
    points = []
    for days in (3.0, 6.0, 12.0, 24.0):
        world = delays(DelayOptions(days=days))
        true, rows = world.samples["true_conversion"].to_numpy(), last_tenth(world)
        eventual = world.samples.filter(pl.col("eventual") == 1)["conversion"]
        late = 1 - float(np.mean(eventual.to_numpy()))
        for name, model in (("plain", "lr"), ("delayed feedback", "dfm")):
            naive = replace(world, recipe=dict(world.recipe) | {"task": world.recipe["task"][:1]})
            part = folder / f"{model}_{days:g}"
            fitted = trained(naive if model == "lr" else world, part, model, [f"model.name={model}", *QUICK])
            p = predicted(fitted, world.samples)["conversion"][rows]
            ratio = float(p.mean() / true[rows].mean())
            table.append([f"{days:g}", f"{late:.0%}", name, f"{ratio:.3f}", f"{error(p, true[rows]):.4f}"])
            points.append({"x": late, "y": ratio, "series": name})
    text = (
        "A click converts after four days on average, and the log is cut before all have. A plain model takes what is not yet "
        "for never; the delayed feedback model asks how long a row was watched."
    )
    drawn = charts.lines(
        points, "share of conversions still to come", "predicted / true rate", "Bias by share of late conversions"
    )
    return Section(
        "Delays: conversions that have not come yet", text, table, str(drawn), "predicted / true by lateness"
    )
