"""AutoFIS against loops, GRDA against its closed form, and a re-trained graph in which dropped products do not exist."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from by_hand import (
    AGES,
    CATEGORIES,
    ITEMS,
    OF,
    PRICES,
    SMALL,
    USERS,
    Hand,
    batch_of,
    features_of,
    fitted,
    model_of,
    same,
    single,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from finerank.data.dataset import Dataset
from finerank.data.prepare import prepare
from finerank.datasets.worlds import InteractionOptions, interactions
from finerank.errors import UserError
from finerank.layers.gates import Gates, Proximal
from finerank.layers.mlp import BatchNorm
from finerank.models import registry
from finerank.models.autofis import Products, SelectedInputs, SelectedProducts
from finerank.recipe import Recipe
from finerank.training.grda import GRDA
from finerank.training.loop import Progress
from finerank.training.optimisers import Optimisers
from finerank.training.options import SGD, Adam, TrainingOptions
from finerank.training.stages import after_stages

NAMES = ["user", "age", "item", "category", "price"]
QUICK = TrainingOptions(epochs=2, tables=Adam(lr=0.05), dense=Adam(lr=0.02), keep_memory=False, threads=1)


def alone(**options: Any) -> dict[str, Any]:
    return {"name": "autofis_fm", "representation": SMALL, "interactions": [{"kind": "autofis"} | options]}


def inner(**options: Any) -> dict[str, Any]:
    tower = {"hidden": [], "dropout": 0.0}
    return {
        "name": "autofis_ipnn",
        "representation": SMALL,
        "interactions": [{"kind": "autofis_inner", "tower": tower} | options],
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    torch.set_num_threads(1)
    return tiny.dataset(tmp_path_factory.mktemp("data") / "one", tasks=1)


# ------------------------------------------------------------------------------------------------ the sum


def vectors_by_hand(hand: Hand, n: int, at: str = "interactions.0.products.vectors") -> dict[str, np.ndarray]:
    v = hand.tables()
    return {
        "user": v["user"][USERS[OF[n]]],
        "age": AGES[OF[n]] * hand.p[f"{at}.numbers_R"][0],
        "item": v["item"][ITEMS[n]],
        "category": v["category"][CATEGORIES[n]],
        "price": PRICES[n] * hand.p[f"{at}.numbers_N"][0],
    }


def product_by_hand(vectors: dict[str, np.ndarray], names: tuple[str, ...]) -> float:
    return sum(math.prod(float(vectors[name][d]) for name in names) for d in range(2))


def part_of(model: Any) -> Products:
    part = model.interactions[0]
    assert isinstance(part, SelectedProducts | SelectedInputs)
    return part.products


@pytest.mark.parametrize("order", [2, 3])
def test_every_product_has_its_weight(order: int) -> None:
    model = model_of(alone(order=order))
    hand, products = Hand(model), part_of(model)
    sizes = range(2, order + 1)
    wanted = {"*".join(names): names for size in sizes for names in itertools.combinations(NAMES, size)}
    assert sorted(products.names) == sorted(wanted)
    assert len(products.names) == 10 + 10 * (order == 3)
    alpha = dict(zip(products.names, hand.p["interactions.0.products.gates.weight"][0], strict=True))
    expected = []
    for n in range(5):
        vectors = vectors_by_hand(hand, n)
        total = sum(alpha[name] * product_by_hand(vectors, names) for name, names in wanted.items())
        expected.append(total + hand.p["head.bias"][0])
    assert same(model(batch_of()).logits[:, 0], expected)


def test_all_kept_at_weight_one_without_batch_norm_is_the_factorization_machine() -> None:
    model, fm = (
        model_of({"name": name, "representation": SMALL, "interactions": ["linear", kind]})
        for name, kind in (("autofis_fm", "autofis"), ("fm", "fm"))
    )
    moved = {f"interactions.1.numbers_{side}": f"interactions.1.products.vectors.numbers_{side}" for side in "RN"}
    with torch.no_grad():
        model.interactions[1].products.gates.weight.fill_(1.0)  # type: ignore[union-attr,operator]
        fm.load_state_dict({k: model.state_dict()[moved.get(k, k)] for k in fm.state_dict()})
    assert torch.allclose(model(batch_of()).logits, fm(batch_of()).logits, rtol=1e-10)
    assert float(fm(batch_of()).logits.detach().std()) > 0.1


def test_several_outputs_have_weights_of_their_own() -> None:
    two = fitted(("click", "conversion"))
    model = model_of(alone(kept=["user*item", "category*price"]), two)
    hand, products = Hand(model), part_of(model)
    alpha = hand.p["interactions.0.products.gates.weight"]
    assert alpha.shape == (2, 2)
    expected = np.empty((5, 2))
    for n, k in itertools.product(range(5), range(2)):
        found = [product_by_hand(vectors_by_hand(hand, n), tuple(name.split("*"))) for name in products.names]
        expected[n, k] = alpha[k] @ np.array(found) + hand.p["head.bias"][k]
    assert same(model(batch_of(labels=[[0.0, 0.0]] * 5)).logits, expected)


def test_kept_products_are_further_inputs_of_the_tower() -> None:
    """IPNN without hidden layers is a linear function of fields, numbers and alpha · product."""
    model = model_of(inner(kept=["user*item", "user*age", "item*price"]))
    hand, products = Hand(model), part_of(model)
    alpha = hand.p["interactions.0.products.gates.weight"][0]
    expected = []
    for n in range(5):
        vectors = vectors_by_hand(hand, n)
        more = [
            a * product_by_hand(vectors, tuple(name.split("*"))) for a, name in zip(alpha, products.names, strict=True)
        ]
        x = np.array([*hand.row(n), *more])
        expected.append(hand.dense("interactions.0.tower.towers.0.first", x)[0] + hand.p["head.bias"][0])
    assert same(model(batch_of()).logits[:, 0], expected)


def test_all_pairs_of_a_side_at_once_equal_pair_by_pair() -> None:
    """Where all pairs of a group are kept they come from one matrix of inner products."""
    whole = part_of(model_of(alone()))
    assert all(whole.complete)
    features = features_of(model_of(alone()), batch_of())
    together = whole(features)
    whole.complete = [False] * len(whole.complete)
    assert torch.allclose(together, whole(features), rtol=1e-12)
    assert together.shape == (5, 10)


def test_fields_that_a_representation_makes_have_names_too() -> None:
    pooled = alone() | {"representation": SMALL | {"kind": "pooled"}}
    names = part_of(registry.build(registry.parse(pooled), fitted())).names
    assert {"user*request#1", "request#1*request#2", "request#2*price"} <= set(names)
    assert len(names) == 7 * 6 / 2


# ------------------------------------------------------------------------------------------------ what was dropped


class Counted(TorchDispatchMode):
    """Numbers that products of vectors were made of, forward."""

    def __init__(self) -> None:
        super().__init__()
        self.multiplied = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten.mul and out.dim() == 3:
            self.multiplied += out.numel()
        return out


def test_dropped_products_have_no_operator_no_parameter_and_no_gradient() -> None:
    """Five rows, vectors of two numbers: each kept pair of a row is one product of 2 numbers, and nothing else is made."""
    at = "representation.embed.embedding.tables.2.weight"
    for kept in ([], ["item*category"], ["user*item", "item*category"], ["item*category", "item*price", "user*price"]):
        model = model_of(alone(kept=kept))
        products = part_of(model)
        assert sorted(products.names) == sorted(kept)
        assert products.gates.weight.numel() == len(kept)
        assert not any(products.complete)
        features = features_of(model, batch_of())
        part = model.interactions[0]
        with Counted() as counted:
            part(features)
        numbers = 3 * 1 * 2 + 5 * 1 * 2 if kept else 0  # x·v of age (a request) and of price (a candidate)
        assert counted.multiplied == 5 * 2 * len(kept) + numbers
        if kept:
            part(features_of(model, batch_of())).sum().backward()
            grad = dict(model.named_parameters())[at].grad
            assert grad is not None
            rows, start = {"user": 6, "item": 8, "category": 6}, 0
            for table in sorted(rows):
                touched = bool((grad[start : start + rows[table]] != 0).any())
                assert touched == any(table in name for name in kept), table
                start += rows[table]


def test_nothing_kept_is_nothing() -> None:
    for table in (alone(kept=[]), alone(kept=[], order=3)):
        model = model_of(table)
        assert same(model(batch_of()).logits[:, 0], [float(model.head.bias.detach())] * 5)  # type: ignore[operator,arg-type,union-attr]
    model = model_of(inner(kept=[]))
    hand = Hand(model)
    at = "interactions.0.tower.towers.0.first"
    expected = [hand.dense(at, hand.row(n))[0] + hand.p["head.bias"][0] for n in range(5)]
    assert same(model(batch_of()).logits[:, 0], expected)


# ------------------------------------------------------------------------------------------------ the search


def walk(options: Proximal, gradients: list[list[float]], start: float = 0.6) -> Tensor:
    gates = Gates(1, 2, start, options)
    moved = GRDA(gates.weight, options)
    for gradient in gradients:
        gates.weight.grad = torch.tensor([gradient])
        moved.step()
    return gates.weight.detach()[0]


def test_grda_with_c_zero_is_gradient_descent() -> None:
    draw = torch.Generator().manual_seed(0)
    gradients = torch.randn(20, 2, generator=draw)
    parameter = nn.Parameter(torch.full((1, 2), 0.6))
    sgd = torch.optim.SGD([parameter], lr=0.3)
    for gradient in gradients:
        parameter.grad = gradient.unsqueeze(0)
        sgd.step()
    assert torch.allclose(walk(Proximal(0.3, 0.0, 0.8), gradients.tolist()), parameter.detach()[0], rtol=1e-5)


def test_grda_by_hand() -> None:
    """v = .6 - .25 · sum; g(t) = .4 · .5 · (t / 4)^.5: .1 after one step, .2 after four."""
    options = Proximal(0.25, 0.4, 0.5)
    after_one = walk(options, [[2.0, -1.0]])
    assert after_one.tolist() == pytest.approx([0.6 - 0.5 - 0.1, 0.6 + 0.25 - 0.1], abs=1e-6)  # on the threshold: 0
    after_four = walk(options, [[2.0, -1.0], [0.0, 0.0], [0.0, 0.0], [-2.0, 8.0]])
    assert after_four.tolist() == pytest.approx([0.6 - 0.2, -(1.15 - 0.2)], abs=1e-6)  # back from 0; the sign turned


def test_without_c_the_last_threshold_is_the_published_one_whatever_the_length_of_the_search() -> None:
    """c = 5e-4 and mu = .8 have come to 5e-4 · 16,000^.8 = 1.154 by the end of the authors' search."""
    for steps in (10, 300, 16_000):
        for lr, mu in ((1.0, 0.8), (0.25, 0.6)):
            assert Proximal(lr, None, mu, steps).threshold(steps) == pytest.approx(1.15)
    assert Proximal(1.0, None, 0.8).strength == pytest.approx(5e-4, rel=0.01)
    assert Proximal(1.0, None, 0.8, 300).strength == pytest.approx(1.15 / 300**0.8)
    longer = Proximal(1.0, None, 0.8, 64_000)  # longer ones keep their c: the threshold grows on
    assert longer.strength == Proximal(1.0, None, 0.8).strength
    assert longer.threshold(64_000) == pytest.approx(1.15 * 4**0.8)
    assert Proximal(1.0, 0.02, 0.8, 300).strength == 0.02  # what is given is taken as it is


def test_grda_goes_on_where_it_was(data: Dataset) -> None:
    model = registry.build(registry.parse(alone(search=True, c=0.01)), data.fitted)
    options = TrainingOptions(dense=SGD())
    first, second = Optimisers(model, data.fitted, options), Optimisers(model, data.fitted, options)
    (gates,) = first.gates.values()
    gates.parameter.grad = torch.ones_like(gates.parameter)
    first.step(1)
    assert "interactions.0.products.gates.weight" not in first.dense_parameters
    tensors, rows = first.state()
    whole = tensors | {name: table for name, (table, _) in rows.items()}
    second.load(whole)
    (other,) = second.gates.values()
    assert int(other.t) == 1
    assert torch.equal(other.v, gates.v)
    assert torch.allclose(gates.v, torch.full_like(gates.v, 0.6 - 1.0))
    with pytest.raises(UserError, match="GRDA: the saved state does not fit: missing"):
        second.load({name: t for name, t in whole.items() if not name.endswith(".t")})


def test_products_are_normalised_in_the_search_alone_unless_asked_for() -> None:
    batch = single(batch_of())
    for options, normed in (({}, False), ({"search": True}, True), ({"batch_norm": "always"}, True)):
        model = model_of(alone(**options)).float().train()
        products = part_of(model)
        found = products(features_of(model, batch)).detach()
        assert isinstance(products.norm, BatchNorm) == normed
        assert torch.allclose(found.mean(0), torch.zeros(10), atol=1e-5) == normed
        assert [n for n, _ in products.named_parameters() if "norm" in n] == []  # neither scale nor shift
        assert (products.gates.proximal is not None) == ("search" in options)
    never = part_of(model_of(alone(search=True, batch_norm="never")))
    assert never.norm is None


# ------------------------------------------------------------------------------------------------ the stage


def test_what_the_search_kept_is_an_option_of_what_is_trained(data: Dataset, tmp_path: Path) -> None:
    given = {
        "name": "autofis_deepfm",
        "representation": SMALL,
        "interactions": ["linear", {"kind": "autofis", "c": 0.1}, {"kind": "tower", "hidden": [4]}],
        "stages": {"search": {"training": {"epochs": 12, "patience": 99}}},
    }
    trainer = after_stages(registry.parse(given), data, QUICK, tmp_path)
    kept = trainer.composition.interactions[1].kept
    assert 0 < len(kept) < 55
    assert trainer.stages is not None
    assert (trainer.stages["search"]["products_kept"], trainer.stages["search"]["products_of"]) == (len(kept), 55)
    assert trainer.stages["search"]["epochs"] == 12  # it does not stop early
    assert trainer.composition.stages == ()
    gates = trainer.model.interactions[1].products.gates.weight  # type: ignore[union-attr]
    assert gates.tolist() == [[pytest.approx(0.6)] * len(kept)]  # ordinary weights, from the start
    table = trainer.composition.table()
    assert registry.parse(table) == trainer.composition
    trainer.fit()
    assert trainer.model.table == table  # what a bundle says of itself
    # a part kept by hand: resuming with another is another run
    other = replace(trainer.composition, interactions=(trainer.composition.interactions[1],))
    with pytest.raises(UserError, match="belongs to another run: model differ"):
        after_stages(other, data, QUICK, tmp_path, resume=True).fit(resume=True)
    # the search goes among those that were kept before
    again = replace(registry.parse(given), interactions=trainer.composition.interactions)
    assert after_stages(again, data, QUICK).stages["search"]["products_of"] == len(kept)  # type: ignore[index]


def test_a_search_may_drop_everything(data: Dataset) -> None:
    for given in (alone(c=50.0), inner(c=50.0)):
        trainer = after_stages(registry.parse(given), data, QUICK)
        assert trainer.composition.interactions[0].kept == ()
        trainer.fit()


class Notes(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize(
    ("c", "note"),
    [
        (
            1e-6,
            "all of the 55 products kept with c = 1e-06 over {} steps; to drop some, give the interaction c = 4e-06 ",
        ),
        (0.0, "all of the 55 products kept with c = 0 over {} steps; to drop some, give the interaction c above 0 "),
        (
            50.0,
            "none of the 55 products kept with c = 50 over {} steps; to keep some, give the interaction c = 12 or more epochs ",
        ),
        (0.35, ""),
    ],
)
def test_a_search_that_did_not_choose_says_what_to_turn(c: float, note: str, data: Dataset) -> None:
    told = Notes()
    trainer = after_stages(registry.parse(alone(c=c)), data, QUICK, progress=told)
    assert trainer.stages is not None
    search = trainer.stages["search"]
    assert search["c"] == pytest.approx(c)
    assert len(told.notes) == bool(note)
    if note:
        wanted = "stage search: " + note.format(2 * len(list(trainer.feed.steps(trainer.requests, QUICK.batch, 0))))
        assert told.notes[0].startswith(wanted + "(model.stages.search.training.epochs sets")
        assert told.notes == [f"stage search: {search['note']}"]


def test_a_search_takes_all_its_epochs_and_two_unless_told_otherwise(data: Dataset) -> None:
    """Its threshold is measured by them; patience is for what stops at the best epoch."""
    options = replace(QUICK, epochs=5, patience=0)
    for stage, epochs in (({}, 2), ({"training": {"patience": 0}}, 2), ({"training": {"epochs": 6}}, 6)):
        trainer = after_stages(registry.parse(alone() | {"stages": {"search": stage}}), data, options)
        assert trainer.stages is not None
        steps = epochs * len(list(trainer.feed.steps(trainer.requests, options.batch, 0)))
        assert trainer.stages["search"]["epochs"] == epochs
        assert trainer.stages["search"]["c"] == pytest.approx(1.15 / steps**0.8)


def test_the_last_gates_count_not_those_of_the_best_epoch(data: Dataset, tmp_path: Path) -> None:
    """Gates close late; also when the search is resumed after its end."""
    given = registry.parse(alone(c=0.2) | {"stages": {"search": {"training": {"epochs": 6, "patience": 99}}}})
    trainer = after_stages(given, data, QUICK, tmp_path)
    from finerank.training.checkpoint import Checkpoints

    last = Checkpoints(tmp_path / "stages" / "search" / "checkpoints").load()
    assert last is not None
    weights = last.tensors["model.interactions.0.products.gates.weight"]
    kept = trainer.composition.interactions[0].kept
    assert int((weights != 0).sum()) == len(kept) < 55
    assert after_stages(given, data, QUICK, tmp_path, resume=True).composition == trainer.composition


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr = 0.0, c = 'auto', mu = 0.8; accepted: lr above 0"),
        ({"c": -1.0}, "c = -1.0, mu = 0.8; accepted: lr above 0, c of at least 0"),
        ({"c": "autos"}, "c: got 'autos'"),
        ({"mu": 2.0}, "mu = 2.0; accepted: .*mu from 0 to 1"),
        ({"start": 0.0}, "start = 0.0; accepted: another value"),
        ({"order": 4}, "order: got 4"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        registry.parse(alone(**options))


def test_a_name_that_is_no_product() -> None:
    with pytest.raises(UserError, match=r"interaction 'autofis': kept 'user\*itm' is no product here; did you mean"):
        registry.build(registry.parse(alone(kept=["user*itm"])), fitted())


def test_a_search_over_a_model_without_gates_is_refused(data: Dataset) -> None:
    with pytest.raises(UserError, match="stage 'search' chooses products of an interaction 'autofis', the model has"):
        after_stages(registry.parse({"name": "deepfm", "stages": ["search"]}), data, QUICK)


# ------------------------------------------------------------------------------------------------ known truth


@pytest.mark.slow
@pytest.mark.parametrize("name", ["autofis_fm", "autofis_deepfm", "autofis_ipnn"])
def test_the_planted_pair_and_triple_are_found_and_nothing_else(name: str, tmp_path: Path) -> None:
    world = interactions(InteractionOptions(values=8, third=1.5))
    recipe = Recipe.parse({**world.recipe, "data": {**world.recipe["data"], "samples": "in memory"}})
    data = prepare(tmp_path, recipe.schema, world.samples.lazy(), None, recipe.data.keys, recipe.data.split)
    gated: dict[str, Any] = {"kind": "autofis", "order": 3}
    tower = {"hidden": [16], "dropout": 0.0}
    parts: dict[str, list[Any]] = {
        "autofis_fm": ["linear", gated],
        "autofis_deepfm": ["linear", gated, {"kind": "tower"} | tower],
        "autofis_ipnn": [gated | {"kind": "autofis_inner", "tower": tower}],
    }
    given = {
        "name": name,
        "representation": {"embedding": {"width": 8, "std": 0.1}},
        "interactions": parts[name],
    }
    options = TrainingOptions(epochs=12, patience=2, tables=Adam(lr=0.01), dense=Adam(lr=0.003), threads=1)
    trainer = after_stages(registry.parse(given), data, options)
    (gates,) = [o for o in trainer.composition.interactions if hasattr(o, "kept")]
    assert {"*".join(world.truth["pair"]), "*".join(world.truth["triple"])} <= set(gates.kept)
    assert len(gates.kept) <= 4
    assert max(e.score for e in trainer.fit()) > 0.8
