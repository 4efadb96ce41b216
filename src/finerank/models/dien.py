"""Deep Interest Evolution Network. Zhou et al., AAAI 2019, sections 4.2 and 4.3.

R requests · N candidates · T events · P (candidate, event) pairs · K width of an item's joined attributes

Interest extractor: a GRU over the events, once per request, helped by an auxiliary loss that tells the next event from a
sampled one. Interest evolution: a second GRU per candidate over the extractor's states, steered by attention (AUGRU).
Stated choices, where paper and code differ: attention is the paper's softmax of h W e (equation 8); the auxiliary loss is
the paper's inner product (equation 6), averaged over all predicted events, so that it does not depend on their number;
negatives are events that were known to the row, drawn anew in every epoch, never the true next item (unless little
else was known yet). What only the event has (fields that the candidate lacks, numbers) is a further input of the
extractor; its age is left out, since the recurrence knows the order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finerank.data.batch import Batch, Jagged
from finerank.errors import UserError
from finerank.layers.mlp import linear
from finerank.layers.recurrent import GRU, Cell
from finerank.layers.segments import gather, segment_softmax, spread
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
        """The evolution cell and the auxiliary loss.

        embedding  width and initial spread of the fields
        cell       augru: the paper's equation 15 · augru_official: what the authors' code computes · agru, aigru, gru
        auxiliary  weight of the auxiliary loss (1 in the paper's code); 0 switches it and its negatives off
        """

        kind: ClassVar[str] = "interest_evolution"
        embedding: EmbeddingOptions = EmbeddingOptions()
        cell: Cell = "augru"
        auxiliary: float = 1.0

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
        for pair in self.pairs:
            width = self.embed.width_of(pair.history, pair.names)
            beside = self.embed.width_of(pair.history, pair.context) + len(fitted.histories[pair.history].numbers)
            self.extract.append(GRU(width + beside, width))
            self.evolve.append(GRU(width, width, options.cell))
            self.match.append(linear(width, width, bias=False))
        widths = plain_widths(fitted, self.embed)
        more = sum(len(p.names) for p in self.pairs)
        self.widths = replace(widths, candidate_fields=widths.candidate_fields + more)

    def forward(self, batch: Batch) -> Features:
        """See `Features`; `losses` holds the auxiliary loss in training."""
        sampled = {f"{name} sampled": (name, block) for name, block in batch.negatives.items()} if self.training else {}
        found = self.embed(batch, sampled)
        features = plain_features(batch, self.embed, found)
        fields_N, losses, attention = [features.fields_N], {}, {}
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
                losses[f"{name} next event"] = (
                    self.options.auxiliary * batch.share * next_event_loss(states_TK, k_TK, negatives_TK, history)
                )

            q_NK = self.match[i](pair.queries(found["candidate"]))
            event = torch.arange(pairs.candidate.shape[0]) if pairs.event is None else pairs.event
            event = event.to(pairs.candidate.device)
            states_PK = gather(states_TK, event)
            logits = (spread(q_NK, pairs.candidate) * states_PK).sum(1)
            weights = segment_softmax(logits, pairs.candidate, batch.N)
            attention[name] = weights
            _, last_NK = evolve(
                gather(evolve.project(states_TK), event),
                weights,
                pairs.candidate,
                history.positions.index_select(0, event),
                history.lengths.index_select(0, batch.request_of),
                steps,
            )
            fields_N.append(self.embed.as_fields(name, pair.names, last_NK))
        return replace(features, fields_N=torch.cat(fields_N, dim=1), losses=losses, attention=attention)


def next_event_loss(states_TK: Tensor, events_TK: Tensor, negatives_TK: Tensor, history: Jagged) -> Tensor:
    """Mean over all events but the first of each request: -log s(h_t, e_{t+1}) - log(1 - s(h_t, n_{t+1})).

    s = sigmoid of the inner product (equation 6); 0 when no request has two events.
    """
    later = (history.positions > 0).nonzero().squeeze(1)
    before = states_TK.index_select(0, later - 1)
    true = (before * events_TK.index_select(0, later)).sum(1)
    false = (before * negatives_TK.index_select(0, later)).sum(1)
    return (F.softplus(-true) + F.softplus(false)).sum() / max(len(later), 1)


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
