"""finerank predict: a finished run's scores of raw rows, streamed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from finerank.cli import screen
from finerank.cli.app import app
from finerank.data.source import WRITTEN
from finerank.fresh.files import predict_file
from finerank.run import Run


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    samples: Annotated[
        Path, typer.Option("--samples", help="Rows to score: columns as in the recipe, labels not needed.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help=f"Where to write: {WRITTEN}.")],
    events: Annotated[
        Path | None, typer.Option("--events", help="The whole event log (default: the one the run was prepared from).")
    ] = None,
) -> None:
    """Score raw rows, in their order.  Example: finerank predict runs/din --samples new.parquet -o scores.parquet"""
    columns = (SpinnerColumn(), TextColumn("{task.completed:,.0f} rows"), TimeElapsedColumn())
    with Progress(*columns, console=screen.console, transient=True, disable=not screen.console.is_terminal) as bar:
        task = bar.add_task("rows", total=None)
        rows = predict_file(Run.open(run), samples, events, out, advance=lambda n: bar.advance(task, n))
    screen.console.print(f"{rows:,} rows scored; written to {out}")
