"""finerank train: a recipe's run, from its logs to its metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from finerank.cli import screen
from finerank.cli.app import app
from finerank.cli.screen import Bar, Overrides, results_table, say, waiting
from finerank.evaluation.evaluate import evaluate_run
from finerank.recipe import Recipe
from finerank.run import Run, run


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="The recipe (TOML).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The run's folder.")] = Path("runs/latest"),
    data: Annotated[Path | None, typer.Option(help="Folder of the encoded data (default: inside the run).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    warm_start: Annotated[
        Path | None, typer.Option(help="An older run to begin with: taken over by name, whatever values came and went.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Prepare, train and test one model.  Example: finerank train examples/retail_din_cross.toml -o runs/din"""
    begin = [] if warm_start is None else [f"training.warm_start={json.dumps(str(warm_start.absolute()))}"]
    read = Recipe.read(recipe, [*(overrides or ()), *begin])
    with Bar(read.model.name) as bar:
        result = run(read, out, data, resume, bar, say)
    with waiting("evaluating"):
        evaluation = evaluate_run(Run.open(out))
    screen.console.print(results_table([(read.model.name, result, evaluation)]))
    for note in result.dataset.manifest.get("notes", ()):
        screen.console.print(f"note: {note}", markup=False)
    screen.console.print(f"written to {out}")
