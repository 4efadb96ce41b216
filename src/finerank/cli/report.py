"""finerank report: one HTML file of a run, of several compared, or of an ablation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finerank.cli import screen
from finerank.cli.app import app
from finerank.cli.evaluate import Split, SplitOption
from finerank.cli.screen import say
from finerank.evaluation.compare import compare
from finerank.evaluation.document import write_whole
from finerank.report.ablation_report import ablation_report
from finerank.report.comparison_report import comparison_report
from finerank.report.run_report import run_report
from finerank.run import Run
from finerank.search.ablation import KEPT


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="A run's folder (several are compared with the first) or an ablation's.")
    ],
    split: SplitOption = Split.test,
    rows: Annotated[int, typer.Option(min=0, help="Rows for the importance of fields; 0 leaves it out.")] = 20_000,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The page; default: in the (first) run's folder.")
    ] = None,
) -> None:
    """Write one HTML file that needs no network.  Example: finerank report runs/demo/base runs/demo/din -o runs/demo.html"""
    if len(runs) == 1 and (runs[0] / KEPT).exists():
        at = out or runs[0] / "ablation.html"
        write_whole(at, ablation_report(runs[0]))
        screen.console.print(f"written to {at}")
        return
    opened = [Run.open(run) for run in runs]
    if len(opened) == 1:
        at = out or runs[0] / "report.html"
        write_whole(at, run_report(opened[0], split.value, rows, say))
    else:
        at = out or runs[0] / "comparison.html"
        write_whole(at, comparison_report(compare(opened, split.value), opened, at))
    screen.console.print(f"written to {at}")
