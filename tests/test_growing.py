"""Growing tables end to end: prepare, train, admit, evict, and old encoded data that stay true."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from finerank.data.builder import BatchBuilder
from finerank.data.dataset import Dataset
from finerank.data.order import Budget
from finerank.data.prepare import Keys, prepare
from finerank.data.split import Split
from finerank.errors import UserError
from finerank.models import registry
from finerank.models.composition import Needs
from finerank.runtime.rows import RowMap
from finerank.schema import (
    FIRST,
    MISSING,
    OOV,
    PADDING,
    Categorical,
    FittedSchema,
    Growing,
    History,
    MultiValued,
    Schema,
)
from finerank.training import regularise
from finerank.training.growing import admit, load_maps, maps_state, row_maps
from finerank.training.loop import Trainer
from finerank.training.optimisers import row_counts
from finerank.training.options import L2, MiniBatchAware, TrainingOptions

CAPACITY = 3
ITEM = Growing(capacity=CAPACITY, admit_after=2)
TAG = Growing(capacity=9)
SCHEMA = Schema(
    features=(
        Categorical(name="user", level="request"),
        Categorical(name="item", level="candidate", encoding=ITEM),
        MultiValued(name="tags", level="candidate", encoding=TAG),
    ),
    histories=(History(name="past", fields=("item", "tags"), max_length=4),),
)
ITEMS = ["a"] * 6 + ["b"] * 5 + ["c"] * 4 + ["d"] + [None] * 2
"""Of the training rows."""
COUNTS = {"a": 6 + 9 + 2, "b": 5 + 3, "c": 4, "d": 1}
"""Occurrences in the training rows, by hand: as candidates, and in histories (see `world`)."""
OPTIONS = TrainingOptions(
    epochs=2, patience=9, batch=Budget(rows=6), regularise=MiniBatchAware(strength=0.01), threads=1, keep_memory=False
)
SEED = OPTIONS.seed


def world(folder: Path) -> Dataset:
    """18 training rows, then 4 of validation with the item "new", which training never saw, and "a".

    Rows alternate between users u and v. u has a past event of "a" (seen by its 9 training rows) and a second one (by
    the last 2); v has one of "b" (by the last 3 of its rows).
    """
    items = [*ITEMS, "new", "a", "new", "a"]
    n = len(items)
    samples = pl.DataFrame(
        {
            "request": range(n),
            "user": ["u" if i % 2 == 0 else "v" for i in range(n)],
            "time": [10 + i for i in range(n)],
            "item": items,
            "tags": [[f"t{i % 3}", "x"] if i % 4 else [] for i in range(n)],
            "label": [int(i % 3 == 0) for i in range(n)],
            "split": ["train"] * len(ITEMS) + ["validation"] * 4,
        }
    )
    events = {"user": ["u", "u", "v"], "time": [1, 22, 22], "item": ["a", "a", "b"], "tags": [["x"], [], ["x", "t0"]]}
    keys = Keys(request="request", user="user", time="time")
    return prepare(folder, SCHEMA, samples.lazy(), pl.LazyFrame(events), keys, Split(by="column"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return world(tmp_path_factory.mktemp("growing") / "data")


def trained(data: Dataset, name: str = "base", folder: Path | None = None, **more: Any) -> Trainer:
    trainer = Trainer(registry.composition(name), data, replace(OPTIONS, **more), folder)
    trainer.fit()
    return trainer


def symbol(data: Dataset, name: str, table: str = "item") -> int:
    return data.encoder.tables[table].lookup(name)


def row(trainer: Trainer, name: str) -> int:
    return int(trainer.row_maps["item"].rows_of(np.array([symbol(trainer.dataset, name)]))[0])


def seen_later(data: Dataset, **counts: int) -> FittedSchema:
    """The fitted schema of a second data set, in which items occurred so often."""
    table = data.fitted.tables["item"]
    later = np.zeros(data.encoder.tables["item"].size, dtype=np.int64)
    for name, n in counts.items():
        later[symbol(data, name)] = n
    tags = data.fitted.tables["tags"]
    nothing = replace(tags, counts=np.zeros_like(tags.counts))
    return replace(data.fitted, tables={**data.fitted.tables, "item": replace(table, counts=later), "tags": nothing})


def aware_of(trainer: Trainer) -> dict[str, regularise.MiniBatchAware]:
    """By weight, those that charge the rows of the batch."""
    found = trainer.optimisers.regularisers
    return {name: one for name, one in found.items() if isinstance(one, regularise.MiniBatchAware)}


def parts(trainer: Trainer) -> dict[str, Tensor]:
    """Every tensor with one entry per row of a weight that holds items: weights, optimiser state, counts."""
    out = {}
    for name, tables in trainer.model.embeddings().items():
        if "item" in tables.start:
            out[f"{name} weight"] = tables.weight.data
            out |= {f"{name} {key}": value for key, value in trainer.optimisers.rows[name].state.items()}
            if name in (aware := aware_of(trainer)):
                out[f"{name} aware"] = aware[name].counts
    return out


def starts(trainer: Trainer) -> dict[str, int]:
    return {name: t.start["item"] for name, t in trainer.model.embeddings().items() if "item" in t.start}


# ------------------------------------------------------------------------------------------------ admission


def test_counts_are_of_training_rows_and_their_histories(data: Dataset) -> None:
    table = data.encoder.tables["item"]
    counts = dict(zip(table.names, data.fitted.tables["item"].counts.tolist(), strict=False))
    assert {name: counts[name] for name in COUNTS} == COUNTS
    assert counts["<missing>"] == 2
    assert "new" not in counts  # it has a symbol, but beyond what was counted
    assert symbol(data, "new") >= len(data.fitted.tables["item"].counts)
    assert data.fitted.tables["item"].rows == FIRST + CAPACITY


def test_what_occurs_often_enough_gets_a_row_and_the_rest_is_out_of_vocabulary(data: Dataset) -> None:
    trainer = trained(data)
    assert {name: row(trainer, name) for name in ("a", "b", "c", "d", "new")} == {
        "a": 3,
        "b": 4,
        "c": 5,
        "d": OOV,
        "new": OOV,
    }
    batch = trainer.builder.batch(np.arange(data.requests))
    rows = {"a": 3, "b": 4, "c": 5, "d": OOV, "new": OOV, None: MISSING}
    assert batch.candidate.ids[:, 0].tolist() == [rows[i] for i in [*ITEMS, "new", "a", "new", "a"]]
    history = batch.histories["past"]
    user = ["u" if i % 2 == 0 else "v" for i in range(data.requests)]
    assert history.lengths.tolist() == [(user[i] == "u") + (i > 12) for i in range(data.requests)]
    assert history.events.ids[:, 0].tolist() == [3 if user[i] == "u" else 4 for i in history.segments.tolist()]
    # lists are mapped too, and hold rows of their own table
    tags = trainer.row_maps["tags"]
    lists, stored = batch.candidate.lists["tags"], data.candidate.lists["tags"]
    found = {tuple(lists.ids[lists.segments == i, 0].tolist()) for i in range(len(lists.lengths))}
    plain = {
        tuple(tags.rows_of(stored.ids[stored.segments == i, 0].astype(np.int64)).tolist())
        for i in range(len(stored.lengths))
    }
    assert found == plain
    assert max(max(t, default=0) for t in found) == FIRST + 3  # t0, t1, t2 and x all have rows


def test_negatives_are_mapped_like_the_events_they_stand_for(data: Dataset) -> None:
    trainer = trained(data)
    needs = Needs(negatives=frozenset({"past"}))
    batch = BatchBuilder(data, needs, trainer.row_maps).batch(np.arange(data.requests))
    position, item = batch.histories["past"].positions, batch.negatives["past"].ids[:, 0]
    assert 4 in item[position == 1].tolist()  # u has seen "a" twice; "b" is known as well
    assert set(item[position == 1].tolist()) <= {3, 4}
    assert set(item[position == 0].tolist()) == {PADDING}  # nothing comes before a first event


def test_a_table_of_as_many_symbols_as_rows_is_still_counted_by_row(tmp_path: Path) -> None:
    """Symbols are numbered as they come, rows go to the most frequent first: equal lengths must not confuse the two."""
    declared = Schema(features=(Categorical(name="item", level="candidate", encoding=Growing(capacity=2)),))
    samples = pl.DataFrame({"item": ["rare", "often", "often", "often", "often"], "label": [0, 1, 0, 1, 0]})
    split = Split(validation=0.4, test=0)
    data = prepare(tmp_path / "d", declared, samples.lazy(), split=split)
    assert len(data.fitted.tables["item"].counts) == data.fitted.tables["item"].rows == 5
    trainer = Trainer(registry.composition("fm"), data, OPTIONS)
    for tables in trainer.model.embeddings().values():
        assert row_counts(tables, data.fitted).tolist() == [0] * 5
    admit(trainer.row_maps, data.fitted, trainer.model, trainer.optimisers, 0, SEED)
    assert trainer.row_maps["item"].rows_of(np.arange(5)).tolist() == [0, 1, 2, 4, 3]
    [aware] = aware_of(trainer).values()
    assert aware.counts.tolist() == [0, 0, 0, 2, 1]


def test_running_counts_are_by_row(data: Dataset) -> None:
    """MiniBatchAware divides by how often a row was met: what has no row of its own counts for the out-of-vocabulary row."""
    trainer = trained(data)
    for name, aware in aware_of(trainer).items():
        start = starts(trainer)[name]
        assert aware.counts[start : start + FIRST + CAPACITY].tolist() == [0, 1, 2, 17, 8, 4]
        user = trainer.model.embeddings()[name].start["user"]
        assert aware.counts[user : user + 5].tolist() == [0, 0, 0, 9, 9]  # a fixed vocabulary: as fitted


def test_new_rows_are_drawn_by_the_law_of_their_own_table(tmp_path: Path) -> None:
    """Around the out-of-vocabulary row: FFM's uniform, a feature's own `std`, and first-order weights not at all."""
    item = Categorical(name="item", level="candidate", encoding=Growing(capacity=400), dim=4, std=0.5)
    declared = Schema(features=(item, Categorical(name="other", level="candidate")))
    names = [f"i{i}" for i in range(400)] * 2
    log = pl.DataFrame({"item": names, "other": ["x"] * 800, "label": [0, 1] * 400})
    data = prepare(tmp_path / "d", declared, log.lazy(), split=Split(validation=0.4, test=0))
    table = registry.parse({"name": "fm", "interactions": ["linear", {"kind": "ffm", "dim": 4}, "fm"]})
    trainer = Trainer(table, data, OPTIONS)
    weights = trainer.model.embeddings()
    linear, ffm, fm = (next(w for n, w in weights.items() if n.startswith(part)) for part in PARTS_OF_ADMISSION)
    for tables in (linear, ffm, fm):
        tables.weight.data[tables.start["item"] + OOV] = 7.0
    admit(trainer.row_maps, data.fitted, trainer.model, trainer.optimisers, 0, SEED)
    assert trainer.row_maps["item"].held > 300
    admitted = slice(FIRST, FIRST + trainer.row_maps["item"].held)
    off = [(t.table("item")[admitted] - 7.0).flatten() for t in (linear, ffm, fm)]
    assert not bool(off[0].any())
    assert -0.25 <= float(off[1].min()) < -0.24  # from 0 to 1 / sqrt(4), about its mean of a quarter
    assert 0.24 < float(off[1].max()) <= 0.25
    assert float(off[1].std()) == pytest.approx(0.5 / 12**0.5, rel=0.03)
    assert abs(float(off[2].mean())) < 0.05
    assert float(off[2].std()) == pytest.approx(0.5, rel=0.05)
    assert float(off[2].abs().max()) > 1.2  # a normal law has tails


PARTS_OF_ADMISSION = ("interactions.0", "interactions.1", "representation")


# ------------------------------------------------------------------------------------------------ eviction


def digest(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", ["base", "fm"])
def test_a_full_table_gives_the_row_unseen_for_longest_to_the_newcomer(name: str, data: Dataset) -> None:
    """Later "a", "c" and "new" are seen: "b" goes, "new" takes its row; all else is as it was, bit for bit."""
    trainer = trained(data, name)
    files = digest(data.folder)
    old = trainer.builder.batch(np.arange(data.requests))
    before = {key: tensor.clone() for key, tensor in parts(trainer).items()}
    assert trainer.optimisers.rows.keys() == trainer.model.embeddings().keys()
    changes = admit(
        trainer.row_maps, seen_later(data, a=2, c=7, new=5, d=0), trainer.model, trainer.optimisers, 1, SEED
    )
    assert changes["item"] == (1, 1)
    assert {n: row(trainer, n) for n in ("a", "b", "c", "d", "new")} == {"a": 3, "b": OOV, "c": 5, "d": OOV, "new": 4}

    first_order = trainer.model.first_order()
    found = parts(trainer)
    assert found.keys() == before.keys()
    for weight, start in starts(trainer).items():
        reused, oov = start + 4, start + OOV
        others = torch.ones(len(found[f"{weight} weight"]), dtype=torch.bool)
        others[reused] = False
        for key in (k for k in found if k.startswith(f"{weight} ") and not k.endswith("aware")):
            assert torch.equal(found[key][others], before[key][others]), key
            assert before[key][reused].abs().sum() > 0, key  # it had learnt something
            if not key.endswith("weight"):
                assert found[key][reused].abs().sum() == 0, key  # and its past is forgotten
        off = found[f"{weight} weight"][reused] - found[f"{weight} weight"][oov]
        std = trainer.model.embeddings()[weight].std
        assert off.abs().max() <= 5 * std
        if weight in first_order:
            assert std == 0
        else:
            assert float(off.abs().min()) > 0  # equal rows would learn alike for ever
            assert off.square().mean().sqrt() > std / 3
            # as before: a 17, b 8, c 4, and d 1 without a row; now a 2, c 7 and new 5 more, and nobody is b
            counts = found[f"{weight} aware"][start : start + FIRST + CAPACITY]
            assert counts.tolist() == [0, 1, 2, 19, 5, 11]

    # the old encoded data stay true: same files, and only "b" reads otherwise
    assert digest(data.folder) == files
    new = trainer.builder.batch(np.arange(data.requests))
    b = torch.tensor([i == "b" for i in [*ITEMS, "new", "a", "new", "a"]])
    fresh = torch.tensor([i == "new" for i in [*ITEMS, "new", "a", "new", "a"]])
    assert (old.candidate.ids[b, 0] == 4).all()
    assert (new.candidate.ids[b, 0] == OOV).all()
    assert (old.candidate.ids[fresh, 0] == OOV).all()
    assert (new.candidate.ids[fresh, 0] == 4).all()
    assert torch.equal(new.candidate.ids[~b & ~fresh], old.candidate.ids[~b & ~fresh])
    events = new.histories["past"].events.ids[:, 0]
    assert events.tolist() == [OOV if i == 4 else i for i in old.histories["past"].events.ids[:, 0].tolist()]
    assert torch.equal(new.request.ids, old.request.ids)

    # back again: "b" has to be seen twice anew, as any newcomer
    admit(trainer.row_maps, seen_later(data, b=1), trainer.model, trainer.optimisers, 2, SEED)
    assert row(trainer, "b") == OOV
    admit(trainer.row_maps, seen_later(data, b=1), trainer.model, trainer.optimisers, 3, SEED)
    assert row(trainer, "b") == 3  # "a", "c" and "new" were last seen together: the lowest symbol goes


def test_training_goes_on_after_an_eviction(data: Dataset) -> None:
    """The row moves for the newcomer alone: a step on rows with "new" changes it, the evicted item's rows do not."""
    trainer = trained(data)
    admit(trainer.row_maps, seen_later(data, a=2, c=7, new=5), trainer.model, trainer.optimisers, 1, SEED)
    [(name, start)] = starts(trainer).items()
    weight = trainer.model.embeddings()[name].weight.data

    def moved(items: set[str]) -> bool:
        chosen = np.array(
            [
                i
                for i, item in enumerate([*ITEMS, "new", "a", "new", "a"])
                if (item in items and i % 2 == 1 and i < 13) or (item in items and i % 2 == 0)
            ]
        )
        before = weight[start + 4].clone()
        for step in trainer.builder.steps(chosen, Budget(rows=2), shuffle=False):
            trainer.train_step(step)
        return not torch.equal(weight[start + 4], before)

    assert not moved({"b", "d"})
    assert moved({"new"})


def test_a_newcomer_is_the_same_on_every_machine_and_parts_by_seed_and_time(data: Dataset) -> None:
    def newcomer(seed: int, time: int) -> Tensor:
        trainer = Trainer(registry.composition("base"), data, OPTIONS)
        admit(trainer.row_maps, data.fitted, trainer.model, trainer.optimisers, 0, SEED)
        torch.manual_seed(seed * 31 + time)  # no hidden state takes part
        admit(trainer.row_maps, seen_later(data, a=1, c=1, new=5), trainer.model, trainer.optimisers, time, seed)
        [(name, start)] = starts(trainer).items()
        return trainer.model.embeddings()[name].weight.data[start + 4]

    assert torch.equal(newcomer(1, 1), newcomer(1, 1))
    assert not torch.equal(newcomer(1, 1), newcomer(1, 2))
    assert not torch.equal(newcomer(1, 1), newcomer(2, 1))


def test_a_reused_row_owes_no_decay(data: Dataset) -> None:
    trainer = trained(data, regularise=L2(strength=0.5))
    [(name, start)] = starts(trainer).items()
    decay = trainer.optimisers.regularisers[name]
    assert isinstance(decay, regularise.CaughtUpL2)
    trainer.optimisers.begin()
    admit(trainer.row_maps, seen_later(data, a=1, c=1, new=5), trainer.model, trainer.optimisers, 1, SEED)
    assert decay.owed < 0
    assert float(decay.paid[start + 4]) == decay.owed
    assert float(decay.paid[start + 5]) == 0


def test_time_does_not_run_back(data: Dataset) -> None:
    trainer = trained(data)
    admit(trainer.row_maps, seen_later(data, a=1), trainer.model, trainer.optimisers, 5, SEED)
    with pytest.raises(UserError, match="observed time 4 after 5"):
        admit(trainer.row_maps, seen_later(data, a=1), trainer.model, trainer.optimisers, 4, SEED)


# ------------------------------------------------------------------------------------------------ checkpoints


def state_of(trainer: Trainer) -> dict[str, bytes]:
    out = {f"model {k}": t for k, t in trainer.model.state_dict().items()} | parts(trainer)
    out |= {f"map {k}": t for k, t in maps_state(trainer.row_maps).items()}
    return {key: t.numpy().tobytes() for key, t in out.items()}


def test_a_resumed_run_equals_an_uninterrupted_one(data: Dataset, tmp_path: Path) -> None:
    """Growing tables included: the builder of the resumed run must read the maps that the checkpoint held."""
    whole = trained(data, folder=tmp_path / "whole", epochs=3)
    trained(data, folder=tmp_path / "cut", epochs=1)
    resumed = Trainer(registry.composition("base"), data, replace(OPTIONS, epochs=3), tmp_path / "cut")
    history = resumed.fit(resume=True)
    assert [(e.loss, e.score) for e in history] == [(e.loss, e.score) for e in whole.history]
    assert state_of(resumed) == state_of(whole)
    every = np.arange(data.requests)
    assert torch.equal(resumed.builder.batch(every).candidate.ids, whole.builder.batch(every).candidate.ids)
    assert int(resumed.builder.batch(every).candidate.ids.max()) == 5


def test_an_eviction_survives_a_checkpoint(data: Dataset, tmp_path: Path) -> None:
    """Saved as what changed since the last checkpoint: reused rows and running counts are among it."""
    trainer = trained(data, folder=tmp_path)
    for changed in trainer.optimisers.changed.values():
        changed[:] = True  # so that tables are written in full here, and the next generation as a delta
    trainer._save()
    admit(trainer.row_maps, seen_later(data, a=2, c=7, new=5), trainer.model, trainer.optimisers, 1, SEED)
    trainer._save()
    assert len(list(tmp_path.glob("checkpoints/*/rows.safetensors"))) == 1
    again = Trainer(registry.composition("base"), data, OPTIONS, tmp_path)
    assert again._resume()
    assert state_of(again) == state_of(trainer)
    assert {n: row(again, n) for n in ("a", "b", "c", "new")} == {"a": 3, "b": OOV, "c": 5, "new": 4}
    every = np.arange(data.requests)
    assert torch.equal(again.builder.batch(every).candidate.ids, trainer.builder.batch(every).candidate.ids)
    for one in (trainer, again):  # and they go on alike
        admit(one.row_maps, seen_later(data, d=3), one.model, one.optimisers, 2, SEED)
    assert state_of(again) == state_of(trainer)
    assert row(again, "d") == 3


def test_maps_come_back_from_tensors(data: Dataset) -> None:
    maps = row_maps(data.fitted)
    assert {name: (m.capacity, m.admit_after) for name, m in maps.items()} == {"item": (3, 2), "tags": (9, 1)}
    maps["item"].observe(np.array([3, 4]), np.array([2, 1]), 0)
    saved = {key: tensor.clone() for key, tensor in maps_state(maps).items()}
    maps["item"].observe(np.array([4]), np.array([1]), 1)  # what was saved is a copy
    loaded: dict[str, RowMap] = row_maps(data.fitted)
    load_maps(loaded, saved)
    assert loaded["item"].rows_of(np.arange(6)).tolist() == [0, 1, 2, 3, OOV, OOV]
    assert maps["item"].rows_of(np.arange(6)).tolist() == [0, 1, 2, 3, 4, OOV]
