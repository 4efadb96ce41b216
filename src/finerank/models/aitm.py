"""Adaptive Information Transfer. Xi et al., KDD 2021, sections 4.2-4.4: what an earlier step of a chain hands to the next.

    q_t = f_t(x),  p_t = g_t(z_{t-1}),  z_1 = q_1
    z_t = sum_{u in {p_t, q_t}} w_u h3(u),   w = softmax over {p_t, q_t} of h1(u)·h2(u) / sqrt(width)
    y_t = sigmoid(tower_t(z_t))

Each y_t is the probability of the whole chain up to t, over the entire space; the heads `whole_chain` train it as such and
add alpha · max(y_t - y_{t-1}, 0), the behavioural expectation calibrator.

Differs from the textbook: the networks f_t are batched and their first layers multiply the request's side once per request.
The step before a task is the one it lives `within`; so two tasks within one (a cart and a share after a click) are handed the
same. N candidates · K steps · W width of q, p and z
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from finerank.errors import UserError
from finerank.layers.activation import Activation
from finerank.layers.checks import check_dropout, check_layers
from finerank.layers.experts import Experts
from finerank.layers.mlp import MLP, linear
from finerank.models.composition import Features, Interaction, Widths
from finerank.models.esmm import chain_of
from finerank.models.plain import Plain
from finerank.models.registry import Composition, named, part
from finerank.models.shared_bottom import Towers
from finerank.models.whole_chain import WholeChain
from finerank.schema import FittedSchema


class _Transfer(nn.Module):
    """One AIT module and the g before it: (z of the step before, q) -> (z, weight of what was handed over [N])."""

    def __init__(self, width: int, activation: Activation, dropout: float, batch_norm: bool) -> None:
        super().__init__()
        self.info = MLP(width, (width,), None, activation, dropout, batch_norm)
        self.h = linear(width, 3 * width, bias=False)
        for weight in self.h.weight.data.chunk(3):
            nn.init.xavier_normal_(weight)

    def forward(self, before_NW: Tensor, q_NW: Tensor) -> tuple[Tensor, Tensor]:
        """[N, W], [N, W] -> ([N, W], [N])."""
        u_N2W = torch.stack([self.info(before_NW), q_NW], dim=1)
        h1, h2, h3 = self.h(u_N2W).chunk(3, dim=2)
        w_N2 = torch.softmax((h1 * h2).sum(2) / h1.shape[2] ** 0.5, dim=1)
        return (w_N2.unsqueeze(2) * h3).sum(1), w_N2[:, 0]


@part
class InformationTransfer(Interaction):
    """A network per step; each step weighs what the step before hands over against what it sees itself."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """The networks.

        hidden      layers of each step's network; the last is the width of what is handed over
        tower       layers of each step's own after the transfer
        activation  of all layers
        dropout     of all layers
        batch_norm  in all layers
        """

        kind: ClassVar[str] = "aitm"
        hidden: tuple[int, ...] = (128, 64, 32)
        tower: tuple[int, ...] = ()
        activation: Activation = "relu"
        dropout: float = 0.0
        batch_norm: bool = False

        def __post_init__(self) -> None:
            check_layers(hidden=self.hidden)
            check_layers(0, tower=self.tower)
            check_dropout(dropout=self.dropout)

    def __init__(self, fitted: FittedSchema, widths: Widths, outputs: int, options: Options) -> None:
        super().__init__()
        o, tasks = options, fitted.schema.tasks
        more = (o.activation, o.dropout, o.batch_norm)
        chains = [chain_of(tasks, i) for i in range(len(tasks))]
        if outputs != len(tasks) or all(len(chain) == 1 for chain in chains):
            raise UserError(
                "interaction 'aitm' hands over from a task to those within it, and here is none; declare a [[task]] that lives "
                "within another (within = its name), or take 'mmoe'"
            )
        self.names = [t.name for t in tasks]
        # (step, the step before it): a schema declares earlier steps first
        self.steps = [(c[-1], c[-2] if len(c) > 1 else None) for c in chains]
        self.nets = Experts(outputs, widths.request, widths.candidate, o.hidden, *more)
        self.transfers = nn.ModuleList(_Transfer(o.hidden[-1], *more) for _, before in self.steps if before is not None)
        self.towers = Towers(outputs, o.hidden[-1], o.tower, *more)

    def forward(self, features: Features) -> Tensor:
        """[N, outputs]."""
        z = self._chain(features)[0]
        out: Tensor = self.towers(torch.stack([z[k] for k in range(len(z))], dim=1))
        return out

    def _chain(self, features: Features) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """(z of every step [N, W], weight of what was handed over to every step that has one before it [N])."""
        q = self.nets(*features.sides(), features.batch.request_of).unbind(1)
        z: dict[int, Tensor] = {}
        handed: dict[int, Tensor] = {}
        transfers = iter(self.transfers)
        for step, before in self.steps:
            z[step] = q[step]
            if before is not None:
                z[step], handed[step] = next(transfers)(z[before], q[step])
        return z, handed

    def monitor(self, features: Features) -> Mapping[str, Tensor]:
        """`handed_over.<task>`: the weight of what the step before handed over, 0 to 1."""
        return {f"handed_over.{self.names[k]}": w for k, w in self._chain(features)[1].items()}


AITM = named(
    Composition(
        name="aitm",
        representation=Plain.Options(),
        interactions=(InformationTransfer.Options(),),
        heads=WholeChain.Options(calibrator=0.6),
        paper="2105.08489",
        requires=("two tasks",),
    )
)
