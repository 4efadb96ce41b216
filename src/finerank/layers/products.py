"""Products of all pairs i < j of fields, without gathering either side of the pairs.

R requests · N candidates or n rows · F fields (F_R of the request, F_N of the candidate) · D width

Written as two gathers and a product, pairs cost three times their own memory and a backward pass of scattered additions.
Here a field meets all later ones at once and only the fields are kept for the backward pass. While exporting, the gathers
are used; tests keep both forms equal.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from finerank.layers.segments import spread


def pairs(fields: int) -> tuple[Tensor, Tensor]:
    """(i, j) int64 [F (F - 1) / 2] each: all pairs i < j of fields, row after row."""
    i, j = torch.triu_indices(fields, fields, offset=1)
    return i, j


class _Products(Function):
    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(left, right)
        return torch.cat([left[:, i : i + 1] * right[:, i + 1 :] for i in range(left.shape[1] - 1)], dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        left, right = ctx.saved_tensors
        of_left, of_right, at = torch.zeros_like(left), torch.zeros_like(right), 0
        for i in range(left.shape[1] - 1):
            grad = grads[0][:, at : at + left.shape[1] - 1 - i]
            torch.sum(grad * right[:, i + 1 :], dim=1, out=of_left[:, i])
            of_right[:, i + 1 :].addcmul_(grad, left[:, i : i + 1])
            at += grad.shape[1]
        return of_left, of_right


class _Inner(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, at: Tensor) -> Tensor:
        ctx.save_for_backward(x, at)
        return (x @ x.transpose(1, 2)).flatten(1).index_select(1, at)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        x, at = ctx.saved_tensors
        fields, count = x.shape[1], torch.arange(len(at), device=at.device)
        pair = at.new_zeros((fields, fields))  # of either order of two fields
        pair.view(-1)[at] = pair.t()[at // fields, at % fields] = count
        square = grads[0].index_select(1, pair.view(-1))
        square[:, :: fields + 1] = 0.0
        return square.view(-1, fields, fields) @ x, None


def products(left_nFD: Tensor, right_nFD: Tensor) -> Tensor:
    """[n, F, D] twice -> [n, F (F - 1) / 2, D]: left_i∘right_j of all pairs, in the order of `pairs`."""
    fields = left_nFD.shape[1]
    if fields < 2:
        return left_nFD[:, :0]
    if torch.compiler.is_exporting():
        i, j = (t.to(left_nFD.device) for t in pairs(fields))
        return left_nFD.index_select(1, i) * right_nFD.index_select(1, j)
    out: Tensor = _Products.apply(left_nFD, right_nFD)  # type: ignore[no-untyped-call]
    return out


def inner_products(x_nFD: Tensor) -> Tensor:
    """[n, F, D] -> [n, F (F - 1) / 2]: <x_i, x_j> of all pairs, in the order of `pairs`."""
    fields = x_nFD.shape[1]
    if fields < 2:
        return x_nFD[:, :0, 0]
    i, j = pairs(fields)
    at = (i * fields + j).to(x_nFD.device)
    if torch.compiler.is_exporting():
        return (x_nFD @ x_nFD.transpose(1, 2)).flatten(1).index_select(1, at)
    out: Tensor = _Inner.apply(x_nFD, at)  # type: ignore[no-untyped-call]
    return out


def split_pairs(request: int, candidate: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """((i, j) within the request, (i, j) of the other pairs): the order of `split_products`.

    The others: every field of the request with every one of the candidate, then the pairs within the candidate.
    """
    i, j = pairs(candidate)
    across = torch.cartesian_prod(torch.arange(request), torch.arange(request, request + candidate)).view(-1, 2)
    return pairs(request), (torch.cat([across[:, 0], i + request]), torch.cat([across[:, 1], j + request]))


def split_products(
    x_RFD: Tensor, x_NFD: Tensor, of: Tensor, left: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """([R, pairs within the request, D], [N, other pairs, D]): x_i∘x_j, a request's own pairs once per request.

    left  of either side, stands for x_i where it is not x_i itself (bilinear forms)
    """
    left_R, left_N = left or (x_RFD, x_NFD)
    across = spread_fields(left_R, of).unsqueeze(2) * x_NFD.unsqueeze(1)
    return products(left_R, x_RFD), torch.cat([across.flatten(1, 2), products(left_N, x_NFD)], dim=1)


def split_inner_products(x_RFD: Tensor, x_NFD: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
    """([R, pairs within the request], [N, other pairs]): <x_i, x_j>, a request's own pairs once per request."""
    across = spread_fields(x_RFD, of) @ x_NFD.transpose(1, 2)
    return inner_products(x_RFD), torch.cat([across.flatten(1), inner_products(x_NFD)], dim=1)


def whole_rows(x_RFD: Tensor, x_NFD: Tensor, of: Tensor) -> Tensor:
    """[N, F, D]: the request's vectors repeated for each candidate, then the candidate's."""
    return torch.cat([spread_fields(x_RFD, of), x_NFD], dim=1) if x_RFD.shape[1] else x_NFD


def spread_fields(x_RFD: Tensor, of: Tensor) -> Tensor:
    """[R, F, D] -> [N, F, D]: `spread` for several vectors a request, or none."""
    if not x_RFD.shape[1]:
        return x_RFD.new_zeros((of.shape[0], *x_RFD.shape[1:]))
    return spread(x_RFD.flatten(1), of).view(-1, *x_RFD.shape[1:])
