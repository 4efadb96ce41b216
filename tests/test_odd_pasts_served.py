"""Models of sequences, served from raw values, on pasts that no one expects: the served logits are the offline ones.

Each request of the test split is odd in a way of its own. Offline its past is a slice of the prepared event table; the server
is told event by event, encodes and counts ages itself, and runs the graph in onnxruntime.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tiny
import torch
from test_export import World, _no_traces, _one_registry, bundle_of, check_raw_values_give_the_offline_logits, trained  # noqa: F401

from finerank.data.builder import BatchBuilder
from finerank.data.prepare import prepare
from finerank.data.split import Split
from finerank.models.composition import Needs
from finerank.models.dsin import divide

MOST = 7  # events that a past has at most
GAP = 1_800
NOW = 500_000
# of each odd request: how many candidates, and how many seconds before it its events happened, oldest first
PASTS: dict[str, tuple[int, list[int]]] = {
    "no past": (3, []),
    "no past, one candidate": (1, []),
    "one event": (2, [60]),
    "one event, one candidate": (1, [60]),
    "as long as declared": (2, [9_000 * t for t in range(MOST, 0, -1)]),
    "much longer than declared": (4, [500 * t for t in range(40, 0, -1)]),
    "all at one moment": (3, [700] * 5),
    "ties across the cut": (2, [9_000, 9_000, 9_000, 20, 20, 20, 20, 20, 20, 20]),
    "every event a session": (5, [4_000 * t for t in range(6, 0, -1)]),
    "more sessions than places": (2, [5_000 * t for t in range(20, 0, -1)]),
    "one session, cut in its middle": (1, [100 * t for t in range(15, 0, -1)]),
    "pauses at the border, and a second beside": (3, [3 * GAP + 10, 2 * GAP + 10, GAP + 9, 10]),
    "years ago": (2, [400_000, 399_999, 5]),
    "the moment before": (2, [1]),
    "nothing known": (4, [6_000, 3_000, 2_999]),
}
SESSIONS = {  # counted by hand, among the newest seven events
    "no past": 0,
    "one event": 1,
    "as long as declared": 7,
    "much longer than declared": 1,
    "all at one moment": 1,
    "ties across the cut": 1,
    "every event a session": 6,
    "more sessions than places": 7,
    "one session, cut in its middle": 1,
    "pauses at the border, and a second beside": 2,  # 1800 s and 1799 s do not part, 1801 s does
    "years ago": 2,
    "the moment before": 1,
    "nothing known": 2,
}


def frames() -> tuple[pl.DataFrame, pl.DataFrame]:
    """The tiny world, and one request of a new user for each odd past."""
    samples, events = tiny.frames()
    draw, known = np.random.default_rng(1), samples.select("item", "category", "tags", "price").to_dicts()
    more, past = [], []
    for r, (name, (candidates, before)) in enumerate(PASTS.items()):
        user, strange = f"u{r % 12}" if r % 2 else f"new{r}", name == "nothing known"
        user = f"{user}, {name}"  # a past of its own
        thing = {"item": "i999", "category": 99, "tags": ["t99"], "price": None}

        def row(strange: bool = strange, thing: dict[str, Any] = thing) -> dict[str, Any]:
            return thing if strange else known[int(draw.integers(0, len(known)))]

        for seconds in before:
            past.append({"user": user, "time": NOW + 10 * r - seconds, "kind": "click"} | row())
        request = {
            "request": 60 + r,
            "user": user,
            "time": NOW + 10 * r,
            "country": "Z" if strange else "A",
            "age": None,
        }
        request |= {"conversion": 0, "interests": [], "position": 1}
        more += [request | {"click": int(draw.random() < 0.5)} | row() for _ in range(candidates)]
    past.sort(key=lambda e: e["time"])
    last = int(samples["sequence"].max())  # type: ignore[arg-type]
    past = [e | {"sequence": last + 1 + i} for i, e in enumerate(past)]
    more = [s | {"sequence": last + 1 + len(past) + i} for i, s in enumerate(more)]
    return (
        pl.concat([samples, pl.DataFrame(more, schema=samples.schema)]),
        pl.concat([events, pl.DataFrame(past, schema=events.schema)]),
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    samples, events = frames()
    split = Split(validation=0.2, test=len(PASTS) / (60 + len(PASTS)))
    schema = tiny.schema(tasks=1, max_length=MOST)
    folder = tmp_path_factory.mktemp("odd") / "data"
    return World(prepare(folder, schema, samples.lazy(), events.lazy(), tiny.KEYS, split), samples, events)


def test_the_test_split_is_the_odd_requests(world: World) -> None:
    data = world.data
    requests = data.requests_of("test")
    assert len(requests) == len(PASTS)
    assert [int(n) for n in np.diff(data.first)[requests]] == [n for n, _ in PASTS.values()]
    history = BatchBuilder(data, Needs()).batch(requests).histories["clicks"]
    assert history.lengths.tolist() == [min(len(before), MOST) for _, before in PASTS.values()]
    counts = dict(zip(PASTS, divide(history, GAP).counts.tolist(), strict=True))
    assert {name: counts[name] for name in SESSIONS} == SESSIONS


TINY: dict[str, Any] = {"embedding": {"width": 4, "std": 0.3}}
MODELS: dict[str, dict[str, Any]] = {
    "bst, two blocks": {"name": "bst", "representation": {"blocks": 2, "heads": 2}},
    "bst, the past alone": {"name": "bst", "representation": {"blocks": 3, "sight": "past", "position": "order"}},
    "dsin": {"name": "dsin", "representation": {"heads": 2}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_odd_pasts_are_served_as_they_are_judged(name: str, world: World, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    table = MODELS[name] | {"representation": TINY | MODELS[name]["representation"]}
    trainer = trained(table | {"interactions": [{"kind": "tower", "hidden": [8]}]}, world.data)
    check_raw_values_give_the_offline_logits(world, trainer, bundle_of(trainer, tmp_path / "bundle"))
