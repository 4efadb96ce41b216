"""Recipes: everything that can be said survives the way to TOML and back, and every mistake is named where it stands."""

from __future__ import annotations

import os
import tomllib
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_typed import drawn, exact

from finerank import schema
from finerank.cli import demo
from finerank.data.order import Budget
from finerank.data.outcomes import Amount, Conversion, Dwell, Retention
from finerank.data.positives import Negatives
from finerank.data.prepare import Keys
from finerank.data.source import scan
from finerank.data.split import Split
from finerank.errors import UserError
from finerank.models import registry
from finerank.models.base import Tower
from finerank.models.composition import Heads, Interaction, Representation
from finerank.models.dcn import DCN
from finerank.models.din import TargetInterest
from finerank.models.lr import Linear
from finerank.models.plain import EmbeddingOptions, TaskHeads
from finerank.models.registry import Composition
from finerank.recipe import DataOptions, OnlineRetail, Recipe
from finerank.training import options
from finerank.training.options import TrainingOptions
from finerank.typed import apply_overrides

FULL = """
[data]
samples = "logs/rows-*.parquet"
events = "logs/events.parquet"
keys = {request = "request", user = "user", time = "time", sequence = "sequence", time_unit = "ms"}
split = {by = "time", validation = 0.2, test = 0.1}

[[feature]]
kind = "categorical"
name = "user"
level = "request"
encoding = {kind = "growing", capacity = 500, admit_after = 2}

[[feature]]
kind = "numeric"
name = "age"
level = "request"
transform = "minmax"

[[feature]]
kind = "ranked"
name = "interests"
level = "request"
max_rank = 3
separator = "|"

[[feature]]
kind = "categorical"
name = "item"
level = "candidate"
encoding = {kind = "hashed", buckets = 1000}
dim = 8

[[feature]]
kind = "multivalued"
name = "tags"
level = "candidate"
weights = "tag_weights"
pooling = "max"

[[feature]]
kind = "bucketed"
name = "price"
level = "candidate"
cuts = [1.0, 2.5, 10.0]

[[feature]]
kind = "cross"
name = "user_item"
level = "candidate"
of = ["user", "item"]

[[feature]]
kind = "categorical"
name = "position"
level = "candidate"
use = "train_only"

[[history]]
name = "clicks"
fields = ["item", "price"]
columns = {item = "what"}
where = {kind = "click", paid = true, version = 2}
max_length = 20
delay = 3.5
ties = "file_order"

[[task]]
name = "click"

[[task]]
name = "conversion"
column = "bought"
within = "click"
weight = "worth"

[model]
heads = "tasks"

[model.representation]
kind = "target_interest"
embedding = {width = 8}
also = ["sum", "product"]

[[model.interactions]]
kind = "tower"
hidden = [32, 16]
dropout = 0.1
batch_norm = true

[[model.interactions]]
kind = "linear"
histories = true

[training]
epochs = 3
patience = 2
monitor = "gauc"
batch = {rows = 256, pairs = 10000}
tables = {kind = "adam", lr = 0.01, correction = "row"}
first_order = {kind = "ftrl", l1 = 1.0}
dense = {kind = "adagrad", lr = 0.02}
regularise = {kind = "mini_batch_aware", strength = 0.02}
clip = 5
seed = 7
"""


def full() -> dict[str, Any]:
    return tomllib.loads(FULL)


def test_a_full_recipe_by_hand() -> None:
    """What the text says is what the objects hold, word by word; a part's own defaults fill the rest."""
    recipe = Recipe.parse(full(), Path("/shop"))
    assert recipe.data == DataOptions(
        samples="/shop/logs/rows-*.parquet",
        events="/shop/logs/events.parquet",
        keys=Keys(request="request", user="user", time="time", sequence="sequence", time_unit="ms"),
        split=Split(validation=0.2, test=0.1),
    )
    assert [f.kind for f in recipe.schema.features] == (
        ["categorical", "numeric", "ranked", "categorical", "multivalued", "bucketed", "cross", "categorical"]
    )
    assert recipe.schema.feature("user") == schema.Categorical(
        name="user", level="request", encoding=schema.Growing(capacity=500, admit_after=2)
    )
    assert recipe.schema.feature("price") == schema.Bucketed(name="price", level="candidate", cuts=(1.0, 2.5, 10.0))
    assert recipe.schema.histories == (
        schema.History(
            name="clicks",
            fields=("item", "price"),
            columns={"item": "what"},
            where={"kind": "click", "paid": True, "version": 2},
            max_length=20,
            delay=3.5,
            ties="file_order",
        ),
    )
    assert recipe.schema.tasks == (
        schema.Task(name="click"),
        schema.Task(name="conversion", column="bought", within="click", weight="worth"),
    )
    assert recipe.model == Composition(
        name="custom",
        representation=TargetInterest.Options(embedding=EmbeddingOptions(width=8), also=("sum", "product")),
        interactions=(
            Tower.Options(hidden=(32, 16), dropout=0.1, batch_norm=True),
            Linear.Options(histories=True),
        ),
        heads=TaskHeads.Options(),
    )
    assert recipe.training == TrainingOptions(
        epochs=3,
        patience=2,
        monitor="gauc",
        batch=Budget(rows=256, pairs=10_000),
        tables=options.Adam(lr=0.01, correction="row"),
        first_order=options.FTRL(l1=1.0),
        dense=options.Adagrad(lr=0.02),
        regularise=options.MiniBatchAware(strength=0.02),
        clip=5.0,
        seed=7,
    )


def test_a_named_model_is_amended_not_replaced() -> None:
    table = full() | {"model": {"name": "dcn", "representation": {"embedding": {"width": 4}}}}
    model = Recipe.parse(table).model
    assert model.interactions == DCN.interactions
    assert model.representation.embedding == EmbeddingOptions(width=4, std=DCN.representation.embedding.std)
    other = Recipe.parse(table | {"model": {"name": "dcn", "representation": "target_interest"}}).model
    assert (other.name, other.representation) == ("dcn", TargetInterest.Options())


# ------------------------------------------------------------------------------------------------ there and back


def back(recipe: Recipe) -> Recipe:
    return Recipe.parse(tomllib.loads(recipe.toml()), Path("/somewhere/else"))


def test_full_recipe_and_its_overrides_come_back() -> None:
    first = Recipe.parse(full(), Path("/shop"))
    assert exact(back(first)) == exact(first)
    assert back(first).toml() == first.toml()
    changed = ["training.epochs=9", "feature.price.cuts=[3.0]", "model.interactions.0.hidden=[5]", "task.0.column=c"]
    second = Recipe.parse(apply_overrides(full(), changed), Path("/shop"))
    assert second.training.epochs == 9
    assert second.schema.feature("price") == schema.Bucketed(name="price", level="candidate", cuts=(3.0,))
    assert second.model.interactions[0] == Tower.Options(hidden=(5,), dropout=0.1, batch_norm=True)
    assert second.schema.tasks[0].column == "c"
    assert exact(back(second)) == exact(second)
    assert second.toml() != first.toml()


def of(base: Any) -> st.SearchStrategy[Any]:
    """The default options of every registered part of a sort."""
    registry.options_of(base)  # registers all
    return st.sampled_from([cls.Options() for cls in registry._parts[base].values()])


widths = st.builds(EmbeddingOptions, width=st.integers(1, 64), dim_scale=st.floats(0.1, 4), std=st.floats(0, 1))
towers = st.builds(Tower.Options, hidden=st.lists(st.integers(1, 99), max_size=3).map(tuple), batch_norm=st.booleans())
interactions = st.lists(of(Interaction) | towers, min_size=1, max_size=3, unique_by=lambda o: o.kind).map(tuple)


def widened(options: Any, width: EmbeddingOptions) -> Any:
    return replace(options, embedding=width) if hasattr(options, "embedding") else options


@st.composite
def compositions(draw: st.DrawFn) -> Composition:
    """A named model with parts changed or exchanged, or a composition of its own."""
    name = draw(st.sampled_from([*registry.names(), None]))
    base = registry.composition(name or "lr")
    changes = {
        "representation": widened(draw(st.just(base.representation) | of(Representation)), draw(widths)),
        "interactions": draw(st.just(base.interactions) | interactions),
        "heads": draw(st.just(base.heads) | of(Heads)),
    }
    if name is None:
        changes |= {"name": "custom", "paper": "", "exemptions": {}, "requires": ()}
    return replace(base, **changes)


numbers = st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(1, 10**6)
dims = st.none() | st.integers(1, 64)
encodings = (
    drawn(schema.Vocabulary, min_count=counts, max_size=st.none() | counts)
    | drawn(schema.Hashed, buckets=counts)
    | drawn(schema.Growing, capacity=counts, admit_after=counts)
)


@st.composite
def schemas(draw: st.DrawFn) -> schema.Schema:
    """The full recipe's schema with every number, word and choice drawn anew, and parts of it left out."""
    full_schema = Recipe.parse(full()).schema
    features: list[Any] = []
    for f in full_schema.features:
        given: dict[str, Any] = {"column": st.none() | st.text(min_size=1, max_size=6)}
        given |= {"encoding": encodings, "dim": dims, "max_rank": st.integers(3, 10**9), "buckets": st.integers(2, 99)}
        given |= {"transform": st.sampled_from(["none", "log1p", "standard", "minmax", "powers"])}
        given |= {"rank": st.sampled_from(["embedded", "joint", "segments", "none"]), "segments": st.just((1, 3))}
        given |= {"dim": st.none() | counts | st.sampled_from(["log2", "quarter", "quarter:8", "dcn"])}
        given |= {
            "pooling": st.sampled_from(["sum", "mean", "max"]),
            "separator": st.none() | st.text(min_size=1, max_size=2),
        }
        given |= {"cuts": st.lists(numbers, max_size=4, unique=True).map(sorted).map(tuple)}
        features.append(replace(f, **{name: draw(s) for name, s in given.items() if hasattr(f, name)}))
    used = {"item", "price", "user"}  # by the history and the cross
    kept = [f for f in features if f.name in used or draw(st.booleans())]
    history = replace(
        full_schema.histories[0],
        where=draw(
            st.dictionaries(st.text(max_size=4), st.text(max_size=4) | st.integers() | st.booleans(), max_size=3)
        ),
        max_length=draw(counts),
        delay=draw(st.floats(0, 1e9)),
        ties=draw(st.sampled_from(["strict", "file_order"])),
        age_cuts=tuple(sorted(draw(st.sets(st.integers(1, 10**9), max_size=4)))),
    )
    return schema.Schema(
        features=tuple(draw(st.permutations(kept))),
        histories=draw(st.sampled_from([(), (history,), (history, replace(history, name="again"))])),
        tasks=draw(st.sampled_from([full_schema.tasks, full_schema.tasks[:1]])),
    )


above = st.floats(0, 1e300, exclude_min=True)
adams = drawn(options.Adam, lr=above, betas=st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2), eps=above)
sgds = drawn(options.SGD, lr=above)
adagrads = drawn(options.Adagrad, lr=above, initial_accumulator=above)
ftrls = drawn(options.FTRL, **dict.fromkeys(("alpha", "beta", "l1", "l2"), above))
trainings = drawn(
    TrainingOptions,
    epochs=st.integers(1, 50),
    patience=st.integers(0, 9),
    plateau=st.floats(0, 1, exclude_min=True),
    batch=st.builds(Budget, rows=st.integers(1, 10**6), pairs=st.integers(1, 10**9)),
    tables=adams | adagrads | sgds,
    first_order=st.none() | ftrls | adams,
    dense=adams | sgds,
    regularise=st.none()
    | drawn(options.L2, strength=above)
    | drawn(options.L2InLoss, strength=above)
    | drawn(options.L2PerRow, strength=above)
    | drawn(options.MiniBatchAware, strength=above),
    clip=st.none() | st.floats(0.1, 100),
    tasks=st.none()
    | st.builds(
        options.Fixed,
        weights=st.dictionaries(st.sampled_from(["click", "a b"]), st.floats(0, 9), max_size=2),
        positives=st.dictionaries(st.sampled_from(["click", "a b"]), st.floats(0.1, 9), max_size=2),
    )
    | st.builds(options.Uncertainty, start=st.floats(-9, 9))
    | drawn(options.GradNorm, alpha=st.floats(0, 3), lr=above),
    sampling=st.none()
    | drawn(
        options.Sampling,
        negatives=st.floats(0.01, 1),
        hot_items=st.none() | drawn(options.HotItems, threshold=above, cap=st.none() | st.integers(1, 99)),
    ),
    evaluate_rows=st.integers(1, 10**6),
    save_every=st.integers(0, 10**6),
    seed=st.integers(0, 2**62),
    threads=st.none() | st.integers(1, 64),
)
paths = st.sampled_from(["a.parquet", "b/*.csv", "../up.arrow", "/absolute/c.tsv", "with space.parquet", "商品.csv"])
seconds = st.floats(1, 1e9)
wheres = st.dictionaries(st.sampled_from(["kind", "a b"]), st.sampled_from(["x", 1, True]), max_size=2)
outcome = st.sampled_from(["outcome·1", "outcome·2"])  # no feature is called so
labels = st.lists(
    drawn(Conversion, name=outcome, window=seconds, where=wheres)
    | drawn(Amount, name=outcome, window=seconds, where=wheres, cap=st.none() | seconds)
    | drawn(Dwell, name=outcome, cap=seconds, threshold=st.floats(0.1, 1), measure=st.just("log1p"), length=st.none(),
            column=st.none())
    | drawn(Retention, name=outcome, where=wheres, first=st.just(1), last=st.integers(1, 30)),
    max_size=2,
).map(tuple)  # fmt: skip
datas = st.builds(
    DataOptions,
    samples=paths,
    events=paths,
    keys=drawn(Keys),
    where=wheres,
    label=labels,
    snapshot=...,
    utc_offset=st.floats(-12, 14),
    negatives=st.none() | drawn(Negatives, count=st.integers(1, 9), power=st.floats(0, 1), label=st.just("taken·")),
    split=st.builds(Split, by=st.sampled_from(["time", "user", "column"]), validation=st.floats(0, 0.4)),
) | st.builds(DataOptions, dataset=drawn(OnlineRetail))
recipes = st.builds(Recipe, data=datas, schema=schemas(), model=compositions(), training=trainings)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(recipes)
def test_every_recipe_comes_back(recipe: Recipe) -> None:
    def facts(r: Recipe) -> str:
        return exact((r.data, r.schema, r.model, r.training))

    assert facts(back(recipe)) == facts(recipe)
    assert Recipe.parse(recipe.resolved()).resolved() == recipe.resolved()


def test_paths_mean_the_same_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe's paths start at its folder; the recipe as resolved may be moved to the run's folder and still fits."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "r.toml").write_text(FULL.replace('"logs/events', '"../events'), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    read = Recipe.read("shop/r.toml")
    assert read.data.samples == str(tmp_path / "shop" / "logs" / "rows-*.parquet")
    assert read.data.events == str(tmp_path / "events.parquet")
    (tmp_path / "run.toml").write_text(read.toml(), encoding="utf-8")
    monkeypatch.chdir(os.sep)
    assert exact(Recipe.read(tmp_path / "run.toml")) == exact(read)


def test_files_are_those_of_the_patterns(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    for name in ("rows-2.parquet", "rows-1.parquet", "other.parquet"):
        (tmp_path / "logs" / name).touch()
    found = Recipe.parse(full(), tmp_path).files()
    assert [p.name for p in found] == ["rows-1.parquet", "rows-2.parquet", "events.parquet"]


@pytest.mark.parametrize("samples", ["clicks.parquet", "**/*.parquet"])
def test_files_are_those_that_are_read_however_deep_they_lie(tmp_path: Path, samples: str) -> None:
    """A data set knows by its files whether they have changed: a folder's own time does not move with what is in it."""
    (tmp_path / "clicks.parquet" / "may").mkdir(parents=True)
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "clicks.parquet" / "may" / "1.parquet")
    assert scan(tmp_path / samples).collect().height == 1
    table = full()
    table["data"]["samples"] = samples
    del table["data"]["events"]
    found = Recipe.parse(table, tmp_path).files()
    assert found == [tmp_path / "clicks.parquet" / "may" / "1.parquet"]


# ------------------------------------------------------------------------------------------------ mistakes


def changed(path: str, value: Any) -> dict[str, Any]:
    """The full recipe with one thing set (None: removed)."""
    table: Any = deepcopy(full())
    place, (*steps, last) = table, path.split("/")
    for step in steps:
        place = place[int(step)] if isinstance(place, list) else place[step]
    key: Any = int(last) if isinstance(place, list) else last
    if value is None:
        del place[key]
    else:
        place[key] = value
    return dict(table)


KEYS = "data, feature, history, model, task, training, tune"

MISTAKES = [
    # a typo, at every depth
    ("trainin", {}, "recipe.trainin: unknown key; did you mean 'training'?"),
    ("data/sample", "x", "recipe.data.sample: unknown key; did you mean 'samples'?"),
    ("data/keys/usr", "x", "recipe.data.keys.usr: unknown key; did you mean 'user'?"),
    ("data/split/tset", 0.1, "recipe.data.split.tset: unknown key; did you mean 'test'?"),
    ("feature/3/lvel", "x", "recipe.feature[3].lvel: unknown key; did you mean 'level'?"),
    ("feature/3/encoding/bucket", 3, "recipe.feature[3].encoding.bucket: unknown key; did you mean 'buckets'?"),
    ("history/0/field", [], "recipe.history[0].field: unknown key; did you mean 'fields'?"),
    ("task/1/wthin", "click", "recipe.task[1].wthin: unknown key; did you mean 'within'?"),
    ("model/head", "tasks", "recipe.model.head: unknown key; did you mean 'heads'?"),
    ("model/representation/also_", [], "recipe.model.representation.also_: unknown key; did you mean 'also'?"),
    ("model/representation/embedding/with", 3, "recipe.model.representation.embedding.with: unknown key; did you mean"),
    ("model/interactions/0/hiden", [], "recipe.model.interactions[0].hiden: unknown key; did you mean 'hidden'?"),
    ("training/epoch", 3, "recipe.training.epoch: unknown key; did you mean 'epochs'?"),
    ("training/tables/learning", 3, "recipe.training.tables.learning: unknown key; accepted: betas, correction, eps"),
    # a word that is not one of the accepted
    ("feature/0/kind", "categorial", "recipe.feature[0].kind: got 'categorial' (string); did you mean 'categorical'?"),
    ("feature/0/kind", None, "recipe.feature[0].kind: missing; accepted: numeric, bucketed, categorical"),
    ("feature/0/level", "requests", "recipe.feature[0].level: got 'requests' (string); did you mean 'request'?"),
    (
        "feature/0/encoding/kind",
        "grow",
        "recipe.feature[0].encoding.kind: got 'grow' (string); did you mean 'growing'?",
    ),
    ("history/0/ties", "strickt", "recipe.history[0].ties: got 'strickt' (string); did you mean 'strict'?"),
    ("model/name", "dinn", "recipe.model.name = 'dinn' is not known; did you mean 'din'?"),
    ("model/representation/kind", "pooling", "recipe.model.representation.kind: got 'pooling' (string); did you mean"),
    ("model/interactions/0", "towr", "recipe.model.interactions[0].kind: got 'towr' (string); did you mean 'tower'?"),
    ("model/heads", "task", "recipe.model.heads.kind: got 'task' (string); did you mean 'tasks'?"),
    ("training/monitor", "acu", "recipe.training.monitor: got 'acu' (string); did you mean 'auc'?"),
    ("training/tables/kind", "adm", "recipe.training.tables.kind: got 'adm' (string); did you mean 'adam'?"),
    (
        "training/dense",
        {"kind": "ftrl"},
        "recipe.training.dense.kind: got 'ftrl' (string); accepted: adagrad, adam, sgd",
    ),
    ("trainng", {"epochs": 1}, "recipe.trainng: unknown key; did you mean 'training'? accepted: " + KEYS),
    ("bogus", {}, "recipe.bogus: unknown key; accepted: " + KEYS),
    ("tuna", {}, "recipe.tuna: unknown key; did you mean 'tune'? accepted: " + KEYS),
    ("modle", {"name": "din"}, "recipe.modle: unknown key; did you mean 'model'? accepted: " + KEYS),
    # a value of another type
    ("feature", {}, "recipe.feature: got {} (table); accepted: an array"),
    ("feature/1", 3, "recipe.feature[1]: got 3 (integer); accepted: a table with kind = "),
    ("feature/3/encoding/buckets", 1.5, "recipe.feature[3].encoding.buckets: got 1.5 (float); accepted: an integer"),
    ("feature/5/cuts/1", "x", "recipe.feature[5].cuts[1]: got 'x' (string); accepted: a number"),
    ("history/0/where/paid", 1.5, "recipe.history[0].where.paid: got 1.5 (float); accepted: a string or an integer or"),
    ("training/epochs", True, "recipe.training.epochs: got true (boolean); accepted: an integer"),
    ("model", 3, 'recipe.model: missing; accepted: a table, for example [model] with name = "din"'),
    ("model/name", 3, "recipe.model.name: got 3; accepted: a text, one of "),
    ("model/representation", [1], "recipe.model.representation: got [1]; accepted: the kind of a part as a text, or"),
    ("model/interactions", [], "recipe.model.interactions: got []; accepted: a list of at least one interaction"),
    # what is missing
    ("data", None, "recipe: missing data; accepted: data, feature"),
    ("feature", None, "recipe: missing feature; accepted: data, feature"),
    ("feature", [], "recipe.feature: is empty; declare at least one [[feature]]"),
    ("model", None, "recipe.model: missing; accepted: a table"),
    ("model/interactions", None, f"recipe.model: give a name ({registry.names()[0]}, "),
    ("feature/0/level", None, "recipe.feature[0]: missing level; accepted: name, level"),
    ("data/samples", None, "recipe.data: give either samples (a file) or dataset"),
    ("data/dataset", {}, "recipe.data: give either samples (a file) or dataset"),
    # what does not go together
    ("feature/1/name", "user", "recipe: schema: feature 'user' is declared twice"),
    ("task/0/name", "conversion", "recipe: schema: task 'conversion' is declared twice"),
    (
        "feature/0/column",
        "bought",
        "recipe: feature 'user': its column 'bought' is the label of task 'conversion'",
    ),
    ("history/0/fields", ["itm"], "recipe: history 'clicks': field 'itm' is no feature; did you mean 'item'?"),
    (
        "history/0/fields",
        ["item", "item"],
        "recipe.history[0]: history 'clicks': fields = ['item', 'item']; accepted: each",
    ),
    ("history/0/fields", ["user"], "recipe: history 'clicks': field 'user' is a request-level categorical; accepted"),
    ("history/0/columns", {"tags": "t"}, "recipe: history 'clicks': columns names 'tags'; accepted: item, price"),
    ("task/1/within", "clik", "recipe: task 'conversion': within = 'clik' must be a task declared before it; did you"),
    ("feature/0/table", "item", "recipe: features 'user' and 'item' share the table 'item' but not their encoding"),
    ("feature/5/law", "criteo", "recipe.feature[5]: law = 'criteo' beside given cuts; accepted: one of the two"),
    # numbers out of range
    ("feature/5/cuts", [1.0, float("inf")], "recipe.feature[5]: cuts = [1.0, inf]; accepted: rising finite numbers"),
    ("feature/5/cuts", [2.0, 1.0], "recipe.feature[5]: cuts = [2.0, 1.0]; accepted: rising finite numbers"),
    ("feature/5/law", "equal_with", "recipe.feature[5].law: got 'equal_with' (string); did you mean 'equal_width'?"),
    ("feature/3/dim", 0, "recipe.feature[3]: dim = 0; accepted: 1 or more, or a rule: log2, quarter, dcn"),
    ("feature/3/dim", "log", "recipe.feature[3]: dim = 'log'; did you mean 'log2'? accepted: dcn, log2, quarter"),
    ("feature/3/dim", "quarter:17", "recipe.feature[3]: dim = 'quarter:17'; accepted: quarter:k with 0 < k <= 16"),
    ("feature/3/dim", "dcn:2", "recipe.feature[3]: dim = 'dcn:2'; accepted: quarter:k with 0 < k <= 16; other rules"),
    ("feature/4/dim", "quarter:x", "recipe.feature[4]: dim = 'quarter:x'; accepted: quarter:k"),
    ("feature/2/rank", "segment", "recipe.feature[2].rank: got 'segment' (string); did you mean 'segments'?"),
    ("feature/2/separator", "", "recipe.feature[2]: separator is empty; accepted: the text between two values"),
    ("feature/4/separator", "", "recipe.feature[4]: separator is empty; accepted"),
    ("history/0/separator", "", "recipe.history[0]: separator is empty; accepted"),
    (
        "model/representation/embedding/dim_scale",
        0,
        "recipe.model.representation.embedding: dim_scale = 0.0; accepted: above 0",
    ),
    (
        "model/representation/embedding/std",
        -1,
        "recipe.model.representation.embedding: std = -1.0; accepted: at least 0",
    ),
    ("data/split/test", 0.9, "recipe.data.split: split: validation = 0.2, test = 0.9; accepted: shares"),
    ("training/epochs", 0, "recipe.training: epochs: got 0; accepted: whole numbers of at least 1"),
    ("training/threads", 0, "recipe.training: threads: got 0; accepted: at least 1"),
    ("training/clip", -1, "recipe.training: clip: got -1.0; accepted: a norm above 0"),
    ("training/batch/rows", 0, "recipe.training.batch: batch: rows = 0, pairs = 10000; accepted: whole numbers"),
]


@pytest.mark.parametrize(("path", "value", "message"), MISTAKES, ids=[f"{p}={v!r}"[:40] for p, v, _ in MISTAKES])
def test_a_mistake_is_named_where_it_stands(path: str, value: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        Recipe.parse(changed(path, value))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_mistyped_model_is_named_where_there_is_no_other() -> None:
    table = tomllib.loads(FULL)
    table["modle"] = table.pop("model")
    with pytest.raises(UserError, match=r"^recipe\.modle: unknown key; did you mean 'model'\? accepted: data, feature"):
        Recipe.parse(table)


@pytest.mark.parametrize("segments", [[], [0, 2], [2, 2], [3, 1], [2, 4]])
def test_segments_rise_within_the_ranks(segments: list[int]) -> None:
    table = changed("feature/2/rank", "segments")
    table["feature"][2]["segments"] = segments
    with pytest.raises(UserError) as caught:
        Recipe.parse(table)
    assert str(caught.value) == (
        f"recipe.feature[2]: segments = {segments}; accepted: rising ranks from 1 to max_rank = 3"
    )


def test_a_segment_may_not_be_named_like_another_feature() -> None:
    table = changed("feature/2/rank", "segments")
    table["feature"][2]["segments"] = [3]
    table["feature"][0]["name"] = "interests.top3"
    with pytest.raises(UserError, match=r"field 'interests\.top3' is declared twice"):
        Recipe.parse(table)


def test_a_mistake_in_a_file_or_override_names_it(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(FULL, encoding="utf-8")
    with pytest.raises(UserError, match=r"r\.toml\.training\.epochz: unknown key; did you mean 'epochs'"):
        Recipe.read(path, ["training.epochz=3"])
    with pytest.raises(UserError, match=r"--set feature\.itm\.dim=4: feature has no entry 'itm'; did you mean 'item'"):
        Recipe.read(path, ["feature.itm.dim=4"])
    path.write_text(FULL.replace("epochs = 3", "epochs = three"), encoding="utf-8")
    line = FULL.split("epochs = 3")[0].count("\n") + 1
    with pytest.raises(UserError, match=rf"r\.toml: not valid TOML: .*line {line}"):
        Recipe.read(path)


# ------------------------------------------------------------------------------------------------ shipped recipes


@pytest.mark.parametrize("name", demo.models())
def test_the_shipped_recipes_parse(name: str) -> None:
    recipe = demo.demo_recipe(name)
    assert recipe.data.dataset == OnlineRetail()
    assert recipe.model.name == name
    assert exact(back(recipe)) == exact(recipe)


def test_the_demo_compares_models_on_the_same_data() -> None:
    assert {"lr", "fm", "base", "din"} <= set(demo.models())
    assert len({str(demo.demo_recipe(name).data) + str(demo.demo_recipe(name).schema) for name in demo.models()}) == 1
