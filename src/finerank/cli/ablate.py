"""finerank ablate: one thing changed at a time, and what each change is worth."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from finerank.cli import screen
from finerank.cli.app import app
from finerank.cli.screen import Overrides
from finerank.evaluation.compare import p_value
from finerank.evaluation.document import write_whole
from finerank.report.ablation_report import ablation_report
from finerank.search.ablation import ablate as ablation


@app.command()
def ablate(
    recipe: Annotated[Path, typer.Argument(help="The recipe (TOML), as it should be at its best.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the runs and the table.")],
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each variant.")] = 2,
    only: Annotated[list[str] | None, typer.Option(help="Only this variant; may be repeated.")] = None,
    minutes: Annotated[float, typer.Option(min=0, help="Begin no training after so many minutes.")] = math.inf,
    overrides: Overrides = None,
) -> None:
    """Ablate a recipe: units, sharing, softmax, fields.  Example: finerank ablate recipe.toml -o runs/ablation --seeds 2

    What is finished in the folder is not trained again. The table is also written to ablation.md, ablation.html and .json.
    """
    found = ablation(recipe, out, seeds, overrides or (), only or (), minutes, screen.console.print)
    table = Table("variant", "question", box=None)
    for title in ("validation", "test", "between seeds", "to the recipe", "95 %", "p"):
        table.add_column(title, justify="right")
    for o in found:
        if not o.reason:
            changed = not math.isnan(o.difference)
            table.add_row(
                o.name,
                o.question,
                f"{o.validation:.4f}",
                f"{o.test:.4f}",
                "" if math.isnan(o.spread) else f"{o.spread:.4f}",
                f"{o.difference:+.4f}" if changed else "",
                f"{o.low:+.4f} to {o.high:+.4f}" if changed else "",
                p_value(o.p) if changed else "",
            )
    screen.console.print(table)
    write_whole(out / "ablation.html", ablation_report(out))
    screen.console.print(f"written to {out / 'ablation.md'} and {out / 'ablation.html'}")
