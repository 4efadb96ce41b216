"""A board as a page: the bench's table, LightGBM's line, further metrics, what was searched, and what was not run."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finerank.evaluation.compare import differences
from finerank.evaluation.evaluate import head_rows
from finerank.evaluation.measure import HeadRows, influences
from finerank.metrics.estimate import mean_influence
from finerank.metrics.lists import hit_rate, ndcg
from finerank.metrics.probability import logloss
from finerank.run import Run

if TYPE_CHECKING:
    from run import Board


def page(name: str, board: Board, at: Path, docs: Path, trials: int) -> None:
    """Write docs/boards/NAME.md from what is in the board's folder."""
    found = json.loads((at / "bench" / "bench.json").read_text(encoding="utf-8"))
    done = [s for s in found["standings"] if _whole(at, s)]
    runs = {s["name"]: _whole(at, s) for s in done}
    rows = [(s["validation"], _cells(s, board, runs[s["name"]])) for s in done]
    notes = []
    grown = at.parent / (board.settings or name) / "trees"
    if board.trees and (grown / "found.json").exists():
        line, note = _trees(grown, runs[board.base])
        rows.append(line)
        notes.append(note)
    rows.sort(key=lambda r: -r[0])
    extra = [title for k in board.extra for title in (f"HR@{k}", f"NDCG@{k}")]
    head = [
        "model",
        "seeds",
        "validation AUC",
        "test AUC",
        "95 % (data)",
        "± (seeds)",
        "log loss",
        "to the base",
        "95 %",
        "p",
        *extra,
        "rows/s",
    ]
    lines = [f"# {board.title}", "", _how(name, board, found, trials), ""]
    lines += ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    lines += ["| " + " | ".join(cells) + " |" for _, cells in rows]
    lines += ["", *(n for note in [*notes, *_tasks(board, found, runs), *_hours(at, runs)] for n in (note, ""))]
    missing = [s for s in found["standings"] if s not in done]
    waiting = [m for m in board.tuned if m not in {s["name"] for s in found["standings"]}]
    if missing or waiting:
        lines += ["## Not in the table", ""]
        lines += [f"- {s['name']}: {s['reason'] or 'begun, not finished'}" for s in missing]
        lines += [f"- {m}: not run: its search is not done" for m in waiting]
        lines.append("")
    docs.mkdir(parents=True, exist_ok=True)
    (docs / f"{name}.md").write_text("\n".join(lines), encoding="utf-8")


def _whole(at: Path, standing: dict[str, Any]) -> list[Run]:
    """The runs behind a line of the table; none if they are not all there: a board may be killed at any moment."""
    folder, n = at / "bench" / "runs" / standing["name"], 0 if standing["reason"] else standing["seeds"]
    found = [Run.open(file.parent) for file in sorted(folder.glob("seed*/run.json"))[:n]]
    return found if len(found) == n else []


def _how(name: str, board: Board, found: dict[str, Any], trials: int) -> str:
    options = ", ".join(board.options) or "its defaults"
    where = f" of [{board.settings}]({board.settings}.md)" if board.settings else ""
    searched = (
        f"**Bold** models: settings by {trials} trials on the validation part{where}; the others: the papers' sizes, "
        "the board's training. "
    )
    return (
        f"Made by `python benchmarks/boards/run.py FOLDER --data RAW --only {name}`. Data set `{board.adapter}` with "
        f"{options}; {found['rows']:,} test rows of {found['users']:,} users. {searched if board.tuned else ''}The order is "
        "that of the validation part; the test part was measured once per training. Differences are to "
        f"{found['base']}, paired, their intervals cover data and seeds; p by Holm. Rows a second: of training, one thread "
        "of a machine that did other work too."
    )


def _cells(s: dict[str, Any], board: Board, runs: list[Run]) -> list[str]:
    d, p = s["difference"], s["p"]
    title = f"**{s['name']}**" if s["name"] in board.tuned else s["name"]
    return [
        title,
        str(s["seeds"]),
        f"{s['validation']:.4f}",
        f"{s['test']['value']:.4f}",
        f"{s['test']['low']:.4f} to {s['test']['high']:.4f}",
        "" if s["spread"] is None else f"{s['spread']:.4f}",
        f"{s['logloss']:.4f}",
        "" if d["value"] is None else f"{d['value']:+.4f}",
        "" if d["low"] is None else f"{d['low']:+.4f} to {d['high']:+.4f}",
        "" if p is None else "< .001" if p < 0.001 else f"{p:.3f}",
        *(cell for k in board.extra for cell in _top(runs, k)),
        f"{s['rows_per_second']:,.0f}",
    ]


def _top(runs: list[Run], k: int) -> tuple[str, str]:
    """HR@k and NDCG@k of the first task over requests, mean over the seeds, with the half-width of a 95 % interval."""
    hits, gains = [], []
    for run in runs:
        ranked = _rows(run, "request").rankings
        hits.append(hit_rate(ranked, k))
        gains.append(ndcg(ranked, k))

    def told(values: list[np.ndarray]) -> str:
        mean = np.nanmean(np.stack(values), axis=0)
        return f"{np.nanmean(mean):.4f} ± {1.96 * np.nanstd(mean, ddof=1) / np.sqrt(np.isfinite(mean).sum()):.4f}"

    return told(hits), told(gains)


def _rows(run: Run, by: Any, logits: np.ndarray | None = None) -> HeadRows:
    data, found = run.dataset, run.predictions("test")
    requests = data.requests_of("test")
    of_row = np.repeat(requests, data.first[requests + 1] - data.first[requests])
    if logits is not None:
        found = replace(found, logits=logits[:, None])
    return head_rows(found, 0, of_row, by)


def _trees(grown: Path, base: list[Run]) -> tuple[tuple[float, list[str]], str]:
    """LightGBM's line, measured as everybody's."""
    found = json.loads((grown / "found.json").read_text(encoding="utf-8"))
    logits = np.load(grown / "test.npy")
    mine = [_rows(base[0], "user", each) for each in logits]
    side = [influences(rows)["auc"] for rows in mine]
    (d,) = differences([[influences(_rows(run, "user"))["auc"] for run in base], side])
    test, validation = mean_influence(side).estimate(0.0, 1.0), statistics.mean(found["validation"])
    losses = [logloss(rows.labels, rows.logits) for rows in mine]
    cells = [
        "LightGBM",
        str(len(side)),
        f"{validation:.4f}",
        f"{test.value:.4f}",
        f"{test.low:.4f} to {test.high:.4f}",
        f"{statistics.stdev(found['test']):.4f}",
        f"{statistics.mean(losses):.4f}",
        f"{d.value:+.4f}",
        f"{d.low:+.4f} to {d.high:+.4f}",
        f"{d.p:.3f} (alone)" if d.p >= 0.001 else "< .001 (alone)",
        "",
    ]
    return (validation, cells), (
        f"LightGBM: hand-made features (benchmarks/boards/trees.py), {found['trials']} trials on the validation part, which "
        "its early stopping reads too; its p is not adjusted."
    )


def _tasks(board: Board, found: dict[str, Any], runs: dict[str, list[Run]]) -> list[str]:
    """The other heads, if there are any: mean test AUC over the seeds."""
    heads = [h.name for h in next(iter(runs.values()))[0].heads]
    if len(heads) < 2:
        return []
    table = [
        f"Test AUC of every head (the table above is of {found['head']}):",
        "",
        "| model | " + " | ".join(heads) + " |",
        "|---|" + "--:|" * len(heads),
    ]
    for name, of in runs.items():
        each = [[run.metrics()["test"].get(h, {}).get("auc") for run in of] for h in heads]
        told = [
            f"{statistics.mean(v):.4f}" + (f" ± {statistics.stdev(v):.4f}" if len(v) > 1 else "")
            if None not in v
            else ""
            for v in each
        ]
        table.append(f"| {name} | " + " | ".join(told) + " |")
    return ["\n".join(table)]


def _hours(at: Path, runs: dict[str, list[Run]]) -> list[str]:
    trained = sum(run.metrics()["seconds"] for of in runs.values() for run in of)
    told = [json.loads(f.read_text(encoding="utf-8")) for f in sorted(at.glob("tune/*/tune.json"))]
    searched = sum(t["seconds"] or 0.0 for one in told for t in one["trials"])
    return [f"Time on one thread: trainings {trained / 3600:.1f} hours, searches {searched / 3600:.1f} hours."]
