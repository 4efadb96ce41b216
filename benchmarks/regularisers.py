"""Does a regulariser at the cost of the batch reach what L2 on whole tables, in the loss, reaches?

    python benchmarks/regularisers.py FOLDER [--recipe recipe.toml] [--model base] [--seeds 3]
    python benchmarks/regularisers.py --cost      # milliseconds a step of each, with lazy Adam, on a table of a million rows

One model, one data set, one regulariser at a time: every strength is trained once, the best on the validation part is trained
with the other seeds too, and only these are read on the test part. Without a recipe: Online Retail as the demo has it. What
is in FOLDER is not trained again.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from finerank.cli.demo import demo_recipe
from finerank.layers.embedding import Gradient
from finerank.recipe import Recipe
from finerank.run import Run
from finerank.search.runs import begin, file_names, trained
from finerank.training.regularise import CaughtUpL2, MiniBatchAware, PerRowL2, Regulariser, WholeTableL2
from finerank.training.row_optim import LazyAdam

STRENGTHS = {
    "mini_batch_aware": (1e-3, 1e-2, 1e-1, 1.0, 10.0),
    "l2": (0.01, 0.1, 1.0, 10.0),
    "l2_per_row": (1e-3, 1e-2, 1e-1, 1.0),
    "l2_in_loss": (1e-5, 1e-4, 1e-3, 1e-2),
}


def variants() -> list[tuple[str, str]]:
    """(regulariser, override) of everything that is tried."""
    found = [("none", "training.regularise={kind='l2', strength=0.0}")]
    for kind, strengths in STRENGTHS.items():
        found += [(kind, f"training.regularise={{kind='{kind}', strength={strength}}}") for strength in strengths]
    return found


def cost(rows: int = 1_000_000, width: int = 10, touched: int = 60_000, steps: int = 21) -> None:
    """Regulariser and optimiser together, the median step and the fastest, by turns."""
    weight = torch.randn(rows, width) * 0.01
    kinds: dict[str, Regulariser] = {
        "none": Regulariser(),
        "mini_batch_aware": MiniBatchAware(1.0, torch.ones(rows)),
        "l2": CaughtUpL2(0.1, weight),
        "l2_per_row": PerRowL2(1e-2),
        "l2_in_loss": WholeTableL2(1e-5, weight),
    }
    adam, took = LazyAdam(weight, 1e-3), {name: list[float]() for name in kinds}
    for _ in range(steps):
        for name, regulariser in kinds.items():
            at = torch.randperm(rows)[:touched]
            gradient = Gradient(at, torch.randn(touched, width), torch.ones(touched))
            began = time.perf_counter()
            regulariser.advance(1e-3)
            if isinstance(regulariser, CaughtUpL2):
                regulariser.catch_up(weight, at)
            adam.step(*regulariser.charge(gradient, weight, 10_000))
            took[name].append(1e3 * (time.perf_counter() - began))
    print(f"{touched:,} of {rows:,} rows of {width}, {torch.get_num_threads()} threads: ms a step, median (fastest)")
    for name, ms in took.items():
        print(f"{name:18} {statistics.median(ms):6.1f} ({min(ms):.1f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--recipe", type=Path)
    parser.add_argument("--model", default="base")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    if given.cost:
        cost()
        return
    if given.folder is None:
        parser.error("name a folder for the trainings, or ask for --cost")

    def recipe(override: str, seed: int) -> Recipe:
        changes = (override, f"training.seed={seed}")
        if given.recipe is None:
            return demo_recipe(given.model, changes)
        return Recipe.read(given.recipe, (f"model={{name='{given.model}'}}", *changes))

    begin(recipe(variants()[0][1], 1), given.folder, "regularisers")
    names = file_names(f"search {override}" for _, override in variants())

    def train(override: str, seed: int) -> Run:
        at = given.folder / f"{names[f'search {override}']}_{seed}"
        return trained(recipe(override, seed), at, given.folder / "data")

    def score(run: Run, split: str) -> float:
        return float(next(iter(run.metrics()[split].values()))["auc"])

    tried: dict[str, list[tuple[float, str]]] = {}
    for kind, override in variants():
        tried.setdefault(kind, []).append((score(train(override, 1), "validation"), override))
        print(f"{override}: validation {tried[kind][-1][0]:.4f}", flush=True)
    print("| regulariser | strength | validation AUC at the strengths tried, one seed | test AUC | training, rows/s |")
    print("|---|---|---|---|---|")
    for kind, scores in tried.items():
        best = max(scores)[1]
        runs = [train(best, seed) for seed in range(1, given.seeds + 1)]
        tests = [score(run, "test") for run in runs]
        spread = statistics.stdev(tests) / len(tests) ** 0.5 if len(tests) > 1 else float("nan")
        speed = statistics.median(run.metrics()["training_rows_per_second"] for run in runs)
        strength = best.split("strength=")[-1].rstrip("}") if kind != "none" else ""
        line = " ".join(f"{found:.4f}" for found, _ in scores)
        print(f"| {kind} | {strength} | {line} | {statistics.mean(tests):.4f} ± {spread:.4f} | {speed:,.0f} |")


if __name__ == "__main__":
    main()
