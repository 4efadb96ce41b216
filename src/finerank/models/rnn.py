"""Recurrent pooling: the past read by a GRU or an LSTM, the baseline that the DIN paper holds sequences against.

Zhou et al. (DIN), KDD 2018, section 4.3 (an LSTM over the history brought nothing there); GRU and LSTM: `layers/recurrent.py`.

    h_1, ..., h_T = cell(event_1, ..., event_T);    the past is h_T, or the mean of all h_t

It knows the order of the past and not the candidate: what DIN and DIEN are compared with. Once per request, jagged. The age
of an event is left out by default, since the recurrence knows the order.
R requests · T events · K width of an event's joined attributes
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import nn

from finerank.data.batch import Batch
from finerank.layers.recurrent import GRU, LSTM, Recurrence
from finerank.layers.segments import segment_mean
from finerank.models.base import Tower
from finerank.models.composition import Features, Representation
from finerank.models.pairs import attributes
from finerank.models.plain import EmbeddingOptions, FieldEmbedding, TaskHeads, plain_features, plain_widths
from finerank.models.registry import Composition, named, part
from finerank.schema import FittedSchema


@part
class Recurrent(Representation):
    """Fields, and each history as the state of a recurrent cell, on the request's side."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """How the past is read.

        embedding  width and initial spread of the fields
        cell       gru · lstm
        pooling    last: the state after the newest event · mean: of the states after every event
        age        whether the cell also reads how long ago an event was
        """

        kind: ClassVar[str] = "recurrent"
        embedding: EmbeddingOptions = EmbeddingOptions()
        cell: Literal["gru", "lstm"] = "gru"
        pooling: Literal["last", "mean"] = "last"
        age: bool = False

    def __init__(self, fitted: FittedSchema, options: Options) -> None:
        super().__init__()
        self.embed = FieldEmbedding(fitted, options.embedding, ages=options.age)
        self.options = options
        self.histories = {name: attributes(self.embed, name) for name in fitted.histories}
        self.steps = {name: fitted.schema.history(name).max_length for name in fitted.histories}
        cell = GRU if options.cell == "gru" else LSTM
        self.cells = nn.ModuleList()
        for name, names in self.histories.items():
            inputs = self.embed.width_of(name, self.embed.columns(name)) + len(fitted.histories[name].numbers)
            self.cells.append(cell(inputs, self.embed.width_of(name, names)))
        widths = plain_widths(fitted, self.embed)
        more = sum(len(names) for names in self.histories.values())
        self.widths = replace(widths, request_fields=widths.request_fields + more)

    def forward(self, batch: Batch) -> Features:
        """See `Features`."""
        found = self.embed(batch)
        features = plain_features(batch, self.embed, found)
        fields = [features.fields_R]
        for cell, (name, names) in zip(self.cells, self.histories.items(), strict=True):
            assert isinstance(cell, Recurrence)
            history = batch.histories[name]
            events = torch.cat([found[name].joined(), history.events.numbers], dim=1)
            states_TK, last_RK = cell(
                cell.project(events), None, history.segments, history.positions, history.lengths, self.steps[name]
            )
            past = last_RK if self.options.pooling == "last" else segment_mean(states_TK, history.segments, batch.R)
            fields.append(self.embed.as_fields(name, names, past))
        return replace(features, fields_R=torch.cat(fields, dim=1))


RNN = named(
    Composition(
        name="rnn",
        representation=Recurrent.Options(),
        interactions=(Tower.Options(),),
        heads=TaskHeads.Options(),
        paper="1706.06978",
        requires=("history",),
    )
)
