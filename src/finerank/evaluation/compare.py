"""Is one model better than another? Paired on the same rows, with what the data and what the seeds leave open.

    runs ──► one side per recipe (runs that differ only in the seed) ──► every side against the first, metric by metric

Two models judged on the same users agree about which users are hard; their difference varies much less than either of
them. So influences (`metrics.estimate`) are subtracted user by user before they are squared. Where a side has several
seeds, its metric is their mean, and the variance between seeds, pooled over the sides, is added: the interval then covers
both. The p-value is two-sided, for a difference of zero; with more than one comparison Holm's correction is applied.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from finerank.errors import UserError
from finerank.evaluation.document import METRICS, By, read_json, write_json
from finerank.evaluation.evaluate import head_rows
from finerank.evaluation.measure import influences
from finerank.metrics.estimate import COVERS, Influence, holm, mean_influence, student_quantile, student_tail
from finerank.metrics.ranking import rela_impr
from finerank.metrics.runs import distinct
from finerank.run import Run
from finerank.training.evaluate import Predictions

FORMAT = "finerank comparison 1"


@dataclass(frozen=True, kw_only=True)
class Side:
    """Runs of one recipe. metrics: head -> metric -> mean over its seeds; between_seeds: their standard deviation."""

    name: str
    model: str
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    metrics: Mapping[str, Mapping[str, float]]
    between_seeds: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A metric of one side less that of the first.

    low, high   95 % interval; p: two-sided, for no difference; p_holm: adjusted for the number of comparisons
    se_data     standard error by the data (users), paired; se_seeds: by the seeds, NaN where no side has two
    """

    value: float
    low: float
    high: float
    p: float
    p_holm: float
    se_data: float
    se_seeds: float


@dataclass(frozen=True, kw_only=True)
class Against:
    """One side against the first, one head. rela_impr: per cent, by AUC; sentence: what one may say."""

    side: str
    first: str
    head: str
    differences: Mapping[str, Difference]
    rela_impr: float
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Sides and what separates them; how: what the intervals cover; users: see `Evaluation`, as for unit."""

    split: str
    by: By
    rows: int
    users: int
    sides: tuple[Side, ...]
    against: tuple[Against, ...]
    how: str
    unit: str = "users"
    format: str = field(default=FORMAT)

    def sentences(self, head: str | None = None) -> list[str]:
        """What one may say, of one head or all; of seeds of one recipe alone, how far they lie apart."""
        if len(self.sides) == 1:
            return [_alone(self.sides[0], of, self.split) for of in self.sides[0].metrics if head in (None, of)]
        return [a.sentence for a in self.against if head in (None, a.head)]

    def write(self, path: Path) -> None:
        """As JSON, whole or not at all; NaN is null."""
        write_json(self, path)

    @staticmethod
    def read(path: Path | str) -> Comparison:
        """The comparison of a file. Raises UserError when there is none, or it is damaged or of another format."""
        return read_json(Comparison, FORMAT, Path(path), "finerank compare")


def compare(
    runs: Sequence[Run], split: str = "test", by: By = "user", sides_of: Sequence[str] | None = None
) -> Comparison:
    """Compare runs with the first. Raises UserError unless all were judged on the same rows, labels and users, or where
    two are one training repeated.

    sides_of  the name of each run's side; None: runs of one recipe are a side, called after their folder
    """
    folders = [run.folder.resolve() for run in runs]
    if len(set(folders)) < len(folders):
        twice = next(f for i, f in enumerate(folders) if f in folders[:i])
        raise UserError(f"{twice}: given twice; name each run once")
    if len(runs) < 2:
        raise UserError("one run cannot be compared; give two or more")
    found = [run.predictions(split) for run in runs]
    heads = [h.name for h in found[0].heads if all(h.name in {o.name for o in f.heads} for f in found)]
    if not heads:
        raise UserError(f"{runs[0].folder} and the others have no head in common; compare models of one task")
    for run, other in zip(runs[1:], found[1:], strict=True):
        _same_rows(runs[0], found[0], run, other, heads)
    data = runs[0].dataset
    requests = data.requests_of(split)
    of_row = data.spread(requests, requests)
    if sides_of is None:
        groups = _recipes(runs)
        names = _names([[runs[i] for i in group] for group in groups])
    else:
        names = list(dict.fromkeys(sides_of))
        groups = [[i for i, of in enumerate(sides_of) if of == name] for name in names]

    sides: list[Side] = []
    against: dict[tuple[str, str], dict[str, Difference]] = {}
    value: dict[str, dict[str, dict[str, float]]] = {name: {} for name in names}
    spread: dict[str, dict[str, dict[str, float]]] = {name: {} for name in names}
    for head in heads:
        each = [influences(head_rows(f, [h.name for h in f.heads].index(head), of_row, by)) for f in found]
        metrics = [m for m in METRICS if all(m in e for e in each)]
        for name, group in zip(names, groups, strict=True):
            value[name][head] = {m: float(np.mean([each[i][m].value for i in group])) for m in metrics}
            spread[name][head] = {m: _deviation([each[i][m].value for i in group]) for m in metrics}
        for m in metrics:
            parts = [[each[i][m] for i in group] for group in groups]
            made = differences(parts)
            for name, difference in zip(names[1:], made, strict=True):
                against.setdefault((name, head), {})[m] = difference
    for name, group in zip(names, groups, strict=True):
        sides.append(
            Side(
                name=name,
                model=runs[group[0]].recipe.model.name,
                runs=tuple(str(runs[i].folder) for i in group),
                seeds=tuple(runs[i].recipe.training.seed for i in group),
                metrics=value[name],
                between_seeds=spread[name],
            )
        )
    how = "covers the data and the seeds" if any(len(group) > 1 for group in groups) else COVERS
    return Comparison(
        split=split,
        by=by,
        rows=len(found[0].rows),
        users=len(distinct(found[0].groups)),
        sides=tuple(sides),
        against=tuple(
            Against(
                side=name,
                first=names[0],
                head=head,
                differences=differences,
                rela_impr=rela_impr(value[name][head]["auc"], value[names[0]][head]["auc"])
                if "auc" in differences
                else math.nan,
                sentence=_sentence(
                    name,
                    names[0],
                    head if len(heads) > 1 else "",
                    differences,
                    _counted(found[0], head, runs[0].unit),
                    how,
                ),
            )
            for (name, head), differences in against.items()
        ),
        how=how,
        unit=runs[0].unit,
    )


# ------------------------------------------------------------------------------------------------ the statistics


def differences(sides: list[list[Influence]]) -> list[Difference]:
    """Every side less the first, for one metric; several seeds in a side are averaged."""
    means = [mean_influence(side) for side in sides]
    free = sum(len(side) - 1 for side in sides)  # degrees of freedom of the variance between seeds
    squares = sum(float(np.var([i.value for i in side], ddof=0)) * len(side) for side in sides)
    of_seeds = squares / free if free else math.nan
    out = []
    for mean, side in zip(means[1:], sides[1:], strict=True):
        d = mean - means[0]
        data = d.se**2
        seeds = of_seeds * (1 / len(side) + 1 / len(sides[0]))
        variance = data + (seeds if free else 0.0)
        # Satterthwaite: the degrees of freedom of a sum of two variances, one over users and one over seeds
        below = data**2 / max(1, d.freedom) + (seeds**2 / free if free else 0.0)
        df = variance**2 / below if below > 0 else math.inf
        se = math.sqrt(variance)
        # without any variance two models are one, or there is no telling how far others would lie apart
        half = student_quantile(df) * se if se > 0 or d.value == 0 else math.nan
        p = student_tail(d.value / se, df) if se > 0 else (1.0 if d.value == 0 else math.nan)
        out.append(
            Difference(
                value=d.value,
                low=d.value - half,
                high=d.value + half,
                p=p,
                p_holm=p,
                se_data=d.se,
                se_seeds=math.sqrt(seeds) if free else math.nan,
            )
        )
    adjusted = holm([d.p for d in out])
    return [replace(d, p_holm=p) for d, p in zip(out, adjusted, strict=True)]


def _deviation(values: list[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def p_value(p: float, none: str = "–") -> str:
    """A p-value for people; `none` where there is none."""
    return none if math.isnan(p) else "< .001" if p < 0.001 else f"{p:.3f}"


# ------------------------------------------------------------------------------------------------ what is compared


def _same_rows(first: Run, one: Predictions, run: Run, other: Predictions, heads: Sequence[str]) -> None:
    """Pairing needs the same rows, labels and users; refuse anything else."""
    remedy = "compare runs of one prepared data set (finerank train --data FOLDER)"
    if len(one.rows) != len(other.rows):
        raise UserError(f"{run.folder}: has {len(other.rows):,} rows, {first.folder} has {len(one.rows):,}; {remedy}")
    if not (np.array_equal(one.rows, other.rows) and np.array_equal(one.groups, other.groups)):
        raise UserError(f"{run.folder}: its rows are of other users or requests than those of {first.folder}; {remedy}")
    for name in heads:
        i, j = ([h.name for h in f.heads].index(name) for f in (one, other))
        w, v = one.weights[:, i], other.weights[:, j]
        differ = (w != v) | ((w != 0) & (one.labels[:, i] != other.labels[:, j]))
        if differ.any():
            raise UserError(
                f"{run.folder}: {int(differ.sum()):,} rows have another label or weight of {name!r} than in "
                f"{first.folder}; {remedy}"
            )


def _counted(found: Predictions, head: str, unit: str) -> str:
    """How many rows count for a head, and of how many users: a purchase within a click has fewer than the click."""
    inside = found.weights[:, [h.name for h in found.heads].index(head)] != 0
    return f"{np.count_nonzero(inside):,} rows of {len(distinct(found.groups[inside])):,} {unit}"


def _recipes(runs: Sequence[Run]) -> list[list[int]]:
    """Runs that differ only in their seed, together, in the order given."""
    groups: dict[str, list[int]] = {}
    for i, run in enumerate(runs):
        resolved = run.recipe.resolved()
        resolved["training"].pop("seed")
        resolved["data"].pop("notes")
        groups.setdefault(json.dumps(resolved, sort_keys=True), []).append(i)
    for group in groups.values():
        seen: dict[int, Run] = {}
        for run in (runs[i] for i in group):
            if (other := seen.setdefault(run.recipe.training.seed, run)) is not run:
                # as two seeds they would tell that seeds make no difference
                raise UserError(
                    f"{run.folder}: is {other.folder} once more: one recipe and one seed ({run.recipe.training.seed}); "
                    "leave one out, or train with another training.seed"
                )
    return list(groups.values())


def _names(sides: list[list[Run]]) -> list[str]:
    """What to call each side: the folder's name, as much of its path as tells it from the others."""
    folders = [side[0].folder.resolve() for side in sides]
    depth = 1
    while len({f.parts[-depth:] for f in folders}) < len(folders):
        depth += 1
    names = ["/".join(f.parts[-depth:]) for f in folders]
    return [f"{name} ({len(side)} seeds)" if len(side) > 1 else name for name, side in zip(names, sides, strict=True)]


def _alone(side: Side, head: str, split: str) -> str:
    """What one may say of runs that differ in nothing but the seed, by the first metric."""
    name, mean = next(iter(side.metrics[head].items()))
    title, spread = METRICS[name][0], side.between_seeds[head][name]
    at = f"{head} " if len(side.metrics) > 1 else ""
    return (
        f"{side.name}: all of one recipe, so there is nothing to compare with; {split} {at}{title} {mean:.4f} is the mean, "
        f"{spread:.4f} the standard deviation between seeds"
    )


def _sentence(side: str, first: str, head: str, differences: Mapping[str, Difference], rows: str, how: str) -> str:
    """What one may say, by the first metric: AUC, RMSE, or the weighted log loss of odds. rows: how many, of how many."""
    name = next(iter(differences))
    d, (title, better) = differences[name], METRICS[name]
    at = f"{head} " if head else ""
    on = f"on the same {rows}; this {how}"
    if math.isnan(d.p):
        return f"{side} and {first}: {at}{title} has no interval here ({rows})"
    bounds = f"95 % {d.low:+.4f} to {d.high:+.4f}, p {'< .001' if d.p_holm < 0.001 else f'= {d.p_holm:.3f}'}"
    if d.p_holm >= 0.05:
        return f"No difference between {side} and {first} is shown: {d.value:+.4f} {at}{title} ({bounds}) {on}"
    word = "better" if d.value * better > 0 else "worse"
    return f"{side} is {word} than {first} by {abs(d.value):.4f} {at}{title} ({bounds}) {on}"
