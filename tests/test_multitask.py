"""Models of several tasks against the equations of their papers in loops (`by_hand`), and the limits that tie them together."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import SMALL, UNIT, Hand, Vector, batch_of, features_of, fitted, model_of, same, single, softmax

from finerank.errors import UserError
from finerank.layers.activation import Dice
from finerank.layers.experts import Experts
from finerank.models import registry
from finerank.models.composition import Model
from finerank.schema import FittedSchema

TASKS = ("click", "conversion")


def built(name: str, tasks: Sequence[str] = TASKS, seed: int = 0, **options: Any) -> Model:
    table = {"name": name, "representation": SMALL, "interactions": [{"kind": KIND.get(name, name)} | options]}
    return model_of(table, fitted(tasks), seed)


KIND = {"omoe": "mmoe", "moe": "mmoe", "cgc": "ple", "tensor_factorization": "tucker"}


class Multi(Hand):
    """Networks of a group, each on its own, one number at a time."""

    def p_(self, name: str) -> Vector:
        return self.p[f"interactions.0.{name}"]

    def expert(self, x: Vector, g: int, groups: int, name: str = "experts") -> Vector:
        """Expert g of `Experts`: its rows of the first layer, then its blocks of the others; ReLU."""
        weight, bias = self.p_(f"{name}.first.weight"), self.p_(f"{name}.first.bias")
        width = len(weight) // groups
        at = range(g * width, (g + 1) * width)
        h = np.array([max(0.0, float(sum(weight[i] * x)) + bias[i]) for i in at])
        return self.grouped(h, g, f"{name}.rest")

    def grouped(self, h: Vector, g: int, name: str, last: bool = False) -> Vector:
        """Network g of a `GroupedMLP`."""
        layers = sorted(
            int(key.split(".")[-2])
            for key in self.p
            if key.startswith(f"interactions.0.{name}.layers.") and key.endswith("weight")
        )
        for i in layers:
            bias = self.p.get(f"interactions.0.{name}.layers.{i}.bias")
            h = np.array([float(sum(w * h)) for w in self.p_(f"{name}.layers.{i}.weight")[g]])
            h = h if bias is None else h + bias[g]
            h = h if last and i == layers[-1] else np.maximum(h, 0)
        return h

    def tower(self, x: Vector, k: int = 0, output: int = 0) -> float:
        return float(self.grouped(x, k, "towers", last=True)[0])

    def gate(self, x: Vector, name: str, k: int, gates: int) -> list[float]:
        weight = self.p_(f"{name}.weight")
        n = len(weight) // gates
        return softmax([float(weight[k * n + i] @ x) for i in range(n)])

    def bias(self, k: int) -> float:
        return float(self.p["head.bias"][k])


def mixed(weights: Sequence[float], experts: Sequence[Vector]) -> Vector:
    return np.array(sum(w * e for w, e in zip(weights, experts, strict=True)))


# ------------------------------------------------------------------------------------------------ shared bottom


def test_shared_bottom_is_one_network_and_a_tower_per_task() -> None:
    model = built("shared_bottom", bottom=[4, 3], tower=[2])
    hand = Multi(model)
    for n in range(5):
        f = hand.expert(hand.row(n), 0, 1, "bottom")
        expected = [hand.tower(f, k) + hand.bias(k) for k in range(2)]
        assert same(model(batch_of()).logits[n], expected)


def test_a_tower_learns_from_its_task_alone_and_the_bottom_from_both() -> None:
    model = built("shared_bottom", bottom=[4], tower=[3])
    (part,) = model.interactions
    grads = {}
    for k, task in enumerate(TASKS):
        model.zero_grad()
        batch = batch_of(labels=[[1.0, 1.0]] * 5)
        model.losses(batch, model(batch))[task].backward()  # type: ignore[no-untyped-call]
        for layer in part.towers.layers:
            for parameter in layer.parameters():
                assert bool((parameter.grad[k] != 0).any())
                assert bool((parameter.grad[1 - k] == 0).all())
        grads[task] = part.bottom.first.weight.grad.clone()
    assert all(bool((g != 0).any()) for g in grads.values())
    assert not torch.allclose(grads["click"], grads["conversion"])


# ------------------------------------------------------------------------------------------------ mixtures


@pytest.mark.parametrize("name", ["mmoe", "omoe", "moe"])
def test_mixtures_of_experts_by_hand(name: str) -> None:
    tower: list[int] = [] if name == "moe" else [2]
    gates = {"gates": "each" if name == "mmoe" else "one"}
    model = built(name, experts=3, expert=[4, 2], tower=tower, **gates)
    hand = Multi(model)
    for n in range(5):
        x = hand.row(n)
        f = [hand.expert(x, i, 3) for i in range(3)]
        for k in range(2):
            g = hand.gate(x, "gates.linear", k, 2) if name == "mmoe" else hand.gate(x, "gates.linear", 0, 1)
            expected = hand.tower(mixed(g, f), k) + hand.bias(k)
            assert float(model(batch_of()).logits[n, k].detach()) == pytest.approx(expected, rel=1e-10)


def test_one_expert_is_a_shared_bottom_and_tied_gates_are_one_gate() -> None:
    one = built("mmoe", experts=1, expert=[4, 3], tower=[2])
    bottom = built("shared_bottom", bottom=[4, 3], tower=[2], seed=1)
    state = {k.replace(".experts.", ".bottom."): v for k, v in one.state_dict().items() if ".gates." not in k}
    bottom.load_state_dict(state)
    assert torch.allclose(one(batch_of()).logits, bottom(batch_of()).logits, rtol=1e-12)
    tied, single_gate = built("mmoe", experts=3), built("omoe", experts=3, gates="one", seed=1)
    state = tied.state_dict()
    weight = state["interactions.0.gates.linear.weight"]
    weight[3:] = weight[:3]
    tied.load_state_dict(state)
    single_gate.load_state_dict(state | {"interactions.0.gates.linear.weight": weight[:3]})
    assert torch.allclose(tied(batch_of()).logits, single_gate(batch_of()).logits, rtol=1e-12)


def test_experts_have_no_order_and_gates_sum_to_one() -> None:
    model = built("mmoe", experts=4, expert=[3])
    before = model(batch_of()).logits
    (part,) = model.interactions
    turn = [2, 0, 3, 1]
    part.experts = part.experts.only(turn)
    with torch.no_grad():
        gates = part.gates.linear.weight.view(2, 4, -1)
        gates.copy_(gates[:, turn].clone())
    assert torch.allclose(model(batch_of()).logits, before, rtol=1e-12)
    watched = part.monitor(features_of(model, batch_of()))
    assert set(watched) == {f"{what}.{task}" for what in ("gate", "gate_entropy") for task in TASKS}
    for task in TASKS:
        g = watched[f"gate.{task}"].detach().numpy()
        assert np.allclose(g.sum(1), 1)
        entropy = [-sum(p * math.log(p) for p in row) for row in g]
        assert same(watched[f"gate_entropy.{task}"], entropy)


def test_gate_dropout_switches_experts_off_and_never_all() -> None:
    model = built("mmoe", experts=3, gate_dropout=0.9).train()
    (part,) = model.interactions
    features = features_of(model, batch_of())
    given = (*features.sides(), features.batch.request_of)
    torch.manual_seed(3)
    drawn = torch.cat([part.gates(*given) for _ in range(200)])
    assert torch.allclose(drawn.sum(2), torch.ones(1000, 2, dtype=torch.float64))
    off = (drawn == 0).double().mean()
    # each is off with .9 unless all three are (.729), when none is
    assert float(off) == pytest.approx(0.9 - 0.729, abs=0.02)
    logits = part.gates.linear(*given).view(5, 2, 3).repeat(200, 1, 1)
    alive = drawn > 0
    expected = logits.exp() * alive / (logits.exp() * alive).sum(2, keepdim=True)
    assert torch.allclose(drawn, expected)
    assert torch.allclose(part.eval().gates(*given), torch.softmax(logits[:5], 2))


def test_experts_with_statistics_are_experts_on_their_own() -> None:
    """Dice and batch norm of one expert do not know of its neighbours."""
    torch.manual_seed(0)
    experts = Experts(3, 2, 3, (4, 2), "dice", batch_norm=True)
    x_R, x_N, of = torch.randn(3, 2), torch.randn(5, 3), torch.tensor([0, 0, 1, 2, 2])
    for _ in range(3):
        together = experts(x_R, x_N, of)
    assert any(isinstance(m, Dice) for m in experts.modules())
    for g in range(3):
        assert torch.allclose(experts.only([g])(x_R, x_N, of)[:, 0], together[:, g], atol=1e-6)
        assert torch.allclose(experts.eval().only([g])(x_R, x_N, of)[:, 0], experts(x_R, x_N, of)[:, g], atol=1e-6)
        experts.train()


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_stacked_mixtures_by_hand(layers: int) -> None:
    model = built("ml_mmoe", layers=layers, experts=3, expert=[4], tower=[2])
    hand = Multi(model)
    for n in range(5):
        x = hand.row(n)
        u = [hand.expert(x, i, 3) for i in range(3)]
        for layer in range(layers - 1):
            v = [mixed(hand.gate(x, f"gates.{layer}.linear", i, 3), u) for i in range(3)]
            u = [hand.grouped(v[i], i, f"above.{layer}") for i in range(3)]
        top = [mixed(hand.gate(x, f"gates.{layers - 1}.linear", k, 2), u) for k in range(2)]
        expected = [hand.tower(top[k], k) + hand.bias(k) for k in range(2)]
        assert same(model(batch_of()).logits[n], expected)


def test_one_layer_of_mixtures_is_mmoe() -> None:
    stacked = built("ml_mmoe", layers=1, experts=3, expert=[4], tower=[2])
    plain = built("mmoe", experts=3, expert=[4], tower=[2], seed=1)
    plain.load_state_dict({k.replace(".gates.0.", ".gates."): v for k, v in stacked.state_dict().items()})
    assert torch.equal(stacked(batch_of()).logits, plain(batch_of()).logits)


# ------------------------------------------------------------------------------------------------ PLE


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize(("own", "shared"), [(2, 1), (1, 3)])
def test_ple_by_hand(levels: int, own: int, shared: int) -> None:
    model = built("ple", levels=levels, own=own, shared=shared, expert=[4, 3], tower=[2])
    hand, e = Multi(model), 2 * own + shared
    common = list(range(2 * own, e))
    for n in range(5):
        x = hand.row(n)
        experts = [hand.expert(x, i, e) for i in range(e)]
        gates = [hand.gate(x, "gates", k, 2) for k in range(2)]
        all_gate = hand.gate(x, "shared_gate", 0, 1) if levels > 1 else []
        for level in range(levels):
            streams = [
                mixed(gates[k], [experts[i] for i in (*range(k * own, (k + 1) * own), *common)]) for k in range(2)
            ]
            if level == levels - 1:
                break
            streams.append(mixed(all_gate, experts))
            at = f"above.{level}"
            read = [streams[0]] * own + [streams[1]] * own + [streams[2]] * shared
            experts = [hand.grouped(read[i], i, f"{at}.experts") for i in range(e)]
            gates = [softmax([float(w @ streams[k]) for w in hand.p_(f"{at}.gates.weight")[k]]) for k in range(2)]
            if level < levels - 2:
                all_gate = softmax([float(w @ streams[2]) for w in hand.p_(f"{at}.shared_gate.weight")[0]])
        expected = [hand.tower(streams[k], k) + hand.bias(k) for k in range(2)]
        assert same(model(batch_of()).logits[n], expected)
        watched = model.interactions[0].monitor(features_of(model, batch_of()))
        assert same(watched["gate.conversion"][n], gates[1])


def test_ple_without_own_experts_is_mmoe() -> None:
    ple = built("cgc", levels=1, own=0, shared=3, expert=[4], tower=[2])
    mmoe = built("mmoe", experts=3, expert=[4], tower=[2], seed=1)
    mmoe.load_state_dict({k.replace(".gates.", ".gates.linear."): v for k, v in ple.state_dict().items()})
    assert torch.allclose(ple(batch_of()).logits, mmoe(batch_of()).logits, rtol=1e-12)


def test_own_experts_of_a_task_learn_nothing_from_another_in_cgc() -> None:
    model = built("cgc", levels=1, own=2, shared=1, expert=[4])
    batch = batch_of(labels=[[1.0, 1.0]] * 5)
    model.losses(batch, model(batch))["click"].backward()  # type: ignore[no-untyped-call]
    grad = model.interactions[0].experts.first.weight.grad.view(5, 4, -1)
    assert bool((grad[2:4] == 0).all())
    assert bool((grad[:2] != 0).any())
    assert bool((grad[4] != 0).any())


# ------------------------------------------------------------------------------------------------ soft sharing


def nets_by_hand(hand: Multi, x: Vector, hidden: Sequence[int], stitches: Sequence[Vector] | None) -> list[float]:
    """Two networks in loops, with a stitch after every hidden layer."""
    if stitches is None:
        return [
            float(hand.grouped(hand.expert(x, k, 2, "nets"), k, "last", last=True)[0]) + hand.bias(k) for k in range(2)
        ]
    weight, bias = hand.p_("first.weight"), hand.p_("first.bias")
    w = hidden[0]
    h = [weight[k * w : (k + 1) * w] @ x + bias[k * w : (k + 1) * w] for k in range(2)]
    for layer, stitch in enumerate(stitches):
        a = [np.maximum(v, 0) for v in h]
        s = [stitch[k, 0] * a[0] + stitch[k, 1] * a[1] for k in range(2)]
        h = [hand.p_(f"layers.{layer}.weight")[k] @ s[k] for k in range(2)]
        if layer < len(stitches) - 1:
            h = [h[k] + hand.p_(f"layers.{layer}.bias")[k] for k in range(2)]
    return [float(h[k][0]) + hand.bias(k) for k in range(2)]


def test_cross_stitch_by_hand_and_as_it_begins() -> None:
    model = built("cross_stitch", hidden=[4, 3])
    hand = Multi(model)
    stitches = [hand.p_("stitches.0"), hand.p_("stitches.1")]
    expected = [nets_by_hand(hand, hand.row(n), [4, 3], stitches) for n in range(5)]
    assert same(model(batch_of()).logits, expected)
    fresh = registry.build(registry.parse({"name": "cross_stitch"}), fitted(TASKS)).interactions[0]
    for stitch in fresh.stitches:
        assert torch.allclose(stitch, torch.tensor([[0.9, 0.1], [0.1, 0.9]]))


def test_l2_constrained_by_hand_and_its_penalty() -> None:
    model = built("l2_constrained", hidden=[4, 3], alpha=0.3)
    hand = Multi(model)
    assert same(model(batch_of()).logits, [nets_by_hand(hand, hand.row(n), [4, 3], None) for n in range(5)])
    (part,) = model.interactions
    first, bias = hand.p_("nets.first.weight"), hand.p_("nets.first.bias")
    distance = float(((first[:4] - first[4:]) ** 2).sum() + ((bias[:4] - bias[4:]) ** 2).sum())
    for name in ("nets.rest.layers.0.weight", "nets.rest.layers.0.bias", "last.layers.0.weight"):
        distance += float(((hand.p_(name)[0] - hand.p_(name)[1]) ** 2).sum())
    found = part.penalties(features_of(model, batch_of()))
    assert float(found["l2_constraint"].detach()) == pytest.approx(0.3 * distance, rel=1e-10)
    part_of_step = replace(features_of(model, batch_of()), batch=replace(batch_of(), rows_in_step=20))
    assert float(part.penalties(part_of_step)["l2_constraint"].detach()) == pytest.approx(0.3 * distance / 4)


def test_three_networks_are_charged_for_every_pair() -> None:
    model = built("l2_constrained", ("click", "cart", "buy"), hidden=[2], alpha=1.0)
    (part,) = model.interactions
    theta = [torch.cat([p.view(3, -1)[k] for p in part.parameters()]) for k in range(3)]
    expected = sum(float((theta[i] - theta[j]).square().sum().detach()) for i, j in ((0, 1), (0, 2), (1, 2)))
    found = part.penalties(features_of(model, batch_of(labels=[[0.0] * 3] * 5)))
    assert float(found["l2_constraint"].detach()) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", ["cross_stitch", "l2_constrained"])
def test_unstitched_and_unconstrained_networks_are_towers_of_their_own(name: str) -> None:
    free = {"own": 1.0} if name == "cross_stitch" else {"alpha": 0.0}
    schema = fitted(TASKS)
    table = {"name": name, "representation": SMALL, "interactions": [{"kind": name, "hidden": [4, 3]} | free]}
    model = registry.build(registry.parse(table), schema).double().eval()
    twin = registry.build(
        registry.parse(
            {
                "representation": SMALL | {"kind": "plain"},
                "interactions": [{"kind": "tower", "hidden": [4, 3], "activation": "relu"}],
            }
        ),
        schema,
    )
    twin = twin.double().eval()
    twin.representation.load_state_dict(model.representation.state_dict())
    twin.head.load_state_dict(model.head.state_dict())
    (part,) = model.interactions
    layers = (
        [part.first, part.layers[0], part.layers[1]]
        if name == "cross_stitch"
        else [part.nets.first, part.nets.rest.layers[0], part.last.layers[0]]
    )
    with torch.no_grad():
        for k, tower in enumerate(twin.interactions[0].towers):
            tower.first.weight.copy_(layers[0].weight.view(2, 4, -1)[k])
            tower.first.bias.copy_(layers[0].bias.view(2, 4)[k])
            tower.rest[1].layers[0].weight.copy_(layers[1].weight[k])
            tower.rest[1].layers[0].bias.copy_(layers[1].bias[k])
            tower.rest[1].layers[2].weight.copy_(layers[2].weight[k])
    assert torch.allclose(model(batch_of()).logits, twin(batch_of()).logits, rtol=1e-12)
    assert part.penalties(features_of(model, batch_of())) == {}
    model.zero_grad()
    model(batch_of()).logits[:, 0].sum().backward()
    assert bool((layers[1].weight.grad[1] == 0).all())
    assert bool((layers[1].weight.grad[0] != 0).any())


def test_tensor_factorization_multiplies_out_to_one_network_per_task() -> None:
    model = built("tensor_factorization", hidden=[5, 4], ranks=[3, 2, 2])
    hand = Multi(model)
    into = [hand.p_("first.weight"), hand.p_("into.0.weight")]
    for n in range(5):
        h = [hand.row(n)] * 2
        for layer in range(2):
            u1, at = into[layer], f"cores.{layer}"
            core, u2, u3 = hand.p_(f"{at}.core"), hand.p_(f"{at}.outputs"), hand.p_(f"{at}.tasks")
            for k in range(2):
                weight = np.zeros((u1.shape[1], u2.shape[1]))  # W[i, o, k] = sum S_abc U1_ai U2_bo U3_kc
                for a in range(3):
                    for b in range(2):
                        for c in range(2):
                            weight += core[a, b, c] * u3[k, c] * np.outer(u1[a], u2[b])
                h[k] = np.maximum(h[k] @ weight + hand.p_(f"{at}.bias")[k], 0)
        expected = [float(hand.p_("last.weight")[k][0] @ h[k]) + hand.bias(k) for k in range(2)]
        assert same(model(batch_of()).logits[n], expected)


# ------------------------------------------------------------------------------------------------ all of them

NAMES = ["shared_bottom", "mmoe", "omoe", "moe", "ml_mmoe", "ple", "cgc", "l2_constrained", "cross_stitch"]
NAMES += ["tensor_factorization"]


@pytest.mark.parametrize("name", NAMES)
def test_any_of_them_reads_the_interests_of_din(name: str) -> None:
    """One line of a recipe; each task's logit moves with the history, and so do its gates."""
    table = {
        "name": "din",
        "representation": SMALL | {"unit": UNIT},
        "interactions": [registry.composition(name).interactions[0].kind],
    }
    model = model_of(table, fitted(TASKS))
    out = model(batch_of())
    assert out.logits.shape == (5, 2)
    other = model(batch_of(past=[[(3, 3, 3)], [(5, 4, 3)], []])).logits
    assert bool((out.logits != other).all())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tasks", [("click",), ("click", "cart", "buy")])
def test_any_number_of_tasks(name: str, tasks: Sequence[str]) -> None:
    table = {"representation": SMALL | {"kind": "plain"}, "interactions": [KIND.get(name, name)]}
    model = model_of(table, fitted(tasks)).train().float()
    batch = single(batch_of(labels=[[float(n % 2)] * len(tasks) for n in range(5)]))
    out = model(batch)
    assert out.logits.shape == (5, len(tasks))
    sum(model.losses(batch, out).values(), torch.zeros(())).backward()  # type: ignore[no-untyped-call]


def refused(table: Mapping[str, Any], schema: FittedSchema | None = None) -> str:
    with pytest.raises(UserError) as error:
        registry.build(registry.parse(table), schema or fitted(TASKS))
    return str(error.value)


AT = "model.interactions[0]: "
SENTENCES = [
    ('"shared_bottom", bottom = []', "bottom = []; accepted: at least one layer, each of at least 1 neuron"),
    ('"shared_bottom", tower = [0]', "tower = [0]; accepted: layers, or none, each of at least 1 neuron"),
    ('"shared_bottom", dropout = 1.0', "dropout = 1.0; accepted: from 0 (none) to below 1"),
    ('"mmoe", experts = 0', "experts = 0; accepted: at least 1"),
    ('"mmoe", expert = [8, 0]', "expert = [8, 0]; accepted: at least one layer, each of at least 1 neuron"),
    ('"mmoe", gate_dropout = -0.1', "gate_dropout = -0.1; accepted: from 0 (none) to below 1"),
    ('"ml_mmoe", layers = 0', "layers = 0; accepted: at least 1"),
    ('"ml_mmoe", experts = 0', "experts = 0; accepted: at least 1"),
    (
        '"ple", shared = 0',
        "own = 2, shared = 0, levels = 2; accepted: one expert or more for each gate, and shared ones where levels are stacked",
    ),
    ('"ple", own = -1', "own = -1; accepted: at least 0"),
    ('"l2_constrained", alpha = -1.0', "alpha = -1.0; accepted: 0 (networks on their own) or more"),
    ('"l2_constrained", hidden = []', "hidden = []; accepted: at least one layer, each of at least 1 neuron"),
    ('"cross_stitch", own = 1.5', "own = 1.5; accepted: from 0 to 1, .9 in the paper"),
    ('"tucker", ranks = [4, 0, 2]', "ranks = [4, 0, 2]; accepted: three numbers of at least 1"),
]


@pytest.mark.parametrize(("written", "sentence"), SENTENCES, ids=[written for written, _ in SENTENCES])
def test_wrong_options_are_told_in_one_sentence(written: str, sentence: str) -> None:
    table = tomllib.loads(f'name = "mmoe"\ninteractions = [{{kind = {written}}}]')
    assert refused(table) == AT + sentence


def test_several_tasks_are_needed() -> None:
    assert refused({"name": "mmoe"}, fitted()) == (
        "model 'mmoe' needs several tasks in the schema, and this schema has none; "
        "declare a [[task]] for each label, or take a model of one task"
    )
