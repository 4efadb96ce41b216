"""DIN's local activation unit over jagged histories.

R requests · N candidates · T events · P (candidate, event) pairs · K width of a query or key (an item's joined
embedding; J and K where they differ) · C width of an event's context · H hidden

Zhou et al., Deep Interest Network, KDD 2018, section 4.3. The unit scores every past event for every candidate of its
request. Its first layer is factored: with the blocks [q, k, q - k, q*k],
W·input = (W1 + W3)·q + (W2 - W3)·k + W4·(q*k), so the query part is computed once per candidate, the key part once per
event, and only the product part once per pair. Exact algebra; `plain_first_layer` is the textbook twin.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finerank.data.batch import Pairs
from finerank.errors import UserError
from finerank.kernels.rows import fits
from finerank.kernels.unit import Layer, Spans, has_bf16
from finerank.kernels.unit import attend as compiled_attend
from finerank.kernels.unit import unit_weights as compiled_weights
from finerank.layers.activation import Activation
from finerank.layers.checks import check_layers
from finerank.layers.cosine import unit_length
from finerank.layers.mlp import Hidden, linear
from finerank.layers.precision import lowered
from finerank.layers.segments import gather, segment_softmax, spread, weighted_sum

UnitInput = Literal["query", "key", "difference", "product", "inner", "outer"]
ALIKE = ("difference", "product", "inner")
"""Blocks (and the kinds dot and cosine) that compare number by number: query and key must have one width."""


@dataclass(frozen=True, kw_only=True)
class UnitOptions:
    """The activation unit.

    kind        mlp: the paper's small network · dot: <q, k> / sqrt(K), no parameters, a quick start · cosine: <q, k>
                over their lengths, no parameters · bilinear: q W k, the only one but mlp for q and k of unequal widths
    inputs      blocks of the network's input; the authors' code takes query, key, difference, product; the paper's text
                names the outer product, K^2 wide and dear; inner is the one number <q, k>
    hidden      80-40 in the authors' code
    activation  sigmoid in the authors' code, PReLU or Dice in the paper
    softmax     off in the paper (section 4.3: intensity of interest is kept), on in both official repositories
    scale       under softmax, the scores of mlp and bilinear are divided by sqrt(K), as in the DIN repository
    start       what the network gives before anything is learnt (its last bias), for mlp without softmax. 0 as in the authors'
                code: the past adds nothing at first, and vectors and weights push each other up. At .3 it begins as a pooled
                sum, which is better where few passes must do and worse where events speak against each other: which, only
                your validation rows tell (benchmarks/README.md; `finerank tune` and `ablate` ask them)
    """

    kind: Literal["mlp", "dot", "bilinear", "cosine"] = "mlp"
    inputs: tuple[UnitInput, ...] = ("query", "key", "difference", "product")
    hidden: tuple[int, ...] = (64, 32)
    activation: Activation = "prelu"
    softmax: bool = False
    scale: bool = True
    start: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.start):
            raise UserError(f"start = {self.start}; accepted: a number, usually 0 or .3")
        check_layers(hidden=self.hidden)
        if not self.inputs or len(set(self.inputs)) < len(self.inputs):
            raise UserError(f"inputs = {list(self.inputs)}; accepted: one block or more, each once")

    def without_effect(self, stages: Collection[str]) -> Mapping[str, str]:
        """See `models.effects`."""
        if self.kind != "mlp":
            return dict.fromkeys(("inputs", "hidden", "activation", "start"), f"kind = {self.kind!r} has no network")
        return {"start": "softmax takes what all weights have in common out"} if self.softmax else {}


class ActivationUnit(nn.Module):
    """The weight of every pair.

    width      K of the keys, and of the queries where `query` does not say otherwise
    context    C: width of what only events have (the embedding of their age), 0 for none; the network alone sees it
    query      J of the queries
    Raises UserError where the kind or a block compares number by number and J is not K.
    """

    def __init__(self, width: int, options: UnitOptions, context: int = 0, query: int | None = None) -> None:
        super().__init__()
        query = width if query is None else query
        self.width, self.options = width, options
        compares = [b for b in options.inputs if b in ALIKE] if options.kind == "mlp" else [options.kind]
        if query != width and set(compares) - {"bilinear"}:
            raise UserError(
                f"attention: the query is {query} numbers wide, the key {width}, and {compares[0]!r} needs one width; give "
                "the features one dim, or set unit.kind = 'bilinear', or unit.inputs = ['query', 'key']"
            )
        if options.kind == "bilinear":
            self.form = linear(query, width, bias=False)
        if options.kind != "mlp":
            return
        each = {"query": query, "inner": 1, "outer": query * width}
        self.columns: dict[str, slice] = {}  # of the first layer's weight, by block
        inputs = 0
        for name, size in [*((b, each.get(b, width)) for b in options.inputs), ("context", context)]:
            self.columns[name] = slice(inputs, inputs + size)
            inputs += size
        self.first = linear(inputs, options.hidden[0])
        after: list[nn.Module] = [Hidden(options.hidden[0], options.activation, 0.0, False)]
        for before, outputs in zip(options.hidden, options.hidden[1:], strict=False):
            after += [linear(before, outputs), Hidden(outputs, options.activation, 0.0, False)]
        last = linear(options.hidden[-1], 1)
        nn.init.constant_(last.bias, options.start)
        self.rest = nn.Sequential(*after, last)

    def forward(
        self, q_NK: Tensor, k_TK: Tensor, context_TC: Tensor | None, pairs: Pairs, log_T: Tensor | None = None
    ) -> Tensor:
        """Weights [P]. log_T: the logarithm of a factor for every event (`log_decay`); under softmax a prior."""
        weights = self.scores(q_NK, k_TK, context_TC, pairs)
        if not self.options.softmax:
            return weights if log_T is None else weights * gather(log_T.exp(), pairs.event)
        weights = self.scaled(weights)
        if log_T is not None:
            weights = weights + gather(log_T, pairs.event)
        return segment_softmax(weights, pairs.candidate, q_NK.shape[0])

    def scaled(self, scores_P: Tensor) -> Tensor:
        """[P]: scores as a softmax takes them."""
        by_width = self.options.scale and self.options.kind in ("mlp", "bilinear")
        return scores_P / math.sqrt(self.width) if by_width else scores_P

    def scores(self, q_NK: Tensor, k_TK: Tensor, context_TC: Tensor | None, pairs: Pairs) -> Tensor:
        """[P], not normalised."""
        match self.options.kind:
            case "mlp":
                spans, layers = _spans(pairs), self._compiled_layers()
                if spans is not None and layers and fits(q_NK, k_TK):
                    return self._compiled(q_NK, k_TK, context_TC, spans, layers, len(pairs.candidate))
                out: Tensor = self.rest(self.first_layer(q_NK, k_TK, context_TC, pairs))[:, 0]
                return out
            case "dot":
                return _inner(q_NK, k_TK, pairs) / math.sqrt(self.width)
            case "bilinear":
                return _inner(self.form(q_NK), k_TK, pairs)
            case "cosine":
                return _inner(unit_length(q_NK), unit_length(k_TK), pairs)

    def first_layer(self, q_NK: Tensor, k_TK: Tensor, context_TC: Tensor | None, pairs: Pairs) -> Tensor:
        """[P, H] before the activation, factored."""
        parts, query, key, product = self._factors()
        once = [(k_TK, key)] if key is not None else []
        if context_TC is not None:
            once.append((context_TC, parts["context"]))
        each = []
        if product is not None or "outer" in parts:
            q, k = spread(q_NK, pairs.candidate), gather(k_TK, pairs.event)
            each += [(q * k, product)] if product is not None else []
            each += [(_outer(q, k), parts["outer"])] if "outer" in parts else []
        out: Tensor | None = None
        if each and pairs.event is not None:  # these are per pair, the rest per event
            out = _joined_linear(each)
        else:  # with one candidate per request pair p is event p, and they join in
            once += each
        if once:
            of_events = gather(_joined_linear(once), pairs.event)
            out = of_events if out is None else out + of_events
        per_candidate = spread(self._per_candidate(q_NK, query), pairs.candidate)
        return per_candidate if out is None else out + per_candidate

    def _factors(self) -> tuple[dict[str, Tensor], Tensor | None, Tensor | None, Tensor | None]:
        """The first layer's weights by block, and those of q, k and q*k with the blocks that are made of them shared out."""
        parts = {name: self.first.weight[:, columns] for name, columns in self.columns.items()}
        difference = parts.get("difference")
        query = _add(parts.get("query"), difference)
        key = _add(parts.get("key"), None if difference is None else -difference)
        # the inner product is the sum of the products, so its column joins theirs
        product = _add(parts.get("product"), parts["inner"].expand(-1, self.width) if "inner" in parts else None)
        return parts, query, key, product

    def _per_candidate(self, q_NK: Tensor, query: Tensor | None) -> Tensor:
        """[N, H]: the query's part of the first layer, and the bias."""
        bias = self.first.bias
        return bias.expand(q_NK.shape[0], -1) if query is None else F.linear(q_NK, query, bias)

    def _compiled(
        self, q_NK: Tensor, k_TK: Tensor, context_TC: Tensor | None, spans: Spans, layers: list[Layer], pairs: int
    ) -> Tensor:
        """[P] by the compiled loops: the twin of `rest(first_layer(...))`."""
        last = self.rest[-1]
        assert isinstance(last, nn.Linear)
        of_events = None if context_TC is None else F.linear(context_TC, self.first.weight[:, self.columns["context"]])
        return compiled_weights(
            *(q_NK, k_TK, of_events, self.columns, layers, (last.weight, last.bias), spans, pairs),
            bent=self.options.activation != "relu",
            bf16=lowered() and k_TK.dtype == torch.float32 and has_bf16(),
        )

    def _compiled_layers(self) -> list[Layer]:
        """The layers as the compiled loops take them; empty where they cannot: no product, an outer one, Dice or sigmoid."""
        blocks = set(self.options.inputs)
        if "outer" in blocks or not blocks & {"product", "inner"}:
            return []
        linears = [self.first, *(m for m in self.rest if isinstance(m, nn.Linear))]
        layers = []
        for layer, after in zip(linears, (m for m in self.rest if isinstance(m, Hidden)), strict=False):
            slope = after.slope(layer.weight)
            if slope is None:
                return []
            layers.append(Layer(layer.weight, layer.bias, slope))
        return layers

    def plain_first_layer(self, q_NK: Tensor, k_TK: Tensor, context_TC: Tensor | None, pairs: Pairs) -> Tensor:
        """[P, H] as the paper writes it: one linear layer over the joined blocks. The twin that `first_layer` must equal."""
        q, k = spread(q_NK, pairs.candidate), gather(k_TK, pairs.event)
        blocks = {
            "query": lambda: q,
            "key": lambda: k,
            "difference": lambda: q - k,
            "product": lambda: q * k,
            "inner": lambda: (q * k).sum(1, keepdim=True),
            "outer": lambda: _outer(q, k),
        }
        joined = [blocks[name]() for name in self.options.inputs]
        if context_TC is not None:
            joined.append(gather(context_TC, pairs.event))
        out: Tensor = self.first(torch.cat(joined, dim=1))
        return out


def attend(weights_P: Tensor, k_TK: Tensor, pairs: Pairs, candidates: int) -> Tensor:
    """v_NK = sum over a candidate's pairs of weight * key; a candidate without history gets 0."""
    if (spans := _spans(pairs)) is not None and fits(weights_P, k_TK):
        return compiled_attend(weights_P, k_TK, spans)
    return weighted_sum(weights_P, k_TK, pairs.candidate, pairs.event, candidates)


def _spans(pairs: Pairs) -> Spans | None:
    """Where each candidate's events and pairs lie, for the compiled loops; None while exporting."""
    if pairs.first is None or pairs.count is None or torch.compiler.is_exporting():
        return None
    return Spans(pairs.first, pairs.count, pairs.count.cumsum(0) - pairs.count)


def log_decay(ages_T: Tensor, tau: float, like: Tensor) -> Tensor:
    """[T]: log of exp(-age / tau), in the type of `like`. ages_T: int64 microseconds; tau: seconds."""
    return ages_T.to(like.dtype) * (-1e-6 / tau)  # float only now, after times were subtracted


def check_decay(decay: float) -> None:
    """Refuse a time constant that is none; 0 switches decay off."""
    if not 0 <= decay < float("inf"):
        raise UserError(f"decay = {decay}; accepted: seconds after which an event counts 1/e, or 0 for no decay")


def _inner(q_NK: Tensor, k_TK: Tensor, pairs: Pairs) -> Tensor:
    """[P]: <q, k> of every pair."""
    return (spread(q_NK, pairs.candidate) * gather(k_TK, pairs.event)).sum(1)


def _outer(q_PK: Tensor, k_PK: Tensor) -> Tensor:
    """[P, J·K]: all products, row after row."""
    return (q_PK.unsqueeze(2) * k_PK.unsqueeze(1)).flatten(1)


def _add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b


def _joined_linear(terms: list[tuple[Tensor, Tensor]]) -> Tensor:
    """sum of W_i·x_i as one multiplication."""
    if len(terms) == 1:
        return F.linear(*terms[0])
    return F.linear(torch.cat([x for x, _ in terms], dim=1), torch.cat([w for _, w in terms], dim=1))
