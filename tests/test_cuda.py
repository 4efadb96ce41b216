"""On a CUDA device: every model computes what it computes on the processor, trains, goes on, and is scored on either.

`make test-cuda` runs these; elsewhere the suite sees no GPU (conftest), so that its numbers are the processor's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from test_every_model import NAMES, batch_of, built, busy, frozen, in_double, total, world_of
from typer.testing import CliRunner

from finerank.cli.app import verbs
from finerank.data.dataset import Dataset
from finerank.data.order import Budget
from finerank.export.bundle import write_bundle
from finerank.models.composition import Model
from finerank.models.snr import HardConcreteGates
from finerank.report.run_report import run_report
from finerank.run import Run
from finerank.schema import Growing
from finerank.training.evaluate import predict
from finerank.training.loop import Trainer
from finerank.training.options import TrainingOptions
from finerank.training.stages import after_stages
from finerank.typed import build

if not torch.cuda.is_available():
    pytest.skip("there is no CUDA device here, or `make test-cuda` was not asked for", allow_module_level=True)

pytestmark = pytest.mark.cuda
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Dataset]:
    folder = tmp_path_factory.mktemp("worlds")
    return {tasks: tiny.dataset(folder / str(tasks), tasks=tasks) for tasks in (1, 2, 3)}


def options(**more: Any) -> TrainingOptions:
    given = {"epochs": 2, "patience": 9, "batch": {"rows": 32}, "save_every": 2, "seed": 5, "device": "cuda"}
    return build(TrainingOptions, given | {"keep_memory": False, "threads": 1} | more)


def gradients(model: Model) -> dict[str, torch.Tensor]:
    """Of every dense parameter, and of the rows of every table in the order of the rows."""
    apart = model.embeddings()
    found = {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None and n not in apart}
    for name, tables in apart.items():
        if (taken := tables.take_gradient()) is not None:
            rows, grad = taken
            order = rows.cpu().argsort()
            found |= {f"{name} rows": rows.cpu()[order], name: grad.cpu()[order]}
    return found


def near(found: torch.Tensor, expected: torch.Tensor, relative: float = 1e-8) -> bool:
    """Whether two results of the same sums in different orders are the same: by the length of their difference."""
    a, b = found.detach().double(), expected.detach().double()
    return float((a - b).norm()) <= relative * (float(b.norm()) + 1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_those_of_the_processor(name: str, worlds: dict[int, Dataset]) -> None:
    """Logits in evaluation, and in training the loss and every gradient, in float64: there nothing hangs on rounding.

    Without noise, but for the gates of SNR, which are the same draws on either.
    """
    data = world_of(name, worlds)
    here, there = built(name, data, spread=0.1).double(), built(name, data, spread=0.1).double().to(CUDA)
    batch = in_double(batch_of(here, data, busy(data)))
    assert near(there.eval()(batch.to(CUDA)).logits.cpu(), here.eval()(batch).logits)
    losses = []
    for model, given in ((here, batch), (there, batch.to(CUDA))):
        for module in frozen(model).modules():
            if isinstance(module, HardConcreteGates):
                module.train()
        torch.manual_seed(0)
        loss = sum(model.losses(given, model(given)).values(), torch.zeros((), device=given.labels.device))
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    expected, found = gradients(here), gradients(there)
    assert found.keys() == expected.keys()
    assert [key for key in expected if not near(found[key], expected[key])] == []


@pytest.mark.parametrize("name", NAMES)
def test_trains_goes_on_and_is_scored_on_either(name: str, worlds: dict[int, Dataset], tmp_path: Path) -> None:
    data = world_of(name, worlds)
    model = tiny.composition(name)
    whole = after_stages(model, data, options(), tmp_path / "whole")
    history = whole.fit()
    assert all(np.isfinite(e.loss) for e in history)
    assert all(p.device.type == "cuda" for p in whole.model.parameters())
    with pytest.raises(tiny.Stopped):
        after_stages(model, data, options(), tmp_path / "cut", at=tiny.stopping_at_step(3)).fit()
    resumed = after_stages(model, data, options(), tmp_path / "cut", resume=True)
    resumed.fit(resume=True)
    # not to the bit: gradients are added up in no fixed order
    assert [e.loss for e in resumed.history] == pytest.approx([e.loss for e in history], rel=1e-3)

    here = Trainer(whole.composition, data, options(device="cpu"), tmp_path / "whole")
    here.load_best()
    requests = data.requests_of("test")
    given = predict(here.model, here.builder, requests).logits
    there = predict(whole.model, whole.builder, requests, device=CUDA).logits
    again = predict(resumed.model, resumed.builder, requests, device=CUDA).logits
    assert near(torch.from_numpy(there), torch.from_numpy(given), 1e-4)
    assert near(torch.from_numpy(again), torch.from_numpy(there), 1e-2)


@pytest.mark.parametrize(
    "more",
    [
        {"tables": {"kind": "adam", "correction": "row"}, "regularise": {"kind": "l2", "strength": 0.05}},
        {"tables": {"kind": "adagrad"}, "dense": {"kind": "adagrad"}, "regularise": {"kind": "mini_batch_aware"}},
        {"regularise": {"kind": "l2_in_loss"}},
        {"tables": {"kind": "adagrad"}, "regularise": {"kind": "l2_per_row"}},
        {"tables": {"kind": "ftrl"}, "dense": {"kind": "sgd"}, "clip": 1.0},
        {"sampling": {"negatives": 0.5, "correction": "weights"}},
        {"sampling": {"negatives": 0.5, "recalibrate": True}, "tables": {"kind": "adam", "lr": 0.02}},
    ],
    ids=lambda more: "-".join(more),
)
def test_every_way_of_training(more: dict[str, Any], worlds: dict[int, Dataset], tmp_path: Path) -> None:
    trainer = Trainer(tiny.composition("din"), worlds[1], options(epochs=3, **more), tmp_path)
    losses = [e.loss for e in trainer.fit()]
    assert losses[-1] < losses[0]
    again = Trainer(tiny.composition("din"), worlds[1], options(epochs=4, **more), tmp_path)
    assert len(again.fit(resume=True)) == 4


@pytest.mark.parametrize("kind", ["fixed", "uncertainty", "gradnorm"])
def test_balances_of_tasks(kind: str, worlds: dict[int, Dataset]) -> None:
    trainer = Trainer(tiny.composition("mmoe"), worlds[2], options(tasks={"kind": kind}))
    assert all(np.isfinite(e.loss) for e in trainer.fit())


def test_growing_tables(tmp_path: Path) -> None:
    data = tiny.dataset(tmp_path / "data", encoding=Growing(capacity=40))
    trainer = Trainer(tiny.composition("din"), data, options(), tmp_path / "run")
    assert all(np.isfinite(e.loss) for e in trainer.fit())


@pytest.mark.parametrize("name", ["din", "deepfm", "dcn", "dien", "mmoe"])
def test_bf16(name: str, worlds: dict[int, Dataset]) -> None:
    """The products are in bf16, the loss is nearly that of float32."""
    data = world_of(name, worlds)
    losses = {}
    for precision in ("float32", "bf16"):
        trainer = Trainer(tiny.composition(name), data, options(precision=precision))
        losses[precision] = trainer.fit()[-1].loss
    assert losses["bf16"] != losses["float32"]
    assert losses["bf16"] == pytest.approx(losses["float32"], rel=0.05)


def test_learns_a_tiny_set(worlds: dict[int, Dataset]) -> None:
    given = options(tables={"kind": "adam", "lr": 0.03}, dense={"kind": "adam", "lr": 0.01})
    trainer = Trainer(tiny.composition("din"), worlds[1], given)
    (step,) = trainer.builder.steps(busy(worlds[1], 10), Budget(rows=10_000), shuffle=False)
    losses = [trainer.train_step(step) for _ in range(80)]
    assert losses[-1] < 0.5 * losses[0]
    assert bool(total(trainer.model.cpu(), batch_of(trainer.model, worlds[1], busy(worlds[1]))).isfinite())


RECIPE = """
[data]
samples = "samples.parquet"
events = "events.parquet"
keys = {request = "request", user = "user", time = "time", sequence = "sequence"}
split = {validation = 0.2, test = 0.2}

[[feature]]
kind = "categorical"
name = "item"
level = "candidate"

[[feature]]
kind = "categorical"
name = "category"
level = "candidate"

[[history]]
name = "clicks"
fields = ["item", "category"]
where = {kind = "click"}

[[task]]
name = "click"

[model]
name = "din"

[training]
epochs = 2
"""


def test_from_the_command_line(tmp_path: Path) -> None:
    """Every verb that has to do with a model, with the device left to `auto`."""
    samples, events = tiny.frames(200)
    samples.write_parquet(tmp_path / "samples.parquet")
    events.write_parquet(tmp_path / "events.parquet")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    run, older = tmp_path / "run", tmp_path / "older"
    user = samples.tail(1)["user"][0]
    for command in (
        ["train", tmp_path / "recipe.toml", "--out", older],
        ["train", tmp_path / "recipe.toml", "--out", run, "--warm-start", older],
        ["evaluate", run, "--slice", "category"],
        ["evaluate", run, "--samples", tmp_path / "samples.parquet", "--out", tmp_path / "all.json"],
        ["predict", run, "--samples", tmp_path / "samples.parquet", "--out", tmp_path / "scores.parquet"],
        ["explain", run, "--user", user, "--map", "item"],
        ["explain", run, "--rows", "200"],
        ["defaults", run, "category"],
    ):
        found = CliRunner().invoke(verbs(), [str(part) for part in command], catch_exceptions=False)
        assert found.exit_code == 0, (command, found.output)
    assert '"device": "cuda"' in (run / "environment.json").read_text()
    assert run_report(Run.open(run), rows=200).startswith("<!doctype html>")


def test_a_served_bundle_is_of_the_same_model(worlds: dict[int, Dataset], tmp_path: Path) -> None:
    trainer = Trainer(tiny.composition("din"), worlds[1], options())
    trainer.fit()
    before = predict(trainer.model, trainer.builder, worlds[1].requests_of("test"), device=CUDA).logits
    write_bundle(trainer.model, worlds[1].fitted, worlds[1].encoder, tmp_path / "bundle")
    after = predict(trainer.model, trainer.builder, worlds[1].requests_of("test"), device=CUDA).logits
    assert near(torch.from_numpy(after), torch.from_numpy(before), 1e-5)  # sums over the past have no fixed order
