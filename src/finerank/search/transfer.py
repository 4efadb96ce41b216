"""What do tasks give each other? The joint model against one model per task, on the same rows.

    joint    the recipe as it is: all its tasks together
    alone    for each task the same network with this task's loss alone (`training.tasks`, the others weigh 0), trained,
             stopped and kept by this task's own validation metric

Same data, same size, same seeds: what differs is what the other tasks taught. A network for one task may want another size;
`twin` overrides the recipe of those alone (another interaction, say), and the joint model is then compared with that.

Transfer is negative where the joint model is worse and the interval of the difference says so. Nothing is selected by the test
part; it is measured once per run.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finerank.errors import UserError
from finerank.evaluation.compare import compare, p_value
from finerank.evaluation.document import write_json, write_whole
from finerank.models.registry import build
from finerank.recipe import Recipe
from finerank.run import Run
from finerank.search.runs import begin, file_names, trained
from finerank.training.options import Fixed
from finerank.typed import apply_overrides, read_toml


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """What a task gains from being learnt with the others.

    head          of the task
    metric        auc, or rmse where there is none
    alone, joint  the metric on the test rows, mean over the seeds
    difference, low, high, p   joint less alone, above 0: better (a loss is negated); paired, covering data and seeds
    verdict       positive, negative, or not shown: 95 % interval
    """

    head: str
    metric: str
    seeds: int
    alone: float
    joint: float
    difference: float
    low: float
    high: float
    p: float
    verdict: str


def transfer(
    path: Path,
    folder: Path,
    seeds: int = 2,
    overrides: Iterable[str] = (),
    twin: Iterable[str] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> list[Transfer]:
    """Train the joint model and a twin per task with every seed; write transfer.json and transfer.md into `folder`.

    What is finished in the folder already is not trained again. Raises UserError for a recipe of one task, or one that
    already leaves tasks out.
    """
    table = apply_overrides(read_toml(path), overrides)
    recipe = Recipe.parse(table, path.parent, str(path))
    data = begin(recipe, folder, "transfer")
    heads = [h for h in build(recipe.model, data.fitted).heads if h.trained]
    if len(heads) < 2:
        raise UserError(f"{path}: has one task; transfer is between tasks, so declare two [[task]] or more")
    weighting = recipe.training.tasks
    if isinstance(weighting, Fixed) and 0 in weighting.weights.values():
        raise UserError(
            f"{path}: training.tasks.weights leaves a task out (weight 0); the joint model learns all of them"
        )

    def seeds_of(name: str, changes: Iterable[str], tasks: Mapping[str, Any] | None = None) -> list[Run]:
        out = []
        for seed in range(recipe.training.seed, recipe.training.seed + seeds):
            changed = apply_overrides(table, [*changes, f"training.seed={seed}"])
            if tasks is not None:
                changed["training"]["tasks"] = tasks
            wanted, at = Recipe.parse(changed, path.parent, str(path)), folder / name / f"seed{seed}"
            out.append(trained(wanted, at, folder / "data"))
        return out

    joint = seeds_of("joint", ())
    places = file_names(head.task for head in heads)
    found = []
    for head in heads:
        off = {h.task: 0.0 for h in heads if h.task != head.task}
        tasks = {"kind": "fixed", "weights": off, "positives": _positives(recipe, head.task)}
        alone = seeds_of(f"alone_{places[head.task]}", twin, tasks)
        found.append(_transfer(head.name, alone, joint))
        tell(line(found[-1]))
        _write(folder, path, found)
    return found


def _positives(recipe: Recipe, task: str) -> dict[str, float]:
    """How often a positive counts belongs to the task, not to the weighing of tasks."""
    weighting = recipe.training.tasks
    given = weighting.positives if isinstance(weighting, Fixed) else {}
    return {task: given[task]} if task in given else {}


def _transfer(head: str, alone: Sequence[Run], joint: Sequence[Run]) -> Transfer:
    metric, sign = next(h for h in joint[0].heads if h.name == head).judge
    d = next(a for a in compare([*alone, *joint]).against if a.head == head).differences[metric]
    low, high = sorted((sign * d.low, sign * d.high))
    verdict = "positive" if low > 0 else "negative" if high < 0 else "not shown"
    return Transfer(
        head=head,
        metric=metric,
        seeds=len(joint),
        alone=statistics.mean(r.metrics()["test"][head][metric] for r in alone),
        joint=statistics.mean(r.metrics()["test"][head][metric] for r in joint),
        difference=sign * d.value,
        low=low,
        high=high,
        p=d.p,
        verdict=verdict,
    )


def line(found: Transfer) -> str:
    """One task in one line."""
    _, _, alone, joint, gain, interval, _, verdict = cells(found)
    gain += f" ({interval})" if interval else ""
    return f"{found.head}: {found.metric} alone {alone}, together {joint}, gain {gain}: transfer {verdict}"


COLUMNS = ("task", "metric", "alone", "together", "gain", "95 %", "p", "transfer")


def cells(found: Transfer) -> list[str]:
    """A task as texts, in the order of COLUMNS."""
    return [
        found.head,
        found.metric,
        f"{found.alone:.4f}",
        f"{found.joint:.4f}",
        f"{found.difference:+.4f}",
        "" if math.isnan(found.low) else f"{found.low:+.4f} to {found.high:+.4f}",
        p_value(found.p, none=""),
        found.verdict,
    ]


def markdown(title: str, found: Sequence[Transfer]) -> str:
    """The tasks as a table for people."""
    lines = [f"# {title}", "", f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    lines += [f"| {' | '.join(cells(t))} |" for t in found]
    seeds = max((t.seeds for t in found), default=0)
    lines += [
        "",
        f"{seeds} seed{'s' * (seeds != 1)} each; gains are paired on the same test rows and above 0 where learning together is "
        "better. p is not adjusted for the number of tasks.",
    ]
    return "\n".join(lines) + "\n"


def _write(folder: Path, recipe: Path, found: Sequence[Transfer]) -> None:
    write_json({"recipe": recipe.name, "tasks": list(found)}, folder / "transfer.json")
    write_whole(folder / "transfer.md", markdown(f"Transfer between the tasks of {recipe.name}", found))
