"""finerank transfer: the joint model against one model per task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from finerank.cli import screen
from finerank.cli.app import app
from finerank.cli.screen import Overrides
from finerank.search.transfer import COLUMNS, cells
from finerank.search.transfer import transfer as between


@app.command()
def transfer(
    recipe: Annotated[Path, typer.Argument(help="The recipe (TOML) of several tasks.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the runs and the table.")],
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each model.")] = 2,
    twin: Annotated[
        list[str] | None, typer.Option(help="Set a key of the single-task recipes alone, as --set does for all.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Compare with one model per task: negative transfer.  Example: finerank transfer recipe.toml -o runs/transfer

    What is finished in the folder is not trained again. The table is also written to transfer.md and transfer.json.
    """
    found = between(recipe, out, seeds, overrides or (), twin or (), screen.console.print)
    table = Table(*COLUMNS[:2], box=None)
    for title in COLUMNS[2:]:
        table.add_column(title, justify="right")
    for task in found:
        table.add_row(*cells(task))
    screen.console.print(table)
    screen.console.print(f"written to {out / 'transfer.md'}")
