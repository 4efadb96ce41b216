"""Heads that model every step of a chain directly over the entire space, without ESMM's product.

    p_t = sigmoid(a_t), the probability of all steps up to t; trained over the space of the chain's root (request,
    impression), with the product of the chain's labels

What is said about a task within the step before it (a CVR) is derived and has no term in the loss:

    ratio   p_t / p_{t-1}: DIVISION (Ma et al., ESMM, SIGIR 2018, section 3.1). Two networks need not agree, so it may exceed
            1: it is then clipped, and counted (`overflow.<task>` in a run's monitors)
    same    p_t itself, as if it were: AMAN, whose negatives are impressions (ESMM, section 3.1; Pan et al., ICDM 2008).
            It underestimates

The calibrator of AITM (Xi et al., KDD 2021, section 4.4) adds calibrator · max(p_t - p_{t-1}, 0) to each row's loss.
N candidates · K tasks · H heads

For p_t < p_{t-1}, a = a_{t-1}, b = a_t, d = a - b: logit(p_t / p_{t-1}) = b - log sigmoid(a) - log(1 - exp(-d)), with
log(1 - exp(-d)) = log tanh(d / 2) + softplus(-d), which cancels nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finerank.data.batch import Batch
from finerank.errors import UserError
from finerank.models.composition import Head, Heads
from finerank.models.esmm import chain_of, check_binary
from finerank.models.registry import part
from finerank.schema import FittedSchema

HIGHEST = math.log((1 - 1e-6) / 1e-6)
"""The logit that a ratio is clipped at: a probability of 1 - 1e-6."""


def ratio_logit(b: Tensor, a: Tensor) -> Tensor:
    """Logit of sigmoid(b) / sigmoid(a), clipped at `HIGHEST`, where it also lands if it exceeds 1."""
    d = (a - b).clamp(min=1e-7)
    logit = b + F.softplus(-a) - torch.log(torch.tanh(0.5 * d)) - F.softplus(-d)
    return torch.where(b < a, logit.clamp(max=HIGHEST), HIGHEST)


@part
class WholeChain(Heads):
    """A task at the root of a chain has its own head. A task within others has two.

    `<root>&...&<task>`   p(the whole chain): a logit of its own, trained over the root's space
    `<task>`              p(task | all before it): derived, see `conditional`
    """

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """What is derived and what is added.

        conditional  ratio: p_t / p_(t-1), clipped below 1 · same: p_t read as if it were the conditional
        calibrator   times max(p_t - p_(t-1), 0); .6 in AITM, 0: none
        """

        kind: ClassVar[str] = "whole_chain"
        conditional: Literal["ratio", "same"] = "ratio"
        calibrator: float = 0.0

        def __post_init__(self) -> None:
            if not 0 <= self.calibrator < math.inf:
                raise UserError(f"calibrator = {self.calibrator}; accepted: 0 (none) or more, .6 in AITM")

    def __init__(self, fitted: FittedSchema, options: Options) -> None:
        super().__init__()
        tasks = fitted.schema.tasks
        check_binary(tasks, self.Options.kind, "are probabilities of chains")
        self.options, self.inputs = options, len(tasks)
        heads: list[Head] = []
        self.tasks: list[int] = []  # of each head
        self.before: list[int | None] = []  # the head of the whole chain one step earlier
        whole: dict[int, int] = {}  # the head of the whole chain up to each task
        for i in range(len(tasks)):  # a schema declares a task after the one it lives within
            chain = chain_of(tasks, i)
            before = whole[chain[-2]] if len(chain) > 1 else None
            if before is not None:
                heads.append(Head(tasks[i].name, tasks[i].name, trained=False))
                self.tasks.append(i)
                self.before.append(before)
            name = "&".join(tasks[j].name for j in chain)
            whole[i] = len(heads)
            heads.append(Head(name, tasks[i].name, space="own" if before is None else "entire"))
            self.tasks.append(i)
            self.before.append(before)
        self.heads = tuple(heads)
        rates = [
            math.prod(float(fitted.base_rates[tasks[j].name]) for j in chain_of(tasks, i)) for i in range(len(tasks))
        ]
        self.bias = nn.Parameter(torch.logit(torch.tensor(rates, dtype=torch.float64), eps=1e-6).float())

    def forward(self, logits_NK: Tensor) -> Tensor:
        """[N, K] -> [N, H]."""
        columns = (logits_NK + self.bias).unbind(1)
        out = []
        for head, task, before in zip(self.heads, self.tasks, self.before, strict=True):
            logit = columns[task]
            if not head.trained and before is not None and self.options.conditional == "ratio":
                logit = ratio_logit(logit, columns[self.tasks[before]])
            out.append(logit)
        return torch.stack(out, dim=1)

    def loss(self, index: int, logits_NH: Tensor, labels_N: Tensor, batch: Batch) -> Tensor:
        """[N]: cross-entropy, and the calibrator against the step before."""
        loss = super().loss(index, logits_NH, labels_N, batch)
        before = self.before[index]
        if self.options.calibrator and before is not None:
            above = torch.sigmoid(logits_NH[:, index]) - torch.sigmoid(logits_NH[:, before])
            loss = loss + self.options.calibrator * above.clamp(min=0.0)
        return loss

    def monitor(self, logits_NH: Tensor) -> Mapping[str, Tensor]:
        """`overflow.<task>`: 1 where the whole chain was given a higher probability than the step before."""
        found = {}
        for i, (head, before) in enumerate(zip(self.heads, self.before, strict=True)):
            if head.space == "entire" and before is not None:
                found[f"overflow.{head.task}"] = (logits_NH[:, i] > logits_NH[:, before]).float()
        return found
