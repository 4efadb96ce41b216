"""World 1: one planted pair and one planted triple of fields; how strongly each model's logit uses every pair and triple."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.known_truth.section import Array, Section, error, last_tenth, predicted, trained
from finerank.datasets.worlds.interactions import FIELDS, PAIR, TRIPLE, InteractionOptions, interactions
from finerank.metrics.ranking import auc
from finerank.report import charts

VALUES, ROWS = 8, 400_000
TOWER = '{kind="tower", hidden=[64, 32], activation="relu", dropout=0.0}'
ADAM = ('training.tables={kind="adam", lr=0.01}', 'training.dense={kind="adam", lr=0.003}')
SETTINGS = (*ADAM, "training.epochs=20", "training.patience=4")
WIDTH = 'model.representation={kind="plain", embedding={width=8, std=0.1}}'


def _gated(order: int, more: str = "") -> str:
    return f'model.interactions=["linear", {{kind="autofis", order={order}}}{more}]'


MODELS: Mapping[str, list[str]] = {
    "LR": ["model.name=lr"],
    "FM": ["model.name=fm", WIDTH],
    "FwFM": ["model.name=fwfm", WIDTH],
    "FFM": ["model.name=ffm"],
    "DeepFM": ["model.name=deepfm", WIDTH, f'model.interactions=["linear", "fm", {TOWER}]'],
    "DCN-V2": ["model.name=dcn_v2", WIDTH],
    "xDeepFM": ["model.name=xdeepfm", WIDTH],
    "AutoFIS, order 2": ["model.name=autofis_fm", WIDTH, _gated(2)],
    "AutoFIS, order 3": ["model.name=autofis_fm", WIDTH, _gated(3)],
    "AutoFIS, DeepFM, order 3": ["model.name=autofis_deepfm", WIDTH, _gated(3, f", {TOWER}")],
}


def interactions_section(folder: Path) -> Section:
    world = interactions(InteractionOptions(values=VALUES, third=1.5))
    rows, true = last_tenth(world), world.samples["true_click"].to_numpy()
    label = world.samples["click"].to_numpy()
    ids = np.random.default_rng(1).integers(0, VALUES, (ROWS, len(FIELDS)))
    everywhere = pl.DataFrame({f: ids[:, i] for i, f in enumerate(FIELDS)})
    table = [
        ["model", "test AUC", "error of P", "A\\*B", "largest other pair", "C\\*D\\*E", "largest other triple", "kept"]
    ]
    table.append(["the law", f"{auc(label[rows], true[rows]):.4f}", "0", "1.50", "0", "1.50", "0", ""])
    cells = [_cell("the law", a, b, 1.5 if a + b == PAIR else 0.0) for a, b in combinations(FIELDS, 2)]
    for name, overrides in MODELS.items():
        fitted = trained(world, folder, name.replace(", ", "_").lower(), [*overrides, *SETTINGS])
        p = predicted(fitted, world.samples)["click"][rows]
        q = predicted(fitted, everywhere)["click"]
        logit = np.log(q / (1 - q))
        pairs, triples = (
            {"".join(FIELDS[i] for i in of): strength(logit, ids[:, of]) for of in combinations(range(len(FIELDS)), k)}
            for k in (2, 3)
        )
        if name != "LR":  # which has none
            cells += [_cell(name, pair[0], pair[1], value) for pair, value in pairs.items()]
        others = (max(v for of, v in all_of.items() if of not in (PAIR, TRIPLE)) for all_of in (pairs, triples))
        other_pair, other_triple = others
        kept = [", ".join(o.kept).replace("*", "\\*") for o in fitted.recipe.model.interactions if hasattr(o, "kept")]
        figures = (pairs[PAIR], other_pair, triples[TRIPLE], other_triple)
        shown = [f"{auc(label[rows], p):.4f}", f"{error(p, true[rows]):.4f}", *(f"{v:.2f}" for v in figures)]
        table.append([name, *shown, kept[0] if kept else ""])
    text = (
        "Of 28 pairs and 56 triples of eight fields, one pair (A\\*B) and one triple (C\\*D\\*E) decide, each with a standard "
        "deviation of 1.5 in the logit. How strongly a model uses a pair is read off what it predicts, not off its weights: "
        f"logits of {ROWS:,} random rows, the mean of each cell of the pair less what its fields say alone, the standard "
        "deviation of that; triples likewise. All machines of pairs find the pair, too weak (the triple that they cannot see "
        "is noise to them and flattens their logits), and put a little into the other 27. AutoFIS drops those: its search, "
        "at its defaults, keeps what is planted and nothing else (last column), and over pairs and triples it comes nearest to "
        "the law. CIN and the cross network find the triple too; the tower of this DeepFM does not."
    )
    describe = "strength of every pair of fields in the logit, by model, beside the law"
    return Section("Interactions: the planted pair and triple", text, table, _maps(cells, describe), describe)


def strength(logit: Array, ids: Array) -> float:
    """Standard deviation of the pure interaction of these fields [N, k] in the logit [N], ids being independent and uniform.

    From products of two halves of the rows: the noise of a cell's mean in one half is not that of the other.
    """
    order = ids.shape[1]
    cell = np.ravel_multi_index(list(ids.T), (VALUES,) * order)
    effects = []
    for half in (slice(0, None, 2), slice(1, None, 2)):
        counts = np.maximum(np.bincount(cell[half], minlength=VALUES**order), 1)
        mean = (np.bincount(cell[half], logit[half], VALUES**order) / counts).reshape((VALUES,) * order)
        for axis in range(order):
            mean = mean - mean.mean(axis=axis, keepdims=True)
        effects.append(mean)
    return float(np.sqrt(max((effects[0] * effects[1]).mean(), 0.0)))


def _cell(model: str, a: str, b: str, value: float) -> dict[str, object]:
    return {"model": model, "a": a, "b": b, "strength": value}


def _maps(cells: list[dict[str, object]], describe: str) -> str:
    """A triangle of fields by fields for every model."""
    names = list(dict.fromkeys(str(c["model"]) for c in cells))
    field = {"type": "nominal", "title": None, "axis": {"labelAngle": 0}}
    return str(
        charts.svg(
            {
                "data": {"values": cells},
                "facet": {"field": "model", "type": "nominal", "sort": names, "title": None},
                "columns": 5,
                "spacing": {"row": 14, "column": 16},
                "spec": {
                    "width": {"step": 18},
                    "height": {"step": 18},
                    "mark": {"type": "rect", "stroke": "white", "strokeWidth": 1},
                    "encoding": {
                        "x": {"field": "b", **field},
                        "y": {"field": "a", **field},
                        "color": {
                            "field": "strength",
                            "type": "quantitative",
                            "title": "strength in the logit",
                            "scale": {
                                "type": "sqrt",
                                "range": ["#f3f5f7", charts.BLUE],
                                "domain": [0, 1.5],
                                "clamp": True,
                            },
                            "legend": {
                                "orient": "bottom",
                                "gradientLength": 220,
                                "gradientThickness": 10,
                                "values": [0, 0.1, 0.5, 1, 1.5],
                            },
                        },
                    },
                },
            },
            describe,
        )
    )
