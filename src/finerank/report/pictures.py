"""From documents to pictures: which chart shows what, with its caption."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from finerank.evaluation.compare import Comparison
from finerank.evaluation.document import METRICS, Curves, SliceTable
from finerank.explain.embedding_map import EmbeddingMap
from finerank.explain.importance import Importance
from finerank.explain.lift import Lifts
from finerank.explain.past import Explained, Explanation
from finerank.metrics.estimate import Estimate
from finerank.report import charts

MOST_CANDIDATES = 12
"""More strips than these no eye compares."""


@dataclass(frozen=True)
class Picture:
    """An SVG and the sentence below it."""

    svg: Markup
    caption: str


def curves(found: Curves, split: str, auc: Estimate) -> list[Picture]:
    """ROC, precision and recall, calibration and the spread of the scores."""
    roc = [{"x": x, "y": y, "series": "roc"} for x, y in found.roc]
    recall = [{"x": x, "y": y, "series": "pr"} for x, y in found.precision_recall]
    bins = [vars(b) for b in found.reliability]
    histogram = found.histogram
    shares = []
    for label, counts in (("negative", histogram.negatives), ("positive", histogram.positives)):
        total = max(sum(counts), 1)
        for low, high, count in zip(histogram.edges, histogram.edges[1:], counts, strict=False):
            shares.append({"low": low, "high": high, "share": count / total, "label": label})
    return [
        Picture(
            charts.lines(
                roc, "false positive rate", "true positive rate", f"ROC curve, AUC {auc.value:.4f}", diagonal=True
            ),
            f"ROC on {split} rows. The area under it is the AUC; the diagonal is chance.",
        ),
        Picture(
            charts.reliability(bins, "calibration"),
            "Calibration: rows in bins of equal number, predicted against what happened. On the diagonal a prediction of "
            "20 % comes true in 20 of 100.",
        ),
        Picture(
            charts.scores(shares, "distribution of the predictions by label"),
            "Predictions of positives and of negatives. The further apart, the better the ranking.",
        ),
        Picture(
            charts.lines(recall, "recall", "precision", "precision by recall"),
            "Precision by recall, from the highest prediction down.",
        ),
    ]


def learning(epochs: Sequence[Mapping[str, float]], best: int) -> list[Picture]:
    """The curve of a training: loss, then each validation metric. epochs: lines of curve.csv; best: counted from 1."""
    out = [
        Picture(
            charts.lines(
                [{"x": e["epoch"], "y": e["loss"], "series": "loss"} for e in epochs],
                "epoch",
                "training loss",
                "training loss by epoch",
                whole=True,
            ),
            "Mean loss over the training rows of the epoch, taken while the model still changes.",
        )
    ]
    names = [n for n in epochs[0] if n not in ("epoch", "loss", "rows_per_second") and not n.endswith(".rows")]
    for metric in dict.fromkeys(n.rpartition(".")[2] for n in names):
        heads = [n.rpartition(".")[0] for n in names if n.endswith(f".{metric}")]
        values = [
            {"x": e["epoch"], "y": e[f"{head}.{metric}"], "series": head}
            for head in heads
            for e in epochs
            if e[f"{head}.{metric}"] == e[f"{head}.{metric}"]  # not NaN
        ]
        if values:
            title = _title(metric)
            drawn = charts.lines(
                values, "epoch", f"validation {title}", f"validation {title} by epoch", whole=True, legend="head"
            )
            out.append(Picture(drawn, f"Validation {title}; the weights of epoch {best} were kept."))
    return out


def gates(monitors: Mapping[str, float | Sequence[float]]) -> Picture | None:
    """Which experts the tasks use, from the `monitors` of a run's metrics; None where no gate was watched."""
    values, most = [], 0
    entropies = []
    for key, found in monitors.items():
        kind, _, name = key.rpartition(".")
        if kind.rpartition(".")[2] == "gate" and isinstance(found, Sequence):
            values += [{"name": name, "part": i + 1, "share": share} for i, share in enumerate(found)]
            most = max(most, len(found))
        if "gate_entropy." in key and isinstance(found, float):
            entropies.append(f"{key.rpartition('gate_entropy.')[2]} {found:.2f}")
    if not values:
        return None
    caption = "Mean over the validation rows of each task's gates."
    if entropies:
        caption += (
            f" Entropy: {', '.join(entropies)} of at most {math.log(most):.2f}; near 0 a gate has settled on one."
        )
    return Picture(charts.shares(values, "experts used by each task"), caption)


def slice_chart(table: SliceTable, metric: str, whole: float) -> Picture:
    """AUC (of a number: RMSE) of each slice with its interval; slices too small for one stand in the table alone, and
    where all are there is nothing to draw.

    metric  "auc" or "rmse"; whole: that of all rows
    """
    found = [(f"{s.name} ({s.rows:,})", s.auc if metric == "auc" else s.error) for s in table.slices]
    named = [(name, one) for name, one in found if math.isfinite(one.low)]
    if not named:
        return Picture(Markup(), table.note)
    return Picture(charts.intervals(named, _title(metric), f"{_title(metric)} by {table.by}", line=whole), table.note)


def differences(found: Comparison, head: str, metric: str) -> Picture | None:
    """Each side less the first, with the interval of the difference; None where the metric is not of this head."""
    named = [
        (a.side, Estimate(value=d.value, low=d.low, high=d.high))
        for a in found.against
        if a.head == head and (d := a.differences.get(metric)) is not None and math.isfinite(d.low)
    ]
    if not named:
        return None
    title = _title(metric)
    drawn = charts.intervals(named, f"{title}, difference", f"{title} of each less {found.sides[0].name}", line=0.0)
    return Picture(
        drawn, f"{title}: difference to {found.sides[0].name}, paired on the same rows, with its 95 % interval."
    )


def curves_together(epochs: Mapping[str, Sequence[Mapping[str, float]]], column: str) -> Picture | None:
    """One validation metric of several runs. epochs: lines of each run's curve.csv by its name; column: `head.metric`."""
    values = [
        {"x": e["epoch"], "y": e[column], "series": name}
        for name, lines in epochs.items()
        for e in lines
        if column in e and math.isfinite(e[column])
    ]
    if not values:
        return None
    head, _, metric = column.rpartition(".")
    title = _title(metric)
    drawn = charts.lines(
        values, "epoch", f"validation {title}", f"validation {title} of {head}", whole=True, legend="run"
    )
    return Picture(drawn, f"Validation {title} of {head!r} while training.")


def _title(metric: str) -> str:
    return METRICS[metric][0] if metric in METRICS else metric


def importance_chart(found: Sequence[Importance]) -> Markup:
    """Bars of lost AUC; a field of a history is named `history.field`."""
    values = [{"name": title(i), "value": i.loss, "low": i.low, "high": i.high} for i in found]
    return charts.bars(values, "AUC lost", "importance of the fields")


def title(found: Importance) -> str:
    """`field (request)`, `history.field`, or `history (whole)`."""
    if found.level in ("request", "candidate"):
        return f"{found.field} ({found.level})"
    return f"{found.level}.{found.field}" if found.field else f"{found.level} (whole history)"


def lift_chart(found: Lifts, task: str) -> Picture:
    """The rate of each value with its interval; task: whose positives are counted."""
    named = [
        (f"{v.value} ({v.rows:,})", Estimate(value=v.rate, low=v.low, high=v.high, how="Wilson, by user"))
        for v in found.values
    ]
    drawn = charts.intervals(named, "rate of positives", f"rate of positives by {found.field}", line=found.overall)
    what = f"P({task} | {found.field}) on training rows, {found.scope}, number of rows in brackets; dashed: all rows."
    return Picture(drawn, what)


def past(found: Explanation) -> list[Picture]:
    """DIN's figure for each history: a strip per candidate. Attention where the model attends, else the effect."""
    if not found.candidates or not found.candidates[0].past:
        return []
    best = [found.candidates[c] for c in strongest_first(found)[:MOST_CANDIDATES]]
    out = []
    for history in dict.fromkeys(s.history for s in best[0].past):
        attends = any(s.weight is not None for s in best[0].past if s.history == history)
        for kind in ("weight", "effect") if attends else ("effect",):
            out.append(_strips(best, history, kind, found))
    return out


def _strips(candidates: Sequence[Explained], history: str, kind: str, found: Explanation) -> Picture:
    names = _unlike([_event(s.what, s.age) for s in candidates[0].past if s.history == history])
    rows = _unlike([f"{_named(c.what, 38)}  {c.score:.3f}{' ●' if c.label else ''}" for c in candidates])
    values = []
    for row, candidate in zip(rows, candidates, strict=True):
        seen = [s for s in candidate.past if s.history == history]
        for t, (name, event) in enumerate(zip(names, seen, strict=True)):
            strength = event.weight if kind == "weight" else event.effect
            values.append({"candidate": row, "event": name, "position": t, "strength": strength})
    unit = "attention" if kind == "weight" else "effect on logit"
    more = len(found.candidates) - len(candidates)
    caption = (
        "Attention: how strongly each past event (left: oldest) lit up for each candidate (highest score first, ● positive)."
        if kind == "weight"
        else "Effect: logit with the event minus logit without it. Blue speaks for the candidate, red against it."
    ) + (f" {more} candidates of lower score are not shown." if more else "")
    return Picture(charts.lit(values, f"{unit} of past {history} by candidate", len(names), unit), caption)


def between(found: Explanation) -> list[Picture]:
    """A matrix of fields for each thing that weighs them: the mean over the candidates that are shown."""
    best = strongest_first(found)[:MOST_CANDIDATES]
    out = []
    for one in found.between:
        mean = one.weights[best].mean(0)
        values = [
            {"row": row, "column": column, "strength": float(mean[i, j])}
            for i, row in enumerate(one.rows)
            for j, column in enumerate(one.columns)
            if math.isfinite(mean[i, j])
        ]
        if not values:
            continue
        caption = f"{one.what[:1].upper()}{one.what[1:]}: mean over {len(best)} candidates."
        if "layer" in one.what:
            caption += " A row says what its field looks at, itself included."
        out.append(Picture(charts.matrix(values, f"{one.what} between fields", "weight"), caption))
    return out


def strongest_first(found: Explanation) -> list[int]:
    """Where the candidates stand, highest score first."""
    return sorted(range(len(found.candidates)), key=lambda c: -found.candidates[c].score)


def item_map(found: EmbeddingMap) -> Picture:
    """The plane of a field's values, the highest scores by name."""
    named = {s.name for s in sorted(found.spots, key=lambda s: -s.score)[:12]}
    values = [
        vars(s) | {"label": _short(f"{s.name} {s.group}".strip(), 20) if s.name in named else ""} for s in found.spots
    ]
    return Picture(
        charts.plane(values, f"map of {found.field}", "score"),
        f"The {len(found.spots)} most frequent values of {found.field} by their embeddings, on the plane that keeps most of "
        f"their variance ({100 * found.kept:.0f} %), as large as they are frequent, coloured by the score of this request.",
    )


def _event(what: Mapping[str, str], age: float | None) -> str:
    return (f"{ago(age)} · " if age is not None else "") + _named(what, 30)


def _named(what: Mapping[str, str], most: int) -> str:
    """A name for an axis: the values, but for the ranges of bucketed numbers."""
    return _short(" ".join(v for v in what.values() if not v.startswith("[")), most)


def ago(seconds: float) -> str:
    """A time span in its largest unit: `45 s`, `3 h`, `12 d`."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def _unlike(names: Sequence[str]) -> list[str]:
    """The same names, told apart by invisible spaces where they are equal: an axis shows equal names once."""
    seen: Counter[str] = Counter()
    out = []
    for name in names:
        out.append(name + "\u200b" * seen[name])
        seen[name] += 1
    return out
