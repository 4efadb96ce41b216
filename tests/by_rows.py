"""A log of eleven rows and its models from the raw rows to the logit, by plain loops in float64.

`Pencil` reads the rows below as they are written, looks a value up under its text in the model's vocabulary, and reads
the weights by name: it never sees a batch, an encoded row or code of the models. What it offers is what every paper
takes for granted: the vector of a value, a list pooled, numbers as numbers, a dense layer, a tower, a linear part.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import torch
from by_hand import numbered
from torch import Tensor

from finerank.data.batch import Batch
from finerank.data.builder import BatchBuilder
from finerank.data.dataset import Dataset
from finerank.data.prepare import Keys, prepare
from finerank.data.split import Split
from finerank.models import registry
from finerank.models.composition import Model
from finerank.schema import AGE_CUTS, FIRST, Categorical, History, MultiValued, Numeric, Schema, Task

Vector = np.ndarray

# request, user, time in seconds, age (missing for one)
REQUESTS: list[tuple[int, str, int, float | None]] = [
    (0, "ann", 1_000, 31.0),
    (1, "bob", 5_000, None),
    (2, "ann", 9_000, 34.0),
    (3, "cleo", 9_500, 58.0),
    (4, "bob", 40_000, None),
]
# request, item, category, tags (none, one or several), price (missing for one), click, conversion, position
CANDIDATES: list[tuple[int, str, str, list[str], float | None, int, int, int]] = [
    (0, "pen", "desk", ["blue"], 1.5, 1, 0, 1),
    (0, "lamp", "desk", [], 20.0, 0, 0, 2),
    (0, "ball", "sport", ["red", "round"], 5.0, 0, 0, 3),
    (1, "lamp", "desk", ["warm"], 20.0, 1, 1, 1),
    (1, "bat", "sport", ["wood", "red", "blue"], None, 0, 0, 2),
    (2, "bat", "sport", ["wood"], 12.0, 1, 1, 2),
    (2, "pen", "desk", ["blue", "red"], 1.0, 0, 0, 1),
    (3, "ball", "sport", ["red"], 6.0, 0, 0, 1),
    (4, "pen", "desk", ["blue"], 2.0, 1, 0, 2),
    (4, "kite", "sky", ["new"], 9.0, 0, 0, 1),  # of a request for testing: item, category and tag are out of vocabulary
    (4, "ball", "sport", ["round", "red"], 5.5, 0, 0, 3),
]
# user, time in seconds, kind, item, category, tags
EVENTS: list[tuple[str, int, str, str, str, list[str]]] = [
    ("ann", 100, "click", "ball", "sport", ["red"]),
    ("ann", 400, "cart", "pen", "desk", ["blue"]),
    ("ann", 450, "cart", "ball", "sport", ["round", "red"]),
    ("ann", 900, "click", "pen", "desk", ["blue", "red"]),
    ("bob", 1_000, "click", "lamp", "desk", []),
    ("ann", 1_000, "click", "pen", "desk", ["blue"]),  # not before request 0, of the same moment, but before request 2
    ("ann", 8_000, "click", "bat", "sport", ["wood", "red"]),
    ("bob", 20_000, "click", "bat", "sport", ["wood"]),
    ("bob", 30_000, "cart", "bat", "sport", ["wood"]),
    ("bob", 35_000, "cart", "pen", "desk", ["blue", "warm"]),
    ("bob", 36_000, "cart", "ball", "sport", []),
    ("bob", 39_000, "click", "pen", "desk", ["blue"]),
    ("ann", 50_000, "click", "kite", "sky", ["new"]),  # after everything
]
TRAINING = (0, 1, 2, 3)  # requests; the last one is for testing
LENGTH = 3  # the most recent so many events of a history
D = 2
SMALL: dict[str, Any] = {"embedding": {"width": D}}
TOWER: dict[str, Any] = {"kind": "tower", "hidden": [3, 2], "activation": "relu"}

KINDS = {"clicks": "click", "carts": "cart"}
"""Histories: which events each holds."""

Event = tuple[str, int, str, str, str, list[str]]


def past(n: int, kind: str) -> list[Event]:
    """What row n knows of its user: events of before its request, oldest first, the most recent `LENGTH` of them."""
    _, user, time, _ = REQUESTS[CANDIDATES[n][0]]
    return [e for e in EVENTS if e[0] == user and e[1] < time and e[2] == kind][-LENGTH:]


# ------------------------------------------------------------------------------------------------ the model's side


def schema(tasks: int = 1, train_only: bool = False) -> Schema:
    features = (
        Categorical(name="user", level="request"),
        Numeric(name="age", level="request"),
        Categorical(name="item", level="candidate"),
        Categorical(name="category", level="candidate"),
        MultiValued(name="tags", level="candidate"),
        Numeric(name="price", level="candidate"),
    )
    position = (Categorical(name="position", level="candidate", use="train_only"),) if train_only else ()
    fields = ("item", "category", "tags")
    histories = tuple(
        History(name=name, fields=fields, where={"kind": kind}, max_length=LENGTH) for name, kind in KINDS.items()
    )
    chain = (Task(name="click"), Task(name="conversion", within="click"))
    return Schema(features=features + position, histories=histories, tasks=chain[:tasks])


def one_history(whole: Schema) -> Schema:
    """The schema for models of one sequence: without the carts."""
    return replace(whole, histories=whole.histories[:1])


@cache
def dataset(of: Callable[[], Schema] = schema) -> tuple[Dataset, TemporaryDirectory[str]]:
    """The log prepared; and its folder, which goes when nobody knows it."""
    requests = {r: (user, time, age) for r, user, time, age in REQUESTS}
    samples = []
    for i, (r, item, category, tags, price, click, conversion, position) in enumerate(CANDIDATES):
        user, time, age = requests[r]
        row = {"request": r, "user": user, "time": time, "sequence": i, "age": age, "item": item, "category": category}
        samples.append(
            row | {"tags": tags, "price": price, "click": click, "conversion": conversion, "position": position}
        )
    names = ("user", "time", "kind", "item", "category", "tags")
    events = [dict(zip(names, e, strict=True)) | {"sequence": i} for i, e in enumerate(EVENTS)]
    keys = Keys(request="request", user="user", time="time", sequence="sequence")
    folder = TemporaryDirectory()
    made = prepare(
        Path(folder.name),
        of(),
        pl.DataFrame(samples).lazy(),
        pl.DataFrame(events).lazy(),
        keys,
        Split(validation=0.0, test=0.2),
    )
    return made, folder


def batch_of(data: Dataset, model: Model) -> Batch:
    """All eleven rows, numbers in float64."""
    batch = BatchBuilder(data, model.needs).batch(np.arange(data.requests))

    def cast(t: Tensor) -> Tensor:
        return t.double() if t.is_floating_point() else t

    return replace(
        batch,
        request=batch.request.map(cast),
        candidate=batch.candidate.map(cast),
        histories={name: replace(h, events=h.events.map(cast)) for name, h in batch.histories.items()},
        labels=batch.labels.double(),
        weights=batch.weights.double(),
    )


def model_of(table: Mapping[str, Any], data: Dataset, seed: int = 0) -> Model:
    """`numbered`, and the statistics of batch normalisation too."""
    draw = np.random.default_rng(seed)
    model = numbered(registry.build(registry.parse(table), data.fitted), draw)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(torch.from_numpy(draw.normal(0, 0.5, module.running_mean.shape)))
            module.running_var.copy_(torch.from_numpy(draw.uniform(0.5, 2.0, module.running_var.shape)))
    return model


def lively(table: Mapping[str, Any], data: Dataset, idle: Sequence[str] = ()) -> Model:
    """The model at the first values under which rows differ and every weight matters to some logit: no layer of ReLU is
    dead, and none is left out of what is compared. idle: beginnings of the names of weights that training alone reads."""
    for seed in range(40):
        model = model_of(table, data, seed)
        for parameter in model.parameters():
            parameter.grad = None
        out = model(batch_of(data, model)).logits
        (out * torch.arange(1.0, 1.0 + out.numel()).view_as(out)).sum().backward()
        dead = [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())]
        apart = all(len(column.unique()) > 8 for column in out.T)
        if apart and not [name for name in dead if not name.startswith(tuple(idle))]:
            return model
    raise AssertionError(f"weights that change no logit: {dead}; rows with equal logits: {not apart}")


# ------------------------------------------------------------------------------------------------ the pencil


def relu(x: Vector) -> Vector:
    return np.array([v if v > 0 else 0.0 for v in x])


def softmax(x: Sequence[float]) -> list[float]:
    total = sum(math.exp(v) for v in x)
    return [math.exp(v) / total for v in x]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def standardised(x: float | None, known: list[float | None]) -> list[float]:
    """Of mean 0 and variance 1 over the training rows, kept in single precision; beside it whether it is missing: then 0."""
    there = [k for k in known if k is not None]
    mean = sum(there) / len(there)
    spread = math.sqrt(sum((k - mean) ** 2 for k in there) / len(there))
    return [0.0, 1.0] if x is None else [float(np.float32((x - mean) / spread)), 0.0]


class Pencil:
    """The eleven rows and the weights of a model by name."""

    def __init__(self, model: Model, data: Dataset) -> None:
        self.p = {name: t.detach().numpy() for name, t in model.state_dict().items()}
        self.start = {name: tables.start for name, tables in model.embeddings().items()}
        self.symbols = {name: table.symbol for name, table in data.fitted.tables.items()}

    def of(self, k: int) -> Pencil:
        """Over the parts of output k alone, of models whose outputs share nothing."""
        own = copy.copy(self)
        own.p = {name.replace(f".of.{k}.", "."): value for name, value in self.p.items()}
        own.start = {name.replace(f".of.{k}.", "."): start for name, start in self.start.items()}
        return own

    # values and lists of them: each the row of its text in its table

    def value(self, at: str, table: str, text: str) -> Vector:
        return self.p[at][self.start[at][table] + self.symbols[table](text)]

    def mean(self, at: str, table: str, texts: Sequence[str]) -> Vector:
        """The mean of the vectors of a list; 0 where it is empty."""
        vectors = [self.value(at, table, text) for text in texts]
        return sum(vectors, np.zeros(self.p[at].shape[1])) / max(len(vectors), 1)

    @property
    def table(self) -> str:
        """Where the representation keeps its vectors."""
        return f"representation.embed.embedding.tables.{D}.weight"

    # one row: fields, numbers, both

    def of_request(self, n: int, at: str = "") -> list[Vector]:
        _, user, _, _ = REQUESTS[CANDIDATES[n][0]]
        return [self.value(at or self.table, "user", user)]

    def of_candidate(self, n: int, at: str = "") -> list[Vector]:
        at = at or self.table
        _, item, category, tags, *_ = CANDIDATES[n]
        return [self.value(at, "item", item), self.value(at, "category", category), self.mean(at, "tags", tags)]

    # the past: an event as its item, category and tags side by side; a candidate likewise

    def event(self, e: Event) -> Vector:
        _, _, _, item, category, tags = e
        at = self.table
        return np.concatenate(
            [self.value(at, "item", item), self.value(at, "category", category), self.mean(at, "tags", tags)]
        )

    def candidate(self, n: int) -> Vector:
        return np.concatenate(self.of_candidate(n))

    def time_between(self, n: int, e: Event, history: str) -> Vector:
        """The vector of the bucket of the time from the event to the request."""
        seconds = REQUESTS[CANDIDATES[n][0]][2] - e[1]
        bucket = sum(cut <= seconds for cut in AGE_CUTS)
        at = self.table
        return self.p[at][self.start[at][f"{history}.age"] + FIRST + bucket]

    def pooled(self, n: int, mean: bool = False) -> list[Vector]:
        """Of each history item, category and tags, summed over its events (or the mean of them)."""
        out = []
        for kind in KINDS.values():
            events = past(n, kind)
            total = sum((self.event(e) for e in events), np.zeros(3 * D))
            out.append(total / max(len(events), 1) if mean else total)
        return out

    # numbers

    def age(self, n: int) -> list[float]:
        ages = [REQUESTS[r][3] for r, *_ in CANDIDATES if r in TRAINING]
        return standardised(REQUESTS[CANDIDATES[n][0]][3], ages)

    def price(self, n: int) -> list[float]:
        return standardised(CANDIDATES[n][4], [c[4] for c in CANDIDATES if c[0] in TRAINING])

    def row(
        self,
        n: int,
        fields_R: Sequence[Vector] = (),
        fields_N: Sequence[Vector] = (),
        R: Sequence[float] = (),
        N: Sequence[float] = (),
    ) -> Vector:
        """What a tower reads: fields and numbers of the request, then of the candidate; further ones behind either."""
        request = [*self.of_request(n), *fields_R, self.age(n), R]
        return np.concatenate([*request, *self.of_candidate(n), *fields_N, self.price(n), N])

    def vectors(self, n: int, at: str, table: str = "") -> list[Vector]:
        """Every field and number as a vector: a number x has a vector v of its own and is x v."""
        v_R, v_N = self.p[f"{at}.numbers_R"], self.p[f"{at}.numbers_N"]
        ages = [x * v for x, v in zip(self.age(n), v_R, strict=True)]
        prices = [x * v for x, v in zip(self.price(n), v_N, strict=True)]
        return [*self.of_request(n, table), *ages, *self.of_candidate(n, table), *prices]

    def linear(self, n: int, at: str = "interactions.0", numbers: bool = True) -> float:
        """Σ w x: ids have x = 1, of a list the mean counts."""
        table = f"{at}.weights.tables.1.weight"
        found = sum(float(w[0]) for w in [*self.of_request(n, table), *self.of_candidate(n, table)])
        if numbers:
            found += float(np.array(self.age(n)) @ self.p[f"{at}.numbers_R"][:, 0])
            found += float(np.array(self.price(n)) @ self.p[f"{at}.numbers_N"][:, 0])
        return found

    # layers

    def dense(self, at: str, x: Vector, which: int | None = None) -> Vector:
        """W x + b; of several networks that lie stacked in one weight, number `which`."""
        weight, bias = self.p[f"{at}.weight"], self.p.get(f"{at}.bias")
        if which is not None:
            weight, bias = weight[which], None if bias is None else bias[which]
        out = np.array([sum(w * v for w, v in zip(row, x, strict=True)) for row in weight])
        return out if bias is None else out + bias

    def norm(self, at: str, x: Vector) -> Vector:
        """Batch normalisation by its moving statistics."""
        mean, var = self.p[f"{at}.running_mean"], self.p[f"{at}.running_var"]
        shape = (-1,) + (1,) * (x.ndim - 1)  # channels first
        mean, spread = mean.reshape(shape), np.sqrt(var + 1e-5).reshape(shape)
        return (x - mean) / spread * self.p[f"{at}.weight"].reshape(shape) + self.p[f"{at}.bias"].reshape(shape)

    def tower(
        self, at: str, x: Vector, act: Callable[[Vector], Vector] = relu, last: bool = False, which: int | None = None
    ) -> Vector:
        """Dense layers in the order of their names, `act` between them (last: behind the last one too); a norm before it."""
        layers = dict.fromkeys(name.rsplit(".", 1)[0] for name in self.p if name.startswith(f"{at}."))
        waits = False
        for name in layers:
            if name.endswith(".norm"):
                x = self.norm(name, x)
                continue
            if f"{name}.slope" in self.p:  # an activation of its own: PReLU
                x, waits = np.where(x > 0, x, self.p[f"{name}.slope"] * x), False
                continue
            if waits:
                x = act(x)
            x, waits = self.dense(name, x, which), True
        return act(x) if last else x

    def logit(self, at: str, x: Vector) -> float:
        """Of a tower of ReLU with one output."""
        return float(self.tower(at, x)[0])


def close(got: Tensor, expected: Sequence[Any]) -> None:
    np.testing.assert_allclose(got.detach().numpy(), np.array(expected), rtol=1e-9, atol=1e-10)
