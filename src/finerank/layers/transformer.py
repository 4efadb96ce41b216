"""Self-attention over jagged sequences: only the attention itself sees a padded grid, everything else runs on real elements.

B sequences · T elements of all sequences together · L places of a grid · N candidates (targets) · P (target, element) pairs
K width of an element · H heads · d = ceil(K / H) width of a head

Elements are laid on grids of B' rows by L places, one grid for each class of lengths (up to 8, 16, 32 ...), so that a long
sequence does not make short ones dear; sequences without elements lie on none. While exporting there is one grid of fixed
length. Places without an element are masked, so a result depends neither on L nor on who else is in the batch.

Vaswani et al., NIPS 2017, section 3, in the post-norm form: y = LN(x + A(x)), z = LN(y + W2 act(W1 y)).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finerank.data.batch import Pairs
from finerank.errors import UserError
from finerank.layers.checks import check_dropout
from finerank.layers.mlp import linear
from finerank.layers.segments import gather, segment_sum, spread
from finerank.layers.slices import by_slices

SHORTEST = 8  # sequences up to this length share a grid
MASKED = -1e30  # a logit whose exponential is 0 beside any other
FeedActivation = Literal["relu", "leaky_relu", "gelu"]


@dataclass(frozen=True)
class Grid:
    """Where elements lie on a padded grid.

    elements  int64 [t]: which of the T elements; None: all of them
    cell      int64 [t]: the place of each, row * length + column
    sequences int64 [rows]: the sequence of each row
    rows, length   of the grid
    """

    elements: Tensor | None
    cell: Tensor
    sequences: Tensor
    rows: int
    length: int

    def fill(self, values_TK: Tensor) -> Tensor:
        """[T, K] -> [rows, length, K]; 0 where no element lies."""
        values = values_TK if self.elements is None else values_TK.index_select(0, self.elements)
        grid = values.new_zeros((self.rows * self.length, values.shape[1])).index_add(0, self.cell, values)
        return grid.view(self.rows, self.length, values.shape[1])

    def take(self, grid_BLK: Tensor) -> Tensor:
        """[rows, length, K] -> [t, K]: what stands at each of the grid's elements."""
        return grid_BLK.reshape(self.rows * self.length, grid_BLK.shape[2]).index_select(0, self.cell)

    def there(self) -> Tensor:
        """bool [rows, length]: where an element lies."""
        at = torch.ones(self.cell.shape[0], device=self.cell.device)
        return (at.new_zeros(self.rows * self.length).index_add(0, self.cell, at) > 0).view(self.rows, self.length)


def grids(segments: Tensor, positions: Tensor, lengths: Tensor, most: int) -> list[Grid]:
    """The grids that hold every element once.

    segments, positions  int64 [T], in any order of elements; lengths int64 [B]; most: the greatest length there can be
    """
    if torch.compiler.is_exporting():
        every = torch.arange(lengths.shape[0], device=lengths.device)
        return [Grid(None, segments * most + positions, every, lengths.shape[0], most)]
    out = []
    low, longest = 0, int(lengths.max()) if len(lengths) else 0
    while low < longest:
        high = max(SHORTEST, 2 * low)
        chosen = (lengths > low) & (lengths <= high)
        low = high
        if not bool(chosen.any()):
            continue
        length = int(lengths[chosen].max())
        if bool((chosen | (lengths == 0)).all()):  # all in one
            elements, segment, position = None, segments, positions
        else:
            elements = chosen.index_select(0, segments).nonzero().squeeze(1)
            segment, position = segments.index_select(0, elements), positions.index_select(0, elements)
        row = chosen.cumsum(0) - 1
        cell, sequences = row.index_select(0, segment) * length + position, chosen.nonzero().squeeze(1)
        out.append(Grid(elements, cell, sequences, len(sequences), length))
    return out


def gathered(parts: Sequence[tuple[Grid, Tensor]], count: int, like: Tensor) -> Tensor:
    """[T, K] from what each grid gave for its elements ([t, K])."""
    if len(parts) == 1 and parts[0][0].elements is None:
        return parts[0][1]
    if not parts:
        return like
    index = torch.cat([grid.elements for grid, _ in parts if grid.elements is not None])
    values = torch.cat([values for _, values in parts])
    return values.new_zeros((count, values.shape[1])).index_copy(0, index, values)


def _attended(q: Tensor, k: Tensor, v: Tensor, there: Tensor, of: Tensor | None = None) -> tuple[Tensor]:
    """([B, H, L, d],): softmax(q k / sqrt(d)) v over the places that are `there` (bool [B, L]) and `of` one's group ([B, L]).

    Fused, so that no weights are held. Exporters take the plain operators.
    """
    seen = there[:, None, None]
    if of is not None:
        seen = seen & (of.unsqueeze(1) == of.unsqueeze(2)).unsqueeze(1)
    added = torch.where(seen, 0.0, MASKED).to(q.dtype)  # [B, 1, 1 or L, L]
    if not torch.compiler.is_exporting():
        return (F.scaled_dot_product_attention(q, k, v, attn_mask=added),)
    return (torch.softmax(q @ k.transpose(2, 3) / math.sqrt(q.shape[3]) + added, dim=3) @ v,)


class Attention(nn.Module):
    """Multi-head attention: softmax(q k / sqrt(d)) v, heads side by side, through one last linear layer.

    width, heads  K and H; where H does not divide K, heads are rounded up
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.each = heads, -(-width // heads)
        inner = heads * self.each
        self.query, self.key, self.value = (linear(width, inner, bias=False) for _ in range(3))
        self.out = linear(inner, width)

    def forward(self, x_TK: Tensor, at: Sequence[Grid], groups: Tensor | None = None) -> Tensor:
        """[T, K] -> [T, K]: every element attends to those of its sequence.

        groups  int64 [T]: only to those of its group, too (sessions)
        """
        q, k, v = self.query(x_TK), self.key(x_TK), self.value(x_TK)
        parts = []
        for grid in at:
            shape = (grid.rows, grid.length, self.heads, self.each)
            q_g, k_g, v_g = (grid.fill(x).view(shape).transpose(1, 2) for x in (q, k, v))  # [B, H, L, d]
            if groups is None:
                (met,) = _attended(q_g, k_g, v_g, grid.there())
            else:  # one mask of L x L for each row
                of = grid.fill(groups.unsqueeze(1)).squeeze(2)
                (met,) = by_slices(_attended, 2 * grid.length**2, q_g, k_g, v_g, grid.there(), of)
            parts.append((grid, grid.take(met.transpose(1, 2).flatten(2))))
        out: Tensor = self.out(gathered(parts, x_TK.shape[0], q))
        return out

    def of_targets(self, x_NK: Tensor, x_TK: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Every target attends to the elements that it is paired with and to itself.

        Returns ([N, K], weights [P, H]); what a target's weights lack to 1 is its own.
        """
        q_NK, k_NK, v_NK = self.query(x_NK), self.key(x_NK), self.value(x_NK)
        k_TK, v_TK = self.key(x_TK), self.value(x_TK)
        q_PK, k_PK = spread(q_NK, pairs.candidate), gather(k_TK, pairs.event)
        logits_PH = self._heads(q_PK * k_PK).sum(2) / math.sqrt(self.each)
        own_NH = self._heads(q_NK * k_NK).sum(2) / math.sqrt(self.each)
        index = pairs.candidate.unsqueeze(1).expand_as(logits_PH)
        peak_NH = own_NH.detach().scatter_reduce(0, index, logits_PH.detach(), reduce="amax", include_self=True)
        exp_PH, exp_NH = (logits_PH - peak_NH.index_select(0, pairs.candidate)).exp(), (own_NH - peak_NH).exp()
        total_NH = segment_sum(exp_PH, pairs.candidate, x_NK.shape[0]) + exp_NH
        weights_PH = exp_PH / spread(total_NH, pairs.candidate)
        of_elements = (weights_PH.unsqueeze(2) * self._heads(gather(v_TK, pairs.event))).flatten(1)
        of_itself = ((exp_NH / total_NH).unsqueeze(2) * self._heads(v_NK)).flatten(1)
        return self.out(segment_sum(of_elements, pairs.candidate, x_NK.shape[0]) + of_itself), weights_PH

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], self.heads, self.each)


class Block(nn.Module):
    """Attention and a two-layer network, each with a residual connection, dropout and layer normalisation after it.

    feed  width of the network's hidden layer
    """

    def __init__(self, width: int, heads: int, feed: int, activation: FeedActivation, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.first, self.second = linear(width, feed), linear(feed, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.activation = activation
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_TK: Tensor, at: Sequence[Grid], groups: Tensor | None = None) -> Tensor:
        """[T, K] -> [T, K]; see `Attention.forward`."""
        return self._rest(x_TK, self.attention(x_TK, at, groups))

    def of_targets(self, x_NK: Tensor, x_TK: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """([N, K], weights [P, H]); see `Attention.of_targets`."""
        attended, weights = self.attention.of_targets(x_NK, x_TK, pairs)
        return self._rest(x_NK, attended), weights

    def _rest(self, x: Tensor, attended: Tensor) -> Tensor:
        y = self.norms[0](x + self.dropout(attended))
        hidden = self.first(y)
        match self.activation:
            case "relu":
                hidden = F.relu(hidden)
            case "leaky_relu":
                hidden = F.leaky_relu(hidden)
            case "gelu":
                hidden = F.gelu(hidden)
        out: Tensor = self.norms[1](y + self.dropout(self.second(hidden)))
        return out


def check_sizes(dropout: float, **sizes: int) -> None:
    """Refuse options of which no transformer can be made. sizes: by the options' names."""
    if min(sizes.values()) < 1:
        given = ", ".join(f"{name} = {size}" for name, size in sizes.items())
        raise UserError(f"{given}; accepted: whole numbers of at least 1")
    check_dropout(dropout=dropout)
