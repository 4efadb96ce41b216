"""World 9: a Markov chain of items; which models find that the last item decides, and the last alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmarks.known_truth.pictures import beside, curves
from benchmarks.known_truth.section import Array, Section, trained
from finerank.datasets.worlds.sequences import SequenceOptions, sequences
from finerank.metrics.ranking import auc, gauc
from finerank.run import Run
from finerank.schema import FIRST

OPTIONS = SequenceOptions(users=1_000, length=15)
BACK = 5
"""How many of the last items are looked at."""
TOWER = 'model.interactions=[{kind="tower", hidden=[64, 32]}]'
MODELS: Mapping[str, list[str]] = {
    "base": ["model.name=base", TOWER],
    "DIN": ["model.name=din", TOWER],
    "RNN": ["model.name=rnn", TOWER],
    "DIEN": ["model.name=dien", TOWER],
    "DIEN, no auxiliary loss": ["model.name=dien", "model.representation.auxiliary=0.0", TOWER],
    "BST": ["model.name=bst", 'model.representation={position="order", heads=2, dropout=0.0}', TOWER],
    "HSTU": ["model.name=hstu", TOWER],
    "BERT4Rec": ["model.name=bert4rec", "model.representation={embedding={width=32}, last=0.3}"],
    "YouTube candidates": ["model.name=youtube_candidates", "model.representation={hidden=[64, 32], drawn=20}"],
}
DRAWN = ("base", "DIN", "RNN", "DIEN", "BST", "BERT4Rec")
SETTINGS = [
    'training.tables={kind="adam", lr=0.005}',
    'training.dense={kind="adam", lr=0.002}',
    "training.batch.rows=256",
    "training.epochs=12",
    "data.split.test=0.2",
    "training.patience=3",
]


def sequences_section(folder: Path) -> Section:
    world = sequences(OPTIONS)
    table = [["model", "test AUC", "test GAUC", "favourite of the last above others", "of the one before"]]
    points: list[dict[str, object]] = []
    for name, overrides in MODELS.items():
        fitted = trained(world, folder, name.replace(", ", "_").replace(" ", "_").lower(), [*overrides, *SETTINGS])
        favourite = favourites(fitted, world.truth["favourites"])
        found = fitted.predictions("test")
        label, groups, score = found.labels[:, 0], found.groups, found.logits[:, 0]
        if not points:
            law = favourite[:, 0] * OPTIONS.faith / OPTIONS.branches + (1 - OPTIONS.faith) / OPTIONS.items
            figures = (auc(label, law), gauc(label, law, groups).value, *preferred(law, favourite)[:2])
            table.append(["the law", *(f"{v:.4f}" for v in figures)])
        above = preferred(score, favourite)
        figures = (auc(label, score), gauc(label, score, groups).value, *above[:2])
        table.append([name, *(f"{v:.4f}" for v in figures)])
        if name in DRAWN:
            points += [{"x": k + 1, "y": v, "series": name} for k, v in enumerate(above)]
    text = (
        "The next item is one of three favourites of the last item with probability .9, else any; users of the test "
        "are other users, so the chain must be learnt and not the user. A favourite of the last item should stand "
        "above a candidate that is a favourite of none of the last five (1 in the picture), a favourite of an earlier"
        " item should not (.5). What pools the past cannot tell the last item from those before; what reads an order "
        "can, though DIEN still takes the one before for more than chance. Differences of .005 between models "
        "and the law are chance."
    )
    true = [{"x": 1, "y": 1.0}, *({"x": k, "y": 0.5} for k in range(2, BACK + 1))]
    scale = {"domain": [0.4, 1.0]}
    drawn = curves(
        points, "items back", "favourite above others", values=range(1, BACK + 1), law=true, scale_y=scale, columns=3
    )
    describe = "how often a favourite of the k-th last item is scored above other candidates, by model; dashed: the law"
    return Section("Sequences: the last item decides", text, table, beside([drawn], describe), describe)


def favourites(fitted: Run, chain: Array) -> Array:
    """int64 [N, BACK] of the test's rows: how often the candidate is a favourite of the k-th last item (-1: there is none)."""
    data = fitted.dataset
    requests = data.requests_of("test")
    names = data.encoder.tables["item"]
    number = np.array([int(names.name(i)) if i >= FIRST else -1 for i in range(names.size)])
    item = number[data.candidate.ids[data.rows_of(requests), 0]]
    past, of = data.slices["past"], np.repeat(np.arange(len(requests)), np.diff(data.first)[requests])
    out = np.empty((len(item), BACK), dtype=np.int64)
    for k in range(BACK):
        at = past.end[requests] - 1 - k
        there = at >= past.start[requests]
        earlier = number[data.events["past"].block.ids[np.where(there, at, 0), 0]]
        out[:, k] = np.where(there[of], (chain[earlier[of]] == item[:, None]).sum(1), -1)
    return out


def preferred(score: Array, favourite: Array) -> list[float]:
    """[BACK]: how often a candidate that is a favourite of the k-th last item alone stands above one of none of them."""
    whole = (favourite >= 0).all(1)
    none = whole & (favourite == 0).all(1)
    out = []
    for k in range(BACK):
        others = np.delete(favourite, k, axis=1)
        alone = whole & (favourite[:, k] > 0) & (others == 0).all(1)
        both = none | alone
        out.append(float(auc(alone[both].astype(np.float32), score[both])))
    return out
