"""Adam for the parameters that are no tables: `torch.optim.Adam` with its step as one compiled loop over all of them.

Where there is little to do per parameter, as in towers, PyTorch's own step is mostly bookkeeping.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from finerank.kernels import rows as loops


class DenseAdam(torch.optim.Adam):
    """Equal to its base class, state and state_dict included, where `kernels.rows.fits` all parameters, of one type."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            states = [self._begun(p) for p in weights]
            counts = [s["step"] for s in states]
            torch._foreach_add_(counts, 1.0)
            loops.dense_adam(
                weights,
                [p.grad for p in weights],
                [s["exp_avg"] for s in states],
                [s["exp_avg_sq"] for s in states],
                [int(c) for c in counts],
                group["lr"],
                group["betas"],
                group["eps"],
            )

    def _begun(self, p: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[p]
        if not state:
            zeros = torch.zeros_like(p, memory_format=torch.contiguous_format)
            state.update(step=torch.zeros(()), exp_avg=zeros, exp_avg_sq=zeros.clone())
        return state
