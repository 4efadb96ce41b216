"""The training loop: what it does step by step against plain twins, and that no kill changes a single bit of it."""

from __future__ import annotations

import json
import math
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tiny
import torch
import training_victim
from torch import Tensor

from finerank.data.batch import Batch
from finerank.data.builder import BatchBuilder
from finerank.data.dataset import Dataset
from finerank.data.order import Budget
from finerank.data.prepare import prepare
from finerank.data.split import Split
from finerank.errors import UserError
from finerank.kernels.build import has_bf16
from finerank.layers.embedding import Embedding
from finerank.models import registry
from finerank.models.base import Tower
from finerank.models.composition import Model
from finerank.models.registry import Composition, composition
from finerank.schema import Growing
from finerank.training.checkpoint import Checkpoints
from finerank.training.evaluate import metrics, predict
from finerank.training.loop import Epoch, Progress, Trainer, choose_device
from finerank.training.options import (
    FTRL,
    L2,
    SGD,
    Adagrad,
    Adam,
    GradNorm,
    L2InLoss,
    L2PerRow,
    MiniBatchAware,
    TrainingOptions,
    Uncertainty,
)
from finerank.training.row_optim import RowFTRL

BASE = composition("base")


def small(name: str, **tower: Any) -> Composition:
    """A named model with a small tower (din, dien and base have one)."""
    return replace(composition(name), interactions=(Tower.Options(hidden=(8,), **tower),))


def quick(**more: Any) -> TrainingOptions:
    """logloss is defined wherever there are rows, so no training ends for want of a class."""
    return TrainingOptions(
        **{
            "epochs": 2,
            "patience": 9,
            "batch": Budget(rows=40),
            "monitor": "logloss",
            "threads": 1,
            "keep_memory": False,
        }
        | more  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("worlds")
    samples, events = tiny.frames()
    later = events.with_columns(pl.col("time") + 10**9)  # so nobody's history holds anything yet
    return {
        "plain": tiny.dataset(folder / "plain"),
        "one task": tiny.dataset(folder / "one", tasks=1),
        "growing": tiny.dataset(folder / "growing", encoding=training_victim.ENCODING),
        "no events": prepare(
            folder / "never", tiny.schema(), samples.lazy(), later.lazy(), tiny.KEYS, Split(validation=0.2, test=0.2)
        ),
    }


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    """Every tensor equal bit for bit."""
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def kept(folder: Path, which: str = "checkpoints") -> dict[str, Tensor]:
    """All that the last checkpoint holds: weights, optimiser states, maps (of the best: no optimiser states)."""
    found = Checkpoints(folder / which).load()
    assert found is not None
    return found.tensors


def weights_in(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}


def course(history: list[Epoch]) -> list[tuple[Any, ...]]:
    """What a training did, without how long it took."""
    return [(e.epoch, e.loss, e.rows, repr(e.validation), e.score, e.best) for e in history]


# ------------------------------------------------------------------------------------------------ resuming

CASES: dict[str, tuple[Composition, str, TrainingOptions]] = {
    "plain adam": (small("base"), "plain", quick()),
    "rows' own bias correction": (small("base"), "plain", quick(tables=Adam(correction="row"))),
    "ftrl for first order": (composition("lr"), "plain", quick(first_order=FTRL(l1=0.01))),
    "adagrad and sgd": (small("base"), "plain", quick(tables=Adagrad(), dense=SGD())),
    "adagrad for the tower": (small("base"), "plain", quick(tables=SGD(), dense=Adagrad(initial_accumulator=0.1))),
    "mini-batch-aware": (small("base"), "plain", quick(regularise=MiniBatchAware(strength=1.0))),
    "l2 caught up": (small("base"), "plain", quick(regularise=L2(strength=1.0), tables=Adam(lr=0.02))),
    "l2 in the loss": (small("din"), "growing", quick(regularise=L2InLoss(strength=1e-3))),
    "l2 in the loss, by adagrad": (composition("fm"), "one task", quick(regularise=L2InLoss(), tables=Adagrad())),
    "l2 per row": (small("din"), "plain", quick(regularise=L2PerRow(strength=0.1), batch=Budget(rows=3), epochs=1)),
    "growing tables": (small("din"), "growing", quick(regularise=MiniBatchAware())),
    "dropout and batch norm": (small("base", dropout=0.4, batch_norm=True), "plain", quick(clip=0.1)),
    "dice, and requests cut": (
        small("din", activation="dice"),
        "plain",
        quick(epochs=1, batch=Budget(rows=3), save_every=9),
    ),
    "next-event negatives": (small("dien"), "plain", quick()),
    "no event was ever met": (small("dien"), "no events", quick()),
    "noise of gates": (composition("snr_trans"), "plain", quick(epochs=1)),
    "uncertain tasks": (composition("shared_bottom"), "plain", quick(tasks=Uncertainty(start=0.5))),
    "balanced gradients": (composition("mmoe"), "plain", quick(tasks=GradNorm(lr=0.2))),
    "rates that fall": (small("base"), "plain", quick(epochs=5, plateau=0.5, tables=Adam(lr=0.1), dense=Adam(lr=0.1))),
    "patience ran out": (small("base"), "plain", quick(epochs=9, patience=0, tables=Adam(lr=0.3), dense=Adam(lr=0.3))),
}

if has_bf16(torch.device("cpu")):
    CASES["products in bf16"] = (small("din"), "plain", quick(precision="bf16"))


@pytest.mark.parametrize("case", CASES)
def test_resumed_at_any_step_equals_uninterrupted(case: str, worlds: dict[str, Dataset], tmp_path: Path) -> None:
    """The folder as it was at every step, as a kill would leave it; each is gone on with, to the same last bit."""
    model, world, options = CASES[case]
    options = replace(options, save_every=options.save_every or 1)
    data, whole = worlds[world], tmp_path / "whole"
    states: dict[str, Path] = {}

    def snapshot(point: str) -> None:
        current = whole / "checkpoints" / "CURRENT"
        name = current.read_text().strip() if current.exists() else "nothing"
        if name not in states:
            states[name] = tmp_path / name
            if whole.exists():
                shutil.copytree(whole, states[name])

    reference = Trainer(model, data, options, whole, at=lambda p: snapshot(p) if p in ("step", "epoch") else None)
    reference.fit()
    assert len(states) >= 4
    weights = reference.model.state_dict()
    for name, folder in states.items():
        resumed = Trainer(model, data, options, folder)
        resumed.fit(resume=True)
        assert course(resumed.history) == course(reference.history), name
        same(resumed.model.state_dict(), weights)
        same(kept(folder), kept(whole))
        same(weights_in(kept(folder, "best")), weights)


def test_the_cases_differ(worlds: dict[str, Dataset]) -> None:
    """Each option that the cases vary does something; else resuming it would prove nothing."""
    seen = set()
    for model, world, options in CASES.values():
        trainer = Trainer(model, worlds[world], replace(options, epochs=1))
        trainer.fit()
        seen.add(repr(trainer.history[0].loss))
    assert len(seen) == len(CASES)


def stopped_run(worlds: dict[str, Dataset], folder: Path) -> None:
    """A finished training with checkpoints."""
    Trainer(small("base"), worlds["plain"], quick(save_every=1), folder).fit()


@pytest.mark.parametrize("what", ["seed", "model", "optimiser", "data", "damaged", "best gone", "best damaged"])
def test_what_does_not_fit_is_not_resumed(what: str, worlds: dict[str, Dataset], tmp_path: Path) -> None:
    model, options, data = small("base"), quick(save_every=1), worlds["plain"]
    stopped_run(worlds, tmp_path)
    newest = tmp_path / "checkpoints" / (tmp_path / "checkpoints" / "CURRENT").read_text().strip()
    if what == "seed":
        options, message = replace(options, seed=8), "belongs to another run: options differ; resume with the recipe"
    elif what == "model":
        model, message = small("base", batch_norm=True), "belongs to another run: model differ"
    elif what == "optimiser":
        options, message = replace(options, tables=Adagrad()), "belongs to another run: options differ"
    elif what == "data":
        data, message = tiny.dataset(tmp_path / "other", seed=1), "belongs to another run: data differ"
    elif what == "damaged":
        file = newest / "tensors.safetensors"
        file.write_bytes(file.read_bytes()[:-5])
        message = r"tensors\.safetensors: damaged .*; load\(generation='generation-\d+'\) is intact"
    elif what == "best gone":
        shutil.rmtree(tmp_path / "best")
        message = "best: the best weights are gone; start the run anew"
    else:
        (file,) = (tmp_path / "best").glob("*/tensors.safetensors")
        file.write_bytes(b"")
        message = r"best.*tensors\.safetensors: damaged"
    with pytest.raises(UserError, match=message):
        Trainer(model, data, options, tmp_path).fit(resume=True)


def test_more_epochs_may_be_asked_for(worlds: dict[str, Dataset], tmp_path: Path) -> None:
    """Two epochs and then two more are four."""
    Trainer(small("base"), worlds["plain"], quick(), tmp_path).fit()
    longer, whole = (Trainer(small("base"), worlds["plain"], quick(epochs=4), at) for at in (tmp_path, None))
    assert course(longer.fit(resume=True)) == course(whole.fit())
    same(dict(longer.model.state_dict()), dict(whole.model.state_dict()))


def test_the_optimiser_state_of_a_dense_parameter_may_not_be_lost(worlds: dict[str, Dataset], tmp_path: Path) -> None:
    """MODELS.md 2.44, for Adam's moments: half of them gone must not pass for 'not begun yet'."""
    stopped_run(worlds, tmp_path)
    tensors, _ = Trainer(small("base"), worlds["plain"], quick()).optimisers.state()
    assert tensors["dense"].any().item() is False  # nothing was trained
    saved = kept(tmp_path)
    of_optimiser = {k: v for k, v in saved.items() if not k.startswith(("model.", "map."))}
    fresh = Trainer(small("base"), worlds["plain"], quick()).optimisers
    fresh.load(of_optimiser)
    gone = {k: v for k, v in of_optimiser.items() if not k.startswith("dense.head.bias.")}
    for wrong in (gone, {k: v for k, v in of_optimiser.items() if k != "dense"}):
        with pytest.raises(UserError, match="the optimiser state does not fit"):
            fresh.load(wrong)
    with pytest.raises(UserError, match="unexpected optimiser state"):
        fresh.load(of_optimiser | {"dense.nobody.exp_avg": torch.zeros(1)})


# ------------------------------------------------------------------------------------------------ kill -9


class Victim:
    """The process of `training_victim`, and one order to it at a time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def __call__(self, **order: Any) -> bool:
        """Whether the child was killed; False when it came to its end."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(order), file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline())
        assert answer["signal"] in (0, signal.SIGKILL)
        assert answer["exit"] == 0, "the child failed: see its traceback above"
        return bool(answer["signal"])


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    command = [sys.executable, training_victim.__file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Victim(process)
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture(scope="module")
def unharmed(
    worlds: dict[str, Dataset], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[tuple[Any, ...]]]:
    """What the victim's training gives when nobody kills it: last checkpoint, best weights, course."""
    folder = tmp_path_factory.mktemp("unharmed")
    trainer = training_victim.trainer(worlds["growing"], folder)
    trainer.fit()
    assert len(trainer.history) == training_victim.OPTIONS.epochs
    return kept(folder), kept(folder, "best"), course(trainer.history)


def assert_unharmed(folder: Path, expected: tuple[Any, ...]) -> None:
    found = Checkpoints(folder / "checkpoints").load()
    assert found is not None
    same(found.tensors, expected[0])
    same(kept(folder, "best"), expected[1])
    assert course([Epoch(**e) for e in found.state["history"]]) == expected[2]


@pytest.mark.parametrize("point", ["write", "sync", "rename", "prune", "step", "epoch"])
def test_killed_at_every_turn(
    point: str, worlds: dict[str, Dataset], victim: Victim, unharmed: Any, tmp_path: Path
) -> None:
    """Killed at the first such point, resumed and killed at the second, then the third, ..., until it comes to its end."""
    kills = 0
    while victim(data=str(worlds["growing"].folder), folder=str(tmp_path), point=point, kill_at=kills + 1):
        kills += 1
        assert kills < 40
    assert kills >= 2
    assert_unharmed(tmp_path, unharmed)


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_random_moments(
    seed: int, worlds: dict[str, Dataset], victim: Victim, unharmed: Any, tmp_path: Path
) -> None:
    draw = random.Random(seed)
    kills = 0
    while victim(data=str(worlds["growing"].folder), folder=str(tmp_path), delay=draw.uniform(0, 0.05 * (kills + 1))):
        kills += 1
        assert kills < 100
    assert kills >= 1
    assert_unharmed(tmp_path, unharmed)


# ------------------------------------------------------------------------------------------------ plain twins


def twin_of(trainer: Trainer, model: Composition) -> Model:
    """The same model, same initial weights, whose gradients reach whole tables."""
    torch.manual_seed(trainer.options.seed)
    made = registry.build(model, trainer.dataset.fitted)
    for tables in made.embeddings().values():
        tables.sparse = False
    return made


def test_lazy_adam_equals_torch_adam_that_forgets_untouched_rows(worlds: dict[str, Dataset]) -> None:
    """torch.optim.Adam over the whole tables, after each step of which the rows that the batch lacks are put back."""
    data, model = worlds["plain"], small("din")
    options = quick(epochs=1, batch=Budget(rows=20), tables=Adam(lr=0.01, eps=1e-4), dense=Adam(lr=0.01, eps=1e-4))
    trainer = Trainer(model, data, options)
    twin = twin_of(trainer, model)
    same(dict(trainer.model.state_dict()), dict(twin.state_dict()))
    adam = torch.optim.Adam(twin.parameters(), lr=0.01, eps=1e-4)
    touched: dict[str, Tensor] = {}
    for name, tables in trainer.model.embeddings().items():
        tables.before_gather = lambda rows, name=name: touched.update({name: rows})
    steps = list(trainer.builder.steps(data.requests_of("train"), options.batch, 0))
    idle = 0
    for i, step in enumerate(steps):
        trainer.step = i
        loss = trainer.train_step(step)
        twin.train()
        (batch,) = BatchBuilder(data, twin.needs, seed=options.seed).batches(step)
        theirs = sum(twin.losses(batch, twin(batch)).values(), torch.zeros(()))
        theirs.backward()
        assert loss == pytest.approx(float(theirs.detach()), rel=1e-5)
        before = {
            name: (tables.weight.detach().clone(), {k: v.clone() for k, v in adam.state[tables.weight].items()})
            for name, tables in twin.embeddings().items()
        }
        adam.step()
        adam.zero_grad()
        with torch.no_grad():
            for name, tables in twin.embeddings().items():
                absent = torch.ones(len(tables.weight), dtype=torch.bool)
                absent[touched[name]] = False
                idle += int(absent.sum())
                weight, state = before[name]
                tables.weight[absent] = weight[absent]
                for key in ("exp_avg", "exp_avg_sq"):
                    now = adam.state[tables.weight][key]
                    now[absent] = state[key][absent] if state else 0.0
    assert len(steps) >= 4
    assert idle > 20
    for name, parameter in twin.named_parameters():
        assert torch.allclose(trainer.model.state_dict()[name], parameter, rtol=1e-3, atol=2e-5), name


def test_l2_equals_decaying_whole_tables_at_every_step(worlds: dict[str, Dataset]) -> None:
    """w <- (1 - lr s) w for all rows of all embedding tables before each step; first-order weights are left alone."""
    data, lr, strength = worlds["one task"], 0.05, 4.0
    model = replace(composition("fm"))
    options = quick(epochs=2, tables=SGD(lr=lr), dense=SGD(lr=0.1), regularise=L2(strength=strength))
    trainer = Trainer(model, data, options)
    twin = twin_of(trainer, model)
    start = {name: tables.weight.detach().clone() for name, tables in twin.embeddings().items()}
    trainer.fit()
    trained = dict(trainer.model.state_dict())
    rates = {id(t.weight): lr for t in twin.embeddings().values()}
    groups = [{"params": [p], "lr": rates.get(id(p), 0.1)} for p in twin.parameters()]
    sgd = torch.optim.SGD(groups)
    count = 0
    best: tuple[float, dict[str, Tensor]] = (math.inf, {})
    for epoch in range(2):
        for step in trainer.builder.steps(data.requests_of("train"), options.batch, epoch):
            twin.train()
            with torch.no_grad():
                for name, tables in twin.embeddings().items():
                    if name not in twin.first_order():
                        tables.weight *= 1 - lr * strength
            (batch,) = trainer.builder.batches(step, epoch)
            sum(twin.losses(batch, twin(batch)).values(), torch.zeros(())).backward()
            sgd.step()
            sgd.zero_grad()
            count += 1
        measured = metrics(predict(twin, trainer.builder, data.requests_of("validation")))
        assert trainer.history[epoch].validation["click"]["logloss"] == pytest.approx(
            measured["click"]["logloss"], rel=1e-5
        )
        if measured["click"]["logloss"] < best[0]:
            best = measured["click"]["logloss"], {k: v.clone() for k, v in twin.state_dict().items()}
    assert {name for name in start if name in twin.first_order()} not in (set(), set(start))
    for name, value in best[1].items():
        assert torch.allclose(trained[name], value, rtol=1e-4, atol=1e-6), name
    assert count >= 4


def penalised_by_row(twin: Model, batch: Batch) -> Tensor:
    """Half the squares of all that each candidate reads, place by place, summed over the candidates."""
    total = torch.zeros(())
    for embedding in (m for m in twin.modules() if isinstance(m, Embedding)):
        for like, columns in embedding.columns.items():
            source = {"request": batch.request, "candidate": batch.candidate}.get(like)
            block = batch.histories[like].events if source is None else source
            for n, request in enumerate(batch.request_of.tolist()):
                if like == "candidate":
                    read = [n]
                elif like == "request":
                    read = [request]
                else:
                    read = (batch.histories[like].segments == request).nonzero()[:, 0].tolist()
                for i in read:
                    named = [(table, [block.ids[i, j]]) for j, (_, table) in enumerate(columns.ids)]
                    for column in columns.lists:
                        lists = block.lists[column.name]
                        entries = lists.ids[lists.segments == lists.index[i]]
                        named.append((column.table, list(entries[:, 0])))
                        if column.ranks is not None:
                            named.append((column.ranks, list(entries[:, 1])))
                    for table, ids in named:
                        tables = embedding.of(embedding.widths[table])
                        for k in ids:
                            total = total + tables.weight[tables.start[table] + int(k)].square().sum() / 2
    return total


@pytest.mark.parametrize(
    ("name", "regularise", "rows"),
    [
        ("fm", L2InLoss(strength=0.02), 40),
        ("din", L2InLoss(strength=0.02), 3),  # 3 rows: requests are cut
        ("fm", L2PerRow(strength=0.3), 9),
        ("din", L2PerRow(strength=0.3), 3),
    ],
    ids=lambda given: getattr(given, "kind", str(given)),
)
@pytest.mark.parametrize("adam", [True, False], ids=["adam", "sgd"])
def test_l2_through_the_optimiser_equals_its_term_in_the_loss(
    name: str, regularise: L2InLoss | L2PerRow, rows: int, adam: bool, worlds: dict[str, Dataset]
) -> None:
    """First-order weights, too. Per row, a table is moved lazily, so that SGD alone has a dense twin that forgets nothing."""
    per_row = isinstance(regularise, L2PerRow)
    if per_row and adam:
        return
    data, model = worlds["one task"], small(name) if name == "din" else composition(name)
    move: Adam | SGD = Adam(lr=0.01, eps=1e-4) if adam else SGD(lr=0.1)
    options = quick(epochs=1, batch=Budget(rows=rows), tables=move, dense=move, regularise=regularise)
    trainer = Trainer(model, data, options)
    twin = twin_of(trainer, model)
    dense: torch.optim.Optimizer = torch.optim.SGD(twin.parameters(), 0.1)
    if adam:
        dense = torch.optim.Adam(twin.parameters(), 0.01, eps=1e-4)
    before = {k: v.clone() for k, v in twin.state_dict().items()}
    builder = BatchBuilder(data, twin.needs, seed=options.seed)
    for i, step in enumerate(islice(builder.steps(data.requests_of("train"), options.batch, 0), 8)):
        trainer.step = i
        trainer.train_step(step)
        twin.train()
        for batch in builder.batches(step):
            loss = sum(twin.losses(batch, twin(batch)).values(), torch.zeros(()))
            if per_row:
                loss = loss + regularise.strength * penalised_by_row(twin, batch) / batch.step_rows
            loss.backward()  # type: ignore[no-untyped-call]
        if not per_row:
            for tables in twin.embeddings().values():
                (regularise.strength / 2 * tables.weight.square().sum()).backward()  # type: ignore[no-untyped-call]
        dense.step()
        dense.zero_grad()
    for key, value in twin.state_dict().items():
        assert torch.allclose(trainer.model.state_dict()[key], value, rtol=1e-3, atol=2e-5), key
    assert any(k in twin.first_order() and not torch.equal(v, before[k]) for k, v in twin.state_dict().items()) == (
        name == "fm"
    )
    if not per_row:  # whatever was never met has moved; padding has not
        for key, tables in trainer.model.embeddings().items():
            nothing = before[key].abs().sum(1) == 0
            assert torch.equal((tables.weight == before[key]).all(1), nothing) or key in twin.first_order()
            assert not any(tables.weight[start].any() for start in tables.start.values())


def test_l2_in_the_loss_by_adagrad_counts_as_often_as_the_rows_of_a_step(worlds: dict[str, Dataset]) -> None:
    """Row optimisers of the summed loss: a step's term is that of the mean loss times its rows."""
    data = worlds["one task"]
    options = quick(tables=Adagrad(lr=0.05, initial_accumulator=3.0), regularise=L2InLoss(strength=0.5))
    trainer = Trainer(composition("fm"), data, options)
    name, tables = next((n, t) for n, t in trainer.model.embeddings().items() if t.width > 1)
    before, read = tables.weight.detach().clone(), set[int]()
    tables.before_gather = lambda rows: read.update(rows.tolist())
    step = next(trainer.builder.steps(data.requests_of("train"), options.batch, 0))
    trainer.train_step(step)
    idle = torch.tensor([i for i in range(len(before)) if i not in read])
    grad = step.rows * 0.5 * before[idle]
    torch.testing.assert_close(tables.weight.detach()[idle], before[idle] - 0.05 * grad / (3.0 + grad**2).sqrt())
    assert trainer.optimisers.changed[name].all()


def test_ftrl_keeps_its_own_l2(worlds: dict[str, Dataset]) -> None:
    for regularise in (L2(), L2InLoss(), L2PerRow()):
        with pytest.raises(UserError, match=f"regularise = {regularise.kind} does not go with tables = ftrl"):
            quick(tables=FTRL(), regularise=regularise)
    for kind in (L2InLoss(), L2PerRow()):
        optimisers = Trainer(
            composition("fm"), worlds["one task"], quick(first_order=FTRL(), regularise=kind)
        ).optimisers
        charged = optimisers.regularisers.keys()
        assert charged == {n for n, row in optimisers.rows.items() if not isinstance(row, RowFTRL)}
        assert charged < optimisers.rows.keys()


def test_per_row_is_refused_where_no_row_reads_the_table(worlds: dict[str, Dataset]) -> None:
    with pytest.raises(UserError, match=r"l2_per_row: .*catalogue.biases.weight is compared with sampled or all items"):
        Trainer(composition("bert4rec"), worlds["plain"], quick(regularise=L2PerRow())).fit()


def test_decay_is_settled_before_evaluation_and_rows_nobody_met_pay_too(worlds: dict[str, Dataset]) -> None:
    data, lr, strength = worlds["plain"], 0.05, 4.0
    options = quick(epochs=1, tables=SGD(lr=lr), regularise=L2(strength=strength))
    trainer = Trainer(small("base"), data, options)
    start = {name: tables.weight.detach().clone() for name, tables in trainer.model.embeddings().items()}
    met: dict[str, set[int]] = {name: set() for name in start}
    for name, tables in trainer.optimisers.tables.items():
        catch_up = tables.before_gather
        assert catch_up is not None
        tables.before_gather = lambda rows, n=name, c=catch_up: (met[n].update(rows.tolist()), c(rows))
    (epoch,) = trainer.fit()
    again = metrics(predict(trainer.model, trainer.builder, data.requests_of("validation")))
    assert repr(again) == repr(epoch.validation)  # NaN included
    steps = len(list(trainer.builder.steps(data.requests_of("train"), options.batch, 0)))
    for name, weight in start.items():
        alone = [row for row in range(len(weight)) if row not in met[name] and bool(weight[row].any())]
        assert len(alone) > 3
        now = trainer.model.embeddings()[name].weight.detach()[alone]
        assert torch.allclose(now, weight[alone] * (1 - lr * strength) ** steps, rtol=1e-4, atol=0)


def test_clip_bounds_the_dense_step_and_leaves_the_tables_alone(worlds: dict[str, Dataset]) -> None:
    data = worlds["plain"]
    moved = {}
    for clip in (None, 1e-3):
        trainer = Trainer(small("base"), data, quick(clip=clip, dense=SGD(lr=1.0), tables=SGD(lr=1.0)))
        before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
        step = next(trainer.builder.steps(data.requests_of("train"), trainer.options.batch, 0))
        trainer.train_step(step)
        after = trainer.model.state_dict()
        dense = [(after[k] - before[k]).flatten() for k in trainer.optimisers.dense_parameters]
        tables = [(after[k] - before[k]).flatten() for k in trainer.optimisers.tables]
        moved[clip] = float(torch.cat(dense).norm()), torch.cat(tables)
    assert moved[None][0] > 1e-2
    assert moved[1e-3][0] == pytest.approx(1e-3, rel=1e-3)
    assert torch.equal(moved[None][1], moved[1e-3][1])


# ------------------------------------------------------------------------------------------------ epochs


@pytest.mark.parametrize("patience", [0, 1, 2])
def test_patience_ends_it_and_the_best_weights_come_back(
    patience: int, worlds: dict[str, Dataset], tmp_path: Path
) -> None:
    """With a rate that overfits at once, every epoch after the best is borne but one."""
    options = quick(epochs=30, patience=patience, tables=Adam(lr=0.05), dense=Adam(lr=0.05))
    trainer = Trainer(small("base"), worlds["plain"], options, tmp_path)
    history = trainer.fit()
    scores = [e.score for e in history]
    best = int(np.argmax(scores))
    assert len(history) == best + patience + 2 < 30
    assert [e.best for e in history] == [s == max(scores[: i + 1]) for i, s in enumerate(scores)]
    assert history[best].score == -np.mean([found["logloss"] for found in history[best].validation.values()])
    again = metrics(predict(trainer.model, trainer.builder, worlds["plain"].requests_of("validation")))
    assert repr(again) == repr(history[best].validation)  # NaN included
    assert repr(again) != repr(history[-1].validation)
    same(weights_in(kept(tmp_path, "best")), dict(trainer.model.state_dict()))
    last = weights_in(kept(tmp_path))
    assert any(not torch.equal(last[name], t) for name, t in trainer.model.state_dict().items())


def test_rates_fall_after_every_epoch_without_improvement(worlds: dict[str, Dataset]) -> None:
    """Of tables and of the rest, as often as the score did not rise so far; FTRL's stay."""
    seen: list[list[float]] = []

    def look(point: str) -> None:
        if point == "step" and len(seen) == trainer.epoch:
            rows = [row.lr for _, row in sorted(trainer.optimisers.rows.items())]
            seen.append([*rows, trainer.optimisers.dense.lr])

    options = quick(epochs=6, plateau=0.1, tables=Adam(lr=0.1), dense=Adam(lr=0.2), first_order=FTRL(alpha=0.3))
    trainer = Trainer(composition("wide_deep"), worlds["one task"], options, at=look)
    history = trainer.fit()
    misses = [sum(not e.best for e in history[:i]) for i in range(len(history))]
    assert misses[-1] > 0
    first = {name for name in trainer.optimisers.rows if name in trainer.model.first_order()}
    for missed, rates in zip(misses, seen, strict=True):
        wanted = [0.3 if name in first else 0.1 * 0.1**missed for name in sorted(trainer.optimisers.rows)]
        assert rates == pytest.approx([*wanted, 0.2 * 0.1**missed], rel=1e-12)


@pytest.mark.parametrize("name", ["lr", "base", "din", "dien"])
def test_the_loss_falls(name: str, worlds: dict[str, Dataset]) -> None:
    options = quick(epochs=6, tables=Adam(lr=0.01), dense=Adam(lr=0.01))
    losses = [e.loss for e in Trainer(composition(name), worlds["plain"], options).fit()]
    assert losses[-1] < 0.9 * losses[0]
    assert all(math.isfinite(loss) for loss in losses)


def test_an_epochs_loss_is_the_mean_over_its_rows_that_count(worlds: dict[str, Dataset]) -> None:
    """It was divided by all rows, and stood beside a validation log loss over those that count. Rates are so small that
    the weights stand still."""
    weights = worlds["plain"].weights.copy()
    weights[::2] = 0
    data, still = replace(worlds["plain"], weights=weights), SGD(lr=1e-12)
    trainer = Trainer(composition("lr"), data, quick(epochs=1, tables=still, dense=still, batch=Budget(rows=7)))
    found = predict(trainer.model.eval(), trainer.builder, data.requests_of("train"), 1_000, trainer.device)
    (epoch,) = trainer.fit()
    assert epoch.rows == len(data.rows_of(data.requests_of("train")))
    wanted = metrics(found)
    assert epoch.loss == pytest.approx(sum(of["logloss"] for of in wanted.values()), rel=1e-5)
    # what is minimised is left as it was: a mean over all rows of a step
    everything = BatchBuilder(data, trainer.model.needs).batch(data.requests_of("train"))
    terms = trainer.model.losses(everything, trainer.model(everything))
    for i, (name, of) in enumerate(wanted.items()):
        share = float((everything.weights[:, i] != 0).float().mean())
        assert float(terms[name].detach()) == pytest.approx(of["logloss"] * share, rel=1e-5)


def test_same_seed_same_bits_other_seed_other_bits(worlds: dict[str, Dataset]) -> None:
    def weights(seed: int) -> dict[str, Tensor]:
        trainer = Trainer(small("dien", dropout=0.5), worlds["plain"], quick(seed=seed))
        trainer.fit()
        return dict(trainer.model.state_dict())

    first = weights(1)
    torch.manual_seed(99)  # what was drawn before has no say
    torch.rand(5)
    same(weights(1), first)
    other = weights(2)
    assert all(not torch.equal(first[name], other[name]) for name in first if first[name].is_floating_point())


def test_epochs_differ_in_order_and_dropout(worlds: dict[str, Dataset]) -> None:
    trainer = Trainer(composition("lr"), worlds["plain"], quick())
    train = worlds["plain"].requests_of("train")
    first, second = (np.concatenate([s.requests for s in trainer.builder.steps(train, Budget(), e)]) for e in (0, 1))
    assert sorted(first) == sorted(second) == sorted(train)
    assert first.tolist() != second.tolist()
    dropping = Trainer(small("base", dropout=0.5), worlds["plain"], quick(dense=SGD(lr=1e-12), tables=SGD(lr=1e-12)))
    (step, *_) = dropping.builder.steps(train, Budget(), 0)
    losses = []
    for dropping.epoch, dropping.step in ((0, 0), (0, 1), (1, 0), (0, 0)):
        losses.append(dropping.train_step(step))
    assert len(set(losses[:3])) == 3
    assert losses[3] == pytest.approx(losses[0], abs=1e-9)


def test_progress_hears_every_row_once(worlds: dict[str, Dataset], tmp_path: Path) -> None:
    class Listener(Progress):
        def __init__(self) -> None:
            self.epochs: list[list[int]] = []
            self.done: list[int] = []

        def epoch(self, epoch: int, rows: int) -> None:
            self.epochs.append([epoch, rows, 0])

        def advance(self, rows: int, loss: float) -> None:
            self.epochs[-1][2] += rows

        def validated(self, epoch: Epoch) -> None:
            self.done.append(epoch.epoch)

    class Stopped(BaseException):
        pass

    data = worlds["plain"]
    rows = len(data.rows_of(data.requests_of("train")))
    whole = Listener()
    Trainer(small("base"), data, quick(), progress=whole).fit()
    assert whole.epochs == [[0, rows, rows], [1, rows, rows]]
    assert whole.done == [0, 1]
    count = 0

    def stop(point: str) -> None:
        nonlocal count
        count += point == "step"
        if count == 2:
            raise Stopped

    with pytest.raises(Stopped):
        Trainer(small("base"), data, quick(save_every=1), tmp_path, at=stop).fit()
    resumed = Listener()
    Trainer(small("base"), data, quick(save_every=1), tmp_path, resumed).fit(resume=True)
    assert resumed.epochs == whole.epochs  # what was done before is told at once


# ------------------------------------------------------------------------------------------------ what goes wrong


def test_a_loss_that_is_no_number_is_a_sentence_and_moves_nothing(worlds: dict[str, Dataset], tmp_path: Path) -> None:
    trainer = Trainer(small("base"), worlds["plain"], quick(dense=SGD(lr=1e30), save_every=1), tmp_path)
    with pytest.raises(UserError, match=r"the loss became (nan|inf) in epoch 1, step \d; try a smaller learning rate"):
        trainer.fit()
    for tensors in (dict(trainer.model.state_dict()), kept(tmp_path)):
        assert all(bool(torch.isfinite(t).all()) for t in tensors.values())


def test_threads_are_set(worlds: dict[str, Dataset]) -> None:
    try:
        Trainer(composition("lr"), worlds["plain"], quick(threads=2))
        assert torch.get_num_threads() == 2
        Trainer(composition("lr"), worlds["plain"], quick(threads=None))
        assert torch.get_num_threads() == 2  # left as it is
    finally:
        torch.set_num_threads(1)


def test_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    if torch.cuda.is_available():
        assert choose_device("auto") == choose_device("cuda") == torch.device("cuda")
    else:
        assert choose_device("auto") == torch.device("cpu")
        with pytest.raises(UserError, match=r'training\.device = "cuda", but PyTorch sees no CUDA device'):
            choose_device("cuda")


def test_growing_tables_admit_before_they_train(worlds: dict[str, Dataset]) -> None:
    """Rows are given out at the start of a training, to the most frequent; what found none reads as unknown."""
    data = worlds["growing"]
    assert Growing(capacity=20) == training_victim.ENCODING
    trainer = Trainer(small("din"), data, quick(epochs=1))
    assert len(data.fitted.tables["item"].counts) > 23  # more items than rows
    trainer.fit()
    rows = trainer.row_maps["item"].rows_of(np.arange(len(data.fitted.tables["item"].counts)))
    assert sorted(rows[rows > 2]) == list(range(3, 23))
    counts = data.fitted.tables["item"].counts
    assert counts[3:][rows[3:] > 2].min() >= counts[3:][rows[3:] == 1].max()
