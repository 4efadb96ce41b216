"""DeepMCP: the two auxiliary losses against loops, what is off, and what is served."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import by_hand
import numpy as np
import pytest
import tiny
import torch
from by_hand import ITEMS, OF, PAST, bce, sigmoid

from finerank.data.batch import Jagged
from finerank.data.builder import BatchBuilder
from finerank.errors import UserError
from finerank.models import registry
from finerank.models.composition import Model
from finerank.models.deepmcp import MatchedAndCorrelated, correlation_loss
from finerank.runtime.blocks import Block

DRAWN = [
    [(0, 0, 0), (4, 4, 0), (5, 3, 0)],
    [],
    [(0, 0, 0), (4, 4, 0)],
]  # a stand-in for every event of PAST but the first


def model_of(**options: Any) -> Model:
    table = {
        "name": "deepmcp",
        "representation": by_hand.SMALL | {"hidden": [3, 2]} | options,
        "interactions": [by_hand.tower()],
    }
    return by_hand.model_of(table)


def tower(model: Model, at: str, x: np.ndarray) -> np.ndarray:
    """3 ReLUs, 2 tanh."""
    hand = by_hand.Hand(model)
    h = np.array([max(0.0, v) for v in hand.dense(f"representation.{at}.0.layers.0", x)])
    return np.array([math.tanh(v) for v in hand.dense(f"representation.{at}.1", h)])


def test_matching_by_hand() -> None:
    model = model_of(alpha=5.0, beta=0.0).train()
    hand = by_hand.Hand(model)
    labels, weights = [[1.0], [0.0], [0.0], [1.0], [math.nan]], [[1.0], [1.0], [2.0], [1.0], [0.0]]
    total = 0.0
    for n in range(4):
        x = np.concatenate([hand.user(n), hand.pooled(n), [by_hand.AGES[OF[n]]]])
        u, a = tower(model, "user", x), tower(model, "ad", np.concatenate([hand.candidate(n), [by_hand.PRICES[n]]]))
        total += weights[n][0] * bce(labels[n][0], sigmoid(float(u @ a)))
    batch = by_hand.batch_of(labels=labels, weights=weights)
    losses = model.losses(batch, model(batch))
    assert set(losses) == {"click", "matching"}
    assert math.isclose(float(losses["matching"].detach()), 5 * total / 5, rel_tol=1e-6)


@pytest.mark.parametrize(("window", "most"), [(1, 1), (2, 4), (1, 2)])
def test_correlation_by_hand(window: int, most: int) -> None:
    """Every pair of events of one past within the window; negatives that are the target or the context are passed over."""
    model = model_of(alpha=0.0, beta=0.5, window=window, negatives=most).train()
    hand = by_hand.Hand(model)
    losses, skipped = [], 0
    for past, drawn in zip(PAST, DRAWN, strict=True):
        v = [tower(model, "items.0", hand.event(e)) for e in past]
        n = [tower(model, "items.0", hand.event(e)) for e in drawn]
        for t in range(len(past)):
            for c in range(len(past)):
                if t == c or abs(t - c) > window:
                    continue
                loss = math.log(1 + math.exp(-float(v[t] @ v[c])))
                for q in range(min(most, len(past) - 1)):
                    at = 1 + (c - 1 + q) % (len(past) - 1)
                    if drawn[at][0] in (past[t][0], past[c][0]):
                        skipped += 1
                        continue
                    loss += math.log(1 + math.exp(float(v[t] @ n[at])))
                losses.append(loss)
    batch = by_hand.batch_of(negatives=DRAWN)
    found = model.losses(batch, model(batch))
    assert set(found) == {"click", "clicks correlation"}
    assert math.isclose(float(found["clicks correlation"].detach()), 0.5 * np.mean(losses), rel_tol=1e-6)
    assert len(losses) == {1: 6, 2: 8}[window]
    assert skipped > 0  # item 4 was drawn where it stands


def test_a_negative_that_is_the_context_is_passed_over() -> None:
    """Two events; the draw is the target's own item: only the attraction is left."""
    t = torch.tensor([[1.0], [2.0]])
    history = Jagged(
        Block(torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 0)),
        torch.tensor([0, 0]), torch.tensor([0, 1]), torch.tensor([2]), torch.zeros(2, dtype=torch.int64),
    )  # fmt: skip
    items, n = torch.tensor([7, 8]), torch.tensor([[9.0], [3.0]])
    apart = float(correlation_loss(t, n, items, torch.tensor([0, 9]), history, 2, 4))
    assert math.isclose(
        apart, math.log(1 + math.exp(-2)) + (math.log(1 + math.exp(3)) + math.log(1 + math.exp(6))) / 2, rel_tol=1e-6
    )
    for drawn in (7, 8):
        same = float(correlation_loss(t, n, items, torch.tensor([0, drawn]), history, 2, 4))
        assert math.isclose(same, math.log(1 + math.exp(-2)), rel_tol=1e-6)


def test_without_pasts_the_correlation_is_nothing() -> None:
    model = model_of(alpha=0.0, beta=1.0).train()
    for past in ([[], [], []], [[(3, 3, 4)], [], [(4, 4, 4)]]):
        batch = by_hand.batch_of(past=past, negatives=[[(0, 0, 0)] * len(p) for p in past])
        found = model.losses(batch, model(batch))["clicks correlation"]
        assert float(found.detach()) == 0


def test_off_it_is_the_base_model(tmp_path: Path) -> None:
    """alpha = beta = 0: the same parameters from the same seed, the same logits, no negatives asked for."""
    data = tiny.dataset(tmp_path / "data", tasks=1)
    tower_of = [{"kind": "tower", "hidden": [512, 256], "activation": "relu"}]
    built = []
    for table in (
        {"name": "deepmcp", "representation": {"alpha": 0.0, "beta": 0.0}},
        {"name": "base", "interactions": tower_of},
    ):
        torch.manual_seed(0)
        built.append(registry.build(registry.parse(table), data.fitted))
    off, base = built
    assert not off.needs.negatives
    for (one, a), (other, b) in zip(off.state_dict().items(), base.state_dict().items(), strict=True):
        assert one == other
        assert torch.equal(a, b)
    batch = BatchBuilder(data, off.needs).batch(data.requests_of("train"))
    assert torch.equal(off(batch).logits, base(batch).logits)
    assert set(off.losses(batch, off(batch))) == {"click"}


def test_all_three_losses_reach_the_shared_table() -> None:
    for options, term in (
        ({"alpha": 0.0, "beta": 0.0}, "click"),
        ({"alpha": 1.0, "beta": 0.0}, "matching"),
        ({"alpha": 0.0, "beta": 1.0}, "clicks correlation"),
    ):
        model = model_of(**options).train()
        (tables,) = model.embeddings().values()
        tables.sparse = False
        batch = by_hand.batch_of(negatives=DRAWN)
        model.losses(batch, model(batch))[term].backward()
        grad = tables.weight.grad
        assert grad is not None
        assert bool((grad[tables.start["item"] + ITEMS[0]] != 0).any())


def test_serving_knows_nothing_of_matching(tmp_path: Path) -> None:
    """Other weights in the auxiliary towers, the same scores; and the graph has none of them."""
    data = tiny.dataset(tmp_path / "data", tasks=1)
    parsed = registry.parse(
        {
            "name": "deepmcp",
            "representation": {"hidden": [23, 19]},
            "interactions": [{"kind": "tower", "hidden": [7], "activation": "relu"}],
        }
    )
    model = registry.build(parsed, data.fitted).eval()
    batch = BatchBuilder(data, model.needs).batch(data.requests_of("test"), epoch=None)
    before = model(batch)
    assert not before.losses
    assert isinstance(model.representation, MatchedAndCorrelated)
    with torch.no_grad():
        for part in (model.representation.user, model.representation.ad, model.representation.items):
            assert part is not None
            for parameter in part.parameters():
                parameter.add_(1.0)
    assert torch.equal(model(batch).logits, before.logits)
    read = tiny.read_by_graph(model, data.fitted)
    assert any("interactions_0_towers" in name for name in read)
    assert not any(f"representation_{gone}" in name for name in read for gone in ("user", "ad_", "items"))


def test_auxiliary_losses_are_charged_once_for_a_request_in_chunks() -> None:
    """The matrix checks gradients; here the numbers: two halves of the rows of a step add up to the whole."""
    model = model_of().train()
    batch = by_hand.batch_of(negatives=DRAWN)
    whole = float(model.losses(batch, model(batch))["clicks correlation"].detach())
    half = replace(batch, rows_in_step=10)
    part = float(model.losses(half, model(half))["clicks correlation"].detach())
    assert math.isclose(part, whole / 2, rel_tol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, r"alpha = -1\.0; accepted: 0 \(off\) or more"),
        ({"beta": float("inf")}, r"beta = inf; accepted: 0 \(off\) or more"),
        ({"window": 0}, r"window = 0.*at least 1"),
        ({"hidden": []}, r"hidden = \[\].*at least 1"),
        ({"task": "clik"}, r"representation\.task = 'clik' is no binary task; .*click"),
        ({"pooling": "max"}, r"pooling: got 'max'"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        model_of(**options)


def test_a_schema_without_history_is_refused() -> None:
    with pytest.raises(UserError, match=r"needs history in the schema"):
        registry.build(registry.composition("deepmcp"), by_hand.fitted(history=False))
