"""The application that the verbs join, and the entry point.

A verb is a module of `finerank.cli` that decorates one function with `@app.command()`; being there is all it needs.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from typing import NoReturn

import typer
from rich.console import Console

import finerank.cli
from finerank.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Fine ranking: learn from logs which candidates a user will click, buy or watch.",
)


def verbs() -> typer.Typer:
    """The application with every verb joined."""
    for module in pkgutil.iter_modules(finerank.cli.__path__):
        importlib.import_module(f"finerank.cli.{module.name}")
    return app


def main() -> None:
    """The entry point: a user's error, or the system's (disk full, no permission), is one sentence and exit code 2.

    Ctrl-C is 130: Typer sees to it.
    """
    try:
        verbs()()
    except UserError as error:
        _refuse(str(error))
    except OSError as error:
        _refuse(f"{error.filename or 'the system'}: {error.strerror or error}; nothing that was written before is lost")


def _refuse(sentence: str) -> NoReturn:
    Console(stderr=True).print(f"finerank: {sentence}", style="red", highlight=False, markup=False, soft_wrap=True)
    sys.exit(2)
