"""A bench: recipes x seeds on one prepared data set, as one table that can be believed.

A *contestant* is a name and a recipe; all share the data part. For each: mean over seeds, spread over seeds, interval over
the data, a paired test against a named base (both variances, Holm's correction), time, memory. The order is that of the
validation part, and so is whatever is chosen; the test part is measured once per run and chooses nothing.

What is finished in the folder is not trained again, what was begun is gone on with: kill it at any moment. What cannot run on
this schema is left out, with the reason that building it gave.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finerank.data.dataset import Dataset
from finerank.errors import UserError, nearest
from finerank.evaluation.compare import Comparison
from finerank.models.registry import build, names, stage_of
from finerank.recipe import Recipe
from finerank.recipe import variants as recipe_variants
from finerank.run import Run
from finerank.search.runs import begin, finished, trained
from finerank.search.standings import Bench, Standing, line, standings
from finerank.training.stages import check
from finerank.typed import apply_overrides, read_toml


def contestants(
    paths: Sequence[Path],
    variants: Path | None = None,
    models: Sequence[str] = (),
    every: bool = False,
    overrides: Iterable[str] = (),
    only: Sequence[str] = (),
) -> dict[str, dict[str, Any]]:
    """The recipes by name, as tables; the paths in them are relative to the first recipe's folder.

    paths     recipe files; each is a contestant under its file's name, unless one of the following is given: then the first
              recipe is what they change
    variants  a TOML file with a table per contestant, whose own tables ([name.model], [name.training]) replace or amend;
              seeds = 5 in it: trainings of this one, whatever is asked for the others
    only      of the variants these; none: all
    models    named models, with their own settings; every: all there are
    Raises UserError for a model or variant that is not known, and for two contestants of one name.
    """
    if only and variants is None:
        raise UserError(
            f"--only {only[0]}: chooses among variants, and there are none; name their file with --variants"
        )
    overrides = list(overrides)
    base = read_toml(paths[0])
    out: dict[str, dict[str, Any]] = {}

    def add(name: str, table: dict[str, Any]) -> None:
        if not name or name.startswith(".") or "/" in name or "\\" in name:
            raise UserError(
                f"bench: {name!r} names a folder; accepted: names without slashes and without a dot in front"
            )
        if name in out:
            raise UserError(f"bench: two contestants are called {name!r}; name each once")
        out[name] = apply_overrides(table, overrides)

    if not (variants or models or every):
        for path in paths:
            add(path.stem, _anchored(read_toml(path), path.parent, paths[0].parent))
    if variants is not None:
        for name, table in recipe_variants(base, variants, only).items():
            add(name, table)
    known = names()
    for name in [*models, *(n for n in (known if every else ()) if n not in models and n not in out)]:
        if name not in known:
            raise UserError(f"--model {name}: no such model; {nearest(name, known)}")
        add(name, {**base, "model": {"name": name}})
    return out


def _anchored(table: dict[str, Any], folder: Path, first: Path) -> dict[str, Any]:
    """A recipe of another folder as one of the first's."""
    if folder.resolve() == first.resolve():
        return table
    return Recipe.parse(table, folder).resolved()


def bench(
    paths: Sequence[Path],
    folder: Path,
    seeds: int = 2,
    base: str = "",
    *,
    variants: Path | None = None,
    models: Sequence[str] = (),
    every: bool = False,
    overrides: Iterable[str] = (),
    only: Sequence[str] = (),
    minutes: float = math.inf,
    isolate: bool = True,
    tell: Callable[[str], None] = lambda line: None,
    written: Callable[[Bench, Comparison | None, Sequence[Run]], None] = lambda found, compared, runs: None,
) -> Bench:
    """Train every contestant with every seed; bench.json and bench.md in `folder` are brought up to date after each.

    base     the contestant that others are tested against; "": the first that runs
    minutes  after so many no further training begins; who has no seed by then is listed as not run
    written  told after each update, to draw a page of it
    others   as for `contestants`; isolate: as for `trained`
    Raises UserError for a base that is none, or that does not run.
    """
    started = time.monotonic()
    tables = contestants(paths, variants, models, every, overrides, only)
    if not tables:
        raise UserError(f"{variants}: names no contestant; accepted: [name] with model = ..., training = ...")
    if base and base not in tables:
        raise UserError(f"--base {base}: no such contestant; {nearest(base, tables)}")
    trainings = {name: _trainings(name, table.pop("seeds", seeds)) for name, table in tables.items()}
    recipes: dict[str, Recipe] = {}
    left: dict[str, Standing] = {}
    for name, table in tables.items():
        try:
            recipes[name] = Recipe.parse(table, paths[0].parent, name)
        except UserError as error:
            left[name] = Standing(name=name, model="", reason=str(error))
    if not recipes:
        raise UserError(f"bench: no contestant can be read; {next(iter(left.values())).reason}")
    _alike(recipes)
    data = begin(next(iter(recipes.values())), folder, "bench")
    for name, recipe in list(recipes.items()):
        if reason := inapplicable(recipe, data):
            left[name] = Standing(name=name, model=recipe.model.name, reason=reason)
            del recipes[name]
            tell(f"{name}: left out: {reason}")
    if base and base not in recipes:
        raise UserError(f"--base {base}: does not run on this data: {left[base].reason}")
    if not recipes:
        raise UserError(f"bench: no contestant runs on this data; {next(iter(left.values())).reason}")
    order = sorted(recipes, key=lambda name: name != base)  # the base first: all others are tested against it
    runs: dict[str, list[Run]] = {}
    for name in order:
        runs[name], reason = [], ""
        first = recipes[name].training.seed
        for seed in range(first, first + trainings[name]):
            recipe = replace(recipes[name], training=replace(recipes[name].training, seed=seed))
            at = folder / "runs" / name / f"seed{seed}"
            if not finished(recipe, at) and time.monotonic() - started > 60 * minutes:
                reason = f"not run: the {minutes:g} minutes were over"
                break
            try:
                runs[name].append(trained(recipe, at, folder / "data", isolate))
            except UserError as error:
                reason, runs[name] = f"seed {seed}: {error}", []  # the other seeds alone would flatter it
                break
        if not runs[name]:
            left[name] = Standing(name=name, model=recipes[name].model.name, reason=reason)
            del runs[name]
            if name == base:
                raise UserError(f"--base {base}: {reason}")
        waiting = [n for n in recipes if n not in runs and n not in left]
        others = [Standing(name=n, model=recipes[n].model.name, reason="not run yet") for n in waiting]
        found = standings(folder, paths[0].stem, runs, [*left.values(), *others])
        tell(line(next(s for s in found[0].standings if s.name == name)))
        written(*found)
    if not runs and all(not reason.startswith("not run") for reason in (s.reason for s in left.values())):
        raise UserError(f"bench: no contestant could be trained; {next(iter(left.values())).reason}")
    return found[0]


def _trainings(name: str, seeds: object) -> int:
    if type(seeds) is not int or seeds < 1:
        raise UserError(f"bench: {name}.seeds = {seeds!r}; accepted: a whole number of at least 1")
    return seeds


def inapplicable(recipe: Recipe, data: Dataset) -> str:
    """Why a recipe's model cannot run on this data; "" if it can. Building it tells, and what is trained before it."""
    try:
        build(recipe.model, data.fitted)
        check(recipe.model, recipe.training)
        for stage in recipe.model.stages:
            stage_of(stage).fits(recipe.model, data.fitted)
    except UserError as error:
        return str(error)
    return ""


def _alike(recipes: Mapping[str, Recipe]) -> None:
    """Raises UserError unless all share the data part and no two are the same."""
    shared: dict[str, str] = {}
    first = next(iter(recipes))
    for name, recipe in recipes.items():
        resolved, parts = recipe.resolved(), recipe.data_part()
        if differ := [p for p, told in recipes[first].data_part().items() if parts[p] != told]:
            raise UserError(
                f"bench: {name!r} and {first!r} differ in {', '.join(differ)}, and all share one data set; "
                'let them differ in model and training (fields are left out by model.without = ["..."])'
            )
        resolved["training"].pop("seed")
        text = json.dumps({k: v for k, v in resolved.items() if k not in parts}, sort_keys=True)
        if text in shared:
            raise UserError(f"bench: {name!r} and {shared[text]!r} are the same recipe; drop one")
        shared[text] = name
