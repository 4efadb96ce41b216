"""The page of a bench: who stands where, by how much, at what price, and what was left out and why."""

from __future__ import annotations

from collections.abc import Sequence

from finerank.evaluation.compare import Comparison
from finerank.evaluation.document import METRICS
from finerank.metrics.estimate import Estimate
from finerank.report import charts, pictures
from finerank.report.page import render
from finerank.report.pictures import Picture
from finerank.report.run_report import read_curve
from finerank.run import Run
from finerank.search.standings import COLUMNS, Bench, cells, notes


def bench_report(found: Bench, compared: Comparison | None, runs: Sequence[Run]) -> str:
    """The HTML page. compared, runs: what the table was made of (`search.standings`)."""
    done = [s for s in found.standings if not s.reason]
    drawn: list[Picture | None] = []
    if done:
        title = METRICS[found.metric][0]
        points = [(s.name, s.test) for s in done]
        drawn.append(
            Picture(
                charts.intervals(points, f"test {title}", f"test {title} of each"),
                f"Test {title}, mean over seeds, with its 95 % interval over the data; the order is that of validation.",
            )
        )
    if done and compared is not None:
        to = [(s.name, Estimate(value=0, low=0, high=0) if s.name == found.base else s.difference) for s in done]
        drawn.append(
            Picture(
                charts.intervals(to, f"{title}, difference", f"{title} of each less {found.base}", line=0.0),
                f"{title}: difference to {found.base}, paired on the same rows, with its 95 % interval.",
            )
        )
    if runs:
        first = {name: next(r for r in runs if r.folder.parent.name == name) for name in (s.name for s in done)}
        epochs = {name: read_curve(run.folder / "curve.csv") for name, run in first.items()}
        drawn.append(pictures.curves_together(epochs, f"{found.head}.{found.metric}"))
    rows = [cells(s, found.base) for s in done]
    filled = [i for i in range(len(COLUMNS)) if any(row[i] for row in rows)]  # one seed has no spread, one side no p
    return render(
        "bench.html",
        title=f"Bench: {found.title}",
        notes=notes(found),
        columns=[COLUMNS[i] for i in filled],
        rows=[[row[i] for i in filled] for row in rows],
        sentences=[a.sentence for a in compared.against if a.head == found.head] if compared is not None else [],
        left=[s for s in found.standings if s.reason],
        pictures=[p for p in drawn if p is not None],
    )
