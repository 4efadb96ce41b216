"""Progressive layered extraction. Tang et al., RecSys 2020, sections 4.1-4.3.

Every task has experts of its own, and there are shared ones. The gate of task k mixes its own experts and the shared ones:
g^k = softmax(W_k x) over them, S^k x. One such layer is CGC (`levels = 1`). Stacked, each level has one gate more, over all
experts, for what the shared experts of the next level read; gates of a level read what its experts of that stream read.
With no own experts and one level this is MMoE.

Differs from the textbook: the first level multiplies the request's side once per request; experts are batched.
N candidates · K tasks · S streams (a task each, then the shared one, if it is read) · E experts, task after task, then the
shared ones · W width of an expert
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from finerank.errors import UserError
from finerank.layers.activation import Activation
from finerank.layers.checks import check_count, check_dropout, check_layers
from finerank.layers.experts import Experts, GroupedLinear, GroupedMLP, SplitGroups, apart
from finerank.models.composition import Features, Interaction, Widths
from finerank.models.mmoe import gate_names, gate_use
from finerank.models.plain import Plain, TaskHeads
from finerank.models.registry import Composition, named, part
from finerank.models.shared_bottom import Towers
from finerank.schema import FittedSchema


class _Mixing(nn.Module):
    """Mixes the experts [N, E, W] of one level into streams [N, S, W], by the logits that the gates gave.

    A task's gate has own + shared logits; the shared stream's, if it is asked for, one for every expert.
    """

    def __init__(self, tasks: int, own: int, shared: int, with_shared: bool) -> None:
        super().__init__()
        self.tasks, self.own, self.shared, self.with_shared = tasks, own, shared, with_shared
        self.experts = tasks * own + shared

    def weights(self, tasks_NL: Tensor) -> Tensor:
        """[N, K * (own + shared)] -> [N, K, own + shared]."""
        return torch.softmax(apart(tasks_NL, self.tasks), dim=2)

    def forward(self, tasks_NL: Tensor, shared_NE: Tensor | None, experts_NEW: Tensor) -> Tensor:
        """[N, K * (own + shared)], [N, E] or None, [N, E, W] -> [N, S, W]."""
        g_NKL = self.weights(tasks_NL)
        own_NKOW = apart(experts_NEW[:, : self.tasks * self.own], self.tasks)
        mixed_NKW = (g_NKL[:, :, : self.own].unsqueeze(3) * own_NKOW).sum(2)
        mixed_NKW = mixed_NKW + torch.bmm(g_NKL[:, :, self.own :], experts_NEW[:, self.tasks * self.own :])
        if shared_NE is None:
            return mixed_NKW
        of_all_N1W = torch.bmm(torch.softmax(shared_NE, dim=1).unsqueeze(1), experts_NEW)
        return torch.cat([mixed_NKW, of_all_N1W], dim=1)


class _Level(nn.Module):
    """A level above the first: streams [N, K + 1, W] -> streams [N, S, W]."""

    def __init__(self, mixing: _Mixing, width: int, options: PLE.Options) -> None:
        super().__init__()
        o, m = options, mixing
        self.mixing = m
        of_expert = [k for k in range(m.tasks) for _ in range(m.own)] + [m.tasks] * m.shared
        self.register_buffer("of_expert", torch.tensor(of_expert), persistent=False)
        self.experts = GroupedMLP(m.experts, width, o.expert, None, o.activation, o.dropout, o.batch_norm)
        self.gates = GroupedLinear(m.tasks, width, m.own + m.shared, bias=False)
        self.shared_gate = GroupedLinear(1, width, m.experts, bias=False) if m.with_shared else None

    of_expert: Tensor

    def gate_weights(self, streams_NSW: Tensor) -> Tensor:
        """[N, K, own + shared]."""
        return self.mixing.weights(self.gates(streams_NSW[:, :-1].flatten(1)))

    def forward(self, streams_NSW: Tensor) -> Tensor:
        """See the class."""
        read_NEW = streams_NSW.index_select(1, self.of_expert)
        experts_NEW = apart(self.experts(read_NEW.flatten(1)), self.mixing.experts)
        shared_NE = None if self.shared_gate is None else self.shared_gate(streams_NSW[:, -1])
        out: Tensor = self.mixing(self.gates(streams_NSW[:, :-1].flatten(1)), shared_NE, experts_NEW)
        return out


@part
class PLE(Interaction):
    """Own and shared experts under a gate per task, in levels (CGC when there is one), and a tower per task."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Experts, levels, towers.

        levels      of extraction; 1 is CGC
        own         experts of each task in each level
        shared      experts of all tasks in each level
        expert      layers of each expert
        tower       layers of each task's own; () for a linear layer alone
        activation  of all layers
        dropout     of all layers
        batch_norm  in all layers
        """

        kind: ClassVar[str] = "ple"
        levels: int = 2
        own: int = 2
        shared: int = 2
        expert: tuple[int, ...] = (32,)
        tower: tuple[int, ...] = (16,)
        activation: Activation = "relu"
        dropout: float = 0.0
        batch_norm: bool = False

        def __post_init__(self) -> None:
            check_count(levels=self.levels)
            check_count(0, own=self.own, shared=self.shared)
            if self.own + self.shared == 0 or (self.shared == 0 and self.levels > 1):
                raise UserError(
                    f"own = {self.own}, shared = {self.shared}, levels = {self.levels}; accepted: one expert or more for "
                    "each gate, and shared ones where levels are stacked"
                )
            check_layers(expert=self.expert)
            check_layers(0, tower=self.tower)
            check_dropout(dropout=self.dropout)

    def __init__(self, fitted: FittedSchema, widths: Widths, outputs: int, options: Options) -> None:
        super().__init__()
        o = options
        more = (o.activation, o.dropout, o.batch_norm)
        self.names = gate_names(fitted, outputs)
        mixing = [_Mixing(outputs, o.own, o.shared, level < o.levels - 1) for level in range(o.levels)]
        self.mixing = mixing[0]
        experts = self.mixing.experts
        self.experts = Experts(experts, widths.request, widths.candidate, o.expert, *more)
        sides = (widths.request, widths.candidate)
        self.gates = SplitGroups(outputs, *sides, o.own + o.shared, bias=False)
        self.shared_gate = SplitGroups(1, *sides, experts, bias=False) if self.mixing.with_shared else None
        self.above = nn.ModuleList(_Level(m, o.expert[-1], o) for m in mixing[1:])
        self.towers = Towers(outputs, o.expert[-1], o.tower, *more)

    def forward(self, features: Features) -> Tensor:
        """[N, outputs]."""
        streams_NSW = self._first(features)
        for level in self.levels:
            streams_NSW = level(streams_NSW)
        out: Tensor = self.towers(streams_NSW)
        return out

    @property
    def levels(self) -> list[_Level]:
        """Those above the first."""
        return [level for level in self.above if isinstance(level, _Level)]

    def _first(self, features: Features) -> Tensor:
        x_R, x_N = features.sides()
        of = features.batch.request_of
        shared_NE = None if self.shared_gate is None else self.shared_gate(x_R, x_N, of)
        out: Tensor = self.mixing(self.gates(x_R, x_N, of), shared_NE, self.experts(x_R, x_N, of))
        return out

    def shared(self) -> Sequence[Tensor]:
        """The last layer of the last level's experts. A task has no gradient at another's own experts there."""
        top = self.levels[-1].experts.last() if self.levels else None
        return (self.experts.last() if top is None else top,)

    def monitor(self, features: Features) -> Mapping[str, Tensor]:
        """The tasks' gates of the last level and their entropy: own experts first, then the shared ones."""
        if not self.levels:
            x_R, x_N = features.sides()
            return gate_use(self.mixing.weights(self.gates(x_R, x_N, features.batch.request_of)), self.names)
        streams_NSW = self._first(features)
        for level in self.levels[:-1]:
            streams_NSW = level(streams_NSW)
        return gate_use(self.levels[-1].gate_weights(streams_NSW), self.names)


def _composition(name: str, options: PLE.Options) -> Composition:
    return Composition(
        name=name,
        representation=Plain.Options(),
        interactions=(options,),
        heads=TaskHeads.Options(),
        paper="10.1145/3383313.3412236",
        requires=("several tasks",),
    )


PLE_MODEL = named(_composition("ple", PLE.Options()))
CGC = named(_composition("cgc", PLE.Options(levels=1)))
