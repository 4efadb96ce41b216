"""Fields that attend, are weighted, or are generated (AutoInt, FiBiNET, FGCNN) against loops, and their limits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from by_fields import PAIRS, Vector, alone, fm_like, mlp, of_part, vectors
from by_hand import (
    AGES,
    CATEGORIES,
    ITEMS,
    OF,
    PRICES,
    SMALL,
    USERS,
    D,
    Hand,
    batch_of,
    features_of,
    fitted,
    model_of,
    same,
    softmax,
)

from finerank.errors import UserError
from finerank.layers.products import pairs, split_pairs
from finerank.models import registry
from finerank.models.fibinet import _by_pair

# the order of `split_products`: within the request, across, within the candidate
OWN, OTHER = (list(zip(i.tolist(), j.tolist(), strict=True)) for i, j in split_pairs(2, 3))

# ------------------------------------------------------------------------------------------------ AutoInt


def autoint(**options: Any) -> dict[str, Any]:
    return alone({"kind": "autoint", "layers": 2, "width": 3, **options})


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("layers", [0, 1, 2])
def test_autoint_is_a_loop_over_layers_heads_and_fields(layers: int, scaled: bool) -> None:
    model = model_of(autoint(layers=layers, scaled=scaled))
    hand, expected = Hand(model), []
    for n in range(5):
        e = vectors(hand, n, "interactions.0.vectors")
        for k in range(layers):
            q, key, v, res = (
                hand.p[f"interactions.0.layers.{k}.{name}.weight"] for name in ("query", "key", "value", "residual")
            )
            after = []
            for m in range(5):
                heads = []
                for h in (slice(0, 3), slice(3, 6)):
                    scores = [float((q[h] @ e[m]) @ (key[h] @ other)) for other in e]
                    a = softmax([s / math.sqrt(3) for s in scores] if scaled else scores)
                    heads.append(sum((w * (v[h] @ other) for w, other in zip(a, e, strict=True)), np.zeros(3)))
                after.append(np.maximum(np.concatenate(heads) + res @ e[m], 0))
            e = after
        expected.append(float(hand.p["interactions.0.last.weight"][0] @ np.concatenate(e)))
    assert same(of_part(model, 0)[:, 0], expected)


def interacting(model: Any) -> Any:
    return model.interactions[0].layers[0]


def test_permuting_the_fields_permutes_what_a_layer_makes_of_them() -> None:
    layer = interacting(model_of(autoint()))
    x = torch.randn(3, 5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turn = torch.tensor([3, 0, 4, 2, 1])
    assert torch.allclose(layer(x[:, turn]), layer(x)[:, turn], rtol=1e-12)


def test_equal_vectors_attend_uniformly() -> None:
    layer = interacting(model_of(autoint()))
    x = torch.tensor([0.3, -1.2], dtype=torch.float64).expand(2, 5, D)
    weights = layer.weights(x)
    assert weights.shape == (2, 2, 5, 5)
    assert torch.allclose(weights, torch.full_like(weights, 0.2), rtol=1e-12)


def test_attention_by_slices_of_rows_is_attention_and_so_are_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the plain one, which dropout uses, whole."""
    layer = interacting(model_of(autoint(scaled=True)))

    def run() -> list[torch.Tensor]:
        x = torch.randn(3, 5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        out = layer(x)
        return [out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])]

    sliced: list[int] = []
    met = type(layer)._met
    monkeypatch.setattr(type(layer), "_met", lambda self, q, k, v: sliced.append(len(q)) or met(self, q, k, v))
    monkeypatch.setattr("finerank.layers.slices.SLICE", 2 * (2 * 2 * 5 * 5))  # two rows, two heads, five fields
    by_slices = run()
    assert sliced == [2, 1, 1, 2]  # forward, and again in the backward pass, the last slice first
    layer.dropout = torch.nn.Identity()
    for a, b in zip(by_slices, run(), strict=True):
        assert torch.allclose(a, b, rtol=1e-12)


def test_without_values_only_the_residual_is_left() -> None:
    layer = interacting(model_of(autoint()))
    x = torch.randn(3, 5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        layer.value.weight.zero_()
    assert torch.allclose(layer(x), torch.relu(layer.residual(x)), rtol=1e-12)


def test_autoint_drops_attention_in_training_only() -> None:
    model = model_of(autoint(dropout=0.5))
    evaluated = of_part(model, 0)
    assert torch.equal(of_part(model, 0), evaluated)
    model.train()
    torch.manual_seed(0)
    assert not torch.allclose(of_part(model, 0), evaluated)


def test_autoint_plus_is_autoint_beside_a_tower() -> None:
    model = model_of({"name": "autoint_plus", "representation": SMALL})
    out = of_part(model, 0) + of_part(model, 1) + model.head.bias  # type: ignore[operator]
    assert torch.allclose(model(batch_of()).logits, out, rtol=1e-12)
    assert [type(i).__name__ for i in model.interactions] == ["AutoInt", "Tower"]


# ------------------------------------------------------------------------------------------------ FiBiNET


def fibinet(**options: Any) -> dict[str, Any]:
    return alone({"kind": "fibinet", "hidden": [3], "reduction": 2, "dropout": 0.0, **options})


def bilinear(
    hand: Hand, at: str, kind: str, e: list[Vector], order: list[tuple[int, int]]
) -> dict[tuple[int, int], Vector]:
    w = hand.p[f"{at}.weight"]
    matrix = {
        "all": lambda i, j: w[0],
        "each": lambda i, j: w[i],
        "interaction": lambda i, j: w[order.index((i, j))],
    }[kind]
    return {(i, j): (e[i] @ matrix(i, j)) * e[j] for i, j in PAIRS}


def test_products_with_a_matrix_a_pair_have_the_gradients_of_a_loop() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, D, dtype=torch.float64, generator=draw, requires_grad=True)
    w = torch.randn(6, D, D, dtype=torch.float64, generator=draw, requires_grad=True)
    i, j = pairs(4)
    assert torch.allclose(_by_pair(x, w), torch.einsum("npd,pde->npe", x[:, i], w) * x[:, j], rtol=1e-12)
    assert torch.autograd.gradcheck(_by_pair, (x, w))


def weights_of_fields(hand: Hand, e: list[Vector], excitation: str = "relu") -> Vector:
    z = np.array([x.mean() for x in e])
    squeezed = np.maximum(hand.p["interactions.0.weighting.squeeze.weight"] @ z, 0)
    a = hand.p["interactions.0.weighting.excite.weight"] @ squeezed
    return np.maximum(a, 0) if excitation == "relu" else 1 / (1 + np.exp(-a))


@pytest.mark.parametrize("kind", ["all", "each", "interaction"])
@pytest.mark.parametrize(("products", "excitation"), [("bilinear", "relu"), ("hadamard", "sigmoid")])
def test_fibinet_is_the_equations_of_the_paper(kind: str, products: str, excitation: str) -> None:
    """The second group of products is of v_i = A_i e_i themselves, as the paper has it."""
    model = model_of(fibinet(bilinear=kind, products=products, excitation=excitation), seed=3)
    hand, expected, weights = Hand(model), [], []
    for n in range(5):
        e = vectors(hand, n, "interactions.0.vectors")
        a = weights_of_fields(hand, e, excitation)
        weights.append(a)
        plain = {(i, j): e[i] * e[j] for i, j in PAIRS}
        p = plain if products == "hadamard" else bilinear(hand, "interactions.0.of_fields", kind, e, OWN + OTHER)
        q = bilinear(hand, "interactions.0.of_weighted", kind, [w * x for w, x in zip(a, e, strict=True)], PAIRS)
        x = np.concatenate([*(p[k] for k in OWN + OTHER), *(q[k] for k in PAIRS)])
        hidden = np.maximum(hand.dense("interactions.0.network.first", x), 0)
        expected.append(mlp(hand, "interactions.0.network.rest.1", hidden, 0))
    assert same(of_part(model, 0)[:, 0], expected)
    assert np.ptp(weights, axis=0).max() > 0.1  # a field weighs differently in different rows
    assert len(set(np.round(expected, 9))) > 2


def set_weighting(model: Any, a: float) -> None:
    model.interactions[0].weighting.forward = lambda v_R, v_N, of: torch.full((len(of), 5), a, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["all", "each", "interaction"])
def test_bilinear_products_with_the_identity_are_plain_products(kind: str) -> None:
    """So without hidden layer, all ones, and A = 1, both groups are the pairs of `fm`: together twice."""
    model = model_of(fibinet(bilinear=kind, hidden=[]))
    part: Any = model.interactions[0]
    set_weighting(model, 1.0)
    with torch.no_grad():
        for group in (part.of_fields, part.of_weighted):
            group.weight.copy_(torch.eye(D, dtype=torch.float64).expand_as(group.weight))
        part.network.first.weight.fill_(1.0)
    assert torch.allclose(of_part(model, 0), 2 * fm_like(model, 0), rtol=1e-12)


@pytest.mark.parametrize("kind", ["all", "each", "interaction"])
def test_with_weights_of_one_both_groups_are_equal_and_with_two_the_second_is_fourfold(kind: str) -> None:
    model = model_of(fibinet(hidden=[], bilinear=kind))
    part: Any = model.interactions[0]
    half = len(PAIRS) * D
    turn = [(OWN + OTHER).index(pair) for pair in PAIRS]  # the second group is in the order of all pairs
    with torch.no_grad():
        of_fields = part.of_fields.weight
        part.of_weighted.weight.copy_(of_fields[turn] if kind == "interaction" else of_fields)
        weight = part.network.first.weight
        weight[:, half:] = weight[:, :half].unflatten(1, (-1, D))[:, turn].flatten(1)  # both groups are read alike
    set_weighting(model, 0.0)
    once = of_part(model, 0)
    for a in (1.0, 2.0):
        set_weighting(model, a)
        assert torch.allclose(of_part(model, 0), (1 + a * a) * once, rtol=1e-12)


@pytest.mark.parametrize(("reduction", "squeezed"), [(1, 5), (2, 2), (3, 1), (9, 1)])
def test_at_least_one_number_is_left_of_the_squeeze(reduction: int, squeezed: int) -> None:
    model = model_of(fibinet(reduction=reduction))
    assert model.interactions[0].weighting.squeeze.weight.shape == (squeezed, 5)  # type: ignore[union-attr]


@pytest.mark.parametrize(("kind", "matrices"), [("all", 1), ("each", 4), ("interaction", 10)])
def test_matrices_of_each_kind(kind: str, matrices: int) -> None:
    model = model_of(fibinet(bilinear=kind))
    assert model.interactions[0].of_fields.weight.shape == (matrices, D, D)  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------------ FGCNN


def fgcnn(**options: Any) -> dict[str, Any]:
    classifier = {"hidden": [4], "batch_norm": False, "dropout": 0.0}
    chosen = {"maps": [2, 3], "new": [1, 2], "height": 3, "batch_norm": False, "classifier": classifier}
    return alone({"kind": "fgcnn", **chosen, **options})


def generated(hand: Hand, n: int, pool: int = 2) -> list[Vector]:
    """The new fields of row n: convolution, pool and recombination place by place."""
    at = "interactions.0.generate"
    tables = hand.rows_of(f"{at}.vectors.embedding.tables.{D}.weight")
    numbers_R, numbers_N = hand.p[f"{at}.vectors.numbers_R"], hand.p[f"{at}.vectors.numbers_N"]
    e = [tables["user"][USERS[OF[n]]], AGES[OF[n]] * numbers_R[0], tables["item"][ITEMS[n]]]
    e += [tables["category"][CATEGORIES[n]], PRICES[n] * numbers_N[0]]
    s, new = [np.stack(e)], []  # maps of [F, D]
    for k in range(2):
        w, b = hand.p[f"{at}.convolutions.{k}.weight"], hand.p[f"{at}.convolutions.{k}.bias"]
        places, height = len(s[0]), w.shape[2]
        maps = []
        for m in range(len(w)):
            c = np.zeros((places, D))
            for f in range(places):
                for t in range(height):
                    if 0 <= f + t - height // 2 < places:
                        c[f] += sum(w[m, i, t, 0] * s[i][f + t - height // 2] for i in range(len(s)))
                c[f] = np.tanh(c[f] + b[m])
            maps.append(np.stack([c[f : f + pool].max(axis=0) for f in range(0, places, pool)]))
        s = maps
        r = np.tanh(hand.dense(f"{at}.recombine.{k}", np.concatenate([m.flatten() for m in s])))
        new += list(r.reshape(-1, D))
    return new


@pytest.mark.parametrize("pool", [1, 2, 3])
def test_fgcnn_is_a_loop_over_places_and_a_product_network(pool: int) -> None:
    model = model_of(fgcnn(pool=pool))
    hand, expected = Hand(model), []
    for n in range(5):
        new = generated(hand, n, pool)
        e = [*vectors(hand, n, "interactions.0.vectors"), *new]
        row, count = hand.row(n), len(e)
        (i_R, j_R), (i_N, j_N) = split_pairs(2, count - 2)
        own = [float(e[i] @ e[j]) for i, j in zip(i_R.tolist(), j_R.tolist(), strict=True)]
        other = [float(e[i] @ e[j]) for i, j in zip(i_N.tolist(), j_N.tolist(), strict=True)]
        x = np.concatenate([row[: D + 1], own, row[D + 1 :], *new, other])
        hidden = np.maximum(hand.dense("interactions.0.classify.first", x), 0)
        expected.append(mlp(hand, "interactions.0.classify.rest.1", hidden, 0))
    assert same(of_part(model, 0)[:, 0], expected)


@pytest.mark.parametrize(
    ("pool", "new", "fields"),
    [
        (2, [3, 3], 3 * 3 + 2 * 3),  # 5 fields: 3 places, then 2
        (2, [1, 2, 4], 3 + 2 * 2 + 4),  # then 1
        (3, [2, 1], 2 * 2 + 1),
        (1, [1, 1], 10),
    ],
)
def test_generated_fields_are_as_many_as_the_formula_says(pool: int, new: list[int], fields: int) -> None:
    """sum_i ceil(F / pool^i) new_i, with F = 5 odd."""
    model = model_of(fgcnn(pool=pool, new=new, maps=[2] * len(new)))
    generate: Any = model.interactions[0].generate
    assert generate.fields == fields
    assert fields == sum(math.ceil(5 / pool**i) * m for i, m in enumerate(new, start=1))
    assert generate(features_of(model, batch_of())).shape == (5, fields, D)


def test_without_recombination_fgcnn_is_ipnn_beside_constant_zero_fields() -> None:
    """The weights that meet a generated field meet zeros; the others are the product network's."""
    model = model_of(fgcnn())
    ipnn = model_of(alone({"kind": "pnn", "hidden": [4], "dropout": 0.0}))
    part, network = model.interactions[0], ipnn.interactions[0].network  # type: ignore[union-attr]
    count = 3 + part.generate.fields  # type: ignore[union-attr,operator]
    (i_N, j_N), columns = split_pairs(2, count)[1], [*range(D + 1 + 1 + 2 * D + 1)]
    kept = [k for k, (i, j) in enumerate(zip(i_N.tolist(), j_N.tolist(), strict=True)) if i < 5 and j < 5]
    start = D + 1 + 1 + 2 * D + 1 + part.generate.fields * D  # type: ignore[union-attr,operator]
    columns += [start + k for k in kept]
    with torch.no_grad():
        for recombine in part.generate.recombine:  # type: ignore[union-attr]
            recombine.weight.zero_()  # type: ignore[union-attr,operator]
            recombine.bias.zero_()  # type: ignore[union-attr,operator]
        network.first.weight.copy_(part.classify.first.weight[:, columns])  # type: ignore[union-attr]
        network.first.bias.copy_(part.classify.first.bias)  # type: ignore[union-attr]
        network.rest.load_state_dict(part.classify.rest.state_dict())  # type: ignore[union-attr]
        ipnn.interactions[0].vectors.load_state_dict(part.vectors.state_dict())  # type: ignore[union-attr]
    found = features_of(model, batch_of())
    assert not bool(part.generate(found).any())  # type: ignore[operator]
    assert torch.allclose(part(found), ipnn.interactions[0](found), rtol=1e-12)


def test_the_generator_has_a_table_of_its_own() -> None:
    model = model_of(fgcnn())
    assert len(model.embeddings()) == 2
    found = features_of(model, batch_of())
    before = model.interactions[0].generate(found)  # type: ignore[union-attr,operator]
    with torch.no_grad():
        next(iter(model.representation.embed.embedding.tables.values())).weight.mul_(2.0)  # type: ignore[union-attr,operator]
    after = model.interactions[0].generate(features_of(model, batch_of()))  # type: ignore[union-attr,operator]
    assert torch.equal(after, before)


def test_the_order_of_fields_changes_the_model() -> None:
    """A kernel of height 3 over [user, age | item, category, price]: the user reaches the first places alone."""
    model = model_of(fgcnn(pool=1, maps=[2], new=[1]))
    generate: Any = model.interactions[0].generate
    seen: list[torch.Tensor] = []
    generate.recombine[0].register_forward_hook(lambda _m, given, _out: seen.append(given[0]))
    batch = batch_of()
    found = features_of(model, batch)
    generate(found)
    other = batch_of()
    other.request.ids[:] = torch.tensor([[5], [3], [4]])
    generate(features_of(model, other))
    changed = (seen[0] != seen[1]).view(5, 2, 5, D).any(dim=3).any(dim=1)  # [N, places]
    assert changed.tolist() == [[True, True, False, False, False]] * 5


def test_convolutions_are_normalised_over_rows_places_and_width() -> None:
    model = model_of(fgcnn(batch_norm=True)).train()
    generate: Any = model.interactions[0].generate
    seen: list[torch.Tensor] = []
    generate.norms[0].register_forward_hook(lambda _m, given, out: seen.extend((given[0], out)))
    generate(features_of(model, batch_of()))
    raw, out = seen[0], seen[1]
    assert raw.shape == (5 * 5 * D, 2)
    mean, var = raw.mean(0, keepdim=True), raw.var(0, unbiased=False, keepdim=True)
    norm = generate.norms[0]
    expected = (raw - mean) / (var + 1e-5).sqrt() * norm.weight + norm.bias
    assert torch.allclose(out, expected, rtol=1e-9)


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "autoint", "layers": -1}, "layers = -1"),
        ({"kind": "autoint", "heads": 0}, "heads = 0, width = 32"),
        ({"kind": "autoint", "dropout": 1.0}, r"dropout = 1\.0"),
        ({"kind": "fibinet", "reduction": 0}, "reduction = 0"),
        ({"kind": "fibinet", "bilinear": "some"}, "bilinear"),
        ({"kind": "fibinet", "hidden": [-1]}, r"hidden = \[-1\]"),
        ({"kind": "fgcnn", "maps": [3]}, r"maps = \[3\], new = \[3, 3, 3, 3\]; accepted: a count"),
        ({"kind": "fgcnn", "maps": [], "new": []}, "a count of at least 1 for each layer"),
        ({"kind": "fgcnn", "height": 4}, "height = 4; accepted: an odd number"),
        ({"kind": "fgcnn", "pool": 0}, "pool = 0"),
    ],
)
def test_wrong_options_are_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        registry.build(registry.parse({"name": "fm", "interactions": [options]}), fitted())
