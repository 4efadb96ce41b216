"""FNN against loops, and what it takes over from its factorization machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from by_hand import AGES, CATEGORIES, ITEMS, OF, PRICES, SMALL, USERS, D, Hand, batch_of, model_of, same

from finerank.data.builder import BatchBuilder
from finerank.data.dataset import Dataset
from finerank.errors import UserError
from finerank.models import registry
from finerank.models.composition import Model
from finerank.schema import Growing
from finerank.training.checkpoint import Checkpoints, restore
from finerank.training.options import Adam, TrainingOptions
from finerank.training.stages import after_stages

AT = "interactions.0"
QUICK = TrainingOptions(epochs=2, tables=Adam(lr=0.05), dense=Adam(lr=0.05), keep_memory=False, threads=1)


def fnn(hidden: list[int], **more: Any) -> dict[str, Any]:
    return {"name": "fnn", "representation": SMALL, "interactions": [{"kind": "fnn", "hidden": hidden} | more]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny.dataset(tmp_path_factory.mktemp("data") / "one", tasks=1)


def z_by_hand(hand: Hand, n: int, output: int = 0) -> np.ndarray:
    """w0, then the request's weights and vectors, then the candidate's; a number x is (x·w, x·v)."""
    w, v, p = hand.rows_of(f"{AT}.weights.tables.{len(hand.p[f'{AT}.bias'])}.weight"), hand.tables(), hand.p
    user, item, category = USERS[OF[n]], ITEMS[n], CATEGORIES[n]
    age, price = AGES[OF[n]], PRICES[n]
    request = [p[f"{AT}.bias"][output], w["user"][user][output], age * p[f"{AT}.numbers_R"][0][output]]
    request += [*v["user"][user], *(age * p[f"{AT}.vectors.numbers_R"][0])]
    candidate = [w["item"][item][output], w["category"][category][output], price * p[f"{AT}.numbers_N"][0][output]]
    candidate += [*v["item"][item], *v["category"][category], *(price * p[f"{AT}.vectors.numbers_N"][0])]
    return np.array([*request, *candidate])


def test_fnn_is_its_equations_in_loops() -> None:
    model = model_of(fnn([3, 2]))
    hand, expected = Hand(model), []
    for n in range(5):
        l1 = np.tanh(hand.dense(f"{AT}.towers.0.first", z_by_hand(hand, n)))
        l2 = np.tanh(hand.dense(f"{AT}.towers.0.rest.1.layers.0", l1))
        expected.append(hand.dense(f"{AT}.towers.0.rest.1.layers.2", l2)[0] + hand.p["head.bias"][0])
    assert len(z_by_hand(hand, 0)) == 1 + 5 * (1 + D)
    assert same(model(batch_of()).logits[:, 0], expected)


def test_several_outputs_have_weights_and_towers_of_their_own() -> None:
    from by_hand import fitted

    two = fitted(("click", "conversion"))
    model = model_of(fnn([]), two)
    hand, expected = Hand(model), np.empty((5, 2))
    for n in range(5):
        for k in range(2):
            expected[n, k] = hand.dense(f"{AT}.towers.{k}.first", z_by_hand(hand, n, k))[0] + hand.p["head.bias"][k]
    assert same(model(batch_of(labels=[[0.0, 0.0]] * 5)).logits, expected)


def best_of(folder: Path) -> dict[str, torch.Tensor]:
    found = Checkpoints(folder / "best").load()
    assert found is not None
    return {name.removeprefix("model."): t for name, t in found.tensors.items() if name.startswith("model.")}


def taken_over(data: Dataset, folder: Path, table: dict[str, Any]) -> tuple[Model, Model]:
    """The fresh network after its stage, and the factorization machine that the stage left in its folder."""
    trainer = after_stages(registry.parse(table), data, QUICK, folder)
    fm = registry.build(registry.parse({"name": "fm", "representation": table["representation"]}), data.fitted)
    restore(fm, best_of(folder / "stages" / "fm"), "fm")
    return trainer.model.eval(), fm.eval()


def test_embeddings_after_the_stage_equal_the_factorization_machines_and_go_on_learning(
    data: Dataset, tmp_path: Path
) -> None:
    model, fm = taken_over(data, tmp_path, fnn([4]))
    mine, its = model.state_dict(), fm.state_dict()
    shared = [name for name in mine if name.startswith("representation.")]
    pairs = {name: name for name in shared} | {
        f"{AT}.weights.tables.1.weight": f"{AT}.weights.tables.1.weight",
        f"{AT}.bias": "head.bias",
        f"{AT}.numbers_R": "interactions.0.numbers_R",
        f"{AT}.numbers_N": "interactions.0.numbers_N",
        f"{AT}.vectors.numbers_R": "interactions.1.numbers_R",
        f"{AT}.vectors.numbers_N": "interactions.1.numbers_N",
    }
    assert len(shared) >= 1
    assert [a for a, b in pairs.items() if not torch.equal(mine[a], its[b])] == []
    fresh = registry.build(registry.parse({"name": "fm", "representation": SMALL}), data.fitted)
    assert not torch.allclose(its[shared[0]], fresh.state_dict()[shared[0]], atol=0.02)  # it had learnt something
    trainer = after_stages(registry.parse(fnn([4])), data, QUICK, tmp_path, resume=True)
    before = {name: t.clone() for name, t in trainer.model.state_dict().items()}
    assert [a for a in pairs if not torch.equal(before[a], mine[a])] == []
    trainer.fit()
    for name in pairs:
        assert not torch.equal(trainer.model.state_dict()[name], before[name]), name  # fine-tuned


def test_rows_of_growing_tables_are_taken_over_too(tmp_path: Path) -> None:
    """They are admitted when the last training begins, at the out-of-vocabulary row, and are then given what was learnt."""
    data = tiny.dataset(tmp_path / "data", tasks=1, encoding=Growing(capacity=40))
    trainer = after_stages(registry.parse(fnn([4])), data, QUICK, tmp_path / "run")
    trainer.begin()
    fm = registry.build(registry.parse({"name": "fm", "representation": SMALL}), data.fitted)
    kept = Checkpoints(tmp_path / "run/stages/fm/best").load()
    assert kept is not None
    restore(fm, {k.removeprefix("model."): t for k, t in kept.tensors.items() if k.startswith("model.")}, "fm")
    assert trainer.row_maps["item"].held > 5
    mine = trainer.model.representation.state_dict()
    for name, tensor in fm.representation.state_dict().items():
        assert torch.equal(mine[name], tensor), name


def test_a_linear_head_over_z_reproduces_the_linear_part_of_the_factorization_machine(
    data: Dataset, tmp_path: Path
) -> None:
    """Without hidden layers the logit is linear in z: 1 for w0 and every weight, 0 for the vectors."""
    model, fm = taken_over(data, tmp_path, fnn([]))
    tower = model.interactions[0].towers[0]  # type: ignore[union-attr,index]
    columns = torch.zeros(tower.first.weight.shape[1])
    vectors = model.interactions[0].vectors  # type: ignore[union-attr]
    of_request = tower.first.request - vectors.request * D
    columns[:of_request] = 1.0
    columns[tower.first.request : len(columns) - vectors.candidate * D] = 1.0
    with torch.no_grad():
        tower.first.weight.copy_(columns.unsqueeze(0))
        model.head.bias.zero_()  # type: ignore[operator,union-attr]
        batch = BatchBuilder(data, model.needs).batch(data.requests_of("test"))
        linear = fm.interactions[0](fm.representation(batch)) + fm.head.bias
        assert float(linear.std()) > 0.1
        assert torch.allclose(model(batch).logits, linear, atol=1e-5)


def test_without_its_stage_it_starts_from_random_values(data: Dataset, tmp_path: Path) -> None:
    trainer = after_stages(registry.parse(fnn([4]) | {"stages": []}), data, QUICK, tmp_path)
    assert trainer.stages == {}
    assert len(trainer.fit()) == 2
    assert not (tmp_path / "stages").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": [0]}, r"hidden = \[0\]; accepted: layers, or none, each of at least 1 neuron"),
        ({"dropout": 1.0}, r"dropout = 1\.0; accepted: from 0 \(none\) to below 1"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        registry.parse(fnn([4]) | {"interactions": [{"kind": "fnn"} | options]})


def test_several_tasks_cannot_be_pretrained_and_say_so(tmp_path: Path) -> None:
    two = tiny.dataset(tmp_path / "two", tasks=2)
    with pytest.raises(UserError, match="interaction 'fm' gives one output and the heads need 2"):
        after_stages(registry.parse(fnn([4])), two, QUICK)
    after_stages(registry.parse(fnn([4]) | {"stages": []}), two, QUICK).fit()
