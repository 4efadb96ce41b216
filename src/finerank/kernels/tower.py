"""Compiled loops of a tower in bf16 (`tower.cpp`); `layers.mlp` calls them and has the plain twin.

n rows · I inputs · H hidden · A rows that are added to the first layer's product
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from finerank.kernels.rows import call, pointers
from finerank.kernels.unit import STEP, Layer, filled


class _Tower(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, add: Tensor, of: Tensor | None, bent: bool, last: Tensor, *given: Tensor
    ) -> Tensor:
        weights, slopes, biases = given[0::3], given[1::3], given[2::3]
        widths = [len(w) for w in weights]
        x, hidden = x.contiguous(), torch.tensor(widths)
        strides = torch.tensor([w.stride(0) for w in weights])
        half = (len(x) + 1) // 2
        kept = [x.new_empty((half, w + -w % STEP), dtype=torch.int32) for w in widths]
        out = x.new_empty((len(x), 1))
        shape, bent_ = (len(x), len(widths), x.shape[1], hidden), int(bent)
        factors = (pointers(weights), strides, pointers(biases), pointers(slopes), last)
        call("tower_forward", *shape, bent_, x, add, of, *factors, pointers(kept), out)
        ctx.save_for_backward(x, of, last, hidden, strides, *weights, *slopes, *kept)
        ctx.bent, ctx.added = bent_, add.shape
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, of, last, hidden, strides, *rest = ctx.saved_tensors
        layers = len(hidden)
        weights, slopes, kept = rest[:layers], rest[layers : 2 * layers], rest[2 * layers :]
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        dadd, dlast = x.new_empty(ctx.added), torch.empty_like(last)
        dw = [w.new_empty(w.shape) for w in weights]
        db, ds = ([torch.empty_like(s) for s in slopes] for _ in range(2))
        shape = (len(x), layers, x.shape[1], hidden, ctx.bent)
        factors = (pointers(weights), strides, pointers(slopes), last, pointers(kept))
        out = (dx, ctx.added[0], dadd, pointers(dw), pointers(db), pointers(ds), dlast)
        call("tower_backward", *shape, x, of, *factors, grads[0].contiguous(), *out)
        each: list[Tensor | None] = []
        for i in range(layers):  # the first layer's bias is part of what is added
            each += [dw[i], ds[i] if ctx.bent else None, db[i] if i else None]
        return dx, dadd, None, None, dlast, *each


def tower(
    x_nI: Tensor, add_AH: Tensor, of_n: Tensor | None, layers: Sequence[Layer], last_1H: Tensor, bent: bool
) -> Tensor:
    """[n, 1]: last · a_L of every row i, with a_1 = act(W_1·x_i + add[of_i]) and a_l = act(W_l·a_(l-1) + b_l); in bf16.

    of    ascending; None: the one row of `add` for all
    bent  False: all slopes are 0 and stay so
    Gives what a step of training needs, where `has_bf16`; the first layer's own bias is not read.
    """
    given = [t for layer in layers for t in (layer.weight, layer.slope, layer.bias)]
    out: Tensor = _Tower.apply(x_nI, filled(add_AH, 1).contiguous(), of_n, bent, last_1H, *given)  # type: ignore[no-untyped-call]
    return out
