"""Row optimisers against plain twins over the whole table, torch's own, and numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor

from finerank.errors import UserError
from finerank.training.optimisers import row_optimiser
from finerank.training.options import FTRL, SGD, Adagrad, Adam, RowOptions
from finerank.training.row_optim import LazyAdam, RowAdagrad, RowFTRL, RowOptimizer, RowSGD

DEVICES = [
    "cpu",
    *([pytest.param("cuda", marks=pytest.mark.cuda)] if torch.cuda.is_available() else []),
]
V = 40

MAKERS: dict[str, Callable[[Tensor], RowOptimizer]] = {
    "adam": lambda w: LazyAdam(w, 0.02),
    "adam-row": lambda w: LazyAdam(w, 0.02, (0.8, 0.95), 1e-6, "row"),
    "adam-no-momentum": lambda w: LazyAdam(w, 0.02, (0.0, 0.9), correction="row"),
    "ftrl": lambda w: RowFTRL(w, 0.1, 1.0, l1=0.3, l2=0.1),
    "adagrad": lambda w: RowAdagrad(w, 0.05, 0.1),
    "sgd": lambda w: RowSGD(w, 0.1),
}


def twin(name: str, w: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The same lazy rule over the whole table in float64: a function of (gradient [V, D], touched [V, 1]) -> weight."""
    w = w.double().clone()
    m, v, n, visits = torch.zeros_like(w), torch.zeros_like(w), torch.zeros_like(w), torch.zeros(len(w), 1).double()
    z = -(w * (1 / 0.1 + 0.1) + w.sign() * 0.3)
    count = 0

    def adam(g: Tensor, on: Tensor, lr: float, b1: float, b2: float, eps: float, row: bool) -> None:
        m.copy_(torch.where(on, b1 * m + (1 - b1) * g, m))
        v.copy_(torch.where(on, b2 * v + (1 - b2) * g**2, v))
        t = visits if row else torch.full_like(visits, count)
        move = lr * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + eps)
        w.copy_(torch.where(on, w - move, w))

    def step(g: Tensor, on: Tensor) -> Tensor:
        nonlocal count
        g, count = g.double(), count + 1
        visits.add_(on)
        if name == "adam":
            adam(g, on, 0.02, 0.9, 0.999, 1e-8, row=False)
        elif name == "adam-row":
            adam(g, on, 0.02, 0.8, 0.95, 1e-6, row=True)
        elif name == "adam-no-momentum":
            adam(g, on, 0.02, 0.0, 0.9, 1e-8, row=True)
        elif name == "ftrl":
            s = ((n + g**2).sqrt() - n.sqrt()) / 0.1
            z.copy_(torch.where(on, z + g - s * w, z))
            n.copy_(torch.where(on, n + g**2, n))
            new = torch.where(z.abs() <= 0.3, 0.0, -(z - z.sign() * 0.3) / ((1.0 + n.sqrt()) / 0.1 + 0.1))
            w.copy_(torch.where(on, new, w))
        elif name == "adagrad":
            n.copy_(torch.where(on, n + g**2, n))
            w.copy_(torch.where(on, w - 0.05 * g / ((0.1 + n).sqrt() + 1e-10), w))
        else:
            w.copy_(torch.where(on, w - 0.1 * g, w))
        return w

    return step


def batch(generator: torch.Generator, width: int, most: int = V // 2) -> tuple[Tensor, Tensor]:
    """Distinct rows and a gradient each; sometimes none."""
    count = int(torch.randint(0, most, (1,), generator=generator))
    rows = torch.randperm(V, generator=generator)[:count]
    return rows, torch.randn(count, width, generator=generator)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("width", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", MAKERS)
def test_equals_the_plain_rule_and_leaves_other_rows_alone(
    name: str, dtype: torch.dtype, width: int, device: str
) -> None:
    g = torch.Generator().manual_seed(1)
    weight = torch.randn(V, width, generator=g).to(dtype)
    slow = twin(name, weight)
    fast = MAKERS[name](weight.to(device, copy=True))
    for _ in range(50):
        rows, grad = batch(g, width)
        grad = grad.to(dtype)
        whole = torch.zeros(V, width, dtype=dtype).index_copy_(0, rows, grad)
        on = torch.zeros(V, 1, dtype=torch.bool).index_fill_(0, rows, True)
        before = {k: t.clone() for k, t in {"w": fast.weight, **fast.state}.items()}
        given = grad.clone()
        fast.step(rows.to(device), given_on := grad.to(device))
        expected = slow(whole, on)
        assert torch.equal(given_on.cpu(), given)
        tolerance = 1e-13 if dtype == torch.float64 else 2e-6
        torch.testing.assert_close(fast.weight.cpu().double(), expected, rtol=tolerance, atol=tolerance)
        for key, tensor in {"w": fast.weight, **fast.state}.items():
            off = ~on[:, 0].to(device)
            assert torch.equal(tensor[off], before[key][off]), key
    assert fast.steps == 50


def test_adam_is_torch_adam_when_every_row_is_touched() -> None:
    g = torch.Generator().manual_seed(2)
    for correction in ("global", "row"):
        dense = torch.nn.Parameter(torch.randn(V, 4, generator=g))
        lazy = LazyAdam(dense.detach().clone(), 0.01, correction=correction)  # type: ignore[arg-type]
        reference = torch.optim.Adam([dense], lr=0.01, foreach=False)
        for step in range(50):
            lazy.lr = reference.param_groups[0]["lr"] = 0.01 / (1 + step)  # a schedule
            dense.grad = torch.randn(V, 4, generator=g)
            order = torch.randperm(V, generator=g)
            lazy.step(order, dense.grad[order])
            reference.step()
        torch.testing.assert_close(lazy.weight, dense.detach(), rtol=1e-6, atol=1e-7)


def test_adagrad_and_sgd_are_the_dense_rules_on_any_rows() -> None:
    g = torch.Generator().manual_seed(3)
    for make, reference in (
        (
            lambda w: RowAdagrad(w, 0.05, 0.2),
            lambda p: torch.optim.Adagrad([p], lr=0.05, initial_accumulator_value=0.2),
        ),
        (lambda w: RowSGD(w, 0.05), lambda p: torch.optim.SGD([p], lr=0.05)),
    ):
        dense = torch.nn.Parameter(torch.randn(V, 3, generator=g))
        lazy, other = make(dense.detach().clone()), reference(dense)
        for _ in range(50):
            rows, grad = batch(g, 3)
            dense.grad = torch.zeros_like(dense).index_copy_(0, rows, grad)
            lazy.step(rows, grad)
            other.step()
        torch.testing.assert_close(lazy.weight, dense.detach(), rtol=1e-6, atol=1e-7)


def test_first_visit_of_a_late_row() -> None:
    """By hand: at the first visit m = .1 g, v = .001 g²; per row both corrections give exactly lr · sign(g)."""
    none, row = torch.zeros(0, dtype=torch.int64), torch.tensor([1])
    moved = {}
    for correction in ("global", "row"):
        optimiser = LazyAdam(torch.zeros(3, 2), 0.01, correction=correction)  # type: ignore[arg-type]
        for _ in range(20_000):
            optimiser.step(none, torch.zeros(0, 2))
        optimiser.step(row, torch.tensor([[5.0, -0.3]]))
        moved[correction] = optimiser.weight[1]
    torch.testing.assert_close(moved["row"], torch.tensor([-0.01, 0.01]), rtol=1e-5, atol=0)
    factor = 0.1 / math.sqrt(0.001)  # 3.16: by then the global corrections are 1
    torch.testing.assert_close(moved["global"], factor * torch.tensor([-0.01, 0.01]), rtol=1e-5, atol=0)


def test_ftrl_first_step_minimises_its_objective() -> None:
    """From zero: w = argmin g w + (beta + |g|)/(2 alpha) w² + l2/2 w² + l1 |w|, searched on a fine grid."""
    alpha, beta, l1, l2 = 0.1, 1.0, 0.5, 2.0
    grads = torch.tensor([[3.0], [-2.0], [0.5], [-0.4], [0.7]])
    optimiser = RowFTRL(torch.zeros(5, 1), alpha, beta, l1, l2)
    optimiser.step(torch.arange(5), grads)
    grid = torch.linspace(-0.3, 0.3, 600_001, dtype=torch.float64)
    for i, g in enumerate(grads[:, 0].tolist()):
        cost = g * grid + (beta + abs(g)) / (2 * alpha) * grid**2 + l2 / 2 * grid**2 + l1 * grid.abs()
        assert abs(float(optimiser.weight[i, 0]) - float(grid[cost.argmin()])) < 2e-6
    # by hand for g = 3: -(3 - .5) / ((1 + 3)/.1 + 2) = -2.5/42
    assert float(optimiser.weight[0, 0]) == pytest.approx(-2.5 / 42, rel=1e-6)
    assert optimiser.weight[2:4].eq(0).all()  # |z| <= l1: exactly zero


def test_ftrl_second_step_by_hand_uses_the_weight_from_before() -> None:
    """alpha = beta = 1, no penalties. g = 3: w = -3/4. g = 4: n = 25, s = 2, z = 3 + 4 + 2 · 3/4 = 8.5, w = -8.5/6."""
    bias = torch.zeros(1, 1)
    optimiser = RowFTRL(bias, 1.0, 1.0)
    optimiser.step(torch.tensor([0]), torch.tensor([[3.0]]))
    assert float(bias) == pytest.approx(-0.75)
    optimiser.step(torch.tensor([0]), torch.tensor([[4.0]]))
    assert float(optimiser.state["z"]) == pytest.approx(8.5)
    assert float(bias) == pytest.approx(-8.5 / 6)


def test_ftrl_at_a_constant_rate_is_sgd() -> None:
    g = torch.Generator().manual_seed(4)
    start = torch.randn(V, 2, generator=g, dtype=torch.float64)
    ftrl, sgd = RowFTRL(start.clone(), alpha=1e8, beta=1e9), RowSGD(start.clone(), 0.1)  # rate alpha/(beta + √n) = .1
    for _ in range(30):
        rows, grad = batch(g, 2)
        ftrl.step(rows, grad.double())
        sgd.step(rows, grad.double())
    torch.testing.assert_close(ftrl.weight, sgd.weight, rtol=0, atol=1e-6)


def test_ftrl_keeps_the_weights_it_is_given() -> None:
    start = torch.tensor([[0.5, -0.25], [0.0, 1.0]])
    optimiser = RowFTRL(start.clone(), 0.1, 1.0, l1=0.3, l2=0.7)
    optimiser.step(torch.tensor([0, 1]), torch.zeros(2, 2))  # no gradient: nothing moves
    torch.testing.assert_close(optimiser.weight, start, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", MAKERS)
def test_a_resumed_run_equals_an_uninterrupted_one(name: str) -> None:
    g = torch.Generator().manual_seed(5)
    start = torch.randn(V, 3, generator=g)
    batches = [batch(g, 3) for _ in range(20)]
    whole = MAKERS[name](start.clone())
    for rows, grad in batches:
        whole.step(rows, grad)

    first = MAKERS[name](start.clone())
    for rows, grad in batches[:9]:
        first.step(rows, grad)
    saved = {k: t.clone() for k, t in first.state_dict().items()}
    second = MAKERS[name](first.weight.clone())
    second.load_state_dict(saved)
    for rows, grad in batches[9:]:
        second.step(rows, grad)
    assert torch.equal(second.weight, whole.weight)
    assert second.steps == 20
    for key, tensor in whole.state.items():
        assert torch.equal(second.state[key], tensor), key


@pytest.mark.parametrize("name", MAKERS)
def test_reset_makes_a_row_as_new(name: str) -> None:
    g = torch.Generator().manual_seed(6)
    used = MAKERS[name](torch.randn(V, 3, generator=g))
    for _ in range(5):
        used.step(*batch(g, 3))
    rows = torch.tensor([3, 17])
    before = {k: t.clone() for k, t in used.state.items()}
    used.weight[rows] = torch.full((2, 3), 0.5)
    used.reset(rows)
    others = torch.ones(V, dtype=torch.bool).index_fill_(0, rows, False)
    new = MAKERS[name](torch.full((2, 3), 0.5))
    for key, tensor in used.state.items():
        assert torch.equal(tensor[rows], new.state[key]), key
        assert torch.equal(tensor[others], before[key][others]), key
    if name != "adam":  # whose global count goes on
        grad = torch.randn(2, 3, generator=g)
        used.step(rows, grad)
        new.step(torch.arange(2), grad)
        assert torch.equal(used.weight[rows], new.weight)


def test_loading_is_strict_and_leaves_the_state_on_error() -> None:
    optimiser = LazyAdam(torch.zeros(4, 2))
    optimiser.step(torch.tensor([0]), torch.ones(1, 2))
    good = {k: t.clone() for k, t in optimiser.state_dict().items()}
    wrong = {
        "missing": {k: t for k, t in good.items() if k != "v"},
        "unexpected": {**good, "visits": torch.zeros(4)},
        r"\[5, 2\]": {**good, "v": torch.zeros(5, 2)},
        "float64": {**good, "v": good["v"].double()},
    }
    for message, saved in wrong.items():
        fresh = LazyAdam(torch.zeros(4, 2))
        with pytest.raises(UserError, match=message):
            fresh.load_state_dict(saved)
        assert fresh.steps == 0
        assert all(t.eq(0).all() for t in fresh.state.values())


def test_errors_say_what_is_accepted() -> None:
    table = torch.zeros(4, 2)
    with pytest.raises(UserError, match="did you mean 'global'"):
        LazyAdam(table, correction="globl")  # type: ignore[arg-type]
    for make, message in (
        (lambda: LazyAdam(table, lr=0.0), "learning rate"),
        (lambda: LazyAdam(table, betas=(0.9, 1.0)), "betas"),
        (lambda: LazyAdam(torch.zeros(4)), r"\[V, D\]"),
        (lambda: LazyAdam(torch.zeros(2, 4).T), "not contiguous"),
        (lambda: RowFTRL(table, beta=0.0), "beta"),
        (lambda: RowFTRL(table, l1=-1.0), "l1"),
        (lambda: RowAdagrad(table, initial_accumulator=-1.0), "initial_accumulator"),
        (lambda: RowSGD(table).step(torch.tensor([0]), torch.zeros(1, 3)), r"grad \[1, 3\]"),
        (lambda: RowSGD(table).step(torch.tensor([0], dtype=torch.int32), torch.zeros(1, 2)), "int64"),
    ):
        with pytest.raises(UserError, match=message):
            make()


def test_every_named_optimiser_learns_a_table_through_autograd() -> None:
    """The protocol of the module's docstring, on a parameter: gather distinct rows, backward, step."""
    every = (Adam(lr=0.05), FTRL(alpha=1.0), Adagrad(lr=0.5), SGD(lr=0.5))
    assert {type(o) for o in every} == set(get_args(RowOptions))
    for options in every:
        g = torch.Generator().manual_seed(7)
        table = torch.nn.Parameter(torch.zeros(V, 1))
        truth = torch.randn(V, generator=g)
        optimiser = row_optimiser(options, table)
        for _ in range(300):
            ids = torch.randint(0, V, (64,), generator=g)
            rows, inverse = ids.unique(return_inverse=True)
            leaf = table.detach().index_select(0, rows).requires_grad_()
            loss = (leaf.index_select(0, inverse)[:, 0] - truth[ids]).square().sum() / 8
            loss.backward()
            assert leaf.grad is not None
            optimiser.step(rows, leaf.grad)
        assert float((table.detach()[:, 0] - truth).abs().max()) < 0.05, options.kind


def test_adagrad_of_sums_with_a_start_times_the_square_is_adagrad_of_means() -> None:
    """How a start that was published for the mean of 128 rows is carried over."""
    means, sums = torch.zeros(5, 2), torch.zeros(5, 2)
    of_means, of_sums = RowAdagrad(means, 0.05, 0.1), RowAdagrad(sums, 0.05, 0.1 * 128**2)
    draw = torch.Generator().manual_seed(0)
    for _ in range(5):
        grad = torch.randn(5, 2, generator=draw)
        of_means.step(torch.arange(5), grad)
        of_sums.step(torch.arange(5), 128 * grad)
    assert torch.allclose(means, sums, rtol=1e-6, atol=0)
    assert float(means.abs().max()) > 0.01
