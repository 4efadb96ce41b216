"""finerank init: a first recipe from a look at a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from finerank.cli import screen
from finerank.cli.app import app
from finerank.errors import UserError
from finerank.propose.proposal import Given, propose


@app.command()
def init(
    samples: Annotated[
        Path,
        typer.Argument(help="The file of candidates with their labels (CSV, JSON lines, also packed; Parquet, Arrow)."),
    ],
    events: Annotated[Path | None, typer.Option(help="A file of past events, for histories.")] = None,
    label: Annotated[str | None, typer.Option(help="The column of labels, if it is not found.")] = None,
    user: Annotated[str | None, typer.Option(help="The column of users.")] = None,
    request: Annotated[str | None, typer.Option(help="The column that numbers the requests.")] = None,
    time: Annotated[str | None, typer.Option(help="The column of times.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The recipe to write.")] = Path("recipe.toml"),
) -> None:
    """Propose a recipe, with a reason for every guess.  Example: finerank init clicks.csv --events log.parquet"""
    if out.exists():
        raise UserError(f"{out}: exists already; name another file with --out, or remove it")
    names = tuple(None if p is None else os.path.relpath(p, out.parent) for p in (samples, events))
    given = Given(label=label, user=user, request=request, time=time)
    found = propose(str(samples), None if events is None else str(events), given, (str(names[0]), names[1]))
    table = Table("column", "taken for", "why", box=None)
    for guess in found.guesses:
        what = guess.role if guess.feature is None else f"{guess.feature['level']} {guess.feature['kind']}"
        table.add_row(guess.column, what, guess.why)
    screen.console.print(table)
    for warning in found.warnings:
        screen.console.print(f"note: {warning}")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(found.recipe, encoding="utf-8")
    screen.console.print(f"written to {out}; read it, then: {screen.command('train', out)}")
