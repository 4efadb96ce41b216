"""Compiled loops of the activation unit (`unit.cpp`, `unit_bf16.cpp`); `layers.attention` calls them and has the plain twin.

N candidates · T events · P pairs · K width of an item · H hidden
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from finerank.kernels.build import library
from finerank.kernels.rows import NAMES, call, pointers

STEP = 16  # the loops take widths that are multiples of this: whole vector registers


@dataclass(frozen=True)
class Spans:
    """int64 [N] each: candidate n meets the events [first, first + count), and its pairs begin at `start`."""

    first: Tensor
    count: Tensor
    start: Tensor


@dataclass(frozen=True)
class Layer:
    """A layer of the unit: [H, inputs] weight, [H] bias and the slope [H] of its activation (0: ReLU; else PReLU)."""

    weight: Tensor
    bias: Tensor
    slope: Tensor


class _Unit(Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        e: Tensor | None,
        c: Tensor,
        flat: Tensor,
        widths: list[int],
        spans: Spans,
        pairs: int,
        bent: bool,
        bf16: bool,
    ) -> Tensor:
        q, k, c, e = q.contiguous(), k.contiguous(), c.contiguous(), None if e is None else e.contiguous()
        hidden, places = torch.tensor(widths), [spans.first, spans.count, spans.start]
        name, room, kept = NAMES[q.dtype], pairs, q.dtype
        if bf16:
            even = spans.count + spans.count % 2
            ends = even.cumsum(0)
            places, room = [*places, ends - even], int(ends[-1]) if len(ends) else 0
            name, kept = "bf16", torch.bfloat16
        keep = any(ctx.needs_input_grad)
        before = [q.new_empty((room if keep else 0, width), dtype=kept) for width in widths]
        out = q.new_empty(pairs)
        kept_at = pointers(before) if keep else None
        shape = (len(q), q.shape[1], len(widths), hidden, int(bent))
        call(f"unit_forward_{name}", *shape, *places, q, k, e, c, flat, kept_at, out)
        ctx.save_for_backward(q, k, flat, hidden, *places, *before)
        ctx.extra, ctx.name, ctx.layers, ctx.bent = e is not None, name, len(widths), int(bent)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, flat, hidden, *rest = ctx.saved_tensors
        places, before = rest[: -ctx.layers], rest[-ctx.layers :]
        dq, dk, dflat = torch.zeros_like(q), torch.zeros_like(k), torch.empty_like(flat)
        dc = q.new_zeros((len(q), before[0].shape[1]))
        de = q.new_zeros((len(k), before[0].shape[1])) if ctx.extra else None
        shape = (len(q), q.shape[1], len(before), hidden, ctx.bent, *places)
        given = (q, k, flat, pointers(before), grads[0].contiguous())
        call(f"unit_backward_{ctx.name}", *shape, *given, dq, dk, de, dc, dflat, len(flat))
        return dq, dk, de, dc, dflat, None, None, None, None, None


class _Attend(Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, k: Tensor, spans: Spans) -> Tensor:
        weights, k, places = weights.contiguous(), k.contiguous(), (spans.first, spans.count, spans.start)
        out = k.new_empty((len(spans.count), k.shape[1]))
        call(f"attend_forward_{NAMES[k.dtype]}", len(out), k.shape[1], *places, weights, k, out)
        ctx.save_for_backward(weights, k, *places)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        weights, k, *places = ctx.saved_tensors
        grad, dw, dk = grads[0].contiguous(), torch.empty_like(weights), torch.zeros_like(k)
        call(f"attend_backward_{NAMES[k.dtype]}", len(grad), k.shape[1], *places, weights, k, grad, dw, dk)
        return dw, dk, None


def unit_weights(
    q_NK: Tensor,
    k_TK: Tensor,
    key_HK: Tensor,
    product_HK: Tensor,
    of_events_TH: Tensor | None,
    of_candidates_NH: Tensor,
    slope_H: Tensor,
    layers: Sequence[Layer],
    last: tuple[Tensor, Tensor],
    spans: Spans,
    pairs: int,
    bent: bool = True,
    bf16: bool = False,
) -> Tensor:
    """[P]: the unit's output for every pair. bf16: with the products in it (for float32, where `has_bf16`).

    bent  False: all slopes are 0 and stay so, which is cheaper

    Z = of_candidates + of_events + key·k + product·(q * k) is the first layer before its activation, whose slope is
    `slope_H`; `layers` follow, then `last`, weight [1, H] and bias [1].
    """
    parts = [filled(filled(w, 0), 1) for w in (key_HK, product_HK)] + [filled(slope_H, 0)]
    widths = [len(parts[2])]
    for layer in layers:
        parts += [filled(filled(layer.weight, 0), 1), filled(layer.bias, 0), filled(layer.slope, 0)]
        widths.append(len(parts[-1]))
    flat = torch.cat([part.flatten() for part in (*parts, filled(last[0], 1), last[1])])
    e = None if of_events_TH is None else filled(of_events_TH, 1)
    given = (filled(q_NK, 1), filled(k_TK, 1), e, filled(of_candidates_NH, 1), flat, widths, spans, pairs, bent, bf16)
    out: Tensor = _Unit.apply(*given)  # type: ignore[no-untyped-call]
    return out


def has_bf16() -> bool:
    """Whether the compiled loops were built for a processor with the products in bf16 that they use (avx512_bf16)."""
    return library() is not None and bool(call("unit_has_bf16"))


def attend(weights_P: Tensor, k_TK: Tensor, spans: Spans) -> Tensor:
    """[P], [T, K] -> [N, K]: sum over a candidate's pairs of weight * key."""
    out: Tensor = _Attend.apply(weights_P, filled(k_TK, 1), spans)  # type: ignore[no-untyped-call]
    return out if out.shape[1] == k_TK.shape[1] else out[:, : k_TK.shape[1]]


def filled(x: Tensor, dim: int) -> Tensor:
    """Zeros behind `dim` up to a multiple of STEP: they change no result."""
    missing = -x.shape[dim] % STEP
    return F.pad(x, [0] * (2 * (x.dim() - 1 - dim) + 1) + [missing]) if missing else x
