"""Networks over products of fields (PNN, DCN-V2, CIN, Deep Crossing, DSSM) against loops, and their limits."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from by_fields import PAIRS, Vector, alone, fm_like, mlp, of_part, one_sided, vectors
from by_hand import AGES, OF, PAST, PRICES, SMALL, D, Hand, batch_of, features_of, fitted, model_of, same

from finerank.errors import UserError
from finerank.models import registry
from finerank.models.xdeepfm import _Bilinear, bilinear, quadratic

# ------------------------------------------------------------------------------------------------ PNN


def pnn(**options: Any) -> dict[str, Any]:
    return alone({"kind": "pnn", "dropout": 0.0, **options})


@pytest.mark.parametrize("product", ["inner", "outer", "both"])
@pytest.mark.parametrize("form", ["pairs", "factorised"])
def test_pnn_is_the_equations_of_the_paper(product: str, form: str) -> None:
    """Every weight of W_p is met by its product: the columns of the first layer are walked one after another."""
    model = model_of(pnn(product=product, form=form, hidden=[4, 3]))
    hand, expected, at = Hand(model), [], "interactions.0.network"
    own = [(i, j) for i, j in PAIRS if j < 2]
    across = [(i, j) for i in (0, 1) for j in (2, 3, 4)]
    other = across + [(i, j) for i, j in PAIRS if i >= 2]
    for n in range(5):
        v = vectors(hand, n, "interactions.0.vectors")
        row = hand.row(n)
        sides = [list(row[: D + 1]), list(row[D + 1 :])]
        if form == "pairs":
            for side, chosen in zip(sides, (own, other), strict=True):
                if product != "outer":
                    side.extend(float(v[i] @ v[j]) for i, j in chosen)
                if product != "inner":
                    side.extend(float(v[i][a] * v[j][b]) for i, j in chosen for a in range(D) for b in range(D))
        l1 = hand.dense(f"{at}.first", np.array(sides[0] + sides[1]))
        if form == "factorised" and product != "outer":
            theta = np.concatenate([hand.p[f"{at}.theta_R"], hand.p[f"{at}.theta_N"]], axis=1)
            for k in range(4):
                l1[k] += sum(theta[k, i] * theta[k, j] * float(v[i] @ v[j]) for i in range(5) for j in range(5))
        if form == "factorised" and product != "inner":
            p = sum((np.outer(v[i], v[j]) for i in range(5) for j in range(5)), np.zeros((D, D)))
            l1 += hand.p[f"{at}.superposed.weight"] @ np.array([p[a, b] for a in range(D) for b in range(a, D)])
        expected.append(mlp(hand, f"{at}.rest.1", np.maximum(l1, 0), 1))
    assert same(of_part(model, 0)[:, 0], expected)


def test_inner_products_without_hidden_layer_and_with_all_ones_are_fm() -> None:
    model = model_of(pnn(hidden=[]))
    weight = model.interactions[0].network.first.weight  # type: ignore[union-attr]
    with torch.no_grad():
        weight.zero_()  # type: ignore[operator]
        weight[:, D + 1 : D + 2] = 1.0  # type: ignore[index,operator]
        weight[:, D + 2 + 2 * D + 1 :] = 1.0  # type: ignore[index,operator]
    assert torch.allclose(of_part(model, 0), fm_like(model, 0), rtol=1e-12)


@pytest.mark.parametrize("product", ["inner", "outer", "both"])
@pytest.mark.parametrize("form", ["pairs", "factorised"])
def test_pnn_without_products_is_a_tower(product: str, form: str) -> None:
    """W_p = 0: the FNN's network."""
    model = model_of(pnn(product=product, form=form, hidden=[4]))
    tower = model_of(alone({"kind": "tower", "hidden": [4], "activation": "relu"}))
    network = model.interactions[0].network  # type: ignore[union-attr]
    of_tower = tower.interactions[0].towers[0]  # type: ignore[union-attr,index]
    weight, z_R, z_N = network.first.weight, D + 1, 2 * D + 1  # type: ignore[union-attr]
    with torch.no_grad():
        for name, parameter in network.named_parameters():  # type: ignore[union-attr]
            if "theta" in name or "superposed" in name:
                parameter.zero_()
        at = network.first.request  # type: ignore[union-attr]
        of_tower.first.weight.copy_(torch.cat([weight[:, :z_R], weight[:, at : at + z_N]], dim=1))  # type: ignore[index,operator]
        weight[:, z_R:at] = weight[:, at + z_N :] = 0.0  # type: ignore[index,operator]
        of_tower.first.bias.copy_(network.first.bias)  # type: ignore[union-attr]
        of_tower.rest[1].load_state_dict(network.rest[1].state_dict())  # type: ignore[union-attr,index]
    found = features_of(model, batch_of())
    assert torch.allclose(model.interactions[0](found), tower.interactions[0](found), rtol=1e-12)


def test_outer_pairs_hold_inner_pairs() -> None:
    """<e_i, e_j> is the trace of e_i e_j'."""
    inner, outer = model_of(pnn(hidden=[])), model_of(pnn(product="outer", hidden=[]))
    with torch.no_grad():
        for model, trace in ((inner, [1.0]), (outer, [1.0, 0.0, 0.0, 1.0])):
            first, each = model.interactions[0].network.first, len(trace)  # type: ignore[union-attr]
            first.weight.zero_()  # type: ignore[union-attr,operator]
            first.weight[:, D + 1 : D + 1 + each] = torch.tensor(trace).double()  # type: ignore[union-attr,index,operator]
            others = torch.tensor(trace * 9).double()
            first.weight[:, first.request + 2 * D + 1 :] = others  # type: ignore[union-attr,index,operator]
        outer.interactions[0].vectors.load_state_dict(inner.interactions[0].vectors.state_dict())  # type: ignore[union-attr]
    found = features_of(inner, batch_of())
    assert torch.allclose(inner.interactions[0](found), outer.interactions[0](found), rtol=1e-12)


def test_products_of_pnn_over_din_s_interests() -> None:
    recipe = {"name": "din", "representation": SMALL, "interactions": [{"kind": "pnn", "hidden": [3]}]}
    out = model_of(recipe)(batch_of())
    assert out.logits.shape == (5, 1)
    assert out.attention["clicks"].shape == (10,)


# ------------------------------------------------------------------------------------------------ DCN-V2


def cross(**options: Any) -> dict[str, Any]:
    return alone({"kind": "cross_v2", "layers": 2, "hidden": [3], **options})


def test_cross_v2_with_matrices_by_hand() -> None:
    model = model_of(cross())
    hand, expected, at = Hand(model), [], "interactions.0"
    for n in range(5):
        x0 = x = hand.row(n)
        for k in range(2):
            x = x0 * hand.dense(f"{at}.layers.{k}", x) + x
        expected.append(mlp(hand, f"{at}.network", x, 1))
    assert same(of_part(model, 0)[:, 0], expected)


G = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0), "identity": lambda x: x}


@pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
@pytest.mark.parametrize("nonlinear", list(G))
@pytest.mark.parametrize("experts", [1, 3])
def test_cross_v2_with_experts_by_hand(gate: str, nonlinear: str, experts: int) -> None:
    model = model_of(cross(rank=2, experts=experts, gate=gate, nonlinear=nonlinear))
    hand, expected, g = Hand(model), [], G[nonlinear]
    for n in range(5):
        x0 = x = hand.row(n)
        for k in range(2):
            at = f"interactions.0.layers.{k}"
            v, c, u = hand.p[f"{at}.down.weight"], hand.p[f"{at}.core"], hand.p[f"{at}.up.weight"]
            s = hand.p[f"{at}.gate.weight"] @ x if f"{at}.gate.weight" in hand.p else np.zeros(1)
            gates = np.exp(s) / np.exp(s).sum() if gate == "softmax" else 1 / (1 + np.exp(-s))
            step = np.zeros_like(x)
            for e in range(experts):
                rows = slice(2 * e, 2 * e + 2)
                h = g(c[e] @ g(v[rows] @ x))
                step += gates[e] * x0 * (u[:, rows] @ h + hand.p[f"{at}.bias"])
            x = step + x
        expected.append(mlp(hand, "interactions.0.network", x, 1))
    assert same(of_part(model, 0)[:, 0], expected)


def test_cross_v2_without_layers_is_a_network_on_the_row() -> None:
    model = model_of(cross(layers=0))
    tower = model_of(alone({"kind": "tower", "hidden": [3], "activation": "relu"}))
    network, of_tower = model.interactions[0].network, tower.interactions[0].towers[0]  # type: ignore[union-attr,index]
    of_tower.first.load_state_dict(network.layers[0].state_dict())  # type: ignore[union-attr,index]
    of_tower.rest[1].layers[0].load_state_dict(network.layers[2].state_dict())  # type: ignore[union-attr,index]
    found = features_of(model, batch_of())
    assert torch.allclose(model.interactions[0](found), tower.interactions[0](found), rtol=1e-12)


def test_rows_that_are_all_equal_make_the_first_dcn() -> None:
    """W = 1 w' and b = 0: x_0 (w · x) + x; without hidden layers also the same last layer."""
    model, first = model_of(cross(hidden=[])), model_of(alone({"kind": "cross", "layers": 2}))
    with torch.no_grad():
        for k, layer in enumerate(model.interactions[0].layers):  # type: ignore[union-attr,arg-type]
            layer.weight.copy_(first.interactions[0].weights[k].expand(8, 8))  # type: ignore[union-attr,index]
            layer.bias.zero_()
        first.interactions[0].biases.zero_()  # type: ignore[union-attr,operator]
        model.interactions[0].network.layers[0].load_state_dict(first.interactions[0].last.state_dict())  # type: ignore[union-attr,index]
    found = features_of(model, batch_of())
    assert torch.allclose(model.interactions[0](found), first.interactions[0](found), rtol=1e-12)


def test_a_diagonal_matrix_crosses_each_number_with_itself_alone() -> None:
    model = model_of(cross(layers=1, hidden=[]))
    layer = model.interactions[0].layers[0]  # type: ignore[union-attr,index]
    w = torch.linspace(-1, 1, 8, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.diag(w))  # type: ignore[union-attr,operator]
        layer.bias.zero_()  # type: ignore[union-attr,operator]
    hand = Hand(model)
    rows = [hand.row(n) for n in range(5)]
    last = hand.p["interactions.0.network.layers.0.weight"][0]
    assert same(of_part(model, 0)[:, 0], [last @ (w.numpy() * x * x + x) for x in rows])


def test_one_linear_expert_of_full_rank_is_the_matrix_form() -> None:
    low, full = model_of(cross(rank=8, experts=1, nonlinear="identity")), model_of(cross())
    with torch.no_grad():
        for few, whole in zip(low.interactions[0].layers, full.interactions[0].layers, strict=True):  # type: ignore[union-attr,arg-type]
            whole.weight.copy_(few.up.weight @ few.core[0] @ few.down.weight)
            whole.bias.copy_(few.bias)
        full.interactions[0].network.load_state_dict(low.interactions[0].network.state_dict())  # type: ignore[union-attr]
    found = features_of(low, batch_of())
    assert torch.allclose(low.interactions[0](found), full.interactions[0](found), rtol=1e-10)


def test_parallel_is_a_recipe() -> None:
    recipe = {"name": "dcn_v2", "representation": SMALL}
    recipe["interactions"] = [{"kind": "cross_v2", "hidden": []}, {"kind": "tower", "activation": "relu"}]  # type: ignore[assignment]
    model = model_of(recipe)
    out = of_part(model, 0) + of_part(model, 1) + model.head.bias  # type: ignore[operator]
    assert torch.allclose(model(batch_of()).logits, out, rtol=1e-12)


# ------------------------------------------------------------------------------------------------ CIN


def cin(**options: Any) -> dict[str, Any]:
    return alone({"kind": "cin", **options})


def cin_by_hand(hand: Hand, n: int, split: bool, act: Any, at: str = "interactions.0") -> float:
    x0, total = np.stack(vectors(hand, n, f"{at}.vectors")), 0.0
    x, last = x0, list(hand.p[f"{at}.last"][0])
    layers = sum(name.startswith(f"{at}.weights.") for name in hand.p)
    for k in range(layers):
        w = hand.p[f"{at}.weights.{k}"]
        maps = [
            act(sum((w[h, i, j] * x[i] * x0[j] for i in range(len(x)) for j in range(5)), np.zeros(D)))
            for h in range(len(w))
        ]
        halved = split and k < layers - 1
        for summed in maps[len(maps) // 2 :] if halved else maps:
            total += last.pop(0) * float(summed.sum())
        x = np.stack(maps[: len(maps) // 2] if halved else maps)
    assert not last
    return total


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("activation", ["identity", "relu"])
@pytest.mark.parametrize("maps", [[3], [4, 3], [4, 2, 3]])
def test_cin_is_a_loop_over_maps_and_pairs(maps: list[int], activation: str, split: bool) -> None:
    """Also where maps are folded to one before they meet a row: the last layer, and half of each under split_half."""
    model = model_of(cin(maps=maps, activation=activation, split_half=split))
    act = G[activation]
    hand = Hand(model)
    assert same(of_part(model, 0)[:, 0], [cin_by_hand(hand, n, split, act) for n in range(5)])


@pytest.mark.parametrize(("weights", "of_pairs"), [("triangle", True), ("ones", False)])
def test_one_map_of_ones_is_fm_or_the_square_of_the_sum(weights: str, of_pairs: bool) -> None:
    model = model_of(cin(maps=[1]))
    ones = torch.ones(5, 5, dtype=torch.float64)
    with torch.no_grad():
        model.interactions[0].weights[0].copy_(ones.triu(1) if weights == "triangle" else ones)  # type: ignore[union-attr,index]
        model.interactions[0].last.fill_(1.0)  # type: ignore[union-attr,operator]
    out = of_part(model, 0)
    if of_pairs:
        assert torch.allclose(out, fm_like(model, 0), rtol=1e-12)
    hand = Hand(model)
    sums = [sum(vectors(hand, n, "interactions.0.vectors"), np.zeros(D)) for n in range(5)]
    assert of_pairs or same(out[:, 0], [float(s @ s) for s in sums])


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_scaling_the_vectors_by_c_scales_layer_k_by_its_degree(activation: str) -> None:
    """c = 2: a logit that reads layer k alone is multiplied by 2^(k + 1)."""
    model = model_of(cin(maps=[2, 3, 2], activation=activation))
    found = features_of(model, batch_of())
    doubled = replace(found, fields_R=2 * found.fields_R, fields_N=2 * found.fields_N)
    doubled = replace(doubled, numbers_R=2 * found.numbers_R, numbers_N=2 * found.numbers_N)
    last = model.interactions[0].last.detach().clone()  # type: ignore[union-attr,operator]
    for k, reads in enumerate((slice(0, 2), slice(2, 5), slice(5, 7)), start=1):
        with torch.no_grad():
            model.interactions[0].last.zero_()  # type: ignore[union-attr,operator]
            model.interactions[0].last[:, reads] = last[:, reads]  # type: ignore[union-attr,index,operator]
        once, twice = model.interactions[0](found), model.interactions[0](doubled)
        assert torch.allclose(twice, 2.0 ** (k + 1) * once, rtol=1e-10)
        assert bool((once != 0).any())


def test_cin_has_as_many_weights_as_the_paper_counts() -> None:
    """sum_k H_k (1 + H_{k-1} F), whatever D; the numbers' vectors beside them."""
    for width in (2, 7):
        model = model_of(cin(maps=[4, 3]) | {"representation": {"kind": "plain", "embedding": {"width": width}}})
        count = sum(p.numel() for p in model.interactions[0].parameters())
        assert count - 2 * width == 4 * (1 + 5 * 5) + 3 * (1 + 4 * 5)


@pytest.mark.parametrize("size", [1, 36, 1 << 20])
def test_slices_of_outer_products_change_nothing(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Bilinear, "SLICE", size)
    draw = torch.Generator().manual_seed(0)
    x, y, w = (
        torch.randn(*shape, dtype=torch.float64, generator=draw, requires_grad=True)
        for shape in ((3, 2, 4), (3, 2, 3), (2, 4, 3))
    )
    assert torch.allclose(bilinear(x, y, w), torch.einsum("nda,ndb,hab->ndh", x, y, w), rtol=1e-12)
    assert torch.autograd.gradcheck(bilinear, (x, y, w))
    assert torch.autograd.gradcheck(bilinear, (x, y[:, :, 1:], w[:, :, 1:]))


@pytest.mark.parametrize("fields", [5, 16, 39])
def test_one_order_for_both_changes_nothing(fields: int) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, fields, dtype=torch.float64, generator=draw)
    w = torch.randn(4, fields, fields, dtype=torch.float64, generator=draw)
    assert torch.allclose(quadratic(x, w), torch.einsum("nda,ndb,hab->ndh", x, x, w), rtol=1e-10)


# ------------------------------------------------------------------------------------------------ Deep Crossing


def residual(**options: Any) -> dict[str, Any]:
    return alone({"kind": "residual_units", "hidden": [3, 4], **options})


def stack(hand: Hand, n: int) -> Vector:
    user = np.maximum(hand.user(n) + hand.p["interactions.0.bias_R"][0], 0)
    item, category = np.maximum(hand.candidate(n).reshape(2, D) + hand.p["interactions.0.bias_N"], 0)
    return np.concatenate([user, [AGES[OF[n]]], item, category, [PRICES[n]]])


@pytest.mark.parametrize("post_relu", [False, True])
def test_deep_crossing_is_residual_units_over_the_stack(post_relu: bool) -> None:
    model = model_of(residual(post_relu=post_relu))
    hand, expected = Hand(model), []
    for n in range(5):
        x = stack(hand, n)
        for k in range(2):
            at = f"interactions.0.units.{k}"
            x = x + hand.dense(f"{at}.second", np.maximum(hand.dense(f"{at}.first", x), 0))
            x = np.maximum(x, 0) if post_relu else x
        expected.append(hand.dense("interactions.0.last", x)[0])
    assert same(of_part(model, 0)[:, 0], expected)


@pytest.mark.parametrize("post_relu", [False, True])
def test_units_without_weights_are_the_identity_and_no_units_logistic_regression(post_relu: bool) -> None:
    model, none = model_of(residual(post_relu=post_relu)), model_of(residual(hidden=[]))
    with torch.no_grad():
        for unit in model.interactions[0].units:  # type: ignore[union-attr]
            unit.second.weight.zero_()  # type: ignore[union-attr,operator]
            unit.second.bias.zero_()  # type: ignore[union-attr,operator]
        for name in ("bias_R", "bias_N", "last.weight"):
            none.interactions[0].get_parameter(name).copy_(model.interactions[0].get_parameter(name))
    found = features_of(model, batch_of())
    # a ReLU after the addition leaves a stack as it is that has no negative numbers
    found = replace(found, numbers_R=found.numbers_R.abs(), numbers_N=found.numbers_N.abs())
    linear = none.interactions[0](found)
    assert torch.allclose(model.interactions[0](found), linear, rtol=1e-12)
    s_R, s_N = none.interactions[0].stack(found)  # type: ignore[operator]
    joined = torch.cat([s_R[found.batch.request_of], s_N], dim=1)
    assert torch.allclose(linear[:, 0], joined @ none.interactions[0].last.weight[0], rtol=1e-12)  # type: ignore[union-attr,index]


# ------------------------------------------------------------------------------------------------ DSSM


def dssm(**options: Any) -> dict[str, Any]:
    late = {"kind": "late_crossing", "hidden": [4, 3], **options}
    return {"name": "dssm", "representation": SMALL, "interactions": [late]}


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_dssm_meets_once_at_the_end(similarity: str) -> None:
    model = model_of(dssm(similarity=similarity, temperature=0.5))
    hand, expected = Hand(model), []
    for n in range(5):
        row = hand.row(n, [hand.pooled(n)])
        sides = []
        for x, at in ((row[: 3 * D + 1], "networks_R"), (row[3 * D + 1 :], "networks_N")):
            for k in range(2):
                x = np.tanh(hand.dense(f"interactions.0.{at}.0.layers.{2 * k}", x))
            sides.append(x)
        u, v = sides
        length = math.sqrt(float(u @ u)) * math.sqrt(float(v @ v)) if similarity == "cosine" else 1.0
        expected.append(float(u @ v) / length / 0.5)
    assert same(of_part(model, 0)[:, 0], expected)


def test_the_user_s_network_runs_once_per_request() -> None:
    model = model_of(dssm())
    seen = []
    model.interactions[0].networks_R[0].register_forward_hook(lambda _m, _i, out: seen.append(out.shape))  # type: ignore[union-attr,index]
    model(batch_of())
    assert seen == [(3, 3)]


def test_a_cosine_forgets_lengths_and_a_product_does_not() -> None:
    for similarity in ("cosine", "dot"):
        model = model_of(dssm(similarity=similarity, activation="identity", hidden=[3]))
        before = of_part(model, 0)
        with torch.no_grad():
            for parameter in model.interactions[0].networks_R.parameters():  # type: ignore[union-attr]
                parameter.mul_(2.0)
        assert torch.allclose(of_part(model, 0), before * (1.0 if similarity == "cosine" else 2.0), rtol=1e-10)


def test_a_user_without_a_past_does_not_outweigh_all_others() -> None:
    """Where the past is all that is known of a user, the first u is 0 and has no direction."""
    table = {"name": "dssm", "representation": SMALL, "without": ["user", "age"]}
    model = registry.build(registry.parse(table), fitted()).double()
    batch = batch_of()
    logits = model(batch).logits
    assert logits[2] == model.head.bias  # type: ignore[comparison-overlap]
    sum(model.losses(batch, model(batch)).values(), torch.zeros(())).backward()  # type: ignore[no-untyped-call]
    towers = model.interactions[0].networks_R[0].parameters()  # type: ignore[union-attr,index]
    assert max(float(p.grad.abs().max()) for p in towers) < 1e3  # type: ignore[union-attr]


def test_several_tasks_have_networks_of_their_own_in_dssm() -> None:
    model = model_of(dssm(), fitted(("click", "conversion")))
    assert of_part(model, 0).shape == (5, 2)
    assert len(model.interactions[0].networks_R) == 2  # type: ignore[union-attr,arg-type]


def test_dssm_needs_both_sides_and_a_past_unless_told_otherwise() -> None:
    plain = {"representation": "plain", "interactions": ["late_crossing"]}
    with pytest.raises(UserError, match="no request-level inputs; accepted: a schema with features of both levels"):
        registry.build(registry.parse(plain), one_sided(fitted(history=False)))
    with pytest.raises(UserError, match="needs history"):
        registry.build(registry.parse({"name": "dssm"}), fitted(history=False))
    assert registry.build(registry.parse({"name": "dssm", "representation": "plain"}), fitted(history=False))


def test_the_past_reaches_the_user_s_side() -> None:
    model = model_of(dssm())
    longer = [[*PAST[0], (7, 5, 3)], *PAST[1:]]
    changed = model(batch_of(longer)).logits != model(batch_of()).logits
    assert changed[:, 0].tolist() == [True, True, False, False, False]


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "pnn", "hidden": [3, 0]}, r"hidden = \[3, 0\]"),
        ({"kind": "pnn", "product": "cross"}, "product"),
        ({"kind": "cross_v2", "layers": -1}, "layers = -1"),
        ({"kind": "cross_v2", "rank": -1}, "rank = -1"),
        ({"kind": "cross_v2", "experts": 0}, "experts = 0"),
        ({"kind": "cross_v2", "dropout": -0.1}, r"dropout = -0\.1"),
        ({"kind": "cin", "maps": []}, r"maps = \[\]"),
        ({"kind": "cin", "maps": [3, 2], "split_half": True}, r"maps = \[3, 2\], split_half = true; accepted: even"),
        ({"kind": "residual_units", "hidden": [0]}, r"hidden = \[0\]"),
        ({"kind": "late_crossing", "hidden": []}, r"hidden = \[\]"),
        ({"kind": "late_crossing", "temperature": 0.0}, r"temperature = 0\.0"),
    ],
)
def test_wrong_options_are_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        registry.build(registry.parse({"name": "fm", "interactions": [options]}), fitted())
