"""finerank evaluate: a run's metrics with intervals, its curves and slices, as one document."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from finerank.cli import screen
from finerank.cli.app import app
from finerank.cli.screen import evaluation_table, slices_table
from finerank.evaluation.document import evaluation_path
from finerank.evaluation.evaluate import evaluate as judge
from finerank.run import Run


class Split(StrEnum):
    """Splits that are scored."""

    validation = "validation"
    test = "test"


class Groups(StrEnum):
    """What GAUC and the list metrics order."""

    user = "user"
    request = "request"


SplitOption = Annotated[Split, typer.Option("--split", help="Rows to judge.")]
ByOption = Annotated[Groups, typer.Option("--by", help="Groups of GAUC and of the list metrics.")]


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    split: SplitOption = Split.test,
    by: ByOption = Groups.user,
    slices: Annotated[list[str] | None, typer.Option("--slice", help="Also by this feature; may be repeated.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File (default: in the run's folder).")] = None,
) -> None:
    """Judge a run: metrics with 95 % intervals, slices.  Example: finerank evaluate runs/din --slice country"""
    opened = Run.open(run)
    found = judge(opened, split.value, by.value, slices or ())
    path = out or evaluation_path(opened.folder, split.value)
    found.write(path)
    screen.console.print(evaluation_table(found))
    for head, of in found.heads.items():
        for table in of.slices:
            screen.console.print(slices_table(head, table))
    screen.console.print(f"{split.value}: {found.rows:,} rows of {found.users:,} users; written to {path}")
