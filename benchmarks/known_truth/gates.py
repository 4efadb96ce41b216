"""World 4: two regressions of a chosen relation; which sub-networks SNR lets both use, and how far MMoE's gates differ."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.known_truth.pictures import beside, curves
from benchmarks.known_truth.section import Section, spread
from benchmarks.mmoe_synthetic import Laws, model_of
from finerank.data.batch import Batch
from finerank.models.composition import Model
from finerank.models.snr import SNR
from finerank.runtime.blocks import Block

RELATIONS, SEEDS = (0.0, 0.5, 1.0), 4
PENALTIES = (0.03, 0.1, 0.2)
WIDTH, ROWS, STEPS, RATE = 20, 128, 1_500, 0.01
NETWORKS = 8


def batch_of(x_Nd: Tensor, y_NK: Tensor) -> Batch:
    """Rows of numbers alone, each a request of its own."""
    rows = len(x_Nd)
    nothing = torch.zeros(rows, 0, dtype=torch.int64)
    request, candidate = Block(nothing, torch.zeros(rows, 0)), Block(nothing, x_Nd)
    return Batch(request, candidate, torch.arange(rows), {}, y_NK, torch.ones_like(y_NK), rows_in_step=rows)


def fitted(table: Mapping[str, object], relation: float, seed: int) -> tuple[Model, Batch, float]:
    """A model after STEPS steps of fresh rows, new rows, and its loss on them (both squared errors; the noise is .02)."""
    every = Laws.of(SEEDS, relation, WIDTH)
    law = Laws(every.weights[seed : seed + 1], every.alpha, every.beta)
    torch.manual_seed(seed)
    model = model_of(dict(table), WIDTH)
    adam, generator = torch.optim.Adam(model.parameters(), RATE), torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(STEPS):
        x, y = law.rows(ROWS, generator)
        batch = batch_of(x[0], y[0])
        adam.zero_grad()
        sum(model.losses(batch, model(batch)).values(), torch.zeros(())).backward()  # type: ignore[no-untyped-call]
        adam.step()
    model.eval()
    x, y = law.rows(4_000, generator)
    batch = batch_of(x[0], y[0])
    with torch.no_grad():
        return model, batch, float((model(batch).logits - y[0]).square().mean(0).sum())


def routes_section(folder: Path) -> Section:
    del folder  # nothing is kept: a model is seconds
    table = [["relation", "lambda", "open, of 8, per task", "of those open, for both", "by chance", "loss"]]
    opened: list[dict[str, object]] = []
    shared: list[dict[str, object]] = []
    for relation in RELATIONS:
        for penalty in PENALTIES:
            snr = {"kind": "snr", "layers": 1, "networks": NETWORKS, "width": 8, "tower": [8], "penalty": penalty}
            found: list[tuple[float, float, float, float]] = []
            for seed in range(SEEDS):
                model, _, loss = fitted(snr, relation, seed)
                part = model.interactions[0]
                assert isinstance(part, SNR)
                one, two = (part.gates()[-1].settled().detach() > 0).numpy()
                both, either = int((one & two).sum()), int((one | two).sum())
                met = one.sum() * two.sum() / NETWORKS  # expected of two draws
                share, chance = both / max(either, 1), float(met / max(one.sum() + two.sum() - met, 1))
                found.append(((one.sum() + two.sum()) / 2, share, chance, loss))
                name = f"relation {relation:g}"
                opened.append({"x": penalty, "y": found[-1][0], "series": name})
                shared.append({"x": penalty, "y": share, "series": name})
            sizes, shares, chances, losses = zip(*found, strict=True)
            figures = (spread(sizes, 1), spread(shares, 2), f"{np.mean(chances):.2f}", spread(losses))
            table.append([f"{relation:g}", f"{penalty:g}", *figures])
    text = (
        "Two regressions of numbers whose directions have the cosine `relation`; one layer of eight sub-networks "
        f"below two towers, {SEEDS} seeds. With a stronger penalty (lambda; losses here are squared errors, so its "
        "scale is not the paper's) each task keeps fewer sub-networks, and little is lost. Tasks that are one keep "
        "the same ones more often than two draws of as many would (`by chance`); unrelated tasks keep others: what "
        "both use falls to a tenth, no more than by chance. Tasks half related are treated like unrelated ones. Seeds"
        " differ much."
    )
    log = {"type": "log", "nice": False}
    panels = [
        curves(points, "lambda of an open gate", y, scale_x=log, scale_y={"domain": top}, values=PENALTIES)
        for points, y, top in (
            (opened, "open sub-networks of a task", [0, NETWORKS]),
            (shared, "share of the open that both use", [0, 1]),
        )
    ]
    describe = "open sub-networks of a task, and the share of those that both tasks use, by the strength of the penalty"
    return Section("Routes: SNR and unrelated tasks", text, table, beside(panels, describe), describe)


def gates_section(folder: Path) -> Section:
    del folder
    table = [
        ["relation", "distance of the two tasks' gates, mean", "tenth", "ninth tenth", "largest gate of a row", "loss"]
    ]
    distances: list[dict[str, object]] = []
    means: list[dict[str, object]] = []
    for relation in RELATIONS:
        found = []
        for seed in range(SEEDS):
            mmoe = {"kind": "mmoe", "experts": NETWORKS, "expert": [16], "tower": [8]}
            model, batch, loss = fitted(mmoe, relation, seed)
            with torch.no_grad():
                seen = model.interactions[0].monitor(model.representation(batch))  # type: ignore[union-attr,operator]
            one, two = (seen[f"gate.y{k}"].numpy() for k in (1, 2))
            apart = np.abs(one - two).sum(1) / 2
            found.append((apart.mean(), *np.quantile(apart, [0.1, 0.9]), np.maximum(one, two).max(1).mean(), loss))
            distances += [{"distance": float(v), "series": f"relation {relation:g}"} for v in apart[:500]]
            if not seed:
                means += [
                    {"name": f"relation {relation:g}, task {k}", "expert": e + 1, "share": float(v)}
                    for k, gate in ((1, one), (2, two))
                    for e, v in enumerate(gate.mean(0))
                ]
        table.append([f"{relation:g}", *(spread(column) for column in zip(*found, strict=True))])
    text = (
        "The same tasks below MMoE's eight experts. On a row, the distance of two gates is half the sum of their "
        "differences: 0 for the same mixture, 1 for no expert in common. Gates of tasks that are one lie mostly close"
        " together, those of tasks that differ do not, at .5 no less than at 0. Means over all rows, which `finerank "
        "report` draws too, show less of it."
    )
    describe = "mean gates of each task, one seed, by relation; and how far the two tasks' gates lie apart on a row"
    return Section("Gates: MMoE by relation", text, table, _gates(means, distances, describe), describe)


def _gates(means: list[dict[str, object]], distances: list[dict[str, object]], describe: str) -> str:
    shares = {
        "width": 280,
        "height": {"step": 26},
        "data": {"values": means},
        "mark": {"type": "bar", "height": 18, "stroke": "white"},
        "encoding": {
            "y": {"field": "name", "type": "nominal", "sort": None, "title": None},
            "x": {"field": "share", "type": "quantitative", "title": "mean gate", "scale": {"nice": False}},
            "order": {"field": "expert", "type": "quantitative"},
            "color": {
                "field": "expert",
                "type": "ordinal",
                "scale": {"scheme": "blues"},
                "legend": {"title": "expert", "orient": "bottom", "symbolType": "square"},
            },
        },
    }
    densities = {
        "width": 280,
        "height": 156,
        "data": {"values": distances},
        "transform": [{"density": "distance", "groupby": ["series"], "extent": [0, 1], "bandwidth": 0.03}],
        "mark": {"type": "line", "strokeWidth": 2},
        "encoding": {
            "x": {"field": "value", "type": "quantitative", "title": "distance of the two tasks' gates on a row"},
            "y": {"field": "density", "type": "quantitative", "title": "density"},
            "color": {
                "field": "series",
                "type": "nominal",
                "sort": None,
                "legend": {"title": None, "orient": "bottom"},
            },
        },
    }
    return beside([shares, densities], describe, apart=True)
