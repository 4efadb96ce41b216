"""What a synthetic world is: a log whose law is known, and a recipe for it.

Columns that begin with `true_` hold the law (the probability a row's label was drawn with). No recipe here reads them; tests
and pictures compare a model with them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from finerank.datasets.adapter import Adapter, Converted, register
from finerank.errors import UserError
from finerank.schema.checks import at_least
from finerank.typed import to_toml

SHARES = ("correlation", "faith", "floor", "ceiling", "fade", "loyalty", "leave", "turn")
"""Options of worlds that lie between 0 and 1."""


@dataclass(frozen=True, kw_only=True)
class WorldOptions:
    """What options of every world keep to: there is one of everything that is counted, seeds are not negative."""

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if isinstance(value, int):
                at_least(0 if option.name in ("seed", "law") else 1, **{option.name: value})
            elif not math.isfinite(value) or (option.name in SHARES and not 0 <= value <= 1):
                accepted = "0 to 1" if option.name in SHARES else "a number"
                raise UserError(f"{option.name} = {value}; accepted: {accepted}")


@dataclass(frozen=True)
class World:
    """A log and its law.

    samples  one row per candidate, with `true_` columns; events: the past, where there is one
    recipe   the nested dict of a recipe, sources left out
    truth    what else is known: planted pairs, seeing probabilities, a transition matrix
    """

    samples: pl.DataFrame
    recipe: Mapping[str, Any]
    events: pl.DataFrame | None = None
    truth: Mapping[str, Any] = field(default_factory=dict)

    def converted(self, about: str) -> Converted:
        """The world as an adapter's result: a folder that `finerank train` takes."""
        sources = {"samples": "samples.parquet"} | ({"events": "events.parquet"} if self.events is not None else {})
        recipe = dict(self.recipe) | {"data": sources | dict(self.recipe["data"])}
        counts = {"rows": self.samples.height} | ({"events": self.events.height} if self.events is not None else {})
        return Converted(
            samples=self.samples, events=self.events, recipe=to_toml(recipe), counts=counts, notes=(about,)
        )


def world(name: str, options: type[Any], make: Callable[[Any], World], about: str) -> None:
    """Registers a world as the data set `world_<name>`, which needs no files."""

    def convert(folder: Path, chosen: Any) -> Converted:
        return make(chosen).converted(about)

    register(Adapter(name=f"world_{name}", options=options, files=(), convert=convert, about=about))


def draws(seed: int, purpose: str) -> np.random.Generator:
    """Random numbers of one purpose: what one part of a world draws does not move another."""
    digest = hashlib.blake2b(purpose.encode(), digest_size=8).digest()
    return np.random.default_rng([seed, int.from_bytes(digest, "little")])


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-x)."""
    out: np.ndarray = 1 / (1 + np.exp(-x))
    return out


def recipe(
    features: Sequence[Mapping[str, Any]],
    tasks: Sequence[Mapping[str, Any]],
    model: Mapping[str, Any],
    *,
    keys: Mapping[str, str] | None = None,
    histories: Sequence[Mapping[str, Any]] = (),
    training: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The nested dict of a recipe, split by time 80 / 10 / 10."""
    return {
        "data": {"keys": dict(keys or {}), "split": {"by": "time", "validation": 0.1, "test": 0.1}},
        "feature": [dict(f) for f in features],
        "history": [dict(h) for h in histories],
        "task": [dict(t) for t in tasks],
        "model": dict(model),
        "training": {"epochs": 3, "patience": 1} | dict(training or {}),
    }


def categorical(name: str, level: str = "candidate", **more: object) -> dict[str, Any]:
    """A categorical feature of a recipe."""
    return {"kind": "categorical", "name": name, "level": level, **more}
