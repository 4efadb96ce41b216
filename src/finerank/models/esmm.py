"""Entire Space Multi-task Model. Ma et al., SIGIR 2018, section 2.

pCTR = sigmoid(a), pCVR = sigmoid(b), pCTCVR = pCTR·pCVR; the loss is over all impressions: BCE(click, pCTR) +
BCE(click and conversion, pCTCVR), and none on pCVR, which is thereby learnt over the entire space. Here over any chain of
tasks that live `within` each other, and over any representation: `esmm` pools the history like the paper's base model,
`esmm_din` looks at it as DIN does. N candidates · K tasks · H heads

Products of probabilities are formed in log space: log p = sum of log sigmoid(a_i), and
log(1 - p q) = logaddexp(log(1 - p), log p + log(1 - q)), which cancels nothing.

ESMM-NS (section 3.1) shares no embeddings: `separate`. The paper's other competitors stand in `esmm_competitors.py`.

Differs from the paper: fields are 16 wide, as those of `base` and `din`, so that no comparison with them is one of widths;
the paper's are 18 wide (section 3.1), for which give representation = {embedding = {width = 18}}.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finerank.errors import UserError
from finerank.models.base import Pooled, Tower
from finerank.models.composition import Head, Heads
from finerank.models.din import TargetInterest
from finerank.models.plain import initial_bias
from finerank.models.registry import Composition, named, part
from finerank.schema import FittedSchema, Task


def chain_of(tasks: tuple[Task, ...], i: int) -> list[int]:
    """Indices of the tasks from the root of the chain down to task i."""
    names = [t.name for t in tasks]
    within = tasks[i].within
    return [*chain_of(tasks, names.index(within)), i] if within is not None else [i]


def check_binary(tasks: tuple[Task, ...], heads: str, what: str) -> None:
    """Raise UserError for a task that has no probability."""
    for task in tasks:
        if task.kind != "binary":
            raise UserError(
                f"heads {heads!r} {what}, and task {task.name!r} is a {task.kind}; "
                'accepted: binary tasks, or heads = "tasks"'
            )


def product_logit(logits: list[Tensor]) -> Tensor:
    """Logit of the product of the probabilities of these logits.

    log sigmoid(a) is written -softplus(-a): exporters make log(sigmoid(a)) of the other form, and a small sigmoid has
    few digits in onnxruntime.
    """
    if len(logits) == 1:
        return logits[0]
    log_p, log_not = -F.softplus(-logits[0]), -F.softplus(logits[0])
    for logit in logits[1:]:
        also = log_p - F.softplus(logit)
        log_not = also + F.softplus(log_not - also)  # logaddexp(log_not, also)
        log_p = log_p - F.softplus(-logit)
    return log_p - log_not


@part
class EntireSpace(Heads):
    """A task at the root of a chain has its own head. A task within others has two.

    `<task>`              p(task | all before it): derived, no term in the loss (ESMM's pCVR)
    `<root>&...&<task>`   p(the whole chain): trained over the root's space (ESMM's pCTCVR)
    """

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """No options."""

        kind: ClassVar[str] = "entire_space"

    def __init__(self, fitted: FittedSchema, options: Options) -> None:
        super().__init__()
        tasks = fitted.schema.tasks
        self.inputs = len(tasks)
        self.chains: list[list[int]] = []
        heads = []
        check_binary(tasks, self.Options.kind, "multiply probabilities")
        for i, task in enumerate(tasks):
            chain = chain_of(tasks, i)
            heads.append(Head(task.name, task.name, trained=len(chain) == 1))
            self.chains.append([i])
            if len(chain) > 1:
                heads.append(Head("&".join(tasks[j].name for j in chain), task.name, space="entire"))
                self.chains.append(chain)
        self.heads = tuple(heads)
        self.bias = nn.Parameter(initial_bias(fitted))

    def forward(self, logits_NK: Tensor) -> Tensor:
        """[N, K] -> [N, H]."""
        columns = (logits_NK + self.bias).unbind(1)
        return torch.stack([product_logit([columns[i] for i in chain]) for chain in self.chains], dim=1)


ESMM = named(
    Composition(
        name="esmm",
        representation=Pooled.Options(),
        interactions=(Tower.Options(hidden=(360, 200, 80), activation="relu"),),
        heads=EntireSpace.Options(),
        paper="1804.07931",
        requires=("history", "two tasks"),
    )
)

ESMM_DIN = named(
    Composition(
        name="esmm_din",
        representation=TargetInterest.Options(),
        interactions=(Tower.Options(hidden=(360, 200, 80), activation="relu"),),
        heads=EntireSpace.Options(),
        paper="1804.07931",
        requires=("history", "two tasks"),
    )
)

ESMM_NS = named(
    Composition(
        name="esmm_ns",
        representation=Pooled.Options(),
        interactions=(Tower.Options(hidden=(360, 200, 80), activation="relu"),),
        heads=EntireSpace.Options(),
        paper="1804.07931",
        requires=("history", "two tasks"),
        separate=True,
    )
)
