"""finerank demo: models side by side on the data set that is shipped."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from finerank.cli import screen
from finerank.cli.app import app
from finerank.cli.screen import Bar, Overrides, results_table, say
from finerank.errors import UserError
from finerank.evaluation.evaluate import evaluate_run
from finerank.recipe import Recipe
from finerank.run import Run, run

DEMO = ("lr", "fm", "base", "din")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the demo's runs.")] = Path("runs/demo"),
    task: Annotated[
        str, typer.Option(help="discover: products never bought before; basket: all of an invoice.")
    ] = "discover",
    names: Annotated[list[str] | None, typer.Option("--model", help="Only these models; may be repeated.")] = None,
    overrides: Overrides = None,
) -> None:
    """Train LR, FM, the base model and DIN on Online Retail, which is shipped inside.  Example: finerank demo"""
    results = []
    for name in names or DEMO:
        with resources.as_file(resources.files("finerank.datasets") / f"demo_{name}.toml") as path:
            if not path.exists():
                raise UserError(f"--model {name}: the demo has {', '.join(DEMO)}")
            recipe = Recipe.read(path, [f"data.dataset.task={task}", *(overrides or ())])
        with Bar(name) as bar:
            result = run(recipe, out / name, out / f"data_{task}", progress=bar, step=say)
        results.append((name, result, evaluate_run(Run.open(out / name))))
    dataset = results[0][1].dataset
    split = dataset.manifest["split"]
    screen.console.print(
        f"\nUCI Online Retail, task {task}: {dataset.requests:,} requests, {dataset.rows:,} rows; split by time, "
        f"{split['test'][1]:,} test rows"
    )
    screen.console.print(results_table(results))
    screen.console.print(f"Each run is in {out}/<model>: recipe, metrics, curve, checkpoints.")
