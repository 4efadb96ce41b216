"""PAL, the shallow position tower, and a default for the position: numbers by hand, known truth, graphs without positions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import by_hand
import numpy as np
import pytest
import tiny
import torch
from test_run import logs, table
from typer.testing import CliRunner

from finerank.cli.app import verbs
from finerank.data.builder import BatchBuilder
from finerank.data.dataset import Dataset
from finerank.data.order import Budget
from finerank.data.prepare import prepare
from finerank.datasets.worlds.positions import PositionOptions, positions
from finerank.datasets.worlds.world import World
from finerank.errors import UserError
from finerank.evaluation.defaults import LOGGED, sweep
from finerank.export.graph import graph_inputs
from finerank.fresh.score import FreshScorer
from finerank.models import registry
from finerank.models.composition import Model
from finerank.models.pal import SeenHeads
from finerank.models.position_tower import PositionTower
from finerank.models.train_only import TrainOnly
from finerank.recipe import Recipe
from finerank.run import Run, run
from finerank.runtime.blocks import Block
from finerank.schema import FIRST, MISSING, Categorical, Columns, FittedSchema, FittedTable, Growing, Vocabulary
from finerank.training.evaluate import metrics, predict
from finerank.training.loop import Trainer
from finerank.training.options import Adam, HotItems, Sampling, TrainingOptions

POSITIONS, DEVICES = [3, 4, 5, 3, 4], [3, 3, 4, 4, 2]  # of the five candidates of by_hand
DENSE = TrainingOptions(
    epochs=4, patience=9, batch=Budget(rows=1000), tables=Adam(lr=0.02), dense=Adam(lr=0.02),
    monitor="logloss", keep_memory=False, threads=1,
)  # fmt: skip


def fitted(encoding: Any = Vocabulary()) -> FittedSchema:
    """The pencil world with a position and a device that only training knows; position "1" is row 3."""
    base = by_hand.fitted(history=False)
    tables = {
        "position": FittedTable(6, np.ones(6, np.int64), encoding, symbol=lambda text: {"1": 3, "2": 4}.get(text, 1)),
        "device": FittedTable(5, np.ones(5, np.int64), encoding),
    }
    columns = Columns(ids=(("position", "position"), ("device", "device")))
    known = (Categorical(name=name, level="candidate", use="train_only", encoding=encoding) for name in tables)
    schema = replace(base.schema, features=(*base.schema.features, *known))
    return replace(base, schema=schema, tables={**base.tables, **tables}, train_only=columns)


def batch() -> Any:
    ids = torch.tensor([POSITIONS, DEVICES]).T
    return replace(by_hand.batch_of(history=False), train_only=Block(ids, torch.zeros(5, 0)))


def model_of(heads: Mapping[str, Any], encoding: Any = Vocabulary()) -> Model:
    return by_hand.model_of(
        {"name": "lr", "representation": "plain", "interactions": [by_hand.tower()], "heads": heads}, fitted(encoding)
    )


def values(tower: TrainOnly, n: int) -> float:
    """The sum of the free numbers of a row."""
    return sum(float(t.weight[ids[n], 0].detach()) for t, ids in zip(tower.values, (POSITIONS, DEVICES), strict=False))


# ------------------------------------------------------------------------------------------------ by hand


@pytest.mark.parametrize("anchor", ["1", ""])
def test_pal_judges_the_product_of_two_probabilities(anchor: str) -> None:
    model = model_of({"kind": "pal", "anchor": anchor})
    assert isinstance(model.head, SeenHeads)
    out = model(batch())
    losses = []
    for n, label in enumerate([1.0, 0.0, 0.0, 1.0, 0.0]):
        p = by_hand.sigmoid(float(out.logits[n, 0].detach()))
        seen = by_hand.sigmoid(1.0 + values(model.head.seen, n))
        if anchor and POSITIONS[n] == 3:
            seen = 1.0
        losses.append(by_hand.bce(label, seen * p))
        assert math.isclose(float(model.head.prob_seen(model.head.seen.ids(batch()))[n]), seen, rel_tol=1e-6)
    assert math.isclose(float(model.losses(batch(), out)["click"].detach()), sum(losses) / 5, rel_tol=1e-6)


def test_the_gradient_is_that_of_the_product_and_not_the_printed_one() -> None:
    """d loss / d p = s (b - y) / (b (1 - b)), b = s p: equations 4 and 5 of the paper lack the denominator."""
    model = model_of({"kind": "pal", "anchor": ""})
    assert isinstance(model.head, SeenHeads)
    model.head.bias.requires_grad_()
    model.losses(batch(), model(batch()))["click"].backward()
    expected = 0.0
    for n, y in enumerate([1.0, 0.0, 0.0, 1.0, 0.0]):
        p = by_hand.sigmoid(float(model(batch()).logits[n, 0].detach()))
        s = by_hand.sigmoid(1.0 + values(model.head.seen, n))
        b = s * p
        expected += (b - y) / (b * (1 - b)) * s * p * (1 - p) / 5
    assert model.head.bias.grad is not None
    assert math.isclose(float(model.head.bias.grad[0]), expected, rel_tol=1e-5)


def test_pal_with_an_mlp_by_hand() -> None:
    model = model_of({"kind": "pal", "hidden": [3], "width": 2, "columns": ["device", "position"], "anchor": ""})
    assert isinstance(model.head, SeenHeads)
    tower = model.head.seen
    assert tower.mlp is not None
    first, last = tower.mlp.layers[0], tower.mlp.layers[2]
    for n in range(5):
        x = torch.cat([tower.values[0].weight[DEVICES[n]], tower.values[1].weight[POSITIONS[n]]])
        h = [max(0.0, float((w @ x + b).detach())) for w, b in zip(first.weight, first.bias, strict=True)]
        s = sum(float(w) * v for w, v in zip(last.weight[0].tolist(), h, strict=True)) + last.bias[0].item() + 1.0
        got = float(model.head.prob_seen(tower.ids(batch()))[n])
        assert math.isclose(got, by_hand.sigmoid(s), rel_tol=1e-6)


def test_constant_sight_is_plain_ctr() -> None:
    """ProbSeen = 1 everywhere: the loss is that of the same model with task heads."""
    model = model_of({"kind": "pal"})
    assert isinstance(model.head, SeenHeads)
    everywhere_first = replace(batch(), train_only=Block(torch.full((5, 2), 3), torch.zeros(5, 0)))
    plain = model_of("tasks")  # type: ignore[arg-type]
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "seen" not in k})
    one, other = model.losses(everywhere_first, model(everywhere_first)), plain.losses(batch(), plain(batch()))
    assert torch.equal(one["click"], other["click"])


def test_extreme_logits_stay_finite() -> None:
    """Log space: pCTR of nearly 1 at a certain place, ProbSeen of nearly 0."""
    model = model_of({"kind": "pal", "anchor": ""}).float()
    assert isinstance(model.head, SeenHeads)
    for size in (-80.0, 80.0):
        logits = torch.full((5, 1), size, requires_grad=True)
        for seen in (-80.0, 80.0):
            with torch.no_grad():
                model.head.seen.values[0].weight.fill_(seen)
            loss = model.head.loss(0, logits, torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0]), by_hand.single(batch()))
            loss.sum().backward()
            assert torch.isfinite(loss).all()
            assert torch.isfinite(logits.grad).all()  # type: ignore[arg-type]


def test_the_position_tower_adds_and_drops_by_hand() -> None:
    model = model_of({"kind": "position_tower", "hidden": [], "drop": 0.5})
    head = model.head
    assert isinstance(head, PositionTower)
    out = model(batch())
    plain = model_of("tasks")  # type: ignore[arg-type]
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "tower" not in k or "interactions" in k})
    missing = sum(float(t.weight[MISSING, 0].detach()) for t in head.tower.values)
    assert by_hand.same(out.logits, plain(batch()).logits.detach().numpy() + missing)
    main = plain(batch()).logits[:, 0].detach()
    known = [float(main[n]) + values(head.tower, n) for n in range(5)]
    assert by_hand.same(head.logged(out.logits, batch())[:, 0], known)  # nothing is dropped in evaluation
    model.train()
    torch.manual_seed(3)
    dropped = [bool(x == 0) for x in torch.nn.functional.dropout(torch.ones(5, 1), 0.5)]
    assert 0 < sum(dropped) < 5
    torch.manual_seed(3)
    got = head.logged(out.logits, batch())[:, 0]
    assert by_hand.same(got, [float(out.logits[n, 0].detach()) if dropped[n] else known[n] for n in range(5)])


def test_sum_and_product_agree_about_order() -> None:
    """At any one position both keep the order of pCTR."""
    logits = torch.linspace(-4, 4, 5, dtype=torch.float64).unsqueeze(1)
    same_place = replace(batch(), train_only=Block(torch.full((5, 2), 4), torch.zeros(5, 0)))
    for heads in ({"kind": "pal"}, {"kind": "position_tower"}):
        got = model_of(heads).head.logged(logits, same_place)[:, 0]
        assert bool((got.diff() > 0).all())


def test_only_tasks_at_the_root_are_judged_through_the_position(tmp_path: Path) -> None:
    data = tiny.dataset(tmp_path / "data", tasks=2)
    model = registry.build(registry.parse({"name": "base", "heads": "pal"}), data.fitted)
    assert [(h.name, h.direct) for h in model.heads] == [("click", False), ("conversion", True)]
    b = BatchBuilder(data, model.needs).batch(data.requests_of("train"))
    logits = torch.randn(b.N, 2)
    moved = model.head.logged(logits, b) != logits
    assert bool(moved[:, 0].any())
    assert not bool(moved[:, 1].any())


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({"kind": "pal", "columns": ["positon"]}, r"'positon' is no train-only column .* did you mean 'position'"),
        ({"kind": "pal", "anchor": "7"}, r"anchor = '7' is no value of 'position' .*no anchor"),
        ({"kind": "pal", "tasks": ["buy"]}, r"heads\.tasks: 'buy' is no binary task; .*click"),
        ({"kind": "pal", "hidden": [0]}, r"hidden = \[0\], width = 8; accepted: at least 1"),
        ({"kind": "position_tower", "drop": 0.0}, r"drop = 0\.0; accepted: above 0"),
    ],
)
def test_refusals(heads: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        model_of(heads)


def test_more_refusals(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'position' is encoded as \"growing\""):
        model_of({"kind": "pal"}, Growing())
    bare = by_hand.fitted(history=False)
    with pytest.raises(UserError, match=r"needs train-only ids in the schema.*such as the position"):
        registry.build(registry.parse({"name": "pal"}), bare)
    with pytest.raises(UserError, match=r"heads: no train-only column; declare"):
        registry.build(registry.parse({"name": "lr", "heads": "pal"}), bare)
    device = Categorical(name="gadget", level="request", use="train_only")
    schema = replace(fitted().schema, features=(*fitted().schema.features, device))
    told = r"'gadget' is no .*it is categorical with level = \"request\".*with level = \"candidate\".*accepted: device, pos"
    heads = {"kind": "position_tower", "columns": ["position", "gadget"]}
    with pytest.raises(UserError, match=told):
        registry.build(registry.parse({"name": "lr", "heads": heads}), replace(fitted(), schema=schema))
    data = tiny.dataset(tmp_path / "data", tasks=1)
    sampling = Sampling(hot_items=HotItems(feature="item"))
    with pytest.raises(UserError, match=r"cannot be recalibrated on labels that heads 'pal'"):
        Trainer(registry.composition("pal"), data, replace(DENSE, sampling=sampling)).fit()


# ------------------------------------------------------------------------------------------------ known truth


@pytest.fixture(scope="module")
def world() -> World:
    return positions(PositionOptions(requests=10_000, items=60))


@pytest.fixture(scope="module")
def data(world: World, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    recipe = Recipe.parse({**world.recipe, "data": {"samples": "unread", **world.recipe["data"]}})
    folder = tmp_path_factory.mktemp("positions") / "data"
    return prepare(folder, recipe.schema, world.samples.lazy(), None, recipe.data.keys, recipe.data.split)


def trained(data: Dataset, heads: Any) -> Trainer:
    trainer = Trainer(registry.parse({"name": "lr", "heads": heads}), data, DENSE)
    trainer.fit()
    return trainer


def off(trainer: Trainer, data: Dataset, world: World) -> float:
    """Mean distance of what is served from P(click | seen) on the test rows."""
    found = predict(trainer.model, trainer.builder, data.requests_of("test"))
    p = 1 / (1 + np.exp(-found.logits[:, 0]))
    return float(np.abs(p - world.samples["true_click"].to_numpy()[found.rows]).mean())


@pytest.mark.parametrize("anchor", ["1", ""])
def test_the_curve_of_sight_is_recovered(data: Dataset, world: World, anchor: str) -> None:
    trainer = trained(data, {"kind": "pal", "anchor": anchor})
    head = trainer.model.head
    assert isinstance(head, SeenHeads)
    rows = torch.tensor([[data.encoder.tables["position"].lookup(str(k))] for k in range(1, 11)])
    seen = head.prob_seen(rows).numpy()
    np.testing.assert_allclose(seen / seen[0], world.truth["seen"], rtol=0.2)
    if anchor:
        assert seen[0] == 1
        assert off(trainer, data, world) < 0.03
        assert off(trained(data, "tasks"), data, world) > 0.12


def test_early_stopping_judges_the_logged_click(data: Dataset) -> None:
    """And not pCTR against clicks, which fits the worse the better it knows what would be clicked if it were seen."""
    trainer = trained(data, {"kind": "pal"})
    requests = data.requests_of("validation")
    logged = metrics(predict(trainer.model, trainer.builder, requests, logged=True))["click"]["logloss"]
    assert logged == min(e.validation["click"]["logloss"] for e in trainer.history)
    assert metrics(predict(trainer.model, trainer.builder, requests))["click"]["logloss"] > logged + 0.05


def test_positions_at_serving_change_nothing(data: Dataset) -> None:
    for heads in ({"kind": "pal"}, {"kind": "position_tower"}):
        model = registry.build(registry.parse({"name": "lr", "heads": heads}), data.fitted).eval()
        b = BatchBuilder(data, model.needs).batch(data.requests_of("test")[:50])
        assert b.train_only is not None
        turned = replace(b, train_only=b.train_only.map(lambda t: t.flip(0)))
        assert torch.equal(model(b).logits, model(turned).logits)
        assert torch.equal(model(b).logits, model(replace(b, train_only=None)).logits)


def test_the_served_graph_has_neither_positions_nor_their_weights(tmp_path: Path) -> None:
    data = tiny.dataset(tmp_path / "data", tasks=1)
    model = registry.build(registry.parse({"name": "lr", "heads": "pal"}), data.fitted)
    read = tiny.read_by_graph(model, data.fitted)
    assert any("interactions_0_weights" in name for name in read)
    assert not any("seen" in name for name in read)
    assert not any("train_only" in i.name for i in graph_inputs(data.fitted))


def test_sampling_weighs_rows_where_no_offset_is_right(data: Dataset) -> None:
    """Half of the negatives gone: the product's odds are not moved by a constant, so what is kept weighs double."""
    options = replace(DENSE, sampling=Sampling(negatives=0.5), epochs=1)
    for heads, offset in (("pal", 0.0), ("tasks", math.log(2)), ("position_tower", math.log(2))):
        sampled = Trainer(registry.parse({"name": "lr", "heads": heads}), data, options).sampled
        assert sampled is not None
        assert float(sampled.offset[0]) == pytest.approx(offset)
        assert bool(sampled.weighted[0]) == (offset == 0)


# ------------------------------------------------------------------------------------------------ a default


@pytest.fixture(scope="module")
def feature_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The position as an input."""
    folder = tmp_path_factory.mktemp("feature")
    small = positions(PositionOptions(requests=2_000, items=40))
    small.samples.write_parquet(folder / "samples.parquet")
    recipe = {**small.recipe, "data": {"samples": "samples.parquet", **small.recipe["data"]}}
    recipe["feature"] = [{k: v for k, v in f.items() if k != "use"} for f in recipe["feature"]]
    run(Recipe.parse(recipe, folder), folder / "run")
    return Run.open(folder / "run")


def test_holding_the_position_equals_a_log_in_which_all_stood_there(feature_run: Run) -> None:
    found = {d.value: d.metrics["click"] for d in sweep(feature_run, "position", split="test")}
    assert list(found) == [LOGGED, *(str(k) for k in range(1, 11))]
    assert found[LOGGED]["auc"].value == pytest.approx(feature_run.metrics()["test"]["click"]["auc"])
    # a linear model: another position is another constant, so the order of rows is one and the same
    assert len({round(found[str(k)]["auc"].value, 12) for k in range(1, 11)}) == 1
    assert found[LOGGED]["auc"].value > found["1"]["auc"].value + 0.02
    calibration = [found[str(k)]["calibration"].value for k in range(1, 11)]
    assert calibration[0] > calibration[9]  # held at the top all rows look better than further down
    trainer, data = feature_run.trainer(), feature_run.dataset
    requests = data.requests_of("test")
    b = BatchBuilder(data, trainer.model.needs).batch(requests)
    ids = b.candidate.ids.clone()
    ids[:, 1] = data.encoder.tables["position"].lookup("3")
    logits = trainer.model.eval()(replace(b, candidate=replace(b.candidate, ids=ids))).logits[:, 0].detach()
    y = b.labels[:, 0]
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, y)
    assert found["3"]["logloss"].value == pytest.approx(float(loss), rel=1e-5)


def test_requests_without_times_are_scored_from_files(feature_run: Run) -> None:
    samples, _ = feature_run.recipe.sources()
    logits = np.concatenate([batch.logits for batch in FreshScorer(feature_run).batches(samples)])
    stored = feature_run.predictions("test")
    np.testing.assert_allclose(logits[stored.rows], stored.logits, rtol=1e-6)


def test_the_verb_defaults(feature_run: Run) -> None:
    shown = CliRunner().invoke(
        verbs(), ["defaults", str(feature_run.folder), "position", "--value", "1", "--value", "5"]
    )
    assert shown.exit_code == 0, shown.output
    assert "as logged" in shown.output
    assert "validation rows" in shown.output
    with pytest.raises(UserError, match=r"'positon' is no input with one id per row.*did you mean 'position'"):
        sweep(feature_run, "positon")
    with pytest.raises(UserError, match=r"run: value '11' is none of 'position' in the training rows; did you mean"):
        sweep(feature_run, "position", ["1", "11"], advance=pytest.fail)  # nothing is scored before
    assert [d.value for d in sweep(feature_run, "position", ["2", "2"])] == [LOGGED, "2"]


def test_what_cannot_be_held_or_judged_is_told(tmp_path: Path) -> None:
    """A feature that is served without, a hash bucket that no row fell into, a split without rows."""
    small = positions(PositionOptions(requests=300, items=40))
    small.samples.write_parquet(tmp_path / "samples.parquet")
    split = {**small.recipe["data"].get("split", {}), "validation": 0.2, "test": 0.0}
    recipe = {**small.recipe, "data": {**small.recipe["data"], "samples": "samples.parquet", "split": split}}
    hashed = {"encoding": {"kind": "hashed", "buckets": 1 << 16}}
    recipe["feature"] = [{**f, **hashed} if f["name"] == "item" else f for f in recipe["feature"]]
    recipe["model"], recipe["training"] = {"name": "lr"}, {"epochs": 1, "threads": 1}
    run(Recipe.parse(recipe, tmp_path), tmp_path / "run")
    found = Run.open(tmp_path / "run")
    with pytest.raises(
        UserError, match=r"'position' is no input of this model, which is served without it.*accepted: item"
    ):
        sweep(found, "position")
    known = small.samples["item"].cast(str).unique().to_list()
    assert [d.value for d in sweep(found, "item", known[:1])] == [LOGGED, known[0]]
    with pytest.raises(UserError, match="value 'never seen' is none of 'item' in the training rows"):
        sweep(found, "item", ["never seen"], advance=pytest.fail)
    with pytest.raises(UserError, match="no test rows to judge; accepted: a split that the data set has rows in"):
        sweep(found, "item", split="test", advance=pytest.fail)


def test_buckets_of_numbers_and_values_that_share_a_bucket_are_held(tmp_path: Path) -> None:
    """What stands for several values has a name that is none of them: it is held by its symbol, not looked up."""
    logs(tmp_path)
    made = table(epochs=1) | {"model": {"name": "lr"}}
    shared = {"encoding": {"kind": "hashed", "buckets": 3}}
    made["feature"] = [f | shared if f["name"] == "category" else f for f in made["feature"]]
    run(Recipe.parse(made, tmp_path), tmp_path / "run")
    found = Run.open(tmp_path / "run")
    prices, held = found.dataset.encoder.tables["price"], sweep(found, "price")
    assert [d.value for d in held] == [LOGGED, *prices.names[FIRST:]]
    again = sweep(found, "price", [prices.names[FIRST], "1e9"])
    assert repr(again[1]) == repr(held[1])  # by its name,
    assert repr(again[2].metrics) == repr(held[-1].metrics)  # and by a number in it
    with pytest.raises(UserError, match=r"value 'dear' is none of 'price' in the training rows; accepted: '\[-inf, "):
        sweep(found, "price", ["dear"])
    together = next(d for d in sweep(found, "category") if " | " in d.value)
    (each,) = sweep(found, "category", [together.value.split(" | ")[0]])[1:]
    assert repr(together.metrics) == repr(each.metrics)
