"""The page of `finerank explain`: one request's candidates and their past, or the fields of a whole run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from finerank.explain.between import Between
from finerank.explain.embedding_map import EmbeddingMap
from finerank.explain.importance import Importance
from finerank.explain.lift import Lifts
from finerank.explain.past import Explained, Explanation
from finerank.report import pictures
from finerank.report.page import number, render
from finerank.report.pictures import Picture, ago

EVENTS_PER_CANDIDATE = 5
FIELDS_PER_CANDIDATE = 5


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading with pictures, and a table behind a fold."""

    title: str
    text: str = ""
    pictures: Sequence[Picture] = ()
    titles: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = field(default=())
    open: bool = False


def request_page(found: Explanation, model: str, planes: Sequence[EmbeddingMap] = ()) -> str:
    """The page of one user's request."""
    context = ", ".join(f"{name} {value}" for name, value in found.request.items())
    sections = [
        Section(
            title="What lit up",
            pictures=pictures.past(found),
            titles=("candidate", found.head, "label", "strongest past events (attention, effect on the logit)"),
            rows=[
                (" ".join(c.what.values()), f"{c.score:.4f}", f"{c.label:g}", strongest_text(c)) for c in ranked(found)
            ],
            open=True,
        )
    ]
    if found.between:
        best = pictures.strongest_first(found)
        sections.append(
            Section(
                title="Which fields look at which",
                pictures=pictures.between(found),
                titles=("what", "candidate", "strongest"),
                rows=[
                    (one.what, " ".join(found.candidates[c].what.values()), strongest_fields(one, [c]))
                    for one in found.between
                    for c in best[: pictures.MOST_CANDIDATES]
                ],
            )
        )
    sections += [Section(title=f"Where {p.field} lies", pictures=[pictures.item_map(p)]) for p in planes]
    summary = f"{len(found.candidates)} candidates, scored by {found.head}" + (f" · {context}" if context else "")
    return render("explanation.html", title=f"{model}: user {found.user}", summary=summary, parts=sections)


def fields_page(
    model: str,
    summary: str,
    importance: Mapping[str, Sequence[Importance]],
    lifts: Sequence[Lifts],
    task: str = "positive",
) -> str:
    """The page of a run's fields. importance: by head; task: whose positives the lifts count."""
    sections = []
    if importance:
        charts = [
            Picture(pictures.importance_chart(of_head), f"AUC of {head} lost when the values are dealt out anew.")
            for head, of_head in importance.items()
        ]
        sections.append(Section(title="Fields that count", pictures=charts))
    sections += [
        Section(
            title=f"P({task} | {one.field})",
            pictures=[pictures.lift_chart(one, task)],
            titles=(one.field, "rows", "positives", "rate", "95 %", "lift"),
            rows=[
                (
                    v.value,
                    number(v.rows),
                    number(v.positives),
                    number(v.rate),
                    f"{number(v.low)} to {number(v.high)}",
                    number(v.lift, 2),
                )
                for v in one.values
            ],
        )
        for one in lifts
    ]
    return render("explanation.html", title=f"{model}: its fields", summary=summary, parts=sections)


def ranked(found: Explanation) -> list[Explained]:
    """The candidates, highest score first."""
    return [found.candidates[c] for c in pictures.strongest_first(found)]


def strongest_fields(one: Between, candidates: Sequence[int], most: int = FIELDS_PER_CANDIDATE) -> str:
    """The greatest weights between fields in one line, the mean over these candidates."""
    return " · ".join(f"{a} × {b} {weight:+.3f}" for a, b, weight in one.strongest(candidates, most))


def strongest_text(candidate: Explained, most: int = EVENTS_PER_CANDIDATE) -> str:
    """The past events that moved a candidate most, in one line: name, age, attention, effect."""
    seen = sorted(candidate.past, key=lambda s: -abs(s.effect if s.weight is None else s.weight))[:most]
    parts = []
    for event in seen:
        age = "" if event.age is None else f" {ago(event.age)} ago"
        weight = "" if event.weight is None else f"{event.weight:+.3f}, "
        parts.append(f"{' '.join(event.what.values())}{age} ({weight}{event.effect:+.3f})")
    return " · ".join(parts)
