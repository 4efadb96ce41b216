"""Position as a feature: what a run is worth when the feature is held at one value for every row, as it is when serving.

A model that reads the position of a row learns it with everything else; at serving there is no position yet, so all
candidates get the same one, and which one moves the metrics (the BASE_pk of Guo et al., RecSys 2019, section 4). The value
is to be chosen on the validation part. Scores are computed anew: the stored ones saw the logged values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from finerank.data.batch import Batch
from finerank.data.builder import BatchBuilder
from finerank.errors import UserError, nearest
from finerank.evaluation.document import By
from finerank.evaluation.evaluate import head_rows
from finerank.evaluation.measure import estimates
from finerank.metrics.estimate import Estimate
from finerank.run import Run
from finerank.schema import FIRST, OOV
from finerank.training.evaluate import predict

LOGGED = "as logged"
MANY = 20
"""Values tried where none are named: the most frequent of the training rows."""


@dataclass(frozen=True, kw_only=True)
class Default:
    """A value of the feature, and each head's metrics when every row has it."""

    value: str
    metrics: Mapping[str, Mapping[str, Estimate]]


class _Held(BatchBuilder):
    """Batches in which one id column has one value."""

    block: Literal["request", "candidate"] = "candidate"
    place = row = 0

    def batch(
        self,
        requests: np.ndarray,
        epoch: int | None = 0,
        chunk: tuple[int, int] | None = None,
        rows_in_step: int | None = None,
    ) -> Batch:
        """See `BatchBuilder.batch`."""
        batch = super().batch(requests, epoch, chunk, rows_in_step)
        block = getattr(batch, self.block)
        ids = block.ids.clone()
        ids[:, self.place] = self.row
        held = replace(block, ids=ids)
        return replace(batch, request=held) if self.block == "request" else replace(batch, candidate=held)


def sweep(
    run: Run,
    feature: str,
    values: Sequence[str] = (),
    split: str = "validation",
    by: By = "user",
    advance: Callable[[str], None] = lambda value: None,
) -> list[Default]:
    """The metrics of a split as it was logged, and with `feature` held at each value.

    values  as texts; of a bucketed feature numbers, or names of buckets; none: all values of the training rows, at most the
            `MANY` most frequent, in the order of their names, buckets rising
    Raises UserError for a feature that is no input with one id per row, and for a value that the run does not know.
    """
    data, trainer = run.dataset, run.trainer()
    places = {name: ("request", j, table) for j, (name, table) in enumerate(data.fitted.request.ids)}
    places |= {name: ("candidate", j, table) for j, (name, table) in enumerate(data.fitted.candidate.ids)}
    if feature not in places:
        if any(f.name == feature and f.use != "input" for f in data.fitted.schema.features):
            raise UserError(
                f"{run.folder}: {feature!r} is no input of this model, which is served without it, so there is no default to "
                f"choose; accepted: {', '.join(places)}, or a run that reads {feature!r} as an input"
            )
        raise UserError(
            f"{run.folder}: {feature!r} is no input with one id per row, so there is nothing to hold; "
            f"{nearest(feature, places)}"
        )
    block, place, name = places[feature]
    table, counts = data.encoder.tables[name], data.fitted.tables[name].counts
    rising = table.kind == "cuts"
    if values:
        buckets = {n: symbol for symbol, n in enumerate(table.names)} if rising else {}
        symbols = {value: buckets.get(value, table.lookup(value)) for value in values}
    else:  # by symbol: a name need not be a value, as of an interval, or of values that share a bucket
        frequent = [int(s) for s in np.argsort(-counts[FIRST:], kind="stable")[:MANY] + FIRST if counts[s]]
        named = [(table.name(symbol), symbol) for symbol in frequent]
        symbols = dict(sorted(named, key=lambda one: (one[1], "") if rising else (len(one[0]), one[0])))
    for value, symbol in symbols.items():  # before anything is scored, which may take long
        if symbol == OOV or not counts[symbol]:  # the latter: a hash bucket that no training row fell into
            known = (table.name(int(s)) for s in np.flatnonzero(counts) if s >= FIRST)
            raise UserError(
                f"{run.folder}: value {value!r} is none of {feature!r} in the training rows; "
                f"{nearest(value, known, quoted=rising)}"
            )
    requests = data.requests_of(split)
    if not len(requests):
        raise UserError(f"{run.folder}: no {split} rows to judge; accepted: a split that the data set has rows in")
    of_row = data.spread(requests, requests)
    rows_per_batch = run.recipe.training.evaluate_rows

    def measured(value: str, builder: BatchBuilder) -> Default:
        found = predict(trainer.model, builder, requests, rows_per_batch, trainer.device)
        advance(value)
        heads = {h.name: estimates(head_rows(found, i, of_row, by), run.unit) for i, h in enumerate(found.heads)}
        return Default(value=value, metrics=heads)

    out = [measured(LOGGED, trainer.builder)]
    for value, symbol in symbols.items():
        held = _Held(data, trainer.model.needs, trainer.row_maps)
        maps = trainer.row_maps.get(name)
        held.block = "request" if block == "request" else "candidate"
        held.place, held.row = place, symbol if maps is None else int(maps.rows_of(np.array([symbol]))[0])
        out.append(measured(value, held))
    return out
