"""Training in several steps: what comes before a model's own training, and what it hands over.

    stage ──Handover──► stage ──Handover──► the model's own training

A composition names its stages (`Composition.stages`); a stage stands in the file of the model that needs it and is registered
with `registry.stage`. `training.stages` runs them one after the other and gives each a `Workshop`. What a stage does must be
a function of the workshop alone: after a kill it is run again, and finds what it had trained or made already.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from torch import Tensor

from finerank.data.dataset import Dataset
from finerank.models.composition import Model
from finerank.schema import FittedSchema

if TYPE_CHECKING:  # the registry imports this module
    from finerank.models.registry import Composition


def _nothing(model: Model) -> None:
    """Leaves the initial values as they are drawn."""


@dataclass(frozen=True)
class Handover:
    """What a stage leaves to what follows.

    composition  what is trained next: as it was, or with what the stage decided written into its options
    give         called with the fresh model of the last training: sets initial values, in place
    requests     the training requests that are left; None: all that the stage was given
    told         for people: what the stage found, JSON-able (metrics.json, the report); `note` is shown at once
    """

    composition: Composition
    give: Callable[[Model], None] = _nothing
    requests: np.ndarray | None = None
    told: Mapping[str, Any] = field(default_factory=dict)


class Workshop(Protocol):
    """What a stage works with.

    requests  int64, the training requests that it may see, in time order
    steps     of the optimiser, in the stage's last training
    """

    dataset: Dataset
    requests: np.ndarray
    steps: int

    @property
    def seed(self) -> int:
        """Of all randomness."""
        ...

    def train(self, composition: Composition, requests: np.ndarray | None = None, best: bool = True) -> Model:
        """Train a composition with the usual loop and the stage's options, on these requests.

        best  the weights of the best epoch by the validation rows; False: those of the last step of all epochs
        """
        ...

    def once(self, identity: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """What `make` gives: made once and kept in the stage's folder. identity: what it depends on, JSON-able."""
        ...


class Stage(ABC):
    """One step before a model's own training. `Options` is its frozen dataclass; `kind` its name in a recipe.

    A stage that trains with the loop has an option `training`: keys of [training] that differ for it.
    separate: it serves models whose outputs have a network each (`models.separate`), not those of one network.
    """

    Options: ClassVar[type[Any]]
    separate: ClassVar[bool] = False

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def check(self, model: Composition) -> None:
        """Raise UserError where the composition is not one that the stage can serve; asked before a run begins."""

    def fits(self, model: Composition, fitted: FittedSchema) -> None:  # noqa: B027 - most stages fit any schema
        """Raise UserError for a schema on which the stage cannot serve the model; asked before anything is trained."""

    @abstractmethod
    def run(self, model: Composition, shop: Workshop) -> Handover:
        """Do the stage, for a composition that `check` let pass."""
