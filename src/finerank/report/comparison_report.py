"""The report of a comparison: who is better, by how much, and whether the data can tell."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from finerank.evaluation.compare import Comparison, Side, p_value
from finerank.evaluation.document import METRICS
from finerank.report import pictures
from finerank.report.page import number, render
from finerank.report.pictures import Picture
from finerank.report.run_report import TILES, read_curve
from finerank.run import Run

PICTURED = ("auc", "gauc", "logloss", "odds_loss", "rmse")


def comparison_report(found: Comparison, runs: Sequence[Run], page: Path) -> str:
    """The HTML page of a comparison of these runs. page: where it will stand, for links to the runs' own reports."""
    named = {run: side.name for side in found.sides for run in side.runs}
    epochs = {named[str(run.folder)]: read_curve(run.folder / "curve.csv") for run in runs}
    heads = list(found.sides[0].metrics)
    measured = [(named[str(run.folder)], run, run.metrics()) for run in runs]
    return render(
        "comparison.html",
        title=", ".join(side.name for side in found.sides),
        summary=f"{found.rows:,} {found.split} rows of {found.users:,} {found.unit}"
        + (f"; everything against {found.sides[0].name}" if found.against else ""),
        heads=[_head(found, head, epochs, page, len(heads) > 1) for head in heads],
        how=found.how,
        seeds=any(len(side.runs) > 1 for side in found.sides),
        runs=[
            {
                "name": name,
                "folder": str(run.folder),
                "speed": number(told["training_rows_per_second"], 0),
                "seconds": number(told["seconds"], 0),
                "parameters": number(int(told["parameters"])),
            }
            for name, run, told in measured
        ],
    )


def _head(
    found: Comparison, head: str, epochs: dict[str, list[dict[str, float]]], page: Path, several: bool
) -> dict[str, object]:
    metrics = [m for m in TILES if any(m in side.metrics[head] for side in found.sides)]
    drawn: list[Picture | None] = [pictures.differences(found, head, m) for m in PICTURED]
    drawn += [pictures.curves_together(epochs, f"{head}.{m}") for m in ("auc", "logloss", "odds_loss", "rmse")]
    return {
        "title": f"Result: {head}" if several else "Result",
        "sentences": found.sentences(head),
        "metrics": [METRICS[m][0] for m in metrics],
        "binary": "auc" in metrics,
        "rows": [_row(found, side, head, metrics, page) for side in found.sides],
        "pictures": [p for p in drawn if p is not None],
    }


def _row(found: Comparison, side: Side, head: str, metrics: Sequence[str], page: Path) -> dict[str, object]:
    against = next((a for a in found.against if a.side == side.name and a.head == head), None)
    difference = None if against is None else against.differences.get(metrics[0])
    interval = (
        "" if difference is None or math.isnan(difference.low) else f"{difference.low:+.4f} to {difference.high:+.4f}"
    )
    report = Path(side.runs[0]) / "report.html"
    spread = side.between_seeds[head]

    def value(metric: str) -> str:
        shown = number(side.metrics[head].get(metric))
        between = spread.get(metric, math.nan)
        return f"{shown} ± {between:.4f}" if math.isfinite(between) else shown

    return {
        "name": side.name,
        "link": os.path.relpath(report, page.parent) if report.exists() else "",
        "seeds": len(side.runs),
        "metrics": [value(m) for m in metrics],
        "rela_impr": "" if against is None or not math.isfinite(against.rela_impr) else f"{against.rela_impr:+.2f} %",
        "difference": "" if difference is None else f"{difference.value:+.4f}",
        "interval": interval,
        "p": "" if difference is None else p_value(difference.p_holm, none=""),
    }
