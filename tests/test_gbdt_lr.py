"""Trees in tensors against LightGBM's own leaves, the limits of the card, and who may see which rows."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import polars as pl
import pytest
import tiny
import torch

from finerank.data.builder import BatchBuilder
from finerank.data.dataset import Dataset
from finerank.data.prepare import Keys, prepare
from finerank.data.split import Split
from finerank.errors import UserError
from finerank.layers.trees import Trees, floor32, packed
from finerank.models import gbdt_lr, registry
from finerank.models.gbdt_lr import GrowTrees, Leaves, TreeInputs, grown, table_of
from finerank.schema import Growing, Numeric, Schema, Task
from finerank.training.options import FTRL, Adam, TrainingOptions
from finerank.training.stages import after_stages

LEAVES = Leaves.Options(trees=20, leaves=6, depth=4)
HOW = GrowTrees.Options(min_rows=2)
QUICK = TrainingOptions(epochs=2, keep_memory=False, threads=1, monitor="logloss")


def model(stage: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    shape = {"trees": 20, "leaves": 6, "depth": 4} | options
    return {
        "name": "gbdt_lr",
        "interactions": [{"kind": "leaves"} | shape],
        "stages": {"trees": {"min_rows": 2} | (stage or {})},
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    torch.set_num_threads(1)
    return tiny.dataset(tmp_path_factory.mktemp("data") / "one", tasks=1)


# ------------------------------------------------------------------------------------------------ leaves


def some_rows(rows: int, seed: int, missing: bool) -> np.ndarray:
    """float32 rows with many ties, zeros of either sign, tiny and vast numbers; NaN in every column or in none."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(rows, 5)).astype(np.float32)
    x[:, 1] = np.round(x[:, 1], 1)
    x[:, 2] = draw.integers(0, 3, rows)
    x[:, 3] *= np.float32(10.0) ** draw.integers(-36, 30, rows).astype(np.float32)
    x[::7, 0], x[::11, 1] = 0.0, -0.0
    if missing:
        x[draw.random(x.shape) < 0.15] = np.nan
    return x


def boosted(x: np.ndarray, seed: int = 0, **options: Any) -> Any:
    draw = np.random.default_rng(seed + 100)
    z = np.nan_to_num(np.clip(x, -3, 3))
    y = (z[:, 0] * z[:, 1] + (z[:, 2] == 1) + z[:, 3] + draw.normal(size=len(x)) > 0.5).astype(np.float32)
    return grown(x, y, np.ones(len(x), np.float32), "binary", replace(LEAVES, **options), HOW, seed)


def trees_of(booster: Any, options: Leaves.Options = LEAVES) -> tuple[Trees, dict[str, torch.Tensor]]:
    found = [t["tree_structure"] for t in booster.dump_model()["tree_info"]]
    arrays = packed(found, options.trees, options.leaves)
    trees = Trees(options.trees, options.leaves, options.depth)
    trees.load(arrays)
    return trees, arrays


def thresholds(arrays: dict[str, torch.Tensor]) -> np.ndarray:
    inner = arrays["left"] != arrays["right"]
    return arrays["threshold"][inner].numpy()


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_leaves_are_lightgbms_own_in_float32_and_float64(seed: int, missing: bool) -> None:
    x = some_rows(800, seed, missing)
    booster = boosted(x, seed)
    trees, arrays = trees_of(booster)
    rows = [some_rows(400, 10 + seed, not missing), x]
    for column in range(5):
        for at in np.unique(thresholds(arrays)):
            for value in (at, np.nextafter(at, np.float32(-np.inf)), np.nextafter(at, np.float32(np.inf))):
                row = x[:2].copy()
                row[:, column] = value
                rows.append(row)
    edges = np.full((4, 5), np.nan, np.float32)
    edges[1], edges[2], edges[3] = np.inf, -np.inf, 0.0
    tiny_ones = np.array([1e-36, -1e-36, 1e-35, -1e-35, 1.1e-35, -1.1e-35, 1e-45, -1e-45], np.float32)
    rows.append(np.repeat(tiny_ones, 5).reshape(-1, 5))
    probe = np.concatenate([*rows, edges])
    assert len(probe) > 1_500
    expected = booster.predict(probe.astype(np.float64), pred_leaf=True)
    assert np.array_equal(trees(torch.from_numpy(probe)).numpy(), expected)
    assert np.array_equal(trees.double()(torch.from_numpy(probe).double()).numpy(), expected)
    assert len(np.unique(expected)) == 6
    assert bool((arrays["left"] != arrays["right"]).sum() > 60)


def test_thresholds_are_the_greatest_float32_not_above() -> None:
    for x in (0.1, -0.1, 1 / 3, 1e300, -1e300, 1e-300, 0.0, 1.0000000180025095e-35, float("inf"), float("-inf")):
        found = floor32(x)
        assert float(found) <= x
        with np.errstate(over="ignore"):
            above = np.nextafter(found, np.float32(np.inf))
        assert float(above) > x or found == np.float32(np.inf)


def test_depth_and_leaves_bound_the_trees() -> None:
    x = some_rows(800, 0, False)
    for options in ({"leaves": 2, "depth": 1}, {"leaves": 12, "depth": 2}, {"leaves": 12, "depth": 8}):
        booster = boosted(x, 0, **options)
        made = replace(LEAVES, **options)
        trees, _ = trees_of(booster, made)
        assert np.array_equal(trees(torch.from_numpy(x)).numpy(), booster.predict(x, pred_leaf=True))


def test_trees_that_were_not_grown_are_one_leaf() -> None:
    """Rows of one kind: nothing to split on."""
    x = np.ones((50, 5), np.float32)
    booster = grown(x, np.tile([0.0, 1.0], 25), np.ones(50), "binary", LEAVES, HOW, 0)
    trees, arrays = trees_of(booster)
    assert trees(torch.from_numpy(x)).tolist() == [[0] * 20] * 50
    assert float(arrays["value"][0].abs().sum()) < 1e-6
    empty, _ = packed([], 20, 6), None
    assert {name: t.shape for name, t in empty.items()} == {name: t.shape for name, t in arrays.items()}


# ------------------------------------------------------------------------------------------------ the model


def test_exactly_one_leaf_of_each_tree_and_leaf_values_reproduce_the_boosters_margin(
    data: Dataset, tmp_path: Path
) -> None:
    trainer = after_stages(registry.parse(model()), data, QUICK, tmp_path)
    leaves = trainer.model.interactions[0]
    assert isinstance(leaves, Leaves)
    inputs = leaves.inputs
    count = len(data.requests_of("train")) // 2
    x, labels, weights = table_of(data, data.requests_of("train")[:count], inputs, None, 0)
    booster = grown(x, labels, weights, "binary", LEAVES, HOW, QUICK.seed)
    _, arrays = trees_of(booster)
    requests = np.arange(data.requests)
    everything, _, _ = table_of(data, requests, inputs, None, 0)
    builder = BatchBuilder(data, trainer.model.needs)
    batch = builder.batch(requests)
    found = leaves.trees(inputs(batch))
    assert found.shape == (data.rows, 20)  # one number a tree: one leaf, no more and no fewer
    assert bool((found >= 0).all() & (found < 6).all())
    assert np.array_equal(found.numpy(), booster.predict(everything, pred_leaf=True))
    with torch.no_grad():
        trainer.model.head.bias.zero_()  # type: ignore[operator,union-attr]
        table = next(iter(trainer.model.embeddings().values()))
        table.weight.zero_()
        table.weight[3:, 0] = arrays["value"].flatten().float()
    logits = trainer.model.eval()(batch).logits[:, 0].detach().numpy()
    np.testing.assert_allclose(logits, booster.predict(everything, raw_score=True), atol=1e-5)
    assert np.ptp(logits) > 0.5


def test_the_regression_sees_only_rows_that_the_trees_did_not(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    original = gbdt_lr.table_of

    def listening(dataset: Any, requests: np.ndarray, *rest: Any) -> Any:
        seen.append(requests)
        return original(dataset, requests, *rest)

    monkeypatch.setattr(gbdt_lr, "table_of", listening)
    trainer = after_stages(registry.parse(model({"share": 0.25})), data, QUICK)
    train = data.requests_of("train")
    assert np.array_equal(seen[0], train[: len(train) // 4])
    assert np.array_equal(trainer.requests, train[len(train) // 4 :])
    assert data.time[seen[0]].max() <= data.time[trainer.requests].min()
    assert trainer.stages is not None
    assert trainer.stages["trees"]["training_requests"] == len(seen[0])
    steps = list(trainer.feed.steps(trainer.requests, QUICK.batch))
    assert not set(np.concatenate([s.requests for s in steps])) & set(seen[0])
    history = trainer.fit()
    assert history[0].rows == int(np.diff(data.first)[trainer.requests].sum())


def test_grown_trees_are_kept_and_grown_once(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = after_stages(registry.parse(model()), data, QUICK, tmp_path)
    other = after_stages(registry.parse(model()), data, QUICK)  # in memory
    for (name, a), b in zip(first.model.named_buffers(), other.model.buffers(), strict=True):
        assert torch.equal(a, b), name
    files = {p.suffix for p in (tmp_path / "stages" / "trees").rglob("*") if p.is_file()}
    assert files == {"", ".json", ".safetensors"}  # nothing to unpickle

    def never(*_: Any) -> Any:
        raise AssertionError("grown again")

    monkeypatch.setattr(gbdt_lr, "grown", never)
    again = after_stages(registry.parse(model()), data, QUICK, tmp_path, resume=True)
    for (name, a), b in zip(first.model.named_buffers(), again.model.buffers(), strict=True):
        assert torch.equal(a, b), name
    with pytest.raises(UserError, match="was made for another run; resume with the recipe and the data"):
        after_stages(registry.parse(model({"lr": 0.2})), data, QUICK, tmp_path, resume=True)


def test_ftrl_and_raw_ids_beside_the_leaves(data: Dataset) -> None:
    both = registry.parse(model() | {"interactions": [{"kind": "leaves", "trees": 20}, "linear"]})
    trainer = after_stages(both, data, replace(QUICK, first_order=FTRL(l1=0.01)))
    trainer.fit()
    assert len(trainer.model.first_order()) == 2


def test_trees_find_what_a_regression_cannot(tmp_path: Path) -> None:
    """Label = whether two numbers agree in sign; a missing one says no. No single number says anything."""
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(2, 6_000))
    hidden = draw.random(6_000) < 0.1
    p = np.where(hidden, 0.1, np.where(a * b > 0, 0.85, 0.15))
    frame = pl.DataFrame({"a": a, "b": b, "click": (draw.random(6_000) < p).astype(np.int8)})
    frame = frame.with_columns(pl.when(pl.Series(hidden)).then(None).otherwise(pl.col("a")).alias("a"))
    numbers = tuple(Numeric(name=name, level="candidate") for name in "ab")
    schema = Schema(features=numbers, tasks=(Task(name="click"),))
    made = prepare(tmp_path, schema, frame.lazy(), None, Keys(), Split(validation=0.2, test=0.2))
    options = TrainingOptions(epochs=8, tables=Adam(lr=0.05), keep_memory=False, threads=1)
    best = {}
    for name, table in (("trees", model()), ("lr", {"name": "lr"})):
        best[name] = max(e.score for e in after_stages(registry.parse(table), made, options).fit())
    assert best["lr"] < 0.62
    assert best["trees"] > 0.82


# ------------------------------------------------------------------------------------------------ inputs


def test_inputs_are_numbers_buckets_and_indicators_of_narrow_fields(data: Dataset) -> None:
    inputs = TreeInputs(data.fitted, replace(LEAVES, max_ids=8))
    countries, categories = (data.fitted.tables[t].rows for t in ("country", "category"))
    expected = [*data.fitted.request.numbers, *(f"country = {v}" for v in range(1, countries))]
    expected += [*data.fitted.candidate.numbers, "price", *(f"category = {v}" for v in range(1, categories))]
    assert sorted(inputs.names) == sorted(expected)  # neither users, items nor crosses, nor what only training knows
    batch = BatchBuilder(data, registry.build(registry.composition("lr"), data.fitted).needs).batch(np.arange(9))
    x = dict(zip(inputs.names, inputs(batch).T.numpy(), strict=True))
    for side, block, of in (("request", batch.request, batch.request_of), ("candidate", batch.candidate, None)):
        columns = getattr(data.fitted, side)
        for j, name in enumerate(columns.numbers):
            values = block.numbers[:, j].numpy()
            assert np.array_equal(x[name], values if of is None else values[of])
        for j, (name, _) in enumerate(columns.ids):
            ids = block.ids[:, j].numpy() if of is None else block.ids[:, j].numpy()[of]
            if name == "price":
                assert np.array_equal(x[name], ids)
            for key in [key for key in x if key.startswith(f"{name} = ")]:
                assert np.array_equal(x[key], ids == int(key.rpartition(" ")[2]))
    wide = TreeInputs(data.fitted, replace(LEAVES, max_ids=8, also=("item",)))
    assert set(wide.names) - set(inputs.names) == {f"item = {v}" for v in range(1, data.fitted.tables["item"].rows)}


def test_fields_that_the_model_is_not_to_see_are_no_inputs(data: Dataset) -> None:
    narrow = registry.parse(model() | {"without": ["age", "category", "amount"]})
    trainer = after_stages(narrow, data, QUICK)
    names = trainer.model.interactions[0].inputs.names  # type: ignore[union-attr]
    assert not [n for n in names if n.split(" ")[0].rstrip("?") in ("age", "category", "amount")]
    assert len(trainer.fit()) == 2


def test_rows_without_a_weight_teach_the_trees_nothing(tmp_path: Path) -> None:
    two = tiny.dataset(tmp_path / "two", tasks=2)
    requests = two.requests_of("train")
    inputs = TreeInputs(two.fitted, LEAVES)
    _, labels, weights = table_of(two, requests, inputs, None, 1)
    rows = two.rows_of(requests)
    inside = two.weights[rows, 1] != 0
    assert len(labels) == inside.sum() < len(rows)
    assert np.array_equal(labels, two.labels[rows][inside, 1])
    assert bool((weights != 0).all())
    trainer = after_stages(registry.parse(model(task="conversion")), two, QUICK)
    trainer.fit()
    with pytest.raises(UserError, match=r"task = 'convert' is no task; did you mean 'conversion'"):
        registry.build(registry.parse(model(task="convert")), two.fitted)


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (model({"share": 1.0}), r"share = 1\.0; accepted: above 0 and below 1, for the regression needs rows"),
        (model({"share": 0.0}), r"share = 0\.0; accepted"),
        (model({"min_rows": 0}), "min_rows = 0"),
        (model({"lr": 0.0}), r"lr = 0\.0"),
        (model(leaves=1), "leaves = 1"),
        (model(trees=0), "trees = 0"),
        (model(depth=0), "depth = 0"),
    ],
)
def test_bad_options(table: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        registry.parse(table)


def test_bad_inputs(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"also = 'itm' is no field with one id; did you mean 'item'"):
        TreeInputs(data.fitted, replace(LEAVES, also=("itm",)))
    growing = tiny.dataset(tmp_path / "growing", tasks=1, rich=False, encoding=Growing(capacity=20))
    with pytest.raises(UserError, match="also = 'item' has a growing table, whose rows change their meaning"):
        TreeInputs(growing.fitted, replace(LEAVES, also=("item",)))
    with pytest.raises(UserError, match="there is no number and no id field of at most max_ids = 0 values"):
        TreeInputs(growing.fitted, replace(LEAVES, max_ids=0))


def test_too_few_requests_and_models_without_leaves(data: Dataset) -> None:
    with pytest.raises(UserError, match=r"share = 0\.01 of 36 training requests leaves none for the trees"):
        after_stages(registry.parse(model({"share": 0.01})), data, QUICK)
    with pytest.raises(
        UserError, match="stage 'trees' grows those of one interaction 'leaves', and the model has linear"
    ):
        after_stages(registry.parse({"name": "lr", "stages": ["trees"]}), data, QUICK)


def test_without_lightgbm_one_sentence_says_what_to_install(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(UserError, match=r"stage 'trees' needs LightGBM, which is not here; install finerank\[gbdt\]"):
        after_stages(registry.parse(model()), data, QUICK)
    assert lightgbm.__version__
