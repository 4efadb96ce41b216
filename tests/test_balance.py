"""Weights of tasks: against the equations by hand and against GradNorm with its double backward pass."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from by_hand import SMALL, batch_of, fitted, model_of
from test_multitask import TASKS
from torch import Tensor

from finerank.data.dataset import Dataset
from finerank.data.order import Budget
from finerank.data.prepare import prepare
from finerank.data.split import Split
from finerank.errors import UserError
from finerank.export.graph import Graph
from finerank.models import registry
from finerank.models.composition import Model
from finerank.schema import Schema, Task
from finerank.training.balance import GradNormWeights, balance
from finerank.training.loop import Trainer
from finerank.training.options import Adam, Fixed, GradNorm, TaskWeighting, TrainingOptions, Uncertainty

LABELS = [[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]
WEIGHTS = [[1.0, y] for y, _ in LABELS]


def model_with(options: TaskWeighting, name: str = "shared_bottom", regression: bool = False) -> Model:
    schema = fitted(TASKS)
    if regression:
        tasks = (Task(name="click"), Task(name="conversion", kind="regression", within="click"))
        schema = replace(schema, schema=replace(schema.schema, tasks=tasks))
    kind = registry.composition(name).interactions[0].kind
    model = model_of({"name": name, "representation": SMALL, "interactions": [kind]}, schema)
    balance(model, options)
    return model.double()


def terms(model: Model) -> dict[str, Tensor]:
    batch = batch_of(labels=LABELS, weights=WEIGHTS)
    return model.losses(batch, model(batch))


def bce(y: float, logit: float) -> float:
    """-log p or -log(1 - p), where p itself would have no digits left."""
    return math.log1p(math.exp(-abs(logit))) + max(logit, 0.0) - y * logit


def plain(model: Model) -> tuple[float, float]:
    """The two losses without any weighing, from the logits."""
    p = model(batch_of()).logits.tolist()
    click = sum(bce(y, q) for (y, _), (q, _) in zip(LABELS, p, strict=True)) / 5
    conversion = sum(bce(z, q) for (y, z), (_, q) in zip(LABELS, p, strict=True) if y) / 5
    return click, conversion


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny.dataset(tmp_path_factory.mktemp("data") / "data", tasks=2)


def trainer(data: Dataset, tasks: TaskWeighting | None, name: str = "shared_bottom", **more: Any) -> Trainer:
    options = TrainingOptions(tasks=tasks, keep_memory=False, threads=1, batch=Budget(rows=32), **more)
    return Trainer(registry.composition(name), data, options)


# ------------------------------------------------------------------------------------------------ fixed


def test_fixed_weights_multiply_and_positives_count_more() -> None:
    model = model_with(Fixed(weights={"conversion": 0.3}, positives={"conversion": 5.0}))
    click, _ = plain(model)
    p = model(batch_of()).logits[:, 1].tolist()
    copies = [(z, q) for (y, z), q in zip(LABELS, p, strict=True) if y for _ in range(5 if z else 1)]
    assert len(copies) == 11
    found = terms(model)
    assert float(found["click"].detach()) == pytest.approx(click, rel=1e-9)
    assert float(found["conversion"].detach()) == pytest.approx(0.3 * sum(bce(z, q) for z, q in copies) / 5, rel=1e-9)


def test_oversampling_once_is_base() -> None:
    """The competitor of ESMM (card 2.35) is `cvr_base` with heavier positives; one copy of each changes no bit."""
    base, once = (model_of({"name": "cvr_base", "representation": SMALL}, fitted(TASKS)) for _ in range(2))
    balance(once, Fixed(positives={"conversion": 1.0}))
    assert {k: float(v.detach()) for k, v in terms(base).items()} == {
        k: float(v.detach()) for k, v in terms(once).items()
    }


def test_a_task_of_weight_0_is_scored_and_not_trained(data: Dataset) -> None:
    made = trainer(data, Fixed(weights={"click": 0.0}))
    assert [(h.name, h.trained) for h in made.model.heads] == [("click", False), ("conversion", True)]
    before = {k: v.clone() for k, v in made.model.state_dict().items()}
    for step in made.feed.steps(data.requests_of("train"), made.options.batch, 0):
        made.train_step(step)
    after = made.model.state_dict()
    for name in ("interactions.0.towers.layers.0.weight", "head.bias"):
        assert torch.equal(after[name][0], before[name][0])
        assert not torch.equal(after[name][1], before[name][1])


@pytest.mark.parametrize(
    ("name", "term"),
    [
        ("sim_soft", "clicks search"),
        ("deepmcp", "matching"),
        ("dssm", "click in batch"),
    ],
)
def test_losses_that_parts_take_of_labels_are_weighed_as_the_tasks(data: Dataset, name: str, term: str) -> None:
    """Also of a task that is not trained: its labels move nothing."""
    table = {"dssm": {"interactions": [{"kind": "late_crossing", "in_batch": 1.0}], "heads": "tasks"}}.get(name, {})
    plain, half, none = (
        Trainer(
            registry.parse({"name": name} | table), data, TrainingOptions(tasks=tasks, keep_memory=False, threads=1)
        )
        for tasks in (None, Fixed(weights={"click": 0.5, "conversion": 0.5}), Fixed(weights={"click": 0.0}))
    )
    (step, *_) = plain.feed.steps(data.requests_of("train"), plain.options.batch, 0)
    (batch,) = plain.feed.batches(step, 0)
    other = replace(batch, labels=batch.labels.clone())
    other.labels[:, 0] = 1 - other.labels[:, 0]

    def loss(trainer: Trainer, given: Any) -> float:
        trainer.model.train()
        torch.manual_seed(1)
        return float(trainer.model(given).losses[term].detach())

    assert loss(half, batch) == pytest.approx(0.5 * loss(plain, batch), rel=1e-5)
    assert loss(plain, batch) != loss(plain, other)
    assert loss(none, batch) == loss(none, other)


# ------------------------------------------------------------------------------------------------ uncertainty


@pytest.mark.parametrize("regression", [False, True])
def test_uncertainty_by_hand(regression: bool) -> None:
    model = model_with(Uncertainty(), regression=regression)
    s = [0.4, -0.7]
    with torch.no_grad():
        model.balance.log_variance.copy_(torch.tensor(s))  # type: ignore[union-attr]
    click, conversion = plain(model)
    half = 1.0
    if regression:
        logits = model(batch_of()).logits[:, 1].tolist()
        conversion = sum((z - x) ** 2 for (y, z), x in zip(LABELS, logits, strict=True) if y) / 5
        half = 0.5
    expected = [
        math.exp(-s[0]) * click + s[0] / 2,
        half * math.exp(-s[1]) * conversion + s[1] / 2 * 3 / 5,  # three rows of five have a conversion to speak of
    ]
    found = terms(model)
    assert [float(v.detach()) for v in found.values()] == pytest.approx(expected, rel=1e-6)


def test_an_uncertain_number_ends_at_its_own_variance() -> None:
    """The minimum over s of exp(-s) L / 2 + s share / 2 is at exp(s) = L / share: the mean squared error itself."""
    model = model_with(Uncertainty(), regression=True)
    s = model.balance.log_variance  # type: ignore[union-attr]
    optimiser = torch.optim.LBFGS([s], lr=0.5, max_iter=60)

    def loss() -> Tensor:
        optimiser.zero_grad()
        total = terms(model)["conversion"] + terms(model)["click"]
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    logits = model(batch_of()).logits[:, 1].tolist()
    errors = [(z - x) ** 2 for (y, z), x in zip(LABELS, logits, strict=True) if y]
    assert float(s[1].detach().exp()) == pytest.approx(sum(errors) / 3, rel=1e-4)
    click, _ = plain(model)
    assert float(s[0].detach().exp()) == pytest.approx(2 * click, rel=1e-4)


def test_log_variances_are_learnt_and_not_served(data: Dataset) -> None:
    made = trainer(data, Uncertainty(), dense=Adam(lr=0.02))
    for step in made.feed.steps(data.requests_of("train"), made.options.batch, 0):
        made.train_step(step)
    assert bool((made.model.balance.log_variance != 0).all())  # type: ignore[union-attr]
    graph = Graph(made.model, data.fitted)
    assert not any("balance" in name for name in graph.state_dict())
    assert any("balance" in name for name in made.model.state_dict())


# ------------------------------------------------------------------------------------------------ gradnorm


@pytest.mark.parametrize("name", ["shared_bottom", "mmoe", "ple", "ml_mmoe", "tensor_factorization", "snr_trans"])
def test_gradnorm_is_the_textbooks_double_backward_pass(name: str) -> None:
    """Three steps against a loss of gradient norms, differentiated by autograd, and Adam of torch."""
    model = model_with(GradNorm(alpha=0.5, lr=0.1), name)
    ours = model.balance
    assert isinstance(ours, GradNormWeights)
    (shared,) = model.interactions[0].shared()  # type: ignore[operator]
    w = torch.ones(2, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([w], lr=0.1, eps=1e-12)
    first: Tensor | None = None
    for _ in range(3):
        found = terms(model)
        ours.observe(found)
        ours.update()
        batch = batch_of(labels=LABELS, weights=WEIGHTS)
        unweighed = replace_balance(model, batch)
        losses = torch.stack(unweighed)
        first = losses.detach() if first is None else first
        norms = torch.stack(
            [torch.autograd.grad(w[i] * losses[i], shared, create_graph=True)[0].norm() for i in range(2)]
        )
        rate = losses.detach() / first
        target = (norms.mean() * (rate / rate.mean()) ** 0.5).detach()
        adam.zero_grad()
        (norms - target).abs().sum().backward()
        adam.step()
        with torch.no_grad():
            w *= 2 / w.sum()
            for parameter in model.parameters():  # the tasks move on
                parameter *= 0.97
    assert torch.allclose(ours.weights, w, rtol=1e-6)
    assert float((ours.weights - 1).abs().max()) > 0.05
    assert float(ours.weights.sum()) == pytest.approx(2)


def replace_balance(model: Model, batch: Any) -> list[Tensor]:
    """The losses as they are without weights."""
    kept, model.balance = model.balance, None
    found = list(model.losses(batch, model(batch)).values())
    model.balance = kept
    return found


def test_gradnorm_brings_gradients_together(data: Dataset) -> None:
    """A task whose loss is a hundred times as large gets the smaller weight."""
    made = trainer(data, GradNorm(alpha=0.0, lr=0.05), dense=Adam(lr=1e-5), tables=Adam(lr=1e-5))
    head = made.model.head
    loud = type(head).loss

    class Loud(type(head)):  # type: ignore[misc]
        def loss(self, index: int, *args: Any) -> Tensor:
            return loud(self, index, *args) * (100.0 if index == 0 else 1.0)

    head.__class__ = Loud
    for epoch in range(12):
        for step in made.feed.steps(data.requests_of("train"), made.options.batch, epoch):
            made.train_step(step)
    weights = made.model.balance.weights  # type: ignore[union-attr]
    assert float(weights[0]) < 0.4 < 1.6 < float(weights[1])


def test_a_request_cut_into_chunks_moves_the_weights_as_a_whole(data: Dataset) -> None:
    request = np.array([int(np.argmax(np.diff(data.first)))])
    weights = []
    for budget in (Budget(rows=100), Budget(rows=2)):
        made = trainer(data, GradNorm(lr=0.1), "mmoe")
        made.model.eval()
        for _ in range(3):
            (step,) = made.feed.steps(request, budget, 0)
            made.train_step(step)
        weights.append(made.model.balance.weights)  # type: ignore[union-attr]
    assert torch.allclose(weights[0], weights[1], atol=1e-4)


def test_a_task_without_rows_in_the_step_is_not_moved() -> None:
    model = model_with(GradNorm())
    batch = batch_of(labels=LABELS, weights=[[1.0, 0.0]] * 5)
    model.balance.observe(model.losses(batch, model(batch)))  # type: ignore[union-attr,operator]
    model.balance.update()  # type: ignore[union-attr,operator]
    assert model.balance.weights.tolist() == [1.0, 1.0]  # type: ignore[union-attr]
    assert math.isnan(model.balance.first[1])  # type: ignore[union-attr,arg-type]


# ------------------------------------------------------------------------------------------------ together, and refusals


@pytest.mark.parametrize(
    ("name", "options"),
    [("shared_bottom", Fixed(weights={"watch": 0.2})), ("mmoe", Uncertainty()), ("ple", GradNorm())],
    ids=["shared_bottom", "mmoe", "ple"],
)
def test_a_probability_and_a_number_are_learnt_together(name: str, options: TaskWeighting, tmp_path: Path) -> None:
    samples, events = tiny.frames()
    watch = (samples["category"] * 2.0 + samples["price"].log1p()).alias("watch")
    base = tiny.schema(1)
    tasks = (Task(name="click"), Task(name="watch", kind="regression"))
    schema = Schema(features=base.features, histories=base.histories, tasks=tasks)
    split = Split(validation=0.2, test=0.2)
    both = prepare(tmp_path / "data", schema, samples.with_columns(watch).lazy(), events.lazy(), tiny.KEYS, split)
    made = trainer(both, options, name, epochs=8, patience=8, dense=Adam(lr=0.02), tables=Adam(lr=0.03))
    history = made.fit()
    assert history[-1].validation["watch"]["rmse"] < 0.6 * history[0].validation["watch"]["rmse"]
    assert set(history[0].validation) == {"click", "watch"}
    assert all(math.isfinite(e.loss) for e in history)


def told(options: TaskWeighting, name: str = "shared_bottom", **more: Any) -> str:
    with pytest.raises(UserError) as error:
        model_with(options, name, **more)
    return str(error.value)


def test_what_cannot_be_weighed_is_refused() -> None:
    assert told(Fixed(weights={"clik": 1.0})).startswith("training.tasks: 'clik' is no task; did you mean 'click'?")
    assert told(Fixed(positives={"conversion": 2.0}), regression=True) == (
        "training.tasks.positives: 'conversion' is a regression, which has no positives"
    )
    assert told(Fixed(weights=dict.fromkeys(TASKS, 0.0))) == (
        "training.tasks.weights: every task has the weight 0; leave one above 0"
    )
    assert told(GradNorm(), "cross_stitch") == (
        "training.tasks.kind = 'gradnorm': no interaction shares a layer between the tasks, so there are no gradients to "
        "compare; accepted: several tasks over a shared bottom or experts, or kind = 'uncertainty'"
    )


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Fixed(weights={"click": -1.0}), "weights.click = -1.0; accepted: a number, 0 or more"),
        (lambda: Fixed(positives={"click": 0.0}), "positives.click = 0.0; accepted: a number, above 0"),
        (lambda: GradNorm(alpha=-1.0), "alpha = -1.0; accepted: 0 or more, .1 to 1.5 in the paper"),
        (lambda: GradNorm(lr=0.0), "lr = 0.0; accepted: a number above 0"),
        (lambda: Uncertainty(start=99.0), "start = 99.0; accepted: a log variance between -20 and 20, usually 0"),
    ],
)
def test_wrong_options_are_told(make: Any, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        make()
    assert str(error.value) == sentence
