"""Each family on a synthetic world whose law is known: what a model must find, and whether it does.

    python benchmarks/known_truth.py FOLDER [--only interests]

Trains what is not in FOLDER yet, and writes docs/known_truth.md with its pictures. Figures come from one seed each unless a
section says otherwise; worlds are drawn with seed 0. Two cores: some ten minutes in all.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import vl_convert

from finerank.datasets.worlds.interests import InterestOptions, interests
from finerank.datasets.worlds.world import World
from finerank.fresh.score import FreshScorer
from finerank.metrics.ranking import auc
from finerank.recipe import Recipe
from finerank.report import charts
from finerank.run import Run, run

DOCS = Path(__file__).parents[1] / "docs"
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Section:
    """What one world showed: prose, a table (header first), and a picture with what it shows in words."""

    title: str
    text: str
    table: Sequence[Sequence[str]]
    picture: str = ""
    describe: str = ""


SECTIONS: dict[str, Callable[[Path], Section]] = {}


def section(make: Callable[[Path], Section]) -> Callable[[Path], Section]:
    """Registers a section under its function's name."""
    SECTIONS[make.__name__] = make
    return make


# ------------------------------------------------------------------------------------------------ training and truth


def trained(world: World, folder: Path, name: str, overrides: Sequence[str]) -> Run:
    """The world's recipe with overrides, trained in folder/name unless it is there; one prepared data set for all."""
    if not (folder / "world" / "recipe.toml").exists():
        world.converted(name).write(folder / "world")
    at = folder / name
    if not (at / "run.json").exists():
        recipe = Recipe.read(folder / "world" / "recipe.toml", tuple(overrides))
        run(recipe, at, folder / "data", resume=(at / "recipe.toml").exists())
    return Run.open(at)


def predicted(fitted: Run, samples: pl.DataFrame) -> dict[str, Array]:
    """Probability of every row by head, in the order of the samples."""
    scored = [batch.logits for batch in FreshScorer(fitted).batches(samples.lazy())]
    logits = np.concatenate(scored).astype(np.float64)
    return {head.name: 1 / (1 + np.exp(-logits[:, i])) for i, head in enumerate(fitted.heads)}


def last_tenth(world: World) -> Array:
    """bool [rows]: what a split by time keeps for the test, about; worlds are drawn in order of time."""
    rows = world.samples.height
    return np.arange(rows) >= rows - rows // 10


def error(p: Array, true: Array) -> float:
    """Mean absolute difference of two probabilities."""
    return float(np.abs(p - true).mean())


# ------------------------------------------------------------------------------------------------ the sections


@section
def interests_world(folder: Path) -> Section:
    world = interests(InterestOptions(users=4_000))
    category = np.asarray(world.truth["category"])
    kinds = {
        "DIN": [],
        "DIN, softmax": ["model.representation.unit.softmax=true"],
        "base": ["model.name=base"],
        "base, mean": ["model.name=base", "model.representation.pooling=mean"],
    }
    rows = last_tenth(world)
    true = world.samples["true_click"].to_numpy()[rows]
    count = _same_category(world, category)[rows]
    table, points = [["model", "test AUC", "error of P(click)", "P at 0 of the kind", "P at 8 and more"]], []
    for k in range(9):
        at = count >= k if k == 8 else count == k
        points.append({"x": k, "y": float(true[at].mean()), "series": "truth"})
    for name, overrides in kinds.items():
        fitted = trained(world, folder, name.replace(", ", "_").lower(), [*overrides, "training.epochs=6"])
        p = predicted(fitted, world.samples)["click"][rows]
        means = [float(p[count >= k if k == 8 else count == k].mean()) for k in range(9)]
        points += [{"x": k, "y": mean, "series": name} for k, mean in enumerate(means)]
        label = world.samples["click"].to_numpy()[rows]
        table.append([name, f"{auc(label, p):.4f}", f"{error(p, true):.4f}", f"{means[0]:.3f}", f"{means[-1]:.3f}"])
    text = (
        "A click's probability grows with the number of past clicks of the candidate's category, up to eight; users differ in "
        "how much they click. What softmax keeps, the share of a category, is not what counts."
    )
    drawn = charts.lines(
        points, "past clicks of the candidate's category", "P(click)", "Predicted probability by count"
    )
    return Section("Interests: DIN and the intensity that softmax loses", text, table, str(drawn), "P(click) by count")


def _same_category(world: World, category: Array) -> Array:
    """Past clicks of the candidate's category among the last 50, for every row: from the log, not from a model."""
    assert world.events is not None
    out = np.zeros(world.samples.height, dtype=np.int64)
    log = {u: (t, i) for u, t, i in world.events.group_by("user").agg("time", "item").iter_rows()}
    samples = world.samples.select("user", "time", "item")
    for row, (user, time, item) in enumerate(samples.iter_rows()):
        times, items = log.get(user, ([], []))
        known = np.searchsorted(times, time, side="left")  # strictly before
        past = np.asarray(items[max(0, known - 50) : known], dtype=np.int64)
        out[row] = int((category[past] == category[item]).sum())
    return out


# ------------------------------------------------------------------------------------------------ the page


def page(found: Mapping[str, Section]) -> str:
    """docs/known_truth.md."""
    out = ["# Known truth", "", "Made by `python benchmarks/known_truth.py`. Synthetic worlds whose law is known"]
    out[-1] += " (`finerank data world_...`), and what the models made of them."
    for name, s in found.items():
        out += ["", f"## {s.title}", "", s.text, ""]
        header, *body = s.table
        out += ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
        out += ["| " + " | ".join(line) + " |" for line in body]
        if s.picture:
            out += ["", f"![{s.describe}](pictures/truth_{name}.png)"]
    return "\n".join(out) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", help=f"one of {', '.join(SECTIONS)}")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    for name, make in SECTIONS.items():
        kept = given.folder / f"{name}.json"
        if given.only in (None, name) and not kept.exists():
            print(name, flush=True)
            kept.write_text(json.dumps(vars(make(given.folder / name))))
    found = {
        name: Section(**json.loads(p.read_text())) for name in SECTIONS if (p := given.folder / f"{name}.json").exists()
    }
    for name, s in found.items():
        if s.picture:
            picture = DOCS / "pictures" / f"truth_{name}.png"
            white = s.picture.replace(">", '><rect width="100%" height="100%" fill="white"/>', 1)
            picture.write_bytes(vl_convert.svg_to_png(white, scale=2))
    (DOCS / "known_truth.md").write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
