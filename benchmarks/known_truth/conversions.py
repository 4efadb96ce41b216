"""World 5: conversions within clicks; ESMM, BASE, and the two in between: its loss alone, its shared tables alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.known_truth.pictures import beside, curves
from benchmarks.known_truth.section import Array, Section, error, last_tenth, predicted, spread, trained
from finerank.datasets.worlds.conversions import ConversionOptions, conversions

RELATIONS, SEEDS = (-0.9, 0.0, 0.5, 0.9), (0, 1, 2)
SHOWN = 0.9
MODELS = {
    "ESMM": ["model.name=esmm"],
    "ESMM-NS": ["model.name=esmm_ns"],
    "shared tables, clicks alone": ["model.name=esmm", 'model.heads="tasks"'],
    "BASE": ["model.name=cvr_base"],
}
"""By what they have: the loss over all impressions and tables in common; the first; the second; neither."""
SETTINGS = [
    'model.representation={kind="plain", embedding={width=8}}',
    'model.interactions=[{kind="tower", hidden=[32], activation="relu"}]',
    'training.tables={kind="adam", lr=0.002}',
    'training.dense={kind="adam", lr=0.001}',
    "training.monitor=logloss",
    "training.epochs=20",
    "training.patience=3",
]


def conversions_section(folder: Path) -> Section:
    table = [["relation", "model", "error, not clicked", "error, all", "mean, not clicked", "truth there"]]
    errors: list[dict[str, object]] = []
    bins: list[dict[str, object]] = []
    for relation in RELATIONS:
        found: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in MODELS}
        for seed in SEEDS:
            tie = {"relation": relation, "user_relation": relation}
            world = conversions(
                ConversionOptions(
                    rows=200_000, users=1_000, items=1_000, click_bias=-3.5, conversion_bias=-1.0, seed=seed, **tie
                )
            )
            true, rows = world.samples["true_conversion"].to_numpy(), last_tenth(world)
            off = rows & (world.samples["click"].to_numpy() == 0)
            for name, model in MODELS.items():
                part = folder / f"{relation:g}_{seed}"
                kept = name.replace(", ", "_").replace(" ", "_").lower()
                fitted = trained(world, part, kept, [*SETTINGS, *model, f"training.seed={seed}"])
                p = predicted(fitted, world.samples)["conversion"]
                found[name].append(
                    (error(p[off], true[off]), error(p[rows], true[rows]), p[off].mean(), true[off].mean())
                )
                errors.append({"x": relation, "y": found[name][-1][0], "series": name})
                if relation == SHOWN:
                    bins += _calibration(p[off], true[off], name)
        for name, values in found.items():
            table.append([f"{relation:g}", name, *(spread(column) for column in zip(*values, strict=True))])
    text = (
        "7 % of the impressions are clicked, and who clicks (and what is clicked) buys more, or less, by the relation: at .9 "
        "the clicked convert at .60 and the others at .32. pCVR is judged by the law, where nobody clicked; mean and standard "
        f"deviation of {len(SEEDS)} seeds. BASE, with its own tables and clicked rows alone, hardly sees who is hardly clicked "
        "and takes them for the clicked. Where clicks tell much about conversions (.9 and -.9) ESMM does not; at .5 it is no "
        "better than BASE, and at 0, where there is nothing to borrow, BASE is the best. Its two parts by themselves: tables "
        "in common, learnt from clicked rows alone, are never worse than ESMM; the loss over all impressions alone (ESMM-NS) "
        "does as much at .9 and more than ESMM at .5, but it pulls pCVR down where clicks are rare, which is wrong at -.9."
    )
    by_relation = curves(
        errors,
        "relation of click and conversion",
        "error of pCVR, not clicked",
        values=RELATIONS,
        scale_y={"zero": True},
    )
    by_truth = curves(
        bins,
        "true pCVR, not clicked",
        "predicted",
        title=f"relation {SHOWN:g}",
        law=[{"x": x, "y": x} for x in (0.0, 1.0)],
    )
    describe = "error of pCVR where nobody clicked, by relation; and predicted against true pCVR there"
    return Section(
        "Conversions: pCVR where nobody clicked", text, table, beside([by_relation, by_truth], describe), describe
    )


def _calibration(p: Array, true: Array, series: str) -> list[dict[str, object]]:
    """Mean prediction in ten shares of the range of the true probability."""
    tenth = np.minimum((true * 10).astype(int), 9)
    return [
        {"x": (k + 0.5) / 10, "y": float(p[tenth == k].mean()), "series": series}
        for k in range(10)
        if (tenth == k).sum() > 20
    ]
