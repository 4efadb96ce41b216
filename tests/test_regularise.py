"""Regularisers of tables against whole-table twins and a batch worked out by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from finerank.errors import UserError
from finerank.layers.embedding import Gradient
from finerank.training.regularise import CaughtUpL2, MiniBatchAware, PerRowL2, WholeTableL2
from finerank.training.row_optim import LazyAdam, RowAdagrad, RowOptimizer, RowSGD

V, D = 30, 3


def test_mini_batch_aware_sgd_step_by_hand() -> None:
    """w <- w - .1 (g + .5 w / n), rows 1, 4, 2 with n = 5, 1, 0 (counted as 1)."""
    weight = torch.tensor([[9.0], [2.0], [4.0], [9.0], [-1.0]])
    before = weight.clone()
    rows, grad = torch.tensor([1, 4, 2]), torch.tensor([[1.0], [2.0], [0.0]])
    MiniBatchAware(0.5, torch.tensor([7, 5, 0, 9, 1])).charge(Gradient(rows, grad), weight, 1)
    torch.testing.assert_close(grad, torch.tensor([[1 + 0.5 * 2 / 5], [2 - 0.5], [0.5 * 4]]))
    RowSGD(weight, 0.1).step(rows, grad)
    torch.testing.assert_close(weight[rows], torch.tensor([[1.88], [-1.15], [3.8]]))
    assert torch.equal(weight[[0, 3]], before[[0, 3]])  # absent rows: bit for bit


def test_mini_batch_aware_equals_the_penalty_in_the_loss() -> None:
    """Its gradient is that of strength/2 · Σ over the batch's distinct rows of |w_j|²/n_j."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(V, D, generator=g, requires_grad=True)
    counts = torch.randint(1, 50, (V,), generator=g)
    ids = torch.randint(0, V, (40,), generator=g)
    rows = ids.unique()
    mean_loss = weight[ids].sin().sum(1).mean()
    (plain,) = torch.autograd.grad(mean_loss, weight, retain_graph=True)
    penalty = 0.3 / 2 * (weight[rows].square().sum(1) / counts[rows]).sum()
    (full,) = torch.autograd.grad(mean_loss + penalty, weight)
    grad = plain[rows].clone()
    MiniBatchAware(0.3, counts).charge(Gradient(rows, grad), weight.detach(), 1)
    torch.testing.assert_close(grad, full[rows])


def test_mini_batch_aware_strength_zero_is_a_no_op() -> None:
    grad = torch.randn(2, D)
    before = grad.clone()
    MiniBatchAware(0.0, torch.ones(V)).charge(Gradient(torch.tensor([0, 1]), grad), torch.full((V, D), torch.inf), 1)
    assert torch.equal(grad, before)


def test_mini_batch_aware_running_counts() -> None:
    given = torch.tensor([1.0, 2.0, 3.0])
    regulariser = MiniBatchAware(1.0, given)
    regulariser.observe(torch.tensor([2, 0]), torch.tensor([5, 1]))
    assert regulariser.counts.tolist() == [2, 2, 8]
    assert given.tolist() == [1, 2, 3]  # the fitted schema's own counts stay
    regulariser.reset(torch.tensor([1]))
    other = MiniBatchAware(1.0, torch.zeros(3))
    other.load_state_dict(regulariser.state_dict())
    assert other.counts.tolist() == [2, 0, 8]
    with pytest.raises(UserError, match="missing"):
        other.load_state_dict({})


def dense_run(weight: Tensor, strength: float, rates: list[float], batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Whole-table decay before each forward pass, then plain SGD on the batch's rows; the gradient depends on w."""
    weight = weight.clone()
    for lr, (rows, target) in zip(rates, batches, strict=True):
        weight *= 1 - lr * strength
        weight[rows] -= lr * (weight[rows] - target)
    return weight


def make_run(seed: int = 1, steps: int = 30) -> tuple[Tensor, list[float], list[tuple[Tensor, Tensor]]]:
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(V, D, generator=g, dtype=torch.float64)
    rates = [0.3 / (1 + t / 4) for t in range(steps)]  # a schedule
    batches = []
    for _ in range(steps):
        rows = torch.randperm(V, generator=g)[: int(torch.randint(0, 9, (1,), generator=g))]
        batches.append((rows, torch.randn(len(rows), D, generator=g, dtype=torch.float64)))
    return weight, rates, batches


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_caught_up_equals_dense_decay_under_a_schedule(dtype: torch.dtype, tolerance: float) -> None:
    start, rates, batches = make_run()
    weight = start.to(dtype, copy=True)
    l2 = CaughtUpL2(0.2, weight)
    for step, (lr, (rows, target)) in enumerate(zip(rates, batches, strict=True)):
        before = weight.clone()
        l2.advance(lr)
        l2.catch_up(weight, rows)
        l2.catch_up(weight, rows)  # a second chunk of the same step: nothing more is owed
        RowSGD(weight, lr).step(rows, weight[rows] - target.to(dtype))
        absent = torch.ones(V, dtype=torch.bool).index_fill_(0, rows, False)
        assert torch.equal(weight[absent], before[absent])
        if step == 17:  # an evaluation in the middle
            l2.finish(weight)
            middle = dense_run(start, 0.2, rates[:18], batches[:18])
            torch.testing.assert_close(weight.double(), middle, rtol=tolerance, atol=tolerance)
    l2.finish(weight)
    expected = dense_run(start, 0.2, rates, batches)
    torch.testing.assert_close(weight.double(), expected, rtol=tolerance, atol=tolerance)
    assert float((expected - dense_run(start, 0.0, rates, batches)).abs().max()) > 0.1  # there was something to decay
    again = weight.clone()
    l2.finish(weight)
    assert torch.equal(weight, again)


def test_caught_up_by_hand() -> None:
    """Three steps of lr .5 and strength .2 leave .9³ = .729 of a row; one touched at step 2 has had .81 by then."""
    weight = torch.ones(2, 1, dtype=torch.float64)
    l2 = CaughtUpL2(0.2, weight)
    l2.advance(0.5)
    l2.advance(0.5)
    l2.catch_up(weight, torch.tensor([1]))
    torch.testing.assert_close(weight[:, 0], torch.tensor([1.0, 0.81], dtype=torch.float64))
    l2.reset(torch.tensor([0]))  # given to a new id: owes nothing of the past
    l2.advance(0.5)
    l2.finish(weight)
    torch.testing.assert_close(weight[:, 0], torch.tensor([0.9, 0.729], dtype=torch.float64))


def test_caught_up_strength_zero_is_a_no_op() -> None:
    weight = torch.tensor([[torch.nan], [1.0]])
    l2 = CaughtUpL2(0.0, weight)
    l2.advance(0.1)
    l2.catch_up(weight, torch.tensor([1]))
    l2.finish(weight)
    assert weight[1].item() == 1.0
    assert l2.owed == 0.0


def test_caught_up_resumes_bit_for_bit() -> None:
    start, rates, batches = make_run(seed=2)

    def train(weight: Tensor, l2: CaughtUpL2, adam: LazyAdam, span: slice) -> None:
        for lr, (rows, target) in zip(rates[span], batches[span], strict=True):
            l2.advance(lr)
            l2.catch_up(weight, rows)
            adam.step(rows, weight[rows] - target.float())

    whole = start.float()
    l2, adam = CaughtUpL2(0.2, whole), LazyAdam(whole, 0.1)
    train(whole, l2, adam, slice(0, 30))

    part = start.float()
    l2, adam = CaughtUpL2(0.2, part), LazyAdam(part, 0.1)
    train(part, l2, adam, slice(0, 11))
    saved, saved_adam = ({k: t.clone() for k, t in o.state_dict().items()} for o in (l2, adam))
    resumed = part.clone()
    l2, adam = CaughtUpL2(0.2, resumed), LazyAdam(resumed, 0.1)
    l2.load_state_dict(saved)
    adam.load_state_dict(saved_adam)
    train(resumed, l2, adam, slice(11, 30))
    assert torch.equal(resumed, whole)
    with pytest.raises(UserError, match="unexpected"):
        l2.load_state_dict({**saved, "last": torch.zeros(V)})


# ------------------------------------------------------------------------------------------------ a term of the loss

DENSE: dict[str, tuple[Callable[[Tensor], RowOptimizer], Callable[[list[Tensor]], torch.optim.Optimizer]]] = {
    "adam": (lambda w: LazyAdam(w, 0.02), lambda p: torch.optim.Adam(p, 0.02)),
    "adam, rows' own correction": (lambda w: LazyAdam(w, 0.02, correction="row"), lambda p: torch.optim.Adam(p, 0.02)),
    "adagrad": (
        lambda w: RowAdagrad(w, 0.05, 0.1),
        lambda p: torch.optim.Adagrad(p, 0.05, initial_accumulator_value=0.1),
    ),
    "sgd": (lambda w: RowSGD(w, 0.3), lambda p: torch.optim.SGD(p, 0.3)),
}


def lossy(weight: Tensor, rows: Tensor, target: Tensor) -> Tensor:
    """A mean loss that reads these rows alone."""
    return (weight[rows] - target).square().sum() / 2


def step_whole(weight: Tensor, l2: WholeTableL2, optimiser: RowOptimizer, batch: tuple[Tensor, Tensor]) -> None:
    rows, target = batch
    optimiser.step(*l2.charge(Gradient(rows, weight[rows] - target.to(weight.dtype)), weight, 1))


@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 3e-5)])
def test_whole_table_equals_the_term_in_the_loss_of_a_dense_optimiser(
    kind: str, dtype: torch.dtype, tolerance: float
) -> None:
    """Adam divides the term by its own size, so rows that are never met move as far as others."""
    start, _, batches = make_run(seed=3)
    start[0] = 0.0  # padding: nothing pulls at it
    batches = [(rows[(rows != 0) & (rows != 7)], t[(rows != 0) & (rows != 7)]) for rows, t in batches]
    assert any(len(rows) == 0 for rows, _ in batches)  # a step without this table
    ours, theirs = DENSE[kind]
    weight = start.to(dtype, copy=True)
    l2, optimiser = WholeTableL2(0.01, weight), ours(weight)
    twin = start.to(dtype, copy=True).requires_grad_()
    dense = theirs([twin])
    for rows, target in batches:
        step_whole(weight, l2, optimiser, (rows, target))
        dense.zero_grad()
        (lossy(twin, rows, target.to(dtype)) + 0.01 / 2 * twin.norm() ** 2).backward()  # type: ignore[no-untyped-call]
        dense.step()
        torch.testing.assert_close(weight, twin.detach(), rtol=tolerance, atol=tolerance)
    assert not weight[0].any()
    assert (weight[7] - start[7]).abs().min() > 1e-3


def test_whole_table_resumes_bit_for_bit_without_a_state_of_its_own() -> None:
    start, _, batches = make_run(seed=4)

    def train(weight: Tensor, saved: dict[str, Tensor] | None, span: slice) -> dict[str, Tensor]:
        l2, adam = WholeTableL2(0.01, weight), LazyAdam(weight, 0.1)
        if saved:
            adam.load_state_dict(saved)
        for batch in batches[span]:
            step_whole(weight, l2, adam, batch)
        return {k: t.clone() for k, t in adam.state_dict().items()}

    whole, part = start.float(), start.float()
    train(whole, None, slice(0, 30))
    train(part, train(part, None, slice(0, 11)), slice(11, 30))
    assert torch.equal(part, whole)


def test_per_row_equals_the_penalty_of_every_row_s_own_loss() -> None:
    """Mean over 16 rows of a loss and strength/2 · the squares of the 5 values that each reads, with repetitions."""
    g = torch.Generator().manual_seed(5)
    weight = torch.randn(V, D, generator=g, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(0, V, (16, 5), generator=g)
    loss = weight[ids].sin().sum((1, 2))
    (plain,) = torch.autograd.grad(loss.mean(), weight, retain_graph=True)
    (full,) = torch.autograd.grad((loss + 0.3 / 2 * weight[ids].square().sum((1, 2))).mean(), weight)
    rows, readers = ids.unique(return_counts=True)
    grad = plain[rows].clone()
    PerRowL2(0.3).charge(Gradient(rows, grad, readers.float()), weight.detach(), 16)
    torch.testing.assert_close(grad, full[rows], rtol=1e-6, atol=1e-8)


def test_errors() -> None:
    for wrong in (-0.1, float("nan"), float("inf")):
        with pytest.raises(UserError, match="strength"):
            MiniBatchAware(wrong, torch.ones(V))
        with pytest.raises(UserError, match="strength"):
            CaughtUpL2(wrong, torch.ones(V, D))
        with pytest.raises(UserError, match="strength"):
            WholeTableL2(wrong, torch.ones(V, D))
        with pytest.raises(UserError, match="strength"):
            PerRowL2(wrong)
    with pytest.raises(UserError, match="counts"):
        MiniBatchAware(0.1, torch.ones(V, 1))
    with pytest.raises(UserError, match="smaller strength"):
        CaughtUpL2(2.0, torch.ones(V, D)).advance(0.5)
