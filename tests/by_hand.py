"""A world small enough to follow with a pencil, and the equations of the papers over it, in loops over plain lists.

Three requests with three, no and two past events, five candidates. `Hand` reads the lists below and the parameters by
name, never a batch and no code of the models; models run in float64, so equal means equal.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finerank.data.batch import Batch, Jagged, pair_up
from finerank.layers.activation import Dice
from finerank.models import registry
from finerank.models.composition import Features, Model
from finerank.runtime.blocks import Block
from finerank.schema import Categorical, Columns, FittedSchema, FittedTable, History, Numeric, Schema, Task, Vocabulary

Event = tuple[int, int, int]  # item, category, age
USERS, AGES = [3, 4, 5], [0.5, -1.0, 2.0]  # one a request
OF = [0, 0, 1, 2, 2]  # the request of each candidate
ITEMS, CATEGORIES, PRICES = [3, 4, 5, 6, 3], [3, 4, 3, 5, 4], [1.0, -0.5, 0.25, 2.0, -1.5]
PAST: list[list[Event]] = [[(4, 4, 3), (3, 3, 4), (4, 3, 5)], [], [(7, 5, 3), (3, 3, 6)]]
ROWS = {"user": 6, "item": 8, "category": 6, "clicks.age": 7}
D = 2


def fitted(
    tasks: Sequence[str] = ("click",), dims: Mapping[str, int] | None = None, history: bool = True
) -> FittedSchema:
    """Tasks live within each other, in the order given; dims: widths of features that declare their own."""
    dims = dict(dims or {})
    features = (
        Categorical(name="user", level="request", dim=dims.get("user")),
        Numeric(name="age", level="request"),
        Categorical(name="item", level="candidate", dim=dims.get("item")),
        Categorical(name="category", level="candidate", dim=dims.get("category")),
        Numeric(name="price", level="candidate"),
    )
    histories = (History(name="clicks", fields=("item", "category"), max_length=6),) if history else ()
    chain = tuple(Task(name=t, within=before) for before, t in zip([None, *tasks], tasks, strict=False))
    past = Columns(ids=(("item", "item"), ("category", "category"), ("age", "clicks.age")))
    return FittedSchema(
        Schema(features=features, histories=histories, tasks=chain),
        {name: FittedTable(rows, np.ones(rows, np.int64), Vocabulary(), dims.get(name)) for name, rows in ROWS.items()},
        request=Columns(ids=(("user", "user"),), numbers=("age",)),
        candidate=Columns(ids=(("item", "item"), ("category", "category")), numbers=("price",)),
        histories={"clicks": past} if history else {},
        train_only=Columns(),
        base_rates=dict.fromkeys(tasks, 0.25),
    )


def block(ids: list[Any], numbers: list[float] | None = None) -> Block[Tensor]:
    made = torch.tensor(ids, dtype=torch.int64)
    if numbers is None:
        return Block(made.view(-1, 3), torch.zeros(len(ids), 0, dtype=torch.float64))
    return Block(made, torch.tensor(numbers, dtype=torch.float64).unsqueeze(1))


def batch_of(
    past: list[list[Event]] = PAST,
    labels: list[list[float]] | None = None,
    weights: list[list[float]] | None = None,
    negatives: list[list[Event]] | None = None,
    history: bool = True,
) -> Batch:
    lengths = torch.tensor([len(p) for p in past])
    segments = torch.repeat_interleave(torch.arange(len(past)), lengths)
    positions = torch.tensor([t for p in past for t in range(len(p))], dtype=torch.int64)
    clicks = Jagged(block(list(itertools.chain(*past))), segments, positions, lengths, torch.zeros_like(positions))
    of = torch.tensor(OF)
    made = torch.tensor(labels or [[1.0], [0.0], [0.0], [1.0], [0.0]], dtype=torch.float64)
    return Batch(
        request=block([[u] for u in USERS], AGES),
        candidate=block([list(pair) for pair in zip(ITEMS, CATEGORIES, strict=True)], PRICES),
        request_of=of,
        histories={"clicks": clicks} if history else {},
        labels=made,
        weights=torch.ones_like(made) if weights is None else torch.tensor(weights, dtype=torch.float64),
        pairs={"clicks": pair_up(of, lengths)} if history else {},
        negatives={} if negatives is None else {"clicks": block(list(itertools.chain(*negatives)))},
        rows_in_step=len(OF),
    )


def single(batch: Batch) -> Batch:
    """The batch in float32, as training sees it."""

    def cast(t: Tensor) -> Tensor:
        return t.float() if t.is_floating_point() else t

    histories = {name: replace(h, events=h.events.map(cast)) for name, h in batch.histories.items()}
    return replace(
        batch,
        request=batch.request.map(cast),
        candidate=batch.candidate.map(cast),
        histories=histories,
        labels=batch.labels.float(),
        weights=batch.weights.float(),
    )


def numbered(model: Model, draw: np.random.Generator) -> Model:
    """The model in float64 with every parameter and statistic of Dice at a known, sizeable value; padding rows stay 0."""
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(draw.normal(0, 0.7, parameter.shape).round(2)))
        for module in model.modules():
            if isinstance(module, Dice):
                module.mean.copy_(torch.from_numpy(draw.normal(0, 0.5, module.mean.shape)))
                module.var.copy_(torch.from_numpy(draw.uniform(0.5, 2.0, module.var.shape)))
        for tables in model.embeddings().values():
            for start in tables.start.values():
                tables.weight[start] = 0.0
    return model


def model_of(table: Mapping[str, Any], schema: FittedSchema | None = None, seed: int = 0) -> Model:
    """`numbered`, of the schema at the top."""
    return numbered(registry.build(registry.parse(table), schema or fitted()), np.random.default_rng(seed))


SMALL: dict[str, Any] = {"embedding": {"width": D}}
UNIT: dict[str, Any] = {"hidden": [3, 2]}


def tower(kind: str = "prelu", hidden: Sequence[int] = (3, 2)) -> dict[str, Any]:
    return {"kind": "tower", "hidden": list(hidden), "activation": kind}


# ------------------------------------------------------------------------------------------------ the references

Vector = np.ndarray


class Hand:
    """The papers' equations over the lists at the top; parameters are read by name, one number at a time where it matters."""

    def __init__(self, model: Model, past: list[list[Event]] = PAST) -> None:
        self.p = {name: t.detach().numpy() for name, t in model.state_dict().items()}
        self.past = past

    def rows_of(self, where: str) -> dict[str, np.ndarray]:
        """Tables by name: they lie behind each other, sorted by name."""
        whole, at, out = self.p[where], 0, {}
        for name in sorted(ROWS if len(whole) == sum(ROWS.values()) else ROWS.keys() - {"clicks.age"}):
            out[name] = whole[at : at + ROWS[name]]
            at += ROWS[name]
        assert at == len(whole)
        return out

    def tables(self) -> dict[str, np.ndarray]:
        return self.rows_of(f"representation.embed.embedding.tables.{D}.weight")

    def dense(self, name: str, x: Vector) -> Vector:
        weight, bias = self.p[f"{name}.weight"], self.p.get(f"{name}.bias")
        out = [sum(w * v for w, v in zip(row, x, strict=True)) for row in weight]
        return np.array(out) + (0.0 if bias is None else bias)

    def act(self, name: str, s: Vector) -> Vector:
        """What the parameters' names tell: Dice, PReLU, or ReLU when there are none."""
        slope = self.p.get(f"{name}.slope")
        if slope is None:
            return np.array([v if v > 0 else 0.0 for v in s])
        if f"{name}.mean" not in self.p:
            return np.array([v if v > 0 else a * v for v, a in zip(s, slope, strict=True)])
        out = []
        for v, a, mean, var in zip(s, slope, self.p[f"{name}.mean"], self.p[f"{name}.var"], strict=True):
            p = 1 / (1 + math.exp(-(v - mean) / math.sqrt(var + 1e-8)))
            out.append(p * v + (1 - p) * a * v)
        return np.array(out)

    def tower(self, x: Vector, interaction: int = 0, output: int = 0) -> float:
        at = f"interactions.{interaction}.towers.{output}"
        h = self.act(f"{at}.rest.0.act", self.dense(f"{at}.first", x))
        h = self.act(f"{at}.rest.1.layers.1.act", self.dense(f"{at}.rest.1.layers.0", h))
        return float(self.dense(f"{at}.rest.1.layers.2", h)[0])

    def event(self, e: Event) -> Vector:
        """k: item and category of one event side by side."""
        tables = self.tables()
        return np.concatenate([tables["item"][e[0]], tables["category"][e[1]]])

    def candidate(self, n: int) -> Vector:
        return self.event((ITEMS[n], CATEGORIES[n], 0))

    def user(self, n: int) -> Vector:
        return self.tables()["user"][USERS[OF[n]]]

    def row(self, n: int, of_request: Sequence[Vector] = (), of_candidate: Sequence[Vector] = ()) -> Vector:
        """What the tower reads: the request's fields and numbers, then the candidate's."""
        ends = [AGES[OF[n]]], [PRICES[n]]
        return np.concatenate([self.user(n), *of_request, ends[0], self.candidate(n), *of_candidate, ends[1]])

    def pooled(self, n: int, mean: bool = False) -> Vector:
        events = self.past[OF[n]]
        return sum((self.event(e) for e in events), np.zeros(2 * D)) / (max(len(events), 1) if mean else 1)

    def scores(self, n: int) -> list[float]:
        """DIN's unit on [q, k, q - k, q∘k, age] for every event, before any normalisation."""
        out, q = [], self.candidate(n)
        for e in self.past[OF[n]]:
            k = self.event(e)
            x = np.concatenate([q, k, q - k, q * k, self.tables()["clicks.age"][e[2]]])
            h = self.act("representation.units.0.rest.0.act", self.dense("representation.units.0.first", x))
            h = self.act("representation.units.0.rest.2.act", self.dense("representation.units.0.rest.1", h))
            out.append(float(self.dense("representation.units.0.rest.3", h)[0]))
        return out

    def interest(self, n: int, weights: list[float]) -> Vector:
        return sum((w * self.event(e) for w, e in zip(weights, self.past[OF[n]], strict=True)), np.zeros(2 * D))

    def gru(self, name: str, inputs: list[Vector], attention: list[float] | None = None) -> list[Vector]:
        """Equations 2-5 of DIEN; with attention equation 14 and 15 (AUGRU)."""
        W, b, U = self.p[f"{name}.input.weight"], self.p[f"{name}.input.bias"], self.p[f"{name}.state.weight"]
        H = len(U) // 3
        u_, r_, c_ = slice(0, H), slice(H, 2 * H), slice(2 * H, 3 * H)
        h, states = np.zeros(H), []
        for t, i in enumerate(inputs):
            u = 1 / (1 + np.exp(-(W[u_] @ i + U[u_] @ h + b[u_])))
            r = 1 / (1 + np.exp(-(W[r_] @ i + U[r_] @ h + b[r_])))
            c = np.tanh(W[c_] @ i + r * (U[c_] @ h) + b[c_])
            if attention is not None:
                u = attention[t] * u
            h = (1 - u) * h + u * c
            states.append(h)
        return states

    def states(self, r: int) -> list[Vector]:
        """DIEN's interest states of a request."""
        return self.gru("representation.extract.0", [self.event(e) for e in self.past[r]])


def softmax(x: Sequence[float]) -> list[float]:
    total = sum(math.exp(v) for v in x)
    return [math.exp(v) / total for v in x]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def bce(y: float, p: float) -> float:
    return -math.log(p) if y else -math.log(1 - p)


def same(got: Tensor, expected: Sequence[Any] | np.ndarray) -> bool:
    return bool(np.allclose(got.detach().numpy(), np.array(expected), rtol=1e-10, atol=1e-12))


def features_of(model: Model, batch: Batch) -> Features:
    found = model.representation(batch)
    assert isinstance(found, Features)
    return found
