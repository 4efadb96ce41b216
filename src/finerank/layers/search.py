"""Which past events a candidate searches out of a long history: those of its category, or those nearest to it.

N candidates · T events · P pairs that were found · L events of the longest history · K width

Both give pairs in the order of candidates, events oldest first. Their work follows what is found, not all (candidate, event)
pairs: the first looks candidates up in the events sorted by value, the second multiplies matrices request by request. While
exporting, sizes must not depend on the data, so the same rules become masks over all pairs; tests keep the two equal.

Pi et al. (SIM), CIKM 2020, section 3.2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from finerank.data.batch import Batch, Jagged, Pairs
from finerank.layers.segments import gather, spread
from finerank.layers.transformer import grids
from finerank.schema import FIRST

STEPS = 2**12  # of a score, per unit: finer differences are float noise, and a server's noise is another
NOWHERE = -(2**62)


def _keys(scores: Tensor, position: Tensor, most: int) -> Tensor:
    """int64 numbers in the order of scores, of which no two of one candidate are equal: of equals the newer is greater."""
    return torch.round(scores * STEPS).to(torch.int64) * most + position


def of_value(batch: Batch, history: Jagged, value_N: Tensor, value_T: Tensor, top: int) -> Pairs:
    """Events of the candidate's value, the newest `top` of them. What has no value of its own finds nothing."""
    span = int(torch.cat([value_N, value_T]).max()) + 1 if len(value_N) + len(value_T) else 1
    keys, order = torch.sort(history.segments * span + value_T, stable=True)  # equal ones stay oldest first
    wanted = batch.request_of * span + value_N
    high = torch.searchsorted(keys, wanted, right=True)
    low = torch.maximum(torch.searchsorted(keys, wanted), high - top)
    low = torch.where(value_N >= FIRST, low, high)
    candidate, at = _ranges(low, high)
    return Pairs(candidate, order.index_select(0, at))


def newest(batch: Batch, history: Jagged, top: int) -> Pairs:
    """The newest `top` events of every candidate's history."""
    high = history.lengths.cumsum(0)
    low = high - history.lengths.clamp(max=top)
    candidate, event = _ranges(low.index_select(0, batch.request_of), high.index_select(0, batch.request_of))
    return Pairs(candidate, event)


def nearest(batch: Batch, history: Jagged, q_NK: Tensor, k_TK: Tensor, top: int) -> Pairs:
    """The `top` events of greatest <q, k>, to 2^-12; of equals the newer."""
    per_request = torch.bincount(batch.request_of, minlength=batch.R)
    first_N, first_T = per_request.cumsum(0) - per_request, history.lengths.cumsum(0) - history.lengths
    number_N = torch.arange(batch.N, device=q_NK.device) - first_N.index_select(
        0, batch.request_of
    )  # within its request
    longest = int(history.lengths.max()) if batch.R else 0
    found_candidates, found_events = [batch.request_of.new_zeros(0)], [batch.request_of.new_zeros(0)]
    for grid in grids(history.segments, history.positions, history.lengths, longest):
        row_R = torch.full((batch.R,), -1, device=q_NK.device)
        row_R[grid.sequences] = torch.arange(grid.rows, device=q_NK.device)
        row_N = row_R.index_select(0, batch.request_of)
        asking = (row_N >= 0).nonzero().squeeze(1)
        row, number = row_N[asking], number_N[asking]
        q = q_NK.new_zeros((grid.rows, int(number.max()) + 1 if len(number) else 0, q_NK.shape[1]))
        q[row, number] = q_NK[asking]
        scores = torch.bmm(q, grid.fill(k_TK).transpose(1, 2))[row, number]  # [n, L]
        length = history.lengths.index_select(0, batch.request_of[asking]).unsqueeze(1)
        place = torch.arange(grid.length, device=q.device)
        keys = _keys(scores, place, longest).masked_fill(place >= length, NOWHERE)
        at = keys.topk(min(top, grid.length), dim=1).indices
        position = torch.where(at < length, at, grid.length).sort(dim=1).values  # oldest first again
        candidate, column = (position < grid.length).nonzero().unbind(1)
        event = first_T.index_select(0, batch.request_of[asking[candidate]]) + position[candidate, column]
        found_candidates.append(asking[candidate])
        found_events.append(event)
    candidate, order = torch.sort(torch.cat(found_candidates), stable=True)
    return Pairs(candidate, torch.cat(found_events)[order])


# ------------------------------------------------------------------------------------------------ the same as masks


def of_value_mask(value_N: Tensor, value_T: Tensor, pairs: Pairs, event_P: Tensor, top: int) -> Tensor:
    """bool [P] over all pairs: the twin of `of_value`."""
    value_P = value_N.index_select(0, pairs.candidate)
    same = (value_P == value_T.index_select(0, event_P)) & (value_P >= FIRST)
    count = same.to(torch.int64)
    until = count.cumsum(0)
    of_candidate = torch.zeros_like(value_N).index_add(0, pairs.candidate, count).cumsum(0)
    return same & (of_candidate.index_select(0, pairs.candidate) - until < top)


def newest_mask(batch: Batch, history: Jagged, pairs: Pairs, event_P: Tensor, top: int) -> Tensor:
    """bool [P] over all pairs: the twin of `newest`."""
    length = history.lengths.index_select(0, batch.request_of).index_select(0, pairs.candidate)
    return history.positions.index_select(0, event_P) >= length - top


def nearest_mask(
    batch: Batch, history: Jagged, q_NK: Tensor, k_TK: Tensor, pairs: Pairs, event_P: Tensor, top: int, most: int
) -> Tensor:
    """bool [P] over all pairs: the twin of `nearest`. most: the greatest length of a history."""
    scores_P = (spread(q_NK, pairs.candidate) * gather(k_TK, event_P)).sum(1)
    position = history.positions.index_select(0, event_P)
    cell = pairs.candidate * most + position
    keys = _keys(scores_P, position, most) - NOWHERE
    grid = keys.new_zeros(batch.N * most).index_add(0, cell, keys)
    at = grid.view(batch.N, most).topk(min(top, most), dim=1).indices
    chosen = torch.zeros((batch.N, most), device=scores_P.device).scatter(1, at, 1.0)
    return chosen.view(-1).index_select(0, cell) > 0


def _ranges(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The ranges [low, high) written out: (the range of each number [P], the numbers [P])."""
    counts = high - low
    of = torch.repeat_interleave(counts)
    shift = low - (counts.cumsum(0) - counts)
    return of, torch.arange(len(of), device=low.device) + shift.index_select(0, of)


def outer_sums(k_TK: Tensor, p_TD: Tensor, history: Jagged) -> Tensor:
    """[R, K, D]: sum over a request's events of k p', without a matrix per event."""
    out = k_TK.new_zeros((history.lengths.shape[0], k_TK.shape[1], p_TD.shape[1]))
    for grid in grids(history.segments, history.positions, history.lengths, 0):
        out = out.index_copy(0, grid.sequences, torch.bmm(grid.fill(k_TK).transpose(1, 2), grid.fill(p_TD)))
    return out
