"""finerank defaults: what a run is worth when a feature is held at one value, such as the position at serving."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from finerank.cli import screen
from finerank.cli.app import app
from finerank.cli.evaluate import ByOption, Groups, Split
from finerank.cli.screen import interval, waiting
from finerank.evaluation.defaults import sweep
from finerank.evaluation.document import METRICS
from finerank.run import Run

SHOWN = ("auc", "gauc", "logloss", "calibration", "rmse")


@app.command()
def defaults(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    feature: Annotated[str, typer.Argument(help="The feature to hold, for example the position.")],
    values: Annotated[list[str] | None, typer.Option("--value", help="Only this value; may be repeated.")] = None,
    split: Annotated[
        Split, typer.Option("--split", help="Rows to judge; choose by the validation rows.")
    ] = Split.validation,
    by: ByOption = Groups.user,
) -> None:
    """Hold a feature at one value for all rows, value by value.  Example: finerank defaults runs/base position"""
    opened = Run.open(run)
    with waiting("scoring"):
        found = sweep(opened, feature, values or (), split.value, by.value)
    table = Table(feature, "head", box=None)
    metrics = [m for m in SHOWN if any(m in of for of in found[0].metrics.values())]
    for m in metrics:
        table.add_column(METRICS[m][0], justify="right")
        table.add_column("95 %", justify="right")
    for one in found:
        for head, of in one.metrics.items():
            cells = [c for m in metrics for c in ((f"{of[m].value:.4f}", interval(of[m])) if m in of else ("", ""))]
            table.add_row(one.value, head, *cells)
    screen.console.print(table)
    screen.console.print(f"{split.value} rows; served with the value that is chosen in the place of {feature!r}.")
