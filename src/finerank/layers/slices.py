"""What is too large for all rows at once, a slice of rows at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

SLICE = 1 << 26  # numbers that `by_slices` lets a function hold at once


def by_slices(fn: Callable[..., tuple[Tensor, ...]], each: int, *rows: Tensor) -> tuple[Tensor, ...]:
    """fn(*rows), of functions that treat every row alone, for as many rows at a time as `SLICE` allows.

    each  numbers that fn holds for a row at its peak. Where one slice does not do, a slice is made again in the backward
          pass, so that memory does not grow with the rows. fn must be free of randomness.
    """
    step = max(SLICE // max(each, 1), 1)
    if torch.compiler.is_exporting() or rows[0].shape[0] <= step:
        return fn(*rows)
    slices = zip(*(torch.split(r, step) for r in rows), strict=True)
    if torch.is_grad_enabled():
        out = [checkpoint(fn, *s, use_reentrant=False, preserve_rng_state=False) for s in slices]
    else:
        out = [fn(*s) for s in slices]
    return tuple(torch.cat(parts) for parts in zip(*out, strict=True))
