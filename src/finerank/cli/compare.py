"""finerank compare: which run is better, by how much, and whether the data can tell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finerank.cli import screen
from finerank.cli.app import app
from finerank.cli.evaluate import ByOption, Groups, Split, SplitOption
from finerank.cli.screen import comparison_table, waiting
from finerank.evaluation.compare import compare as paired
from finerank.run import Run


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; the first is the base.")],
    split: SplitOption = Split.test,
    by: ByOption = Groups.user,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the comparison to this file (JSON).")] = None,
) -> None:
    """Compare runs with the first, paired on the same rows.  Example: finerank compare runs/base runs/din

    Runs of one recipe that differ only in the seed count as one side: their mean, with the variance between seeds.
    """
    with waiting("comparing"):
        found = paired([Run.open(run) for run in runs], split.value, by.value)
    screen.console.print(comparison_table(found))
    if found.against:
        adjusted = ", adjusted for the number of sides (Holm)" if len(found.sides) > 2 else ""
        screen.console.print(
            f"p is two-sided{adjusted}. Each is of its metric alone: of twenty, one is below .05 by chance, so choose the "
            "metric beforehand."
        )
    for sentence in found.sentences():
        screen.console.print(sentence + ".")
    if out is not None:
        path = out / "comparison.json" if out.is_dir() else out
        found.write(path)
        screen.console.print(f"written to {path}")
