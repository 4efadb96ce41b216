"""Gated recurrence over jagged sequences, without padding.

B sequences · T elements of all sequences together, in sequence order · H hidden width

Sequences are walked longest first: at step t only those still running take part, so the work is that of the real
elements and a result cannot depend on padding or on batch mates. Exporters cannot follow a loop whose length depends on
the data, so while exporting, the same cell runs over a fixed number of steps under a mask, as one loop of the graph whose
body is there once: the size of the graph does not depend on the length of a history. Tests keep the two equal.

GRU: Cho et al., EMNLP 2014, in the form of Zhou et al. (DIEN), AAAI 2019, equations 2-5; AIGRU, AGRU, AUGRU: section 4.3.
LSTM: Hochreiter and Schmidhuber, Neural Computation 1997, with the forget gate of Gers et al., 2000.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan

from finerank.layers.mlp import linear

Cell = Literal["gru", "aigru", "agru", "augru", "augru_official"]


class Recurrence(nn.Module, ABC):
    """A cell walked along jagged sequences. `memory` is what it carries from step to step, of which the first H are shown.

    input   [T, inputs] -> gates; state: [b, H] -> gates: the two linear maps that every cell has
    """

    def __init__(self, inputs: int, hidden: int, gates: int, memory: int) -> None:
        super().__init__()
        self.hidden, self.memory = hidden, memory
        self.input = linear(inputs, gates * hidden)
        self.state = linear(hidden, gates * hidden, bias=False)

    @abstractmethod
    def step(self, projected: Tensor, attention: Tensor | None, h: Tensor) -> Tensor:
        """One step of b sequences: [b, gates], [b] or None, [b, memory] -> [b, memory]."""

    def project(self, inputs: Tensor) -> Tensor:
        """[T, inputs] -> [T, gates]: the input's part of the gates, without bias; once for all steps."""
        return nn.functional.linear(inputs, self.input.weight)

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

        projected [T, gates] from `project`; attention [T] or None; segments, positions [T]; lengths [B]
        max_steps: the fixed number of steps while exporting
        Positions that count down from the last element walk the sequences backwards.
        Returns (states [T, H] in sequence order, last [B, H]; zeros for an empty sequence).
        """
        walk: Callable[..., tuple[Tensor, Tensor]] = self._masked if torch.compiler.is_exporting() else self._packed
        states, last = walk(projected, attention, segments, positions, lengths, max_steps)
        return states[:, : self.hidden], last[:, : self.hidden]

    def _packed(
        self, projected: Tensor, attention: Tensor | None, segments: Tensor, positions: Tensor, lengths: Tensor, _: int
    ) -> tuple[Tensor, Tensor]:
        order = torch.argsort(lengths, descending=True, stable=True)
        rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        if projected.shape[0] == 0:
            empty = projected.new_zeros((len(lengths), self.memory))
            return projected.new_zeros((0, self.memory)), empty
        running = torch.bincount(positions)  # [steps] sequences longer than t
        first = running.cumsum(0) - running
        place = first.index_select(0, positions) + rank.index_select(0, segments)  # [T] where an element is packed
        source = torch.empty_like(place).scatter_(0, place, torch.arange(len(place), device=place.device))
        counts = running.tolist()
        steps = projected.index_select(0, source).split_with_sizes(counts)
        weights = None if attention is None else attention.index_select(0, source).split_with_sizes(counts)
        h = projected.new_zeros((counts[0], self.memory))
        states, ended = [], [projected.new_zeros((len(lengths) - counts[0], self.memory))]
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
        cell = positions * count + segments

        def padded(values: Tensor) -> Tensor:
            grid = values.new_zeros((max_steps * count, values.shape[1]))
            return grid.index_add(0, cell, values).view(max_steps, count, values.shape[1])

        steps = torch.arange(max_steps, device=lengths.device).unsqueeze(1)
        running = (steps < lengths.unsqueeze(0)).to(projected.dtype).unsqueeze(2)
        columns = [padded(projected), running]
        if attention is not None:
            columns.append(padded(attention.unsqueeze(1)))

        def advance(h: Tensor, at: list[Tensor]) -> tuple[Tensor, Tensor]:
            x, on, *a = at
            h = h + on * (self.step(x, a[0].squeeze(1) if a else None, h) - h)
            return h, h.clone()

        last, states = _walk(advance, projected.new_zeros((count, self.memory)), columns)
        return states.view(max_steps * count, self.memory).index_select(0, cell), last


class GRU(Recurrence):
    """A gated recurrent unit whose update may be steered by an attention weight per element.

    u = sigmoid(W_u i + U_u h + b_u), r = sigmoid(W_r i + U_r h + b_r), c = tanh(W_c i + r * (U_c h) + b_c)

    gru             h' = (1 - u) h + u c
    aigru           the same with the input a·i
    agru            h' = (1 - a) h + a c
    augru           h' = (1 - a u) h + a u c                      (the paper, equation 15)
    augru_official  h' = (1 - w) h + w c with w = a + (1 - a) u   (what the authors' code computes; MODELS.md T3)
    """

    def __init__(self, inputs: int, hidden: int, cell: Cell = "gru") -> None:
        super().__init__(inputs, hidden, gates=3, memory=hidden)
        self.cell = cell

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


class LSTM(Recurrence):
    """A long short-term memory: i, f, o = sigmoid(W x + U h + b), g = tanh(W x + U h + b), c' = f c + i g, h' = o tanh(c').

    The bias of the forget gate starts at 1, so that memory lasts before training has said how long it should.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden, gates=4, memory=2 * hidden)
        nn.init.ones_(self.input.bias[hidden : 2 * hidden])

    def step(self, projected: Tensor, attention: Tensor | None, h: Tensor) -> Tensor:
        """One step of b sequences: [b, 4H], None, [b, 2H] (h and c side by side) -> [b, 2H]."""
        shown, cell = h.chunk(2, dim=1)
        x_i, x_f, x_g, x_o = (projected + self.input.bias + self.state(shown)).chunk(4, dim=1)
        cell = torch.sigmoid(x_f) * cell + torch.sigmoid(x_i) * torch.tanh(x_g)
        return torch.cat([torch.sigmoid(x_o) * torch.tanh(cell), cell], dim=1)


def _walk(
    advance: Callable[[Tensor, list[Tensor]], tuple[Tensor, Tensor]], h: Tensor, columns: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """(last state, [steps, ...] what each step gave). In a graph it is one loop, whose body is there once."""
    if torch.compiler.is_exporting():
        last, states = scan(advance, h, columns)
        return last, states
    out = []
    for at in zip(*columns, strict=True):
        h, state = advance(h, list(at))
        out.append(state)
    return h, torch.stack(out)
