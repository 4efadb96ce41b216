"""The table of a bench: who stands where, by how much, at what price; for files and for people."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finerank.evaluation.compare import Comparison, compare, p_value
from finerank.evaluation.document import METRICS, write_json, write_whole
from finerank.evaluation.evaluate import head_rows
from finerank.evaluation.measure import influences
from finerank.metrics.estimate import Estimate, mean_influence
from finerank.metrics.runs import distinct
from finerank.run import Run, reader_notes
from finerank.search.runs import peak_memory

FORMAT = "finerank bench 1"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a contestant did. reason: why it is not in the table; else "".

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

    head, metric   what is compared; rows, users, unit: of the test part, see `Evaluation`
    notes          what a reader should know of the rows
    """

    title: str
    base: str
    head: str
    metric: str
    rows: int
    users: int
    standings: tuple[Standing, ...]
    notes: tuple[str, ...] = ()
    unit: str = "users"
    format: str = field(default=FORMAT)


def standings(
    folder: Path, title: str, runs: Mapping[str, Sequence[Run]], others: Sequence[Standing]
) -> tuple[Bench, Comparison | None, list[Run]]:
    """The table so far, written as bench.json and bench.md; the comparison and the runs that it was made of.

    runs    by contestant; the first is the base
    others  those without runs, and why
    """
    every = [run for of in runs.values() for run in of]
    compared = compare(every, sides_of=[name for name, of in runs.items() for _ in of]) if len(runs) > 1 else None
    head, metric, sign = _measure(every[0]) if every else ("", "auc", 1.0)
    done = [_standing(name, of, head, metric, compared) for name, of in runs.items()]
    done.sort(key=lambda s: -sign * s.validation)
    test = every[0].predictions("test") if every else None
    found = Bench(
        title=title,
        base=next(iter(runs), ""),
        head=head,
        metric=metric,
        rows=0 if test is None else len(test.rows),
        users=0 if test is None else len(distinct(test.groups)),
        standings=(*done, *others),
        unit=every[0].unit if every else "users",
        notes=tuple(dict.fromkeys(note for run in every for note in reader_notes(run.recipe, run.dataset))),
    )
    write_json(found, folder / "bench.json")
    write_whole(folder / "bench.md", markdown(found))
    return found, compared, every


def _measure(run: Run) -> tuple[str, str, float]:
    """(head, metric, 1 if larger is better): what the first head is judged by."""
    return (run.heads[0].name, *run.heads[0].judge)


def _standing(name: str, runs: Sequence[Run], head: str, metric: str, compared: Comparison | None) -> Standing:
    measured = [run.metrics() for run in runs]
    test = [m["test"][head][metric] for m in measured]
    data = runs[0].dataset
    requests = data.requests_of("test")
    of_row = data.spread(requests, requests)
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
        test=mean_influence(each).estimate(0.0, 1.0 if metric == "auc" else math.inf, runs[0].unit),
        spread=statistics.stdev(test) if len(test) > 1 else math.nan,
        logloss=statistics.mean(m["test"][head].get("logloss", math.nan) for m in measured),
        difference=Estimate(value=math.nan) if d is None else Estimate(value=d.value, low=d.low, high=d.high),
        p=math.nan if d is None else d.p_holm,
        seconds=statistics.median(m["seconds"] for m in measured),
        rows_per_second=statistics.median(m["training_rows_per_second"] for m in measured),
        memory=max((m for run in runs if not math.isnan(m := peak_memory(run.folder))), default=math.nan),
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


def cells(s: Standing, base: str) -> list[str]:
    """A standing as texts, in the order of COLUMNS. base: `Bench.base`."""
    d = s.difference
    return [
        s.name,
        str(s.seeds),
        _shown(s.validation),
        _shown(s.test.value),
        _range(s.test),
        _shown(s.spread),
        _shown(s.logloss),
        f"{d.value:+.4f}" if not math.isnan(d.value) else "base" if s.name == base else "",
        _range(d, "+"),
        p_value(s.p, none=""),
        f"{s.seconds:,.1f}",
        f"{s.rows_per_second:,.0f}",
        "" if math.isnan(s.memory) else f"{s.memory / 2**20:,.0f}",
        f"{s.parameters:,}",
    ]


def notes(found: Bench) -> list[str]:
    """How to read the table."""
    title = METRICS[found.metric][0]
    best = next((s for s in found.standings if not s.reason), None)
    out = (
        [f"{title} of {found.head!r}; {found.rows:,} test rows of {found.users:,} {found.unit}."] if found.head else []
    )
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
        f"95 % (data): the choice of {found.unit}. ± (seeds): standard deviation between seeds. Seconds: training and "
        "evaluation. MB: greatest peak of a training's process, libraries included.",
        *(f"Of the data: {note}" for note in found.notes),
    ]


def markdown(found: Bench) -> str:
    """The table for people."""
    right = ["---", *["--:"] * (len(COLUMNS) - 1)]
    lines = [f"# Bench: {found.title}", "", "| " + " | ".join(COLUMNS) + " |", "|" + "|".join(right) + "|"]
    lines += ["| " + " | ".join(cells(s, found.base)) + " |" for s in found.standings if not s.reason]
    left = [s for s in found.standings if s.reason]
    if left:
        lines += ["", "Left out:", "", *(f"- {s.name}: {s.reason}" for s in left)]
    return "\n".join([*lines, "", *(line for note in notes(found) for line in (note, ""))])


def _shown(x: float) -> str:
    return "" if math.isnan(x) else f"{x:.4f}"


def _range(e: Estimate, sign: str = "") -> str:
    return "" if math.isnan(e.low) or math.isnan(e.high) else f"{e.low:{sign}.4f} to {e.high:{sign}.4f}"
