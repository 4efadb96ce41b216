"""bf16 placed by hand: the great products of a training step in bf16, everything around them in float32.

Autocast casts at every operator and gains nothing on a CPU. Here a tower casts its input once, stays in bf16 from layer to
layer (the products themselves are summed in float32), and gives float32 out of its last layer. Weights, their gradients
as the optimiser sees them, embeddings, losses and statistics are float32; so is everything outside a training step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Precision = Literal["float32", "bf16"]
_lowered = False


@contextmanager
def computing_in(precision: Precision) -> Iterator[None]:
    """What products are computed in, for the length of a block: the forward pass of a training step."""
    global _lowered
    before, _lowered = _lowered, precision == "bf16"
    try:
        yield
    finally:
        _lowered = before


def lowered() -> bool:
    """Whether products are to be computed in bf16 here and now."""
    return _lowered and torch.is_grad_enabled()


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, in bf16 (and giving bf16) where that is asked for."""
    if not lowered():
        odd = -x.shape[1] % 16
        if (
            odd
            and x.shape[1] > 128
            and x.requires_grad
            and x.device.type == "cpu"
            and not torch.compiler.is_exporting()
        ):
            x, weight = F.pad(x, (0, odd)), F.pad(weight, (0, odd))  # backward products of odd widths are slow
        return F.linear(x, weight, bias)
    half = torch.bfloat16
    return F.linear(x.to(half), weight.to(half), None if bias is None else bias.to(half))


def leave(x: Tensor) -> Tensor:
    """What a row of products gave, in float32 again."""
    return x.float() if lowered() and x.dtype == torch.bfloat16 else x
