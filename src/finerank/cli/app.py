"""The application that the verbs join, and the entry point.

A verb is a module of `finerank.cli` that decorates the function of its name with `@app.command()`; being there is all it
needs.
"""

from __future__ import annotations

import ast
import errno
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

import finerank
from finerank.errors import UserError
from finerank.kernels import build


def _version(asked: bool) -> None:
    if asked:
        print(finerank.__version__)
        raise typer.Exit


def _application() -> typer.Typer:
    made = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        help="Fine ranking: learn from logs which candidates a user will click, buy or watch.",
    )

    @made.callback()
    def whole(
        version: Annotated[
            bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
        ] = False,
    ) -> None:
        pass

    return made


app = _application()


def verbs() -> typer.Typer:
    """The application with every verb joined."""
    for name in _told():
        importlib.import_module(f"finerank.cli.{name}")
    return app


def one_verb(wanted: str) -> typer.Typer:
    """An application with one verb joined; of the others what the list of verbs tells, and how to correct a slip of the pen.

    Most verbs import PyTorch, which takes seconds: whoever asks for help, or misspells a verb, should not wait for it.
    """
    one = _application()
    for name, told in _told().items():
        if name == wanted:
            importlib.import_module(f"finerank.cli.{name}")
            one.registered_commands += [
                c for c in app.registered_commands if c.callback and c.callback.__name__ == name
            ]
        else:
            one.command(name, help=told)(_absent(name))
    return one


def _absent(name: str) -> Callable[[], None]:
    def command() -> None:
        raise AssertionError(f"{name} was called and not joined")

    return command


def _told() -> dict[str, str]:
    """The verbs and their docstrings, read from their files without running them."""
    found = {}
    for file in sorted(Path(__file__).parent.glob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name == file.stem:
                found[node.name] = ast.get_docstring(node) or ""
    return found


_REMEDIES = {
    errno.ENOSPC: "free some space on the disk and try again",
    errno.EDQUOT: "free some of the disk quota and try again",
    errno.EACCES: "make it readable and its folder writable, or name another place",
    errno.EPERM: "make it readable and its folder writable, or name another place",
    errno.EROFS: "name a place that can be written to",
    errno.ENOTDIR: "a file stands where a folder belongs: name another place",
    errno.EEXIST: "a file stands where a folder belongs: name another place",
    errno.EISDIR: "a folder stands where a file belongs: name a file",
}


def main() -> None:
    """The entry point: a user's error, or the system's (disk full, no permission), is one sentence and exit code 2.

    Ctrl-C is 130: Typer sees to it.
    """
    build.announce(lambda text: Console(stderr=True).print(f"finerank: {text}", highlight=False, markup=False))
    try:
        one_verb(next((word for word in sys.argv[1:] if not word.startswith("-")), ""))()
    except UserError as error:
        _refuse(str(error))
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        said = (str(error).strip() or "allocation failed").splitlines()[0]
        _refuse(
            f"not enough memory ({said}); make the batch (training.batch) or the model (dim, width, hidden) smaller"
        )
    except OSError as error:
        at = error.filename2 or error.filename  # of a renaming: what the user named, not our half-written file
        said = f"{at}: {error.strerror or error}" if at else str(error.strerror or error)
        _refuse(
            f"{said}; {_REMEDIES.get(error.errno or 0, 'mend this and try again')}; what was written before is as it was"
        )


def _out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed: PyTorch says so by a RuntimeError, on a CPU and on a GPU."""
    text = str(error)
    return isinstance(error, MemoryError) or "allocate memory" in text or "out of memory" in text


def _refuse(sentence: str) -> NoReturn:
    Console(stderr=True).print(f"finerank: {sentence}", style="red", highlight=False, markup=False, soft_wrap=True)
    sys.exit(2)
