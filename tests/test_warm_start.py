"""A warm start: every row finds its value under the number that the new data give it, and nothing else moves."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import test_run
import tiny
import torch
from torch import Tensor

from finerank.cli.app import verbs
from finerank.errors import UserError
from finerank.models.composition import Model
from finerank.recipe import Recipe
from finerank.run import Run, prepared, run
from finerank.runtime.encoder import Encoder
from finerank.runtime.rows import RowMap
from finerank.training.checkpoint import Checkpoints
from finerank.training.evaluate import predict
from finerank.training.loop import Trainer
from finerank.training.warm_start import OldRun, Taken

GROWING = {"kind": "growing", "capacity": 12, "admit_after": 2}


def declared(model: dict[str, Any] | None = None, **features: dict[str, Any]) -> dict[str, Any]:
    """The tiny world's recipe; features: what to declare otherwise, by name."""
    table = test_run.table()
    table["feature"] = [f | features.get(f["name"], {}) for f in table["feature"]]
    return table | ({"model": model} if model else {})


def logs(folder: Path, shift: int = 0, seed: int = 0) -> None:
    """The tiny world with its items called i0 ..., or, `shift` on, i7 ...: then some are gone, some are new, and those
    of both have other counts and so other numbers."""
    samples, events = tiny.frames(seed=seed, requests=60)
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in (("samples", samples), ("events", events)):
        item = "i" + (frame["item"].str.slice(1).cast(pl.Int64) + shift).cast(pl.String)
        frame.with_columns(item.alias("item")).write_parquet(folder / f"{name}.parquet")


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs of two weeks, `old` and `new`, and finished runs on the first: `run`, `growing` and `lr`."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("shops")
    logs(folder / "old")
    logs(folder / "new", shift=7, seed=3)
    run(Recipe.parse(declared(), folder / "old"), folder / "run")
    run(Recipe.parse(declared(item={"encoding": GROWING}), folder / "old"), folder / "growing")
    run(Recipe.parse(declared({"name": "lr"}), folder / "old"), folder / "lr")
    return folder


def old_run(at: Path) -> OldRun:
    found = Run.open(at)
    return OldRun.of(at, found.recipe.model, found.dataset)


def begun(at: Path, week: Path, table: dict[str, Any], data: Path, **training: Any) -> tuple[Trainer, list[Taken]]:
    """A trainer on the logs of a week that has begun from the run in `at`, and what it told."""
    table = table | {"training": table["training"] | {"warm_start": str(at)} | training}
    recipe = Recipe.parse(table, week)
    trainer = Trainer(recipe.model, prepared(recipe, data), recipe.training, old=old_run(at))
    told: list[Taken] = []
    trainer.progress.warm = told.append  # type: ignore[method-assign]
    trainer.begin()
    return trainer, told


def named(model: Model, encoder: Encoder, maps: dict[str, RowMap], weight: str) -> dict[tuple[str, str], list[float]]:
    """{(table, value): row} of one weight, walked symbol by symbol."""
    out: dict[tuple[str, str], list[float]] = {}
    tables = model.embeddings()[weight]
    for table, start in tables.start.items():
        for symbol in range(encoder.tables[table].size):
            row = int(maps[table].rows_of(np.array([symbol]))[0]) if table in maps else symbol
            if symbol < 3 or row >= 3:
                out[table, encoder.tables[table].name(symbol)] = tables.weight[start + row].tolist()
    return out


def of(trainer: Trainer, weight: str) -> dict[tuple[str, str], list[float]]:
    return named(trainer.model, trainer.dataset.encoder, trainer.row_maps, weight)


def fresh(trainer: Trainer) -> Model:
    """The model as it was drawn, before anything was taken over."""
    return Trainer(trainer.composition, trainer.dataset, replace(trainer.options, warm_start=None)).model


EMBEDDINGS = "representation.embed.embedding.tables.16.weight"


def sum_of(a: list[float], b: list[float]) -> list[float]:
    return (torch.tensor(a) + torch.tensor(b)).tolist()


# ------------------------------------------------------------------------------------------------ by name


def test_every_row_goes_over_by_the_name_of_its_value(shops: Path, tmp_path: Path) -> None:
    trainer, _ = begun(shops / "run", shops / "new", declared(), tmp_path / "data", seed=77)
    before, after = of(Run.open(shops / "run").trainer(), EMBEDDINGS), of(trainer, EMBEDDINGS)
    drawn = named(fresh(trainer), trainer.dataset.encoder, {}, EMBEDDINGS)
    both, new = before.keys() & after.keys(), after.keys() - before.keys()
    items = {value for table, value in both if table == "item"}
    assert {("item", f"i{i}") for i in range(30, 37)} & new  # only in the new week
    assert len(items) > 10
    old_symbols = Run.open(shops / "run").dataset.encoder.tables["item"]
    assert [old_symbols.lookup(i) for i in sorted(items)] != [
        trainer.dataset.encoder.tables["item"].lookup(i) for i in sorted(items)
    ]
    for key in both:
        assert after[key] == before[key], key
        if key[1] != "<padding>":
            assert after[key] != drawn[key]
    for table, value in new:
        unknown = before[table, "<out of vocabulary>"]
        assert after[table, value] == sum_of(drawn[table, value], unknown), (table, value)
    assert not any(any(row) for (_, value), row in after.items() if value == "<padding>")


def test_what_was_taken_is_counted(shops: Path, tmp_path: Path) -> None:
    trainer, (told,) = begun(shops / "run", shops / "new", declared(), tmp_path / "data")
    old, new = Run.open(shops / "run").dataset, trainer.dataset
    item = next(t for t in told.tables if t.table == "item")
    there, here = (set(d.encoder.tables["item"].names[3:]) for d in (old, new))
    assert (item.there, item.here, item.found, item.why) == (len(there), len(here), len(there & here), "")
    counts = dict(zip(new.encoder.tables["item"].names, new.fitted.tables["item"].counts.tolist(), strict=True))
    known = sum(n for name, n in counts.items() if name in there & here)
    assert item.share == pytest.approx(known / sum(n for name, n in counts.items() if name in here))
    cross = next(t for t in told.tables if t.table == "country_category")
    assert (cross.there, cross.here, cross.found) == (50, 50, 50)  # hashed: bucket by bucket
    assert cross.share == 1
    price = next(
        t for t in told.tables if t.table == "price"
    )  # quantiles of other prices: only the open ends may agree
    assert price.found < price.here
    assert not told.left
    assert not told.unused
    assert not told.notes
    assert "head.bias" in told.parameters


def test_the_same_data_score_the_same_to_the_last_bit(shops: Path, tmp_path: Path) -> None:
    for name, features in (("run", {}), ("growing", {"item": {"encoding": GROWING}})):
        trainer, _ = begun(shops / name, shops / "old", declared(**features), tmp_path / name, seed=77)
        before = Run.open(shops / name).predictions("test")
        now = predict(trainer.model, trainer.builder, trainer.dataset.requests_of("test"))
        assert np.array_equal(before.logits, now.logits)


def test_growing_tables_keep_who_had_a_row_and_let_in_who_comes_often(shops: Path, tmp_path: Path) -> None:
    """Capacity 12: those of the old week stay unless newer values, seen twice and more, need the room."""
    table = declared(item={"encoding": GROWING})
    trainer, (told,) = begun(shops / "growing", shops / "new", table, tmp_path / "data")
    old = Run.open(shops / "growing").trainer()
    before, after = of(old, EMBEDDINGS), of(trainer, EMBEDDINGS)
    had, has = ({value for t, value in side if t == "item" and value[0] != "<"} for side in (before, after))
    data = trainer.dataset
    names, counts = data.encoder.tables["item"].names, data.fitted.tables["item"].counts
    met = dict.fromkeys(names, 0) | {name: int(n) for name, n in zip(names, counts, strict=False)}
    assert len(has) == 12
    stayed = had & has
    assert stayed
    assert has - had
    for value in stayed:
        assert after["item", value] == before["item", value]
    for value in has - had:
        assert met[value] >= 2
        difference = np.subtract(after["item", value], before["item", "<out of vocabulary>"])
        assert 0 < np.abs(difference).max() < 0.06  # a draw of standard deviation .01
    for value in (had & set(names)) - has:  # evicted: not met in the new week
        assert met[value] == 0
    item = next(t for t in told.tables if t.table == "item")
    assert (item.there, item.here, item.found) == (12, 12, len(stayed))


def test_a_value_below_the_threshold_keeps_the_row_it_had(shops: Path, tmp_path: Path) -> None:
    """admit_after counts from nothing here, but not for who had a row."""
    often = {"encoding": GROWING | {"capacity": 99, "admit_after": 2}}
    recipe = Recipe.parse(declared(item=often), shops / "old")
    run(recipe, tmp_path / "old")
    seldom = {"encoding": GROWING | {"capacity": 99, "admit_after": 1_000}}
    trainer, _ = begun(tmp_path / "old", shops / "new", declared(item=seldom), tmp_path / "data")
    had = {value for t, value in of(Run.open(tmp_path / "old").trainer(), EMBEDDINGS) if t == "item"}
    has = {value for t, value in of(trainer, EMBEDDINGS) if t == "item"}
    assert has == had & {*trainer.dataset.encoder.tables["item"].names}
    assert len(has) > 10


# ------------------------------------------------------------------------------------------------ other models


def test_first_order_weights_go_over_and_ftrl_goes_on_from_them(shops: Path, tmp_path: Path) -> None:
    ftrl = {"kind": "ftrl", "alpha": 0.1, "l1": 0.0}
    trainer, (told,) = begun(shops / "lr", shops / "new", declared({"name": "lr"}), tmp_path / "data", first_order=ftrl)
    (weight,) = trainer.model.embeddings()
    before, after = of(Run.open(shops / "lr").trainer(), weight), of(trainer, weight)
    both = before.keys() & after.keys()
    assert len(both) > 30
    assert all(after[key] == before[key] for key in both)
    assert any(any(row) for row in after.values())
    rows = trainer.optimisers.rows[weight]
    stood = rows.weight.clone()
    touched = torch.arange(len(stood))
    rows.step(touched, torch.zeros_like(stood))  # no gradient: the weight follows from the state alone
    assert torch.allclose(rows.weight, stood, atol=1e-7)
    assert told.tables[0].weight == weight


def test_another_model_takes_the_tables_and_what_fits(shops: Path, tmp_path: Path) -> None:
    table = declared({"name": "base", "interactions": [{"kind": "linear"}, {"kind": "tower", "hidden": [8]}]})
    trainer, (told,) = begun(shops / "run", shops / "new", table, tmp_path / "data")
    (embeddings,) = [name for name in trainer.model.embeddings() if name not in trainer.model.first_order()]
    before, after = of(Run.open(shops / "run").trainer(), EMBEDDINGS), of(trainer, embeddings)
    assert all(after[key] == before[key] for key in before.keys() & after.keys())
    first = [t for t in told.tables if t.weight in trainer.model.first_order()]
    assert first
    assert {t.why for t in first} == {"is new"}
    assert {t.found for t in first} == {0}
    assert "head.bias" in told.parameters
    tower = {name: why for name, why in told.left if name.startswith("interactions.1.")}
    assert set(tower.values()) == {"is new"}
    assert any(name.startswith("interactions.0.") for name in told.unused)
    state = trainer.model.state_dict()
    assert all(torch.equal(state[name], drawn) for name, drawn in fresh(trainer).state_dict().items() if name in tower)


def test_fields_that_came_or_went_are_told(shops: Path, tmp_path: Path) -> None:
    table = declared()
    table["feature"] = [f for f in table["feature"] if f["name"] != "tags"]
    table["history"] = [h | {"fields": [f for f in h["fields"] if f != "tags"]} for h in table["history"]]
    trainer, (told,) = begun(shops / "run", shops / "new", table, tmp_path / "data")
    assert [note.split(":")[0] for note in told.notes] == ["candidate", "clicks"]
    left = dict(told.left)
    state = trainer.model.state_dict()
    for name, drawn in fresh(trainer).state_dict().items():
        if name in left:
            assert torch.equal(state[name], drawn)  # at its start
            assert " there and " in left[name]
    assert left


# ------------------------------------------------------------------------------------------------ whole runs


def warm(shops: Path, training: dict[str, Any] | None = None) -> Recipe:
    table = declared()
    more = {"warm_start": "../run", "save_every": 1} | (training or {})
    return Recipe.parse(table | {"training": table["training"] | more}, shops / "new")


def weights(folder: Path) -> dict[str, Tensor]:
    found = Checkpoints(folder / "checkpoints").load()
    assert found is not None
    return found.tensors


def test_a_resumed_warm_run_equals_an_uninterrupted_one(
    shops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the old run is gone by then."""
    shutil.copytree(shops, tmp_path, dirs_exist_ok=True)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted((tmp_path / "run").rglob("*")) if p.is_file()}
    run(warm(tmp_path), tmp_path / "whole")
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in before} == before
    assert {p for p in (tmp_path / "run").rglob("*") if p.is_file()} == set(before)
    cold = warm(tmp_path, {"warm_start": None, "save_every": 1})
    run(cold, tmp_path / "cold", tmp_path / "whole" / "data")
    assert any(not torch.equal(t, weights(tmp_path / "cold")[name]) for name, t in weights(tmp_path / "whole").items())

    step = Trainer.train_step
    left = 4

    def stops(self: Trainer, *args: Any) -> float:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt(signal.SIGINT)
        return step(self, *args)

    monkeypatch.setattr(Trainer, "train_step", stops)
    with pytest.raises(KeyboardInterrupt):
        run(warm(tmp_path), tmp_path / "cut")
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "run")
    run(warm(tmp_path), tmp_path / "cut", resume=True)
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert (tmp_path / "whole" / "warm_start.json").read_text() == (tmp_path / "cut" / "warm_start.json").read_text()


def test_the_old_run_is_part_of_what_a_run_is(shops: Path, tmp_path: Path) -> None:
    shutil.copytree(shops, tmp_path, dirs_exist_ok=True)
    run(warm(tmp_path, {"epochs": 1}), tmp_path / "warm")
    shutil.rmtree(tmp_path / "run")
    run(
        Recipe.parse(declared() | {"training": declared()["training"] | {"seed": 2}}, tmp_path / "old"),
        tmp_path / "run",
    )
    with pytest.raises(UserError, match="belongs to another run: warm_start differ"):
        run(warm(tmp_path, {"epochs": 1}), tmp_path / "warm", resume=True)


def test_the_verb_shows_and_keeps_what_was_taken(
    shops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (shops / "new" / "recipe.toml").write_text(warm(shops).toml().replace("warm_start", "#"))
    monkeypatch.chdir(shops)
    words = [
        "train",
        "new/recipe.toml",
        "-o",
        str(tmp_path / "new"),
        "--warm-start",
        "run",
        "--set",
        "training.epochs=1",
    ]
    verbs()(words, standalone_mode=False)
    shown = capsys.readouterr().out
    assert "warm start: table" in shown
    assert "values there" in shown
    told = json.loads((tmp_path / "new" / "warm_start.json").read_text())
    assert told["source"] == str(shops / "run")
    assert len(told["content"]) == 32
    item = next(t for t in told["tables"] if t["table"] == "item")
    assert f"{item['found']:,}" in next(line for line in shown.splitlines() if line.strip().startswith("item "))
    assert Run.open(tmp_path / "new").recipe.training.warm_start == str(shops / "run")


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("no run", "training.warm_start: {old}: no finished run here (no run.json)"),
        ("no weights", "training.warm_start: {old}/best: no weights here; train that run again"),
        ("damaged", "tensors.safetensors: damaged (its content does not match its hash)"),
        ("data gone", "no prepared data set here (no manifest.json)"),
        ("width", "table 'age' is 16 wide there and 8 here"),
        ("one width", "table 'item' is 16 wide there and 4 here; give both the same width"),
        ("encoding", "table 'item' is a vocabulary table there and a growing table here"),
        ("buckets", "table 'country_category' is hashed into 50 buckets there and hashed into 60 buckets here"),
    ],
)
def test_what_cannot_begin_a_run_is_one_sentence(what: str, sentence: str, shops: Path, tmp_path: Path) -> None:
    shutil.copytree(shops / "run", tmp_path / "run")
    table = declared()
    match what:
        case "no run":
            (tmp_path / "run" / "run.json").unlink()
        case "no weights":
            shutil.rmtree(tmp_path / "run" / "best")
        case "damaged":
            (file,) = (tmp_path / "run" / "best").rglob("tensors.safetensors")
            file.write_bytes(file.read_bytes()[:-9] + b"\0" * 9)
        case "data gone":
            shutil.rmtree(tmp_path / "run" / "data")
        case "width":
            table["model"] = table["model"] | {"representation": {"embedding": {"width": 8}}}
        case "one width":
            table = declared(item={"dim": 4})
        case "encoding":
            table = declared(item={"encoding": GROWING})
        case "buckets":
            table = declared(country_category={"encoding": {"kind": "hashed", "buckets": 60}})
    table["training"] = table["training"] | {"warm_start": str(tmp_path / "run")}
    with pytest.raises(UserError) as caught:
        run(Recipe.parse(table, shops / "new"), tmp_path / "new")
    if what == "width":
        assert " is 16 wide there and 8 here" in str(caught.value)
    else:
        assert sentence.format(old=tmp_path / "run") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new" / "warm_start.json").exists()


def test_the_path_is_relative_to_the_recipe(shops: Path) -> None:
    assert warm(shops).training.warm_start == str(shops / "run")
