"""Logistic regression: one weight per value. McMahan et al., "Ad click prediction: a view from the trenches", KDD 2013.

Trained by FTRL-Proximal per coordinate (`training/row_optim.py`) its weights are sparse; by Adam it is the usual baseline
and the wide part of wide-and-deep models. R requests · N candidates · K outputs
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from finerank.data.batch import Batch
from finerank.layers.segments import segment_sum, spread
from finerank.models.composition import Features, FirstOrder, Interaction, Representation, Widths
from finerank.models.plain import TaskHeads
from finerank.models.registry import Composition, named, part
from finerank.schema import FittedSchema


@part
class NoFields(Representation):
    """Numbers alone: for models whose interactions bring their own weights and want no embedded fields."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """No options."""

        kind: ClassVar[str] = "none"

    def __init__(self, fitted: FittedSchema, options: Options) -> None:
        super().__init__()
        self.widths = Widths(1, 0, 0, len(fitted.request.numbers), len(fitted.candidate.numbers))

    def forward(self, batch: Batch) -> Features:
        """See `Features`."""
        numbers_R, numbers_N = batch.request.numbers, batch.candidate.numbers
        empty_R, empty_N = numbers_R.new_zeros((batch.R, 0, 1)), numbers_N.new_zeros((batch.N, 0, 1))
        return Features(batch, empty_R, empty_N, numbers_R, numbers_N)


@part
class Linear(Interaction):
    """sum_i w_i x_i over all fields (and numbers) of the row: the request's part once per request."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """What is summed.

        histories  also the weights of the past events' values (a bag of what the user did)
        numbers    also w·x of every number, by the dense optimiser; without, all weights are first-order rows
        """

        kind: ClassVar[str] = "linear"
        histories: bool = False
        numbers: bool = True

    def __init__(self, fitted: FittedSchema, widths: Widths, outputs: int, options: Options) -> None:
        super().__init__()
        self.histories = tuple(fitted.histories) if options.histories else ()
        self.weights = FirstOrder(fitted, outputs, ("request", "candidate", *self.histories))
        self.numbers = options.numbers
        if self.numbers:
            self.numbers_R = nn.Parameter(torch.zeros(widths.request_numbers, outputs))
            self.numbers_N = nn.Parameter(torch.zeros(widths.candidate_numbers, outputs))

    def forward(self, features: Features) -> Tensor:
        """[N, K]."""
        batch = features.batch
        found = self.weights(batch)

        def total(block: str) -> Tensor:
            vectors = found[block].vectors
            assert isinstance(vectors, Tensor)
            return vectors.sum(1)

        request, candidate = total("request"), total("candidate")
        if self.numbers:
            request = request + features.numbers_R @ self.numbers_R
            candidate = candidate + features.numbers_N @ self.numbers_N
        for name in self.histories:
            history = batch.histories[name]
            request = request + segment_sum(total(name), history.segments, batch.R)
        return spread(request, batch.request_of) + candidate


LR = named(
    Composition(
        name="lr",
        representation=NoFields.Options(),
        interactions=(Linear.Options(),),
        heads=TaskHeads.Options(),
        paper="10.1145/2487575.2488200",
    )
)
