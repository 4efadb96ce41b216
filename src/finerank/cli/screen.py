"""What the verbs show: one console, a progress bar, the table of results."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from finerank.evaluation.beyond import title
from finerank.evaluation.compare import Comparison, p_value
from finerank.evaluation.document import METRICS, Evaluation, SliceTable
from finerank.metrics.estimate import Estimate
from finerank.run import Result
from finerank.training.loop import Epoch
from finerank.training.loop import Progress as TrainingProgress
from finerank.training.warm_start import Taken

# paths and names stay as they are, and are not cut to a width where there is no terminal
console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 1_000)
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Set a key of the recipe: --set training.epochs=3")]


class Bar(TrainingProgress):
    """A progress bar on a terminal; on anything else one line per epoch."""

    def __init__(self, name: str) -> None:
        self.name = self.of = name
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

    def stage(self, name: str) -> None:
        """See `training.loop.Progress`."""
        self.name = f"{self.of} · {name}" if name else self.of

    def warm(self, taken: Taken) -> None:
        """See `training.loop.Progress`."""
        console.print(taken_table(taken))
        for name, why in taken.left:
            console.print(f"begins anew: {name} {why}")
        for note in taken.notes:
            self.note(note)

    def note(self, text: str) -> None:
        """See `training.loop.Progress`."""
        console.print(f"note: {text}")

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


def waiting(what: str) -> AbstractContextManager[object]:
    """A spinner on a terminal while something runs; nothing elsewhere."""
    return console.status(what) if console.is_terminal else nullcontext()


def taken_table(taken: Taken) -> Table:
    """What a warm start took over, a line per embedding table."""
    table = Table("warm start: table", "of", box=None)
    for name in ("values there", "values here", "found", "of the training rows"):
        table.add_column(name, justify="right")
    table.add_column("")
    for one in taken.tables:
        share = "" if one.why else f"{100 * one.share:.1f} %"
        counts = [f"{n:,}" for n in (one.there, one.here, one.found)]
        table.add_row(one.table, one.weight.removesuffix(".weight"), *counts, share, one.why)
    dense = len(taken.parameters) + len(taken.left)
    table.add_row(
        "dense weights",
        "",
        f"{len(taken.parameters) + len(taken.unused):,}",
        f"{dense:,}",
        f"{len(taken.parameters):,}",
    )
    return table


def results_table(results: Iterable[tuple[str, Result, Evaluation | None]]) -> Table:
    """The test metrics of runs, a line per head: the AUC with its 95 % interval, RMSE of what predicts a number."""
    results = list(results)
    numbers = any("rmse" in found for _, result, _ in results for found in result.test.values())
    table = Table("model", "head", box=None)
    for name in ("test AUC", "95 %", "GAUC", "logloss", *(["RMSE"] * numbers), "rows/s", "seconds"):
        table.add_column(name, justify="right")
    for name, result, evaluation in results:
        for head, found in result.test.items():
            metrics = ("auc", "gauc", "logloss", *(["rmse"] * numbers))
            shown = [f"{found[m]:.4f}" if m in found else "" for m in metrics]
            judged = evaluation is not None and evaluation.split == "test"
            estimate = evaluation.heads[head].metrics.get("auc") if evaluation and judged else None
            shown.insert(1, interval(estimate) if estimate else "")
            table.add_row(name, head, *shown, f"{result.rows_per_second:,.0f}", f"{result.seconds:.1f}")
    return table


def interval(found: Estimate) -> str:
    """`.7123-.7345`; nothing where there is none."""
    return "" if math.isnan(found.low) else f"{found.low:.4f} to {found.high:.4f}"


def evaluation_table(found: Evaluation) -> Table:
    """Every metric of every head with its 95 % interval."""
    table = Table("head", "metric", box=None)
    for name in (found.split, "95 %"):
        table.add_column(name, justify="right")
    for head, of in found.heads.items():
        for metric, estimate in of.metrics.items():
            table.add_row(head, METRICS[metric][0], f"{estimate.value:.4f}", interval(estimate))
    return table


def command(*words: object) -> str:
    """A call of finerank as a shell takes it: a path with a space is one word."""
    return f"finerank {shlex.join(map(str, words))}"


def unjudged(found: Evaluation) -> list[str]:
    """A sentence for each head that no row counts for, whose metrics are not defined."""
    return [
        f"none of the {found.rows:,} rows of {found.split} counts for {head!r}: they have no label (a window still open at the "
        "snapshot, perhaps), or none lies within its task; its metrics are not defined"
        for head, of in found.heads.items()
        if not of.rows
    ]


def beyond_table(found: Evaluation) -> Table:
    """What the tops of the lists are like, head by head."""
    table = Table("head", "beyond accuracy", box=None)
    for name in (found.split, "95 %"):
        table.add_column(name, justify="right")
    for head, of in found.heads.items():
        for name, estimate in of.beyond.items():
            table.add_row(head, title(name), f"{estimate.value:.4f}", interval(estimate))
    return table


def slices_table(head: str, found: SliceTable, unit: str) -> Table:
    """The slices of one head by one thing; the last line weighs them equally. unit: `Evaluation.unit`."""
    binary = "auc" in found.even
    table = Table(f"{head} by {found.by}", box=None)
    for name in (
        "rows",
        unit,
        "rate",
        *(("AUC", "95 %", "GAUC", "logloss", "calibration") if binary else ("RMSE", "95 %")),
    ):
        table.add_column(name, justify="right")

    def shown(values: Mapping[str, float], first: Estimate | None) -> list[str]:
        names = ("auc", "gauc", "logloss", "calibration") if binary else ("rmse",)
        cells = ["" if math.isnan(values[m]) else f"{values[m]:.4f}" for m in names]
        cells.insert(1, interval(first) if first else "")
        return cells

    for one in found.slices:
        values = {"auc": one.auc.value, **{m: getattr(one, m) for m in ("gauc", "logloss", "calibration", "rmse")}}
        first = one.auc if binary else one.error
        table.add_row(one.name, f"{one.rows:,}", f"{one.users:,}", f"{one.rate:.4f}", *shown(values, first))
    table.add_row("slices equal", "", "", "", *shown(found.even, None), style="dim")
    return table


COMPARED = ("auc", "gauc", "pr_auc", "logloss", "ne", "calibration", "ndcg@10", "mrr", "rmse", "mae", "r2", "pair_loss")


def comparison_table(found: Comparison) -> Table:
    """Each side's metrics, and its difference from the first with interval and p-value."""
    table = Table("side", "head", "metric", box=None)
    for name in (found.split, "difference", "95 %", "p", "RelaImpr"):
        table.add_column(name, justify="right")
    first = found.sides[0]
    for head, metrics in first.metrics.items():
        for metric in COMPARED:
            if metric in metrics:
                table.add_row(first.name, head, METRICS[metric][0], f"{metrics[metric]:.4f}")
    value = {side.name: side.metrics for side in found.sides}
    for one in found.against:
        for metric in COMPARED:
            if metric in one.differences:
                d = one.differences[metric]
                table.add_row(
                    one.side,
                    one.head,
                    METRICS[metric][0],
                    f"{value[one.side][one.head][metric]:.4f}",
                    f"{d.value:+.4f}",
                    "" if math.isnan(d.low) else f"{d.low:+.4f} to {d.high:+.4f}",
                    p_value(d.p_holm, none=""),
                    f"{one.rela_impr:+.2f} %" if metric == "auc" and not math.isnan(one.rela_impr) else "",
                )
    return table
