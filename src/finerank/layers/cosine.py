"""Vectors of length one, whose products are cosines."""

from __future__ import annotations

import torch
from torch import Tensor


def unit_length(x_nD: Tensor) -> Tensor:
    """[n, D]: each vector divided by its length; a vector of zeros stays, and its gradient is as if its length were one.

    The usual guard, a length of at least 1e-12, multiplies that gradient by 1e12. It is no rare case: whoever has no past yet
    is a vector of zeros where the past is all that is known.
    """
    length_n1 = torch.linalg.vector_norm(x_nD, dim=1, keepdim=True)
    return x_nD / torch.where(length_n1 > 0, length_n1, 1.0)
