"""Links, losses and spaces of heads, worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import tiny
import torch

from finerank.data.prepare import prepare
from finerank.data.split import Split
from finerank.errors import UserError
from finerank.metrics.regression import odds_loss
from finerank.models import registry
from finerank.models.composition import Head, Link, head_loss, head_target
from finerank.schema import Categorical, Schema, Task
from finerank.training.loop import Trainer
from finerank.training.options import Adam, TrainingOptions
from finerank.training.signs import check_signs

CHAIN = (Task(name="click"), Task(name="buy", within="click"))


def test_losses_of_the_links_by_hand() -> None:
    logits, labels = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 3.0])
    assert head_loss(Head("h", "t", "sigmoid"), logits[:1], labels[:1]).tolist() == pytest.approx([0.693147], abs=1e-5)
    assert head_loss(Head("h", "t", "identity"), logits, labels).tolist() == [1.0, 1.0]
    exp = head_loss(Head("h", "t", "exp"), logits, labels)  # exp(l) - y l
    assert exp.tolist() == pytest.approx([1.0, 7.389056 - 6.0], abs=1e-5)
    odds = head_loss(Head("h", "t", "odds"), logits, torch.tensor([0.0, 3.0]))  # log(1 + e^0), 3 log(1 + e^-2)
    assert odds.tolist() == pytest.approx([0.693147, 3 * 0.126928], abs=1e-5)


def test_odds_are_least_at_the_sum_of_the_labels_over_the_rows_without_one() -> None:
    labels = torch.tensor([0.0, 0.0, 1.0, 6.0])
    logit = torch.tensor(7 / 2).log().requires_grad_()
    head_loss(Head("h", "t", "odds"), logit.expand(4), labels).sum().backward()
    assert float(logit.grad) == pytest.approx(0.0, abs=1e-5)  # type: ignore[arg-type]
    assert odds_loss(labels, logit.detach().expand(4)) < odds_loss(labels, (logit.detach() + 0.1).expand(4))


def test_no_time_is_below_zero() -> None:
    """Such rows were taken for rows that were not watched."""
    with pytest.raises(UserError, match="odds_loss: 1 of 2 labels are negative or NaN; accepted: 0 or more"):
        odds_loss([3, -1], [0.0, 0.0])


@pytest.mark.parametrize("head", ["odds", "exp", "identity"])
def test_a_head_that_cannot_learn_a_number_below_zero_says_so(head: Link, tmp_path: Path) -> None:
    """A regression may be of negative numbers, so it is the head that decides."""
    samples, events = tiny.frames()
    schema = replace(tiny.schema(tasks=1, max_length=50), tasks=(Task(name="click", kind="regression"),))
    clicks = samples["click"].cast(float).to_list()
    given = samples.with_columns(click=pl.Series([-0.5, *clicks[1:]]))
    data = prepare(tmp_path, schema, given.lazy(), events.lazy(), tiny.KEYS, Split(validation=0.2, test=0.2))
    row = int(np.flatnonzero(data.labels[:, 0] < 0)[0])
    heads = (Head("click", "click", head),)
    if head == "identity":
        check_signs(data, heads)
        return
    with pytest.raises(
        UserError, match=rf"task 'click': row {row} of .* has the label -0.5, and .*; accepted: 0 or more"
    ):
        check_signs(data, heads)
    if head == "odds":
        trainer = Trainer(registry.composition("youtube_ranking"), data, TrainingOptions(threads=1, keep_memory=False))
        with pytest.raises(UserError, match="its head learns odds"):
            trainer.fit()


def test_exponential_link_is_least_where_its_mean_is_the_label() -> None:
    labels = torch.tensor([1.0, 2.0, 6.0])
    logit = torch.zeros((), requires_grad=True)
    head_loss(Head("h", "t", "exp"), logit.expand(3), labels).sum().backward()
    assert float(logit.grad) == 3 - 9  # type: ignore[arg-type]
    logit = torch.log(labels.mean()).requires_grad_()
    head_loss(Head("h", "t", "exp"), logit.expand(3), labels).sum().backward()
    assert float(logit.grad) == pytest.approx(0.0, abs=1e-5)  # type: ignore[arg-type]


def test_entire_space_by_hand() -> None:
    """Rows: no click; click and buy; click, no buy; click with buy unknown; outside of clicks' own space."""
    labels = torch.tensor([[0.0, torch.nan], [1.0, 1.0], [1.0, 0.0], [1.0, torch.nan], [torch.nan, torch.nan]])
    weights = torch.tensor([[1.0, 0.0], [2.0, 3.0], [1.0, 5.0], [1.0, 0.0], [0.0, 0.0]])
    label, weight = head_target(CHAIN, Head("both", "buy", space="entire"), labels, weights)
    assert label.tolist() == [0.0, 1.0, 0.0, 0.0, 0.0]
    assert weight.tolist() == [1.0, 6.0, 5.0, 0.0, 0.0]
    own, own_weight = head_target(CHAIN, Head("buy", "buy"), labels, weights)
    assert own.tolist() == [0.0, 1.0, 0.0, 0.0, 0.0]
    assert own_weight.tolist() == [0.0, 3.0, 5.0, 0.0, 0.0]


def test_a_regression_head_learns_the_mean_of_each_item(tmp_path: Path) -> None:
    samples, _ = tiny.frames(60)
    value = pl.col("item").str.slice(1).cast(pl.Float64) / 10
    schema = Schema(
        features=(Categorical(name="item", level="candidate"),),
        tasks=(Task(name="watched", kind="regression"), Task(name="click")),
    )
    data = prepare(tmp_path / "data", schema, samples.with_columns(watched=value).lazy(), None, tiny.KEYS, Split())
    options = TrainingOptions(epochs=1, tables=Adam(lr=0.1), dense=Adam(lr=0.05), keep_memory=False, threads=1)
    trainer = Trainer(registry.composition("lr"), data, options)
    start = float(trainer.model.head.bias[0].detach())  # type: ignore[index,union-attr]
    assert start == pytest.approx(data.fitted.base_rates["watched"], rel=1e-5)
    requests = data.requests_of("train")
    (step,) = trainer.builder.steps(requests, options.batch, shuffle=False)
    for _ in range(150):
        trainer.train_step(step)
    (batch,) = trainer.builder.batches(step)
    found = trainer.model.eval()(batch).logits[:, 0].detach()
    assert torch.allclose(found, batch.labels[:, 0], atol=0.05)
