"""GRDA, the generalised regularised dual averaging: gradient descent whose iterates are soft-thresholded, more and more.

Chao and Cheng, 2019; as AutoFIS uses it (Liu et al., KDD 2020, section 3):

    v_t = alpha_0 - lr · sum of the gradients so far      alpha_t = sign(v_t) · max(|v_t| - g(t), 0)
    g(t) = c · lr^½ · (t · lr)^mu

The accumulator v forgets nothing: a weight at zero comes back when its gradients say so. With c = 0 it is plain descent.

What c means depends on how long the search is: a weight is dropped once g has overtaken its |v|, which begins at alpha_0, and
stays so while its gradient is below g'(t) / lr. AutoFIS' authors (their code) search Avazu in one pass, some 16,000 steps of
2,000 rows at rate 1, with c = 5e-4 and mu = .8 over DeepFM (.005 and .6 over FM): the threshold ends at 1.15 (1.67), twice
alpha_0 = .6. After 300 steps of the same c it is .05 and nearly everything is kept. Hence c = "auto", which is ours
(`layers.gates`): shorter searches have a greater c, so that the last threshold is the authors' whatever the number of steps.
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
        self.t += 1
        self.v -= self.options.lr * self.parameter.grad
        threshold = self.options.threshold(int(self.t))
        self.parameter.copy_(self.v.sign() * (self.v.abs() - threshold).clamp(min=0.0))
        self.parameter.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors themselves."""
        return {"v": self.v, "t": self.t}

    def load_state_dict(self, saved: Mapping[str, Tensor]) -> None:
        """Take over a saved state, in place. Raises UserError on any missing, unexpected or misshapen entry."""
        load_strictly("GRDA", self.state_dict(), saved)
