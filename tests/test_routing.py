"""Sub-network routing and information transfer against loops, and what a closed gate means."""

from __future__ import annotations

import math
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from by_hand import SMALL, batch_of, bce, features_of, fitted, model_of, same, sigmoid, softmax
from test_multitask import TASKS, Multi, refused

from finerank.data.builder import BatchBuilder
from finerank.data.order import Budget
from finerank.export.graph import exported, flatten
from finerank.models import registry
from finerank.models.composition import Model
from finerank.models.snr import HardConcrete, HardConcreteGates, PrunedSNR
from finerank.schema import Task
from finerank.training.loop import Trainer
from finerank.training.options import TrainingOptions

LABELS = [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]


def snr(route: str, tasks: tuple[str, ...] = TASKS, seed: int = 0, **options: Any) -> Model:
    table = {"name": f"snr_{route}", "representation": SMALL, "interactions": [{"kind": "snr"} | options]}
    return model_of(table, fitted(tasks), seed)


def set_gates(model: Model, *log_alpha: Any) -> None:
    """Layer by layer; large is 1, very negative 0."""
    with torch.no_grad():
        for gates, values in zip(model.interactions[0].gates(), log_alpha, strict=True):
            gates.log_alpha.copy_(torch.as_tensor(values, dtype=torch.float64))


def settled(log_alpha: float, gamma: float = -0.1, zeta: float = 1.1) -> float:
    return min(1.0, max(0.0, sigmoid(log_alpha) * (zeta - gamma) + gamma))


# ------------------------------------------------------------------------------------------------ the network


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("route", ["trans", "aver"])
def test_snr_by_hand(route: str, layers: int) -> None:
    model = snr(route, layers=layers, networks=3, width=4, tower=[2])
    hand = Multi(model)
    for n in range(5):
        u = [hand.expert(hand.row(n), j, 3, "first") for j in range(3)]
        for layer in range(layers):
            above = 3 if layer < layers - 1 else 2
            log_alpha = hand.p_(f"routes.{layer}.gates.log_alpha")
            v = []
            for i in range(above):
                total = np.zeros(4)
                for j in range(3):
                    read = u[j] if route == "aver" else hand.p_(f"routes.{layer}.weight")[i, j] @ u[j]
                    total += settled(log_alpha[i, j]) * read
                v.append(total)
            if layer < layers - 1:
                u = [hand.grouped(v[i], i, f"above.{layer}") for i in range(3)]
        assert same(model(batch_of()).logits[n], [hand.tower(v[k], k) + hand.bias(k) for k in range(2)])


def test_open_aver_is_a_shared_bottom_of_the_sum_and_open_trans_a_layer_of_ones_own_over_all() -> None:
    aver = snr("aver", layers=1, networks=3, width=4)
    set_gates(aver, torch.full((2, 3), 50.0))
    features = features_of(aver, batch_of())
    (part,) = aver.interactions
    u = part.first(*features.sides(), features.batch.request_of)
    v = part.routes[0](u)
    assert torch.allclose(v[:, 0], v[:, 1])
    assert torch.allclose(v[:, 0], u.sum(1))
    trans = snr("trans", layers=1, networks=3, width=4)
    set_gates(trans, torch.full((2, 3), 50.0))
    (part,) = trans.interactions
    u = part.first(*features.sides(), features.batch.request_of)
    for i in range(2):
        joined = torch.cat([part.routes[0].weight[i, j] for j in range(3)], dim=1)  # [W_i1 ... W_iJ]
        assert torch.allclose(part.routes[0](u)[:, i], u.flatten(1) @ joined.T)


@pytest.mark.parametrize("route", ["trans", "aver"])
def test_diagonal_gates_are_networks_of_their_own(route: str) -> None:
    model = snr(route, layers=2, networks=2, width=4)
    diagonal = torch.tensor([[50.0, -50.0], [-50.0, 50.0]])
    set_gates(model, diagonal, diagonal)
    model(batch_of()).logits[:, 0].sum().backward()
    (part,) = model.interactions
    for grad in (
        part.first.first.weight.grad.view(2, 4, -1),
        part.above[0].layers[0].weight.grad,
        part.towers.layers[0].weight.grad,
    ):
        assert bool((grad[1] == 0).all())
        assert bool((grad[0] != 0).any())


# ------------------------------------------------------------------------------------------------ the gates


@pytest.mark.parametrize("log_alpha", [-3.0, -1.0, 0.0, 2.0])
def test_the_penalty_is_the_chance_of_an_open_gate(log_alpha: float) -> None:
    o = HardConcrete(beta=0.6, gamma=-0.2, zeta=1.3, start=log_alpha)
    gates = HardConcreteGates(100, 100, o)
    torch.manual_seed(0)
    z = torch.stack([gates() for _ in range(20)]).detach()
    chance = sigmoid(log_alpha - 0.6 * math.log(0.2 / 1.3))
    assert float((z > 0).float().mean()) == pytest.approx(chance, abs=0.004)
    assert torch.allclose(gates.open(), torch.tensor(chance))
    # the median of the noise, u = 1/2, leaves sigmoid(log alpha / beta); evaluation knows neither noise nor beta
    middle = min(1.0, max(0.0, sigmoid(log_alpha / 0.6) * 1.5 - 0.2))
    assert float(z.median()) == pytest.approx(middle, abs=0.02)
    assert float(gates.eval()()[0, 0].detach()) == pytest.approx(settled(log_alpha, -0.2, 1.3), rel=1e-6)


def test_a_seed_draws_the_same_gates_on_every_device() -> None:
    """By the processor's generator: a device without numbers moves it as the processor itself does."""
    gates = HardConcreteGates(2, 3, HardConcrete())
    after = []
    for device in ("cpu", "meta"):
        torch.manual_seed(3)
        drawn = gates.to(device).train()()
        assert drawn.device.type == device
        after.append(float(torch.rand(())))
    assert after[0] == after[1]
    assert drawn.requires_grad


def test_without_a_slope_and_at_temperature_one_the_gate_is_the_noise_itself() -> None:
    """s(u; log alpha = 0, beta = 1) = u, which the stretched interval then clips."""
    gates = HardConcreteGates(1, 5, HardConcrete(beta=1.0, start=0.0))
    torch.manual_seed(4)
    u = torch.rand(1, 5)
    torch.manual_seed(4)
    assert torch.allclose(gates(), (u * 1.2 - 0.1).clamp(0, 1), atol=1e-6)


def test_gates_are_drawn_once_a_batch_from_the_seeded_generator() -> None:
    model = snr("aver", layers=1, networks=3).train()
    alike = replace(batch_of(), request_of=torch.tensor([0, 0, 1, 2, 2]))
    torch.manual_seed(1)
    first = model(alike).logits
    torch.manual_seed(1)
    again = model(alike).logits
    other = model(alike).logits
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(model.eval()(alike).logits, model.eval()(alike).logits)


def test_the_loss_is_charged_for_every_gate() -> None:
    model = snr("trans", layers=2, networks=3, penalty=0.01)
    model.train()
    batch = batch_of(labels=LABELS)
    found = float(model.losses(batch, model(batch))["open_gates"].detach())
    hand = Multi(model)
    shift = 2 / 3 * math.log(0.1 / 1.1)
    chances = [sigmoid(a - shift) for layer in (0, 1) for a in hand.p_(f"routes.{layer}.gates.log_alpha").flatten()]
    assert len(chances) == 3 * 3 + 2 * 3
    assert found == pytest.approx(0.01 * sum(chances), rel=1e-10)
    assert snr("trans", penalty=0.0).interactions[0].penalties(features_of(model, batch)) == {}


@pytest.mark.parametrize("below", [0, 1])
def test_utilisation_is_the_mean_of_a_tasks_gates(below: int) -> None:
    """Of the gates that belong to a task, those on top; gates between sub-networks belong to none."""
    model = snr("aver", layers=1 + below, networks=3)
    set_gates(model, *[[[50.0] * 3] * 3] * below, [[50.0, 50.0, -50.0], [0.0, -50.0, -50.0]])
    (part,) = model.interactions
    assert part.utilisation() == pytest.approx({"click": 2 / 3, "conversion": settled(0.0) / 3})
    watched = part.monitor(features_of(model, batch_of()))
    assert same(watched["gate.conversion"], [[settled(0.0), 0.0, 0.0]] * 5)
    assert same(watched["utilisation.click"], [2 / 3] * 5)


# ------------------------------------------------------------------------------------------------ pruning


@pytest.mark.parametrize("activation", ["relu", "dice"])
@pytest.mark.parametrize("route", ["trans", "aver"])
def test_the_pruned_network_is_the_masked_one_and_smaller(route: str, activation: str) -> None:
    model = snr(route, layers=3, networks=4, width=3, tower=[2], activation=activation)
    closed = -50.0
    set_gates(
        model,
        [[1.0, closed, closed, 0.5], [closed, 2.0, closed, closed], [closed] * 4, [0.0] * 4],
        [[0.3, 1.0, 2.0, closed], [closed, closed, 1.0, closed], [1.0] * 4, [1.0] * 4],
        [[1.0, closed, closed, closed], [closed, 0.7, closed, closed]],
    )
    pruned = model.served()
    (part,) = pruned.interactions
    assert isinstance(part, PrunedSNR)
    # the last layer uses networks 0 and 1, the second 0, 1, 2 (2 has no input left), the first 0, 1, 3
    assert [layer.layers[0].weight.shape[0] for layer in part.above] == [3, 2]
    assert part.first.groups == 3
    assert [r.reads for r in part.routes] == [[[0, 2], [1], []], [[0, 1, 2], [2]], [[0], [1]]]
    assert torch.allclose(pruned(batch_of()).logits, model(batch_of()).logits, rtol=1e-12)
    assert sum(p.numel() for p in part.parameters()) < sum(p.numel() for p in model.interactions[0].parameters())
    assert model.interactions[0] is not part
    with pytest.raises(AttributeError):
        part.routes[0].gates  # noqa: B018


def test_a_model_with_every_gate_closed_is_served_too() -> None:
    model = snr("trans", layers=2, networks=2, width=3)
    set_gates(model, [[-50.0] * 2] * 2, [[-50.0] * 2] * 2)
    assert torch.allclose(model.served()(batch_of()).logits, model(batch_of()).logits, rtol=1e-12)


def test_the_exported_graph_holds_no_closed_gate(tmp_path: Path) -> None:
    data = tiny.dataset(tmp_path / "data", tasks=2)
    torch.manual_seed(0)
    model = registry.build(
        registry.parse({"name": "snr_trans", "interactions": [{"kind": "snr", "networks": 4, "width": 8}]}), data.fitted
    )
    whole = sum(t.numel() for t in model.state_dict().values())
    set_gates(model, [[50.0, -50.0, -50.0, -50.0]] * 4, [[50.0, 50.0, -50.0, -50.0]] * 2)
    program = exported(model, data.fitted)
    # of 16 + 8 routes of 8 x 8 there are left 2 + 4, of 4 + 4 networks 1 + 2
    assert whole - sum(t.numel() for t in program.state_dict.values()) > (24 - 6) * 64
    batch = BatchBuilder(data, model.needs).batch(data.requests_of("test"))
    logits = program.module()(*flatten(batch, data.fitted).values())[0]
    assert torch.allclose(logits, model.eval()(batch).logits, atol=1e-5)


def test_expensive_gates_close_while_training(tmp_path: Path) -> None:
    data = tiny.dataset(tmp_path / "data", tasks=2)
    found = {}
    for penalty in (0.0, 1.0):
        table = {"name": "snr_aver", "interactions": [{"kind": "snr", "networks": 3, "width": 4, "penalty": penalty}]}
        options = TrainingOptions(epochs=30, patience=30, batch=Budget(rows=64), keep_memory=False, threads=1)
        options = replace(options, dense=replace(options.dense, lr=0.4))
        trainer = Trainer(registry.parse(table), data, options)
        for epoch in range(8):
            trainer.epoch = epoch
            for step in trainer.feed.steps(data.requests_of("train"), options.batch, epoch):
                trainer.train_step(step)
        found[penalty] = sum(float(g.settled().sum().detach()) for g in trainer.model.interactions[0].gates())
    assert found[1.0] == 0.0
    assert found[0.0] > 1.0


# ------------------------------------------------------------------------------------------------ AITM


@pytest.mark.parametrize("tasks", [("click", "conversion"), ("click", "cart", "buy")])
def test_aitm_by_hand(tasks: tuple[str, ...]) -> None:
    table = {
        "name": "aitm",
        "representation": SMALL,
        "interactions": [{"kind": "aitm", "hidden": [4, 3], "tower": [2]}],
    }
    model = model_of(table, fitted(tasks))
    hand, many = Multi(model), len(tasks)
    out = model(batch_of()).logits
    whole = [i for i, head in enumerate(model.heads) if head.trained]
    assert [model.heads[i].name for i in whole] == ["&".join(tasks[: k + 1]) for k in range(many)]
    handed = model.interactions[0].monitor(features_of(model, batch_of()))
    for n in range(5):
        z: list[np.ndarray] = []
        for t in range(many):
            q = hand.expert(hand.row(n), t, many, "nets")
            if t == 0:
                z.append(q)
                continue
            at = f"interactions.0.transfers.{t - 1}"
            p = np.maximum(hand.dense(f"{at}.info.layers.0", z[-1]), 0)
            h = hand.p[f"{at}.h.weight"]
            h1, h2, h3 = h[:3], h[3:6], h[6:]
            w = softmax([float((h1 @ u) @ (h2 @ u)) / math.sqrt(3) for u in (p, q)])
            z.append(w[0] * (h3 @ p) + w[1] * (h3 @ q))
            assert float(handed[f"handed_over.{tasks[t]}"][n].detach()) == pytest.approx(w[0], rel=1e-9)
        for t, i in enumerate(whole):
            assert float(out[n, i].detach()) == pytest.approx(hand.tower(z[t], t) + hand.bias(t), rel=1e-9)


def test_what_is_handed_over_comes_from_the_task_one_lives_within() -> None:
    """The same to both tasks of a fork."""
    chain = fitted(("click", "cart", "share"))
    forked = tuple(Task(name=n, within=w) for n, w in (("click", None), ("cart", "click"), ("share", "click")))
    schema = replace(chain, schema=replace(chain.schema, tasks=forked))
    model = model_of({"name": "aitm", "representation": SMALL}, schema)
    (part,) = model.interactions
    model.zero_grad()
    batch = batch_of(labels=[[1.0, 0.0, 0.0]] * 5)
    model.losses(batch, model(batch))["click"].backward()  # type: ignore[no-untyped-call]
    grad = part.nets.first.weight.grad.view(3, -1)
    assert [bool(g.any()) for g in grad] == [True, False, False]  # the click is handed nothing
    assert all(p.grad is None or not p.grad.any() for p in part.transfers.parameters())
    for task, own in (("click&cart", [True, True, False]), ("click&share", [True, False, True])):
        model.zero_grad()
        model.losses(batch, model(batch))[task].backward()  # type: ignore[no-untyped-call]
        assert [bool(g.any()) for g in part.nets.first.weight.grad.view(3, -1)] == own
    alone = replace(
        chain, schema=replace(chain.schema, tasks=(Task(name="click"), Task(name="cart"), Task(name="share")))
    )
    assert refused({"representation": "plain", "interactions": ["aitm"]}, alone).startswith(
        "interaction 'aitm' hands over from a task to those within it, and here is none; declare a [[task]]"
    )


def test_the_calibrator_charges_a_step_that_is_likelier_than_the_one_before() -> None:
    model = model_of({"name": "aitm", "representation": SMALL, "heads": {"calibrator": 0.6}}, fitted(TASKS))
    batch = batch_of(labels=LABELS)
    with torch.no_grad():  # so that some rows are over and some are not
        model.interactions[0].towers.layers[0].weight /= 100
        logits = model(batch).logits
        model.head.bias[1] += (logits[:, 0] - logits[:, 2]).median()
    out = model(batch)
    names = [h.name for h in model.heads]
    p = {name: torch.sigmoid(out.logits[:, i]).tolist() for i, name in enumerate(names)}
    over = [max(b - a, 0.0) for a, b in zip(p["click"], p["click&conversion"], strict=True)]
    assert sum(o > 0 for o in over) in range(1, 5)
    plain = [bce(y[0] * y[1], q) for y, q in zip(LABELS, p["click&conversion"], strict=True)]
    losses = model.losses(batch, out)
    expected = sum(b + 0.6 * o for b, o in zip(plain, over, strict=True)) / 5
    assert float(losses["click&conversion"].detach()) == pytest.approx(expected, rel=1e-9)
    assert set(losses) == {"click", "click&conversion"}
    share = model.head.monitor(out.logits)["overflow.conversion"]
    assert share.tolist() == [float(o > 0) for o in over]


SENTENCES = [
    ('interactions = [{kind = "snr", gate.gamma = 0.0}]', "model.interactions[0].gate: beta = 0.666"),
    ('interactions = [{kind = "snr", penalty = -1.0}]', "model.interactions[0]: penalty = -1.0; accepted: 0 "),
    ('interactions = [{kind = "snr", networks = 0}]', "model.interactions[0]: networks = 0; accepted: at least 1"),
    ('interactions = [{kind = "snr", tower = [0]}]', "model.interactions[0]: tower = [0]; accepted: layers"),
    ('interactions = [{kind = "aitm", hidden = []}]', "model.interactions[0]: hidden = []; accepted: at least one"),
    ('heads = {kind = "whole_chain", calibrator = -1.0}', "model.heads: calibrator = -1.0; accepted: 0 (none) or more"),
]


@pytest.mark.parametrize(("written", "sentence"), SENTENCES, ids=[w for w, _ in SENTENCES])
def test_wrong_options_are_told_in_one_sentence(written: str, sentence: str) -> None:
    assert refused(tomllib.loads(f'name = "mmoe"\n{written}')).startswith(sentence)
