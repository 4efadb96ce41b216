"""Pointwise attention of sequences to their own past: silu(q k + bias) / n, no softmax. Zhai et al., ICML 2024, section 3.

B sequences · H heads · L places · d width of a head · M position biases · C time biases

Where there are many, what a pair of places weighs is made a piece at a time, and again in the backward pass: 128 sequences of
2,000 places would take 2 GB for a single tensor of one head. Later places are not looked at, which halves the work.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from finerank.schema import SECOND

BUCKETS = 31
"""Of the time between two events: below 1, 2, 4 ... seconds, up to 17 years."""


@dataclass(frozen=True)
class Limits:
    """What is made at a time.

    whole    up to so many weights are kept for the backward pass, which is quicker than to make them again
    queries  places that look at the same time
    room     weights that are held at a time
    """

    whole: int
    queries: int
    room: int


CPU = Limits(1 << 22, 64, 1 << 18)  # what is made of a piece stays in the cache
GPU = Limits(1 << 26, 1 << 10, 1 << 26)  # few calls: a gigabyte or two

_LATER = -1e30  # a logit whose weight is 0, and so is what it gives back
_MANTISSA, _BIAS = 20, 1022  # of the upper half of a float64: x in [2^(e-1), 2^e) has the exponent bits e + 1022


def bucket(between: Tensor) -> Tensor:
    """Microseconds (int64, or float64 without a fraction) -> int 0 ... 30: how many of 1, 2, 4 ... seconds lie between,
    whatever the order. Exactly."""
    if torch.compiler.is_exporting():
        cuts = torch.tensor([SECOND << i for i in range(BUCKETS - 1)], device=between.device)
        return (between.abs().unsqueeze(-1) >= cuts).to(torch.int64).sum(-1)
    seconds = between.abs().to(torch.float64).div_(SECOND)  # 2^i seconds are exact, and a microsecond less is below
    upper = seconds.view(torch.int32)[..., int(sys.byteorder == "little") :: 2]
    return (upper >> _MANTISSA).sub_(_BIAS).clamp_(0, BUCKETS - 1)


def biases(position_M: Tensor, time_C: Tensor | None, back: Tensor, between: Tensor) -> Tensor:
    """rab of places that lie `back` places and `between` microseconds before another, in the shape of the two."""
    out = position_M[back.clamp(0, len(position_M) - 1)]
    return out if time_C is None else out + time_C[bucket(between)]


def pointwise(
    q: Tensor, k: Tensor, v: Tensor, position_M: Tensor, time_C: Tensor | None, age: Tensor, n: int
) -> Tensor:
    """[B, H, L, d]: what every place takes from those before it and itself.

    q, k, v  [B, H, L, d]; v is 0 at places without an element, which therefore give nothing
    age      int64 [B, L], microseconds
    n        what the weights are divided by
    """
    rows, heads, length, _ = q.shape
    if torch.compiler.is_exporting() or rows * heads * length**2 <= _limits(q).whole:
        return plain(q, k, v, position_M, time_C, age, n)
    out: Tensor = _Pointwise.apply(q, k, v, position_M, time_C, age, n)  # type: ignore[no-untyped-call]
    return out


def plain(q: Tensor, k: Tensor, v: Tensor, position_M: Tensor, time_C: Tensor | None, age: Tensor, n: int) -> Tensor:
    """The twin of `pointwise`, all pairs of places at once: for few of them, and for exporters."""
    place = torch.arange(q.shape[2], device=q.device)
    back = place.unsqueeze(1) - place  # [L, L]
    bias = biases(position_M, time_C, back, age.unsqueeze(1) - age.unsqueeze(2))  # [B or 1, L, L]
    return F.silu(q @ k.transpose(2, 3) + bias.unsqueeze(-3)) / n * (back >= 0) @ v


@dataclass(frozen=True)
class _Piece:
    """Some rows, some places that look, all places up to the last of these."""

    rows: slice
    queries: slice
    keys: slice

    def logits(self, q: Tensor, k: Tensor, near: Tensor, time: Tensor | None, times: Tensor | None) -> Tensor:
        """[b, H, Q, J]. near: [Q, J], the bias of position, `_LATER` at later places."""
        out = q[self.rows, :, self.queries] @ k[self.rows, :, self.keys].transpose(2, 3)
        bias = near
        if time is not None and times is not None:
            bias = time.index_select(0, times.flatten()).view(times.shape).add_(near).unsqueeze(1)
        return out.add_(bias)

    def times(self, age: Tensor) -> Tensor:
        """[b, Q, J]: the time bucket of each pair. age: float64 [B, L]."""
        mine = age[self.rows]
        return bucket(mine[:, self.queries].unsqueeze(2) - mine[:, self.keys].unsqueeze(1))


def _limits(q: Tensor) -> Limits:
    return CPU if q.device.type == "cpu" else GPU


def _spans(q: Tensor) -> Iterator[tuple[Tensor, Iterator[_Piece]]]:
    """(back int64 [Q, J], its pieces), one span of places that look after the other."""
    (rows, heads, length, _), limits = q.shape, _limits(q)
    for low in range(0, length, limits.queries):
        high = min(low + limits.queries, length)
        place = torch.arange(high, device=q.device)
        step = max(1, limits.room // (heads * (high - low) * high))
        pieces = (_Piece(slice(b, b + step), slice(low, high), slice(high)) for b in range(0, rows, step))
        yield place[low:].unsqueeze(1) - place, pieces


def _near(position: Tensor, back: Tensor) -> Tensor:
    return position[back.clamp(min=0)].masked_fill_(back < 0, _LATER)


class _Pointwise(Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, position: Tensor, time: Tensor | None, age: Tensor, n: int
    ) -> Tensor:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        age = age.to(torch.float64)  # exact below 2^53 microseconds
        ctx.save_for_backward(q, k, v, position, time, age)
        ctx.n, out = n, torch.empty_like(v)
        for back, pieces in _spans(q):
            near = _near(position, back)
            for piece in pieces:
                times = None if time is None else piece.times(age)
                weights = F.silu(piece.logits(q, k, near, time, times), inplace=True)
                out[piece.rows, :, piece.queries] = (weights @ v[piece.rows, :, piece.keys]).div_(n)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, position, time, age = ctx.saved_tensors
        grad = grad / ctx.n
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        dposition, dtime = torch.zeros_like(position), None if time is None else torch.zeros_like(time)
        for back, pieces in _spans(q):
            near, dnear = _near(position, back), q.new_zeros(back.shape)
            for piece in pieces:
                rows, queries, keys = piece.rows, piece.queries, piece.keys
                times = None if time is None else piece.times(age)
                x, g = piece.logits(q, k, near, time, times), grad[rows, :, queries]
                dv[rows, :, keys] += F.silu(x).transpose(2, 3) @ g
                dx = torch.ops.aten.silu_backward(g @ v[rows, :, keys].transpose(2, 3), x)
                dq[rows, :, queries] = dx @ k[rows, :, keys]
                dk[rows, :, keys] += dx.transpose(2, 3) @ q[rows, :, queries]
                dbias = dx.sum(1)  # [b, Q, J]
                dnear += dbias.sum(0)
                if dtime is not None and times is not None:
                    dtime += torch.bincount(times.flatten(), dbias.flatten(), len(dtime))
            dposition += torch.bincount(back.clamp(min=0).flatten(), dnear.flatten(), len(dposition))
        return dq, dk, dv, dposition, dtime, None, None
