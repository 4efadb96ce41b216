"""Deep Interest Network. Zhou et al., KDD 2018, sections 4.1-4.3.

R requests · N candidates · T events · P (candidate, event) pairs · K width of an item's joined attributes · D of a field

Differs from the textbook: history is jagged and stored once per request, so there is no mask to forget and no padding
for Dice to average over; the unit's first layer is factored (same numbers, a quarter of the work); the first layer of the
tower reads the user's side once per request. The age of an event, where the history keeps it, is a further input of the
unit that has no counterpart in the candidate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from finerank.data.batch import Batch, Jagged
from finerank.errors import UserError
from finerank.layers.attention import ActivationUnit, UnitOptions, attend
from finerank.layers.embedding import BlockVectors
from finerank.layers.segments import segment_sum
from finerank.models.base import Tower, attributes
from finerank.models.composition import Features, Needs, Representation
from finerank.models.plain import EmbeddingOptions, FieldEmbedding, TaskHeads, plain_features, plain_widths
from finerank.models.registry import Composition, named, part
from finerank.schema import FittedSchema


@dataclass(frozen=True)
class Paired:
    """How a history meets the candidate: attributes both have, and what only the event has (`context`)."""

    history: str
    names: tuple[str, ...]
    context: tuple[str, ...]

    def keys(self, found: BlockVectors) -> Tensor:
        """k_TK."""
        return found.joined(self.names)

    def context_of(self, found: BlockVectors, history: Jagged) -> Tensor | None:
        """[T, C]: embeddings of age and of other attributes of the event alone, and its numbers; None when there are none."""
        parts = [found.column(name) for name in self.context]
        if history.events.numbers.shape[1]:
            parts.append(history.events.numbers)
        return torch.cat(parts, dim=1) if parts else None


def pair_up(fitted: FittedSchema, embed: FieldEmbedding, age: bool = True) -> list[Paired]:
    """The pairing of every history: attribute by attribute with the candidate's column of the same name."""
    if not fitted.histories:
        raise UserError("the schema has no history, so there is nothing to attend to; declare a [[history]]")
    out = []
    candidate = embed.columns("candidate")
    for history in fitted.histories:
        own = attributes(embed, history)
        names = tuple(name for name in own if name in candidate)
        if not names:
            raise UserError(
                f"history {history!r} shares no field with the candidate, so nothing can attend to it; "
                f"its fields: {list(own)}, the candidate's: {list(candidate)}"
            )
        context = tuple(name for name in own if name not in candidate)
        out.append(Paired(history, names, context + (("age",) if age and "age" in embed.columns(history) else ())))
    return out


@part
class TargetInterest(Representation):
    """The user's past as seen from each candidate: v_N = sum_t a(q_N, k_t) k_t, weights not normalised (section 4.3)."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """What the unit looks at and what enters the tower beside its result.

        embedding  width and initial spread of the fields
        unit       the activation unit
        age        whether the unit sees how long ago an event was (the unit `dot` never does)
        also       sum: the pooled history on the request's side · product: candidate * its interest (authors' code
                   has both)
        """

        kind: ClassVar[str] = "target_interest"
        embedding: EmbeddingOptions = EmbeddingOptions()
        unit: UnitOptions = UnitOptions()
        age: bool = True
        also: tuple[Literal["sum", "product"], ...] = ()

    def __init__(self, fitted: FittedSchema, options: Options) -> None:
        super().__init__()
        self.options = options
        self.embed = FieldEmbedding(fitted, options.embedding, ages=options.age)
        self.pairs = pair_up(fitted, self.embed, options.age)
        self.needs = Needs(pairs=frozenset(p.history for p in self.pairs))
        self.units = nn.ModuleList()
        more_R = more_N = 0
        for pair in self.pairs:
            context = self.embed.width_of(pair.history, pair.context) + len(fitted.histories[pair.history].numbers)
            self.units.append(ActivationUnit(self.embed.width_of(pair.history, pair.names), options.unit, context))
            more_R += len(pair.names) * ("sum" in options.also)
            more_N += len(pair.names) * (1 + ("product" in options.also))
        widths = plain_widths(fitted, self.embed)
        self.widths = replace(
            widths,
            request_fields=widths.request_fields + more_R,
            candidate_fields=widths.candidate_fields + more_N,
        )

    def forward(self, batch: Batch) -> Features:
        """See `Features`; `attention` holds the weight of every pair."""
        found = self.embed(batch)
        features = plain_features(batch, self.embed, found)
        fields_R, fields_N, attention = [features.fields_R], [features.fields_N], {}
        for pair, unit in zip(self.pairs, self.units, strict=True):
            history, pairs = batch.histories[pair.history], batch.pairs[pair.history]
            q_NK, k_TK = found["candidate"].joined(pair.names), pair.keys(found[pair.history])
            weights = unit(q_NK, k_TK, pair.context_of(found[pair.history], history), pairs)
            attention[pair.history] = weights
            interest = attend(weights, k_TK, pairs, batch.N)
            fields_N.append(self.embed.as_fields(pair.history, pair.names, interest))
            if "product" in self.options.also:
                fields_N.append(self.embed.as_fields(pair.history, pair.names, q_NK * interest))
            if "sum" in self.options.also:
                total = segment_sum(k_TK, history.segments, batch.R)
                fields_R.append(self.embed.as_fields(pair.history, pair.names, total))
        return replace(
            features, fields_R=torch.cat(fields_R, dim=1), fields_N=torch.cat(fields_N, dim=1), attention=attention
        )


DIN = named(
    Composition(
        name="din",
        representation=TargetInterest.Options(),
        interactions=(Tower.Options(),),
        heads=TaskHeads.Options(),
        paper="1706.06978",
        requires=("history",),
    )
)
