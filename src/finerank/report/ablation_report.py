"""The report of an ablation: what each change is worth, as a picture, a table, and what was not run and why."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from finerank.evaluation.compare import p_value
from finerank.metrics.estimate import Estimate
from finerank.report import charts
from finerank.report.page import number, render
from finerank.report.pictures import Picture
from finerank.search.ablation import BASE, NOT_ADJUSTED, Outcome, read

FAR = 12
"""A difference so many times the usual one would squeeze all others in the picture: it stands below it instead."""


def ablation_report(folder: Path) -> str:
    """The HTML page of the ablation in a folder. Raises UserError where there is none."""
    recipe, found = read(folder)
    done = [o for o in found if not o.reason]
    base = next((o for o in done if o.name == BASE), None)
    compared = [o for o in done if not math.isnan(o.difference)]
    resolved = sorted(folder.glob("*/seed*/recipe.toml"), key=lambda path: path.parent.parent.name != "as_it_is")
    return render(
        "ablation.html",
        title=f"Ablation of {recipe}",
        summary=_summary(done, base),
        sentences=_sentences(compared),
        picture=_picture(compared),
        titles=("variant", "question", "validation", "test", "seeds ±", "difference", "95 %", "p", "rows/s"),
        rows=[_row(o) for o in done],
        left=[(o.name, o.reason) for o in found if o.reason],
        note=NOT_ADJUSTED,
        recipe=resolved[0].read_text(encoding="utf-8") if resolved else "",
    )


def _summary(done: Sequence[Outcome], base: Outcome | None) -> str:
    seeds = max((o.seeds for o in done), default=0)
    text = f"{len(done)} variants, {seeds} seed{'s' * (seeds != 1)} each; AUC of the first head (of numbers a loss, negated)"
    if base is None:
        return text
    return f"{text}. The recipe as it is: {number(base.test)} on test, {number(base.validation)} on validation"


def _sentences(compared: Sequence[Outcome]) -> list[str]:
    """What the intervals allow to say."""
    better = [o for o in compared if o.low > 0]
    worse = [o for o in compared if o.high < 0]
    of = f"of {len(compared)} changes"
    out = []
    if better:
        best = max(better, key=lambda o: o.difference)
        out.append(f"{len(better)} {of} gain, most of all: {best.name} ({best.difference:+.4f})")
    if worse:
        worst = min(worse, key=lambda o: o.difference)
        out.append(f"{len(worse)} {of} cost, most of all: {worst.name} ({worst.difference:+.4f})")
    if open_ := len(compared) - len(better) - len(worse):
        out.append(f"{open_} {of} cannot be told from none")
    return out


def _picture(compared: Sequence[Outcome]) -> Picture | None:
    if not compared:
        return None
    usual = statistics.median(abs(o.difference) for o in compared)
    far = [o for o in compared if abs(o.difference) > FAR * max(usual, 1e-12)]
    values = [(o.name, Estimate(value=o.difference, low=o.low, high=o.high)) for o in compared if o not in far]
    told = "; ".join(f"{name} {e.value:+.4f} ({e.low:+.4f} to {e.high:+.4f})" for name, e in values)
    caption = "Test, less the recipe as it is; bars are 95 % intervals, grey where they hold zero."
    if far:
        caption += f" Far off the picture: {', '.join(f'{o.name} ({o.difference:+.4f})' for o in far)}."
    return Picture(charts.differences(values, "difference", f"Differences to the recipe as it is: {told}"), caption)


def _row(o: Outcome) -> list[str]:
    change = ["", "", ""]
    if not math.isnan(o.difference):
        change = [f"{o.difference:+.4f}", f"{o.low:+.4f} to {o.high:+.4f}", p_value(o.p)]
    numbers = [number(o.validation), number(o.test), number(o.spread)]
    return [o.name, o.question, *numbers, *change, number(o.rows_per_second, 0)]
