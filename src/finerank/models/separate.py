"""Nothing shared: every output has a representation, embeddings included, and interactions of its own.

`separate = true` in [model] makes any composition of several tasks into as many models side by side: ESMM-NS out of ESMM
(Ma et al., SIGIR 2018, section 3.1), single-task networks out of any other. An interaction that has one output only will do.
N candidates · K outputs
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import TypeVar

import torch
from torch import Tensor, nn

from finerank.data.batch import Batch
from finerank.models.composition import Features, Interaction, Part, Representation, Weighed
from finerank.schema import FittedSchema

T = TypeVar("T")


@dataclass(frozen=True)
class SeparateFeatures(Features):
    """The features of the first output, and of each output by itself."""

    of: tuple[Features, ...] = ()


@dataclass(frozen=True)
class Separate:
    """No options: `separate = true` of a model makes it."""


class SeparateRepresentations(Representation):
    """A representation per output."""

    Options = Separate

    def __init__(self, names: Sequence[str], parts: Sequence[Representation]) -> None:
        super().__init__()
        self.names, self.of = names, nn.ModuleList(parts)
        self.widths = parts[0].widths
        self.needs = reduce(or_, (part.needs for part in parts))
        self.attends = {
            f"{key}.{n}": at for n, part in zip(names, parts, strict=True) for key, at in part.attends.items()
        }

    def forward(self, batch: Batch) -> Features:
        """See `SeparateFeatures`; losses are called `output.loss`, attention `history.output`, as servers read it."""
        of = tuple(part(batch) for part in self.of)
        losses = {f"{n}.{key}": t for n, f in zip(self.names, of, strict=True) for key, t in f.losses.items()}
        attention = {f"{key}.{n}": t for n, f in zip(self.names, of, strict=True) for key, t in f.attention.items()}
        return SeparateFeatures(**vars(of[0]) | {"batch": batch, "losses": losses, "attention": attention, "of": of})

    def penalties(self, features: Features) -> Mapping[str, Tensor]:
        """Those of every output."""
        return _named(self.names, [part.penalties(f) for part, f in zip(_parts(self.of), _of(features), strict=True)])

    def served(self) -> Representation:
        """Every output's as it is served."""
        parts = [part.served() for part in self.of if isinstance(part, Representation)]
        return SeparateRepresentations(self.names, parts)


class SeparateInteractions(Interaction):
    """An interaction per output, each over its own features."""

    Options = Separate

    def __init__(self, names: Sequence[str], parts: Sequence[Interaction]) -> None:
        super().__init__()
        self.names, self.of = names, nn.ModuleList(parts)
        self.needs = reduce(or_, (part.needs for part in parts))

    def forward(self, features: Features) -> Tensor:
        """[N, K]."""
        return torch.cat([part(f) for part, f in zip(self.of, _of(features), strict=True)], dim=1)

    def penalties(self, features: Features) -> Mapping[str, Tensor]:
        """Those of every output."""
        return _named(self.names, [part.penalties(f) for part, f in zip(_parts(self.of), _of(features), strict=True)])

    def monitor(self, features: Features) -> Mapping[str, Tensor]:
        """What every output's watches."""
        parts = [part for part in self.of if isinstance(part, Interaction)]
        return _named(self.names, [part.monitor(f) for part, f in zip(parts, _of(features), strict=True)])

    def between_fields(self, features: Features) -> Mapping[str, Weighed]:
        """What every output's weighs."""
        parts = [part for part in self.of if isinstance(part, Interaction)]
        return _named(self.names, [part.between_fields(f) for part, f in zip(parts, _of(features), strict=True)])

    def served(self) -> Interaction:
        """Every output's as it is served."""
        parts = [part.served() for part in self.of if isinstance(part, Interaction)]
        return SeparateInteractions(self.names, parts)


def _of(features: Features) -> tuple[Features, ...]:
    assert isinstance(features, SeparateFeatures)
    return features.of


def _parts(of: nn.ModuleList) -> list[Part]:
    return [part for part in of if isinstance(part, Part)]


def _named(names: Sequence[str], found: Sequence[Mapping[str, T]]) -> dict[str, T]:
    return {f"{n}.{key}": term for n, terms in zip(names, found, strict=True) for key, term in terms.items()}


def side_by_side(
    fitted: FittedSchema, nets: Sequence[tuple[Representation, Sequence[Interaction]]]
) -> tuple[Representation, list[Interaction]]:
    """(representation, interactions) of a model whose outputs have a network each."""
    tasks = [t.name for t in fitted.schema.tasks]
    names = tasks if len(tasks) == len(nets) else [str(k) for k in range(len(nets))]
    interactions = zip(*(parts for _, parts in nets), strict=True)
    return (
        SeparateRepresentations(names, [representation for representation, _ in nets]),
        [SeparateInteractions(names, parts) for parts in interactions],
    )
