"""Vectors of length one, whose products are cosines."""

from __future__ import annotations

import torch
from torch import Tensor


def unit_length(x_nD: Tensor) -> Tensor:
    """[n, D]: each vector divided by its length; a vector of zeros stays, and its gradient is as if its length were one.

    The usual guard, a length of at least 1e-12, multiplies that gradient by 1e12. It is no rare case: whoever has no past yet
    is a vector of zeros where the past is all that is known.
    """
    square_n1 = x_nD.square().sum(1, keepdim=True)
    return x_nD * torch.where(square_n1 > 0, square_n1, 1.0).rsqrt()
