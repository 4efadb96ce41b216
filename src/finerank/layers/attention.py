"""DIN's local activation unit over jagged histories.

R requests · N candidates · T events · P (candidate, event) pairs · K width of an item's joined embedding · H hidden

Zhou et al., Deep Interest Network, KDD 2018, section 4.3. The unit scores every past event for every candidate of its
request. Its first layer is factored: with the blocks [q, k, q - k, q*k],
W·input = (W1 + W3)·q + (W2 - W3)·k + W4·(q*k), so the query part is computed once per candidate, the key part once per
event, and only the product part once per pair. Exact algebra; `plain_first_layer` is the textbook twin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finerank.data.batch import Pairs
from finerank.errors import UserError
from finerank.layers.activation import Activation
from finerank.layers.mlp import Hidden, linear
from finerank.layers.segments import gather, segment_softmax, spread, weighted_sum

UnitInput = Literal["query", "key", "difference", "product"]


@dataclass(frozen=True, kw_only=True)
class UnitOptions:
    """The activation unit.

    kind        mlp: the paper's small network · dot: <q, k> / sqrt(K), no parameters, a quick start
    inputs      blocks of the network's input; the authors' code takes all four
    hidden      80-40 in the authors' code
    activation  sigmoid in the authors' code, PReLU or Dice in the paper
    softmax     off in the paper (section 4.3: intensity of interest is kept), on in both official repositories
    """

    kind: Literal["mlp", "dot"] = "mlp"
    inputs: tuple[UnitInput, ...] = ("query", "key", "difference", "product")
    hidden: tuple[int, ...] = (64, 32)
    activation: Activation = "prelu"
    softmax: bool = False

    def __post_init__(self) -> None:
        if not self.hidden or min(self.hidden) < 1:
            raise UserError(f"hidden = {list(self.hidden)}; accepted: one layer or more, each of at least 1 neuron")
        if not self.inputs or len(set(self.inputs)) < len(self.inputs):
            raise UserError(f"inputs = {list(self.inputs)}; accepted: one block or more, each once")


class ActivationUnit(nn.Module):
    """The weight of every pair. `context`: width of what only events have (the embedding of their age), 0 for none."""

    def __init__(self, width: int, options: UnitOptions, context: int = 0) -> None:
        super().__init__()
        self.width, self.options = width, options
        if options.kind == "dot":
            return
        self.first = linear(len(options.inputs) * width + context, options.hidden[0])
        after: list[nn.Module] = [Hidden(options.hidden[0], options.activation, 0.0, False)]
        for inputs, outputs in zip(options.hidden, options.hidden[1:], strict=False):
            after += [linear(inputs, outputs), Hidden(outputs, options.activation, 0.0, False)]
        self.rest = nn.Sequential(*after, linear(options.hidden[-1], 1))

    def forward(self, q_NK: Tensor, k_TK: Tensor, context_TC: Tensor | None, pairs: Pairs) -> Tensor:
        """Weights [P]."""
        weights: Tensor
        if self.options.kind == "dot":
            product = spread(q_NK, pairs.candidate) * _at(k_TK, pairs.event)
            weights = product.sum(1) / self.width**0.5
        else:
            weights = self.rest(self.first_layer(q_NK, k_TK, context_TC, pairs))[:, 0]
        if self.options.softmax:
            scaled = weights if self.options.kind == "dot" else weights / self.width**0.5
            weights = segment_softmax(scaled, pairs.candidate, q_NK.shape[0])
        return weights

    def first_layer(self, q_NK: Tensor, k_TK: Tensor, context_TC: Tensor | None, pairs: Pairs) -> Tensor:
        """[P, H] before the activation, factored."""
        columns = (self.first.weight[:, i * self.width : (i + 1) * self.width] for i in range(len(self.options.inputs)))
        parts = dict(zip(self.options.inputs, columns, strict=True))
        difference = parts.get("difference")
        query = _add(parts.get("query"), difference)
        key = _add(parts.get("key"), None if difference is None else -difference)
        once = [(k_TK, key)] if key is not None else []
        if context_TC is not None:
            once.append((context_TC, self.first.weight[:, len(self.options.inputs) * self.width :]))
        product = parts.get("product")
        out: Tensor | None = None
        if product is not None:
            once.append((spread(q_NK, pairs.candidate) * _at(k_TK, pairs.event), product))
        if product is not None and pairs.event is not None:  # the products are per pair, the rest per event
            out = F.linear(*once.pop())
        if once:  # all of it per event: with one candidate per request pair p is event p, and products join in
            of_events = _at(_joined_linear(once), pairs.event)
            out = of_events if out is None else out + of_events
        per_candidate = (
            self.first.bias.expand(q_NK.shape[0], -1) if query is None else F.linear(q_NK, query, self.first.bias)
        )
        per_candidate = spread(per_candidate, pairs.candidate)
        return per_candidate if out is None else out + per_candidate

    def plain_first_layer(self, q_NK: Tensor, k_TK: Tensor, context_TC: Tensor | None, pairs: Pairs) -> Tensor:
        """[P, H] as the paper writes it: one linear layer over the joined blocks. The twin that `first_layer` must equal."""
        q, k = spread(q_NK, pairs.candidate), _at(k_TK, pairs.event)
        blocks = {"query": q, "key": k, "difference": q - k, "product": q * k}
        joined = [blocks[name] for name in self.options.inputs]
        if context_TC is not None:
            joined.append(_at(context_TC, pairs.event))
        out: Tensor = self.first(torch.cat(joined, dim=1))
        return out


def attend(weights_P: Tensor, k_TK: Tensor, pairs: Pairs, candidates: int) -> Tensor:
    """v_NK = sum over a candidate's pairs of weight * key; a candidate without history gets 0."""
    return weighted_sum(weights_P, k_TK, pairs.candidate, pairs.event, candidates)


def _at(x: Tensor, index: Tensor | None) -> Tensor:
    return x if index is None else gather(x, index)


def _add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b


def _joined_linear(terms: list[tuple[Tensor, Tensor]]) -> Tensor:
    """sum of W_i·x_i as one multiplication."""
    if len(terms) == 1:
        return F.linear(*terms[0])
    return F.linear(torch.cat([x for x, _ in terms], dim=1), torch.cat([w for _, w in terms], dim=1))
