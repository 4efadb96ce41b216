"""What ESMM was compared with: ways to learn conversions from clicks. Ma et al., SIGIR 2018, section 3.1.

All have the click network and the conversion network side by side, with nothing in common (`separate`), so the click network
is the one independent pCTR by which every competitor's pCTCVR is formed.

    cvr_base       BASE: conversions learnt on clicked rows alone
    aman           AMAN: some un-clicked impressions are negatives. Which share, is [training.sampling] of a recipe:
                   negatives = 0.1, task = "click", correction = "none" (none left would be BASE, 1 all of them)
    oversampling   OVERSAMPLING: cvr_base with [training.tasks] kind = "fixed", positives = {conversion = 5.0}: a positive
                   counted five times is five copies of it; 1 is BASE
    unbias         UNBIAS: clicked rows weigh E[pCTR] / pCTR, clipped, pCTR being the click network's; a constant pCTR
                   makes it BASE
    division       DIVISION: pCTCVR / pCTR of two networks; clipped at 1, how often is counted (`whole_chain.py`)
    esmm_ns        ESMM without shared embeddings (`esmm.py`)

Differs from the textbook: UNBIAS' click network learns at the same time, its pCTR is taken as it is at that step; the weights
are divided by the rate of clicks, which makes them 1 on average and leaves the optimum where it is.
N candidates · H heads
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from finerank.data.batch import Batch
from finerank.errors import UserError
from finerank.models.base import Pooled, Tower
from finerank.models.esmm import chain_of, check_binary
from finerank.models.plain import TaskHeads
from finerank.models.registry import Composition, named, part
from finerank.models.whole_chain import WholeChain
from finerank.schema import FittedSchema


@part
class InversePropensity(TaskHeads):
    """One head per task; rows of a task within others weigh as much as they were unlikely to get there."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """clip: the greatest weight; large weights of few rows make training noisy."""

        kind: ClassVar[str] = "inverse_propensity"
        clip: float = 10.0

        def __post_init__(self) -> None:
            if not self.clip > 0:
                raise UserError(f"clip = {self.clip}; accepted: a weight above 0, usually 5 to 20")

    def __init__(self, fitted: FittedSchema, options: Options) -> None:
        super().__init__(fitted, TaskHeads.Options())
        tasks = fitted.schema.tasks
        check_binary(tasks, self.Options.kind, "weigh by probabilities")
        self.clip = options.clip
        self.above = [chain_of(tasks, i)[:-1] for i in range(len(tasks))]
        self.rates = [math.prod(float(fitted.base_rates[tasks[j].name]) for j in above) for above in self.above]

    def loss(self, index: int, logits_NH: Tensor, labels_N: Tensor, batch: Batch) -> Tensor:
        """[N]: the cross-entropy times E[p] / p, p the probability of being in the task's space; p has no gradient."""
        loss = super().loss(index, logits_NH, labels_N, batch)
        if not self.above[index]:
            return loss
        log_p = -F.softplus(-logits_NH[:, self.above[index]].detach()).sum(1)
        weight: Tensor = (self.rates[index] * (-log_p).exp()).clamp(max=self.clip)
        return loss * weight


def _competitor(name: str, heads: object, exemptions: Mapping[str, tuple[str, str]] = {}) -> Composition:
    return Composition(
        name=name,
        representation=Pooled.Options(),
        interactions=(Tower.Options(hidden=(360, 200, 80), activation="relu"),),
        heads=heads,
        paper="1804.07931",
        requires=("history", "two tasks"),
        separate=True,
        exemptions=exemptions,
    )


BASE = named(_competitor("cvr_base", TaskHeads.Options()))
AMAN = named(
    _competitor(
        "aman",
        WholeChain.Options(conditional="same"),
        {
            "shapes_and_start": (
                "what it says of a conversion within clicks starts at the rate over all impressions: it underestimates",
                "test_aman_starts_at_the_rate_of_the_whole_chain",
            )
        },
    )
)
UNBIAS = named(_competitor("unbias", InversePropensity.Options()))
DIVISION = named(_competitor("division", WholeChain.Options()))
