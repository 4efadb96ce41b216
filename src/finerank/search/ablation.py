"""Ablations: one recipe with one thing changed at a time, and what each change is worth.

The open questions of attention are asked of the recipe as it stands: which kind of unit, softmax or not, one weight per
behaviour or one per attribute, shared units, order and age of events, rank or segments, dropout, and every field left out.
Fields are left out of the model (`model.without`), so variants share one prepared data set. What becomes of a rank is decided
when data are prepared: such a variant has a data set of its own, of the same rows in the same order and split.

Nothing is selected here by the test part: it is measured once per variant, and the table shows the validation part beside it.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finerank.data.dataset import Dataset
from finerank.errors import UserError, nearest
from finerank.evaluation.compare import compare, p_value
from finerank.evaluation.document import write_json, write_whole
from finerank.models.narrow import names_of
from finerank.models.registry import Composition, build
from finerank.recipe import Recipe
from finerank.run import Run, prepared
from finerank.schema import Ranked, Schema
from finerank.search.runs import begin, file_names, finished, trained
from finerank.typed import plain, with_values

BASE = "as it is"
KEPT = "ablation.json"
MONTH = 2592000.0  # seconds
RANK = "rank, segment or neither"
NOT_ADJUSTED = "p is not adjusted for the number of variants: of twenty, one is below .05 by chance."


@dataclass(frozen=True)
class Variant:
    """A change of the recipe. question: what it answers; changes: values by dotted key of the recipe as resolved."""

    name: str
    question: str
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a variant gave, over its seeds. reason: why it was not run, if it was not; else "".

    validation, test   AUC of the first head (of numbers a loss, negated: `Head.judge`), mean; spread: between seeds
    difference, low, high, p   test, less the recipe as it is: paired, covering data and seeds
    """

    name: str
    question: str
    reason: str = ""
    seeds: int = 0
    validation: float = math.nan
    test: float = math.nan
    spread: float = math.nan
    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    rows_per_second: float = math.nan


def variants(recipe: Recipe, data: Dataset) -> list[Variant]:
    """All that can be asked of this recipe: itself first, then attention, then ranks, then every field left out."""
    out = [Variant(BASE, "")]
    if recipe.model.representation.kind == "target_interest":
        out += _of_attention(recipe.model)
    gone = tuple(recipe.model.without)
    out += [v for f in _ranked(recipe.schema) if f.name not in gone for v in _of_rank(f)]
    for name in names_of(data.fitted):
        if name not in gone:
            out.append(Variant(f"without {name}", _question(name, data), {"model.without": [*gone, name]}))
    return out


def _of_attention(model: Composition) -> list[Variant]:
    """For a representation that attends. What the recipe has of its own is asked the other way round: what if it had not."""
    o, out = model.representation, []

    def ask(name: str, question: str, **changes: Any) -> None:
        out.append(Variant(name, question, {f"model.representation.{key}": value for key, value in changes.items()}))

    def switch(name: str, question: str, key: str, on: Any, off: Any, has: bool) -> None:
        ask(f"no {name}" if has else name, question, **{key: off if has else on})

    switch("softmax", "intensity kept or normalised", "unit.softmax", True, False, o.unit.softmax)
    if o.unit.kind == "mlp" and not o.unit.softmax:
        switch(
            "start at .3", "does an event count before anything is learnt", "unit.start", 0.3, 0.0, o.unit.start != 0
        )
    for kind in ("dot", "bilinear", "cosine", *(("mlp",) if o.unit.kind != "mlp" else ())):
        ask(kind, "a learned unit or a product", **{"unit.kind": kind})
    apart = o.mode == "separate"
    mode = ("joined", "concat") if apart else ("separate", "separate")
    ask(mode[0], "one weight per behaviour or per attribute", mode=mode[1])
    for share in ("loop", "concat", *(("none",) if apart and o.share != "none" else ())):
        ask(f"separate, {share}", "units shared by attributes", mode="separate", share=share)
    switch("recency", "does the order of events tell more", "recency", "add", "none", o.recency != "none")
    month = "" if o.decay else " (a month)"
    switch("decay", f"do old events count less{month}", "decay", MONTH, 0.0, o.decay > 0)
    rest, summed = [other for other in o.also if other != "sum"], "sum" in o.also
    ask("no sum" if summed else "with the sum", "the pooled history beside it", also=rest if summed else [*rest, "sum"])
    pooled = {"kind": "pooled", "embedding": plain(o.embedding), "decay": o.decay}
    out.append(Variant("pooled", "attention or plain pooling", {"model.representation": pooled}))
    inner = enumerate(model.interactions)
    towers = {f"model.interactions.{i}.dropout": part.dropout for i, part in inner if part.kind == "tower"}
    if any(towers.values()):
        out.append(Variant("no dropout", "dropout in the tower", dict.fromkeys(towers, 0.0)))
    elif towers:
        out.append(Variant("dropout", "dropout .2 in the tower", dict.fromkeys(towers, 0.2)))
    return out


def _ranked(schema: Schema) -> list[Ranked]:
    return [f for f in schema.features if isinstance(f, Ranked) and f.use == "input"]


def _of_rank(feature: Ranked) -> list[Variant]:
    """The other ways to read a rank. For one that is embedded, none is `without x.rank`, which needs no data of its own."""
    ways = [way for way in ("embedded", "joint", "segments", "none") if way != feature.rank]
    if feature.rank == "embedded":
        ways.remove("none")
    key = f'feature."{feature.name}".rank'
    return [Variant(f"rank of {feature.name}: {way}", RANK, {key: way}) for way in ways]


def _question(name: str, data: Dataset) -> str:
    of, dot, _ = name.partition(".")
    if dot and of in {f.name for f in _ranked(data.fitted.schema)}:
        return RANK
    return "a history left out" if name in data.fitted.histories else "a field left out"


def ablate(
    path: Path,
    folder: Path,
    seeds: int = 2,
    overrides: Iterable[str] = (),
    only: Sequence[str] = (),
    minutes: float = math.inf,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Outcome]:
    """Train every variant of the recipe with every seed, and write ablation.json and ablation.md into `folder`.

    What is finished in the folder already is not trained again, so a stopped ablation goes on where it was.
    only     names of variants; the recipe as it is is always among them
    minutes  after so many no further training begins; what is left is listed as not run
    A variant that cannot be built or trained is listed with the reason. Raises UserError for a name in `only` that is no
    variant, and where the recipe as it is cannot be trained.
    """
    recipe = Recipe.read(path, overrides)
    resolved = recipe.resolved()
    data = begin(recipe, folder, "ablate")
    asked = variants(recipe, data)
    for name in only:
        if name not in {v.name for v in asked}:
            raise UserError(f"--only {name}: no such variant; {nearest(name, [v.name for v in asked], quoted=True)}")
    places = file_names(v.name for v in asked)
    asked = [v for v in asked if v.name == BASE or not only or v.name in only]
    first = recipe.training.seed
    started = time.monotonic()
    found: list[Outcome] = []
    base: list[Run] = []
    met: dict[str, str] = {}  # recipe -> the variant that has it: none is trained, or compared, with itself
    for variant in asked:
        runs: list[Run] = []
        reason = ""
        for seed in range(first, first + seeds):
            late = time.monotonic() - started > 60 * minutes
            at = folder / places[variant.name] / f"seed{seed}"
            try:
                changed = Recipe.parse(
                    with_values(resolved, {**variant.changes, "training.seed": seed}), where=str(path)
                )
                own = changed.schema != recipe.schema
                place = at.with_name("data") if own else folder / "data"
                if not (own and late):  # preparing takes time as well
                    build(changed.model, (prepared(changed, place) if own else data).fitted)
            except UserError as error:
                reason = str(error)
                break
            alike = met.setdefault(changed.toml(), variant.name)
            if alike != variant.name:
                reason = "is the recipe as it is" if alike == BASE else f"is the same as {alike!r}"
                break
            if not finished(changed, at) and late:
                reason = f"not run: the {minutes:g} minutes were over"
                break
            try:
                runs.append(trained(changed, at, place))
            except UserError as error:  # its loss became infinite, say: the others go on
                reason = f"its training was refused: {error}"
                break
        if variant.name == BASE:
            base = runs
            if reason:
                raise UserError(f"{path}: the recipe as it is comes first, but: {reason}")
        found.append(_outcome(variant, runs, base, reason if len(runs) < seeds else ""))
        tell(line(found[-1]))
        _write(folder, path, found)
    return found


def _outcome(variant: Variant, runs: Sequence[Run], base: Sequence[Run], reason: str) -> Outcome:
    if not runs or reason:
        return Outcome(name=variant.name, question=variant.question, reason=reason)
    measured = [r.metrics() for r in runs]
    head = runs[0].heads[0]
    metric, sign = head.judge
    test = [sign * m["test"][head.name][metric] for m in measured]
    out: dict[str, Any] = {
        "name": variant.name,
        "question": variant.question,
        "seeds": len(runs),
        "validation": statistics.mean(sign * m["validation"][head.name][metric] for m in measured),
        "test": statistics.mean(test),
        "spread": statistics.stdev(test) if len(test) > 1 else math.nan,
        "rows_per_second": statistics.median(m["training_rows_per_second"] for m in measured),
    }
    if variant.name != BASE:
        against = next(a for a in compare([*base, *runs]).against if a.head == head.name)
        d = against.differences[metric]
        ends = sorted((sign * d.low, sign * d.high))
        out |= {"difference": sign * d.value, "low": ends[0], "high": ends[1], "p": d.p}
    return Outcome(**out)


def line(found: Outcome) -> str:
    """One outcome in one line."""
    if found.reason:
        return f"{found.name}: {found.reason}"
    difference = (
        "" if math.isnan(found.difference) else f"  {found.difference:+.4f} ({found.low:+.4f} to {found.high:+.4f})"
    )
    return f"{found.name}: validation {found.validation:.4f}  test {found.test:.4f}{difference}"


def markdown(title: str, found: Sequence[Outcome]) -> str:
    """The outcomes as a table for people."""
    lines = [f"# {title}", ""]
    lines += ["| variant | question | validation | test | between seeds | to the recipe as it is | 95 % | p |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for o in found:
        if not o.reason:
            numbers = [_four(o.validation), _four(o.test), _four(o.spread)]
            change = (
                ["", "", ""]
                if math.isnan(o.difference)
                else [f"{o.difference:+.4f}", f"{o.low:+.4f} to {o.high:+.4f}", p_value(o.p)]
            )
            lines.append("| " + " | ".join([o.name, o.question, *numbers, *change]) + " |")
    left = [o for o in found if o.reason]
    if left:
        lines += ["", "Not run:", ""] + [f"- {o.name}: {o.reason}" for o in left]
    seeds = max((o.seeds for o in found), default=0)
    lines += [
        "",
        f"AUC of the first head, {seeds} seed{'s' * (seeds != 1)} each; differences are paired on the same rows.",
    ]
    lines += [NOT_ADJUSTED]
    return "\n".join(lines) + "\n"


def _four(x: float) -> str:
    return "–" if math.isnan(x) else f"{x:.4f}"


def _write(folder: Path, recipe: Path, found: Sequence[Outcome]) -> None:
    write_json({"recipe": recipe.name, "variants": list(found)}, folder / KEPT)
    write_whole(folder / "ablation.md", markdown(f"Ablation of {recipe.name}", found))


def read(folder: Path) -> tuple[str, list[Outcome]]:
    """(name of the recipe, outcomes) of the ablation in a folder. Raises UserError where there is none."""
    path = folder / KEPT
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        plain: list[dict[str, Any]] = [
            {key: math.nan if value is None else value for key, value in one.items()} for one in kept["variants"]
        ]
        return str(kept["recipe"]), [Outcome(**one) for one in plain]
    except FileNotFoundError:
        raise UserError(f"{folder}: no ablation here (no {KEPT}); make one with `finerank ablate`") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}: {error}); run the ablation again") from error
