"""finerank bench: recipes x seeds on one data set, as one page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from finerank.cli import screen
from finerank.cli.app import app
from finerank.cli.screen import Overrides
from finerank.evaluation.compare import Comparison
from finerank.evaluation.document import write_whole
from finerank.report.bench_report import bench_report
from finerank.run import Run
from finerank.search.bench import bench as run_bench
from finerank.search.standings import COLUMNS, Bench, cells, notes


@app.command()
def bench(
    recipes: Annotated[list[Path], typer.Argument(help="Recipes (TOML) that share their data.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the runs and the page.")],
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each.")] = 2,
    base: Annotated[str, typer.Option(help="Test the others against this one (default: the first that runs).")] = "",
    models: Annotated[
        list[str] | None, typer.Option("--model", help="The recipe with this named model; may be repeated.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="The recipe with every named model.")] = False,
    variants: Annotated[
        Path | None, typer.Option("--variants", help="TOML: a table per contestant, [name] model = ..., training = ...")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Of the variants only this one; may be repeated.")
    ] = None,
    minutes: Annotated[float, typer.Option(min=0, help="Begin no training after so many minutes.")] = math.inf,
    isolate: Annotated[
        bool, typer.Option(help="Each training in a process of its own, for its memory to be measured.")
    ] = True,
    overrides: Overrides = None,
) -> None:
    """Compare recipes over seeds.  Example: finerank bench recipe.toml -o runs/bench --model base --model din --base base

    What is finished in the folder is not trained again. bench.md, bench.json and bench.html are written after each model.
    """
    page = out / "bench.html"

    def draw(found: Bench, compared: Comparison | None, runs: Sequence[Run]) -> None:
        write_whole(page, bench_report(found, compared, runs))

    found = run_bench(
        recipes,
        out,
        seeds,
        base,
        variants=variants,
        models=models or (),
        every=every,
        overrides=overrides or (),
        only=only or (),
        minutes=minutes,
        isolate=isolate,
        tell=screen.console.print,
        written=draw,
    )
    table = Table(COLUMNS[0], box=None)
    for column in COLUMNS[1:]:
        table.add_column(column, justify="right")
    for one in found.standings:
        if not one.reason:
            table.add_row(*cells(one, found.base))
    screen.console.print(table)
    for one in found.standings:
        if one.reason:
            screen.console.print(f"left out: {one.name}: {one.reason}")
    for note in notes(found):
        screen.console.print(note)
    screen.console.print(f"written to {page}")
