"""The compiled loops against their plain twins; and what happens where they cannot be built."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from finerank.data.batch import Pairs, pair_up
from finerank.kernels import build
from finerank.kernels import rows as loops
from finerank.layers.activation import Activation, PReLU
from finerank.layers.attention import ActivationUnit, UnitOptions, attend
from finerank.layers.embedding import Tables
from finerank.training.row_optim import LazyAdam

compiled = pytest.mark.skipif(build.library() is None, reason="no compiled loops here")


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache and nothing built yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build._built.cache_clear()
    yield tmp_path
    build._built.cache_clear()


def world(candidates: list[int], events: list[int], width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Pairs]:
    """q, k and pairs of requests with so many candidates and events each."""
    request_of = torch.from_numpy(np.repeat(np.arange(len(candidates)), candidates))
    q = torch.randn(len(request_of), width, dtype=dtype, requires_grad=True)
    k = torch.randn(sum(events), width, dtype=dtype, requires_grad=True)
    return q, k, pair_up(request_of, torch.tensor(events))


def unit(width: int, options: UnitOptions, context: int, dtype: torch.dtype) -> ActivationUnit:
    module = ActivationUnit(width, options, context).to(dtype)
    for part in module.modules():
        if isinstance(part, PReLU):  # slopes of both signs: one may be learnt
            torch.nn.init.uniform_(part.slope, -0.5, 0.5)
    return module


def weigh(module: ActivationUnit, q: Tensor, k: Tensor, context: Tensor | None, pairs: Pairs) -> list[Tensor]:
    """Weights, interests and the gradients of everything that went in."""
    weights = module(q, k, context, pairs)
    interest = attend(weights, k, pairs, len(q))
    loss = (weights * torch.linspace(-1, 1, len(weights), dtype=q.dtype)).sum() + interest.square().sum()
    into = [q, k, *([] if context is None else [context]), *module.parameters()]
    return [weights, interest, *torch.autograd.grad(loss, into)]


SHAPES = {
    "one candidate each": ([1, 1, 1, 1], [3, 1, 7, 20]),
    "several candidates": ([3, 1, 4], [5, 13, 2]),
    "empty histories": ([2, 1, 1, 3], [0, 4, 0, 0]),
    "nobody has a history": ([1, 2], [0, 0]),
    "requests without candidates": ([1, 0, 2], [2, 6, 9]),
}


@compiled
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("width", "options", "context"),
    [
        (32, UnitOptions(hidden=(64, 32), activation="relu"), 0),
        (12, UnitOptions(hidden=(80, 40)), 5),
        (16, UnitOptions(hidden=(7,), inputs=("product", "query")), 0),
        (8, UnitOptions(hidden=(16, 9, 5), inputs=("product", "key", "difference"), softmax=True), 3),
    ],
)
def test_unit_equals_its_plain_twin(shape: str, width: int, options: UnitOptions, context: int) -> None:
    torch.manual_seed(1)
    q, k, pairs = world(*SHAPES[shape], width, torch.float32)
    given = torch.randn(len(k), context, requires_grad=True) if context else None
    module = unit(width, options, context, torch.float32)
    assert module._compiled_layers()
    found = weigh(module, q, k, given, pairs)
    with build.switched(False):
        wanted = weigh(module, q, k, given, pairs)
    scales = [max(1.0, float(b.detach().abs().max())) if b.numel() else 1.0 for b in wanted]
    scales[-1] = max(
        scales[-2:]
    )  # the last bias: a sum that cancels is as exact as its terms, and the weights' has them too
    for a, b, close, scale in zip(found, wanted, [1e-6, 1e-6] + [1e-5] * (len(found) - 2), scales, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=close * scale)
    with torch.inference_mode():  # nothing is kept for a backward pass
        torch.testing.assert_close(module(q, k, given, pairs), wanted[0], rtol=0, atol=1e-6)


@compiled
@pytest.mark.parametrize("activation", ["prelu", "relu"])
@pytest.mark.parametrize("shape", SHAPES)
def test_unit_equals_its_plain_twin_in_double_precision(shape: str, activation: Activation) -> None:
    """Where nothing is lost by rounding, every gradient is held to its own size, the last bias's too."""
    torch.manual_seed(1)
    q, k, pairs = world(*SHAPES[shape], 12, torch.float64)
    given = torch.randn(len(k), 5, dtype=torch.float64, requires_grad=True)
    module = unit(12, UnitOptions(hidden=(80, 40), activation=activation), 5, torch.float64)
    assert module._compiled_layers()
    found = weigh(module, q, k, given, pairs)
    with build.switched(False):
        wanted = weigh(module, q, k, given, pairs)
    for a, b in zip(found, wanted, strict=True):
        scale = max(1.0, float(b.detach().abs().max())) if b.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * scale)


@compiled
def test_gradients_of_unit_and_attention_in_double_precision() -> None:
    torch.manual_seed(2)
    q, k, pairs = world([2, 1, 3], [2, 4, 0], 5, torch.float64)
    module = unit(5, UnitOptions(hidden=(4, 3)), 2, torch.float64)
    context = torch.randn(len(k), 2, dtype=torch.float64, requires_grad=True)

    def interests(q: Tensor, k: Tensor, context: Tensor, *_: Tensor) -> Tensor:
        return attend(module(q, k, context, pairs), k, pairs, len(q))

    assert loops.fits(q)
    assert torch.autograd.gradcheck(interests, (q, k, context, *module.parameters()))


@compiled
def test_other_activations_and_inputs_stay_plain() -> None:
    assert not unit(4, UnitOptions(activation="dice"), 0, torch.float32)._compiled_layers()
    assert not unit(4, UnitOptions(activation="sigmoid"), 0, torch.float32)._compiled_layers()
    assert not unit(4, UnitOptions(inputs=("query", "key")), 0, torch.float32)._compiled_layers()


@compiled
def test_pairs_without_spans_stay_plain() -> None:
    q, k, pairs = world([2, 1], [3, 2], 16, torch.float32)
    module = unit(16, UnitOptions(), 0, torch.float32)
    torch.testing.assert_close(module(q, k, None, replace(pairs, first=None)), module(q, k, None, pairs))


@compiled
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_the_work_and_repeat_to_the_bit(threads: int) -> None:
    torch.manual_seed(3)
    q, k, pairs = world([3, 1, 1, 5, 2, 1], [4, 30, 2, 1, 0, 9], 16, torch.float32)
    module = unit(16, UnitOptions(hidden=(16, 16)), 0, torch.float32)
    before = torch.get_num_threads()
    single = weigh(module, q, k, None, pairs)
    torch.set_num_threads(threads)
    try:
        once, again = weigh(module, q, k, None, pairs), weigh(module, q, k, None, pairs)
    finally:
        torch.set_num_threads(before)
    for a, b, c in zip(once, again, single, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-4)


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lookups_equal_their_plain_twin(dtype: torch.dtype) -> None:
    torch.manual_seed(4)
    tables = Tables({"a": 40, "b": 9}, 5, 0.1).to(dtype)
    target = torch.randn(200, 5, dtype=dtype)

    def found(ids: Tensor) -> tuple[Tensor, Tensor]:
        (tables(ids) * target[: len(ids)]).sum().backward()
        taken = tables.take_gradient()
        assert taken is not None
        rows, grad = taken
        assert len(rows) == len(ids.unique())
        order = rows.argsort()
        return rows[order], grad[order]

    for n in (200, 1, 0, 77):  # what one batch left behind misleads no other
        ids = torch.randint(49, (n,))
        rows, grad = found(ids)
        with build.switched(False):
            wanted_rows, wanted = found(ids)
        assert torch.equal(rows, wanted_rows)
        torch.testing.assert_close(grad, wanted, rtol=1e-5, atol=1e-6)


@compiled
def test_distinct_rows_of_far_apart_ids() -> None:
    ids = torch.tensor([7, 3_000_000_000, 7, 0, 1 << 62, 3_000_000_000, 1])
    rows, local = loops.distinct(ids)
    assert rows.tolist() == [7, 3_000_000_000, 0, 1 << 62, 1]
    assert local.tolist() == [0, 1, 0, 2, 3, 1, 4]
    crowded = torch.randint(3_000, (5_000,), generator=torch.Generator().manual_seed(3))
    rows, local = loops.distinct(crowded)
    assert torch.equal(rows.sort().values, crowded.unique())
    assert torch.equal(rows[local], crowded)


@compiled
@pytest.mark.parametrize("wrong", [-1, 49, 1 << 40])
def test_rows_that_a_table_lacks_are_an_error(wrong: int) -> None:
    tables = Tables({"a": 40, "b": 9}, 5, 0.1)
    for training in (True, False):
        with torch.set_grad_enabled(training), pytest.raises(IndexError):
            tables.train(training)(torch.tensor([3, wrong, 4]))


@compiled
@pytest.mark.parametrize("correction", ["global", "row"])
def test_lazy_adam_equals_its_plain_twin(correction: str) -> None:
    torch.manual_seed(5)
    first = torch.randn(50, 7)
    ours, plain = (LazyAdam(first.clone(), 0.01, correction=correction) for _ in range(2))  # type: ignore[arg-type]
    for _ in range(30):
        rows = torch.randperm(50)[:20]
        grad = torch.randn(20, 7) * 10 ** torch.randint(-4, 3, (20, 1))
        ours.step(rows, grad)
        with build.switched(False):
            plain.step(rows, grad)
    torch.testing.assert_close(ours.weight, plain.weight, rtol=1e-5, atol=1e-6)
    for key in plain.state:
        torch.testing.assert_close(ours.state[key], plain.state[key], rtol=1e-5, atol=1e-6)


@compiled
def test_built_once_into_the_cache(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(build, "_tell", told.append)
    assert build.library() is not None
    assert len(told) == 1
    assert told[0].startswith("compiling the loops that train for this processor, once")
    assert build.state().startswith("compiled")
    assert [p.suffix for p in (fresh / "finerank").iterdir()] == [".so"]
    build._built.cache_clear()
    monkeypatch.setattr(build, "_compile", lambda *_: pytest.fail("was built a second time"))
    assert build.library() is not None
    assert len(told) == 1


@pytest.mark.parametrize("missing", ["no compiler", "broken compiler", "cache is a file"])
def test_done_without(fresh: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    if missing == "no compiler":
        monkeypatch.setattr(build, "COMPILERS", ())
    elif missing == "cache is a file":
        (fresh / "finerank").write_text("in the way")
        monkeypatch.setattr(build, "COMPILERS", ("true",))
    else:
        monkeypatch.setattr(build, "COMPILERS", ("false",))
    assert build.library() is None
    assert build.state().startswith("plain: ")
    q, k, pairs = world([1, 2], [3, 4], 4, torch.float32)
    assert torch.isfinite(unit(4, UnitOptions(), 0, torch.float32)(q, k, None, pairs)).all()


def test_switched_off_and_on_again() -> None:
    before = build.library()
    with build.switched(False):
        assert build.library() is None
        assert build.state() == "plain: switched off"
    assert build.library() is before


def test_a_compiler_that_hangs_is_given_up(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: object) -> None:
        raise subprocess.TimeoutExpired("cc", 300)

    monkeypatch.setattr(build, "COMPILERS", ("true",))
    monkeypatch.setattr(build, "_compile", hang)
    assert build.library() is None
    assert build.state() == "plain: TimeoutExpired"
