"""What a model is told to leave out it never sees: neither its logits nor its tables depend on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from finerank.data.batch import Batch, TensorBlock
from finerank.data.builder import BatchBuilder
from finerank.data.dataset import Dataset
from finerank.errors import UserError
from finerank.models import registry
from finerank.models.composition import Model
from finerank.models.narrow import Narrowing, names_of
from finerank.recipe import Recipe
from finerank.schema import FIRST, Ranked
from finerank.training.loop import Trainer
from finerank.training.options import TrainingOptions

SPLIT = tiny.Split(validation=0.2, test=0.2)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny.dataset(tmp_path_factory.mktemp("narrow") / "data", tasks=1)


def model_of(name: str, world: Dataset, *without: str) -> Model:
    torch.manual_seed(0)
    table: dict[str, Any] = {"name": name}
    if name == "custom":
        table = {"representation": "pooled", "interactions": ["tower"]}
    model = registry.build(registry.parse(table | {"without": list(without)}), world.fitted).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape) * 0.2
    return model


def disturbed(world: Dataset, batch: Batch, name: str) -> Batch:
    """The batch with other values in every column of that name: of all blocks, or of `history.field` alone."""

    def change(at: str, block: TensorBlock) -> TensorBlock:
        columns = dict(world.fitted.blocks())[at]
        ids, numbers, lists = block.ids.clone(), block.numbers.clone(), dict(block.lists)
        for j, (column, table) in enumerate(columns.ids):
            if f"{at}.{column}" == name or (column == name and (at, column) != ("clicks", "age")):
                ids[:, j] = FIRST + (ids[:, j] + 1 - FIRST) % (world.fitted.tables[table].rows - FIRST)
        for j, column in enumerate(columns.numbers):
            if column.removesuffix("?") == name:
                numbers[:, j] += 1
        for c in columns.lists:
            if c.name == name or f"{at}.{c.name}" == name:
                lists[c.name] = replace(lists[c.name], ids=torch.full_like(lists[c.name].ids, FIRST))
            if f"{c.name}.rank" == name:
                other = lists[c.name].ids.clone()
                other[:, 1] = FIRST
                lists[c.name] = replace(lists[c.name], ids=other)
        return replace(block, ids=ids, numbers=numbers, lists=lists)

    histories = {n: replace(h, events=change(n, h.events)) for n, h in batch.histories.items()}
    if name in histories:
        histories[name] = replace(histories[name], events=histories[name].events.map(torch.zeros_like))
    return replace(
        batch,
        request=change("request", batch.request),
        candidate=change("candidate", batch.candidate),
        histories=histories,
    )


NAMES = (
    *("user", "country", "age", "interests", "item", "category", "tags", "price", "amount", "country_category"),
    *("interests.rank", "clicks", "clicks.item", "clicks.category", "clicks.tags", "clicks.price", "clicks.age"),
)


def test_all_that_can_be_left_out(world: Dataset) -> None:
    assert set(names_of(world.fitted)) == set(NAMES)  # the train-only position is no input, so it cannot be left out


@pytest.mark.parametrize("name", NAMES)
def test_what_is_left_out_changes_nothing(name: str, world: Dataset) -> None:
    """And what is not left out does: the same model, whole, notices."""
    kind = "custom" if name == "clicks" else "din"
    batch = BatchBuilder(world, model_of(kind, world).needs).batch(np.arange(world.requests))
    other = disturbed(world, batch, name)
    whole, narrow = model_of(kind, world), model_of(kind, world, name)
    assert not torch.equal(whole(batch).logits, whole(other).logits)
    assert torch.equal(narrow(batch).logits, narrow(other).logits)


def test_a_narrowed_model_is_the_model_of_the_smaller_schema(tmp_path: Path, world: Dataset) -> None:
    """Declared without the fields, or told to leave them out: the same parameters, the same logits."""
    gone = {"tags", "price", "country_category"}
    samples, events = tiny.frames()
    small = tiny.schema(tasks=1)
    history = replace(small.histories[0], fields=("item", "category"))
    small = replace(small, features=tuple(f for f in small.features if f.name not in gone), histories=(history,))
    data = tiny.prepare(tmp_path / "small", small, samples.lazy(), events.lazy(), tiny.KEYS, SPLIT)
    narrow, declared = model_of("din", world, *sorted(gone)), model_of("din", data)
    assert narrow.state_dict().keys() == declared.state_dict().keys()
    requests = np.arange(world.requests)
    found = narrow(BatchBuilder(world, narrow.needs).batch(requests)).logits
    assert torch.equal(found, declared(BatchBuilder(data, declared.needs).batch(requests)).logits)


def test_the_schema_that_parts_are_built_from_is_narrow_too(world: Dataset) -> None:
    fitted = Narrowing(world.fitted, ["tags", "clicks.price", "interests.rank"]).fitted
    assert [f.name for f in fitted.schema.features if f.name == "tags"] == []
    assert fitted.schema.history("clicks").fields == ("item", "category")
    assert [name for name, _ in fitted.histories["clicks"].ids] == ["item", "category", "age"]
    assert [c.ranks for c in fitted.request.lists] == [None]
    assert isinstance(fitted.schema.feature("interests"), Ranked)
    assert (
        Narrowing(world.fitted, ["clicks.item", "clicks.category", "clicks.tags", "clicks.price"]).fitted.histories
        == {}
    )


def test_a_history_without_fields_is_gone_and_a_model_that_needs_one_says_so(world: Dataset) -> None:
    with pytest.raises(UserError, match="model 'din' needs history in the schema"):
        model_of("din", world, "clicks")
    assert model_of("fm", world, "clicks").needs.pairs == frozenset()


@pytest.mark.parametrize(
    ("without", "sentence"),
    [
        (["catgory"], "model.without: 'catgory' is no field or history of the schema; did you mean 'category'?"),
        (["position"], "model.without: 'position' is no field or history of the schema"),
        (list(NAMES), "model.without: nothing is left to learn from"),
    ],
)
def test_what_cannot_be_left_out(without: list[str], sentence: str, world: Dataset) -> None:
    with pytest.raises(UserError, match=r"model\.without") as error:
        model_of("base", world, *without)
    assert str(error.value).startswith(sentence)


def test_a_recipe_carries_it_and_a_resumed_run_must_have_it(tmp_path: Path, world: Dataset) -> None:
    table: dict[str, Any] = {
        "data": {"samples": "s.parquet"},
        "feature": [{"kind": "categorical", "name": "item", "level": "candidate"}],
        "task": [{"name": "click"}],
        "model": {"name": "lr", "without": ["brand"]},
    }
    recipe = Recipe.parse(table)
    assert Recipe.parse(recipe.resolved()).model.without == ("brand",)
    with pytest.raises(UserError, match=r"recipe\.model\.without: got 'brand'"):
        Recipe.parse(table | {"model": {"name": "lr", "without": "brand"}})
    options = TrainingOptions(epochs=1, keep_memory=False, threads=1)
    Trainer(registry.parse({"name": "fm", "without": ["tags"]}), world, options, tmp_path).fit()
    again = Trainer(registry.parse({"name": "fm", "without": ["tags"]}), world, options, tmp_path)
    assert len(again.fit(resume=True)) == 1
    other = Trainer(registry.parse({"name": "fm", "without": ["price"]}), world, options, tmp_path)
    with pytest.raises(UserError, match="belongs to another run: model differ"):
        other.fit(resume=True)


def test_powers_and_segments_go_with_their_feature(tmp_path: Path) -> None:
    samples, events = tiny.frames()
    made = tiny.schema(tasks=1)
    changed = {
        "age": replace(made.feature("age"), transform="powers"),
        "interests": replace(made.feature("interests"), rank="segments", segments=(1, 3)),
    }
    made = replace(made, features=tuple(changed.get(f.name, f) for f in made.features))
    fitted = tiny.prepare(tmp_path / "data", made, samples.lazy(), events.lazy(), tiny.KEYS, SPLIT).fitted
    assert fitted.request.numbers == ("age", "age²", "√age", "age?")
    assert [c.name for c in fitted.request.lists] == ["interests.top1", "interests.top3"]
    assert {"age", "interests", "interests.top1", "interests.top3"} <= set(names_of(fitted))
    assert not {"age²", "√age", "age?", "interests.rank"} & set(names_of(fitted))
    assert Narrowing(fitted, ["age"]).fitted.request.numbers == ()
    assert Narrowing(fitted, ["interests"]).fitted.request.lists == ()
    assert [c.name for c in Narrowing(fitted, ["interests.top1"]).fitted.request.lists] == ["interests.top3"]


def test_negatives_of_a_history_are_narrowed_with_it(world: Dataset) -> None:
    model = model_of("dien", world, "clicks.tags", "category").train()
    batch = BatchBuilder(world, model.needs).batch(np.arange(20), epoch=0)
    losses = model(batch).losses
    assert list(losses) == ["clicks next event"]
    total: Tensor = sum(model.losses(batch, model(batch)).values(), torch.zeros(()))
    total.backward()
    assert bool(torch.isfinite(total.detach()))
