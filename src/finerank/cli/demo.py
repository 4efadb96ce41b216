"""finerank demo: models side by side on the data set that is shipped."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer

from finerank.cli import screen
from finerank.cli.app import app
from finerank.cli.screen import Bar, Overrides, comparison_table, results_table, say, waiting
from finerank.errors import UserError, nearest
from finerank.evaluation.compare import compare
from finerank.evaluation.document import write_whole
from finerank.evaluation.evaluate import evaluate_run
from finerank.recipe import Recipe
from finerank.report.comparison_report import comparison_report
from finerank.report.run_report import run_report
from finerank.run import Run, run
from finerank.typed import apply_overrides, read_toml

BASE, REPORTED = "base", "din"
"""Everything is compared with the first; the second gets a report of its own."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the demo's runs.")] = Path("runs/demo"),
    task: Annotated[
        str, typer.Option(help="discover: products never bought before; basket: all of an invoice.")
    ] = "discover",
    names: Annotated[list[str] | None, typer.Option("--model", help="Only these models; may be repeated.")] = None,
    overrides: Overrides = None,
) -> None:
    """Train and compare models on Online Retail, which is shipped inside.  Example: finerank demo"""
    recipes = {name: demo_recipe(name, [f"data.dataset.task={task}", *(overrides or ())]) for name in names or models()}
    results = []
    for name, recipe in recipes.items():
        with Bar(name) as bar:
            result = run(recipe, out / name, out / f"data_{task}", progress=bar, step=say)
        with waiting("evaluating"):
            results.append((name, result, evaluate_run(Run.open(out / name))))
    dataset = results[0][1].dataset
    split = dataset.manifest["split"]
    screen.console.print(
        f"\nUCI Online Retail, task {task}: {dataset.requests:,} requests, {dataset.rows:,} rows; split by time, "
        f"{split['test'][1]:,} test rows"
    )
    screen.console.print(results_table(results))
    first = BASE if BASE in recipes else next(iter(recipes))
    runs = [Run.open(out / name) for name in sorted(recipes, key=lambda name: name != first)]
    if len(runs) > 1:
        with waiting("comparing"):
            found = compare(runs)
        screen.console.print(f"\nEverything against {first}, paired on the same rows:")
        screen.console.print(comparison_table(found))
    written = []
    if REPORTED in recipes:
        written.append(out / REPORTED / "report.html")
        write_whole(written[0], run_report(Run.open(out / REPORTED), step=say))
    if len(runs) > 1:
        written.append(out / "report.html")
        write_whole(written[-1], comparison_report(found, runs, written[-1]))
    screen.console.print(f"Each run is in {out}/<model>: recipe, metrics, curve, checkpoints.")
    for page in written:
        screen.console.print(f"report: {page}")


def models() -> list[str]:
    """The demo's models, in order of showing."""
    return list(_table("demo_models.toml"))


def demo_recipe(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """The demo's recipe of one model: demo.toml with what demo_models.toml adds. Raises UserError for another name."""
    known = _table("demo_models.toml")
    if name not in known:
        raise UserError(f"--model {name}: the demo has {', '.join(known)}; {nearest(name, known)}")
    table = _table("demo.toml")
    table |= {"model": known[name]["model"], "training": table["training"] | known[name]["training"]}
    return Recipe.parse(apply_overrides(table, overrides), where="demo")


def _table(file: str) -> dict[str, Any]:
    with resources.as_file(resources.files("finerank.datasets") / file) as path:
        return read_toml(path)
