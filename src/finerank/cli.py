"""finerank <verb>: from a log to a trained model."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from finerank.errors import UserError
from finerank.models import registry
from finerank.recipe import Recipe
from finerank.run import Result, prepared, run
from finerank.training.loop import Epoch
from finerank.training.loop import Progress as TrainingProgress

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Fine ranking: learn from logs which candidates a user will click, buy or watch.",
)
# paths and names stay as they are, and are not cut to a width where there is no terminal
console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 1_000)
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Set a key of the recipe: --set training.epochs=3")]


class Bar(TrainingProgress):
    """A progress bar on a terminal; on anything else one line per epoch."""

    def __init__(self, name: str) -> None:
        self.name = name
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task = self.bar.add_task(name, loss="")

    def __enter__(self) -> Bar:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def epoch(self, epoch: int, rows: int) -> None:
        """See `training.loop.Progress`."""
        self.bar.reset(self.task, total=rows, description=f"{self.name} epoch {epoch + 1}", loss="")

    def advance(self, rows: int, loss: float) -> None:
        """See `training.loop.Progress`."""
        self.bar.update(self.task, advance=rows, loss="" if math.isnan(loss) else f"loss {loss:.4f}")

    def validated(self, epoch: Epoch) -> None:
        """See `training.loop.Progress`."""
        heads = "  ".join(
            f"{head} " + " ".join(f"{metric} {value:.4f}" for metric, value in found.items() if metric != "rows")
            for head, found in epoch.validation.items()
        )
        mark = "  *" if epoch.best else ""
        console.print(
            f"{self.name} epoch {epoch.epoch + 1}  loss {epoch.loss:.4f}  {heads}  "
            f"{epoch.rows_per_second:,.0f} rows/s{mark}"
        )


def _say(step: str) -> None:
    if console.is_terminal:
        console.print(f"preparing: {step}", style="dim")


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="The recipe (TOML).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The run's folder.")] = Path("runs/latest"),
    data: Annotated[Path | None, typer.Option(help="Folder of the encoded data (default: inside the run).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    overrides: Overrides = None,
) -> None:
    """Prepare, train and test one model.  Example: finerank train examples/retail_din_cross.toml -o runs/din"""
    read = Recipe.read(recipe, overrides or ())
    with Bar(read.model.name) as bar:
        result = run(read, out, data, resume, bar, _say)
    console.print(results_table([(read.model.name, result)]))
    console.print(f"written to {out}")


@app.command()
def prepare(
    recipe: Annotated[Path, typer.Argument(help="The recipe (TOML).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the encoded data.")],
    overrides: Overrides = None,
) -> None:
    """Encode a recipe's data.  Example: finerank prepare examples/retail_din_cross.toml -o runs/data"""
    dataset = prepared(Recipe.read(recipe, overrides or ()), out, _say)
    m = dataset.manifest
    console.print(f"{m['requests']:,} requests, {m['rows']:,} rows, {m['users']:,} users in {out}")
    for name, (requests, rows) in m["split"].items():
        console.print(f"  {name}: {requests:,} requests, {rows:,} rows")


@app.command()
def models() -> None:
    """List the models: names for [model] of a recipe.  Example: finerank models"""
    table = Table("model", "representation", "interactions", "heads", "paper", box=None)
    for name in registry.names():
        c = registry.composition(name)
        kinds = " + ".join(o.kind for o in c.interactions)
        table.add_row(name, c.representation.kind, kinds, c.heads.kind, c.paper)
    console.print(table)


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
            results.append((name, run(recipe, out / name, out / f"data_{task}", progress=bar, step=_say)))
    dataset = results[0][1].dataset
    split = dataset.manifest["split"]
    console.print(
        f"\nUCI Online Retail, task {task}: {dataset.requests:,} requests, {dataset.rows:,} rows; split by time, "
        f"{split['test'][1]:,} test rows"
    )
    console.print(results_table(results))
    console.print(f"Each run is in {out}/<model>: recipe, metrics, curve, checkpoints.")


def results_table(results: Iterable[tuple[str, Result]]) -> Table:
    """The test metrics of runs, a line per head."""
    table = Table("model", "head", box=None)
    for name in ("test AUC", "GAUC", "logloss", "rows/s", "seconds"):
        table.add_column(name, justify="right")
    for name, result in results:
        for head, found in result.test.items():
            shown = [f"{found[m]:.4f}" if m in found else "" for m in ("auc", "gauc", "logloss")]
            table.add_row(name, head, *shown, f"{result.rows_per_second:,.0f}", f"{result.seconds:.1f}")
    return table


def main() -> None:
    """The entry point: a user's error, or the system's (disk full, no permission), is one sentence and exit code 2.

    Ctrl-C is 130: Typer sees to it.
    """
    try:
        app()
    except UserError as error:
        _refuse(str(error))
    except OSError as error:
        _refuse(f"{error.filename or 'the system'}: {error.strerror or error}; nothing that was written before is lost")


def _refuse(sentence: str) -> NoReturn:
    Console(stderr=True).print(f"finerank: {sentence}", style="red", highlight=False, markup=False, soft_wrap=True)
    sys.exit(2)
