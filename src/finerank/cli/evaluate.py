"""finerank evaluate: a run's metrics with intervals, its curves and slices, as one document."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from finerank.cli import screen
from finerank.cli.app import app
from finerank.cli.screen import beyond_table, evaluation_table, slices_table, unjudged, waiting
from finerank.errors import UserError
from finerank.evaluation.document import evaluation_path
from finerank.evaluation.evaluate import evaluate as judge
from finerank.evaluation.evaluate import evaluate_files as judge_files
from finerank.metrics.estimate import COVERS
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
    split: Annotated[Split | None, typer.Option(help="Rows to judge; default: test.")] = None,
    by: ByOption = Groups.user,
    slices: Annotated[list[str] | None, typer.Option("--slice", help="Also by this feature; may be repeated.")] = None,
    k: Annotated[
        int | None, typer.Option("--top", min=1, help="Rows of a list that are its top, beyond accuracy; default: 10.")
    ] = None,
    amount: Annotated[str | None, typer.Option(help="Regression task of what a row brought in, for GPM.")] = None,
    order: Annotated[str | None, typer.Option(help="Feature of where a row stood: how far would rows move.")] = None,
    samples: Annotated[Path | None, typer.Option("--samples", help="Judge these rows instead of a split.")] = None,
    events: Annotated[Path | None, typer.Option("--events", help="With --samples: the whole event log.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File (default: in the run's folder).")] = None,
) -> None:
    """Judge a run: metrics with 95 % intervals, slices.  Example: finerank evaluate runs/din --slice country"""
    opened = Run.open(run)
    if events is not None and samples is None:
        raise UserError("--events: is read for --samples; give both, or neither to judge a split")
    of_splits = {"--split": split, "--top": k, "--amount": amount, "--order": order}
    if samples is not None and (given := [name for name, value in of_splits.items() if value is not None]):
        raise UserError(
            f"{given[0]}: is for a split of the run's data, and --samples are judged by the metrics of rows and lists alone; "
            "leave one of the two out"
        )
    with waiting("evaluating"):
        if samples is None:
            part = (split or Split.test).value
            found, name = judge(opened, part, by.value, slices or (), k or 10, amount, order), part
        else:
            found, name = judge_files(opened, samples, events, by.value, slices or ()), f"fresh_{samples.stem}"
    path = out or evaluation_path(opened.folder, name)
    found.write(path)
    screen.console.print(evaluation_table(found))
    if any(of.beyond for of in found.heads.values()):
        screen.console.print(beyond_table(found))
    why = "" if found.unit == "users" else ", for the recipe names no users"
    for note in unjudged(found):
        screen.console.print(f"note: {note}")
    screen.console.print(f"95 % intervals are over {found.unit}{why}: each {COVERS}.")
    if any(of.slices for of in found.heads.values()):
        screen.console.print(
            "slices equal: all rows at once, weighed so that each slice counts alike; its AUC compares rows of different "
            "slices too."
        )
    for head, of in found.heads.items():
        for table in of.slices:
            screen.console.print(slices_table(head, table, found.unit))
    if samples is not None and opened.recipe.data.where:
        screen.console.print(
            f"note: every row of {samples} was judged; data.where chose those of the prepared data alone"
        )
    screen.console.print(f"{found.split}: {found.rows:,} rows of {found.users:,} {found.unit}; written to {path}")
