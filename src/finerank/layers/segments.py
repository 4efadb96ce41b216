"""Sums over segments and their opposite, the spreading of rows over segments: the jagged counterparts of a padded axis.

P values · N segments · T events. Every function takes the segment of each value (ascending), never offsets: that is the
form that exporters understand, and while exporting the plain operators are used, as on a GPU, where fewer of them are
faster. On a CPU, since the segments ascend, sums run as embedding bags over contiguous ranges, about three times as fast
as scattered additions, in the forward pass of sums and the backward pass of spreading alike. Tests keep both forms equal.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F


def _offsets(segments: Tensor, count: int) -> Tensor:
    """int64 [N + 1]: segment n has the values offsets[n]:offsets[n + 1]."""
    lengths = torch.bincount(segments, minlength=count)
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def _bags(values: Tensor, index: Tensor, offsets: Tensor, weights: Tensor | None = None) -> Tensor:
    """[N, D]: sums of the given rows of `values`, bag by bag."""
    if not len(index):
        return values.new_zeros((len(offsets) - 1, values.shape[1]))
    return F.embedding_bag(index, values, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)


def _plain(x: Tensor) -> bool:
    """Whether the plain operators are to be used."""
    return x.device.type != "cpu" or torch.compiler.is_exporting()


class _Sum(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, segments: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(segments)
        return _bags(values, torch.arange(len(values), device=values.device), _offsets(segments, count))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (segments,) = ctx.saved_tensors
        return grads[0].index_select(0, segments), None, None


class _Spread(Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, segments: Tensor) -> Tensor:
        ctx.save_for_backward(segments)
        ctx.count = len(rows)
        return rows.index_select(0, segments)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (segments,) = ctx.saved_tensors
        index = torch.arange(len(segments), device=segments.device)
        return _bags(grads[0].contiguous(), index, _offsets(segments, ctx.count)), None


class _WeightedSum(Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, values: Tensor, segments: Tensor, source: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(weights, values, segments, source)
        return _bags(values, source, _offsets(segments, count), weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        weights, values, segments, source = ctx.saved_tensors
        grad = grads[0].contiguous()
        of_weights = (grad.index_select(0, segments) * values.index_select(0, source)).sum(1)
        order = torch.argsort(source, stable=True)
        bags = _offsets(source, len(values))
        of_values = _bags(grad, segments.index_select(0, order), bags, weights.index_select(0, order))
        return of_weights, of_values, None, None, None


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.count = len(rows)
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        order = torch.argsort(index, stable=True)
        return _bags(grads[0].contiguous(), order, _offsets(index, ctx.count)), None


def segment_sum(values_PD: Tensor, segments_P: Tensor, count: int) -> Tensor:
    """[P, D] -> [N, D]: the sum of each segment; a segment without values gives 0."""
    if _plain(values_PD):
        return values_PD.new_zeros((count, values_PD.shape[1])).index_add(0, segments_P, values_PD)
    out: Tensor = _Sum.apply(values_PD, segments_P, count)  # type: ignore[no-untyped-call]
    return out


def weighted_sum(
    weights_P: Tensor, values_TD: Tensor, segments_P: Tensor, source_P: Tensor | None, count: int
) -> Tensor:
    """[P], [T, D] -> [N, D]: sum over a segment's p of weights[p] * values[source[p]] (source None: p itself)."""
    if _plain(values_TD):
        values_PD = values_TD if source_P is None else values_TD.index_select(0, source_P)
        return segment_sum(weights_P.unsqueeze(1) * values_PD, segments_P, count)
    if source_P is None:
        return segment_sum(weights_P.unsqueeze(1) * values_TD, segments_P, count)
    out: Tensor = _WeightedSum.apply(weights_P, values_TD, segments_P, source_P, count)  # type: ignore[no-untyped-call]
    return out


def one_each(segments_P: Tensor, count: int) -> bool:
    """Whether each of so many segments has exactly one value, as far as can be told: never while exporting."""
    if torch.compiler.is_exporting():
        return False
    return len(segments_P) == count and torch.equal(segments_P, torch.arange(count, device=segments_P.device))


def spread(rows_ND: Tensor, segments_P: Tensor) -> Tensor:
    """[N, D] -> [P, D]: every segment's row for each of its values; segments ascend."""
    if _plain(rows_ND):
        return rows_ND.index_select(0, segments_P)
    if one_each(segments_P, len(rows_ND)):
        return rows_ND
    out: Tensor = _Spread.apply(rows_ND, segments_P)  # type: ignore[no-untyped-call]
    return out


def gather(rows_TD: Tensor, index_P: Tensor | None) -> Tensor:
    """[T, D] -> [P, D]: rows by index, in any order; None: row p is that of p."""
    if index_P is None:
        return rows_TD
    if _plain(rows_TD):
        return rows_TD.index_select(0, index_P)
    out: Tensor = _Gather.apply(rows_TD, index_P)  # type: ignore[no-untyped-call]
    return out


def segment_mean(values_PD: Tensor, segments_P: Tensor, count: int) -> Tensor:
    """[P, D] -> [N, D]: the mean of each segment; a segment without values gives 0."""
    ones = values_PD.new_ones((values_PD.shape[0], 1))
    return segment_sum(values_PD, segments_P, count) / segment_sum(ones, segments_P, count).clamp(min=1.0)


def segment_max(values_PD: Tensor, segments_P: Tensor, count: int) -> Tensor:
    """[P, D] -> [N, D]: the greatest of each segment; a segment without values gives 0."""
    out = values_PD.new_zeros((count, values_PD.shape[1]))
    index = segments_P.unsqueeze(1).expand_as(values_PD)
    return out.scatter_reduce(0, index, values_PD, reduce="amax", include_self=False)


def segment_softmax(logits_P: Tensor, segments_P: Tensor, count: int) -> Tensor:
    """[P] -> [P]: softmax within each segment. A segment without values has no entries, so nothing becomes 1/T or NaN."""
    peak = (
        logits_P.detach()
        .new_zeros(count)
        .scatter_reduce(0, segments_P, logits_P.detach(), reduce="amax", include_self=False)
    )
    exp = (logits_P - peak.index_select(0, segments_P)).exp()
    total = segment_sum(exp.unsqueeze(1), segments_P, count).squeeze(1)
    return exp / total.index_select(0, segments_P)
