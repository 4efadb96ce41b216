"""A small world with everything in it: users, items with categories, tags and prices, clicks and conversions within them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from finerank.data.dataset import Dataset
from finerank.data.prepare import Keys, prepare
from finerank.data.split import Split
from finerank.export.graph import exported
from finerank.models import registry
from finerank.models.composition import Model
from finerank.schema import (
    Bucketed,
    Categorical,
    Cross,
    Encoding,
    FittedSchema,
    Hashed,
    History,
    MultiValued,
    Numeric,
    Ranked,
    Schema,
    Task,
    Vocabulary,
)

KEYS = Keys(request="request", user="user", time="time", sequence="sequence")
USERS, ITEMS, CATEGORIES, TAGS = 12, 30, 5, 7


def frames(requests: int = 60, seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(samples, events): the click probability depends on how often the candidate's category is in the user's past."""
    draw = np.random.default_rng(seed)
    category = draw.integers(0, CATEGORIES, ITEMS)
    tags = [sorted(set(draw.integers(0, TAGS, draw.integers(0, 4)).tolist())) for _ in range(ITEMS)]
    price = np.round(draw.lognormal(1, 1, ITEMS), 2)
    events: list[dict[str, object]] = []
    samples: list[dict[str, object]] = []
    past: dict[int, list[int]] = {u: [] for u in range(USERS)}
    sequence = 0
    for r in range(requests):
        time = 1_000 * (r // 2)  # two requests share each moment
        user = int(draw.integers(0, USERS))
        for _ in range(int(draw.integers(1, 5))):
            item = int(draw.integers(0, ITEMS))
            match = sum(category[i] == category[item] for i in past[user])
            click = int(draw.random() < 0.15 + 0.6 * min(match, 2) / 2)
            row = {"item": f"i{item}", "category": int(category[item]), "tags": [f"t{t}" for t in tags[item]]}
            row |= {"price": float(price[item])}
            samples.append(
                {"request": r, "user": f"u{user}", "time": time, "sequence": sequence, "country": "AB"[user % 2]}
                | {"age": None if user == 3 else 20.0 + user, "click": click, "position": int(draw.integers(1, 4))}
                | {"conversion": int(click and draw.random() < 0.4), "interests": [f"t{user % TAGS}#1", "t1#2"]}
                | row
            )
            if click:
                events.append({"user": f"u{user}", "time": time, "sequence": sequence, "kind": "click"} | row)
                past[user].append(item)
            sequence += 1
    return pl.DataFrame(samples), pl.DataFrame(events)


def delayed(samples: pl.DataFrame) -> pl.DataFrame:
    """The samples with what a third task needs: how long a conversion took, and how long each row was watched."""
    sequence = pl.col("sequence")
    return samples.with_columns(delay=100.0 + 300.0 * (sequence % 5), elapsed=60_000.0 - pl.col("time"))


def schema(
    tasks: int = 2,
    rich: bool = True,
    encoding: Encoding = Vocabulary(),
    max_length: int = 6,
) -> Schema:
    """rich: every kind of feature; else the plain ones alone."""
    features = [
        Categorical(name="user", level="request", encoding=encoding),
        Categorical(name="country", level="request"),
        Categorical(name="item", level="candidate", encoding=encoding),
        Categorical(name="category", level="candidate"),
    ]
    if rich:
        features[2:2] = [
            Numeric(name="age", level="request"),
            Ranked(name="interests", level="request", max_rank=3),
        ]
        features += [
            MultiValued(name="tags", level="candidate"),
            Bucketed(name="price", level="candidate", buckets=4),
            Numeric(name="amount", level="candidate", column="price", transform="log1p"),
            Cross(name="country_category", level="candidate", of=("country", "category"), encoding=Hashed(buckets=50)),
            Categorical(name="position", level="candidate", use="train_only"),
        ]
    fields = ("item", "category", "tags", "price") if rich else ("item", "category")
    histories = (History(name="clicks", fields=fields, where={"kind": "click"}, max_length=max_length),)
    if tasks == 3:
        features.append(Numeric(name="elapsed", level="candidate", use="train_only", transform="none"))
    delay = Task(name="delay", kind="regression", within="conversion")
    every = (Task(name="click"), Task(name="conversion", within="click"), delay)
    return Schema(features=tuple(features), histories=histories, tasks=every[:tasks])


def dataset(
    folder: Path, requests: int = 60, seed: int = 0, tasks: int = 2, rich: bool = True, **more: object
) -> Dataset:
    """The world, prepared into `folder`."""
    samples, events = frames(requests, seed)
    made = schema(tasks, rich, **more)  # type: ignore[arg-type]
    if tasks == 3:
        samples = delayed(samples)
    return prepare(folder, made, samples.lazy(), events.lazy(), KEYS, Split(validation=0.2, test=0.2))


SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "deep_crossing": (
        "under the matrix's weights, drawn 0.3 wide, the logits of its five wide units reach 500 million, where difference "
        "quotients see nothing; and strides of 0.01 overshoot",
        {"interactions": [{"kind": "residual_units", "hidden": [128, 64]}]},
    ),
    "fgcnn": (
        "its true size takes six minutes to pass every check (`test_fgcnn_at_its_defaults`, among the slow tests)",
        {"interactions": [{"kind": "fgcnn", "classifier": {"hidden": [128, 64]}}]},
    ),
}
"""Models that are tested at another size than their defaults: {name: (why, what differs)}. docs/models.md prints them."""


def composition(name: str) -> registry.Composition:
    """The named composition at a size that suits this world."""
    _, smaller = SIZES.get(name, ("", {}))
    return registry.parse({"name": name, **smaller})


class Stopped(Exception):  # noqa: N818
    """Raised in the middle of a training, which is then gone on with."""


def stopping_at_step(number: int) -> Callable[[str], None]:
    """For `Trainer(at=...)`: ends the training once so many steps are done."""
    seen = 0

    def stop(point: str) -> None:
        nonlocal seen
        seen += point == "step"
        if seen == number:
            raise Stopped

    return stop


def read_by_graph(model: Model, fitted: FittedSchema) -> set[str]:
    """The weights and inputs that the served graph reads."""
    traces = logging.getLogger("torch.__trace")  # pytest gives it handlers, and then it traces thousands of records
    traces.handlers, traces.propagate = [], True
    return {n.name for n in exported(model, fitted).graph.nodes if n.op == "placeholder" and n.users}
