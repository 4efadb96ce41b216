"""From a trained model to scores without torch: torch.export, ONNX, onnxruntime, fed by the runtime's encoder and profiles."""

from __future__ import annotations

import functools
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest
import tiny
import torch
from torch import Tensor
from torch.onnx._internal.exporter._registration import ONNXRegistry

from finerank.data.batch import Batch
from finerank.data.builder import BatchBuilder
from finerank.data.dataset import Dataset
from finerank.data.order import Budget
from finerank.data.prepare import prepare
from finerank.data.split import Split
from finerank.errors import UserError
from finerank.export.bundle import write_bundle
from finerank.export.graph import example_batch, exported, flatten, graph_inputs
from finerank.layers.activation import Dice
from finerank.models import registry
from finerank.models.composition import Model, Needs
from finerank.models.whole_chain import WholeChain
from finerank.runtime.link import predicted
from finerank.runtime.manifest import MANIFEST, file_facts
from finerank.runtime.profiles import Past, Profiles
from finerank.runtime.scorer import Query, Scorer, Scores
from finerank.schema import OOV, Categorical, Cross, Growing, Hashed, History, MultiValued, Numeric, Schema, Task
from finerank.training.evaluate import predict
from finerank.training.loop import Trainer
from finerank.training.options import Adam, TrainingOptions
from finerank.training.stages import after_stages

MICROSECONDS = 1_000_000
CLOSE = {"rtol": 1e-6, "atol": 1e-5}  # logits reach 50 here, where eight steps of float32 are 3e-5


@pytest.fixture(autouse=True, scope="module")
def _no_traces() -> None:
    """torch traces an export in thousands of records as soon as its trace logger has handlers; pytest gives it some,
    because it does not propagate."""
    traces = logging.getLogger("torch.__trace")
    traces.handlers, traces.propagate = [], True


@pytest.fixture(autouse=True, scope="module")
def _one_registry() -> Iterator[None]:
    """torch reads its ONNX operators anew for every export, which is a tenth of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield


@dataclass(frozen=True)
class World:
    """A data set and the raw log it was made of."""

    data: Dataset
    samples: pl.DataFrame
    events: pl.DataFrame


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, World]:
    folder = tmp_path_factory.mktemp("worlds")
    return {
        tasks: World(tiny.dataset(folder / str(tasks), tasks=tasks, max_length=50), *tiny.frames())
        for tasks in (1, 2, 3)
    }


def trained(model: str | Mapping[str, Any], data: Dataset) -> Trainer:
    """A few steps with large strides, so that weights and moving statistics are nothing like the initial ones."""
    composition = tiny.composition(model) if isinstance(model, str) else registry.parse(model)
    stride = 0.1 if model == "autoint" else 0.05  # attention over its small vectors alone says little so soon
    options = TrainingOptions(
        epochs=2, batch=Budget(rows=32), tables=Adam(lr=stride), dense=Adam(lr=0.01), keep_memory=False, threads=1
    )
    trainer = after_stages(composition, data, options)
    trainer.fit()
    return trainer


def bundle_of(trainer: Trainer, folder: Path) -> Scorer:
    write_bundle(trainer.model, trainer.dataset.fitted, trainer.dataset.encoder, folder, trainer.row_maps)
    return Scorer.load(folder)


# ------------------------------------------------------------------------------------------------ the trip


def over_the_wire(value: object) -> Any:
    """As a server gets it."""
    return json.loads(json.dumps(value))


def replay(world: World, scorer: Scorer, split: str) -> tuple[np.ndarray, list[Query]]:
    """(rows, queries) of a split's requests, as raw values: profiles filled event by event from the whole log."""
    data, samples = world.data, world.samples
    assert (data.labels[:, 0] == samples["click"].to_numpy()).all()  # the data set keeps the log's order of rows
    profiles = Profiles(scorer.encoder)
    for event in world.events.iter_rows(named=True):
        known_at = event["known_at"] * MICROSECONDS if "known_at" in event else None
        profiles.add(event["user"], over_the_wire(event), event["time"] * MICROSECONDS, known_at, event["sequence"])
    level = {f.name: f.level for f in data.fitted.schema.features}
    queries, rows = [], []
    for r in data.requests_of(split):
        these = samples[int(data.first[r]) : int(data.first[r + 1])].to_dicts()
        head = these[0]
        request = {c: v for c, v in head.items() if level.get(c) == "request" or c.startswith("past_")}
        candidates = [{c: v for c, v in row.items() if c not in request and c != "click"} for row in these]
        past = profiles.recall(head["user"], head["time"] * MICROSECONDS, head["sequence"])
        queries.append(Query(over_the_wire(request), over_the_wire(candidates), past))
        rows.append(np.arange(data.first[r], data.first[r + 1]))
    return np.concatenate(rows), queries


def stacked(scores: list[Scores], scorer: Scorer) -> np.ndarray:
    return np.concatenate([np.column_stack([s.logits[h.name] for h in scorer.heads]) for s in scores])


def comparable(logits: np.ndarray, model: Model) -> np.ndarray:
    """The logits, but probabilities where a head is a quotient of two: near 1 its logit magnifies the last digit of either."""
    out = np.array(logits)
    if isinstance(model.head, WholeChain) and model.head.options.conditional == "ratio":
        quotients = [i for i, head in enumerate(model.heads) if not head.trained]
        out[:, quotients] = 1 / (1 + np.exp(-out[:, quotients]))
    return out


def check_raw_values_give_the_offline_logits(world: World, trainer: Trainer, scorer: Scorer) -> None:
    """For every row of the test split, request by request and all at once."""
    data = world.data
    offline = predict(trainer.model, trainer.builder, data.requests_of("test"))
    rows, queries = replay(world, scorer, "test")
    assert (rows == offline.rows).all()
    alone = [scorer.score(q.request, q.candidates, q.histories) for q in queries]
    together = scorer.score_many(queries)
    expected = comparable(offline.logits, trainer.model)
    np.testing.assert_allclose(comparable(stacked(alone, scorer), trainer.model), expected, **CLOSE)
    np.testing.assert_allclose(comparable(stacked(together, scorer), trainer.model), expected, **CLOSE)
    assert np.ptp(offline.logits[:, 0]) > 0.3  # they say something
    for key in trainer.model.attends:
        assert sum(s.attention[key].size for s in alone) > 20
        check_attention(key, trainer, data.requests_of("test"), together)


def check_attention(key: str, trainer: Trainer, requests: np.ndarray, scores: list[Scores]) -> None:
    """By (candidate, event): looked up pair by pair."""
    with torch.no_grad():
        batch = trainer.builder.batch(requests)
        eager = trainer.model.eval()(batch).attention[key].numpy()
    name = trainer.model.attends[key]
    pairs, history = batch.pairs[name], batch.histories[name]
    events = range(len(eager)) if pairs.event is None else pairs.event.tolist()
    first_row = np.searchsorted(batch.request_of.numpy(), np.arange(batch.R))
    for p, (n, t) in enumerate(zip(pairs.candidate.tolist(), events, strict=True)):
        r = int(batch.request_of[n])
        found = scores[r].attention[key]
        assert found.shape == (int((batch.request_of == r).sum()), int(history.lengths[r]))
        assert found[n - first_row[r], int(history.positions[t])] == pytest.approx(eager[p], abs=1e-5)


# ------------------------------------------------------------------------------------------------ every model


def out_of_vocabulary(batch: Batch) -> Batch:
    def unknown(block: Any) -> Any:
        lists = {k: replace(v, ids=torch.full_like(v.ids, OOV)) for k, v in block.lists.items()}
        return replace(block, ids=torch.full_like(block.ids, OOV), lists=lists)

    histories = {k: replace(h, events=unknown(h.events)) for k, h in batch.histories.items()}
    return replace(batch, request=unknown(batch.request), candidate=unknown(batch.candidate), histories=histories)


def shapes(data: Dataset) -> dict[str, Batch]:
    fitted = data.fitted
    return {
        "the example": example_batch(fitted),
        "one candidate": example_batch(fitted, (1,), (3,), seed=1),
        "one candidate, one event": example_batch(fitted, (1,), (1,), seed=2),
        "empty history": example_batch(fitted, (3,), (0,), seed=3),
        "one candidate, empty history": example_batch(fitted, (1,), (0,), seed=4),
        "one request": example_batch(fitted, (7,), (5,), seed=5),
        "many requests of one candidate": example_batch(fitted, (1,) * 40, tuple(range(40)), seed=6),
        "many requests, some empty": example_batch(fitted, (3, 1, 5, 2) * 8, (0, 9, 1, 50) * 8, seed=7),
        "300 candidates, history at its longest": example_batch(fitted, (300,), (50,), seed=8),
        "nothing known": out_of_vocabulary(example_batch(fitted, (4, 2), (6, 3), seed=9)),
        "a real batch": BatchBuilder(data, Needs(pairs=frozenset(fitted.histories))).batch(np.arange(data.requests)),
    }


def check_graphs_equal_eager(model: Model, data: Dataset, program: Any, scorer: Scorer) -> None:
    """torch.export's program and onnxruntime, at sizes that the exporter did not see."""
    run = program.module()
    names = [i.name for i in scorer.manifest.inputs]
    for case, batch in shapes(data).items():
        feed = flatten(batch, data.fitted)
        with torch.no_grad():
            out = model.eval()(batch)
            found = run(*feed.values())
        ran = scorer._session.run(None, {name: feed[name].numpy() for name in names})
        expected: list[Tensor] = [out.logits, *(out.attention[key] for key in sorted(model.attends))]
        assert len(found) == len(ran) == len(expected)
        for i, (a, b, c) in enumerate(zip(expected, found, ran, strict=True)):
            wanted, torchs, onnxs = (v if i else comparable(v, model) for v in (a.numpy(), b.numpy(), c))
            np.testing.assert_allclose(torchs, wanted, err_msg=f"torch.export, {case}", **CLOSE)
            np.testing.assert_allclose(onnxs, wanted, err_msg=f"onnxruntime, {case}", **CLOSE)


def nodes_of(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    out = []
    for node in graph.node:
        out.append(node)
        for attribute in node.attribute:
            out += nodes_of(attribute.g) if attribute.HasField("g") else []
    return out


def check_graph_is_plain(folder: Path, scorer: Scorer, data: Dataset) -> None:
    proto = onnx.load(folder / "model.onnx", load_external_data=False)
    graph = proto.graph
    declared = {i.name: i for i in graph_inputs(data.fitted)}
    nodes = nodes_of(graph)
    read = {name for node in nodes for name in node.input}
    assert [i.name for i in graph.input] == [i.name for i in scorer.manifest.inputs]
    assert [i.name for i in graph.input] == [n for n in declared if n in read]  # no input without a reader, in order
    for value in graph.input:
        assert value.type.HasField("tensor_type")  # no maps, no sequences
        spec = declared[value.name]
        kinds = {"int64": onnx.TensorProto.INT64, "float32": onnx.TensorProto.FLOAT}
        assert value.type.tensor_type.elem_type == kinds[spec.dtype]
        for axis, dim in zip(spec.axes, value.type.tensor_type.shape.dim, strict=True):
            assert dim.dim_value == axis if isinstance(axis, int) else dim.dim_param
    assert {o.domain for o in proto.opset_import} == {""}
    assert {n.domain for n in nodes} == {""}
    assert not proto.functions
    assert "PRelu" not in {n.op_type for n in nodes}
    assert sys.prefix.encode() not in proto.SerializeToString()  # no paths of the machine that wrote it
    assert b".py" not in proto.SerializeToString()


Text = pytest.CaptureFixture[str]


def check_the_trip(
    trainer: Trainer, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Text
) -> Scorer:
    for module in trainer.model.modules():
        assert not isinstance(module, Dice) or float(module.mean.abs().sum()) > 0  # real moving statistics
    programs = []

    def kept(*args: Any) -> Any:
        programs.append(exported(*args))
        return programs[-1]

    monkeypatch.setattr("finerank.export.onnx.exported", kept)  # an export is dear: one serves all checks
    scorer = bundle_of(trainer, tmp_path / "bundle")
    assert capfd.readouterr() == ("", "")
    check_graph_is_plain(tmp_path / "bundle", scorer, world.data)
    check_graphs_equal_eager(trainer.model, world.data, programs[0], scorer)
    check_raw_values_give_the_offline_logits(world, trainer, scorer)
    return scorer


@pytest.mark.parametrize("name", registry.names())
def test_every_model_makes_the_trip(
    name: str, worlds: dict[int, World], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Text
) -> None:
    """The exported graph and onnxruntime give the logits of the trained model, from raw values and for batches of any size."""
    world = worlds[registry.composition(name).least_tasks]
    scorer = check_the_trip(trained(name, world.data), world, tmp_path, monkeypatch, capfd)
    assert scorer.manifest.composition["interactions"]  # what it was built from, with what stages decided
    if name == "lr":
        assert not any(i.name.startswith("clicks.") for i in scorer.manifest.inputs)


SMALL = {"hidden": [8]}
VARIANTS: dict[str, dict[str, Any]] = {
    "two units": {
        "pairs": "item#clicks.item|tags+category#clicks",
        "entries": 2,
        "recency": "add",
        "decay": 9_000.0,
        "unit": SMALL | {"softmax": True, "activation": "dice"},
    },
    "outer and inner": {"unit": SMALL | {"inputs": ["outer", "inner", "key"]}, "recency": "context"},
    "a loop": {"mode": "separate", "share": "loop", "unit": SMALL, "rework": True, "decay": 9_000.0},
    "bilinear": {"unit": {"kind": "bilinear", "softmax": True}, "also": ["sum", "sum_product", "product"]},
    "cosine": {"unit": {"kind": "cosine"}},
    "dot": {"unit": {"kind": "dot", "softmax": True}, "entries": 3},
}
QUICK = ["two units"]


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in VARIANTS])
def test_every_way_of_attending_makes_the_trip(
    name: str, worlds: dict[int, World], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Text
) -> None:
    """Also the ages in microseconds and the weights of several units over one history."""
    representation = VARIANTS[name] | {"embedding": {"width": 4}}
    table = {"name": "din", "representation": representation, "interactions": [{"kind": "tower", "hidden": [8]}]}
    scorer = check_the_trip(trained(table, worlds[1].data), worlds[1], tmp_path, monkeypatch, capfd)
    assert ("clicks.ages" in {i.name for i in scorer.manifest.inputs}) == ("decay" in VARIANTS[name])
    if "pairs" in VARIANTS[name]:
        assert scorer.manifest.outputs == ("logits", "clicks.item.attention", "clicks.tags+category.attention")


# ------------------------------------------------------------------------------------------------ little worlds

ITEM = (Categorical(name="item", level="candidate"), MultiValued(name="tags", level="candidate"))
NUMBERS = (Numeric(name="price", level="candidate", transform="none"), Numeric(name="position", level="candidate"))
CLICKS = (History(name="clicks", fields=("item",), max_length=5),)
LITTLE: dict[str, tuple[str, tuple[Any, ...], tuple[History, ...]]] = {
    "neither request nor past": ("deepfm", (*ITEM, NUMBERS[0]), ()),
    "pairs of one side": ("fwfm", ITEM, ()),
    "draws of one side": ("fpenn", ITEM, ()),
    "one id": ("lr", ITEM[:1], ()),
    "numbers alone": ("dcn", NUMBERS, ()),
    "no request": ("din", ITEM, CLICKS),
}


@pytest.mark.parametrize("name", [n if "side" in n else pytest.param(n, marks=pytest.mark.slow) for n in LITTLE])
def test_schemas_that_lack_a_level_make_the_trip(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Text
) -> None:
    """Nothing is given per request, and its number of rows has to come from elsewhere."""
    model, features, histories = LITTLE[name]
    samples, events = tiny.frames()
    schema = Schema(features=features, histories=histories, tasks=(Task(name="click"),))
    log = events.lazy() if histories else None
    data = prepare(tmp_path / "data", schema, samples.lazy(), log, tiny.KEYS, Split(validation=0.2, test=0.2))
    scorer = check_the_trip(trained(model, data), World(data, samples, events), tmp_path, monkeypatch, capfd)
    assert not [i.name for i in scorer.manifest.inputs if i.name.startswith("request.")]


# ------------------------------------------------------------------------------------------------ an odder world


def test_attention_of_separate_networks_is_served_by_history_and_output(
    worlds: dict[int, World], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Text
) -> None:
    model = {"name": "din", "representation": {"unit": SMALL}, "separate": True}
    scorer = check_the_trip(trained(model, worlds[2].data), worlds[2], tmp_path, monkeypatch, capfd)
    assert scorer.manifest.outputs == ("logits", "clicks.click.attention", "clicks.conversion.attention")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Growing tables too small for all, weighted lists, numbers in the past, file-order ties, late events, events of
    another kind, a history that is list columns, a cross of request and candidate, a train-only column named like an input."""
    samples, events = tiny.frames(90, seed=3)
    past = "i3^i7^i5^i1^i9"
    samples = samples.with_columns(
        tag_weights=pl.col("tags").list.eval(pl.int_range(pl.len()) + 0.5),
        past_items=pl.Series([None if r % 5 == 0 else past[: r % 4 * 3].strip("^") for r in samples["request"]]),
    )
    events = events.with_columns(
        tag_weights=pl.col("tags").list.eval(pl.int_range(pl.len()) + 0.25),
        known_at=pl.col("time") + pl.col("sequence") % 3 * 1_500,
        kind=pl.when(pl.col("sequence") % 5 == 0).then(pl.lit("view")).otherwise(pl.lit("click")),
    )
    schema = Schema(
        features=(
            Categorical(name="user", level="request", encoding=Growing(capacity=6, admit_after=2)),
            Categorical(name="country", level="request"),
            Categorical(name="item", level="candidate", encoding=Growing(capacity=15, admit_after=3)),
            MultiValued(name="tags", level="candidate", weights="tag_weights", encoding=Growing(capacity=5)),
            Numeric(name="price", level="candidate", transform="log1p"),
            Cross(name="country_category", level="candidate", of=("country", "category"), encoding=Hashed(buckets=20)),
            Categorical(name="ids", level="candidate", use="train_only", column="position"),
            MultiValued(name="request_of", level="candidate", use="train_only", column="interests"),
        ),
        histories=(
            History(
                name="clicks",
                fields=("item", "tags", "price"),
                where={"kind": "click"},
                max_length=4,
                ties="file_order",
            ),
            History(name="past", fields=("item",), lists={"item": "past_items"}, separator="^", max_length=2),
        ),
        tasks=(Task(name="click"),),
    )
    keys = replace(tiny.KEYS, known_at="known_at")
    folder = tmp_path_factory.mktemp("odd") / "data"
    data = prepare(folder, schema, samples.lazy(), events.lazy(), keys, Split(validation=0.2, test=0.3))
    return World(data, samples, events)


@pytest.fixture(scope="module")
def odd_trip(odd: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, Path]:
    trainer = trained("din", odd.data)
    folder = tmp_path_factory.mktemp("odd") / "bundle"
    trainer.model.train()
    bundle_of(trainer, folder)
    assert all(module.training for module in trainer.model.modules())  # left as it was
    return trainer, folder


def test_growing_tables_lists_and_late_events_make_the_trip(odd: World, odd_trip: tuple[Trainer, Path]) -> None:
    trainer, folder = odd_trip
    scorer = Scorer.load(folder)
    assert scorer.manifest.growing == ("user", "item", "tags")
    table = trainer.row_maps["item"]
    symbols = np.arange(odd.data.encoder.tables["item"].size)
    assert (table.rows_of(symbols) == OOV).sum() > 3  # some have no row,
    assert (table.rows_of(symbols) != symbols).sum() > (table.rows_of(symbols) == OOV).sum()  # and rows are not symbols
    check_raw_values_give_the_offline_logits(odd, trainer, scorer)


ODD: dict[str, dict[str, Any]] = {
    "hstu": {},
    "hstu, actions added": {"representation": {"actions": "added"}},
    "sim": {},
    "sim_soft": {"representation": {"top": 2, "recent": 2}},
    "bst": {
        "representation": {"blocks": 2, "heads": 3, "dropout": 0.0, "embedding": {"width": 4}},
        "interactions": [{"kind": "tower", "hidden": [8]}],  # a large one says little after so few steps
    },
    "dien": {"representation": {"also": ["sum", "sum_product"]}},
    "din": {"representation": {"mode": "separate", "recency": "add", "unit": {"kind": "dot"}}},
    "base": {"representation": {"pooling": "mean"}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ODD)
def test_actions_and_two_pasts_make_the_trip(name: str, odd: World, tmp_path: Path) -> None:
    """Events with a number that the candidate's pair has not: HSTU's items and actions take turns; SIM reads two histories,
    one of them without times."""
    table = {"name": name.partition(",")[0]} | ODD[name]
    trainer = trained(table, odd.data)
    check_raw_values_give_the_offline_logits(odd, trainer, bundle_of(trainer, tmp_path / "bundle"))


def test_train_only_columns_do_not_reach_the_graph(odd: World, odd_trip: tuple[Trainer, Path]) -> None:
    scorer = Scorer.load(odd_trip[1])
    names = [i.name for i in scorer.manifest.inputs]
    assert not [n for n in names if "candidate.request_of" in n]
    assert next(i for i in scorer.manifest.inputs if i.name == "candidate.ids").axes == ("N", 2)  # item, cross
    _, (query, *_) = replay(odd, scorer, "test")
    bare = [{c: v for c, v in row.items() if c not in ("position", "interests")} for row in query.candidates]
    with_them = scorer.score(query.request, query.candidates, query.histories)
    without = scorer.score(query.request, bare, query.histories)
    assert (with_them.logits["click"] == without.logits["click"]).all()


def test_a_second_feature_over_a_hidden_column_is_refused(
    odd: World, odd_trip: tuple[Trainer, Path], tmp_path: Path
) -> None:
    trainer, _ = odd_trip
    features = (*odd.data.fitted.schema.features, Numeric(name="leak", level="candidate", column="position"))
    fitted = replace(odd.data.fitted, schema=replace(odd.data.fitted.schema, features=features))
    with pytest.raises(UserError, match="'leak' reads the column 'position', which 'ids' keeps out of serving"):
        write_bundle(trainer.model, fitted, odd.data.encoder, tmp_path / "bundle", trainer.row_maps)
    assert not list(tmp_path.iterdir())


def test_a_growing_table_needs_its_map(odd: World, odd_trip: tuple[Trainer, Path], tmp_path: Path) -> None:
    maps = {name: m for name, m in odd_trip[0].row_maps.items() if name != "tags"}
    with pytest.raises(UserError, match="no row map for the growing table 'tags'"):
        write_bundle(odd_trip[0].model, odd.data.fitted, odd.data.encoder, tmp_path / "bundle", maps)


def test_history_longer_than_declared_is_cut_to_the_most_recent(odd: World, odd_trip: tuple[Trainer, Path]) -> None:
    scorer = Scorer.load(odd_trip[1])
    rows = [e for e in odd.events.to_dicts() if e["kind"] == "click"][:7]
    ages = np.arange(7, 0, -1) * 86_400 * MICROSECONDS
    long = Past(scorer.encoder.events("clicks", rows), ages)
    short = Past(scorer.encoder.events("clicks", rows[-4:]), ages[-4:])
    candidates = [{"item": "i1", "category": 2, "price": 3.0}, {"item": "i2"}]
    a, b = (scorer.score({"user": "u1", "country": "A"}, candidates, {"clicks": past}) for past in (long, short))
    assert (a.logits["click"] == b.logits["click"]).all()
    assert a.attention["clicks"].shape == (2, 4)
    assert (a.logits["click"] != scorer.score({"user": "u1", "country": "A"}, candidates).logits["click"]).all()


def test_odd_requests(odd_trip: tuple[Trainer, Path]) -> None:
    scorer = Scorer.load(odd_trip[1])
    empty = scorer.score({"user": "u1"}, [])
    assert empty.logits["click"].shape == (0,)
    assert scorer.score_many([]) == []
    some = scorer.score_many([Query({}, []), Query({"user": "u1"}, [{"item": "i1"}]), Query({}, [])])
    assert [len(s.logits["click"]) for s in some] == [0, 1, 0]
    alone = scorer.score({"user": "u1"}, [{"item": "i1"}])
    np.testing.assert_allclose(some[1].logits["click"], alone.logits["click"], **CLOSE)
    with pytest.raises(UserError, match="histories: 'click' is not declared; did you mean 'clicks'"):
        scorer.score({}, [{}], {"click": Past(scorer.encoder.events("clicks", []), np.empty(0, np.int64))})
    with pytest.raises(UserError, match="history 'past': column 'past_items': got 7"):
        scorer.score({"past_items": 7}, [{}])
    with pytest.raises(UserError, match="candidate 1: feature 'price'"):
        scorer.score({}, [{}, {"price": "dear"}])


# ------------------------------------------------------------------------------------------------ the bundle


@pytest.mark.parametrize("time", [None, "now", 3.5, float("nan"), True])
def test_an_event_without_a_time_is_refused(time: Any, odd: World) -> None:
    """A null that passed for a number would be an age of centuries."""
    profiles = Profiles(odd.data.encoder)
    with pytest.raises(UserError, match=r"profiles: time = .*; accepted: a whole number, of times in microseconds"):
        profiles.add("u1", {"kind": "click", "item": "i1"}, time)
    with pytest.raises(UserError, match="profiles: time = "):
        profiles.recall("u1", time)
    with pytest.raises(UserError, match="profiles: sequence = 'last'"):
        profiles.add("u1", {"kind": "click", "item": "i1"}, 5, sequence="last")  # type: ignore[arg-type]
    profiles.add("u1", {"kind": "click", "item": "i1"}, int(np.int64(5)))
    assert len(profiles.recall("u1", np.int64(9))["clicks"].ages) == 1  # type: ignore[arg-type]


def test_scorer_needs_neither_torch_nor_polars(odd: World, odd_trip: tuple[Trainer, Path]) -> None:
    """In a fresh interpreter, fed with events and a request as JSON."""
    scorer = Scorer.load(odd_trip[1])
    requests = odd.data.requests_of("test")
    query = max(replay(odd, scorer, "test")[1], key=lambda q: len(q.histories["clicks"].events))
    time = int(odd.data.time[requests].max())
    events = over_the_wire(odd.events.filter(pl.col("user") == query.request["user"]).to_dicts())
    code = (
        "import json, sys\n"
        "from finerank.runtime.profiles import Profiles\n"
        "from finerank.runtime.scorer import Scorer\n"
        "folder, request, candidates, events, time = json.load(sys.stdin)\n"
        "scorer = Scorer.load(folder)\n"
        "profiles = Profiles(scorer.encoder)\n"
        "for e in events:\n"
        "    profiles.add(e['user'], e, e['time'] * 10**6, e['known_at'] * 10**6, e['sequence'])\n"
        "scores = scorer.score(request, candidates, profiles.recall(request['user'], time))\n"
        "heavy = {'torch', 'polars', 'pyarrow', 'onnx', 'onnxscript', 'onnx_ir', 'pandas'} & set(sys.modules)\n"
        "print(json.dumps([scores.logits['click'].tolist(), scores.attention['clicks'].shape, sorted(heavy)]))\n"
    )
    given = json.dumps([str(odd_trip[1]), query.request, query.candidates, events, time])
    done = subprocess.run(
        [sys.executable, "-c", code], input=given, capture_output=True, text=True, timeout=60, check=True
    )
    logits, shape, heavy = json.loads(done.stdout)
    assert heavy == []
    assert done.stderr == ""
    profiles = Profiles(scorer.encoder)
    for e in events:
        profiles.add(e["user"], e, e["time"] * MICROSECONDS, e["known_at"] * MICROSECONDS, e["sequence"])
    here = scorer.score(query.request, query.candidates, profiles.recall(query.request["user"], time))
    np.testing.assert_allclose(logits, here.logits["click"], **CLOSE)
    assert tuple(shape) == here.attention["clicks"].shape == (len(query.candidates), 4)


def test_manifest_says_what_a_server_must_know(odd_trip: tuple[Trainer, Path]) -> None:
    manifest = Scorer.load(odd_trip[1]).manifest
    assert [(h.name, h.task, h.link, h.space, h.trained) for h in manifest.heads] == [
        ("click", "click", "sigmoid", "own", True)
    ]
    assert manifest.outputs == ("logits", "clicks.attention", "past.attention")
    assert manifest.histories["clicks"].max_length == 4
    assert manifest.histories["clicks"].ties == "file_order"
    assert manifest.histories["clicks"].fields == ("item", "tags", "price")
    assert manifest.versions["torch"] == torch.__version__
    on_disk = {p.relative_to(odd_trip[1]).as_posix() for p in odd_trip[1].rglob("*") if p.is_file()}
    assert set(manifest.files) == on_disk - {MANIFEST}


def damaged(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[:-2])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize("how", ["missing", "truncated", "altered"])
def test_a_damaged_file_is_named(how: str, odd_trip: tuple[Trainer, Path], tmp_path: Path) -> None:
    said = {"missing": "no such file", "truncated": "bytes, not", "altered": "was altered"}[how]
    for i, name in enumerate(Scorer.load(odd_trip[1]).manifest.files):
        folder = shutil.copytree(odd_trip[1], tmp_path / str(i))
        damaged(folder / name, how)
        with pytest.raises(UserError, match=rf"{i}/{name}: .*{said}.*export the run again"):
            Scorer.load(folder)
    folder = shutil.copytree(odd_trip[1], tmp_path / "manifest")
    damaged(folder / MANIFEST, how)
    with pytest.raises(
        UserError, match="no bundle here" if how == "missing" else "manifest.json: truncated or altered"
    ):
        Scorer.load(folder)


def test_an_encoder_of_another_schema_is_refused(
    odd_trip: tuple[Trainer, Path], worlds: dict[int, World], tmp_path: Path
) -> None:
    """Even where every hash is right."""
    from finerank.runtime.symbols import read_json, write_json

    folder = shutil.copytree(odd_trip[1], tmp_path / "bundle")
    shutil.rmtree(folder / "encoder")
    worlds[1].data.encoder.save(folder / "encoder")
    content = read_json(folder / MANIFEST)
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST]
    content["files"] = {p.relative_to(folder).as_posix(): vars(file_facts(p)) for p in files}
    write_json(folder / MANIFEST, content)
    with pytest.raises(UserError, match="not of one schema; export the run again"):
        Scorer.load(folder)


def test_a_failed_export_leaves_nothing(
    odd_trip: tuple[Trainer, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, bundle = odd_trip
    data = trainer.dataset

    def full(*_: Any) -> list[str]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("finerank.export.bundle.write_onnx", full)
    with pytest.raises(OSError, match="No space left"):
        write_bundle(trainer.model, data.fitted, data.encoder, tmp_path / "bundle", trainer.row_maps)
    assert not list(tmp_path.iterdir())
    before = file_facts(bundle / MANIFEST)
    with pytest.raises(UserError, match="exists already and is not empty"):
        write_bundle(trainer.model, data.fitted, data.encoder, bundle, trainer.row_maps)
    assert file_facts(bundle / MANIFEST) == before


def test_names_that_would_meet_are_refused(odd_trip: tuple[Trainer, Path]) -> None:
    fitted = odd_trip[0].dataset.fitted
    with pytest.raises(UserError, match=r"two inputs of the graph would be named 'candidate\.ids'"):
        graph_inputs(replace(fitted, histories={"candidate": fitted.histories["clicks"]}))


def test_links() -> None:
    x = np.array([0.0, np.log(3.0), -800.0, 800.0], dtype=np.float32)
    np.testing.assert_allclose(predicted("sigmoid", x), [0.5, 0.75, 0.0, 1.0], atol=1e-7)
    np.testing.assert_allclose(predicted("exp", x[:2]), [1.0, 3.0], rtol=1e-6)
    assert (predicted("identity", x) == x).all()
