"""Does a regulariser at the cost of the batch reach what L2 on whole tables, in the loss, reaches?

    python benchmarks/regularisers.py FOLDER [--recipe recipe.toml] [--model base] [--seeds 3]

One model, one data set, one regulariser at a time: every strength is trained once, the best on the validation part is trained
with the other seeds too, and only these are read on the test part. Without a recipe: Online Retail as the demo has it. What
is in FOLDER is not trained again.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from finerank.cli.demo import demo_recipe
from finerank.recipe import Recipe
from finerank.run import Run
from finerank.search.runs import begin, file_names, trained

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--recipe", type=Path)
    parser.add_argument("--model", default="base")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()

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
