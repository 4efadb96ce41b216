"""The sequence models among other parts: several tasks, other interactions, other heads; histories of list columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tiny
import torch

from finerank.data.builder import BatchBuilder
from finerank.data.dataset import Dataset
from finerank.data.order import Budget
from finerank.data.prepare import Keys, prepare
from finerank.data.split import Split
from finerank.datasets.worlds.sequences import SequenceOptions, sequences
from finerank.models import registry
from finerank.schema import Categorical, History, Schema, Task
from finerank.training.evaluate import metrics, predict
from finerank.training.loop import Trainer
from finerank.training.options import Adam, TrainingOptions

CHEAP = {"kind": "tower", "hidden": [4]}
OVER_FIELDS = [
    {"kind": "recurrent", "cell": "lstm"},
    {"kind": "interest_evolution", "attention": "unit"},
    {"kind": "behaviour_transformer", "blocks": 2, "heads": 2},
    {"kind": "searched_interest", "search": "soft", "top": 2},
    {"kind": "session_interest", "heads": 2},
    {"kind": "sequential_transduction"},
]
CATALOGUES = [{"kind": "cloze"}, {"kind": "cloze", "sampled": 5}, {"kind": "user_tower", "hidden": [8, 4]}]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny.dataset(tmp_path_factory.mktemp("behaviour") / "data", tasks=2)


def trained_once(table: dict[str, Any], data: Dataset) -> dict[str, float]:
    """The terms of the loss of one batch; every gradient is finite."""
    torch.manual_seed(0)
    model = registry.build(registry.parse(table), data.fitted)
    batch = BatchBuilder(data, model.needs).batch(data.requests_of("train"))
    losses = model.losses(batch, model.train()(batch))
    sum(losses.values(), torch.zeros(())).backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)
    assert model.eval()(batch).logits.shape == (batch.N, len(model.heads))
    return {name: float(loss.detach()) for name, loss in losses.items()}


@pytest.mark.parametrize("representation", OVER_FIELDS, ids=lambda r: r["kind"])
@pytest.mark.parametrize("heads", ["tasks", "entire_space"])
def test_any_past_under_several_tasks_and_other_interactions(
    representation: dict[str, Any], heads: str, data: Dataset
) -> None:
    table = {
        "name": "base",
        "representation": representation | {"embedding": {"width": 4}},
        "interactions": [{"kind": "cross", "layers": 1}, CHEAP],
        "heads": heads,
    }
    losses = trained_once(table, data)
    assert {"click", "conversion" if heads == "tasks" else "click&conversion"} <= set(losses)


@pytest.mark.parametrize("representation", CATALOGUES, ids=lambda r: r["kind"])
@pytest.mark.parametrize("heads", ["catalogue", "tasks", "entire_space"])
def test_catalogues_under_any_heads(representation: dict[str, Any], heads: str, data: Dataset) -> None:
    table = {"name": "base", "representation": representation, "interactions": ["match"], "heads": heads}
    losses = trained_once(table, data)
    own = {"cloze", "catalogue"} & set(losses)
    assert len(own) == 1
    assert all(value > 0 for name, value in losses.items() if name in own)
    assert (len(losses) > 1) == (heads != "catalogue")


def test_pasts_of_list_columns_have_no_times(tmp_path: Path) -> None:
    """Every model but DSIN reads them; positions and orders are there, ages are not."""
    samples, _ = tiny.frames(60)
    past = [f"i{r % 7}^i{r % 5}^i{r % 3}"[: 3 * (r % 4)].strip("^") for r in samples["request"]]
    samples = samples.with_columns(past=pl.Series(past))
    schema = Schema(
        features=(Categorical(name="item", level="candidate"),),
        histories=(History(name="seen", fields=("item",), lists={"item": "past"}, separator="^", max_length=3),),
        tasks=(Task(name="click"),),
    )
    data = prepare(tmp_path / "data", schema, samples.lazy(), None, tiny.KEYS, Split(validation=0.2, test=0.2))
    assert not np.any(data.slices["seen"].end - data.slices["seen"].start > 3)
    for representation in OVER_FIELDS[:4] + OVER_FIELDS[5:] + CATALOGUES:
        interactions = ["match"] if representation in CATALOGUES else [CHEAP]
        small = {} if representation in CATALOGUES else {"embedding": {"width": 4}}
        trained_once({"name": "base", "representation": representation | small, "interactions": interactions}, data)
    with pytest.raises(ValueError, match=r"events of 'seen' have none: list columns do not say when"):
        trained_once({"name": "dsin"}, data)


@pytest.mark.slow
def test_models_of_order_find_the_markov_chain_that_pooling_cannot_see(tmp_path: Path) -> None:
    """World 9: what comes next depends on what came last. Other users are the test, so the chain itself must be learnt."""
    world = sequences(SequenceOptions(users=600, length=12))
    schema = Schema(
        features=(Categorical(name="item", level="candidate"),),
        histories=(History(name="past", fields=("item",)),),
        tasks=(Task(name="came"),),
    )
    assert world.events is not None
    keys = Keys(request="request", user="user", time="time")
    data = prepare(
        tmp_path / "data", schema, world.samples.lazy(), world.events.lazy(), keys, Split(by="user", test=0.2)
    )
    options = TrainingOptions(
        epochs=8, patience=8, batch=Budget(rows=256), tables=Adam(lr=5e-3), dense=Adam(lr=2e-3), threads=1
    )
    found = {}
    tower = {"interactions": [{"kind": "tower", "hidden": [64, 32]}]}
    for name in ("base", "rnn", "dien", "bert4rec"):
        small = {"representation": {"embedding": {"width": 32}, "last": 0.3}} if name == "bert4rec" else tower
        trainer = Trainer(registry.parse({"name": name} | small), data, options)
        trainer.fit()
        found[name] = metrics(predict(trainer.model, trainer.builder, data.requests_of("test")))["came"]["auc"]
    assert found["base"] < 0.84
    assert all(found[name] > found["base"] + 0.04 for name in ("rnn", "dien", "bert4rec")), found
