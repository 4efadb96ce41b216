"""Training on a part of the rows: what is kept, that scores keep their meaning, and that a line brings them back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import tiny
import torch

from finerank.data.builder import BatchBuilder
from finerank.data.dataset import Dataset
from finerank.data.order import Budget
from finerank.data.prepare import prepare
from finerank.data.split import Split
from finerank.datasets.worlds.conversions import ConversionOptions, conversions
from finerank.errors import UserError
from finerank.export.bundle import write_bundle
from finerank.metrics.probability import calibration
from finerank.metrics.ranking import auc
from finerank.models import registry
from finerank.models.composition import Calibration, Head, Output
from finerank.runtime.scorer import Scorer
from finerank.schema import Categorical, Schema, Task
from finerank.training import calibrate
from finerank.training.evaluate import Predictions, predict
from finerank.training.loop import Progress, Trainer
from finerank.training.options import Adam, HotItems, Sampling, TrainingOptions
from finerank.training.sampling import Sampled, kept_share


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """60,000 impressions; clicks at about a fifth, conversions within them at about a third."""
    made = conversions(ConversionOptions(rows=60_000, users=100, items=100))
    features = (Categorical(name="user", level="request"), Categorical(name="item", level="candidate"))
    schema = Schema(features=features, tasks=(Task(name="click"), Task(name="conversion", within="click")))
    folder = tmp_path_factory.mktemp("world") / "data"
    return prepare(folder, schema, made.samples.lazy(), split=Split(validation=0.15, test=0.25))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny.dataset(tmp_path_factory.mktemp("tiny") / "data", requests=200)


def trained(data: Dataset, sampling: Sampling | None, heads: str = "tasks", folder: Path | None = None) -> Trainer:
    options = TrainingOptions(
        epochs=4, patience=4, batch=Budget(rows=1_024), tables=Adam(lr=0.05), dense=Adam(lr=0.05), sampling=sampling,
        threads=1, keep_memory=False,
    )  # fmt: skip
    trainer = Trainer(registry.parse({"name": "lr", "heads": heads}), data, options, folder)
    trainer.fit()
    return trainer


def scored(trainer: Trainer, split: str = "test") -> Predictions:
    return predict(trainer.model, trainer.builder, trainer.dataset.requests_of(split))


def judged(found: Predictions, head: int) -> tuple[float, float]:
    """(calibration, AUC) of a head."""
    given = found.labels[:, head], found.logits[:, head], found.weights[:, head]
    return calibration(*given), auc(*given)


# ------------------------------------------------------------------------------------------------ what is kept


def test_training_negatives_alone_are_left_out_and_by_seed_and_row(world: Dataset) -> None:
    heads = trained_heads(world)
    found = Sampled(world, heads, Sampling(negatives=0.1, seed=3))
    training = np.repeat(world.split == 0, np.diff(world.first))
    negative = world.labels[:, 0] == 0
    assert found.keep[~training].all()
    assert found.keep[~negative].all()
    share = found.keep[training & negative].mean()
    assert share == pytest.approx(0.1, abs=0.01)
    assert np.array_equal(found.keep, Sampled(world, heads, Sampling(negatives=0.1, seed=3)).keep)
    assert not np.array_equal(found.keep, Sampled(world, heads, Sampling(negatives=0.1, seed=4)).keep)
    fewer = Sampled(world, heads, Sampling(negatives=0.05, seed=3)).keep
    assert (fewer <= found.keep).all()  # one number a row: a smaller share is a part of a larger one


def trained_heads(data: Dataset, heads: str = "tasks") -> tuple[Head, ...]:
    return registry.build(registry.parse({"name": "lr", "heads": heads}), data.fitted).heads


def test_what_makes_up_for_it_by_head(world: Dataset) -> None:
    def how(heads: str, **more: Any) -> list[str]:
        given = trained_heads(world, heads)
        found = Sampled(world, given, Sampling(negatives=0.25, **more))
        both = zip(given, found.offset.tolist(), found.weighted.tolist(), strict=True)
        return [f"{h.name} {round(float(np.exp(o)), 6)} {w}" for h, o, w in both]

    assert how("tasks") == ["click 4.0 False", "conversion 1.0 False"]
    assert how("tasks", correction="none") == ["click 1.0 False", "conversion 1.0 False"]
    assert how("tasks", correction="weights") == ["click 1.0 True", "conversion 1.0 False"]
    # the product over the chain has negatives of two kinds
    assert how("entire_space") == ["click 4.0 False", "conversion 1.0 False", "click&conversion 1.0 True"]
    # clicks without a conversion are left out: clicks have lost positives, which no constant mends
    assert how("tasks", task="conversion") == ["click 1.0 True", "conversion 4.0 False"]


def test_the_loss_of_a_batch_by_hand(small: Dataset) -> None:
    """w = .25: the clicks' logits rise by log 4; of the chain, rows without a click weigh 4."""
    heads = trained_heads(small, "entire_space")
    sampled = Sampled(small, heads, Sampling(negatives=0.25))
    batch = BatchBuilder(small, registry.build(registry.parse({"name": "lr"}), small.fitted).needs).batch(np.arange(9))
    logits = torch.arange(3.0 * batch.N).reshape(-1, 3)
    out, factors = sampled.seen(batch, Output(logits, {}, {}))
    assert torch.allclose(out.logits - logits, torch.tensor([4.0, 1.0, 1.0]).log(), atol=1e-5)
    expected = [[1.0, 1.0, 1.0 if click else 4.0] for click in batch.labels[:, 0].tolist()]
    assert factors.tolist() == expected
    assert {0.0, 1.0} == set(batch.labels[:, 0].tolist())


def test_the_offset_is_the_formula_of_the_paper() -> None:
    """q = p / (p + (1 - p) / w) of the model of the kept rows is the model's own output."""
    w, own = 0.1, np.linspace(-6, 4, 50)
    p = 1 / (1 + np.exp(-(own - np.log(w))))  # what the loss sees
    assert np.allclose(p / (p + (1 - p) / w), 1 / (1 + np.exp(-own)), rtol=1e-12)


def test_weights_stand_for_the_rows_left_out(world: Dataset) -> None:
    """The weighted sum over kept rows estimates the sum over all, of anything."""
    training = np.repeat(world.split == 0, np.diff(world.first))
    anything = np.sin(np.arange(world.rows)) + 1
    estimates = []
    for seed in range(20):
        found = Sampled(world, trained_heads(world), Sampling(negatives=0.2, correction="weights", seed=seed))
        kept = training & found.keep
        estimates.append((anything * np.where(world.labels[:, 0] == 0, 5.0, 1.0))[kept].sum())
    assert np.mean(estimates) == pytest.approx(anything[training].sum(), rel=0.005)


def test_builder_passes_over_what_is_not_kept(small: Dataset) -> None:
    keep = np.zeros(small.rows, dtype=bool)
    keep[::3] = True
    needs = registry.build(registry.parse({"name": "lr"}), small.fitted).needs
    whole, part = BatchBuilder(small, needs), BatchBuilder(small, needs, keep=keep)
    requests = small.requests_of("train")
    for budget in (Budget(rows=7), Budget(rows=1)):  # requests cut into chunks, too
        seen = [b.rows.tolist() for s in part.steps(requests, budget) for b in part.batches(s) if b.rows is not None]
        assert sorted(r for rows in seen for r in rows) == [r for r in whole.dataset.rows_of(requests) if keep[r]]
        assert all(seen)
        assert sum(s.rows for s in part.steps(requests, budget)) == sum(map(len, seen))


# ------------------------------------------------------------------------------------------------ scores keep their meaning


def test_the_correction_keeps_scores_calibrated_and_does_not_hurt_the_order(world: Dataset) -> None:
    full, corrected, weighted, none = (
        scored(trained(world, s))
        for s in (
            None,
            Sampling(negatives=0.1),
            Sampling(negatives=0.1, correction="weights"),
            Sampling(negatives=0.1, correction="none"),
        )
    )
    for found, most in ((full, 0.04), (corrected, 0.04), (weighted, 0.08)):
        assert judged(found, 0)[0] == pytest.approx(1, abs=most)
    assert judged(none, 0)[0] > 2.5
    assert judged(corrected, 0)[1] > judged(full, 0)[1] - 0.01
    assert judged(corrected, 0)[1] > judged(none, 0)[1]  # its bias starts at the true rate
    for found in (full, corrected):  # conversions lose no row
        assert judged(found, 1)[0] == pytest.approx(1, abs=0.07)


def test_chains_are_calibrated_too(world: Dataset) -> None:
    found = scored(trained(world, Sampling(negatives=0.2), heads="entire_space"))
    assert [h.name for h in found.heads] == ["click", "conversion", "click&conversion"]
    assert judged(found, 0)[0] == pytest.approx(1, abs=0.06)
    assert judged(found, 2)[0] == pytest.approx(1, abs=0.1)


def test_hot_items_put_scores_off_and_the_line_brings_them_back(world: Dataset, tmp_path: Path) -> None:
    hot = HotItems(feature="item", cap=15)
    trainer = trained(world, Sampling(hot_items=hot), folder=tmp_path)
    line = trainer.model.calibration
    assert line is not None
    on_validation = scored(trainer, "validation")
    for h in (0, 1):
        assert judged(on_validation, h)[0] == pytest.approx(1, abs=1e-4)  # the mean is the base rate
        assert judged(scored(trainer), h)[0] == pytest.approx(1, abs=0.08)
    with torch.no_grad():
        slope, intercept = line.slope.clone(), line.intercept.clone()
        line.slope.fill_(1.0)
        line.intercept.fill_(0.0)
        assert judged(scored(trainer), 0)[0] < 0.6  # what it would have been
    # it is stored with the run, and a training that is over gives it again
    again = Trainer(trainer.composition, world, trainer.options, tmp_path)
    again.load_best()
    assert again.model.calibration is not None
    assert torch.equal(again.model.calibration.slope, slope)
    assert torch.equal(again.model.calibration.intercept, intercept)
    assert np.array_equal(scored(again).logits, scored(again).logits)
    resumed = Trainer(trainer.composition, world, trainer.options, tmp_path)
    resumed.fit(resume=True)
    assert resumed.model.calibration is not None
    assert torch.equal(resumed.model.calibration.slope, slope)


def test_a_line_is_part_of_what_is_served(world: Dataset, tmp_path: Path) -> None:
    options = TrainingOptions(epochs=1, sampling=Sampling(recalibrate=True), threads=1)
    trainer = Trainer(registry.parse({"name": "lr"}), world, options)
    trainer.fit()
    line = trainer.model.calibration
    assert line is not None
    write_bundle(trainer.model, world.fitted, world.encoder, tmp_path / "bundle", trainer.row_maps)
    scorer = Scorer.load(tmp_path / "bundle")
    made = conversions(ConversionOptions(rows=60_000, users=100, items=100)).samples
    found, row = scored(trainer), int(scored(trainer).rows[0])
    values = made.row(row, named=True)
    served = scorer.score({"user": values["user"]}, [{"item": values["item"]}]).logits["click"][0]
    assert served == pytest.approx(found.logits[0, 0], abs=1e-5)
    a, b = float(line.intercept[0]), float(line.slope[0])
    line.load_state_dict(Calibration(2).state_dict())
    assert served == pytest.approx(a + b * scored(trainer).logits[0, 0], abs=1e-5)
    assert abs(b - 1) > 0.1


# ------------------------------------------------------------------------------------------------ lines and laws


def test_a_line_is_found_again() -> None:
    draw = np.random.default_rng(0)
    z = draw.normal(0, 2, 200_000)
    p = 1 / (1 + np.exp(-(0.7 + 0.5 * z)))
    y, w = (draw.random(len(z)) < p).astype(float), draw.integers(0, 3, len(z)).astype(float)
    a, b, _ = calibrate.line(Head("x", "x"), y, z, w)
    assert (a, b) == (pytest.approx(0.7, abs=0.02), pytest.approx(0.5, abs=0.01))
    # two gradients of the weighted loss vanish
    rest = w * (1 / (1 + np.exp(-(a + b * z))) - y)
    assert abs(rest.sum()) < 1e-6 * w.sum()
    assert abs((rest * z).sum()) < 1e-5 * w.sum()
    number = Head("x", "x", link="identity")
    assert calibrate.line(number, 3 + 2 * z, z, np.ones_like(z))[:2] == (pytest.approx(3), pytest.approx(2))
    a, b, _ = calibrate.line(Head("x", "x", link="exp"), 5 * np.exp(z), z, np.ones_like(z))
    assert (a, b) == (pytest.approx(np.log(5)), 1.0)


@pytest.mark.parametrize("link", ["sigmoid", "identity"])
def test_a_line_never_turns_the_order_around(link: Any) -> None:
    """Scores that fall with the label: the mean alone is put right."""
    z = np.linspace(-2, 2, 1_000)
    y = (np.arange(1_000) % 10 < np.where(z < 0, 6, 2)).astype(float)
    a, b, slope = calibrate.line(Head("x", "x", link=link), y, z, np.ones_like(z))
    assert slope < 0
    assert b == 1
    predicted = a + z if link == "identity" else 1 / (1 + np.exp(-(a + z)))
    assert predicted.mean() == pytest.approx(y.mean(), abs=1e-6)


def test_a_training_whose_head_learnt_nothing_is_not_lost(world: Dataset) -> None:
    """It was refused after its last epoch, and again when it was gone on with."""

    class Told(Progress):
        notes: ClassVar[list[str]] = []

        def note(self, text: str) -> None:
            self.notes.append(text)

    options = TrainingOptions(epochs=1, sampling=Sampling(recalibrate=True), threads=1)
    trainer = Trainer(registry.parse({"name": "lr"}), world, options, progress=Told())
    trainer.fit()
    assert Told.notes == []
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.neg_()
    line = trainer.model.calibration
    assert line is not None
    trainer._recalibrate(line, world.requests_of("validation"))
    assert "head 'click' do not rise with the label" in Told.notes[0]
    assert float(line.slope[0]) == 1
    assert judged(scored(trainer, "validation"), 0)[0] == pytest.approx(1, abs=1e-4)


def test_rows_that_are_separable_leave_the_line_finite() -> None:
    z = np.linspace(-1, 1, 100)
    a, b, _ = calibrate.line(Head("x", "x"), (z > 0).astype(float), z, np.ones(100))
    assert np.isfinite([a, b]).all()
    assert b > 1


def test_shares_of_hot_items_by_hand() -> None:
    """f / t = 25: (5 + 1) / 25 = .24; f / t = 4: 3 / 4; below (t: 2) all."""
    counts = np.array([25, 4, 1])
    hot = HotItems(feature="item", threshold=1 / 30)
    assert kept_share(counts, hot) == pytest.approx([0.24, 0.75, 1.0])
    assert kept_share(counts, HotItems(feature="item", cap=5)) == pytest.approx([0.2, 1.0, 1.0])


def test_positives_of_each_item_are_kept_at_its_share(world: Dataset) -> None:
    hot = HotItems(feature="item", threshold=1e-3)
    found = Sampled(world, trained_heads(world), Sampling(hot_items=hot))
    training = np.repeat(world.split == 0, np.diff(world.first)) & (world.labels[:, 0] == 1)
    column = [name for name, _ in world.fitted.candidate.ids].index("item")
    item = world.candidate.ids[training, column]
    counts = np.bincount(item)
    share = kept_share(counts[3:], hot)
    kept = np.bincount(item, found.keep[training])[3:]
    assert share.min() < 0.3
    spread = np.sqrt(np.maximum(counts[3:] * share * (1 - share), 1))
    assert (np.abs(kept - counts[3:] * share) < 4.5 * spread).all()
    assert found.keep[~training].all()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda d: Sampling(negatives=0), "negatives = 0"),
        (lambda d: HotItems(feature="item", cap=0), "cap = 0"),
        (lambda d: HotItems(feature="item", threshold=0), "threshold"),
        (lambda d: Sampled(d, trained_heads(d), Sampling(task="clack")), "'clack' is no binary task"),
        (lambda d: Sampled(d, trained_heads(d), Sampling(hot_items=HotItems(feature="itm"))), "'itm'"),
        (lambda d: Sampled(d, trained_heads(d), Sampling(negatives=1e-9)), "no negative of task 'click' is left"),
        (lambda d: calibrate.line(Head("x", "x"), np.ones(3), np.arange(3.0), np.ones(3)), "of one class"),
        (lambda d: calibrate.line(Head("x", "x"), np.ones(3), np.arange(3.0), np.zeros(3)), "are none"),
    ],
)  # fmt: skip
def test_each_mistake_has_a_sentence(make: Any, sentence: str, world: Dataset) -> None:
    with pytest.raises(UserError, match=sentence):
        make(world)
