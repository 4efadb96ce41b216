"""finerank prepare: a recipe's data, encoded once for several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finerank.cli import screen
from finerank.cli.app import app
from finerank.cli.screen import Overrides, say
from finerank.recipe import Recipe
from finerank.run import prepared, reader_notes


@app.command()
def prepare(
    recipe: Annotated[Path, typer.Argument(help="The recipe (TOML).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the encoded data.")],
    overrides: Overrides = None,
) -> None:
    """Encode a recipe's data.  Example: finerank prepare examples/retail_din_cross.toml -o runs/data"""
    read = Recipe.read(recipe, overrides or ())
    dataset = prepared(read, out, say)
    m = dataset.manifest
    users = f", {m['users']:,} users" if m["users"] else ""  # of a log that names none
    screen.console.print(f"{m['requests']:,} requests, {m['rows']:,} rows{users} in {out}")
    for name, (requests, rows) in m["split"].items():
        screen.console.print(f"  {name}: {requests:,} requests, {rows:,} rows")
    for note in reader_notes(read, dataset):
        screen.console.print(f"note: {note}")
