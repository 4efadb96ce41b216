"""Compiled loops over rows of embedding tables (`rows.cpp`). Callers ask `fits` first and have a plain twin.

V rows of a table · D its width · n lookups · U distinct rows
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from finerank.kernels.build import library

NAMES = {torch.float32: "f32", torch.float64: "f64"}


def fits(*tensors: Tensor) -> bool:
    """Whether compiled loops take these tensors (and are there)."""
    return library() is not None and all(t.device.type == "cpu" and t.dtype in NAMES for t in tensors)


def call(name: str, *arguments: Tensor | int | float | ctypes.Array[Any] | None) -> int:
    """Call a loop: tensors go as pointers, whole numbers as int64, then the number of threads."""
    loops = library()
    assert loops is not None
    given: list[Any] = []
    for value in arguments:
        if isinstance(value, Tensor):
            assert value.is_contiguous()
            given.append(ctypes.c_void_p(value.data_ptr()))
        elif isinstance(value, int):
            given.append(ctypes.c_int64(value))
        else:
            given.append(ctypes.c_double(value) if isinstance(value, float) else value)
    function = getattr(loops, name)
    function.restype = ctypes.c_int64
    return int(function(*given, ctypes.c_int(torch.get_num_threads())))


def distinct(ids: Tensor) -> tuple[Tensor, Tensor]:
    """(rows [U], local [n]): the distinct ids and, for each id, where it stands among them."""
    rows, local = torch.empty_like(ids), torch.empty_like(ids)
    count = call("distinct", len(ids), ids, rows, local)
    return rows[:count], local


def gather(weight: Tensor, rows: Tensor) -> Tensor:
    """[V, D], int64 [n] -> [n, D]: weight[rows], through which no gradient goes. Raises IndexError outside of [0, V)."""
    out = weight.new_empty((len(rows), weight.shape[1]))
    if call(f"gather_{NAMES[weight.dtype]}", len(rows), *weight.shape, rows, weight, out):
        raise IndexError(f"rows {int(rows.min())} to {int(rows.max())} of a table that has {len(weight)}")
    return out


class _Lookup(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, local: Tensor) -> Tensor:
        ctx.save_for_backward(local)
        ctx.count = len(values)
        return values.index_select(0, local)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (local,), grad = ctx.saved_tensors, grads[0].contiguous()
        out = grad.new_empty((ctx.count, grad.shape[1]))
        call(f"sum_rows_{NAMES[grad.dtype]}", len(local), ctx.count, grad.shape[1], local, grad, out)
        return out, None


def lookup(values: Tensor, local: Tensor) -> Tensor:
    """[U, D], [n] -> [n, D]: values[local], whose backward sums in parallel and in a fixed order."""
    out: Tensor = _Lookup.apply(values, local)  # type: ignore[no-untyped-call]
    return out


def adam(
    rows: Tensor,
    grad: Tensor,
    weight: Tensor,
    m: Tensor,
    v: Tensor,
    betas: tuple[float, float],
    eps: float,
    size: float,
    root: float,
    mine: Tensor | None,
) -> None:
    """The step of `LazyAdam`, in place: w -= size · m / (√v · root + eps). mine [U, 2]: factors of size and root per row."""
    name = f"adam_{NAMES[weight.dtype]}"
    given = (rows, grad.contiguous(), weight, m, v, *map(float, betas), float(eps), float(size), float(root), mine)
    call(name, len(rows), weight.shape[1], *given)


def pointers(tensors: Sequence[Tensor]) -> ctypes.Array[Any]:
    """Where they lie, for `call`."""
    return (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))
