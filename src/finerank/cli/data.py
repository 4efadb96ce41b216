"""finerank data: a public data set's raw files, as published, into samples, events and a recipe."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

import polars as pl
import typer
from rich.table import Table

from finerank.cli import screen
from finerank.cli.app import app
from finerank.data.folders import vacant
from finerank.datasets.adapter import adapter, adapters
from finerank.errors import UserError
from finerank.typed import apply_overrides, build


@app.command()
def data(
    name: Annotated[str | None, typer.Argument(help="The data set; none: list them.")] = None,
    source: Annotated[Path | None, typer.Option("--from", help="Folder of the raw files, as published.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write: samples, events, recipe.")] = None,
    choices: Annotated[list[str] | None, typer.Option("--set", help="A choice of the protocol: --set seed=2")] = None,
) -> None:
    """Convert a public data set.  Example: finerank data movielens_1m --from ml-1m -o data/ml  (alone: list them)"""
    if name is None:
        screen.console.print(_listed())
        return
    chosen = adapter(name)
    if out is None or (chosen.files and source is None):  # a synthetic world has no files
        missing, wanted = (
            ("--from FOLDER", ", ".join(chosen.files)) if chosen.files and not source else ("-o OUT", "the result")
        )
        raise UserError(f"data {name}: {missing} is missing; name the folder of {wanted}")
    options = build(chosen.options, apply_overrides({}, choices or (), "seed=2"), f"data {name}")
    vacant(out)
    with screen.console.status(f"{name}: reading {source or 'nothing, drawing'}"):
        try:
            converted = chosen.convert(source or Path(), options)
        except UserError as error:
            raise UserError(f"{name} from {source}: {error}" if source else f"{name}: {error}") from error
    with screen.console.status(f"{name}: writing {out}"):
        converted.write(out)
    for what, count in converted.counts.items():
        screen.console.print(f"{count:>14,}  {what}")
    for file in ("samples", "events"):
        if (out / f"{file}.parquet").exists():
            rows = pl.scan_parquet(out / f"{file}.parquet").select(pl.len()).collect().item()
            screen.console.print(f"{rows:>14,}  rows of {file}.parquet")
    for note in converted.notes:
        screen.console.print(f"note: {note}")
    screen.console.print(f"written to {out}; next: {screen.command('train', out / 'recipe.toml')}")
    if converted.models is not None:
        named = ", ".join(tomllib.loads(converted.models))
        screen.console.print(f"models with published settings in {out / 'models.toml'}: {named}")
        bench = screen.command("bench", out / "recipe.toml", "--variants", out / "models.toml", "-o", "runs/bench")
        screen.console.print(f"all of them: {bench}")


def _listed() -> Table:
    table = Table("data set", "raw files", "what it is, and its licence", box=None)
    for known in adapters():
        table.add_row(known.name, ", ".join(known.files), known.about)
    return table
