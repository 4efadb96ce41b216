"""Batches made ahead in a thread are those made when they are asked for, whatever is said to come next."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from finerank.data.builder import BatchBuilder
from finerank.data.order import Budget, Step
from finerank.models import registry
from finerank.training.ahead import Ahead
from finerank.training.loop import Trainer
from finerank.training.options import TrainingOptions

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def feed(tmp_path_factory: pytest.TempPathFactory) -> BatchBuilder:
    data = tiny.dataset(tmp_path_factory.mktemp("world") / "data")
    return BatchBuilder(data, registry.build(tiny.composition("din"), data.fitted).needs)


def steps(feed: BatchBuilder, rows: int = 8) -> list[Step]:
    return list(feed.steps(feed.dataset.requests_of("train"), Budget(rows=rows)))


def labels(ahead: Ahead, step: Step, coming: Step | None) -> list[list[float]]:
    return [batch.labels.flatten().tolist() for batch in ahead.batches(step, 0, coming)]


def test_batches_are_the_same(feed: BatchBuilder) -> None:
    plain, threaded = Ahead(feed, CPU, threaded=False), Ahead(feed, CPU, threaded=True)
    todo = steps(feed)
    for step, coming in zip(todo, [*todo[1:], None], strict=True):
        assert labels(threaded, step, coming) == labels(plain, step, coming)


def test_another_step_than_the_one_told(feed: BatchBuilder) -> None:
    plain, threaded = Ahead(feed, CPU, threaded=False), Ahead(feed, CPU, threaded=True)
    first, second, third, *_ = steps(feed)
    labels(threaded, first, second)
    assert labels(threaded, third, None) == labels(plain, third, None)
    assert labels(threaded, second, None) == labels(plain, second, None)


def test_a_request_in_chunks(feed: BatchBuilder) -> None:
    """Requests have up to four rows: a budget of two cuts them."""
    plain, threaded = Ahead(feed, CPU, threaded=False), Ahead(feed, CPU, threaded=True)
    todo = steps(feed, rows=2)
    assert any(step.chunks for step in todo)
    for step, coming in zip(todo, [*todo[1:], None], strict=True):
        assert labels(threaded, step, coming) == labels(plain, step, coming)


def test_what_goes_wrong_in_the_thread_is_raised(feed: BatchBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    threaded = Ahead(feed, CPU, threaded=True)
    first, second, *_ = steps(feed)
    labels(threaded, first, None)

    def broken(*_: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(feed, "batches", broken)
    with pytest.raises(OSError, match="disk is gone"):
        labels(threaded, second, None)
    threaded._coming = second, threaded._thread.submit(threaded._made, second, 0)  # type: ignore[union-attr]
    with pytest.raises(OSError, match="disk is gone"):
        labels(threaded, second, None)


def test_a_training_is_the_same(feed: BatchBuilder, tmp_path: Path) -> None:
    losses = []
    for threaded in (False, True):
        options = TrainingOptions(epochs=2, batch=Budget(rows=32), keep_memory=False, threads=1, device="cpu")
        trainer = Trainer(tiny.composition("dien"), feed.dataset, options)  # whose negatives depend on the step
        trainer.ahead = Ahead(trainer.feed, CPU, threaded)
        losses.append([epoch.loss for epoch in trainer.fit()])
    np.testing.assert_array_equal(*losses)
