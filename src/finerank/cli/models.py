"""finerank models: what [model] name may be."""

from __future__ import annotations

from rich.table import Table

from finerank.cli import screen
from finerank.cli.app import app
from finerank.models import registry


@app.command()
def models() -> None:
    """List the models: names for [model] of a recipe.  Example: finerank models"""
    table = Table("model", "representation", "interactions", "heads", "paper", box=None)
    for name in registry.names():
        c = registry.composition(name)
        kinds = " + ".join(o.kind for o in c.interactions)
        table.add_row(name, c.representation.kind, kinds, c.heads.kind, c.paper)
    screen.console.print(table)
