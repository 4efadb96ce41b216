"""finerank report: one HTML file of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finerank.cli import screen
from finerank.cli.app import app
from finerank.cli.screen import say
from finerank.report.page import write
from finerank.report.run_report import run_report
from finerank.run import Run


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    split: Annotated[str, typer.Option(help="validation or test.")] = "test",
    rows: Annotated[int, typer.Option(help="Rows for the importance of fields; 0 leaves it out.")] = 20_000,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The page; default RUN/report.html.")] = None,
) -> None:
    """Write the report of a run: one HTML file, no network.  Example: finerank report runs/demo/din"""
    at = out or run / "report.html"
    write(at, run_report(Run.open(run), split, rows, say))
    screen.console.print(f"written to {at}")
