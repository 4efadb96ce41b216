"""Machines of pairs of fields (FwFM, NFM, AFM, FFM) against loops over pairs, and the limits in which they are `fm`."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from by_fields import PAIRS, fm_like, of_part, one_sided, vectors, without_numbers
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
from torch import Tensor

from finerank.errors import UserError
from finerank.layers.products import inner_products, pairs, products, split_inner_products, split_pairs, split_products
from finerank.models import registry
from finerank.models.afm import AttentionalPairs
from finerank.models.composition import Widths
from finerank.models.ffm import met_within
from finerank.schema import Columns


def test_ffm_refuses_several_outputs() -> None:
    with pytest.raises(UserError, match="'ffm' gives one output and the heads need 2"):
        registry.build(registry.parse({"name": "ffm"}), fitted(("click", "conversion")))


# ------------------------------------------------------------------------------------------------ products of pairs


@pytest.mark.parametrize("fields", [0, 1, 2, 5])
def test_products_of_pairs_by_loops_and_their_gradients(fields: int) -> None:
    draw = torch.Generator().manual_seed(0)
    left, right = (torch.randn(3, fields, 2, dtype=torch.float64, generator=draw) for _ in range(2))
    i, j = pairs(fields)
    expected = [(a, b) for a in range(fields) for b in range(a + 1, fields)]
    assert list(zip(i.tolist(), j.tolist(), strict=True)) == expected
    found = products(left, right)
    assert found.shape == (3, len(expected), 2)
    assert inner_products(left).shape == (3, len(expected))
    for p, (a, b) in enumerate(expected):
        assert torch.equal(found[:, p], left[:, a] * right[:, b])
        assert torch.allclose(inner_products(left)[:, p], (left[:, a] * left[:, b]).sum(1), rtol=1e-12)
    if fields > 1:
        assert torch.autograd.gradcheck(products, (left.requires_grad_(), right.requires_grad_()))
        assert torch.autograd.gradcheck(inner_products, (left,))


def test_pairs_split_by_side_are_all_pairs() -> None:
    draw = torch.Generator().manual_seed(0)
    x_R, x_N = (torch.randn(n, f, 2, dtype=torch.float64, generator=draw) for n, f in ((3, 2), (5, 3)))
    of = torch.tensor(OF)
    (i_R, j_R), (i_N, j_N) = split_pairs(2, 3)
    rows = torch.cat([x_R[of], x_N], dim=1)
    assert (
        sorted([*zip(i_R.tolist(), j_R.tolist(), strict=True), *zip(i_N.tolist(), j_N.tolist(), strict=True)]) == PAIRS
    )
    own, other = split_products(x_R, x_N, of)
    assert torch.equal(own, x_R[:, i_R] * x_R[:, j_R])
    assert torch.equal(other, rows[:, i_N] * rows[:, j_N])
    for inner, plain in zip(split_inner_products(x_R, x_N, of), (own, other), strict=True):
        assert torch.allclose(inner, plain.sum(2), rtol=1e-12)


# ------------------------------------------------------------------------------------------------ FwFM


def fwfm(**options: Any) -> dict[str, Any]:
    return {"name": "fwfm", "representation": SMALL, "interactions": ["linear", {"kind": "fwfm", **options}]}


@pytest.mark.parametrize("linear", ["LW", "FeLV", "FiLV"])
def test_fwfm_is_a_loop_over_pairs_with_each_of_the_three_linear_parts(linear: str) -> None:
    model = model_of(fwfm(linear=linear))
    hand, expected = Hand(model), []
    at = "interactions.1.linear"
    for n in range(5):
        v = vectors(hand, n)
        total = sum(
            r * float(v[i] @ v[j]) for r, (i, j) in zip(hand.p["interactions.1.weights"][0], PAIRS, strict=True)
        )
        if linear == "FiLV":
            total += float(hand.p[f"{at}.weight"][0] @ np.concatenate(v))
        if linear == "FeLV":
            w = hand.rows_of(f"{at}.weights.embedding.tables.{D}.weight")
            values = [w["user"][USERS[OF[n]]], hand.p[f"{at}.weights.numbers_R"][0]]
            values += [w["item"][ITEMS[n]], w["category"][CATEGORIES[n]], hand.p[f"{at}.weights.numbers_N"][0]]
            total += sum(float(a @ b) for a, b in zip(v, values, strict=True))
        if linear == "LW":
            w = hand.rows_of(f"{at}.weights.tables.1.weight")
            total += float(w["user"][USERS[OF[n]]][0] + w["item"][ITEMS[n]][0] + w["category"][CATEGORIES[n]][0])
            total += AGES[OF[n]] * hand.p[f"{at}.numbers_R"][0, 0] + PRICES[n] * hand.p[f"{at}.numbers_N"][0, 0]
        expected.append(total)
    assert same(of_part(model)[:, 0], expected)


def test_fwfm_starts_as_fm_and_with_lw_it_is_fm() -> None:
    fresh = registry.build(registry.parse(fwfm()), fitted()).double()
    assert bool((fresh.interactions[1].weights == 1).all())  # type: ignore[operator,union-attr]
    model = model_of(fwfm(linear="LW"))
    fm = model_of({"name": "fm", "representation": SMALL})
    with torch.no_grad():
        model.interactions[1].weights.fill_(1.0)  # type: ignore[operator,union-attr]
        fm.representation.load_state_dict(model.representation.state_dict())
        fm.interactions[0].load_state_dict(model.interactions[1].linear.state_dict())  # type: ignore[union-attr]
        fm.interactions[1].load_state_dict(model.interactions[1].vectors.state_dict())  # type: ignore[union-attr]
    found = features_of(fm, batch_of())
    assert torch.allclose(of_part(model), fm.interactions[0](found) + fm.interactions[1](found), rtol=1e-12)


@pytest.mark.parametrize("pair", range(10))
def test_fwfm_without_one_r_lacks_exactly_that_pair(pair: int) -> None:
    model = model_of(fwfm())
    before, hand = of_part(model)[:, 0], Hand(model)
    r = float(hand.p["interactions.1.weights"][0, pair])
    i, j = PAIRS[pair]
    removed = [r * float(vectors(hand, n)[i] @ vectors(hand, n)[j]) for n in range(5)]
    with torch.no_grad():
        model.interactions[1].weights[0, pair] = 0.0  # type: ignore[operator,union-attr]
    assert np.allclose((before - of_part(model)[:, 0]).detach().numpy(), removed, rtol=1e-9, atol=1e-12)
    assert max(map(abs, removed)) > 1e-3


def test_felv_over_pooled_histories_is_refused() -> None:
    recipe = {"name": "base", "interactions": [{"kind": "fwfm", "linear": "FeLV"}]}
    with pytest.raises(
        UserError, match="gives 3 and 2 fields and the schema has 1 and 2 with values; accepted: 'plain'"
    ):
        registry.build(registry.parse(recipe), fitted())
    over_interests = {"name": "din", "interactions": [{"kind": "fwfm"}]}
    assert registry.build(registry.parse(over_interests), fitted()).interactions[0].vectors.fields == 7  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------------ NFM


def nfm(**options: Any) -> dict[str, Any]:
    return {"name": "nfm", "representation": SMALL, "interactions": ["linear", {"kind": "bi_interaction", **options}]}


def test_nfm_is_a_network_over_the_sum_of_products() -> None:
    model = model_of(nfm(hidden=[3], dropout=0.5))
    part = model.interactions[1]
    with torch.no_grad():
        for norm in (part.norm, part.network.layers[1].norm):  # type: ignore[union-attr,index]
            norm.running_mean.copy_(torch.linspace(-1, 1, len(norm.running_mean)))  # type: ignore[union-attr,arg-type,operator]
            norm.running_var.copy_(torch.linspace(0.5, 2, len(norm.running_var)))  # type: ignore[union-attr,arg-type,operator]
    hand, expected, at = Hand(model), [], "interactions.1.network.layers"

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        scaled = (x - hand.p[f"{name}.running_mean"]) / np.sqrt(hand.p[f"{name}.running_var"] + 1e-5)
        return scaled * hand.p[f"{name}.weight"] + hand.p[f"{name}.bias"]

    for n in range(5):
        v = vectors(hand, n)
        f = norm(sum((v[i] * v[j] for i, j in PAIRS), np.zeros(D)), "interactions.1.norm")
        hidden = np.maximum(norm(hand.dense(f"{at}.0", f), f"{at}.1.norm"), 0)
        expected.append(hand.dense(f"{at}.2", hidden)[0])
    assert same(of_part(model)[:, 0], expected)


def test_nfm_0_with_h_of_ones_is_fm() -> None:
    model = model_of(nfm(hidden=[], batch_norm=False, dropout=0.0))
    assert not torch.allclose(of_part(model), fm_like(model))
    with torch.no_grad():
        model.interactions[1].network.layers[0].weight.fill_(1.0)  # type: ignore[union-attr,index,operator]
    assert torch.allclose(of_part(model), fm_like(model), rtol=1e-12)


def test_nfm_drops_the_pooled_vector_and_hidden_layers_in_training_only() -> None:
    model = model_of(nfm(hidden=[3], batch_norm=False, dropout=0.5))
    evaluated = of_part(model)
    assert torch.equal(of_part(model), evaluated)
    model.train()
    torch.manual_seed(0)
    assert not torch.allclose(of_part(model), evaluated)


# ------------------------------------------------------------------------------------------------ AFM


def afm(**options: Any) -> dict[str, Any]:
    return {
        "name": "afm",
        "representation": SMALL,
        "interactions": ["linear", {"kind": "attentional_pairs", "factor": 3, **options}],
    }


def test_afm_is_a_loop_with_one_softmax_over_all_pairs() -> None:
    model = model_of(afm())
    hand, expected, at = Hand(model), [], "interactions.1"
    for n in range(5):
        v = vectors(hand, n)
        p = [v[i] * v[j] for i, j in PAIRS]
        a = softmax([float(hand.dense(f"{at}.score", np.maximum(hand.dense(f"{at}.attention", x), 0))[0]) for x in p])
        assert sum(a) == pytest.approx(1.0)
        pooled = sum((w * x for w, x in zip(a, p, strict=True)), np.zeros(D))
        expected.append(float(hand.p[f"{at}.last.weight"][0] @ pooled))
    assert same(of_part(model)[:, 0], expected)


def test_afm_without_h_is_the_mean_of_products_and_with_p_of_n_it_is_fm() -> None:
    model = model_of(afm())
    part = model.interactions[1]
    with torch.no_grad():
        part.score.weight.zero_()  # type: ignore[union-attr,operator]
        part.last.weight.fill_(10.0)  # type: ignore[union-attr,operator]
    bi = model_of(nfm(hidden=[])).interactions[1]
    bi.vectors.load_state_dict(part.vectors.state_dict())  # type: ignore[union-attr]
    found = features_of(model, batch_of())
    assert torch.allclose(part.pooled(found), bi.pooled(found) / 10, rtol=1e-12)  # type: ignore[union-attr,operator]
    assert torch.allclose(of_part(model), fm_like(model), rtol=1e-12)


def test_afm_of_two_fields_attends_to_their_one_product_whatever_its_weights() -> None:
    """The softmax is over pairs, not over the numbers of a product nor over rows: of one pair it is 1."""
    found = features_of(model_of(afm()), batch_of())
    two = replace(found, fields_R=found.fields_R[:, :1], fields_N=found.fields_N[:, :1])
    two = replace(two, numbers_R=found.numbers_R[:, :0], numbers_N=found.numbers_N[:, :0])
    part = AttentionalPairs(fitted(), Widths(D, 1, 1, 0, 0), 1, AttentionalPairs.Options(factor=3)).double().eval()
    torch.nn.init.normal_(part.score.weight)
    product = two.fields_R[found.batch.request_of, 0] * two.fields_N[:, 0]
    assert torch.allclose(part.pooled(two), product, rtol=1e-12)


def test_afm_survives_scores_of_any_size() -> None:
    """Weights relative to the largest score of either side: no overflow, and the largest takes all."""
    model = model_of(afm())
    with torch.no_grad():
        model.interactions[1].score.weight.mul_(1e5)  # type: ignore[union-attr,operator]
    out = of_part(model)
    assert bool(torch.isfinite(out).all())
    out.sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


def test_afm_by_slices_of_rows_is_the_same_and_so_are_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> list[Tensor]:
        model = model_of(afm(dropout=0.0)).train()
        model(batch_of()).logits.square().sum().backward()
        (tables, *_) = model.representation.embed.embedding.tables.values()  # type: ignore[union-attr]
        grads = [p.grad for p in model.interactions[1].parameters()]
        return [of_part(model), *[g for g in grads if g is not None], tables.take_gradient()[1]]  # type: ignore[index,operator]

    whole = run()
    calls: list[int] = []
    other = AttentionalPairs._other
    monkeypatch.setattr(AttentionalPairs, "_other", lambda self, a, b: calls.append(len(a)) or other(self, a, b))
    monkeypatch.setattr("finerank.layers.slices.SLICE", 2 * 9 * 2 * (2 + 3))  # two rows of nine pairs
    for a, b in zip(run(), whole, strict=True):
        assert torch.allclose(a, b, rtol=1e-10)
    assert calls == [2, 2, 1, 1, 2, 2, 2, 2, 1]  # forward, backward again, and the evaluation


def test_afm_regularises_w_alone_and_charges_a_request_in_chunks_once() -> None:
    model = model_of(afm(l2=0.5, dropout=0.0)).train()
    batch = batch_of()
    w = model.interactions[1].attention.weight  # type: ignore[union-attr]
    assert float(model(batch).losses["attention_l2"].detach()) == pytest.approx(0.5 * float(w.detach().square().sum()))  # type: ignore[operator]
    half = model(replace(batch, rows_in_step=10)).losses["attention_l2"]
    assert float(half.detach()) == pytest.approx(0.25 * float(w.detach().square().sum()))  # type: ignore[operator]
    assert model.eval()(batch).losses == {}
    assert model_of(afm(l2=0.0)).train()(batch).losses == {}


def test_afm_drops_the_pooled_vector_in_training_only() -> None:
    model = model_of(afm(dropout=0.5))
    evaluated = of_part(model)
    assert torch.equal(of_part(model), evaluated)
    model.train()
    torch.manual_seed(0)
    assert not torch.allclose(of_part(model), evaluated)


@pytest.mark.parametrize(("table", "alike"), [(nfm(hidden=[3]), True), (afm(), True), (fwfm(), False)])
def test_who_of_the_sums_over_pairs_knows_which_field_is_which(table: dict[str, Any], alike: bool) -> None:
    """A sum over all pairs does not, whatever weighs or reads it; one with a number per pair of fields does."""
    model = model_of(table)
    found, part = features_of(model, batch_of()), model.interactions[1]
    swapped = replace(found, fields_N=found.fields_N.flip(1))
    assert not torch.allclose(swapped.fields_N, found.fields_N)
    assert torch.allclose(part(swapped), part(found), rtol=1e-12) == alike


# ------------------------------------------------------------------------------------------------ FFM


def ffm(**options: Any) -> dict[str, Any]:
    return {"name": "ffm", "interactions": ["linear", {"kind": "ffm", "dim": 3, **options}]}


def field_aware(hand: Hand, n: int) -> list[dict[int, np.ndarray]]:
    """Of each field of row n: its vector for every other one, in the order of the others."""
    rows, at = hand.rows_of("interactions.1.vectors.embedding.tables.12.weight"), "interactions.1.vectors"
    x = [
        rows["user"][USERS[OF[n]]],
        AGES[OF[n]] * hand.p[f"{at}.numbers_R"][0],
        rows["item"][ITEMS[n]],
        rows["category"][CATEGORIES[n]],
        PRICES[n] * hand.p[f"{at}.numbers_N"][0],
    ]
    return [dict(zip([j for j in range(5) if j != i], v.reshape(4, 3), strict=True)) for i, v in enumerate(x)]


@pytest.mark.parametrize("normalise", [False, True])
def test_ffm_is_a_loop_over_pairs_with_a_vector_for_each_other_field(normalise: bool) -> None:
    model = model_of(ffm(normalise=normalise))
    hand, expected = Hand(model), []
    for n in range(5):
        v = field_aware(hand, n)
        total = sum(float(v[i][j] @ v[j][i]) for i, j in PAIRS)
        squares = 3 + AGES[OF[n]] ** 2 + PRICES[n] ** 2
        expected.append(total / squares if normalise else total)
    assert same(of_part(model)[:, 0], expected)


def test_ffm_with_the_same_vector_for_every_field_is_fm() -> None:
    model = model_of(ffm(normalise=False))
    fm = model_of({"name": "fm", "representation": {"embedding": {"width": 3}}})
    (own,) = model.interactions[1].vectors.embedding.tables.values()  # type: ignore[union-attr]
    (shared,) = fm.representation.embed.embedding.tables.values()  # type: ignore[union-attr]
    with torch.no_grad():
        own.weight.copy_(shared.weight.repeat(1, 4))  # type: ignore[union-attr]
        for name in ("numbers_R", "numbers_N"):
            getattr(model.interactions[1].vectors, name).copy_(getattr(fm.interactions[1], name).repeat(1, 4))
    assert torch.allclose(of_part(model), fm.interactions[1](features_of(fm, batch_of())), rtol=1e-12)


def test_ffm_begins_as_the_paper_says_and_padding_at_zero() -> None:
    torch.manual_seed(0)
    model = registry.build(registry.parse(ffm()), fitted())
    (tables,) = model.interactions[1].vectors.embedding.tables.values()  # type: ignore[union-attr]
    values = torch.cat([tables.weight[start + 1 : start + tables.sizes[name]] for name, start in tables.start.items()])
    assert tables.width == 4 * 3  # F - 1 vectors: no place for a field's own
    assert 0 <= float(values.detach().min()) < 0.02
    assert 1 / math.sqrt(3) - 0.02 < float(values.detach().max()) <= 1 / math.sqrt(3)
    assert all(not bool(tables.weight[start].any()) for start in tables.start.values())
    assert sorted(model.embeddings()) == [
        "interactions.0.weights.tables.1.weight",
        "interactions.1.vectors.embedding.tables.12.weight",
    ]


@pytest.mark.parametrize("fields", [0, 1, 2, 4])
def test_vectors_meet_their_partners_once(fields: int) -> None:
    draw = torch.Generator().manual_seed(0)
    v = torch.randn(3, fields, max(fields - 1, 0), 2, dtype=torch.float64, generator=draw)
    expected = [
        sum(float(v[n, i, j - 1] @ v[n, j, i]) for i in range(fields) for j in range(i + 1, fields)) for n in range(3)
    ]
    assert same(met_within(v), expected)
    if fields > 1:
        assert torch.autograd.gradcheck(met_within, (v.requires_grad_(),))


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "fwfm", "std": -1.0}, "std = -1.0"),
        ({"kind": "fwfm", "linear": "FLV"}, "linear"),
        ({"kind": "bi_interaction", "hidden": [0]}, r"hidden = \[0\]"),
        ({"kind": "bi_interaction", "dropout": 1.0}, r"dropout = 1\.0"),
        ({"kind": "attentional_pairs", "factor": 0}, "factor = 0"),
        ({"kind": "attentional_pairs", "l2": -1.0}, r"l2 = -1\.0"),
        ({"kind": "ffm", "dim": 0}, "dim = 0"),
    ],
)
def test_wrong_options_are_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        registry.build(registry.parse({"name": "fm", "interactions": [options]}), fitted())


@pytest.mark.parametrize("kind", ["attentional_pairs", "ffm", "fibinet"])
def test_a_single_field_has_no_pairs(kind: str) -> None:
    schema = one_sided(fitted(history=False))
    single = replace(
        schema,
        schema=replace(schema.schema, features=schema.schema.features[:1]),
        candidate=Columns(ids=schema.candidate.ids[:1]),
    )
    with pytest.raises(UserError, match="accepted: at least 2, or a 'linear' part"):
        registry.build(registry.parse({"representation": "plain", "interactions": [kind]}), single)


@pytest.mark.parametrize("kind", ["fm", "fwfm"])
def test_parts_of_fields_need_fields(kind: str) -> None:
    with pytest.raises(UserError, match=f"'{kind}': the representation gives no fields"):
        registry.build(
            registry.parse({"representation": "none", "interactions": [kind]}), without_numbers(fitted(history=False))
        )
