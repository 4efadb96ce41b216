"""Options of the sequence models that a default does not reach make the trip to onnxruntime, too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from test_export import Text, World, _no_traces, _one_registry, check_the_trip, trained, worlds  # noqa: F401 - fixtures

from finerank.data.prepare import prepare
from finerank.data.split import Split
from finerank.schema import Task

TINY = {"embedding": {"width": 4}}
UNIT = {"hidden": [8]}
VARIANTS: dict[str, dict[str, Any]] = {
    "dien, as the code": {
        "name": "dien",
        "representation": {
            "attention": "unit",
            "unit": UNIT,
            "discriminator": "mlp",
            "cell": "augru_official",
            "also": ["sum", "sum_product"],
        },
    },
    "dien, sigmoid": {"name": "dien", "representation": {"normalise": "sigmoid", "cell": "aigru"}},
    "lstm, mean": {"name": "rnn", "representation": {"cell": "lstm", "pooling": "mean", "age": True}},
    "bst, two blocks": {"name": "bst", "representation": {"blocks": 2, "position": "order", "heads": 3}},
    "bst, past": {"name": "bst", "representation": {"blocks": 2, "sight": "past", "position": "none"}},
    "sim, the newest": {"name": "sim", "representation": {"top": 2, "recent": 1, "exact": "din", "unit": UNIT}},
    "sim, softmax": {
        "name": "sim",
        "representation": {
            "top": 3,
            "recent": 2,
            "short": "din",
            "exact": "din",
            "unit": UNIT | {"softmax": True},
            "by": "price",
        },
    },
    "sim, soft": {"name": "sim_soft", "representation": {"top": 3, "recent": 0, "heads": 3}},
    "dsin, mean": {"name": "dsin", "representation": {"merge": "mean", "gap": 1_000, "heads": 3, "bias": False}},
    "hstu, places alone": {"name": "hstu", "representation": {"layers": 1, "heads": 3, "time": False}},
    "dien, gates of their own": {"name": "dien", "representation": {"cell": "agru", "also": ["sum_product"]}},
    "dien, no attention": {"name": "dien", "representation": {"cell": "gru", "auxiliary": 0.0}},
    "sim, no times": {"name": "sim", "representation": {"top": 2, "recent": 0, "interval": False}},
    "sim, soft and units": {
        "name": "sim_soft",
        "representation": {"top": 2, "recent": 3, "exact": "din", "interval": False, "short": "din", "unit": UNIT},
    },
    "base, fading": {"name": "base", "representation": {"decay": 9_000.0}},
    "base, a fading mean": {
        "name": "base",
        "representation": {"pooling": "mean", "decay": 9_000.0},
        "without": ["item"],
    },
    "din, joined units, unscaled": {
        "name": "din",
        "representation": {
            "mode": "separate",
            "share": "concat",
            "age": False,
            "unit": UNIT | {"softmax": True, "scale": False, "inputs": ["query", "inner", "product"]},
        },
    },
    "sim, separate": {"name": "sim", "separate": True, "representation": {"top": 2, "recent": 1}},
    "sim, separate units": {
        "name": "sim",
        "separate": True,
        "representation": {"top": 2, "recent": 2, "exact": "din", "short": "din", "unit": UNIT},
    },
    "sim, soft, separate": {"name": "sim_soft", "separate": True, "representation": {"top": 2, "recent": 2}},
    "dien, separate": {"name": "dien", "separate": True, "representation": {"attention": "unit", "unit": UNIT}},
    "bst, separate": {"name": "bst", "separate": True, "representation": {"heads": 3}},
    "hstu, separate": {"name": "hstu", "separate": True, "representation": {"layers": 1, "heads": 3}},
}
QUICK = ["sim, soft"]


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in VARIANTS])
def test_every_variant_makes_the_trip(
    name: str,
    worlds: dict[int, World],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Text,
) -> None:
    table = VARIANTS[name] | {"representation": TINY | VARIANTS[name]["representation"]}
    table |= {"interactions": [{"kind": "tower", "hidden": [8]}]}
    world = worlds[2 if table.get("separate") else 1]  # a network each makes sense for several tasks
    check_the_trip(trained(table, world.data), world, tmp_path, monkeypatch, capfd)


def test_expected_watch_time_makes_the_trip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Text) -> None:
    """A head of odds: trained and judged by weighted logistic regression, served as e^z."""
    samples, events = tiny.frames()
    schema = replace(tiny.schema(tasks=1, max_length=50), tasks=(Task(name="click", kind="regression"),))
    data = prepare(tmp_path / "data", schema, samples.lazy(), events.lazy(), tiny.KEYS, Split(validation=0.2, test=0.2))
    trainer = trained({"name": "youtube_ranking", "interactions": [{"kind": "tower", "hidden": [8]}]}, data)
    first = trainer.history[0]
    assert set(first.validation["click"]) == {"odds_loss", "rmse", "rows"}
    assert first.score == -first.validation["click"]["odds_loss"]
    scorer = check_the_trip(trainer, World(data, samples, events), tmp_path, monkeypatch, capfd)
    scores = scorer.score({"user": "u1"}, [{"item": "i1"}, {"item": "i2"}])
    np.testing.assert_allclose(scores.predictions["click"], np.exp(scores.logits["click"]), rtol=1e-6)
