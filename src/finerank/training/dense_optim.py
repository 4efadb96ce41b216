"""Optimisers of parameters that every step moves whole: layers and whatever else is no table.

The numbers are those of `torch.optim`, to the bit. What is left out is its machinery, which asks every parameter anew at each
step what it is, and loads PyTorch's compiler when an optimiser is made: 1.5 seconds of every process that trains.

A parameter without a gradient is left alone, and has no state before its first one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from finerank.training.row_optim import load_strictly


class DenseOptimizer(ABC):
    """Moves some parameters by their gradients.

    parameters  of one floating type, on their device: the state is made beside them
    lr          learning rate; assign to it for a schedule
    state       of each parameter, tensors by name; empty until its first gradient
    summed      whether its settings are meant for the gradient of the rows' summed loss; else for that of their mean
    """

    summed: ClassVar[bool] = False

    def __init__(self, parameters: Sequence[Tensor], lr: float) -> None:
        self.parameters, self.lr = list(parameters), lr
        self.state: list[dict[str, Tensor]] = [{} for _ in self.parameters]

    @torch.no_grad()
    def step(self) -> None:
        """One step by the gradients, which are taken and cleared."""
        weights, grads, states = [], [], []
        for parameter, state in zip(self.parameters, self.state, strict=True):
            if parameter.grad is None:
                continue
            if not state:
                state |= self._begin(parameter)
            weights.append(parameter)
            grads.append(parameter.grad)
            states.append(state)
            parameter.grad = None
        if weights:
            self._move(weights, grads, states)

    def load(self, saved: Sequence[Mapping[str, Tensor]]) -> None:
        """Take over saved states, one a parameter, empty ones too. Raises UserError where one does not fit."""
        for i, (parameter, state) in enumerate(zip(self.parameters, saved, strict=True)):
            mine = self._begin(parameter) if state else {}
            load_strictly(type(self).__name__, mine, state)
            self.state[i] = mine

    def _begin(self, parameter: Tensor) -> dict[str, Tensor]:
        """The state before a parameter's first step."""
        return {}

    @abstractmethod
    def _move(self, weights: list[Tensor], grads: list[Tensor], states: list[dict[str, Tensor]]) -> None:
        """Move each weight, and its state, by its gradient."""


class DenseAdam(DenseOptimizer):
    """Adam (Kingma and Ba 2015, algorithm 1), by the operator that PyTorch fuses it into."""

    def __init__(
        self, parameters: Sequence[Tensor], lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        super().__init__(parameters, lr)
        self.betas, self.eps = betas, eps

    def _begin(self, parameter: Tensor) -> dict[str, Tensor]:
        step = torch.zeros((), dtype=torch.float32, device=parameter.device)
        return {"step": step, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}

    def _move(self, weights: list[Tensor], grads: list[Tensor], states: list[dict[str, Tensor]]) -> None:
        steps, means, squares = ([state[name] for state in states] for name in ("step", "exp_avg", "exp_avg_sq"))
        torch._foreach_add_(steps, 1)
        torch._fused_adam_(
            *(weights, grads, means, squares, [], steps),
            lr=self.lr,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=0.0,
            eps=self.eps,
            amsgrad=False,
            maximize=False,
        )


class DenseAdagrad(DenseOptimizer):
    """Adagrad per coordinate (Duchi et al. 2011).

    initial_accumulator  of the sum of squared gradients
    """

    summed = True
    eps = 1e-10  # so that 0 / 0 is 0

    def __init__(self, parameters: Sequence[Tensor], lr: float, initial_accumulator: float = 0.0) -> None:
        super().__init__(parameters, lr)
        self.initial_accumulator = initial_accumulator

    def _begin(self, parameter: Tensor) -> dict[str, Tensor]:
        return {"sum": torch.full_like(parameter, self.initial_accumulator)}

    def _move(self, weights: list[Tensor], grads: list[Tensor], states: list[dict[str, Tensor]]) -> None:
        for weight, grad, state in zip(weights, grads, states, strict=True):
            total = state["sum"].addcmul_(grad, grad)
            weight.addcdiv_(grad, total.sqrt().add_(self.eps), value=-self.lr)


class DenseSGD(DenseOptimizer):
    """Plain gradient descent."""

    def _move(self, weights: list[Tensor], grads: list[Tensor], states: list[dict[str, Tensor]]) -> None:
        torch._foreach_add_(weights, grads, alpha=-self.lr)
