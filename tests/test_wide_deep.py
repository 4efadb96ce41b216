"""Wide & Deep and DeepFM: their cards' tests, by hand; and that the two optimisers of the former step together."""

from __future__ import annotations

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
    D,
    Hand,
    batch_of,
    features_of,
    model_of,
    same,
    tower,
)

from finerank.cli.demo import demo_recipe
from finerank.data.dataset import Dataset
from finerank.models import registry
from finerank.models.composition import FirstOrder, Model
from finerank.recipe import Recipe
from finerank.training.dense_optim import DenseAdagrad
from finerank.training.loop import Trainer
from finerank.training.options import FTRL, Adagrad, TrainingOptions
from finerank.training.row_optim import RowAdagrad, RowFTRL

WIDE: dict[str, Any] = {"kind": "linear", "numbers": False}
WIDE_DEEP: dict[str, Any] = {"name": "wide_deep", "representation": SMALL, "interactions": [WIDE, tower("relu")]}
DEEPFM: dict[str, Any] = {
    "name": "deepfm",
    "representation": SMALL,
    "interactions": ["linear", "fm", tower("relu")],
}


def ids_by_hand(hand: Hand, n: int) -> float:
    """The wide branch without numbers."""
    w = hand.rows_of("interactions.0.weights.tables.1.weight")
    return float((w["user"][USERS[OF[n]]] + w["item"][ITEMS[n]] + w["category"][CATEGORIES[n]])[0])


def numbers_by_hand(hand: Hand, n: int) -> float:
    p = hand.p
    return float(AGES[OF[n]] * p["interactions.0.numbers_R"][0, 0] + PRICES[n] * p["interactions.0.numbers_N"][0, 0])


def fm_by_hand(hand: Hand, n: int) -> float:
    numbers = [AGES[OF[n]] * hand.p["interactions.1.numbers_R"][0], PRICES[n] * hand.p["interactions.1.numbers_N"][0]]
    vectors = [hand.user(n), *hand.candidate(n).reshape(2, D), *numbers]
    return sum(float(a @ b) for i, a in enumerate(vectors) for b in vectors[:i])


def silence(model: Model, part: str) -> Model:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(part):
                parameter.zero_()
    return model


# ------------------------------------------------------------------------------------------------ sums of logits


def test_wide_and_deep_adds_the_weights_of_ids_to_a_tower() -> None:
    model = model_of(WIDE_DEEP)
    hand = Hand(model)
    bias = hand.p["head.bias"][0]
    expected = [ids_by_hand(hand, n) + hand.tower(hand.row(n), interaction=1) + bias for n in range(5)]
    assert same(model(batch_of()).logits[:, 0], expected)


def test_deepfm_adds_three_logits_over_one_table() -> None:
    model = model_of(DEEPFM)
    hand = Hand(model)
    expected = [
        ids_by_hand(hand, n)
        + numbers_by_hand(hand, n)
        + fm_by_hand(hand, n)
        + hand.tower(hand.row(n), interaction=2)
        + hand.p["head.bias"][0]
        for n in range(5)
    ]
    assert same(model(batch_of()).logits[:, 0], expected)


@pytest.mark.parametrize(
    ("table", "silent", "others"),
    [
        (WIDE_DEEP, "interactions.1", {"name": "lr", "interactions": [WIDE]}),
        (DEEPFM, "interactions.2", {"name": "fm", "representation": SMALL}),
    ],
    ids=["wide alone is LR", "without the tower it is FM"],
)
def test_a_tower_of_zeros_leaves_the_other_branches(table: dict[str, Any], silent: str, others: dict[str, Any]) -> None:
    model = silence(model_of(table), silent)
    logits = model(batch_of()).logits
    alone = model_of(others)
    alone.load_state_dict({name: t for name, t in model.state_dict().items() if name in alone.state_dict()})
    assert torch.allclose(logits, alone(batch_of()).logits, rtol=0, atol=1e-15)
    assert bool((logits != 0).all())


def test_deepfm_with_a_silent_machine_is_a_network() -> None:
    model = silence(model_of(DEEPFM), "interactions.0")
    hand = Hand(model)
    machine = model.interactions[1](features_of(model, batch_of()))[:, 0]
    expected = [hand.tower(hand.row(n), interaction=2) + hand.p["head.bias"][0] for n in range(5)]
    assert same(model(batch_of()).logits[:, 0] - machine, expected)
    assert bool((machine != 0).all())


def test_machine_and_network_of_deepfm_read_one_storage() -> None:
    model = model_of(DEEPFM | {"interactions": ["linear", "fm", tower("prelu")]}).train()
    tables = [t for name, t in model.embeddings().items() if name not in model.first_order()]
    assert len(tables) == 1
    seen = []
    for branch in (model.interactions[1], model.interactions[2]):
        branch.register_forward_pre_hook(lambda _, given: seen.append(given[0].fields_N.data_ptr()))
    model(batch_of())
    assert len(seen) == 2
    assert len(set(seen)) == 1
    grads = []
    for branch in (model.interactions[1], model.interactions[2]):  # each alone moves the same rows
        tables[0].touched = []
        branch(model.representation(batch_of())).sum().backward()
        taken = tables[0].take_gradient()
        assert taken is not None
        grads.append(taken)
    assert torch.equal(grads[0][0], grads[1][0])
    assert all(bool((g != 0).any()) for _, g in grads)


# ------------------------------------------------------------------------------------------------ crosses, optimisers


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny.dataset(tmp_path_factory.mktemp("wide") / "data", tasks=1)


PAPER = TrainingOptions(
    first_order=FTRL(alpha=0.1, l1=1.0),
    tables=Adagrad(lr=0.05, initial_accumulator=0.1),
    dense=Adagrad(lr=0.05, initial_accumulator=0.1),
    keep_memory=False,
    threads=1,
)


def trainer_of(world: Dataset, options: TrainingOptions = PAPER, table: dict[str, Any] | None = None) -> Trainer:
    return Trainer(registry.parse(table or {"name": "wide_deep", "representation": SMALL}), world, options)


def test_crosses_are_the_wide_branchs_alone(world: Dataset) -> None:
    model = trainer_of(world).model
    wide = next(m for m in model.modules() if isinstance(m, FirstOrder))
    assert "country_category" in {t for w in wide.tables.values() for t in w.sizes}  # type: ignore[union-attr]
    deep = next(t for name, t in model.embeddings().items() if name not in model.first_order())
    assert "country_category" not in deep.sizes
    assert "category" in deep.sizes
    both = trainer_of(world, table={"name": "wide_deep", "representation": SMALL | {"crosses": True}}).model
    assert "country_category" in next(t for n, t in both.embeddings().items() if n not in both.first_order()).sizes
    assert both.representation.widths.candidate_fields == model.representation.widths.candidate_fields + 1


def test_two_optimisers_step_together(world: Dataset) -> None:
    """From zero: the wide weights are where FTRL puts them for the summed rows, the deep ones moved by AdaGrad."""
    trainer = trainer_of(world)
    wide, (deep,) = trainer.model.first_order(), set(trainer.model.embeddings()) - trainer.model.first_order()
    assert {type(trainer.optimisers.rows[name]) for name in wide} == {RowFTRL}
    assert type(trainer.optimisers.rows[deep]) is RowAdagrad
    assert type(trainer.optimisers.dense) is DenseAdagrad
    assert not any("numbers" in name for name in trainer.model.state_dict())  # all of the wide branch is FTRL's

    (step,) = trainer.builder.steps(world.requests_of("train")[:12], PAPER.batch, shuffle=False)
    batch = next(iter(trainer.builder.batches(step)))
    with torch.no_grad():
        trainer.model.eval()
        error = (torch.sigmoid(trainer.model(batch).logits) - batch.labels)[:, 0].double().numpy()
    plain = trainer_of(world).model  # the same weights, whose gradients of the summed loss say where AdaGrad goes
    for tables in plain.embeddings().values():
        tables.sparse = False
    logits, labels = plain(batch).logits, batch.labels
    torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum").backward()  # type: ignore[no-untyped-call]
    before = {name: t.detach().clone() for name, t in trainer.model.state_dict().items()}
    trainer.train_step(step)
    moved = {n for n, t in trainer.model.state_dict().items() if not torch.equal(t, before[n])}
    assert {*wide, deep, "interactions.1.towers.0.first.weight", "head.bias"} <= moved

    for name, parameter in plain.named_parameters():
        if name not in wide and parameter.grad is not None:
            g = parameter.grad
            expected_t = before[name] - 0.05 * g / (0.1 + g.square()).sqrt()
            torch.testing.assert_close(trainer.model.state_dict()[name], expected_t, rtol=1e-4, atol=1e-5)

    (name,) = wide
    tables = trainer.model.embeddings()[name]
    at = [c for c, _ in world.fitted.candidate.ids].index("country_category")
    ids = batch.candidate.ids[:, at].numpy()
    zeros = 0
    for i in np.unique(ids):
        g = float(error[ids == i].sum())
        expected = 0.0 if abs(g) <= 1.0 else -(g - np.sign(g)) / ((1.0 + abs(g)) / 0.1)
        assert float(tables.table("country_category")[i]) == pytest.approx(expected, rel=1e-4, abs=1e-9)
        zeros += expected == 0.0
    assert 0 < zeros < len(np.unique(ids))  # L1: some weights stay at exactly 0


def test_a_wide_branch_under_heavy_l1_stays_empty_while_the_deep_one_learns(world: Dataset) -> None:
    options = replace(PAPER, first_order=FTRL(alpha=0.1, l1=1e4), epochs=2, patience=2)
    trainer = trainer_of(world, options)
    history = trainer.fit()
    for name in trainer.model.first_order():
        assert not bool(trainer.model.state_dict()[name].any())
    assert history[-1].loss < history[0].loss


def test_the_shipped_recipe_carries_the_settings_of_the_paper() -> None:
    crossed = Recipe.read(Path(__file__).parents[1] / "examples" / "retail_wide_deep.toml")
    assert crossed.model == registry.composition("wide_deep")
    for recipe in (crossed, demo_recipe("wide_deep")):
        assert isinstance(recipe.training.first_order, FTRL)
        assert recipe.training.first_order.l1 > 0
        assert isinstance(recipe.training.tables, Adagrad)
        assert isinstance(recipe.training.dense, Adagrad)
    assert any(f.kind == "cross" for f in crossed.schema.features)
