"""Gated recurrence over jagged sequences, without padding.

B sequences · T elements of all sequences together, in sequence order · H hidden width

Sequences are walked longest first: at step t only those still running take part, so the work is that of the real
elements and a result cannot depend on padding or on batch mates. Exporters cannot follow a loop whose length depends on
the data, so while exporting, the same cell runs over a fixed number of steps under a mask; a test keeps the two equal.

GRU: Cho et al., EMNLP 2014, in the form of Zhou et al. (DIEN), AAAI 2019, equations 2-5; AIGRU, AGRU, AUGRU: section 4.3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from finerank.layers.mlp import linear

Cell = Literal["gru", "aigru", "agru", "augru", "augru_official"]


class GRU(nn.Module):
    """A gated recurrent unit whose update may be steered by an attention weight per element.

    u = sigmoid(W_u i + U_u h + b_u), r = sigmoid(W_r i + U_r h + b_r), c = tanh(W_c i + r * (U_c h) + b_c)

    gru             h' = (1 - u) h + u c
    aigru           the same with the input a·i
    agru            h' = (1 - a) h + a c
    augru           h' = (1 - a u) h + a u c                      (the paper, equation 15)
    augru_official  h' = (1 - w) h + w c with w = a + (1 - a) u   (what the authors' code computes; MODELS.md T3)
    """

    def __init__(self, inputs: int, hidden: int, cell: Cell = "gru") -> None:
        super().__init__()
        self.hidden, self.cell = hidden, cell
        self.input = linear(inputs, 3 * hidden)
        self.state = linear(hidden, 3 * hidden, bias=False)

    def project(self, inputs: Tensor) -> Tensor:
        """[T, inputs] -> [T, 3H]: the input's part of the gates, without bias; once for all steps."""
        return nn.functional.linear(inputs, self.input.weight)

    def step(self, projected: Tensor, attention: Tensor | None, h: Tensor) -> Tensor:
        """One step of b sequences: [b, 3H], [b] or None, [b, H] -> [b, H]."""
        if self.cell == "aigru" and attention is not None:
            projected = projected * attention.unsqueeze(1)
        x_u, x_r, x_c = (projected + self.input.bias).chunk(3, dim=1)
        h_u, h_r, h_c = self.state(h).chunk(3, dim=1)
        c = torch.tanh(x_c + torch.sigmoid(x_r + h_r) * h_c)
        weight = torch.sigmoid(x_u + h_u)
        if attention is not None:
            a = attention.unsqueeze(1)
            match self.cell:
                case "agru":
                    weight = a
                case "augru":
                    weight = a * weight
                case "augru_official":
                    weight = a + (1.0 - a) * weight
                case _:
                    pass
        return h + weight * (c - h)

    def forward(
        self,
        projected: Tensor,
        attention: Tensor | None,
        segments: Tensor,
        positions: Tensor,
        lengths: Tensor,
        max_steps: int,
    ) -> tuple[Tensor, Tensor]:
        """The states of all elements and the last state of every sequence.

        projected [T, 3H] from `project`; attention [T] or None; segments, positions [T]; lengths [B]
        max_steps: the fixed number of steps while exporting
        Returns (states [T, H] in sequence order, last [B, H]; zeros for an empty sequence).
        """
        walk: Callable[..., tuple[Tensor, Tensor]] = self._masked if torch.compiler.is_exporting() else self._packed
        return walk(projected, attention, segments, positions, lengths, max_steps)

    def _packed(
        self, projected: Tensor, attention: Tensor | None, segments: Tensor, positions: Tensor, lengths: Tensor, _: int
    ) -> tuple[Tensor, Tensor]:
        order = torch.argsort(lengths, descending=True, stable=True)
        rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        if projected.shape[0] == 0:
            empty = projected.new_zeros((len(lengths), self.hidden))
            return projected.new_zeros((0, self.hidden)), empty
        running = torch.bincount(positions)  # [steps] sequences longer than t
        first = running.cumsum(0) - running
        place = first.index_select(0, positions) + rank.index_select(0, segments)  # [T] where an element is packed
        source = torch.empty_like(place).scatter_(0, place, torch.arange(len(place), device=place.device))
        counts = running.tolist()
        steps = projected.index_select(0, source).split_with_sizes(counts)
        weights = None if attention is None else attention.index_select(0, source).split_with_sizes(counts)
        h = projected.new_zeros((counts[0], self.hidden))
        states, ended = [], [projected.new_zeros((len(lengths) - counts[0], self.hidden))]
        for t, x in enumerate(steps):
            if len(x) < len(h):
                ended.append(h[len(x) :])
                h = h[: len(x)]
            h = self.step(x, None if weights is None else weights[t], h)
            states.append(h)
        ended.append(h)
        last = torch.cat(ended[::-1])  # longest first
        return torch.cat(states).index_select(0, place), last.index_select(0, rank)

    def _masked(
        self,
        projected: Tensor,
        attention: Tensor | None,
        segments: Tensor,
        positions: Tensor,
        lengths: Tensor,
        max_steps: int,
    ) -> tuple[Tensor, Tensor]:
        count = lengths.shape[0]
        cell = segments * max_steps + positions

        def padded(values: Tensor) -> Tensor:
            grid = values.new_zeros((count * max_steps, values.shape[1]))
            return grid.index_add(0, cell, values).view(count, max_steps, values.shape[1])

        x = padded(projected)
        a = None if attention is None else padded(attention.unsqueeze(1)).squeeze(2)
        h = projected.new_zeros((count, self.hidden))
        states = []
        for t in range(max_steps):
            running = (lengths > t).to(h.dtype).unsqueeze(1)
            h = h + running * (self.step(x[:, t], None if a is None else a[:, t], h) - h)
            states.append(h)
        grid = torch.stack(states, dim=1).view(count * max_steps, self.hidden)
        return grid.index_select(0, cell), h
