"""The boards: models side by side on real data. Searches first, then trainings over seeds, then docs/boards/NAME.md.

    python benchmarks/boards/run.py FOLDER --data RAW [--only retail] [--trials 8] [--seeds 5] [--minutes 60] [--tuned]

What is finished in FOLDER is not done again: kill it, and start it again. With --minutes 0 only the pages are written anew;
with --tuned models that are not searched are left for another time.
Searches read the training and the validation part alone; the test part is measured once per training and chooses nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from page import page
from trees import add_features, trees

from finerank.datasets.adapter import adapter
from finerank.errors import UserError
from finerank.models.registry import names
from finerank.recipe import Recipe
from finerank.run import prepared
from finerank.search.bench import bench, inapplicable
from finerank.search.tune import tune
from finerank.typed import apply_overrides, build, read_toml, to_toml

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs" / "boards"


@dataclass(frozen=True, kw_only=True)
class Board:
    """An entry of boards.toml; see there."""

    title: str
    adapter: str
    folder: str
    options: tuple[str, ...] = ()
    set: tuple[str, ...] = ()
    base: str
    settings: str = ""
    tuned: tuple[str, ...] = ()
    others: tuple[str, ...] | None = None
    extra: tuple[int, ...] = ()
    trees: bool = False
    made: bool = False


def boards() -> dict[str, Board]:
    """All boards by name, in the order of the file."""
    return {name: build(Board, table, name) for name, table in read_toml(HERE / "boards.toml").items()}


def recipe_of(board: Board, raw: Path, at: Path) -> Path:
    """The board's recipe, beside the converted files."""
    made, wanted = at / "raw" / "recipe.toml", at / "raw" / "board.toml"
    if not made.exists():
        source = adapter(board.adapter)
        options = build(source.options, apply_overrides({}, board.options), board.adapter)
        source.convert(raw / board.folder, options).write(at / "raw")
        if board.made:
            add_features(at / "raw")
    if not wanted.exists():
        wanted.write_text(to_toml(apply_overrides(read_toml(made), board.set)), encoding="utf-8")
    return wanted


def taken_over(board: Board, at: Path) -> dict[str, Any]:
    """What the searches of another board found, if this one is to use them."""
    of_it = at.parent / board.settings / "variants.json"
    found: dict[str, Any] = json.loads(of_it.read_text(encoding="utf-8")) if of_it.exists() else {}
    return {model: changes for model, changes in found.items() if model in board.tuned}


def searched(name: str, board: Board, at: Path, model: str, trials: int, ends: float) -> dict[str, Any] | None:
    """What the search of one model found, as a variant of a bench; None if it is not whole, or the model does not apply."""
    recipe = at / "raw" / "board.toml"
    data = prepared(Recipe.read(recipe), at / "bench" / "data")
    mine = f"model={{name='{model}'}}"
    if reason := inapplicable(Recipe.read(recipe, (mine,)), data):
        print(f"{name}: {model}: {reason}", flush=True)
        return None
    folder = at / "tune" / model
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "data").exists():
        (folder / "data").symlink_to(Path("../../bench/data"))
    whole, left = folder / "whole", (ends - time.monotonic()) / 60
    if not whole.exists() and left > 0:
        tell = lambda line: print(f"{name}: {model}: {line}", flush=True)  # noqa: E731
        done = tune(recipe, folder, trials, left, overrides=(mine,), tell=tell)
        if len(done.trials) >= trials and done.best >= 0:
            whole.touch()
    if not whole.exists():
        return None
    best = read_toml(folder / "best.toml")
    return {"model": best["model"], "training": best["training"]}


def run(name: str, board: Board, raw: Path, at: Path, trials: int, seeds: int, ends: float, tuned: bool) -> None:
    """Bring one board as far as the time allows: model by model, the base first, its search and then its seeds."""
    recipe = recipe_of(board, raw, at)
    found = taken_over(board, at)
    if board.trees:
        prepared(Recipe.read(recipe), at / "bench" / "data")
        trees(at, at.parent / (board.settings or name) / "trees")

    def table(models: Sequence[str], others: Sequence[str] = (), ends: float = ends) -> None:
        variants = at / "variants.toml"
        variants.write_text(to_toml({m: changes | {"seeds": seeds} for m, changes in found.items()}), encoding="utf-8")
        bench(
            [recipe],
            at / "bench",
            seeds=2,
            base=board.base,
            variants=variants if found else None,
            models=others,
            only=models,
            minutes=max(0.0, (ends - time.monotonic()) / 60),
            isolate=False,
            tell=lambda line: print(f"{name}: {line}", flush=True),
        )

    for model in sorted(board.tuned, key=lambda m: m != board.base) if not board.settings else ():
        best = searched(name, board, at, model, trials, ends)
        if best is not None:
            found[model] = best
            (at / "variants.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
            if time.monotonic() < ends:
                table([m for m in found if m in (board.base, model)])
        if board.base in board.tuned and board.base not in found:
            print(f"{name}: the base {board.base} has not been searched yet", flush=True)
            return
    if board.settings and found:
        table(list(found))
    others = board.others if board.others is not None else names()
    table(list(found), [model for model in others if model not in board.tuned], 0.0 if tuned else ends)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of the raw data sets")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tuned", action="store_true")
    parser.add_argument("--minutes", type=float, default=math.inf)
    asked = parser.parse_args()
    ends = time.monotonic() + 60 * asked.minutes
    all_boards: Mapping[str, Board] = boards()
    for name in asked.only or all_boards:
        board, at = all_boards[name], asked.folder / name
        if time.monotonic() < ends:
            try:
                run(name, board, asked.data, at, asked.trials, asked.seeds, ends, asked.tuned)
            except UserError as error:
                print(f"{name}: {error}", flush=True)
        if (at / "bench" / "bench.json").exists():
            page(name, board, at, DOCS, asked.trials)


if __name__ == "__main__":
    main()
