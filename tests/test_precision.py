"""bf16 placed by hand, against float32: as near as the rounding of products says, and nowhere but in training steps.

A product of two numbers rounded to 8 bits is off by 2^-8 at most, 2^-9 or so as a root mean square; errors of different
terms do not add up but average, so that sums are off by as little.
"""

from __future__ import annotations

import pytest
import tiny
import torch
from test_kernels import SHAPES, unit, weigh, world
from torch import Tensor, nn

from finerank.data.dataset import Dataset
from finerank.data.order import Budget
from finerank.errors import UserError
from finerank.kernels import build
from finerank.kernels import unit as loops
from finerank.layers.activation import Activation, PReLU
from finerank.layers.attention import UnitOptions
from finerank.layers.mlp import MLP, Hidden, SplitLinear, SplitMLP
from finerank.layers.precision import computing_in, lowered, product
from finerank.models.registry import composition
from finerank.run import environment
from finerank.training import loop
from finerank.training.evaluate import predict
from finerank.training.loop import Trainer
from finerank.training.options import TrainingOptions

fast = pytest.mark.skipif(not loops.has_bf16(), reason="no compiled loops with products in bf16 here")
CPU = torch.device("cpu")


def error(found: Tensor, wanted: Tensor) -> float:
    """Root mean square error over the root mean square of what is wanted."""
    found, wanted = found.detach(), wanted.detach()
    return float((found - wanted).norm() / wanted.norm().clamp(min=1e-12))


@fast
@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "nobody has a history"])
@pytest.mark.parametrize(
    ("width", "options", "context", "rounded"),
    [
        (32, UnitOptions(hidden=(64, 32)), 0, 2),  # rounded: how often on the way to a weight
        (12, UnitOptions(hidden=(80, 40)), 5, 2),
        (16, UnitOptions(hidden=(7,), inputs=("product", "query")), 0, 1),
        (8, UnitOptions(hidden=(16, 9, 5), inputs=("product", "key", "difference")), 3, 3),
    ],
)
def test_the_unit_is_as_near_as_its_roundings(
    shape: str, width: int, options: UnitOptions, context: int, rounded: int
) -> None:
    """With straight activations, whose gradient does not jump: jumps are the next test's."""
    torch.manual_seed(5)
    q, k, pairs = world(*SHAPES[shape], width, torch.float32)
    given = torch.randn(len(k), context, requires_grad=True) if context else None
    module = unit(width, options, context, torch.float32)
    for part in module.modules():
        if isinstance(part, PReLU):
            nn.init.ones_(part.slope)
    given_out = torch.randn(len(pairs.candidate))

    def gradients() -> list[Tensor]:
        weights = module(q, k, given, pairs)
        into = [q, k, *([] if given is None else [given]), *module.parameters()]
        return [weights, *torch.autograd.grad((weights * given_out).sum(), into)]

    with build.switched(False):
        wanted = gradients()
    with computing_in("bf16"):
        found = gradients()
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == torch.float32
        assert error(a, b) < (rounded + 1) * 2**-7, shape
    assert error(found[0], wanted[0]) > 2**-13  # it was bf16 that computed


@fast
@pytest.mark.parametrize("shape", SHAPES)
def test_the_unit_with_bends(shape: str) -> None:
    """Where a sum changes its sign the slope jumps: rarely, and gradients stay near on the whole."""
    torch.manual_seed(6)
    q, k, pairs = world(*SHAPES[shape], 32, torch.float32)
    module = unit(32, UnitOptions(hidden=(64, 32)), 0, torch.float32)
    wanted = weigh(module, q, k, None, pairs)
    with computing_in("bf16"):
        found = weigh(module, q, k, None, pairs)
    for a, b in zip(found, wanted, strict=True):
        assert error(a, b) < 0.1


@fast
def test_the_unit_repeats_to_the_bit_with_any_threads() -> None:
    torch.manual_seed(7)
    q, k, pairs = world([3, 1, 1, 5, 2, 1, 9], [4, 30, 2, 1, 0, 9, 33], 16, torch.float32)
    module = unit(16, UnitOptions(hidden=(32, 16)), 0, torch.float32)
    before = torch.get_num_threads()
    with computing_in("bf16"):
        single = weigh(module, q, k, None, pairs)
        torch.set_num_threads(3)
        try:
            once, again = weigh(module, q, k, None, pairs), weigh(module, q, k, None, pairs)
        finally:
            torch.set_num_threads(before)
    for a, b, c in zip(once, again, single, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=1e-3, atol=1e-3)


TOWERS = {
    "ten candidates each": (16, 64, (256, 128, 64), [10] * 30),  # the rows of two threads meet within a request
    "one candidate each": (5, 13, (20, 7), [1] * 33),
    "no request side": (0, 40, (48,), [3] * 51),
    "requests of all sizes": (3, 61, (80, 40), [1, 0, 7, 200, 1, 4]),
}


@fast
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("act", ["relu", "prelu"])
@pytest.mark.parametrize("shape", TOWERS)
def test_a_tower_is_as_near_as_its_roundings(shape: str, act: Activation, threads: int) -> None:
    """With straight activations, as above; every row, weight and request has a gradient."""
    torch.manual_seed(9)
    request, candidate, hidden, counts = TOWERS[shape]
    of = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    x_R = torch.randn(len(counts), request, requires_grad=True)
    x_N = torch.randn(len(of), candidate, requires_grad=True)
    tower = SplitMLP(request, candidate, hidden, act=act)
    for name, parameter in tower.named_parameters():
        if name.endswith("slope"):
            nn.init.ones_(parameter)
        elif act == "relu" and name.endswith("bias"):
            nn.init.constant_(parameter, 60.0 if parameter.shape[0] == hidden[0] else 0.0)
        elif act == "relu" and name.endswith("weight") and "first" not in name:
            nn.init.uniform_(parameter, 0.01, 0.1)  # nothing changes its sign, so no gradient jumps
    into = [x_N, *([x_R] if request else []), *tower.parameters()]
    grad = torch.randn(len(of), 1)

    def found() -> list[Tensor]:
        out = tower(x_R, x_N, of)
        return [out, *torch.autograd.grad((out * grad).sum(), into)]

    wanted = found()
    assert tower._compiled_layers()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with computing_in("bf16"):
            once, again = found(), found()
    finally:
        torch.set_num_threads(before)
    for a, b, c in zip(once, wanted, again, strict=True):
        assert torch.equal(a, c)
        assert a.dtype == torch.float32
        assert error(a, b) < (len(hidden) + 1) * 2**-7, shape
    assert type(once[0].grad_fn).__name__ == "_TowerBackward"


@fast
def test_a_tower_with_bends() -> None:
    """Where a sum changes its sign the slope jumps from 0 to 1: rarely, and gradients stay near on the whole."""
    torch.manual_seed(10)
    of = torch.arange(30).repeat_interleave(10)
    x_R, x_N = torch.randn(30, 16, requires_grad=True), torch.randn(300, 64, requires_grad=True)
    tower = SplitMLP(16, 64, (256, 128, 64))
    grad = torch.randn(300, 1)

    def found() -> list[Tensor]:
        out = tower(x_R, x_N, of)
        return [out, *torch.autograd.grad((out * grad).sum(), [x_N, x_R, *tower.parameters()])]

    wanted = found()
    with computing_in("bf16"):
        for a, b in zip(found(), wanted, strict=True):
            assert error(a, b) < 0.15


@fast
def test_a_tower_of_nobody() -> None:
    tower = SplitMLP(3, 20, (16, 16))
    x_N = torch.randn(0, 20, requires_grad=True)
    with computing_in("bf16"):
        out = tower(torch.randn(2, 3), x_N, torch.zeros(0, dtype=torch.int64))
    assert out.shape == (0, 1)
    out.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in tower.parameters())


@fast
@pytest.mark.parametrize("options", [{"act": "dice"}, {"dropout": 0.5}, {"batch_norm": True}, {"outputs": 2}])
def test_other_towers_stay_plain(options: dict) -> None:  # type: ignore[type-arg]
    assert SplitMLP(3, 5, (8, 4), **options)._compiled_layers() is None


@pytest.mark.parametrize("of", [[0, 0, 1, 2, 2, 2], [0, 1, 2, 3, 4, 5], []])
@pytest.mark.parametrize("options", [{}, {"act": "dice"}, {"act": "prelu", "batch_norm": True}])
def test_a_tower_casts_in_and_out(of: list[int], options: dict) -> None:  # type: ignore[type-arg]
    torch.manual_seed(8)
    request_of = torch.tensor(of, dtype=torch.int64)
    x_R, x_N = torch.randn(6, 9, requires_grad=True), torch.randn(len(of), 20, requires_grad=True)
    first, after = SplitLinear(9, 20, 32), Hidden(32, options.get("act", "relu"), 0.0, options.get("batch_norm", False))
    rest = MLP(32, (16, 8), 1, **options)
    into = [x_R, x_N, *first.parameters(), *after.parameters(), *rest.parameters()]

    def gradients() -> list[Tensor]:
        out = rest(after(first(x_R, x_N, request_of, inside=True)))
        assert out.dtype == torch.float32
        return [out, *torch.autograd.grad(out.square().sum(), into)]

    wanted = gradients()
    with computing_in("bf16"):
        found = gradients()
        assert first(x_R, x_N, request_of).dtype == torch.float32  # who does not ask for more gets what it always got
        with torch.no_grad():
            assert not lowered()
            plain = torch.cat([x_R[request_of], x_N], dim=1) @ first.weight.T + first.bias
            torch.testing.assert_close(first(x_R, x_N, request_of), plain)
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == torch.float32
        if "act" not in options:  # statistics over six rows turn roundings into anything
            assert error(a, b) < 0.1
    if of:
        assert not torch.equal(found[0], wanted[0])


def test_a_product_of_odd_width_is_the_same() -> None:
    torch.manual_seed(9)
    x, w, b = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((7, 131), (5, 131), (5,)))
    target = torch.randn(7, 5, dtype=torch.float64)
    found = torch.autograd.grad((product(x, w, b) * target).sum(), [x, w, b])
    torch.testing.assert_close(found, (target @ w, target.T @ x, target.sum(0)))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny.dataset(tmp_path_factory.mktemp("precision"), tasks=1)


def trained(shop: Dataset, precision: str) -> Trainer:
    options = TrainingOptions(epochs=2, batch=Budget(rows=40), threads=1, monitor="logloss", precision=precision)  # type: ignore[arg-type]
    trainer = Trainer(composition("din"), shop, options)
    trainer.fit()
    return trainer


@pytest.mark.skipif(not build.has_bf16(CPU), reason="this processor has no bf16 instructions")
def test_training_is_near_and_scoring_is_float32(shop: Dataset) -> None:
    a, b = trained(shop, "float32"), trained(shop, "bf16")
    assert a.history[0].loss != b.history[0].loss
    assert a.history[-1].loss == pytest.approx(b.history[-1].loss, rel=1e-2)
    assert {t.dtype for t in b.model.state_dict().values() if t.is_floating_point()} == {torch.float32}
    same = Trainer(composition("din"), shop, TrainingOptions(threads=1))
    same.model.load_state_dict(b.model.state_dict())
    requests = shop.requests_of("test")
    found, wanted = (predict(t.model, t.builder, requests).logits for t in (b, same))
    assert (found == wanted).all()


def test_without_the_instructions_it_is_refused(shop: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop.loops, "has_bf16", lambda device: False)
    with pytest.raises(UserError, match="precision = 'bf16', and this machine has no instructions"):
        trained(shop, "bf16")


def test_the_processor_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for told, has in ((b"flags: avx512f avx512_bf16", True), (b"flags: amx_bf16", True), (b"flags: avx2", False)):
        monkeypatch.setattr(build, "_instructions", lambda told=told: told)
        assert build.has_bf16(CPU) == has


def test_the_run_says_so() -> None:
    assert environment(CPU)["precision"] == "float32"
    assert environment(CPU, "bf16")["precision"] == "bf16"
