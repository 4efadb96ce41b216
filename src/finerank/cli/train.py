"""finerank train: a recipe's run, from its logs to its metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from finerank.cli import screen
from finerank.cli.app import app
from finerank.cli.screen import Bar, Overrides, results_table, say, unjudged, waiting
from finerank.errors import UserError
from finerank.evaluation.evaluate import evaluate_run
from finerank.models.effects import without_effect
from finerank.recipe import Recipe, variants
from finerank.run import Run, reader_notes, run
from finerank.typed import apply_overrides, read_toml


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="The recipe (TOML).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The run's folder.")] = Path("runs/latest"),
    data: Annotated[Path | None, typer.Option(help="Folder of the encoded data (default: inside the run).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    warm_start: Annotated[
        Path | None, typer.Option(help="An older run to begin with: taken over by name, whatever values came and went.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--variants", help="TOML of named changes, such as models.toml; --only names one.")
    ] = None,
    only: Annotated[str, typer.Option("--only", help="The variant to train.")] = "",
    overrides: Overrides = None,
) -> None:
    """Prepare, train and test one model.  Example: finerank train examples/retail_din_cross.toml -o runs/din"""
    begin = [] if warm_start is None else [f"training.warm_start={json.dumps(str(warm_start.absolute()))}"]
    table = read_toml(recipe)
    if only or file:
        table = _variant(table, file, only)
    read = Recipe.parse(apply_overrides(table, [*(overrides or ()), *begin]), recipe.parent, str(recipe))
    for note in without_effect(read.model):
        screen.console.print(f"note: {note}")
    with Bar(read.model.name) as bar:
        result = run(read, out, data, resume, bar, say)
    with waiting("evaluating"):
        evaluation = evaluate_run(Run.open(out))
    screen.console.print(results_table([(read.model.name, result, evaluation)]))
    if not result.test:
        screen.console.print(
            f"note: there are no test rows; judge it by: {screen.command('evaluate', out, '--split', 'validation')}"
        )
    for note in unjudged(evaluation) if evaluation else ():
        screen.console.print(f"note: {note}")
    for note in reader_notes(read, result.dataset):
        screen.console.print(f"note: {note}")
    screen.console.print(f"written to {out}")


def _variant(table: Mapping[str, Any], file: Path | None, name: str) -> dict[str, Any]:
    """The recipe with one named change."""
    if file is None or not name:
        raise UserError(
            "train: --variants FILE and --only NAME go together: a file of named changes, and which to train"
        )
    found = variants(table, file, [name])[name]
    found.pop("seeds", None)  # a bench's
    return found
