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
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from finerank.data.dataset import Dataset
from finerank.errors import UserError, nearest
from finerank.evaluation.compare import Comparison, compare
from finerank.evaluation.document import METRICS, write_json
from finerank.evaluation.evaluate import head_rows
from finerank.evaluation.measure import influences
from finerank.metrics.estimate import Estimate, mean_influence
from finerank.models.registry import build, names
from finerank.recipe import Recipe
from finerank.run import Run, prepared
from finerank.search.runs import finished, peak_memory, trained
from finerank.typed import apply_overrides, read_toml

FORMAT = "finerank bench 1"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a contestant did. reason: why it is not, or not wholly, in the table; else "".

    validation   mean over seeds of the metric (`Bench.metric`); test: with its interval over the data
    spread       between seeds, of the test part
    difference   test, less the base: an estimate; p adjusted by Holm
    seconds, rows_per_second   of a training, median; memory: greatest peak of its process in bytes; parameters
    """

    name: str
    model: str
    reason: str = ""
    seeds: int = 0
    validation: float = math.nan
    test: Estimate = Estimate(value=math.nan)
    spread: float = math.nan
    logloss: float = math.nan
    difference: Estimate = Estimate(value=math.nan)
    p: float = math.nan
    seconds: float = math.nan
    rows_per_second: float = math.nan
    memory: float = math.nan
    parameters: int = 0


@dataclass(frozen=True, kw_only=True)
class Bench:
    """All standings: those that ran by their validation part, the best first; then the others.

    head, metric   what is compared; rows, users: of the test part
    """

    title: str
    base: str
    head: str
    metric: str
    rows: int
    users: int
    standings: tuple[Standing, ...]
    format: str = field(default=FORMAT)


def contestants(
    paths: Sequence[Path],
    variants: Path | None = None,
    models: Sequence[str] = (),
    every: bool = False,
    overrides: Iterable[str] = (),
) -> dict[str, dict[str, Any]]:
    """The recipes by name, as tables; the paths in them are relative to the first recipe's folder.

    paths     recipe files; each is a contestant under its file's name, unless one of the following is given: then the first
              recipe is what they change
    variants  a TOML file with a table per contestant, whose own tables ([name.model], [name.training]) replace or amend
    models    named models, with their own settings; every: all there are
    Raises UserError for a model that is not known, and for two contestants of one name.
    """
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
        for name, changes in read_toml(variants).items():
            if not isinstance(changes, Mapping):
                raise UserError(f"{variants}: {name} is no table; accepted: [name] with model = ..., training = ...")
            table = dict(base)
            for key, value in changes.items():
                amends = key == "training" and isinstance(value, Mapping)
                table[key] = {**base.get(key, {}), **value} if amends else value
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
    tables = contestants(paths, variants, models, every, overrides)
    if base and base not in tables:
        raise UserError(f"--base {base}: no such contestant; {nearest(base, tables)}")
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
    data = prepared(next(iter(recipes.values())), folder / "data")
    for name, recipe in list(recipes.items()):
        if reason := inapplicable(recipe, data):
            left[name] = Standing(name=name, model=recipe.model.name, reason=reason)
            del recipes[name]
            tell(f"{name}: left out: {reason}")
    if base and base not in recipes:
        raise UserError(f"--base {base}: does not run on this data: {left[base].reason}")
    if not recipes:
        raise UserError("bench: no contestant runs on this data; see the reasons above")
    order = sorted(recipes, key=lambda name: name != base)  # the base first: all others are tested against it
    runs: dict[str, list[Run]] = {}
    found = _standings(folder, paths, runs, left, recipes)
    for name in order:
        runs[name], reason = [], ""
        first = recipes[name].training.seed
        for seed in range(first, first + seeds):
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
        found = _standings(folder, paths, runs, left, recipes)
        tell(line(next(s for s in found[0].standings if s.name == name)))
        written(*found)
    return found[0]


def inapplicable(recipe: Recipe, data: Dataset) -> str:
    """Why a recipe's model cannot run on this data; "" if it can. Building it tells."""
    try:
        build(recipe.model, data.fitted)
    except UserError as error:
        return str(error)
    return ""


def _alike(recipes: Mapping[str, Recipe]) -> None:
    """Raises UserError unless all share the data part and no two are the same."""
    shared: dict[str, str] = {}
    first = next(iter(recipes))
    for name, recipe in recipes.items():
        resolved = recipe.resolved()
        parts = ("data", "feature", "history", "task")
        if differ := [p for p in parts if resolved[p] != recipes[first].resolved()[p]]:
            raise UserError(
                f"bench: {name!r} and {first!r} differ in {', '.join(differ)}, and all share one data set; "
                'let them differ in model and training (fields are left out by model.without = ["..."])'
            )
        resolved["training"].pop("seed")
        text = json.dumps({k: v for k, v in resolved.items() if k not in parts}, sort_keys=True)
        if text in shared:
            raise UserError(f"bench: {name!r} and {shared[text]!r} are the same recipe; drop one")
        shared[text] = name


# ------------------------------------------------------------------------------------------------ the table


def _standings(
    folder: Path,
    paths: Sequence[Path],
    runs: Mapping[str, Sequence[Run]],
    left: Mapping[str, Standing],
    recipes: Mapping[str, Recipe],
) -> tuple[Bench, Comparison | None, list[Run]]:
    """The table so far, written."""
    every = [run for of in runs.values() for run in of]
    compared = _named(compare(every), runs) if len(runs) > 1 else None
    base = next(iter(runs), "")
    head, metric, sign = _measure(every[0]) if every else ("", "auc", 1.0)
    done = [_standing(name, of, head, metric, compared) for name, of in runs.items()]
    done.sort(key=lambda s: -sign * s.validation)
    waiting = [
        Standing(name=n, model=r.model.name, reason="not run yet")
        for n, r in recipes.items()
        if n not in {**runs, **left}
    ]
    found = Bench(
        title=paths[0].stem,
        base=base,
        head=head,
        metric=metric,
        rows=len(every[0].predictions("test").rows) if every else 0,
        users=len(np.unique(every[0].predictions("test").groups)) if every else 0,
        standings=(*done, *left.values(), *waiting),
    )
    write_json(found, folder / "bench.json")
    partial = folder / "bench.md.partial"
    partial.write_text(markdown(found), encoding="utf-8")
    partial.replace(folder / "bench.md")
    return found, compared, every


def _measure(run: Run) -> tuple[str, str, float]:
    """(head, metric, 1 if larger is better): AUC of the first head, or its RMSE."""
    head = run.heads[0]
    return (head.name, "auc", 1.0) if head.link == "sigmoid" else (head.name, "rmse", -1.0)


def _named(compared: Comparison, runs: Mapping[str, Sequence[Run]]) -> Comparison:
    """The comparison with contestants' names for its sides."""
    of_run = {str(run.folder): name for name, of in runs.items() for run in of}
    names = {side.name: of_run[side.runs[0]] for side in compared.sides}
    return replace(
        compared,
        sides=tuple(replace(s, name=names[s.name]) for s in compared.sides),
        against=tuple(
            replace(
                a,
                side=names[a.side],
                first=names[a.first],
                sentence=a.sentence.replace(a.side, names[a.side]).replace(a.first, names[a.first]),
            )
            for a in compared.against
        ),
    )


def _standing(name: str, runs: Sequence[Run], head: str, metric: str, compared: Comparison | None) -> Standing:
    measured = [run.metrics() for run in runs]
    test = [m["test"][head][metric] for m in measured]
    data = runs[0].dataset
    requests = data.requests_of("test")
    of_row = np.repeat(requests, data.first[requests + 1] - data.first[requests])
    i = [h.name for h in runs[0].heads].index(head)
    each = [influences(head_rows(run.predictions("test"), i, of_row, "user"))[metric] for run in runs]
    against = (
        None if compared is None else next((a for a in compared.against if (a.side, a.head) == (name, head)), None)
    )
    d = None if against is None else against.differences[metric]
    return Standing(
        name=name,
        model=runs[0].recipe.model.name,
        seeds=len(runs),
        validation=statistics.mean(m["validation"][head][metric] for m in measured),
        test=mean_influence(each).estimate(0.0, 1.0 if metric == "auc" else math.inf),
        spread=statistics.stdev(test) if len(test) > 1 else math.nan,
        logloss=statistics.mean(m["test"][head].get("logloss", math.nan) for m in measured),
        difference=Estimate(value=math.nan) if d is None else Estimate(value=d.value, low=d.low, high=d.high),
        p=math.nan if d is None else d.p_holm,
        seconds=statistics.median(m["seconds"] for m in measured),
        rows_per_second=statistics.median(m["training_rows_per_second"] for m in measured),
        memory=max(peak_memory(run.folder) for run in runs),
        parameters=measured[0]["parameters"],
    )


def line(s: Standing) -> str:
    """One standing in one line."""
    if s.reason:
        return f"{s.name}: {s.reason}"
    difference = "" if math.isnan(s.difference.value) else f"  to the base {s.difference.value:+.4f}"
    return f"{s.name}: validation {s.validation:.4f}  test {s.test.value:.4f}{difference}  {s.seconds:.0f} s"


COLUMNS = (
    "model", "seeds", "validation", "test", "95 % (data)", "± (seeds)", "log loss", "to the base", "95 %", "p",
    "seconds", "rows/s", "MB", "parameters",
)  # fmt: skip


def cells(s: Standing) -> list[str]:
    """A standing as texts, in the order of COLUMNS."""
    d = s.difference
    return [
        s.name,
        str(s.seeds),
        _shown(s.validation),
        _shown(s.test.value),
        _range(s.test),
        _shown(s.spread),
        _shown(s.logloss),
        "" if math.isnan(d.value) else f"{d.value:+.4f}",
        _range(d, "+"),
        "" if math.isnan(s.p) else "< .001" if s.p < 0.001 else f"{s.p:.3f}",
        f"{s.seconds:,.1f}",
        f"{s.rows_per_second:,.0f}",
        "" if math.isnan(s.memory) else f"{s.memory / 2**20:,.0f}",
        f"{s.parameters:,}",
    ]


def notes(found: Bench) -> list[str]:
    """How to read the table."""
    title = METRICS[found.metric][0]
    best = next((s for s in found.standings if not s.reason), None)
    out = [f"{title} of {found.head!r}; {found.rows:,} test rows of {found.users:,} users."] if found.head else []
    if best is not None:
        out.append(
            f"By the validation part, which alone chooses, {best.name} is best: {best.validation:.4f}, and "
            f"{best.test.value:.4f} on the test part, which was measured once per run."
        )
    if found.base:
        out.append(
            f"Differences are to {found.base}, paired on the same rows; their intervals cover the data and, with two seeds or "
            "more, the seeds. p is adjusted for the number of comparisons (Holm)."
        )
    return [
        *out,
        "95 % (data): the choice of users. ± (seeds): standard deviation between seeds. Seconds: training and evaluation. "
        "MB: greatest peak of a training's process, libraries included.",
    ]


def markdown(found: Bench) -> str:
    """The table for people."""
    right = ["---", *["--:"] * (len(COLUMNS) - 1)]
    lines = [f"# Bench: {found.title}", "", "| " + " | ".join(COLUMNS) + " |", "|" + "|".join(right) + "|"]
    lines += ["| " + " | ".join(cells(s)) + " |" for s in found.standings if not s.reason]
    left = [s for s in found.standings if s.reason]
    if left:
        lines += ["", "Left out:", "", *(f"- {s.name}: {s.reason}" for s in left)]
    return "\n".join([*lines, "", *(line for note in notes(found) for line in (note, ""))])


def _shown(x: float) -> str:
    return "" if math.isnan(x) else f"{x:.4f}"


def _range(e: Estimate, sign: str = "") -> str:
    return "" if math.isnan(e.low) or math.isnan(e.high) else f"{e.low:{sign}.4f} to {e.high:{sign}.4f}"
