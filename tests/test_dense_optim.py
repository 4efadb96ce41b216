"""Optimisers of dense parameters: PyTorch's numbers to the bit, without what PyTorch loads to make one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from finerank.errors import UserError
from finerank.training.dense_optim import DenseAdagrad, DenseAdam, DenseOptimizer, DenseSGD

Ours = Callable[[Sequence[Tensor]], DenseOptimizer]
Twin = Callable[[Sequence[Tensor]], torch.optim.Optimizer]
WAYS: dict[str, tuple[Ours, Twin]] = {
    "adam": (
        lambda p: DenseAdam(p, 0.02, (0.8, 0.95), 1e-5),
        lambda p: torch.optim.Adam(p, 0.02, (0.8, 0.95), 1e-5, fused=True),
    ),
    "adagrad": (
        lambda p: DenseAdagrad(p, 0.1, 0.3),
        lambda p: torch.optim.Adagrad(p, 0.1, initial_accumulator_value=0.3),
    ),
    "adagrad from nothing": (lambda p: DenseAdagrad(p, 0.1), lambda p: torch.optim.Adagrad(p, 0.1)),
    "sgd": (lambda p: DenseSGD(p, 0.1), lambda p: torch.optim.SGD(p, 0.1)),
}


def parameters(dtype: torch.dtype) -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=draw, dtype=dtype)) for shape in ((3, 5), (5,), (), (0, 2))]


def learn(step: int, given: Sequence[nn.Parameter]) -> None:
    """Gradients of one step: the bias gets its first one late, and the last step reaches the matrix alone."""
    draw = torch.Generator().manual_seed(7 + step)
    for i, parameter in enumerate(given):
        grad = torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype)
        parameter.grad = None if (i == 1 and step < 2) or (i and step == 4) else grad * (step != 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("way", WAYS)
def test_pytorchs_numbers_to_the_bit(way: str, dtype: torch.dtype) -> None:
    """Parameters without a gradient stay; a rate that is set later counts from there on."""
    ours, twin = WAYS[way]
    mine, theirs = parameters(dtype), parameters(dtype)
    optimiser, other = ours(mine), twin(theirs)
    for step in range(5):
        for given in (mine, theirs):
            learn(step, given)
        if step == 2:
            optimiser.lr = 0.005
            other.param_groups[0]["lr"] = 0.005
        optimiser.step()
        other.step()
        assert all(p.grad is None for p in mine)
        for a, b in zip(mine, theirs, strict=True):
            assert torch.equal(a, b), (way, step)


@pytest.mark.parametrize("way", WAYS)
def test_a_saved_state_goes_on_as_if_nothing_had_been(way: str) -> None:
    """Copies are taken: what was saved stays as it is. A parameter that had not begun has not begun."""
    ours, _ = WAYS[way]
    whole, resumed = parameters(torch.float32), parameters(torch.float32)
    optimiser = ours(whole)
    learn(0, whole)
    optimiser.step()
    saved = [{name: t.clone() for name, t in state.items()} for state in optimiser.state]
    kept = [{name: t.clone() for name, t in state.items()} for state in saved]
    assert saved[1] == {}
    with torch.no_grad():
        for to, of in zip(resumed, whole, strict=True):
            to.copy_(of)
    later = ours(resumed)
    later.load(saved)
    for step in range(1, 5):
        for given in (whole, resumed):
            learn(step, given)
        optimiser.step()
        later.step()
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    for state, before in zip(saved, kept, strict=True):
        assert all(torch.equal(state[name], t) for name, t in before.items())


def test_a_state_of_another_optimiser_or_shape_is_refused() -> None:
    given = parameters(torch.float32)
    adam, adagrad = DenseAdam(given, 0.1), DenseAdagrad(given, 0.1)
    learn(0, given)
    adagrad.step()
    with pytest.raises(
        UserError, match=r"DenseAdam: the saved state does not fit: missing \['exp_avg', 'exp_avg_sq', 'step'\]"
    ):
        adam.load(adagrad.state)
    with pytest.raises(UserError, match=r"DenseAdagrad: saved 'sum' is torch.float32 \[4\], this table needs"):
        adagrad.load([{"sum": torch.zeros(4)}, {}, {}, {}])


def test_training_loads_no_compiler() -> None:
    """Making one of PyTorch's optimisers does: 1.5 s of every process."""
    asked = """
import sys
import torch
from finerank.training.dense_optim import DenseAdam
p = torch.nn.Parameter(torch.ones(2))
adam = DenseAdam([p], .1)
p.sum().backward()
adam.step()
assert float(p[0]) < 1
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", asked], check=True, timeout=100)
