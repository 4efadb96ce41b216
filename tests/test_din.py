"""DIN's options against loops over plain lists, in float64; and what must hold whatever the options.

The nine acceptance tests that errors of other systems suggest for a DIN stand here and elsewhere:

    1 padding            test_a_row_does_not_know_its_batch (jagged: what padding would do is done by batch mates),
                         test_a_log_that_comes_padded_gives_the_logits_of_one_that_does_not
    2 one row, no past   test_a_row_does_not_know_its_batch, test_without_any_event
    3 joint attention    test_models_by_hand.test_item_and_category_attend_jointly
    4 one parameter      test_candidate_and_past_share_one_parameter
    5 Dice               test_models_by_hand.test_dice_takes_its_statistics_from_real_pairs_only, test_layers
    6 softmax            test_every_variant_is_its_loop
    7 mini-batch aware   test_models_by_hand.test_mini_batch_aware_step_of_din_by_hand
    8 GAUC on Amazon     needs data that are not at hand
    9 weights            test_every_variant_is_its_loop: they come with the output
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tiny
import torch
from by_hand import features_of, model_of, same, softmax
from torch import Tensor

from finerank.data.batch import Batch, Jagged, pair_up
from finerank.data.builder import BatchBuilder
from finerank.data.prepare import Keys, prepare
from finerank.data.split import Split
from finerank.errors import UserError
from finerank.layers.attention import ActivationUnit, UnitOptions, log_decay
from finerank.layers.mlp import BatchNorm
from finerank.models.composition import Model
from finerank.runtime.blocks import Block, Lists
from finerank.schema import (
    Categorical,
    Columns,
    FittedSchema,
    FittedTable,
    History,
    ListColumn,
    MultiValued,
    Numeric,
    Ranked,
    Schema,
    Task,
    Vocabulary,
)

# ------------------------------------------------------------------------------------------------ a world

D = 2
DAY = 86_400 * 10**6  # microseconds


@dataclass(frozen=True)
class Click:
    item: int
    category: int
    tags: tuple[int, ...]
    shop: int
    dwell: float
    days: float

    @property
    def age(self) -> int:
        """Its row in the table of ages."""
        return 3 + (self.days > 1) + (self.days > 30)


OF = [0, 0, 1, 2, 2]
USERS = [3, 4, 5]
CANDIDATES = [(3, 3, (3, 4)), (4, 4, (5,)), (5, 3, (3,)), (6, 5, ()), (3, 4, (4, 3, 6))]  # item, category, tags
CLICKS = [
    [Click(4, 4, (3,), 3, 0.5, 40.0), Click(3, 3, (5, 6), 4, -1.0, 2.0), Click(4, 3, (), 3, 2.0, 0.5)],
    [],
    [Click(7, 5, (4, 4, 3), 4, 0.25, 9.0), Click(3, 3, (3,), 3, 1.5, 9.0)],
]
PROFILES = [[(3, 4), (5, 5)], [(6, 4)], []]  # tag, rank
ROWS = {"user": 6, "item": 8, "category": 6, "tags": 7, "shop": 5, "clicks.age": 6, "topic.rank": 7}


def fitted(dims: Mapping[str, int] | None = None, profile: bool = True) -> FittedSchema:
    """Clicks with everything an event can have, and (profile) a list of ranked topics over the table of tags."""
    dims = dict(dims or {})
    features = (
        Categorical(name="user", level="request"),
        Categorical(name="item", level="candidate"),
        Categorical(name="category", level="candidate"),
        MultiValued(name="tags", level="candidate"),
        Categorical(name="shop", level="event"),
        Numeric(name="dwell", level="event"),
        Ranked(name="topic", level="event", table="tags"),
    )
    histories = (
        History(name="clicks", fields=("item", "category", "tags", "shop", "dwell"), max_length=4),
        History(name="profile", fields=("topic",), lists={"topic": "topics"}, max_length=3),
    )[: 1 + profile]
    tags = ListColumn(name="tags", table="tags")
    columns = {
        "clicks": Columns(
            ids=(("item", "item"), ("category", "category"), ("shop", "shop"), ("age", "clicks.age")),
            numbers=("dwell",),
            lists=(tags,),
        ),
        "profile": Columns(lists=(ListColumn(name="topic", table="tags", ranks="topic.rank"),)),
    }
    return FittedSchema(
        Schema(features=features, histories=histories, tasks=(Task(name="click"),)),
        {name: FittedTable(rows, np.ones(rows, np.int64), Vocabulary(), dims.get(name)) for name, rows in ROWS.items()},
        request=Columns(ids=(("user", "user"),)),
        candidate=Columns(ids=(("item", "item"), ("category", "category")), lists=(tags,)),
        histories={h.name: columns[h.name] for h in histories},
        train_only=Columns(),
        base_rates={"click": 0.25},
    )


def lists_of(rows: Sequence[Sequence[Sequence[int]]], width: int) -> Lists[Tensor]:
    """Every row its own list, stored backwards so that index, segments and rows differ."""
    stored = [list(r) for r in reversed(rows)]
    lengths = torch.tensor([len(r) for r in stored], dtype=torch.int64)
    ids = torch.tensor([e for r in stored for e in r], dtype=torch.int64).view(-1, width)
    index = torch.arange(len(rows) - 1, -1, -1)
    return Lists(index, ids, None, torch.repeat_interleave(torch.arange(len(stored)), lengths), lengths)


def batch_of(
    clicks: list[list[Click]] = CLICKS,
    profiles: list[list[tuple[int, int]]] = PROFILES,
    rows: Sequence[int] = range(5),
    candidates: Sequence[tuple[int, int, tuple[int, ...]]] = CANDIDATES,
) -> Batch:
    """The world as a batch; rows: some of the candidates, with their requests."""
    requests = sorted({OF[n] for n in rows})
    of = torch.tensor([requests.index(OF[n]) for n in rows])
    events = [e for r in requests for e in clicks[r]]
    entries = [e for r in requests for e in profiles[r]]

    def jagged(block: Block[Tensor], lengths: list[int], ages: list[int]) -> Jagged:
        count = torch.tensor(lengths)
        positions = torch.tensor([t for n in lengths for t in range(n)], dtype=torch.int64)
        segments = torch.repeat_interleave(torch.arange(len(lengths)), count)
        return Jagged(block, segments, positions, count, torch.tensor(ages, dtype=torch.int64))

    def ids(values: list[tuple[int, ...]], width: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int64).view(len(values), width)

    dwell = torch.tensor([[e.dwell] for e in events], dtype=torch.float64).view(-1, 1)
    of_events = ids([(e.item, e.category, e.shop, e.age) for e in events], 4)
    histories = {
        "clicks": jagged(
            Block(of_events, dwell, {"tags": lists_of([[(t,) for t in e.tags] for e in events], 1)}),
            [len(clicks[r]) for r in requests],
            [int(e.days * DAY) for e in events],
        ),
        "profile": jagged(
            Block(
                ids([()] * len(entries), 0),
                dwell.new_empty(len(entries), 0),
                {"topic": lists_of([[e] for e in entries], 2)},
            ),
            [len(profiles[r]) for r in requests],
            [0] * len(entries),
        ),
    }
    chosen = [candidates[n] for n in rows]
    return Batch(
        request=Block(ids([(USERS[r],) for r in requests], 1), dwell.new_empty(len(requests), 0)),
        candidate=Block(
            ids([(i, c) for i, c, _ in chosen], 2),
            dwell.new_empty(len(chosen), 0),
            {"tags": lists_of([[(t,) for t in tags] for *_, tags in chosen], 1)},
        ),
        request_of=of,
        histories=histories,
        labels=torch.tensor([[float(n % 2)] for n in rows], dtype=torch.float64),
        weights=torch.ones(len(chosen), 1, dtype=torch.float64),
        pairs={name: pair_up(of, h.lengths) for name, h in histories.items()},
    )


def din(**representation: Any) -> dict[str, Any]:
    representation = {"embedding": {"width": D}, "unit": {"hidden": [3, 2]}} | representation
    return {"name": "din", "representation": representation, "interactions": [{"kind": "tower", "hidden": [3]}]}


def built(dims: Mapping[str, int] | None = None, profile: bool = True, **representation: Any) -> Model:
    return model_of(din(**representation), fitted(dims, profile))


@pytest.mark.parametrize("start", [0.0, 0.3])
def test_every_event_weighs_alike_at_the_start(start: float) -> None:
    """Embeddings begin small, and so does what the network adds."""
    torch.manual_seed(0)
    unit = ActivationUnit(D, UnitOptions(hidden=(8, 4), start=start))
    pairs = pair_up(torch.tensor([0, 0, 1]), torch.tensor([3, 2]))
    weights = unit(torch.randn(3, D) * 0.01, torch.randn(5, D) * 0.01, None, pairs)
    assert len(weights) == 2 * 3 + 2
    assert torch.allclose(weights, torch.full_like(weights, start), atol=0.02)


def test_a_start_that_is_no_number_is_refused() -> None:
    with pytest.raises(UserError, match=r"start = inf; accepted: a number, usually 0 or \.3"):
        UnitOptions(start=float("inf"))


# ------------------------------------------------------------------------------------------------ the loops

Vector = np.ndarray
CLICK_FIELDS = {"item": "item", "category": "category", "tags": "tags"}  # field of a click -> who asks


@dataclass(frozen=True)
class Look:
    """One weight per event of a history: who asks for what."""

    history: str
    query: tuple[str, ...]
    names: tuple[str, ...]


class Hand:
    """What the papers and the docstrings say, one candidate and one event at a time."""

    def __init__(self, model: Model) -> None:
        self.p = {name: t.detach().numpy() for name, t in model.state_dict().items()}
        self.o = model.representation.options  # type: ignore[union-attr]
        self.table = {}
        sizes = model.representation.embed.embedding.of(D).sizes  # type: ignore[union-attr,operator]
        assert list(sizes) == sorted(sizes)
        whole, at = self.p[f"representation.embed.embedding.tables.{D}.weight"], 0
        for name, rows in sizes.items():
            self.table[name] = whole[at : at + rows]
            at += rows

    def mean(self, tags: Sequence[int]) -> Vector:
        return np.mean([self.table["tags"][t] for t in tags], axis=0) if tags else np.zeros(D)

    def candidate(self, n: int, name: str) -> Vector:
        item, category, tags = CANDIDATES[n]
        return {
            "item": self.table["item"][item],
            "category": self.table["category"][category],
            "tags": self.mean(tags),
        }[name]

    def events(self, history: str, r: int) -> list[Any]:
        return list(CLICKS[r] if history == "clicks" else PROFILES[r])

    def field(self, event: Any, name: str) -> Vector:
        if name == "topic":  # e_tag + p_rank
            return np.asarray(self.table["tags"][event[0]] + self.table["topic.rank"][event[1]])
        if name == "tags":
            return self.mean(event.tags)
        return np.asarray(self.table[name][getattr(event, name)])

    def keys(self, i: int, look: Look, r: int) -> list[Vector]:
        """h_t: the joined attributes, and the vector of the position where it is added."""
        events = self.events(look.history, r)
        out = [np.concatenate([self.field(e, name) for name in look.names]) for e in events]
        if self.o.recency == "add":
            out = [h + self.p[f"representation.recency.{i}"][len(out) - 1 - t] for t, h in enumerate(out)]
        return out

    def context(self, i: int, look: Look, r: int, asked: set[str]) -> list[Vector]:
        """Fields that nobody asks for, age, numbers, position."""
        out = []
        events = self.events(look.history, r)
        for t, e in enumerate(events):
            parts = [np.zeros(0)]
            if look.history == "clicks":
                parts += [self.field(e, name) for name in ("item", "category", "tags", "shop") if name not in asked]
                parts += [self.table["clicks.age"][e.age]] if self.o.age and self.o.unit.kind == "mlp" else []
                parts += [np.array([e.dwell])]
            if self.o.recency == "context":
                parts.append(self.p[f"representation.recency.{i}"][len(events) - 1 - t])
            out.append(np.concatenate(parts))
        return out

    def dense(self, at: str, x: Vector) -> Vector:
        return np.asarray(self.p[f"{at}.weight"] @ x + self.p.get(f"{at}.bias", 0.0))

    def score(self, unit: int, q: Vector, k: Vector, context: Vector) -> float:
        o, at = self.o.unit, f"representation.units.{unit}"
        if o.kind == "dot":
            return float(q @ k) / math.sqrt(len(k))
        if o.kind == "cosine":
            return float(q @ k) / max(math.sqrt(q @ q) * math.sqrt(k @ k), 1e-12)
        if o.kind == "bilinear":
            return float(
                sum(k[b] * self.p[f"{at}.form.weight"][b, a] * q[a] for a in range(len(q)) for b in range(len(k)))
            )
        blocks = {
            "query": lambda: q,
            "key": lambda: k,
            "difference": lambda: q - k,
            "product": lambda: q * k,
            "inner": lambda: np.array([q @ k]),
            "outer": lambda: np.array([a * b for a in q for b in k]),
        }
        x = np.concatenate([*(blocks[name]() for name in o.inputs), context])
        for layer in (0, 2):  # PReLU between
            s = self.dense(f"{at}.first" if layer == 0 else f"{at}.rest.{layer - 1}", x)
            slope = self.p[f"{at}.rest.{layer}.act.slope"]
            x = np.array([v if v > 0 else a * v for v, a in zip(s, slope, strict=True)])
        return float(self.dense(f"{at}.rest.3", x)[0])

    def weights(self, i: int, unit: int, look: Look, n: int, q: Vector, asked: set[str]) -> list[float]:
        r, o = OF[n], self.o
        keys, contexts = self.keys(i, look, r), self.context(i, look, r, asked)
        scores = [self.score(unit, q, k, c) for k, c in zip(keys, contexts, strict=True)]
        seconds = [e.days * 86_400 if look.history == "clicks" else 0.0 for e in self.events(look.history, r)]
        old = [-s / o.decay if o.decay else 0.0 for s in seconds]
        if not o.unit.softmax:
            return [s * math.exp(x) for s, x in zip(scores, old, strict=True)]
        scale = math.sqrt(len(look.names) * D) if o.unit.scale and o.unit.kind in ("mlp", "bilinear") else 1.0
        return softmax([s / scale + x for s, x in zip(scores, old, strict=True)])

    def of(self, looks: list[Look]) -> tuple[list[list[float]], list[Vector], list[Vector]]:
        """(weights of each look, candidate after candidate; fields of the request's side, of the candidate's) by row."""
        weights: list[list[float]] = [[] for _ in looks]
        on_R, on_N = [], []
        for n in range(5):
            v_R, v_N = [self.table["user"][USERS[OF[n]]]], [self.candidate(n, c) for c in ("item", "category", "tags")]
            for i, look in enumerate(looks):
                asked = {name for other in looks if other.history == look.history for name in other.names}
                unit = 0 if self.o.share == "loop" else i
                keys = self.keys(i, look, OF[n])
                queries = [np.concatenate([self.candidate(n, name) for name in look.query])]
                if self.o.entries and "tags" in look.query:  # each of the first entries asks for itself
                    asking = CANDIDATES[n][2][: self.o.entries]
                    whole = {name: [self.candidate(n, name)] for name in look.query}
                    whole["tags"] = [self.table["tags"][t] for t in asking] or [np.zeros(D)]
                    queries = [np.concatenate(parts) for parts in itertools.product(*whole.values())]
                each = [self.weights(i, unit, look, n, q, asked) for q in queries]
                w = [float(np.mean(column)) for column in zip(*each, strict=True)]
                weights[i] += w
                v = sum((a * k for a, k in zip(w, keys, strict=True)), np.zeros(D * len(look.names)))
                total = sum(keys, np.zeros(D * len(look.names)))
                q = np.concatenate([self.candidate(n, name) for name in look.query])
                if self.o.rework:  # batch norm in evaluation: mean 0 and variance 1, but for the weights
                    at = f"representation.rework.{i}"
                    v = self.dense(
                        f"{at}.1", v / math.sqrt(1 + 1e-5) * self.p[f"{at}.0.weight"] + self.p[f"{at}.0.bias"]
                    )
                v_N.append(v)
                v_N += [q * v] if "product" in self.o.also else []
                v_N += [q * total] if "sum_product" in self.o.also else []
                v_R += [total] if "sum" in self.o.also else []
            on_R.append(np.concatenate(v_R))
            on_N.append(np.concatenate(v_N))
        return weights, on_R, on_N


JOINT = Look("clicks", ("item", "category", "tags"), ("item", "category", "tags"))
APART = [Look("clicks", (name,), (name,)) for name in ("item", "category", "tags")]
PROFILE = Look("profile", ("tags",), ("topic",))
BOTH = [JOINT, PROFILE]
DAYS = 86_400.0
SMALL_UNIT = {"hidden": [3, 2]}

# name -> (options, what it should look at, the keys of the weights)
VARIANTS: dict[str, tuple[dict[str, Any], list[Look], list[str]]] = {
    "default": ({}, BOTH, ["clicks", "profile"]),
    "separate": (
        {"mode": "separate"},
        [*APART, PROFILE],
        ["clicks.item", "clicks.category", "clicks.tags", "profile"],
    ),
    "loop": (
        {"mode": "separate", "share": "loop", "pairs": "item#clicks.item | category#clicks.category"},
        APART[:2],
        ["clicks.item", "clicks.category"],
    ),
    "share concat": (
        {"mode": "separate", "share": "concat", "pairs": "item+category+tags#clicks"},
        [JOINT],
        ["clicks"],
    ),
    "one of three": ({"pairs": "category#clicks"}, [APART[1]], ["clicks"]),
    "a list of tags alone": ({"pairs": " tags # profile "}, [PROFILE], ["profile"]),
    "two groups": (
        {"pairs": "item+tags#clicks|category#clicks.category|tags#profile"},
        [Look("clicks", ("item", "tags"), ("item", "tags")), APART[1], PROFILE],
        ["clicks.item+tags", "clicks.category", "profile"],
    ),
    "across tables": (
        {"pairs": "category#clicks.shop|item#profile"},
        [Look("clicks", ("category",), ("shop",)), Look("profile", ("item",), ("topic",))],
        ["clicks", "profile"],
    ),
    "outer": ({"unit": SMALL_UNIT | {"inputs": ["outer", "query", "inner"]}}, BOTH, ["clicks", "profile"]),
    "no age": ({"age": False}, BOTH, ["clicks", "profile"]),
    "recency added": ({"recency": "add"}, BOTH, ["clicks", "profile"]),
    "recency as context": ({"recency": "context"}, BOTH, ["clicks", "profile"]),
    "decay": ({"decay": 5 * DAYS}, BOTH, ["clicks", "profile"]),
    "decay and softmax": ({"decay": 5 * DAYS, "unit": SMALL_UNIT | {"softmax": True}}, BOTH, ["clicks", "profile"]),
    "entries": ({"entries": 2}, BOTH, ["clicks", "profile"]),
    "entries, softmax, apart": (
        {"entries": 3, "mode": "separate", "unit": SMALL_UNIT | {"softmax": True}},
        [*APART, PROFILE],
        ["clicks.item", "clicks.category", "clicks.tags", "profile"],
    ),
    "as in the DIEN repository": ({"also": ["sum", "sum_product"]}, BOTH, ["clicks", "profile"]),
    "as in the DIN repository": ({"also": ["product"], "rework": True}, BOTH, ["clicks", "profile"]),
    "all of it": (
        {"also": ["sum", "sum_product", "product"], "rework": True, "recency": "add", "decay": DAYS, "entries": 2},
        BOTH,
        ["clicks", "profile"],
    ),
}
VARIANTS |= {
    f"{kind}{', softmax' * soft}{', unscaled' * (not scale)}": (
        {"unit": SMALL_UNIT | {"kind": kind, "softmax": soft, "scale": scale}},
        BOTH,
        ["clicks", "profile"],
    )
    for kind in ("mlp", "dot", "bilinear", "cosine")
    for soft, scale in ((False, True), (True, True), (True, False))
}
EACH = pytest.mark.parametrize("name", VARIANTS)


@EACH
def test_every_variant_is_its_loop(name: str) -> None:
    """Weights and fields of every row; the keys of the weights tell their history."""
    options, looks, keys = VARIANTS[name]
    model = built(**options)
    weights, on_R, on_N = Hand(model).of(looks)
    features = features_of(model, batch_of())
    assert list(features.attention) == list(model.attends) == keys
    assert [model.attends[key] for key in keys] == [look.history for look in looks]
    for key, expected in zip(keys, weights, strict=True):
        assert same(features.attention[key], expected), key
    assert same(features.fields_N.flatten(1), on_N)
    assert same(features.fields_R.flatten(1)[torch.tensor(OF)], on_R)
    assert model.needs.pairs == {look.history for look in looks}
    assert torch.isfinite(model(batch_of()).logits).all()


@EACH
def test_a_row_does_not_know_its_batch(name: str) -> None:
    """Alone, beside longer histories of others, and with candidates cut off: the same logits, also in training."""
    model = built(**VARIANTS[name][0])
    for training in (False, True):
        model.train(training)
        for module in model.modules():
            if isinstance(module, BatchNorm):  # its statistics are of the batch on purpose
                module.eval()
        together = model(batch_of()).logits
        longer = [CLICKS[0] * 7, [*CLICKS[2] * 20], CLICKS[2]]
        assert torch.allclose(model(batch_of(longer)).logits[3:], together[3:], rtol=1e-10, atol=1e-12)
        for n in range(5):
            assert torch.allclose(model(batch_of(rows=[n])).logits, together[n : n + 1], rtol=1e-10, atol=1e-12)


@EACH
def test_without_any_event(name: str) -> None:
    """No interest, not NaN and not the mean of nothing; gradients are finite, for one row too."""
    model = built(**VARIANTS[name][0])
    own = model.representation.embed.columns("candidate")  # type: ignore[union-attr,operator]
    for rows in (range(5), [3]):
        batch = batch_of([[], [], []], [[], [], []], rows)
        features = features_of(model.eval(), batch)
        if "rework" not in VARIANTS[name][0]:  # which has a bias
            assert not features.fields_N[:, len(own) :].detach().any()
        model.train()
        loss = sum(model.losses(batch, model(batch)).values(), torch.zeros(()))
        loss.backward()
        assert torch.isfinite(loss)
        assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in model.parameters())


@EACH
def test_gradients_are_difference_quotients(name: str) -> None:
    model = built(**VARIANTS[name][0])
    for tables in model.embeddings().values():
        tables.sparse = False
    batch, step = batch_of(), 1e-6

    def loss() -> Tensor:
        return sum(model.losses(batch, model(batch)).values(), torch.zeros(()))

    loss().backward()
    draw = torch.Generator().manual_seed(1)
    for key, parameter in model.named_parameters():
        if not parameter.numel():
            continue
        assert parameter.grad is not None, key
        direction = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
        direction /= direction.norm()
        slope = float((parameter.grad * direction).sum())
        with torch.no_grad():
            parameter += step * direction
            up = float(loss().detach())
            parameter -= 2 * step * direction
            down = float(loss().detach())
            parameter += step * direction
        assert slope == pytest.approx((up - down) / (2 * step), rel=1e-4, abs=1e-8), key


@EACH
def test_order_of_the_past_matters_only_where_positions_are_read(name: str) -> None:
    options = VARIANTS[name][0]
    model = built(**options)
    turned = model(batch_of([c[::-1] for c in CLICKS], [p[::-1] for p in PROFILES])).logits
    equal = torch.allclose(turned, model(batch_of()).logits, rtol=1e-10)
    assert equal == ("recency" not in options)


@EACH
def test_a_repeated_past_doubles_the_interest_without_softmax_only(name: str) -> None:
    options = VARIANTS[name][0]
    if "recency" in options or "rework" in options:
        pytest.skip("positions, or a bias after the sum")
    soft = options.get("unit", {}).get("softmax", False)
    model = built(**(options | {"also": []}))
    once = features_of(model, batch_of()).fields_N[:, 3:]
    twice = features_of(model, batch_of([c + c for c in CLICKS], [p + p for p in PROFILES])).fields_N[:, 3:]
    assert bool(once.detach().any())
    assert torch.allclose(twice, (1 if soft else 2) * once, rtol=1e-10)


# ------------------------------------------------------------------------------------------------ sharing


def unit_sizes(**options: Any) -> list[int]:
    units = built(profile=False, age=False, **options).representation.units  # type: ignore[union-attr]
    return [sum(p.numel() for p in unit.parameters()) for unit in units]  # type: ignore[union-attr,operator]


def size(width: int) -> int:
    """Of a 3-2-1 network with PReLU over four blocks, and a number and an embedding as context."""
    return (4 * width + D + 1) * 3 + 3 + 3 + 3 * 2 + 2 + 2 + 2 + 1


def test_sharing_has_the_parameters_it_should() -> None:
    """n pairs: n networks of P, one of P, one of P'(nD)."""
    assert unit_sizes(mode="separate") == [size(D)] * 3
    assert unit_sizes(mode="separate", share="loop") == [size(D)]
    assert unit_sizes(mode="separate", share="concat") == unit_sizes() == [size(3 * D)]
    for kind in ("dot", "cosine"):
        assert unit_sizes(mode="separate", unit={"kind": kind}) == [0] * 3
    assert unit_sizes(mode="separate", unit={"kind": "bilinear"}) == [D * D] * 3
    assert unit_sizes(unit={"kind": "bilinear"}) == [9 * D * D]


def test_share_concat_of_separate_attributes_is_the_joint_mode() -> None:
    apart, joint = built(profile=False, mode="separate", share="concat"), built(profile=False)
    assert list(apart.state_dict()) == list(joint.state_dict())
    assert torch.equal(apart(batch_of()).logits, joint(batch_of()).logits)


def test_a_loop_over_identical_fields_gives_identical_halves() -> None:
    """A candidate and clicks whose category is a second copy of the item: table for table, row for row."""
    model = built(profile=False, mode="separate", share="loop", pairs="item#clicks.item|category#clicks.category")
    tables = model.representation.embed.embedding.of(D)  # type: ignore[union-attr,operator]
    with torch.no_grad():
        tables.table("category")[3:6] = tables.table("item")[3:6]
    clicks = [[replace(e, item=e.category) for e in past] for past in CLICKS]
    candidates = [(category, category, tags) for _, category, tags in CANDIDATES]
    features = features_of(model, batch_of(clicks, candidates=candidates))
    assert torch.equal(features.attention["clicks.item"], features.attention["clicks.category"])
    assert torch.equal(features.fields_N[:, 3], features.fields_N[:, 4])
    assert bool(features.fields_N[:, 3].detach().any())


def test_a_loop_projects_what_is_narrower() -> None:
    """Queries and keys of one table by one matrix, to the widest; what is pooled stays as it was."""
    options = {"share": "loop", "pairs": "item#clicks.item|category#clicks.category|tags#profile"}
    model = built(dims={"category": 3}, **options)
    p = model.state_dict()
    fits = {name: tuple(t.shape) for name, t in p.items() if ".fits." in name}
    # item and profile are 2 wide, category 3; the profile has no context, clicks have one
    assert fits == {"representation.fits.0.key.weight": (3, 2), "representation.fits.2.key.weight": (3, 2)}
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    unit = model.representation.units[0]  # type: ignore[union-attr,index]
    unit.register_forward_pre_hook(lambda _, given: seen.append(given[:3]))
    features = features_of(model, batch_of())
    item = model.representation.embed.embedding.of(D).table("item")  # type: ignore[union-attr,operator]
    matrix = p["representation.fits.0.key.weight"]
    assert torch.allclose(seen[0][0], item[[c[0] for c in CANDIDATES]] @ matrix.T)
    assert torch.allclose(seen[0][1], item[[e.item for past in CLICKS for e in past]] @ matrix.T)
    # tags, shop, age and dwell, or nothing of them
    assert [tuple(context.shape) for *_, context in seen] == [(5, 3 * D + 1), (5, 3 * D + 1), (3, 3 * D + 1)]
    assert [bool(context.any()) for *_, context in seen] == [True, True, False]
    w, expected = features.attention["clicks.item"], []
    for n in range(5):
        mine = [e.item for e in CLICKS[OF[n]]]
        at = sum(len(CLICKS[OF[m]]) for m in range(n))
        expected.append(sum((w[at + t] * item[i] for t, i in enumerate(mine)), torch.zeros(D)).tolist())
    assert same(features.fields_N[:, 3], expected)


def test_a_loop_projects_a_query_that_is_not_as_wide_as_its_key() -> None:
    model = built(dims={"category": 3}, share="loop", pairs="category#clicks.item|tags#profile")
    p = {name: t for name, t in model.state_dict().items() if ".fits." in name}
    # the first context is the wider one, the profile has none
    assert {name: tuple(t.shape) for name, t in p.items()} == {"representation.fits.0.query.weight": (2, 3)}
    seen: list[tuple[Tensor, Tensor]] = []
    model.representation.units[0].register_forward_pre_hook(lambda _, given: seen.append(given[:2]))  # type: ignore[union-attr,index]
    features_of(model, batch_of())
    embedding = model.representation.embed.embedding  # type: ignore[union-attr]
    category = embedding.of(3).table("category")[[c[1] for c in CANDIDATES]]  # type: ignore[union-attr,operator]
    assert torch.allclose(seen[0][0], category @ p["representation.fits.0.query.weight"].T)
    item = embedding.of(D).table("item")[[e.item for past in CLICKS for e in past]]  # type: ignore[union-attr,operator]
    assert torch.equal(seen[0][1], item)


def test_a_bilinear_unit_takes_any_widths() -> None:
    model = built(
        dims={"category": 3, "tags": 5}, pairs="category#clicks.item", unit={"kind": "bilinear"}, also=["product"]
    )
    assert model.state_dict()["representation.units.0.form.weight"].shape == (2, 3)
    assert torch.isfinite(model(batch_of()).logits).all()


# ------------------------------------------------------------------------------------------------ time, position, entries


@pytest.mark.parametrize("soft", [False, True])
def test_endless_decay_is_none(soft: bool) -> None:
    unit = SMALL_UNIT | {"softmax": soft}
    slow, none, quick = (built(unit=unit, decay=tau)(batch_of()).logits for tau in (1e30, 0.0, DAYS))
    assert torch.allclose(slow, none, rtol=1e-12)
    assert not torch.allclose(quick[:2], none[:2], rtol=1e-3)


def test_ages_are_subtracted_before_they_are_floats() -> None:
    """Half a second of a decade of microseconds is lost in float32: an event of age 0 would weigh something else."""
    long_ago = 1_700_000_000_000_000
    row, event = torch.tensor([long_ago + 500_000]), torch.tensor([long_ago])
    exact = log_decay(row - event, 1.0, torch.zeros(1))
    assert float(exact) == -0.5
    assert float(row.float() - event.float()) != 500_000


@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("tau", [0.0, 2 * DAYS, 1e30])
def test_the_base_model_pools_with_decay_and_numbers(pooling: str, tau: float) -> None:
    """sum of exp(-age / tau) e_t, or over the sum of weights; lists do not decay; numbers are pooled as vectors are."""
    table = {"name": "base", "representation": {"embedding": {"width": D}, "pooling": pooling, "decay": tau}}
    model = model_of(table | {"interactions": ["cross", "linear"]}, fitted())
    hand, features = Hand(model), features_of(model, batch_of())
    for r in range(3):
        fields, numbers = [hand.table["user"][USERS[r]]], 0.0
        for history, names in (("clicks", ("item", "category", "tags", "shop")), ("profile", ("topic",))):
            events = hand.events(history, r)
            w = [math.exp(-e.days * DAYS / tau) if tau and history == "clicks" else 1.0 for e in events]
            w = [x / sum(w) for x in w] if pooling == "mean" else w
            for name in names:
                fields.append(sum((x * hand.field(e, name) for x, e in zip(w, events, strict=True)), np.zeros(D)))
            if history == "clicks":
                numbers = sum(x * e.dwell for x, e in zip(w, events, strict=True))
        assert same(features.fields_R[r], fields)
        assert same(features.numbers_R[r], [numbers])
    assert torch.isfinite(model(batch_of()).logits).all()


def test_the_mean_of_very_old_events_is_still_a_mean() -> None:
    """All weights vanish in float, their ratios do not."""
    table = {"name": "base", "representation": {"embedding": {"width": D}, "pooling": "mean", "decay": 60.0}}
    model = model_of(table, fitted())
    item = Hand(model).table["item"]
    found = features_of(model, batch_of()).fields_R[2, 1]
    assert same(found, (item[7] + item[3]) / 2)  # of one age


def test_entries_that_all_count_are_the_pooled_ones_for_lists_of_one() -> None:
    single = [(i, c, tags[:1]) for i, c, tags in CANDIDATES]
    pooled, each = built(), built(entries=3)
    assert torch.allclose(
        each(batch_of(candidates=single)).logits, pooled(batch_of(candidates=single)).logits, rtol=1e-12
    )
    assert not torch.allclose(each(batch_of()).logits[:2], pooled(batch_of()).logits[:2], rtol=1e-3)
    assert torch.allclose(each(batch_of()).logits, built(entries=4)(batch_of()).logits, rtol=1e-12)  # none is longer


def test_candidate_and_past_share_one_parameter() -> None:
    """The gradient of an item that is candidate and past is the sum of both uses."""
    model = built(profile=False, pairs="item#clicks", age=False)
    assert len(model.embeddings()) == 1
    found = []
    for keep in ("both", "candidate", "past"):
        model.train()
        batch = batch_of()
        embed = model.representation.embed  # type: ignore[union-attr]

        def cut(_: object, __: object, out: dict[str, Any], keep: str = keep) -> dict[str, Any]:
            def stop(block: str) -> Any:
                vectors = out[block].vectors
                return replace(out[block], vectors=vectors.detach() if isinstance(vectors, Tensor) else None)

            return (
                out
                if keep == "both"
                else out | {b: stop(b) for b in ("candidate", "clicks") if (b == "clicks") == (keep == "candidate")}
            )

        handle = embed.register_forward_hook(cut)  # type: ignore[union-attr,operator]
        sum(model.losses(batch, model(batch)).values(), torch.zeros(())).backward()
        handle.remove()
        (tables,) = model.embeddings().values()
        taken = tables.take_gradient()
        assert taken is not None
        found.append(torch.zeros_like(tables.weight).index_copy(0, *taken))
    row = tables.start["item"] + 3
    assert torch.allclose(found[0][row], found[1][row] + found[2][row])
    assert bool((found[1][row] != 0).all())
    assert bool((found[2][row] != 0).all())


# ------------------------------------------------------------------------------------------------ DIEN beside it


def test_dien_reads_what_only_the_event_has() -> None:
    table = {"name": "dien", "representation": {"embedding": {"width": D}}}
    model = model_of(table, fitted())
    first = model.state_dict()["representation.extract.0.input.weight"]
    assert first.shape[1] == 3 * D + D + 1  # item, category, tags; shop; dwell
    other = [[replace(e, shop=4) for e in past] for past in CLICKS]
    more = [[replace(e, dwell=e.dwell + 1) for e in past] for past in CLICKS]
    straight = model(batch_of()).logits
    for changed in (other, more):
        moved = (model(batch_of(changed)).logits - straight).abs()[:, 0].tolist()
        assert [x > 1e-6 for x in moved] == [True, True, False, True, True]


# ------------------------------------------------------------------------------------------------ from a file


def test_a_log_that_comes_padded_gives_the_logits_of_one_that_does_not(tmp_path: Path) -> None:
    """Lists filled up with 0 before or behind, to L or to L + 48: the same rows, in training and in evaluation."""
    draw = np.random.default_rng(3)
    pasts = [draw.integers(1, 9, n).tolist() for n in [0, 1, 2, 5] * 5]
    of = {"plain": pasts, "before": [[0] * (53 - len(p)) + p for p in pasts], "behind": [p + [0] * 48 for p in pasts]}
    features = (Categorical(name="item", level="candidate"),)
    rows = {"item": draw.integers(1, 9, 20), "click": draw.integers(0, 2, 20)}
    found = []
    for name, lists in of.items():
        past = History(name="past", fields=("item",), lists={"item": "items"}, padding=0, max_length=5)
        schema = Schema(features=features, histories=(past,), tasks=(Task(name="click"),))
        samples = pl.DataFrame(rows | {"items": lists}).lazy()
        data = prepare(tmp_path / name, schema, samples, None, Keys(), Split(validation=0.2, test=0.2))
        model = model_of(din(), data.fitted).float()
        batch = BatchBuilder(data, model.needs).batch(np.arange(data.requests))
        assert batch.histories["past"].lengths.tolist() == [len(p) for p in pasts]
        found.append(torch.stack([model.train(training)(batch).logits.detach() for training in (True, False)]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


FROM_A_FILE = [
    {"pairs": "item+category#clicks|tags#profile", "recency": "add", "decay": 3600.0},
    {"mode": "separate", "entries": 2},
]


@pytest.mark.parametrize("options", FROM_A_FILE, ids=["long and short", "auto"])
def test_a_ranked_profile_and_clicks_of_a_data_set(options: dict[str, Any], tmp_path: Path) -> None:
    """`military#1` in a list column is a history of ranked tags: the rank's row is added to the tag's."""
    samples, events = tiny.frames(40)
    schema = tiny.schema(tasks=1)
    topic = Ranked(name="topic", level="event", table="tags", max_rank=3, separator=",")  # one an event
    profile = History(name="profile", fields=("topic",), lists={"topic": "interests"})
    schema = replace(schema, features=(*schema.features, topic), histories=(*schema.histories, profile))
    data = prepare(tmp_path, schema, samples.lazy(), events.lazy(), tiny.KEYS, Split(validation=0.2, test=0.2))
    model = model_of(din(**options), data.fitted).float()
    batch = BatchBuilder(data, model.needs).batch(np.arange(data.requests))
    lists = batch.histories["profile"].events.lists["topic"]
    of_first = lists.ids[lists.segments.unsqueeze(1).eq(lists.index[:2]).any(1)]
    assert batch.histories["profile"].lengths.tolist() == [2] * data.requests  # t..#1, t1#2
    assert set(of_first[:, 1].tolist()) == {4, 5}  # ranks 1 and 2
    out = model(batch)
    assert torch.isfinite(out.logits).all()
    assert out.attention["profile"].shape == (2 * data.rows,)
    assert set(out.attention) == set(model.attends)
