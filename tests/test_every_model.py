"""One matrix: every registered model passes every check, at its defaults (`tiny.SIZES` says which are smaller here, and why).

A model may be exempted from a check only by its own declaration, with a reason and a test of this file that replaces it
(`Composition.exemptions`); docs/models.md prints them. The numbers by hand that only a test of its own can give stand in
`forward_passes`; the export's parity in test_export.py.
"""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import forward_passes
import numpy as np
import pytest
import tiny
import torch
from torch import Tensor
from torch.nn import Dropout

from finerank.data.batch import Batch
from finerank.data.builder import BatchBuilder
from finerank.data.dataset import Dataset
from finerank.data.order import Budget
from finerank.layers.activation import Dice
from finerank.layers.mlp import BatchNorm
from finerank.layers.noise import Noise
from finerank.models import registry
from finerank.models.composition import Model
from finerank.schema import OOV
from finerank.training.checkpoint import Checkpoints, restore
from finerank.training.loop import Trainer
from finerank.training.options import Adam, TrainingOptions
from finerank.training.stages import after_stages
from finerank.training.warm_start import OldRun
from finerank.typed import plain

NAMES = registry.names()
CHECKS: dict[str, Callable[..., None]] = {}


def check(fn: Callable[..., None]) -> Callable[..., None]:
    CHECKS[fn.__name__.removeprefix("check_")] = fn
    return fn


@pytest.fixture(scope="session")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Dataset]:
    folder = tmp_path_factory.mktemp("worlds")
    return {tasks: tiny.dataset(folder / str(tasks), tasks=tasks) for tasks in (1, 2, 3)}


def world_of(name: str, worlds: dict[int, Dataset]) -> Dataset:
    return worlds[tiny.composition(name).least_tasks]


def built(name: str, data: Dataset, seed: int = 0, spread: float = 0.3) -> Model:
    """The model with weights large enough that every part matters."""
    torch.manual_seed(seed)
    model = registry.build(tiny.composition(name), data.fitted)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape) * spread
        for tables in model.embeddings().values():
            for start in tables.start.values():
                tables.weight[start] = 0.0
    return model


def batch_of(model: Model, data: Dataset, requests: list[int] | np.ndarray) -> Batch:
    return BatchBuilder(data, model.needs).batch(np.asarray(requests))


def dense(model: Model) -> Model:
    """The plain twin: gradients reach the whole weight of every table."""
    for tables in model.embeddings().values():
        tables.sparse = False
    return model


def frozen(model: Model) -> Model:
    """In training, but with the statistics of evaluation and without noise."""
    model.train()
    for module in model.modules():
        if isinstance(module, Dice | BatchNorm | Dropout | Noise):
            module.eval()
    return model


def close(a: Tensor, b: Tensor) -> bool:
    """Equal but for the order in which float32 sums were taken."""
    return bool(torch.allclose(a, b, rtol=1e-4, atol=1e-4))


def in_double(batch: Batch) -> Batch:
    return replace(
        batch,
        request=replace(batch.request, numbers=batch.request.numbers.double()),
        candidate=replace(batch.candidate, numbers=batch.candidate.numbers.double()),
        labels=batch.labels.double(),
        weights=batch.weights.double(),
    )


def total(model: Model, batch: Batch) -> Tensor:
    return sum(model.losses(batch, model(batch)).values(), torch.zeros(()))


def losses_of(model: Model, batch: Batch) -> dict[str, float]:
    """Each term of the loss, under the same noise at every call."""
    torch.manual_seed(0)
    return {term: float(loss.detach()) for term, loss in model.losses(batch, model(batch)).items()}


def busy(data: Dataset, count: int = 12) -> np.ndarray:
    """Requests, most of them with a history."""
    slices = data.slices["clicks"]
    return np.argsort(slices.start - slices.end, kind="stable")[:count]


@check
def check_shapes_and_start(name: str, data: Dataset, tmp: Path) -> None:
    """One column a head, and an untrained model predicts near the base rate."""
    torch.manual_seed(0)
    model = registry.build(tiny.composition(name), data.fitted).eval()
    batch = batch_of(model, data, np.arange(data.requests))
    out = model(batch)
    assert out.logits.shape == (data.rows, len(model.heads))
    for i, head in enumerate(model.heads):
        if head.space == "own":
            rate = data.fitted.base_rates[head.task]
            link = {"sigmoid": torch.sigmoid, "exp": torch.exp, "odds": torch.exp, "identity": torch.clone}[head.link]
            least = 0.1 if head.link == "sigmoid" else 0.1 * abs(rate)
            assert abs(float(link(out.logits[:, i]).mean().detach()) - rate) < least


@check
def check_gradients_in_float64(name: str, data: Dataset, tmp: Path) -> None:
    """The derivative along random directions of each parameter equals the difference quotient.

    A kink of ReLU may lie on the short way of the quotient, so three models are drawn and one must agree throughout.
    """
    assert [] in (_wrong_gradients(name, data, seed) for seed in range(3))


def _wrong_gradients(name: str, data: Dataset, seed: int, step: float = 1e-6) -> list[str]:
    """The parameters whose derivative is not the difference quotient."""
    model = frozen(dense(built(name, data, seed).double()))
    batch = in_double(batch_of(model, data, busy(data, 6)))
    total(model, batch).backward()
    draw = torch.Generator().manual_seed(1)
    wrong, moved = [], 0
    for key, parameter in model.named_parameters():
        if parameter.grad is None or not parameter.numel():
            continue
        direction = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
        direction /= direction.norm()
        slope = float((parameter.grad * direction).sum())
        with torch.no_grad():
            parameter += step * direction
            up = float(total(model, batch).detach())
            parameter -= 2 * step * direction
            down = float(total(model, batch).detach())
            parameter += step * direction
        if slope != pytest.approx((up - down) / (2 * step), rel=1e-4, abs=1e-7):
            wrong.append(key)
        moved += slope != 0
    assert moved >= 2
    return wrong


@check
def check_every_parameter_learns(name: str, data: Dataset, tmp: Path) -> None:
    model = frozen(dense(built(name, data)))
    total(model, batch_of(model, data, np.arange(data.requests))).backward()
    idle = [k for k, p in model.named_parameters() if p.numel() and (p.grad is None or not bool((p.grad != 0).any()))]
    assert idle == []


@check
def check_row_alone_equals_row_in_batch(name: str, data: Dataset, tmp: Path) -> None:
    """Batch mates, and through them the longest history, change nothing."""
    model = built(name, data).eval()
    together = model(batch_of(model, data, np.arange(data.requests))).logits
    for request in range(0, data.requests, 7):
        alone = model(batch_of(model, data, [request])).logits
        rows = slice(data.first[request], data.first[request + 1])
        assert close(alone, together[rows])


@check
def check_row_alone_in_training_with_frozen_statistics(name: str, data: Dataset, tmp: Path) -> None:
    model = frozen(built(name, data))
    together = model(batch_of(model, data, np.arange(data.requests))).logits
    for request in range(0, data.requests, 11):
        rows = slice(data.first[request], data.first[request + 1])
        assert close(model(batch_of(model, data, [request])).logits, together[rows])


@check
def check_one_candidate_of_a_request_alone(name: str, data: Dataset, tmp: Path) -> None:
    """A request with fewer candidates gives these candidates the same logits."""
    model = built(name, data).eval()
    builder = BatchBuilder(data, model.needs)
    request = int(np.argmax(np.diff(data.first)))
    whole = model(builder.batch(np.array([request]))).logits
    for i in range(len(whole)):
        part = model(builder.batch(np.array([request]), chunk=(i, i + 1), rows_in_step=len(whole))).logits
        assert close(part, whole[i : i + 1])


@check
def check_order_of_candidates_is_irrelevant(name: str, data: Dataset, tmp: Path) -> None:
    model = built(name, data).eval()
    batch = batch_of(model, data, [int(np.argmax(np.diff(data.first)))])
    turn = torch.arange(batch.N - 1, -1, -1)
    from finerank.data.batch import pair_up
    from finerank.data.columns import take_block

    def turned(t: Tensor) -> Tensor:
        return t[turn]

    block = take_block(batch.candidate.map(lambda t: t.numpy()), turn.numpy()).map(torch.from_numpy)
    other = replace(
        batch,
        candidate=block,
        pairs={k: pair_up(batch.request_of, batch.histories[k].lengths) for k in batch.pairs},
    )
    assert close(model(other).logits, turned(model(batch).logits))


@check
def check_empty_histories(name: str, data: Dataset, tmp: Path) -> None:
    model = built(name, data)
    slices = data.slices["clicks"]
    empty = np.flatnonzero(slices.start == slices.end)
    assert len(empty) > 2
    for requests in (empty, empty[:1]):
        batch = batch_of(model, data, requests)
        model.train()
        loss = total(model, batch)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(model.eval()(batch).logits).all()


@check
def check_batch_of_one(name: str, data: Dataset, tmp: Path) -> None:
    model = built(name, data)
    single = np.flatnonzero(np.diff(data.first) == 1)
    for request in single[:3]:
        batch = batch_of(model, data, [int(request)])
        model.train()
        out = model(batch)
        assert out.logits.shape == (1, len(model.heads))
        sum(model.losses(batch, out).values(), torch.zeros(())).backward()
        for p in model.parameters():
            assert p.grad is None or torch.isfinite(p.grad).all()


@check
def check_everything_out_of_vocabulary(name: str, data: Dataset, tmp: Path) -> None:
    model = built(name, data).eval()
    batch = batch_of(model, data, busy(data))

    def unknown(block):  # type: ignore[no-untyped-def]
        lists = {k: replace(v, ids=torch.full_like(v.ids, OOV)) for k, v in block.lists.items()}
        return replace(block, ids=torch.full_like(block.ids, OOV), lists=lists)

    batch = replace(
        batch,
        request=unknown(batch.request),
        candidate=unknown(batch.candidate),
        histories={k: replace(h, events=unknown(h.events)) for k, h in batch.histories.items()},
    )
    assert torch.isfinite(model(batch).logits).all()


@check
def check_sparse_gradients_equal_the_dense_twin(name: str, data: Dataset, tmp: Path) -> None:
    requests = busy(data)
    sparse, plain_twin = frozen(built(name, data)), frozen(dense(built(name, data)))
    batch = batch_of(sparse, data, requests)
    total(sparse, batch).backward()
    total(plain_twin, batch).backward()
    for key, tables in sparse.embeddings().items():
        found = tables.take_gradient()
        assert found is not None
        rows, grad = found
        whole = torch.zeros_like(tables.weight).index_copy(0, rows, grad)
        reference = plain_twin.embeddings()[key].weight.grad
        assert reference is not None
        assert torch.allclose(whole, reference, atol=1e-6), key
        assert len(rows) == len(torch.unique(rows))
    for (key, a), b in zip(sparse.named_parameters(), plain_twin.parameters(), strict=True):
        if a.grad is not None:
            assert torch.allclose(a.grad, b.grad, atol=1e-6), key  # type: ignore[arg-type]


@check
def check_chunks_of_a_request_give_the_gradient_of_the_whole(name: str, data: Dataset, tmp: Path) -> None:
    """In double precision: of sums of thousands of terms float32 would show the order in which they were taken."""
    model = frozen(dense(built(name, data).double()))
    builder = BatchBuilder(data, model.needs)
    request = np.array([int(np.argmax(np.diff(data.first)))])
    total(model, in_double(builder.batch(request))).backward()
    whole = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    (step,) = builder.steps(request, Budget(rows=2), shuffle=False)
    assert len(step.chunks) == (int(np.diff(data.first)[request[0]]) + 1) // 2
    for batch in builder.batches(step):
        total(model, in_double(batch)).backward()
    parts = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.allclose(a, b, rtol=1e-7, atol=1e-9) for a, b in zip(whole, parts, strict=True))


@check
def check_nan_under_weight_zero_reaches_no_gradient(name: str, data: Dataset, tmp: Path) -> None:
    model = dense(built(name, data)).train()
    batch = batch_of(model, data, np.arange(data.requests))
    weights = batch.weights.clone()
    weights[::2] = 0.0
    labels = batch.labels.clone()
    labels[weights == 0] = torch.nan
    total(model, replace(batch, labels=labels, weights=weights)).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@check
def check_batch_without_rows_of_a_task_gives_zero(name: str, data: Dataset, tmp: Path) -> None:
    """Every term of the loss that other labels change, a trained head's among them, is 0 where no row has a weight."""
    model = built(name, data).train()
    batch = batch_of(model, data, np.arange(data.requests))
    true, other = (losses_of(model, replace(batch, labels=labels)) for labels in (batch.labels, batch.labels.flip(0)))
    judged = {term for term, loss in true.items() if loss != other[term]}
    assert judged >= {head.name for head in model.heads if head.trained}
    assert judged
    without = losses_of(model, replace(batch, weights=torch.zeros_like(batch.weights)))
    assert {term: without[term] for term in judged} == dict.fromkeys(judged, 0.0)


@check
def check_fits_a_tiny_set(name: str, data: Dataset, tmp: Path) -> None:
    options = TrainingOptions(epochs=1, tables=Adam(lr=0.03), dense=Adam(lr=0.01), keep_memory=False, threads=1)
    trainer = after_stages(tiny.composition(name), data, options)
    (step,) = trainer.builder.steps(busy(data, 10), Budget(rows=10_000), shuffle=False)
    losses = [trainer.train_step(step) for _ in range(80)]
    assert losses[-1] < 0.5 * losses[0]


@check
def check_same_seed_same_bits_and_resume_equals_uninterrupted(name: str, data: Dataset, tmp: Path) -> None:
    options = TrainingOptions(
        epochs=3, patience=9, batch=Budget(rows=32), save_every=2, keep_memory=False, threads=1, seed=5
    )
    whole = after_stages(tiny.composition(name), data, options, tmp / "whole")
    whole.fit()
    with pytest.raises(tiny.Stopped):  # of a model that trains in stages, in the first of them that has steps
        after_stages(tiny.composition(name), data, options, tmp / "cut", at=tiny.stopping_at_step(5)).fit()
    resumed = after_stages(tiny.composition(name), data, options, tmp / "cut", resume=True)
    resumed.fit(resume=True)
    for (key, a), b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    assert [(e.loss, e.score) for e in whole.history] == [(e.loss, e.score) for e in resumed.history]


@check
def check_best_weights_are_restored(name: str, data: Dataset, tmp: Path) -> None:
    """Also when patience never runs out: the model at the end scores what the best epoch scored."""
    from finerank.training.evaluate import metrics, monitored, predict

    options = TrainingOptions(
        epochs=4, patience=9, batch=Budget(rows=32), tables=Adam(lr=0.05), keep_memory=False, threads=1
    )
    trainer = after_stages(tiny.composition(name), data, options)
    history = trainer.fit()
    measured = metrics(predict(trainer.model, trainer.builder, data.requests_of("validation"), logged=True))
    assert monitored(trainer.model, measured, "auc") == max(e.score for e in history)


@check
def check_state_loads_strictly(name: str, data: Dataset, tmp: Path) -> None:
    model, other = built(name, data, seed=1), built(name, data, seed=2)
    state = model.state_dict()
    restore(other, state, "model")
    batch = batch_of(model, data, busy(data))
    assert torch.equal(model.eval()(batch).logits, other.eval()(batch).logits)
    for wrong in ({**state, "more": torch.zeros(1)}, dict(list(state.items())[1:])):
        with pytest.raises(ValueError, match=r"does not fit"):
            restore(other, wrong, "model")


@check
def check_a_warm_start_takes_over_all_of_it(name: str, data: Dataset, tmp: Path) -> None:
    """On the same data a model that begins with another's learning is that other, to the last bit."""
    composition = tiny.composition(name)
    old = built(name, data, seed=1)
    Checkpoints(tmp / "best").save({f"model.{key}": t for key, t in old.state_dict().items()}, {}, 1)
    options = TrainingOptions(warm_start=str(tmp), keep_memory=False, threads=1, seed=2)
    trainer = Trainer(composition, data, options, old=OldRun.of(tmp, composition, data))
    batch = batch_of(old, data, busy(data))
    assert not torch.equal(trainer.model.eval()(batch).logits, old.eval()(batch).logits)
    trainer.begin()
    assert torch.equal(trainer.model.eval()(batch).logits, old.eval()(batch).logits)


@check
def check_recipe_round_trip(name: str, data: Dataset, tmp: Path) -> None:
    """The resolved options parse back to the same composition; an unknown key names the valid ones."""
    c = registry.composition(name)
    table = {
        "name": name,
        "representation": plain(c.representation),
        "interactions": [plain(o) for o in c.interactions],
        "heads": plain(c.heads),
    }
    assert registry.parse(table) == c
    with pytest.raises(ValueError, match=r"model\.representation\.widht: unknown key"):
        registry.parse({"name": name, "representation": {"widht": 1}})


@check
def check_module_and_options_are_documented(name: str, data: Dataset, tmp: Path) -> None:
    c = registry.composition(name)
    model = registry.build(c, data.fitted)
    for part in (model.representation, *model.interactions, model.head):
        assert inspect.getdoc(type(part))
        assert inspect.getdoc(type(part).Options)  # type: ignore[union-attr]
    assert len(c.paper) > 5


def cases() -> list[tuple[str, str]]:
    """What a model is exempted from is replaced: `test_exemptions_are_replaced`."""
    return [(name, check) for name in NAMES for check in CHECKS if check not in registry.composition(name).exemptions]


@pytest.mark.parametrize(("name", "check_name"), cases())
def test_model(name: str, check_name: str, worlds: dict[int, Dataset], tmp_path: Path) -> None:
    torch.set_num_threads(1)
    CHECKS[check_name](name, world_of(name, worlds), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("check_name", CHECKS)
def test_fgcnn_at_its_defaults(
    check_name: str, worlds: dict[int, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(tiny.SIZES, "fgcnn")
    test_model("fgcnn", check_name, worlds, tmp_path)


def test_sizes_differ_from_defaults_with_a_reason() -> None:
    for name, (reason, _) in tiny.SIZES.items():
        assert len(reason) > 10
        assert tiny.composition(name) != registry.composition(name)


def test_gbdt_lr_fits_a_tiny_set_with_leaves_of_one_row(worlds: dict[int, Dataset]) -> None:
    data = worlds[1]
    options = TrainingOptions(epochs=1, tables=Adam(lr=0.1), keep_memory=False, threads=1)
    small = registry.parse({"name": "gbdt_lr", "stages": {"trees": {"min_rows": 1}}})
    trainer = after_stages(small, data, options)
    (step,) = trainer.builder.steps(trainer.requests[:12], Budget(rows=10_000), shuffle=False)
    losses = [trainer.train_step(step) for _ in range(80)]
    assert losses[-1] < 0.5 * losses[0]


def test_gbdt_lr_warms_up_with_trees_of_its_own(worlds: dict[int, Dataset], tmp_path: Path) -> None:
    data = worlds[1]
    composition = registry.parse({"name": "gbdt_lr", "stages": {"trees": {"min_rows": 2}}})
    options = TrainingOptions(epochs=1, tables=Adam(lr=0.1), keep_memory=False, threads=1)
    before = after_stages(composition, data, options, tmp_path)
    before.fit()
    other = registry.parse({"name": "gbdt_lr", "stages": {"trees": {"min_rows": 5}}})
    warm = replace(options, warm_start=str(tmp_path))
    after = after_stages(other, data, warm, old=OldRun.of(tmp_path, composition, data))
    grown = {name: t.clone() for name, t in after.model.named_buffers()}
    after.begin()
    for name, tensor in after.model.named_buffers():
        assert torch.equal(tensor, grown[name])
    assert any(not torch.equal(t, grown[name]) for name, t in before.model.named_buffers())
    for tables in after.model.embeddings().values():
        assert not bool(tables.weight.any())
    assert torch.equal(after.model.head.bias, before.model.head.bias)  # type: ignore[arg-type]


def test_aman_starts_at_the_rate_of_the_whole_chain(worlds: dict[int, Dataset]) -> None:
    data = worlds[2]
    torch.manual_seed(0)
    model = registry.build(registry.composition("aman"), data.fitted).eval()
    found = torch.sigmoid(model(batch_of(model, data, np.arange(data.requests))).logits.detach()).mean(0)
    rate = data.fitted.base_rates
    whole = rate["click"] * rate["conversion"]
    for head, start in zip(model.heads, found.tolist(), strict=True):
        assert start == pytest.approx(rate["click"] if head.name == "click" else whole, abs=0.05)


def test_ffm_begins_above_the_base_rate_by_its_positive_vectors(tmp_path: Path) -> None:
    """Two vectors of D numbers, uniform from 0 to 1 / sqrt(D), have <v, w> = D · 1 / (2 sqrt(D))^2 = 1 / 4 in the mean.

    So F (F - 1) / 2 pairs over the F squares of a row of ids alone give (F - 1) / 8.
    """
    data = tiny.dataset(tmp_path, tasks=1, rich=False)
    rate, fields, above = data.fitted.base_rates["click"], 4, []
    for seed in range(20):
        torch.manual_seed(seed)
        model = registry.build(registry.composition("ffm"), data.fitted).eval()
        logits = model(batch_of(model, data, np.arange(data.requests))).logits.detach()
        assert logits.shape == (data.rows, 1)
        above.append(float(logits.mean()) - math.log(rate / (1 - rate)))
    assert np.mean(above) == pytest.approx((fields - 1) / 8, abs=0.02)
    assert np.std(above) < 0.04


def test_bert4rec_learns_from_the_past_whatever_the_rows_say(worlds: dict[int, Dataset]) -> None:
    """No label and no weight moves the Cloze loss; requests without a past have nothing hidden and give 0."""
    data = worlds[1]
    model = built("bert4rec", data).train()
    batch = batch_of(model, data, np.arange(data.requests))
    found = losses_of(model, batch)
    assert list(found) == ["cloze"]
    assert found["cloze"] > 0
    assert losses_of(model, replace(batch, labels=1 - batch.labels)) == found
    assert losses_of(model, replace(batch, weights=torch.zeros_like(batch.weights))) == found
    slices = data.slices["clicks"]
    empty = np.flatnonzero(slices.start == slices.end)
    assert losses_of(model, batch_of(model, data, empty)) == {"cloze": 0.0}


def stands_in(replacement: str, name: str) -> bool:
    """A test of this file that speaks of the model: a check does not do, for the model passes all the others anyway."""
    test = globals().get(replacement)
    return replacement.startswith("test_") and inspect.isfunction(test) and f'"{name}"' in inspect.getsource(test)


def test_exemptions_are_replaced() -> None:
    for name in NAMES:
        for exempted, (reason, replacement) in registry.composition(name).exemptions.items():
            assert exempted in CHECKS
            assert len(reason) > 10
            assert stands_in(replacement, name), (name, replacement)


def test_what_the_model_runs_anyway_replaces_nothing() -> None:
    for name in ("fits_a_tiny_set", "check_fits_a_tiny_set", "test_model", "test_that_is_not_there"):
        assert not stands_in(name, "ffm")
    aman = "test_aman_starts_at_the_rate_of_the_whole_chain"
    assert stands_in(aman, "aman")
    assert not stands_in(aman, "ffm")


def found_in(file: str) -> set[str]:
    tree = ast.parse(Path(__file__).with_name(f"{file}.py").read_text(encoding="utf-8"))
    return {f"{file}::{node.name}" for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_forward_pass_is_proven() -> None:
    """Against numbers worked out by hand or loops over the paper's equations, in the tests that its section names."""
    assert list(forward_passes.BY_HAND) == NAMES
    assert set(forward_passes.LIMITS) <= set(NAMES)
    for tests in (*forward_passes.BY_HAND.values(), *forward_passes.LIMITS.values()):
        assert tests
        for test in tests:
            file, _, name = test.partition("::")
            assert name.startswith("test_")
            assert test in found_in(file)
