"""finerank explain: which past events lit up for which candidate, which fields look at which, which fields count and lift."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from finerank.cli import screen
from finerank.cli.app import app
from finerank.errors import UserError
from finerank.evaluation.document import write_whole
from finerank.explain.embedding_map import embedding_map
from finerank.explain.importance import REPEATS, permutation_importance
from finerank.explain.lift import counted_task, lift
from finerank.explain.past import explain as explain_user
from finerank.explain.past import latest_request
from finerank.report import explain_report, pictures
from finerank.report.explain_report import ranked, strongest_fields, strongest_text
from finerank.report.page import number
from finerank.run import Run


@app.command()
def explain(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    user: Annotated[str | None, typer.Option(help="Explain this user's latest request.")] = None,
    item: Annotated[str | None, typer.Option(help="Only this candidate (with --user).")] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Where to look: train, validation or test (the default). --lift counts training rows."),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            help="Which of the model's heads: default the first, for importance all. With --lift: which task."
        ),
    ] = None,
    lifts: Annotated[
        list[str] | None, typer.Option("--lift", help="P(positive | value) of this field; repeat.")
    ] = None,
    plane: Annotated[str | None, typer.Option("--map", help="Map this candidate field's values (with --user).")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows that the importance of fields is measured on.")] = 50_000,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write a page here (HTML).")] = None,
) -> None:
    """Why the model scores as it does.  Example: finerank explain runs/demo/din --user 12748 -o user.html

    Without --user: the importance of every field, or the lift of the values of the fields named with --lift.
    """
    if user is None and (item is not None or plane is not None):
        raise UserError("--item and --map are of one user's request; name the user with --user")
    if user is not None and lifts:
        raise UserError("--lift is of the whole run; leave --user out")
    if lifts and split is not None:
        raise UserError("--lift counts training rows; leave --split out")
    split = split or "test"
    opened = Run.open(run)
    if user is not None:
        page = _request(opened, user, item, split, head, plane)
    elif lifts:
        page = _lifts(opened, run, lifts, head)
    else:
        page = _importance(opened, run, split, head, rows)
    if out:
        write_whole(out, page())
        screen.console.print(f"written to {out}")


def _request(
    run: Run, user: str, item: str | None, split: str, head: str | None, plane: str | None
) -> Callable[[], str]:
    """Print a user's latest request; what makes its page, which draws and so is called for where one is wanted alone."""
    trainer = run.trainer()
    found = explain_user(trainer, user, item, split, head)
    table = Table("candidate", box=None)
    table.add_column(found.head, justify="right")
    table.add_column("label", justify="right")
    table.add_column("strongest past events (attention, effect on the logit)")
    for candidate in ranked(found):
        what = " ".join(candidate.what.values())
        table.add_row(what, f"{candidate.score:.4f}", f"{candidate.label:g}", strongest_text(candidate, 3))
    screen.console.print(table)
    if found.between:
        table = Table("between fields", "strongest, mean over the candidates", box=None)
        for one in found.between:
            table.add_row(one.what, strongest_fields(one, range(len(found.candidates)), 8))
        screen.console.print(table)
    planes = []
    if plane:
        planes = [embedding_map(trainer, plane, latest_request(trainer.dataset, user, split), head=head)]
    return partial(explain_report.request_page, found, run.recipe.model.name, planes)


def _importance(run: Run, folder: Path, split: str, head: str | None, rows: int) -> Callable[[], str]:
    """Print what every field is worth; what makes its page."""
    trainer = run.trainer()
    importance = permutation_importance(trainer, split, rows, head=head, advance=_measuring)
    for name, of_head in importance.items():
        table = Table("field", box=None)
        for title in (f"AUC of {name} lost", "least", "most"):
            table.add_column(title, justify="right")
        for field in of_head:
            table.add_row(pictures.title(field), *(number(x) for x in (field.loss, field.low, field.high)))
        screen.console.print(table)
    where = f"{split} rows of {folder}"
    screen.console.print(
        f"on {where}; mean, least and most of {REPEATS} times that a field's values were dealt out anew"
    )
    return partial(explain_report.fields_page, run.recipe.model.name, where, importance, [])


def _lifts(run: Run, folder: Path, fields: Sequence[str], task: str | None) -> Callable[[], str]:
    """Print the lift of the values of these fields; what makes its page. Training rows are counted: no model is asked."""
    listed, task = [], counted_task(run.dataset, task)
    for name in fields:
        found = lift(run.dataset, name, task)
        listed.append(found)
        table = Table(name, box=None)
        for title in ("rows", "positives", "rate", "95 % from", "to", "lift"):
            table.add_column(title, justify="right")
        for v in found.values:
            table.add_row(
                v.value,
                f"{v.rows:,}",
                f"{v.positives:,}",
                *(number(x) for x in (v.rate, v.low, v.high)),
                number(v.lift, 2),
            )
        screen.console.print(table)
        screen.console.print(f"{name}: {found.scope}; lift is over the rate of all rows, {number(found.overall)}")
    where = f"training rows of {folder}"
    screen.console.print(f"positives are those of {task}, on {where}")
    return partial(explain_report.fields_page, run.recipe.model.name, where, {}, listed, task)


def _measuring(field: str) -> None:
    if screen.console.is_terminal:
        screen.console.print(f"measuring: {field}", style="dim")
