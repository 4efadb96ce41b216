"""Interest evolution over the newest events of a history. Zhou et al. (DIEN), AAAI 2019, sections 4.2 and 4.3.

R requests · N candidates · T events · E newest events of all requests · P (candidate, newest event) pairs · K width
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finerank.data.batch import Jagged, Pairs
from finerank.layers.mlp import linear
from finerank.layers.recurrent import GRU
from finerank.layers.segments import gather, segment_softmax, spread
from finerank.layers.transformer import MASKED


@dataclass(frozen=True)
class Newest:
    """The newest events of each request.

    at                   int64 [E]: where they stand among all T
    segments, positions  int64 [E]: the request of each; 0 for the oldest of those
    lengths              int64 [R]
    pairs                (candidate, index among E)
    mask                 while exporting, which pairs are meant, bool [P]: E is then T, and events that are too old stand at
                         a position behind the last, where no recurrence reads them
    """

    at: Tensor
    segments: Tensor
    positions: Tensor
    lengths: Tensor
    pairs: Pairs
    mask: Tensor | None = None


def newest_events(history: Jagged, pairs: Pairs, top: int) -> Newest:
    """The newest `top` of each request. pairs: of candidates with these events, by their place among T (`search.newest`)."""
    assert pairs.event is not None
    lengths = history.lengths.clamp(max=top)
    positions = history.positions - (history.lengths - lengths).index_select(0, history.segments)
    at = (positions >= 0).nonzero().squeeze(1)
    of_pairs = Pairs(pairs.candidate, torch.searchsorted(at, pairs.event))
    return Newest(at, history.segments.index_select(0, at), positions.index_select(0, at), lengths, of_pairs)


def newest_events_masked(history: Jagged, pairs: Pairs, mask_P: Tensor, top: int) -> Newest:
    """The same for a graph. pairs: all; mask: of those with the newest events (`search.newest_mask`)."""
    lengths = history.lengths.clamp(max=top)
    positions = history.positions - (history.lengths - lengths).index_select(0, history.segments)
    positions = torch.where(positions >= 0, positions, top)
    at = torch.arange(history.segments.shape[0], device=lengths.device)
    return Newest(at, history.segments, positions, lengths, pairs, mask_P)


class Evolution(nn.Module):
    """The last state of each candidate's interest: a GRU over the events, attention to its states, AUGRU over them.

    width  K of events and candidates; top: the greatest number of events of a request
    """

    def __init__(self, width: int, top: int) -> None:
        super().__init__()
        self.extract, self.evolve = GRU(width, width), GRU(width, width, "augru")
        self.match = linear(width, width, bias=False)
        self.steps = top + 1  # the last is for events that are too old

    def states(self, k_EK: Tensor, newest: Newest) -> Tensor:
        """[E, K]: the extractor's, after each event. k: of the events `newest.at`."""
        projected = self.extract.project(k_EK)
        states_EK: Tensor
        states_EK, _ = self.extract(projected, None, newest.segments, newest.positions, newest.lengths, self.steps)
        return states_EK

    def forward(self, q_NK: Tensor, states_EK: Tensor, newest: Newest, request_of: Tensor) -> Tensor:
        """[N, K]. states: those of `states`."""
        positions, lengths, pairs = newest.positions, newest.lengths, newest.pairs
        assert pairs.event is not None
        logits_P = (spread(self.match(q_NK), pairs.candidate) * gather(states_EK, pairs.event)).sum(1)
        if newest.mask is not None:
            logits_P = torch.where(newest.mask, logits_P, MASKED)
        weights_P = segment_softmax(logits_P, pairs.candidate, q_NK.shape[0])
        if newest.mask is not None:
            weights_P = weights_P * newest.mask
        _, last_NK = self.evolve(
            gather(self.evolve.project(states_EK), pairs.event),
            weights_P,
            pairs.candidate,
            positions.index_select(0, pairs.event),
            lengths.index_select(0, request_of),
            self.steps,
        )
        out: Tensor = last_NK
        return out


def next_event_loss(
    states_TK: Tensor, events_TK: Tensor, negatives_TK: Tensor, positions_T: Tensor, tell: nn.Module | None = None
) -> Tensor:
    """DIEN's auxiliary loss (section 4.2): -log s(h_t, e_{t+1}) - log(1 - s(h_t, n_{t+1})), mean over all events but the first
    of each request.

    positions  of the events in their sequence, 0 for its first
    tell       [n, 2K] -> [n, 1], the logit of s from state and event side by side; None: their inner product (equation 6)
    0 when no request has two events.
    """
    later = (positions_T > 0).nonzero().squeeze(1)
    before = states_TK.index_select(0, later - 1)

    def logit(events: Tensor) -> Tensor:
        event = events.index_select(0, later)
        if tell is None:
            return (before * event).sum(1)
        told: Tensor = tell(torch.cat([before, event], dim=1))
        return told.squeeze(1)

    return (F.softplus(-logit(events_TK)) + F.softplus(logit(negatives_TK))).sum() / max(len(later), 1)
