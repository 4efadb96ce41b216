"""One training of a search: done once, gone on with where it was stopped, in a process of its own where memory is asked for."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import sys
import threading
import tomllib
from collections.abc import Callable, Iterable
from itertools import chain, count
from multiprocessing.connection import Connection, wait
from pathlib import Path

from finerank.data.dataset import Dataset
from finerank.errors import UserError
from finerank.recipe import Recipe
from finerank.run import Run, prepared, run, what_differs

MEMORY = "memory.json"
OWN = ("data", "search", "study")
"""How the names of what a search writes first begin."""


def own(folder: Path, verb: str) -> None:
    """Raises UserError for a place that is a file, or holds something that no search wrote."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; name a folder for what {verb} writes")
    inside = sorted(at.name for at in folder.iterdir()) if folder.exists() else []
    if "run.json" in inside or (inside and not any(name.lstrip(".").startswith(OWN) for name in inside)):
        raise UserError(f"{folder}: holds something else ({inside[0]}); name a new folder, or one that {verb} began")


def file_names(names: Iterable[str]) -> dict[str, str]:
    """A folder's name for each name: letters, digits and _; of two that become alike the later one gets a number.

    >>> file_names(["separate, loop", "separate loop", "dot", "separate,_loop"])
    {'separate, loop': 'separate__loop', 'separate loop': 'separate_loop', 'dot': 'dot', 'separate,_loop': 'separate__loop_2'}
    """
    found: dict[str, str] = {}
    for name in names:
        plain = "".join(c if c.isalnum() else "_" for c in name)
        numbered = (f"{plain}_{i}" for i in count(2))
        found[name] = next(n for n in chain([plain], numbered) if n not in found.values())
    return found


def begin(recipe: Recipe, folder: Path, verb: str) -> Dataset:
    """The prepared data of models that are compared in `folder`. Raises UserError as `own`, and if there are no test rows."""
    own(folder, verb)
    data = prepared(recipe, folder / "data")
    if not len(data.requests_of("test")):
        raise UserError(f"{verb}: no test rows, and contestants are compared on them; set data.split.test above 0")
    return data


def finished(recipe: Recipe, at: Path) -> bool:
    """Whether the folder holds this run, whole. Raises UserError if it holds a run of another recipe."""
    stored = at / "recipe.toml"
    if stored.exists() and stored.read_text(encoding="utf-8") != recipe.toml():
        raise UserError(
            f"{at}: holds a run of another recipe; name another folder, or remove that run{what_differs(stored, recipe)}"
        )
    return (at / "run.json").exists()


def trained(recipe: Recipe, at: Path, data: Path, isolate: bool = False) -> Run:
    """The run in the folder: opened if it is whole, gone on with if it was begun, else trained.

    data     the prepared data set
    isolate  train in a process of its own and note its peak memory: what one training takes does not fall to the next one,
             and one that is killed for memory takes nobody along
    Raises UserError for what the training refuses, or if its process dies.
    """
    if not finished(recipe, at):
        if isolate:
            _apart(recipe, at, data)
        else:
            run(recipe, at, data, resume=(at / "recipe.toml").exists())
    return Run.open(at)


def peak_memory(at: Path) -> float:
    """Peak resident memory of a run's process in bytes, libraries included; NaN for one that was not isolated."""
    path = at / MEMORY
    if not path.exists():
        return float("nan")
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["peak_bytes"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}); remove it, or train the run again") from error


def _apart(recipe: Recipe, at: Path, data: Path) -> None:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(recipe.toml(), at, data, there), daemon=True)
    process.start()
    there.close()
    refused = ""
    try:
        refused = here.recv()
    except EOFError:  # it died without a word
        process.join()
        raise UserError(
            f"{at}: the training's process ended with code {process.exitcode} (-9: killed, usually for memory); "
            "what it saved is kept, and the training goes on from there when it is started again"
        ) from None
    finally:
        here.close()
    process.join()
    if refused:
        raise UserError(refused)


def _child(recipe: str, at: Path, data: Path, told: Connection) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel, os._exit), daemon=True).start()
    refused = ""
    try:
        run(Recipe.parse(tomllib.loads(recipe)), at, data, resume=(at / "recipe.toml").exists())
        (at / MEMORY).write_text(json.dumps({"peak_bytes": _peak()}), encoding="utf-8")
    except UserError as error:
        refused = str(error)
    told.send(refused)


def _peak() -> int:
    """Peak resident memory of this process in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux a child's ru_maxrss begins at what its parent had
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))
        if found:
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _end_with(sentinel: int, leave: Callable[[int], object]) -> None:
    """Do not outlive whoever asked: a second attempt would meet a second writer."""
    wait([sentinel])
    leave(1)
