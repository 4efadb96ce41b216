"""A number whose scale drowns another task is told of, once, when training begins; shipped worlds are not."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import tiny

from finerank.data.dataset import Dataset
from finerank.data.order import Budget
from finerank.data.prepare import prepare
from finerank.data.split import Split
from finerank.datasets import adapter
from finerank.models import registry
from finerank.models.composition import Model
from finerank.recipe import Recipe
from finerank.run import prepared
from finerank.schema import Task
from finerank.training import scales
from finerank.training.balance import balance
from finerank.training.loop import Progress, Trainer
from finerank.training.options import Fixed, GradNorm, TaskWeighting, TrainingOptions, Uncertainty
from finerank.training.scales import constant_losses, outweighed
from finerank.typed import apply_overrides, build

NUMBERS = ("seconds", "logged", "share", "same")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Clicks, buys within them, and as many numbers of other scales; some rows weigh nothing, and some twice."""
    samples, events = tiny.frames()
    seconds = pl.col("sequence") * 7919 % 3600 + 0.5
    samples = samples.with_columns(
        seconds=seconds,
        logged=seconds.log1p(),
        share=seconds / 3.6e5,
        same=pl.lit(3600.7),
        weight=pl.col("sequence") % 3,
    )
    tasks = (
        Task(name="click"),
        Task(name="conversion", within="click"),
        *(Task(name=n, kind="regression", weight="weight" if n == "seconds" else None) for n in NUMBERS),
    )
    schema = replace(tiny.schema(1), tasks=tasks)
    split = Split(validation=0.2, test=0.2)
    return prepare(tmp_path_factory.mktemp("data") / "data", schema, samples.lazy(), events.lazy(), tiny.KEYS, split)


def model_with(data: Dataset, options: TaskWeighting | None) -> Model:
    model = registry.build(registry.composition("shared_bottom"), data.fitted)
    balance(model, options)
    return model


def only(*names: str, **more: float) -> Fixed:
    """The other tasks are not trained."""
    tasks = ("click", "conversion", *NUMBERS)
    return Fixed(weights={n: 0.0 for n in tasks if n not in (*names, *more)} | more)


def told(data: Dataset, options: TaskWeighting | None) -> str | None:
    return outweighed(model_with(data, options), data, data.requests_of("train"))


@pytest.mark.parametrize("piece", [scales.PIECE, 7])
def test_what_a_constant_loses_by_hand(data: Dataset, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least of the losses over all constants, times weight, share and what positives count."""
    monkeypatch.setattr(scales, "PIECE", piece)
    model = model_with(data, Fixed(weights={"seconds": 0.5}, positives={"conversion": 3.0}))
    found = constant_losses(model, list(model.heads), data, data.requests_of("train"))
    rows = data.rows_of(data.requests_of("train"))
    y, w = (dict(zip(found, a[rows].T.astype(np.float64), strict=True)) for a in (data.labels, data.weights))
    assert set(np.unique(w["seconds"])) == {0.0, 1.0, 2.0}
    mean = np.average(y["seconds"], weights=w["seconds"])
    squares = w["seconds"] @ (y["seconds"] - mean) ** 2
    assert found["seconds"] == pytest.approx(0.5 * squares / len(rows), rel=1e-6)
    inside = y["click"] == 1
    times = np.where(y["conversion"][inside] == 1, 3.0, 1.0)
    p = np.average(y["conversion"][inside], weights=times)
    losses = -np.where(y["conversion"][inside] == 1, math.log(p), math.log(1 - p))
    assert found["conversion"] == pytest.approx(times @ losses / len(rows), rel=1e-6)
    assert found["logged"] == pytest.approx(np.var(y["logged"]), rel=1e-6)
    assert found["same"] == 0.0  # also where a sum of squares would leave some rounding


def test_both_tasks_both_numbers_and_the_remedy_are_told(data: Dataset) -> None:
    alone = model_with(data, only("click", "seconds"))
    found = constant_losses(alone, [h for h in alone.heads if h.trained], data, data.requests_of("train"))
    assert told(data, only("click", "seconds")) == (
        f"by its training mean alone task 'seconds' loses {found['seconds']:,.0f} a row and task 'click' "
        f"{found['click']:.2g}, weights included, so what they share learns nearly 'seconds' alone; give the label of "
        f"'seconds' in a larger unit or as its logarithm, or set training.tasks.weights.seconds near "
        f'{found["click"] / found["seconds"]:.1g}, or let training.tasks = {{kind = "uncertainty"}} learn the weights, '
        "over some thousand steps"
    )


def test_a_number_too_small_is_told_of_too(data: Dataset) -> None:
    said = told(data, only("click", "share"))
    assert said is not None
    assert said.startswith("by its training mean alone task 'click' loses 0.")
    assert "give the label of 'share' in a smaller unit, or set training.tasks.weights.share near " in said


def test_the_remedies_silence_it(data: Dataset) -> None:
    said = told(data, only("click", seconds=2.0))
    assert said is not None
    near = float(said.partition("weights.seconds near ")[2].partition(",")[0])
    assert told(data, only("click", seconds=near)) is None
    assert told(data, only("click", "logged")) is None
    assert told(data, Uncertainty()) is None
    assert told(data, GradNorm()) is None


def test_the_remedy_as_it_is_written_is_one_of_the_recipe(data: Dataset) -> None:
    """Without [training.tasks] a weight alone has no kind, and is refused."""
    said = told(data, None)
    assert said is not None
    written = said.partition("or set ")[2].partition(", or let ")[0]
    options = build(TrainingOptions, apply_overrides({}, [written])["training"], "training").tasks
    assert isinstance(options, Fixed)
    assert list(options.weights) == ["seconds"]
    assert 0 < options.weights["seconds"] < 1e-3


def test_nothing_is_said_of_one_task_of_rates_alone_or_of_a_number_that_does_not_vary(data: Dataset) -> None:
    assert told(data, only("seconds")) is None
    assert told(data, only("click", "same")) is None
    assert told(data, only(click=1.0, conversion=1e-9)) is None  # as was asked for
    assert told(data, None) is not None


class Listening(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_training_says_it_once(data: Dataset, tmp_path: Path) -> None:
    options = TrainingOptions(
        tasks=only("click", "seconds"), epochs=2, batch=Budget(rows=16), save_every=1, keep_memory=False, threads=1
    )
    composition = registry.composition("shared_bottom")
    first, second = Listening(), Listening()
    with pytest.raises(tiny.Stopped):
        Trainer(composition, data, options, tmp_path, first, at=tiny.stopping_at_step(3)).fit()
    Trainer(composition, data, options, tmp_path, second).fit(resume=True)
    assert first.notes == [told(data, options.tasks)]
    assert second.notes == []


@pytest.mark.parametrize("name", ["delays", "sinusoids"])
def test_worlds_with_several_tasks_and_a_number_are_at_peace(name: str, tmp_path: Path) -> None:
    """The recipes that come with them; seconds of delay beside rates, by squared error, are another matter."""
    module = adapter.adapter(f"world_{name}")
    module.convert(tmp_path, module.options()).write(tmp_path / "world")
    recipe = Recipe.read(tmp_path / "world" / "recipe.toml")
    data = prepared(recipe, tmp_path / "data")
    model = registry.build(recipe.model, data.fitted)
    assert outweighed(model, data, data.requests_of("train")) is None
    plain = registry.build(registry.composition("shared_bottom"), data.fitted)
    assert (outweighed(plain, data, data.requests_of("train")) is None) == (name != "delays")
