"""The base model of the DIN paper: embedding, pooling of each history, MLP. Zhou et al., KDD 2018, section 4.2.

R requests · N candidates · T events · F attributes of an event · D width
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from finerank.data.batch import Batch
from finerank.errors import UserError
from finerank.layers.activation import Activation
from finerank.layers.mlp import MLP, Hidden, SplitLinear, linear
from finerank.layers.segments import segment_mean, segment_sum
from finerank.models.composition import Features, Interaction, Representation, Widths
from finerank.models.plain import EmbeddingOptions, FieldEmbedding, TaskHeads, plain_features, plain_widths
from finerank.models.registry import Composition, named, part
from finerank.schema import FittedSchema


def attributes(embed: FieldEmbedding, history: str) -> tuple[str, ...]:
    """The columns of a history that describe the event itself: all but its age."""
    return tuple(name for name in embed.columns(history) if name != "age")


@part
class Pooled(Representation):
    """Fields, and each history pooled to one vector per attribute on the request's side."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """How fields are embedded and histories pooled.

        embedding  width and initial spread of the fields
        pooling    sum as in the paper; the mean forgets how much a user did
        """

        kind: ClassVar[str] = "pooled"
        embedding: EmbeddingOptions = EmbeddingOptions()
        pooling: Literal["sum", "mean"] = "sum"

    def __init__(self, fitted: FittedSchema, options: Options) -> None:
        super().__init__()
        self.embed = FieldEmbedding(fitted, options.embedding, ages=False)
        self.pooling = options.pooling
        self.histories = {name: attributes(self.embed, name) for name in fitted.histories}
        widths = plain_widths(fitted, self.embed)
        more = sum(len(names) for names in self.histories.values())
        self.widths = replace(widths, request_fields=widths.request_fields + more)

    def forward(self, batch: Batch) -> Features:
        """See `Features`."""
        found = self.embed(batch)
        features = plain_features(batch, self.embed, found)
        pool = segment_sum if self.pooling == "sum" else segment_mean
        pooled = [features.fields_R]
        for name, names in self.histories.items():
            joined = pool(found[name].joined(names), batch.histories[name].segments, batch.R)
            pooled.append(self.embed.as_fields(name, names, joined))
        return replace(features, fields_R=torch.cat(pooled, dim=1))


@part
class Tower(Interaction):
    """A multilayer perceptron over all fields and numbers; the request's part of its first layer once per request.

    With several outputs each has a tower of its own over the shared features.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """hidden: 200-80 in the paper · activation: PReLU in the paper · dropout, batch_norm: off unless asked for."""

        kind: ClassVar[str] = "tower"
        hidden: tuple[int, ...] = (200, 80)
        activation: Activation = "prelu"
        dropout: float = 0.0
        batch_norm: bool = False

        def __post_init__(self) -> None:
            if min(self.hidden, default=1) < 1:
                raise UserError(f"hidden = {list(self.hidden)}; accepted: layers of at least 1 neuron each")
            if not 0 <= self.dropout < 1:
                raise UserError(f"dropout = {self.dropout}; accepted: from 0 (none) to below 1")

    def __init__(self, fitted: FittedSchema, widths: Widths, outputs: int, options: Options) -> None:
        super().__init__()
        self.towers = nn.ModuleList(_OneTower(widths, options) for _ in range(outputs))

    def forward(self, features: Features) -> Tensor:
        """[N, outputs]."""
        x_R, x_N = features.sides()
        of = features.batch.request_of
        return torch.cat([tower(x_R, x_N, of) for tower in self.towers], dim=1)


class _OneTower(nn.Module):
    def __init__(self, widths: Widths, options: Tower.Options) -> None:
        super().__init__()
        first = options.hidden[0] if options.hidden else 1
        self.first = SplitLinear(widths.request, widths.candidate, first)
        self.rest: nn.Module = nn.Identity()
        if options.hidden:
            o, hidden = options, options.hidden[1:]
            after = MLP(first, hidden, 1, o.activation, o.dropout, o.batch_norm) if hidden else linear(first, 1)
            self.rest = nn.Sequential(Hidden(first, o.activation, o.dropout, o.batch_norm), after)

    def forward(self, x_R: Tensor, x_N: Tensor, of: Tensor) -> Tensor:
        out: Tensor = self.rest(self.first(x_R, x_N, of))
        return out


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
