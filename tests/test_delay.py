"""Delayed feedback: the likelihood by hand, its limits, and the conversion rate that a snapshot hides."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import by_hand
import numpy as np
import pytest
import torch
from torch import Tensor

from finerank.data.batch import Batch
from finerank.data.order import Budget
from finerank.data.prepare import prepare
from finerank.datasets.worlds.delays import DAY, DelayOptions, delays
from finerank.errors import UserError
from finerank.models import registry
from finerank.models.composition import Model
from finerank.models.delayed_feedback import DelayedFeedback
from finerank.recipe import Recipe
from finerank.runtime.blocks import Block
from finerank.schema import Columns, FittedSchema, Numeric, Task
from finerank.training.evaluate import metrics, predict
from finerank.training.loop import Trainer
from finerank.training.options import Adam, TrainingOptions

NAN = math.nan
ELAPSED = [9.0, 2.0, 0.5, 30.0, 0.0]
CONVERTED, DELAYS = [1.0, 0.0, 0.0, 1.0, 0.0], [4.0, NAN, NAN, NAN, NAN]  # the fourth converted; nobody noted when
MEAN = 3.0


def fitted(transform: Any = "none", mean: float = MEAN, tasks: tuple[Task, ...] | None = None) -> FittedSchema:
    base = by_hand.fitted(history=False)
    elapsed = Numeric(name="elapsed", level="candidate", use="train_only", transform=transform)
    tasks = tasks or (Task(name="buy"), Task(name="delay", kind="regression", within="buy"))
    schema = replace(base.schema, features=(*base.schema.features, elapsed), tasks=tasks)
    rates = {t.name: mean if t.kind == "regression" else 0.25 for t in tasks}
    return replace(base, schema=schema, train_only=Columns(numbers=("elapsed",)), base_rates=rates)


def batch(elapsed: list[float] = ELAPSED, labels: list[float] = CONVERTED) -> Batch:
    weights = [[1.0, float(not math.isnan(d))] for d in DELAYS]
    made = by_hand.batch_of(
        labels=[[y, d] for y, d in zip(labels, DELAYS, strict=True)], weights=weights, history=False
    )
    numbers = torch.tensor(elapsed, dtype=torch.float64).unsqueeze(1)
    return replace(made, train_only=Block(torch.zeros(5, 0, dtype=torch.int64), numbers))


def model_of(heads: Mapping[str, Any] | str = "delayed_feedback", schema: FittedSchema | None = None) -> Model:
    table = {"name": "dfm", "representation": "plain", "interactions": [by_hand.tower()], "heads": heads}
    return by_hand.model_of(table, schema or fitted())


def test_the_likelihood_by_hand() -> None:
    model = model_of()
    out = model(batch())
    conversion = delay = 0.0
    for n in range(5):
        p, mean = by_hand.sigmoid(float(out.logits[n, 0].detach())), math.exp(float(out.logits[n, 1].detach()))
        rate, e = 1 / mean, ELAPSED[n]
        if not CONVERTED[n]:
            conversion -= math.log(1 - p + p * math.exp(-rate * e))
        elif math.isnan(DELAYS[n]):
            conversion -= math.log(p * (1 - math.exp(-rate * e)))
        else:
            conversion -= math.log(p)
            delay -= math.log(rate * MEAN) - rate * DELAYS[n]  # in units of the observed mean
    losses = model.losses(batch(), out)
    assert math.isclose(float(losses["buy"].detach()), conversion / 5, rel_tol=1e-6)
    assert math.isclose(float(losses["delay"].detach()), delay / 5, rel_tol=1e-6)
    by_now = model.head.logged(out.logits, batch()).detach()
    for n in range(4):
        p, mean = (float(x) for x in (torch.sigmoid(out.logits[n, 0]).detach(), out.logits[n, 1].exp().detach()))
        assert math.isclose(by_hand.sigmoid(float(by_now[n, 0])), p * (1 - math.exp(-ELAPSED[n] / mean)), rel_tol=1e-5)
    assert float(by_now[4, 0]) < -20  # nothing can have come in no time
    assert torch.equal(by_now[:, 1], out.logits[:, 1].detach())


def judged(a: float, log_mean: float, elapsed: float, label: float) -> tuple[float, Tensor]:
    """(loss of the conversion, gradient by (a, log m)) of one row."""
    head = model_of().head
    logits = torch.tensor([[a, log_mean]] * 5, dtype=torch.float64, requires_grad=True)
    loss = head.loss(0, logits, torch.full((5,), label, dtype=torch.float64), batch([elapsed] * 5))[0]
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    return float(loss.detach()), logits.grad[0]


def test_a_conversion_that_came_when_it_is_known_is_judged_by_its_probability_alone() -> None:
    """When it came, the delay's head says how likely that was. Rows of by hand wait long: here little time has passed."""
    for elapsed in (0.5, 4.0, 9.0):
        loss, grad = judged(0.7, 1.0, elapsed, 1.0)
        assert math.isclose(loss, -math.log(by_hand.sigmoid(0.7)), rel_tol=1e-12)
        assert grad.tolist() == pytest.approx([by_hand.sigmoid(0.7) - 1, 0.0], abs=1e-12)


def test_long_watched_rows_are_plain_negatives() -> None:
    """e -> infinity: binary cross-entropy, and nothing is learnt about delays."""
    for elapsed in (1e4, 1e30):
        loss, grad = judged(0.7, 1.0, elapsed, 0.0)
        assert math.isclose(loss, -math.log(1 - by_hand.sigmoid(0.7)), rel_tol=1e-12)
        assert math.isclose(float(grad[0]), by_hand.sigmoid(0.7), rel_tol=1e-12)
        assert float(grad[1]) == 0


def test_rows_just_begun_are_no_evidence() -> None:
    loss, grad = judged(0.7, 1.0, 0.0, 0.0)
    assert loss == pytest.approx(0, abs=1e-12)
    assert grad.tolist() == pytest.approx([0, 0], abs=1e-12)


def test_signs_of_gradients() -> None:
    """A row that has not converted says: less likely, or later. More so the longer it was watched. A delay that was longer
    than the mean says: later; a shorter one: sooner."""
    _, early = judged(0.7, 1.0, 1.0, 0.0)
    _, late = judged(0.7, 1.0, 5.0, 0.0)
    assert late[0] > early[0] > 0
    assert early[1] < 0
    assert judged(0.7, 1.0, 2.0, 1.0)[1][0] < 0
    head = model_of().head
    logits = torch.zeros(5, 2, dtype=torch.float64, requires_grad=True)  # a mean of 1
    head.loss(1, logits, torch.tensor([0.1, 3.0, 1.0, 1.0, 1.0]), batch()).sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad[:3, 1].tolist() == pytest.approx([0.9, -2.0, 0.0])


def test_extremes_stay_finite_in_float32() -> None:
    """Microseconds over years, delays of nothing, a certain and an impossible conversion."""
    head = model_of().head.float()
    for a in (-90.0, 90.0):
        for z in (-90.0, 0.0, 90.0):
            logits = torch.full((5, 2), a)
            logits[:, 1] = z
            logits.requires_grad_()
            for elapsed in (0.0, 1e-20, 1.0, 1e15):
                b = by_hand.single(batch([elapsed] * 5))
                b = replace(b, train_only=b.train_only and b.train_only.map(lambda t: t.float()))
                total = head.loss(0, logits, b.labels[:, 0], b).sum() + head.loss(1, logits, torch.rand(5), b).sum()
                total.backward()  # type: ignore[no-untyped-call]
                assert torch.isfinite(total)
                assert torch.isfinite(logits.grad).all()  # type: ignore[arg-type]
                assert torch.isfinite(head.logged(logits, b)).all()


def test_the_unit_of_time_changes_nothing() -> None:
    """Seconds or days: the same losses from the same weights, and the mean delay in that unit."""
    days, seconds = model_of(), model_of(schema=fitted(mean=MEAN * DAY))
    state = days.state_dict()
    state["head.bias"] = state["head.bias"] + torch.tensor([0.0, math.log(DAY)], dtype=torch.float64)
    seconds.load_state_dict(state)
    later = batch([e * DAY for e in ELAPSED])
    later = replace(later, labels=later.labels * torch.tensor([1.0, DAY], dtype=torch.float64))
    one, other = days.losses(batch(), days(batch())), seconds.losses(later, seconds(later))
    for name in ("buy", "delay"):
        assert math.isclose(float(one[name].detach()), float(other[name].detach()), rel_tol=1e-9)
    ratio = (seconds(later).logits - days(batch()).logits).exp().detach()
    assert ratio.numpy() == pytest.approx(np.tile([1.0, DAY], (5, 1)))


@pytest.mark.parametrize(
    ("heads", "schema", "message"),
    [
        ({"kind": "delayed_feedback", "elapsed": "elapsd"}, fitted(), r"'elapsd' is no train-only number; .*'elapsed'"),
        ("delayed_feedback", fitted("standard"), r"transform = 'standard', and heads .*accepted: transform = \"none\""),
        ({"kind": "delayed_feedback", "delay": "wait"}, fitted(), r"heads\.delay = 'wait'; .*delay"),
        ("delayed_feedback", fitted(mean=0.0), r"delays of the training rows have the mean 0; accepted: times"),
        (
            {"kind": "delayed_feedback"},
            fitted(tasks=(Task(name="buy"), *(Task(name=n, kind="regression", within="buy") for n in ("d", "e")))),
            r"heads\.delay: 2 tasks could be it",
        ),
    ],
)  # fmt: skip
def test_refusals(heads: Any, schema: FittedSchema, message: str) -> None:
    with pytest.raises(UserError, match=message):
        model_of(heads, schema)


def test_more_refusals() -> None:
    with pytest.raises(UserError, match=r"needs delay in the schema.*how long it took"):
        registry.build(registry.composition("dfm"), by_hand.fitted(history=False))
    with pytest.raises(UserError, match=r"no train-only number; declare a numeric candidate feature"):
        model_of(schema=replace(fitted(), train_only=Columns()))
    model = model_of()
    with pytest.raises(UserError, match=r"a row has -1; accepted: times since it was shown, 0 or more"):
        model.losses(batch([-1.0] * 5), model(batch([-1.0] * 5)))


# ------------------------------------------------------------------------------------------------ known truth


def trained(folder: Path, samples: Any, recipe: dict[str, Any]) -> Trainer:
    read = Recipe.parse({**recipe, "data": {"samples": "unread", **recipe["data"]}})
    data = prepare(folder, read.schema, samples.lazy(), None, read.data.keys, read.data.split)
    options = TrainingOptions(
        epochs=6, patience=9, batch=Budget(rows=1000), tables=Adam(lr=0.03), dense=Adam(lr=0.03),
        monitor="logloss", keep_memory=False, threads=1,
    )  # fmt: skip
    trainer = Trainer(read.model, data, options)
    trainer.fit()
    return trainer


def test_the_rate_is_recovered_though_half_of_the_conversions_are_late(tmp_path: Path) -> None:
    world = delays(DelayOptions(users=60, items=60, rows=40_000, days=6.0))
    eventual = world.samples["eventual"].sum()
    assert 0.45 < 1 - world.samples["conversion"].sum() / eventual < 0.6
    naive = {**world.recipe, "task": world.recipe["task"][:1], "model": {"name": "lr"}}
    true = world.samples["true_conversion"].to_numpy()
    error, bias = {}, {}
    for name, recipe in (("dfm", dict(world.recipe)), ("lr", naive)):
        trainer = trained(tmp_path / name, world.samples, recipe)
        found = predict(trainer.model, trainer.builder, trainer.dataset.requests_of("test"))
        p = 1 / (1 + np.exp(-found.logits[:, 0]))
        error[name], bias[name] = float(np.abs(p - true[found.rows]).mean()), float(p.mean() / true[found.rows].mean())
        if name == "dfm":
            assert isinstance(trainer.model.head, DelayedFeedback)
            item = world.samples["item"].to_numpy()[found.rows]
            mean = np.exp(found.logits[:, 1])
            assert np.corrcoef(np.log(mean), np.log(world.truth["mean_delay"][item]))[0, 1] > 0.5
            validation = trainer.dataset.requests_of("validation")
            logged = predict(trainer.model, trainer.builder, validation, logged=True)
            assert (
                metrics(logged)["conversion"]["logloss"]
                < metrics(predict(trainer.model, trainer.builder, validation))["conversion"]["logloss"] - 0.1
            )
    assert bias["dfm"] == pytest.approx(1, abs=0.08)
    assert bias["lr"] < 0.7
    assert error["dfm"] < 0.09 < 0.15 < error["lr"]
