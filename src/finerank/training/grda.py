"""GRDA, the generalised regularised dual averaging: gradient descent whose iterates are soft-thresholded, more and more.

Chao and Cheng, 2019; as AutoFIS uses it (Liu et al., KDD 2020, section 3):

    v_t = alpha_0 - lr · sum of the gradients so far      alpha_t = sign(v_t) · max(|v_t| - g(t), 0)
    g(t) = c · lr^½ · (t · lr)^mu

The accumulator v forgets nothing: a weight at zero comes back when its gradients say so. With c = 0 it is plain descent.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from finerank.layers.gates import Proximal
from finerank.training.row_optim import load_strictly


class GRDA:
    """Moves one parameter. v: the accumulator, of its shape; t: steps so far."""

    def __init__(self, parameter: nn.Parameter, options: Proximal) -> None:
        self.parameter, self.options = parameter, options
        self.v = parameter.detach().clone()
        self.t = torch.zeros((), dtype=torch.int64)

    @torch.no_grad()
    def step(self) -> None:
        """One step by the parameter's gradient, which is cleared; without a gradient nothing moves."""
        if self.parameter.grad is None:
            return
        o = self.options
        self.t += 1
        self.v -= o.lr * self.parameter.grad
        threshold = o.c * o.lr**0.5 * (int(self.t) * o.lr) ** o.mu
        self.parameter.copy_(self.v.sign() * (self.v.abs() - threshold).clamp(min=0.0))
        self.parameter.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors themselves."""
        return {"v": self.v, "t": self.t}

    def load_state_dict(self, saved: Mapping[str, Tensor]) -> None:
        """Take over a saved state, in place. Raises UserError on any missing, unexpected or misshapen entry."""
        load_strictly("GRDA", self.state_dict(), saved)
