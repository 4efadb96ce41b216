"""The base model of the DIN paper: embedding, pooling of each history, MLP. Zhou et al., KDD 2018, section 4.2.

R requests · N candidates · T events · F attributes of an event · D width
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from finerank.data.batch import Batch, Jagged
from finerank.layers.activation import Activation
from finerank.layers.attention import check_decay, log_decay
from finerank.layers.checks import check_dropout, check_layers
from finerank.layers.embedding import BlockVectors
from finerank.layers.mlp import SplitMLP
from finerank.layers.segments import segment_mean, segment_softmax, segment_sum, weighted_sum
from finerank.models.composition import Features, Interaction, Representation, Widths
from finerank.models.pairs import attributes, check_ages
from finerank.models.plain import EmbeddingOptions, FieldEmbedding, TaskHeads, plain_features, plain_widths
from finerank.models.registry import Composition, named, part
from finerank.schema import FittedSchema


@part
class Pooled(Representation):
    """Fields, and each history pooled to one vector per attribute on the request's side; numbers of events likewise."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """How fields are embedded and histories pooled.

        embedding  width and initial spread of the fields
        pooling    sum as in the paper; the mean forgets how much a user did
        decay      seconds after which an event counts 1/e: weights exp(-age / decay), a step between pooling and
                   attention (a week is 604800); 0: all count alike. Histories of list columns have no ages to decay by
        """

        kind: ClassVar[str] = "pooled"
        embedding: EmbeddingOptions = EmbeddingOptions()
        pooling: Literal["sum", "mean"] = "sum"
        decay: float = 0.0

        def __post_init__(self) -> None:
            check_decay(self.decay)

    def __init__(self, fitted: FittedSchema, options: Options) -> None:
        super().__init__()
        check_ages(fitted, fitted.histories, options.decay)
        self.embed = FieldEmbedding(fitted, options.embedding, ages=False)
        self.options = options
        self.histories = {name: attributes(self.embed, name) for name in fitted.histories}
        widths = plain_widths(fitted, self.embed)
        self.widths = replace(
            widths,
            request_fields=widths.request_fields + sum(len(names) for names in self.histories.values()),
            request_numbers=widths.request_numbers + sum(len(c.numbers) for c in fitted.histories.values()),
        )

    def forward(self, batch: Batch) -> Features:
        """See `Features`."""
        return self.features(batch, self.embed(batch))

    def features(self, batch: Batch, found: Mapping[str, BlockVectors]) -> Features:
        """The features of a batch whose blocks are embedded already."""
        features = plain_features(batch, self.embed, found)
        fields, numbers = [features.fields_R], [features.numbers_R]
        for name, names in self.histories.items():
            history = batch.histories[name]
            fields.append(self.embed.as_fields(name, names, self._pool(found[name].joined(names), history)))
            if history.events.numbers.shape[1]:
                numbers.append(self._pool(history.events.numbers, history))
        return replace(features, fields_R=torch.cat(fields, dim=1), numbers_R=torch.cat(numbers, dim=1))

    def _pool(self, values_TD: Tensor, history: Jagged) -> Tensor:
        """[T, D] -> [R, D]."""
        of, requests = history.segments, history.lengths.shape[0]
        if not self.options.decay:
            return (segment_sum if self.options.pooling == "sum" else segment_mean)(values_TD, of, requests)
        # a mean is a softmax: ages are taken relative to the newest, so that no sum of weights vanishes
        log_T = log_decay(history.ages, self.options.decay, values_TD)
        weights = log_T.exp() if self.options.pooling == "sum" else segment_softmax(log_T, of, requests)
        return weighted_sum(weights, values_TD, of, None, requests)


@part
class Tower(Interaction):
    """A multilayer perceptron over all fields and numbers; the request's part of its first layer once per request.

    With several outputs each has a tower of its own over the shared features. The last layer has no bias: the heads hold it.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """hidden: 200-80 in the paper · activation: PReLU in the paper · dropout: off unless asked for
        batch_norm: off in the paper; worth a try, for on some logs it wins much (benchmarks/README.md)"""

        kind: ClassVar[str] = "tower"
        hidden: tuple[int, ...] = (200, 80)
        activation: Activation = "prelu"
        dropout: float = 0.0
        batch_norm: bool = False

        def __post_init__(self) -> None:
            check_layers(0, hidden=self.hidden)
            check_dropout(dropout=self.dropout)

    def __init__(self, fitted: FittedSchema, widths: Widths, outputs: int, options: Options) -> None:
        super().__init__()
        o = options
        self.towers = nn.ModuleList(
            SplitMLP(widths.request, widths.candidate, o.hidden, 1, o.activation, o.dropout, o.batch_norm)
            for _ in range(outputs)
        )

    def forward(self, features: Features) -> Tensor:
        """[N, outputs]."""
        x_R, x_N = features.sides()
        of = features.batch.request_of
        return torch.cat([tower(x_R, x_N, of) for tower in self.towers], dim=1)


BASE = named(
    Composition(
        name="base",
        representation=Pooled.Options(),
        interactions=(Tower.Options(),),
        heads=TaskHeads.Options(),
        paper="1706.06978",
        requires=("history",),
    )
)
