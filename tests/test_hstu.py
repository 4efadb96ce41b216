"""HSTU against loops: pointwise attention, its bias of position and time, candidates behind the past."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import OF, PAST, SMALL, D, Hand, batch_of, features_of, fitted, model_of, same, tower

from finerank.data.batch import Batch
from finerank.errors import UserError
from finerank.layers import pointwise
from finerank.layers.pointwise import BUCKETS, bucket
from finerank.models import registry
from finerank.schema import SECOND

AGES = [[7_000_000, 4_000_001, 0], [], [86_400_000_000, 1_500_000]]  # microseconds


def hstu(**options: Any) -> dict[str, Any]:
    return {"name": "hstu", "representation": SMALL | options, "interactions": [tower()]}


def aged(batch: Batch, ages: list[list[int]] = AGES) -> Batch:
    clicks = batch.histories["clicks"]
    made = torch.tensor([a for request in ages for a in request], dtype=torch.int64)
    return replace(batch, histories={"clicks": replace(clicks, ages=made)})


def silu(x: np.ndarray) -> np.ndarray:
    out: np.ndarray = x / (1 + np.exp(-x))
    return out


def norm(x: np.ndarray) -> np.ndarray:
    out: np.ndarray = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
    return out


def by_hand(
    hand: Hand,
    n: int,
    layers: int,
    heads: int,
    most: int,
    past: list[np.ndarray] | None = None,
    past_ages: list[int] | None = None,
) -> tuple[np.ndarray, list[float]]:
    """The whole sequence, candidate last, row by row; the weights that the last layer gives it."""
    past = [hand.event(e) for e in PAST[OF[n]]] if past is None else past
    rows = [*past, hand.candidate(n)]
    ages = [*(AGES[OF[n]] if past_ages is None else past_ages), 0]
    shown: list[float] = []
    for layer in range(layers):
        at = f"representation.units.0.{layer}"
        made = [silu(hand.p[f"{at}.project.weight"] @ norm(x) + hand.p[f"{at}.project.bias"]) for x in rows]
        u, v, q, k = ([m.reshape(4, -1)[j] for m in made] for j in range(4))
        each = len(q[0]) // heads
        after, shown = [], []
        for i, x in enumerate(rows):
            taken = np.zeros(heads * each)
            for j in range(i + 1):
                seconds = (ages[j] - ages[i]) / 1e6
                step = 0 if seconds < 1 else int(np.floor(np.log2(seconds))) + 1
                bias = hand.p[f"{at}.position"][i - j]
                bias = bias + (hand.p[f"{at}.time"][step] if f"{at}.time" in hand.p else 0.0)
                by_head = []
                for h in range(heads):
                    part = slice(h * each, (h + 1) * each)
                    a = float(silu(np.array(q[i][part] @ k[j][part] + bias))) / most
                    taken[part] += a * v[j][part]
                    by_head.append(a)
                if i == len(past) and j < i:
                    shown.append(float(np.mean(by_head)))
            after.append(x + hand.p[f"{at}.out.weight"] @ (norm(taken) * u[i]) + hand.p[f"{at}.out.bias"])
        rows = after
    return rows[-1], shown


@pytest.mark.parametrize("time", [True, False])
@pytest.mark.parametrize(("layers", "heads"), [(1, 1), (3, 2), (2, 3)])
def test_hstu_equals_a_loop_over_the_whole_sequence(layers: int, heads: int, time: bool) -> None:
    """Once per request and once per candidate gives what a causal sequence per candidate gives; n = 6 + 1."""
    model = model_of(hstu(layers=layers, heads=heads, time=time))
    hand, out, logits, weights = Hand(model), model(aged(batch_of())), [], []
    for n in range(5):
        x, shown = by_hand(hand, n, layers, heads, 7)
        weights += shown
        logits.append(hand.tower(hand.row(n, [], [x])) + hand.p["head.bias"][0])
    assert same(out.logits[:, 0], logits)
    assert same(out.attention["clicks"], weights)


@pytest.mark.parametrize("actions", ["tokens", "added"])
def test_items_and_actions_take_turns(actions: str) -> None:
    """An event of a price: item, action, item, action, ..., candidate; n = 2 · 6 + 1, and times are the events'."""
    made = fitted()
    priced = replace(made, histories={"clicks": replace(made.histories["clicks"], numbers=("price",))})
    model = model_of(hstu(layers=2, heads=2, actions=actions), priced)
    prices = torch.tensor([[1.0], [-2.0], [0.5], [3.0], [-0.5]], dtype=torch.float64)
    batch = aged(batch_of())
    clicks = batch.histories["clicks"]
    batch = replace(batch, histories={"clicks": replace(clicks, events=replace(clicks.events, numbers=prices))})
    hand, out, logits, weights = Hand(model), model(batch), [], []
    first = np.cumsum([0, *map(len, PAST)])
    for n in range(5):
        r = OF[n]
        items = [hand.event(e) for e in PAST[r]]
        said = [
            hand.p["representation.context.0.weight"][:, 0] * float(prices[first[r] + t]) for t in range(len(items))
        ]
        if actions == "added":
            x, shown = by_hand(hand, n, 2, 2, 7, [i + a for i, a in zip(items, said, strict=True)])
        else:
            turns = [x for both in zip(items, said, strict=True) for x in both]
            x, each = by_hand(hand, n, 2, 2, 13, turns, [a for a in AGES[r] for _ in range(2)])
            shown = [each[2 * t] + each[2 * t + 1] for t in range(len(items))]
        weights += shown
        logits.append(hand.tower(hand.row(n, [], [x])) + hand.p["head.bias"][0])
    assert same(out.logits[:, 0], logits)
    assert same(out.attention["clicks"], weights)


def test_buckets_of_time_are_powers_of_two_of_a_second() -> None:
    given = torch.tensor([0, 999_999, 1_000_000, -1_999_999, 2_000_000, 4_000_001, 10**18])
    assert bucket(given).tolist() == [0, 0, 1, 1, 2, 3, 30]
    cuts = torch.tensor([SECOND << i for i in range(BUCKETS - 1)])
    many = torch.cat([torch.arange(0, 10**8, 777_777), *(cuts + off for off in (-1, 0, 1))])
    assert torch.equal(bucket(many), (many.unsqueeze(1) >= cuts).sum(1))


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize(("queries", "room"), [(256, 1 << 20), (2, 1), (3, 60)])
def test_attention_in_pieces_is_attention_and_so_are_its_gradients(
    monkeypatch: pytest.MonkeyPatch, queries: int, room: int, timed: bool
) -> None:
    """One piece; one row and two places at a time; two rows and three places."""
    monkeypatch.setattr(pointwise, "CPU", pointwise.Limits(0, queries, room))
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(4, 2, 7, 3, dtype=torch.float64, generator=draw, requires_grad=True) for _ in range(3))
    position = torch.randn(9, dtype=torch.float64, generator=draw, requires_grad=True)
    time = torch.randn(BUCKETS, dtype=torch.float64, generator=draw, requires_grad=True) if timed else None
    age = torch.randint(0, 10**9, (4, 7), generator=draw).sort(1, descending=True).values
    there = torch.arange(7) < torch.tensor([[7], [3], [0], [5]])
    given = [q, k, v, position, *([] if time is None else [time])]
    found = []
    for attention in (pointwise.pointwise, pointwise.plain):
        out = attention(q, k, v * there[:, None, :, None], position, time, age, 9)
        found.append([out, *torch.autograd.grad(out.square().sum(), given)])
    for mine, twin in zip(*found, strict=True):
        assert torch.allclose(mine, twin, rtol=1e-12, atol=1e-14)


def test_repeating_an_event_adds_to_what_is_taken() -> None:
    """No softmax: the intensity of interest is kept. Two equal events weigh twice as much as one, in one layer without bias."""
    model = model_of(hstu(layers=1, time=False))
    with torch.no_grad():
        model.representation.units[0][0].position.zero_()  # type: ignore[union-attr,index]
    event = PAST[0][0]
    one, two = (model(batch_of([[event] * k, [], []])).attention["clicks"] for k in (1, 2))
    assert torch.allclose(two[:2].sum(), 2 * one[0], rtol=1e-12)


def test_longer_batch_mates_change_nothing() -> None:
    model = model_of(hstu())
    longer = aged(batch_of([PAST[0], [], PAST[2] * 3]), [AGES[0], [], [900, 850, 700, 400, 399, 10]])
    assert torch.allclose(model(longer).logits[:3], model(aged(batch_of())).logits[:3], rtol=1e-10)


def test_a_past_without_times_knows_positions_alone() -> None:
    made = fitted()
    history = replace(made.schema.histories[0], lists={"item": "items", "category": "categories"})
    listed = replace(made, schema=replace(made.schema, histories=(history,)))
    model = model_of(hstu(), listed)
    assert not [name for name, _ in model.named_parameters() if name.endswith(".time")]
    assert torch.equal(model(aged(batch_of())).logits, model(batch_of()).logits)
    assert features_of(model, batch_of()).fields_N.shape == (5, 4, D)


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(UserError, match=r"layers = 0, heads = 2; accepted: whole numbers"):
        registry.parse({"name": "hstu", "representation": {"layers": 0}})
