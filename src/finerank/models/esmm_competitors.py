"""What ESMM was compared with: ways to learn conversions from clicks. Ma et al., SIGIR 2018, section 3.1.

All have the click network and the conversion network side by side, with nothing in common (`separate`), so the click network
is the one independent pCTR by which every competitor's pCTCVR is formed.

    cvr_base       BASE: conversions learnt on clicked rows alone
    aman           AMAN: some un-clicked impressions are negatives. Which share, is [training.sampling] of a recipe:
                   negatives = 0.1, task = "click", correction = "none" (none left would be BASE, 1 all of them)
    oversampling   OVERSAMPLING: cvr_base with [training.tasks] kind = "fixed", positives = {conversion = 5.0}: a positive
                   counted five times is five copies of it; 1 is BASE
    unbias         UNBIAS: clicked rows weigh E[pCTR] / pCTR, clipped, pCTR being that of the click network, which a stage
                   trains beforehand; a constant pCTR makes it BASE. `stages = []`: both learn at the same time
    division       DIVISION: pCTCVR / pCTR of two networks; clipped at 1, how often is counted (`whole_chain.py`)
    esmm_ns        ESMM without shared embeddings (`esmm.py`)

Differs from the textbook: UNBIAS' click network goes on learning beside the conversions, by clicks alone; the weights are
multiplied with the rate of clicks, which makes them 1 on average and leaves the optimum where it is. Fields are 16 wide, as
ESMM's here; 18 in the paper.
N candidates · H heads
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from torch import Tensor
from torch.nn import functional as F

from finerank.data.batch import Batch
from finerank.errors import UserError
from finerank.models.base import Pooled, Tower
from finerank.models.composition import Model
from finerank.models.esmm import chain_of, check_binary
from finerank.models.plain import TaskHeads
from finerank.models.registry import Composition, named, part, stage
from finerank.models.stages import Handover, Stage, Workshop
from finerank.models.whole_chain import WholeChain
from finerank.schema import FittedSchema, Task


@part
class InversePropensity(TaskHeads):
    """One head per task; rows of a task within others weigh as much as they were unlikely to get there."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """The weights, and what is learnt.

        clip    the greatest weight; large weights of few rows make training noisy
        learns  all · spaces: only the tasks that others lie within (set by the stage)
        """

        kind: ClassVar[str] = "inverse_propensity"
        clip: float = 10.0
        learns: Literal["all", "spaces"] = "all"

        def __post_init__(self) -> None:
            if not self.clip > 0:
                raise UserError(f"clip = {self.clip}; accepted: a weight above 0, usually 5 to 20")

    def __init__(self, fitted: FittedSchema, options: Options) -> None:
        super().__init__(fitted, TaskHeads.Options())
        tasks = fitted.schema.tasks
        check_binary(tasks, self.Options.kind, "weigh by probabilities")
        self.clip = options.clip
        self.above = [chain_of(tasks, i)[:-1] for i in range(len(tasks))]
        if options.learns == "spaces":
            self.heads = tuple(replace(head, trained=i in _spaces(tasks)) for i, head in enumerate(self.heads))
        self.rates = [math.prod(float(fitted.base_rates[tasks[j].name]) for j in above) for above in self.above]

    def loss(self, index: int, logits_NH: Tensor, labels_N: Tensor, batch: Batch) -> Tensor:
        """[N]: the cross-entropy times E[p] / p, p the probability of being in the task's space; p has no gradient."""
        loss = super().loss(index, logits_NH, labels_N, batch)
        if not self.above[index]:
            return loss
        log_p = -F.softplus(-logits_NH[:, self.above[index]].detach()).sum(1)
        weight: Tensor = (self.rates[index] * (-log_p).exp()).clamp(max=self.clip)
        return loss * weight


def _spaces(tasks: tuple[Task, ...]) -> list[int]:
    """The tasks that others lie within."""
    return sorted({j for i in range(len(tasks)) for j in chain_of(tasks, i)[:-1]})


@stage
class Propensities(Stage):
    """Train the networks of the tasks that others lie within; the others then learn under their probabilities."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """training: keys of [training] that differ for these networks, e.g. {epochs = 3}."""

        kind: ClassVar[str] = "propensities"
        training: Mapping[str, Any] = field(default_factory=dict)

    separate = True

    def check(self, model: Composition) -> None:
        """See `Stage.check`."""
        if not isinstance(model.heads, InversePropensity.Options) or not model.separate:
            raise UserError(
                f"stage 'propensities' trains networks of their own for heads 'inverse_propensity', and the model has heads "
                f"{model.heads.kind!r}, separate = {str(model.separate).lower()}; drop it: stages = []"
            )

    def run(self, model: Composition, shop: Workshop) -> Handover:
        """See `Stage.run`."""
        trained = shop.train(replace(model, heads=replace(model.heads, learns="spaces")))
        spaces = _spaces(shop.dataset.fitted.schema.tasks)
        learnt = trained.state_dict()

        def give(fresh: Model) -> None:
            for name, mine in fresh.state_dict().items():
                if any(f".of.{i}." in name for i in spaces):
                    mine.copy_(learnt[name])
            for i in spaces:
                fresh.get_parameter("head.bias")[i] = learnt["head.bias"][i]

        return Handover(model, give)


def _competitor(
    name: str, heads: object, exemptions: Mapping[str, tuple[str, str]] = {}, stages: tuple[object, ...] = ()
) -> Composition:
    return Composition(
        name=name,
        representation=Pooled.Options(),
        interactions=(Tower.Options(hidden=(360, 200, 80), activation="relu"),),
        heads=heads,
        paper="1804.07931",
        requires=("history", "two tasks"),
        separate=True,
        exemptions=exemptions,
        stages=stages,
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
UNBIAS = named(_competitor("unbias", InversePropensity.Options(), stages=(Propensities.Options(),)))
DIVISION = named(_competitor("division", WholeChain.Options()))
