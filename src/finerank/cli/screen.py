"""What the verbs show: one console, a progress bar, the table of results."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from finerank.run import Result
from finerank.training.loop import Epoch
from finerank.training.loop import Progress as TrainingProgress

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


def say(step: str) -> None:
    """Tells on a terminal which step of the preparation begins."""
    if console.is_terminal:
        console.print(f"preparing: {step}", style="dim")


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
