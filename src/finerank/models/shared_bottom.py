"""Shared bottom: one network for all tasks, a tower for each. Caruana 1997; Ma et al. (MMoE), KDD 2018, section 3.1.

y_k = h_k(f(x))

Differs from the textbook: the bottom's first layer multiplies the request's side once per request.
N candidates · K tasks · W width of the bottom
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from finerank.layers.activation import Activation
from finerank.layers.checks import check_dropout, check_layers
from finerank.layers.experts import Experts, GroupedMLP
from finerank.models.composition import Features, Interaction, Widths
from finerank.models.plain import Plain, TaskHeads
from finerank.models.registry import Composition, named, part
from finerank.schema import FittedSchema


class Towers(GroupedMLP):
    """A tower per task, ending in one number without bias (the heads hold it): [N, K, W] or [N, 1, W] -> [N, K]."""

    def __init__(
        self, tasks: int, inputs: int, hidden: Sequence[int], act: Activation, dropout: float, batch_norm: bool
    ) -> None:
        super().__init__(tasks, inputs, hidden, 1, act, dropout, batch_norm)
        self.tasks = tasks

    def forward(self, x: Tensor) -> Tensor:
        """See the class; [N, 1, W] is read by every tower."""
        return super().forward(x.expand(-1, self.tasks, -1).flatten(1))


@part
class SharedBottom(Interaction):
    """One network that all tasks share, then a tower per task."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """The bottom and the towers.

        bottom      layers that all tasks share; as wide as all experts of a mixture together for a fair comparison
        tower       layers of each task's own; () for a linear layer alone
        activation  of all layers
        dropout     of all layers
        batch_norm  in all layers
        """

        kind: ClassVar[str] = "shared_bottom"
        bottom: tuple[int, ...] = (128,)
        tower: tuple[int, ...] = (16,)
        activation: Activation = "relu"
        dropout: float = 0.0
        batch_norm: bool = False

        def __post_init__(self) -> None:
            check_layers(bottom=self.bottom)
            check_layers(0, tower=self.tower)
            check_dropout(dropout=self.dropout)

    def __init__(self, fitted: FittedSchema, widths: Widths, outputs: int, options: Options) -> None:
        super().__init__()
        o = options
        more = (o.activation, o.dropout, o.batch_norm)
        self.bottom = Experts(1, widths.request, widths.candidate, o.bottom, *more)
        self.towers = Towers(outputs, o.bottom[-1], o.tower, *more)

    def forward(self, features: Features) -> Tensor:
        """[N, outputs]."""
        x_R, x_N = features.sides()
        out: Tensor = self.towers(self.bottom(x_R, x_N, features.batch.request_of))
        return out

    def shared(self) -> Sequence[Tensor]:
        """The bottom's last layer."""
        return (self.bottom.last(),)


SHARED_BOTTOM = named(
    Composition(
        name="shared_bottom",
        representation=Plain.Options(),
        interactions=(SharedBottom.Options(),),
        heads=TaskHeads.Options(),
        paper="10.1145/3219819.3220007",
        requires=("several tasks",),
    )
)
