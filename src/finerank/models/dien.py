"""Deep Interest Evolution Network. Zhou et al., AAAI 2019, sections 4.2 and 4.3.

R requests · N candidates · T events · P (candidate, event) pairs · K width of an item's joined attributes

Interest extractor: a GRU over the events, once per request, helped by an auxiliary loss that tells the next event from a
sampled one. Interest evolution: a second GRU per candidate over the extractor's states, steered by attention (AUGRU).

Where paper and authors' code differ there is a switch, and the default is the paper:

                    paper                                     code
    cell            augru (equation 15)                       augru_official
    attention       bilinear: softmax of h W e (equation 8)   unit: DIN's network over h and a projected candidate, 80-40
    discriminator   inner: sigmoid of <h, e> (equation 6)     mlp: sigmoid of a network over [h, e], 100-50
    also            ()                                        ("sum", "sum_product")

Ours in both: the auxiliary loss is averaged over all predicted events, so that it does not depend on their number; negatives
are events that were known to the row, drawn anew in every epoch, never the true next item (unless little else was known
yet). What only the event has (fields that the candidate lacks, numbers) is a further input of the extractor; its age is
left out, since the recurrence knows the order. The code's batch normalisation of the discriminator's input is left out.
Fields are 16 wide, as those of `base` and `din`, where both have 18; states are as wide as an item's joined attributes, so 32
with a category where both have 36.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from finerank.data.batch import Batch, Pairs
from finerank.errors import UserError
from finerank.layers.activation import PReLU
from finerank.layers.attention import ActivationUnit, UnitOptions
from finerank.layers.evolution import next_event_loss
from finerank.layers.mlp import MLP, linear
from finerank.layers.recurrent import GRU, Cell
from finerank.layers.segments import gather, segment_softmax, segment_sum, spread
from finerank.models.base import Tower
from finerank.models.composition import Features, Needs, Representation
from finerank.models.pairs import pair_up
from finerank.models.plain import EmbeddingOptions, FieldEmbedding, TaskHeads, plain_features, plain_widths
from finerank.models.registry import Composition, named, part
from finerank.schema import FittedSchema


@part
class InterestEvolution(Representation):
    """The last state of each candidate's interest evolution, as further fields of the candidate."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """The evolution cell, its attention, and the auxiliary loss.

        embedding      width and initial spread of the fields; 18 wide in the paper, 16 here as for `base` and `din`
        cell           augru: the paper's equation 15 · augru_official: what the authors' code computes · agru, aigru, gru
                       (gru knows no attention)
        attention      bilinear: <h, W e> · unit: the activation unit over h and PReLU(W e + b)
        unit           that unit; its own `softmax` and `scale` are not read
        normalise      softmax over the events of a candidate · sigmoid: each on its own, which keeps the intensity of
                       interest and stays a gate
        auxiliary      weight of the auxiliary loss (1 in the paper's code); 0 switches it and its negatives off
        discriminator  what tells the next event from a sampled one · inner: <h, e> · mlp: a network over both, 100-50
        also           sum: the pooled history on the request's side · sum_product: candidate * that sum
        """

        kind: ClassVar[str] = "interest_evolution"
        embedding: EmbeddingOptions = EmbeddingOptions()
        cell: Cell = "augru"
        attention: Literal["bilinear", "unit"] = "bilinear"
        unit: UnitOptions = UnitOptions(hidden=(80, 40), activation="sigmoid")
        normalise: Literal["softmax", "sigmoid"] = "softmax"
        auxiliary: float = 1.0
        discriminator: Literal["inner", "mlp"] = "inner"
        also: tuple[Literal["sum", "sum_product"], ...] = ()

        def __post_init__(self) -> None:
            if self.auxiliary < 0:
                raise UserError(f"auxiliary = {self.auxiliary}; accepted: 0 (off) or more, 1 in the paper's code")

    def __init__(self, fitted: FittedSchema, options: Options) -> None:
        super().__init__()
        self.options = options
        self.embed = FieldEmbedding(fitted, options.embedding, ages=False)
        self.pairs = pair_up(fitted, self.embed, age=False)
        names = frozenset(p.history for p in self.pairs)
        self.needs = Needs(pairs=names, negatives=names if options.auxiliary else frozenset())
        self.attends = {name: name for name in sorted(names)}
        self.steps = {p.history: fitted.schema.history(p.history).max_length for p in self.pairs}
        self.extract, self.evolve, self.match = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.units, self.tell = nn.ModuleList(), nn.ModuleList()
        for pair in self.pairs:
            width = self.embed.width_of(pair.history, pair.names)
            beside = self.embed.width_of(pair.history, pair.context) + len(fitted.histories[pair.history].numbers)
            self.extract.append(GRU(width + beside, width))
            self.evolve.append(GRU(width, width, options.cell))
            if options.attention == "unit":
                self.match.append(nn.Sequential(linear(width, width), PReLU(width)))
                self.units.append(ActivationUnit(width, options.unit))
            else:
                self.match.append(linear(width, width, bias=False))
            if options.auxiliary and options.discriminator == "mlp":
                self.tell.append(MLP(2 * width, (100, 50), 1, act="sigmoid"))
        widths = plain_widths(fitted, self.embed)
        more = sum(len(p.names) for p in self.pairs)
        self.widths = replace(
            widths,
            request_fields=widths.request_fields + more * ("sum" in options.also),
            candidate_fields=widths.candidate_fields + more * (1 + ("sum_product" in options.also)),
        )

    def forward(self, batch: Batch) -> Features:
        """See `Features`; `losses` holds the auxiliary loss in training."""
        sampled = {f"{name} sampled": (name, block) for name, block in batch.negatives.items()} if self.training else {}
        found = self.embed(batch, sampled)
        features = plain_features(batch, self.embed, found)
        fields_R, fields_N, losses, attention = [features.fields_R], [features.fields_N], {}, {}
        for i, pair in enumerate(self.pairs):
            name, steps = pair.history, self.steps[pair.history]
            history, pairs = batch.histories[name], batch.pairs[name]
            k_TK = pair.keys(found[name])
            extract, evolve = self.extract[i], self.evolve[i]
            assert isinstance(extract, GRU)
            assert isinstance(evolve, GRU)
            context_TC = pair.context_of(found[name], history)
            events = k_TK if context_TC is None else torch.cat([k_TK, context_TC], dim=1)
            states_TK, _ = extract(
                extract.project(events), None, history.segments, history.positions, history.lengths, steps
            )
            if f"{name} sampled" in found:
                negatives_TK = found[f"{name} sampled"].joined(pair.names)
                tell = self.tell[i] if len(self.tell) else None
                loss = next_event_loss(states_TK, k_TK, negatives_TK, history.positions, tell)
                losses[f"{name} next event"] = self.options.auxiliary * batch.share * loss

            q_NK = self.match[i](pair.queries(found["candidate"]))
            event = pairs.events()
            attention[name] = weights = self._weights(i, q_NK, states_TK, event, pairs)
            _, last_NK = evolve(
                gather(evolve.project(states_TK), event),
                weights,
                pairs.candidate,
                history.positions.index_select(0, event),
                history.lengths.index_select(0, batch.request_of),
                steps,
            )
            fields_N.append(self.embed.as_fields(name, pair.names, last_NK))
            if self.options.also:
                total = segment_sum(k_TK, history.segments, batch.R)
                sum_RFD = self.embed.as_fields(name, pair.names, total)
                fields_R += [sum_RFD] if "sum" in self.options.also else []
            if "sum_product" in self.options.also:
                q_NFD = self.embed.as_fields("candidate", pair.query, pair.queries(found["candidate"]))
                fields_N.append(q_NFD * spread(sum_RFD.flatten(1), batch.request_of).view(q_NFD.shape))
        fields_RFD, fields_NFD = torch.cat(fields_R, dim=1), torch.cat(fields_N, dim=1)
        return replace(features, fields_R=fields_RFD, fields_N=fields_NFD, losses=losses, attention=attention)

    def _weights(self, i: int, q_NK: Tensor, states_TK: Tensor, event: Tensor, pairs: Pairs) -> Tensor:
        """[P]: how much each event of its history concerns a candidate, from 0 to 1."""
        if self.options.attention == "unit":
            unit = self.units[i]
            assert isinstance(unit, ActivationUnit)
            logits = unit.scores(q_NK, states_TK, None, pairs)
        else:
            logits = (spread(q_NK, pairs.candidate) * gather(states_TK, event)).sum(1)
        if self.options.normalise == "sigmoid":
            return torch.sigmoid(logits)
        return segment_softmax(logits, pairs.candidate, q_NK.shape[0])


DIEN = named(
    Composition(
        name="dien",
        representation=InterestEvolution.Options(),
        interactions=(Tower.Options(activation="dice"),),
        heads=TaskHeads.Options(),
        paper="1809.03672",
        requires=("history",),
    )
)
