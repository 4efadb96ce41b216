"""finerank vocab: the values of a feature as the model knows them, with their names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.table import Table

from finerank.cli import screen
from finerank.cli.app import app
from finerank.data.dataset import Dataset
from finerank.errors import UserError, nearest
from finerank.run import Run
from finerank.runtime.values import CROSS, canonical
from finerank.schema import FIRST, Numeric, table_of


@app.command()
def vocab(
    run: Annotated[Path, typer.Argument(help="The run's folder, or a folder of prepared data.")],
    feature: Annotated[str, typer.Argument(help="A feature (or a table that features share).")],
    top: Annotated[int, typer.Option(min=1, help="How many values to list, the most frequent first.")] = 20,
    find: Annotated[list[str] | None, typer.Option(help="Only this value; may be repeated.")] = None,
) -> None:
    """The values of a feature, their symbols and training counts.  Example: finerank vocab runs/din product_id --find 22423"""
    data = Run.open(run).dataset if (run / "run.json").exists() else Dataset.open(run)
    name = _table(data, feature)
    symbols, fitted = data.encoder.tables[name], data.fitted.tables[name]
    counts = np.zeros(symbols.size, dtype=np.int64)
    counts[: len(fitted.counts)] = fitted.counts[: symbols.size]
    total = max(int(counts.sum()), 1)
    if find:
        shown = [symbols.lookup(canonical(text)) for text in find]
    else:
        order = np.argsort(-counts[FIRST:], kind="stable")[:top] + FIRST
        shown = [*range(1, FIRST), *order.tolist()]
    table = Table("symbol", "value", box=None)
    for title in ("training count", "share", "up to here"):
        table.add_column(title, justify="right")
    so_far = 0
    for symbol in shown:
        so_far += int(counts[symbol])
        together = "" if find else f"{100 * so_far / total:.1f} %"
        value = symbols.name(symbol).replace(CROSS, " × ")
        table.add_row(f"{symbol}", value, f"{counts[symbol]:,}", f"{100 * counts[symbol] / total:.2f} %", together)
    screen.console.print(table)
    values, once = symbols.size - FIRST, int((counts[FIRST:] == 1).sum())
    seen = int((counts[FIRST:] > 0).sum())
    screen.console.print(
        f"table {name!r}, {symbols.kind}: {values:,} values, {seen:,} of them seen in training, {once:,} once; "
        f"{total:,} occurrences"
    )


def _table(data: Dataset, name: str) -> str:
    """The embedding table of a feature, or of that name. Raises UserError for a name of neither, and for numbers."""
    schema = data.fitted.schema
    by_feature = {f.name: table_of(f) for f in schema.features}
    if name in by_feature and by_feature[name] is None:
        kind = next(f.kind for f in schema.features if isinstance(f, Numeric) and f.name == name)
        raise UserError(f"feature {name!r} is {kind}: a number has no vocabulary; its statistics are in the report")
    table = by_feature.get(name, name)
    if table not in data.encoder.tables:
        raise UserError(f"no feature or table {name!r}; {nearest(name, [*by_feature, *data.encoder.tables])}")
    return str(table)
