"""Delayed feedback. Chapelle, KDD 2014, sections 3.2 and 3.3.

p = P(it converts at all) = sigmoid(w_c·x), the delay is exponential with rate λ = exp(w_d·x). A row that converted after
the delay d has the likelihood p λ e^(-λ d); one that has not, though e has elapsed, 1 - p + p e^(-λ e): it never will, or
it will later. `dfm` has linear p and λ, as in the paper; the heads go with any representation and interactions.

The delay is a task of its own, a number within the conversion; the time that a row has been watched is a train-only
number, raw, in the unit of the delay. Labels and elapsed times are those of one snapshot.

    [[feature]]  kind = "numeric"  name = "elapsed"  level = "candidate"  use = "train_only"  transform = "none"
    [[task]]     name = "conversion"
    [[task]]     name = "delay"  kind = "regression"  within = "conversion"

Differs from the paper: the second output is log m, m = 1 / λ the mean delay, so that it is served as a number in the
delay's unit, starts at the mean that was observed, and does not depend on the unit; no L2 of its own (`training.regularise`).
A conversion whose delay was not logged has the likelihood of having come by now, p (1 - e^(-λ e)); a row without an elapsed
time and without a conversion tells nothing (e = 0). N candidates · H heads
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from finerank.data.batch import Batch
from finerank.errors import UserError, nearest
from finerank.models.composition import head_loss
from finerank.models.lr import Linear, NoFields
from finerank.models.plain import TaskHeads
from finerank.models.registry import Composition, named, part
from finerank.schema import FittedSchema, Numeric, Task

LARGEST = 7.0
"""Of log(e / m): e^7 = 1,097 mean delays, by when everything has converted to the last digit of a double."""


@part
class DelayedFeedback(TaskHeads):
    """A head per task; a conversion is judged by whether it could have come yet, its delay by an exponential law."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """What says how late conversions are.

        elapsed  train-only number: how long a row had been watched at the snapshot, in the unit of the delay; raw
                 (transform = "none"). Rows without one count as just begun
        delay    the regression task that says how long a conversion took; "": the one that lives within a binary task
        """

        kind: ClassVar[str] = "delayed_feedback"
        elapsed: str = "elapsed"
        delay: str = ""

    def __init__(self, fitted: FittedSchema, options: Options) -> None:
        super().__init__(fitted, TaskHeads.Options())
        tasks = fitted.schema.tasks
        names = [t.name for t in tasks]
        delay = _delay(tasks, options.delay)
        self.delay, self.conversion = names.index(delay.name), names.index(str(delay.within))
        self.elapsed = _elapsed(fitted, options.elapsed)
        mean = fitted.base_rates[delay.name]
        if not mean > 0:
            raise UserError(
                f"task {delay.name!r}: the delays of the training rows have the mean {mean:g}; accepted: times of 0 and more"
            )
        self.log_mean = math.log(mean)
        with torch.no_grad():
            self.bias[self.delay] = self.log_mean
        heads = list(self.heads)  # one a task, in their order
        heads[self.delay] = replace(heads[self.delay], link="exp")
        heads[self.conversion] = replace(heads[self.conversion], direct=False)
        self.heads = tuple(heads)

    def ratio(self, logits_NH: Tensor, batch: Batch) -> Tensor:
        """[N]: e / m, the elapsed time in mean delays of the row."""
        assert batch.train_only is not None
        e_N = batch.train_only.numbers[:, self.elapsed]
        if bool((e_N < 0).any()):
            raise UserError(
                f"heads.elapsed: a row has {float(e_N.min()):g}; accepted: times since it was shown, 0 or more"
            )
        tiny = torch.finfo(torch.float32).tiny
        r_N = (e_N.clamp(min=tiny).log() - logits_NH[:, self.delay]).clamp(max=LARGEST).exp()
        return torch.where(e_N > 0, r_N, 0.0)

    def logged(self, logits_NH: Tensor, batch: Batch) -> Tensor:
        """For the conversion, the logit of p (1 - e^(-e / m)): that it has come by now."""
        a_N, r_N = logits_NH[:, self.conversion], self.ratio(logits_NH, batch)
        by_now = -F.softplus(-a_N) + _log_come(r_N) - _log_not_yet(a_N, r_N)
        columns = list(logits_NH.unbind(1))
        columns[self.conversion] = by_now
        return torch.stack(columns, dim=1)

    def loss(self, index: int, logits_NH: Tensor, labels_N: Tensor, batch: Batch) -> Tensor:
        """See `Heads.loss`. The two terms of a converted row, -log p and -log λ + λ d, are those of its two heads."""
        logit_N = logits_NH[:, index]
        if index == self.delay:
            below_N = logit_N - self.log_mean  # log(m / the observed mean): the loss knows no unit
            return below_N + labels_N * torch.exp((-logit_N).clamp(max=80.0))
        if index != self.conversion:
            return head_loss(self.heads[index], logit_N, labels_N)
        r_N = self.ratio(logits_NH, batch)
        timed = batch.weights[:, self.delay] != 0
        came = F.softplus(-logit_N) - torch.where(timed, 0.0, _log_come(r_N))
        return torch.where(labels_N == 1, came, -_log_not_yet(logit_N, r_N))


def _log_not_yet(a_N: Tensor, r_N: Tensor) -> Tensor:
    """log(1 - p + p e^-r), p = sigmoid(a)."""
    return torch.logaddexp(-F.softplus(a_N), -F.softplus(-a_N) - r_N)


def _log_come(r_N: Tensor) -> Tensor:
    """log(1 - e^-r); at r = 0, where nothing can have come, that of a very short time."""
    return torch.log(-torch.expm1(-r_N.clamp(min=1e-12)))


def _delay(tasks: tuple[Task, ...], name: str) -> Task:
    """The task of the delay. Raises UserError where there is none, or several and none is named."""
    kinds = {t.name: t.kind for t in tasks}
    found = [t for t in tasks if t.kind == "regression" and kinds.get(t.within or "") == "binary"]
    named = [t for t in found if t.name == name or not name]
    if len(named) != 1:
        got = f"heads.delay = {name!r}" if name else f"heads.delay: {len(found)} tasks could be it"
        raise UserError(
            f"{got}; "
            + (
                nearest(name, [t.name for t in found])
                if found
                else 'declare a [[task]] of kind = "regression" within the conversion: how long it took'
            )
        )
    return named[0]


def _elapsed(fitted: FittedSchema, name: str) -> int:
    """Which train-only number is the elapsed time. Raises UserError unless it is there, and raw."""
    numbers = list(fitted.train_only.numbers)
    if name not in numbers:
        raise UserError(
            f"heads.elapsed: {name!r} is no train-only number; "
            + (
                nearest(name, numbers)
                if numbers
                else 'declare a numeric candidate feature with use = "train_only" and transform = "none"'
            )
        )
    feature = fitted.schema.feature(name)
    if isinstance(feature, Numeric) and feature.transform != "none":
        raise UserError(
            f'feature {name!r}: transform = {feature.transform!r}, and heads "delayed_feedback" need its time as it is; '
            'accepted: transform = "none"'
        )
    return numbers.index(name)


DFM = named(
    Composition(
        name="dfm",
        representation=NoFields.Options(),
        interactions=(Linear.Options(),),
        heads=DelayedFeedback.Options(),
        paper="10.1145/2623330.2623634",
        requires=("delay",),
    )
)
