"""finerank tune: search for the settings of a recipe, by the validation part alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finerank.cli import screen
from finerank.cli.app import app
from finerank.cli.screen import Overrides
from finerank.search.tune import judged_by
from finerank.search.tune import tune as search


@app.command()
def tune(
    recipe: Annotated[Path, typer.Argument(help="The recipe (TOML); its [tune] says what to search.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the search.")],
    trials: Annotated[
        int | None, typer.Option(min=1, help="Trials in all, earlier ones in the folder included (default: 20).")
    ] = None,
    minutes: Annotated[float | None, typer.Option(min=0, help="Begin no trial after so many minutes.")] = None,
    space: Annotated[Path | None, typer.Option(help="What to search, as a TOML file of its own.")] = None,
    prune: Annotated[bool, typer.Option(help="End trials early that are worse than half of the others.")] = True,
    overrides: Overrides = None,
) -> None:
    """Search for settings.  Example: finerank tune recipe.toml -o runs/tune --trials 30

    The best become runs/tune/best.toml, ready for `finerank train`. The test part is not read. A stopped search goes on in
    its folder. Without [tune], what is usual is searched.
    """
    found = search(
        recipe,
        out,
        trials,
        minutes,
        space=space,
        overrides=overrides or (),
        prune=prune,
        tell=screen.console.print,
    )
    best = next((t for t in found.trials if t.number == found.best), None)
    if best is None:
        screen.console.print(f"no trial is complete yet; see {out / 'tune.md'}")
        return
    screen.console.print(f"best: trial {best.number}, validation {judged_by(found)} {best.score:.4f}")
    for key, value in best.values.items():
        screen.console.print(f"  {key} = {value}")
    screen.console.print(
        f"written to {out / 'best.toml'}; train it with `{screen.command('train', out / 'best.toml')}`"
    )
