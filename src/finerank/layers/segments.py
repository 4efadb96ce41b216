"""Sums over segments: the jagged counterpart of a sum over a padded axis.

P values · N segments. Every function takes the segment of each value (ascending), never offsets: that is the form that
every exporter understands.
"""

from __future__ import annotations

from torch import Tensor


def segment_sum(values_PD: Tensor, segments_P: Tensor, count: int) -> Tensor:
    """[P, D] -> [N, D]: the sum of each segment; a segment without values gives 0."""
    return values_PD.new_zeros((count, values_PD.shape[1])).index_add(0, segments_P, values_PD)


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
    total = exp.new_zeros(count).index_add(0, segments_P, exp)
    return exp / total.index_select(0, segments_P)
