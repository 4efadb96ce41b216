"""Compiled loops of the activation unit (`unit.cpp`, `unit_bf16.cpp`); `layers.attention` calls them and has the plain twin.

N candidates · T events · P pairs · K width of an item · H hidden
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from finerank.kernels.build import library
from finerank.kernels.rows import NAMES, call, pointers

BLOCKS = ("query", "key", "difference", "product", "inner")  # of the unit's input, as `unit.h` counts them
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
        layout: list[int],
        spans: Spans,
        pairs: int,
        bent: bool,
        bf16: bool,
        *given: Tensor,
    ) -> Tensor:
        q, k, e = q.contiguous(), k.contiguous(), None if e is None else e.contiguous()
        widths = [width + -width % STEP for width in layout[7:]]
        hidden, places = torch.tensor([*widths, *layout]), [spans.first, spans.count, spans.start]
        name, room, kept = NAMES[q.dtype], pairs, q.dtype
        if bf16:
            even = spans.count + spans.count % 2
            ends = even.cumsum(0)
            places, room = [*places, ends - even], int(ends[-1]) if len(ends) else 0
            name, kept = "bf16", torch.bfloat16
        keep = any(ctx.needs_input_grad)
        before = [q.new_empty((room if keep else 0, width), dtype=kept) for width in widths]
        out = q.new_empty(pairs)
        shape = (len(q), q.shape[1], len(widths), hidden, int(bent))
        factors = (hidden[len(widths) :], *_by_kind(given))
        call(f"unit_forward_{name}", *shape, *places, q, k, e, *factors, pointers(before) if keep else None, out)
        ctx.save_for_backward(q, k, hidden, *places, *given, *before)
        ctx.extra, ctx.name, ctx.layers, ctx.bent = e is not None, name, len(widths), int(bent)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, hidden, *rest = ctx.saved_tensors
        before, given = rest[-ctx.layers :], rest[-4 * ctx.layers - 2 : -ctx.layers]
        places = rest[: -4 * ctx.layers - 2]
        dq, dk, dgiven = torch.zeros_like(q), torch.zeros_like(k), [torch.empty_like(t) for t in given]
        de = q.new_zeros((len(k), before[0].shape[1])) if ctx.extra else None
        shape = (len(q), q.shape[1], ctx.layers, hidden, ctx.bent, *places)
        factors = (hidden[ctx.layers :], *_by_kind(given), pointers(before), grads[0].contiguous())
        call(f"unit_backward_{ctx.name}", *shape, q, k, *factors, dq, dk, de, *_by_kind(dgiven))
        return dq, dk, de, None, None, None, None, None, *dgiven


def _by_kind(given: Sequence[Tensor]) -> tuple[Any, ...]:
    """Weights, biases and slopes of the layers, one after the other, as three; then the last weight and bias."""
    *layers, w, bias = given
    return *(pointers(layers[i::3]) for i in range(3)), w, bias


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
    of_events_TH: Tensor | None,
    columns: Mapping[str, slice],
    layers: Sequence[Layer],
    last: tuple[Tensor, Tensor],
    spans: Spans,
    pairs: int,
    bent: bool = True,
    bf16: bool = False,
) -> Tensor:
    """[P]: the unit's output for every pair. bf16: with the products in it (for float32, where `has_bf16`).

    of_events  added to what the first layer makes of the pairs, before its activation
    columns    of the first layer's weight, by block: BLOCKS, of which "product" or "inner" is there; others are not read here
    last       weight [1, H] and bias [1]
    bent       False: all slopes are 0 and stay so, which is cheaper
    """
    width = k_TK.shape[1]
    starts = [columns[block].start if block in columns else -1 for block in BLOCKS]
    layout = [*starts, layers[0].weight.shape[1], width, *(len(layer.slope) for layer in layers)]
    e = None if of_events_TH is None else filled(of_events_TH, 1)
    given = [t.contiguous() for layer in layers for t in (layer.weight, layer.bias, layer.slope)]
    out: Tensor = _Unit.apply(filled(q_NK, 1), filled(k_TK, 1), e, layout, spans, pairs, bent, bf16, *given, *last)  # type: ignore[no-untyped-call]
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
