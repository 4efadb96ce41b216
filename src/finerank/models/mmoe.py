"""Mixtures of experts for several tasks. Ma et al. (MMoE), KDD 2018, sections 3.2-4.2; Jacobs et al. 1991 (MoE).

f^k = sum_i g^k_i f_i(x), y_k = h_k(f^k), g^k = softmax(W_gk x): gates are linear, without hidden layer and bias, and read
what the experts read. MMoE has a gate per task, OMoE one for all; one expert makes either a shared bottom. `moe` is the
one gate without towers: for one task the mixture of Jacobs et al.

ML-MMoE stacks mixtures (Ma et al., SNR, AAAI 2019, section 5): the sub-networks of the second layer read each a mixture of
those of the first. All gates, also those above, read the raw x.

Differs from the textbook: experts and gates multiply the request's side once per request; experts, and towers, are batched.
N candidates · K tasks · E experts · G gates of a layer · W width of an expert
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from finerank.layers.activation import Activation
from finerank.layers.checks import check_count, check_dropout, check_layers
from finerank.layers.experts import Experts, GroupedMLP, SplitGroups, apart
from finerank.models.composition import Features, Interaction, Widths
from finerank.models.plain import Plain, TaskHeads
from finerank.models.registry import Composition, named, part
from finerank.models.shared_bottom import Towers
from finerank.schema import FittedSchema


class Gates(nn.Module):
    """G softmax gates over E experts, linear in the row: -> [N, G, E].

    dropout  an expert is switched off for a gate and row with this probability, the others' weights then sum to 1 again
             (Zhao et al., RecSys 2019, section 4.4, against gates that settle on one expert); a gate never loses all
    """

    def __init__(self, gates: int, experts: int, widths: Widths, dropout: float = 0.0) -> None:
        super().__init__()
        self.gates = gates
        self.linear = SplitGroups(gates, widths.request, widths.candidate, experts, bias=False)
        self.dropout = nn.Dropout(dropout) if dropout else None

    def forward(self, x_R: Tensor, x_N: Tensor, request_of_N: Tensor) -> Tensor:
        """[R, ...], [N, ...], [N] -> [N, G, E]."""
        logits_NGE = apart(self.linear(x_R, x_N, request_of_N), self.gates)
        weights_NGE = torch.softmax(logits_NGE, dim=2)
        if self.dropout is None or not self.dropout.training:
            return weights_NGE
        kept = self.dropout(torch.ones_like(weights_NGE)) > 0
        kept = kept | ~kept.any(dim=2, keepdim=True)
        return torch.softmax(logits_NGE.masked_fill(~kept, -torch.inf), dim=2)


def gate_use(weights_NGE: Tensor, gates: Sequence[str]) -> dict[str, Tensor]:
    """What is watched of gates, by name: `gate.<name>` [N, E], and `gate_entropy.<name>` [N], 0 for a single expert."""
    entropy_NG = torch.special.entr(weights_NGE).sum(2)
    found = {f"gate.{name}": weights_NGE[:, i] for i, name in enumerate(gates)}
    return found | {f"gate_entropy.{name}": entropy_NG[:, i] for i, name in enumerate(gates)}


def gate_names(fitted: FittedSchema, outputs: int) -> list[str]:
    """A gate per output is called after its task, where there are as many."""
    tasks = [t.name for t in fitted.schema.tasks]
    return tasks if len(tasks) == outputs else [str(k) for k in range(outputs)]


@part
class MultiGate(Interaction):
    """Experts that all tasks share, mixed by a gate per task (MMoE) or by one for all (OMoE), and a tower per task."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Experts, gates and towers; the numbers are those of the paper's synthetic data.

        experts       how many
        expert        layers of each
        tower         layers of each task's own; () for a linear layer alone
        gates         each: every task has its own; one: all share one
        gate_dropout  the chance of an expert to be switched off for a row, where gates settle on one expert; .1 is usual
        activation    of all layers
        dropout       of all layers
        batch_norm    in all layers
        """

        kind: ClassVar[str] = "mmoe"
        experts: int = 8
        expert: tuple[int, ...] = (16,)
        tower: tuple[int, ...] = (8,)
        gates: Literal["each", "one"] = "each"
        gate_dropout: float = 0.0
        activation: Activation = "relu"
        dropout: float = 0.0
        batch_norm: bool = False

        def __post_init__(self) -> None:
            check_count(experts=self.experts)
            check_layers(expert=self.expert)
            check_layers(0, tower=self.tower)
            check_dropout(gate_dropout=self.gate_dropout, dropout=self.dropout)

    def __init__(self, fitted: FittedSchema, widths: Widths, outputs: int, options: Options) -> None:
        super().__init__()
        o = options
        more = (o.activation, o.dropout, o.batch_norm)
        self.names = gate_names(fitted, outputs) if o.gates == "each" else ["all"]
        self.experts = Experts(o.experts, widths.request, widths.candidate, o.expert, *more)
        self.gates = Gates(len(self.names), o.experts, widths, o.gate_dropout)
        self.towers = Towers(outputs, o.expert[-1], o.tower, *more)

    def forward(self, features: Features) -> Tensor:
        """[N, outputs]."""
        x_R, x_N = features.sides()
        of = features.batch.request_of
        mixed_NGW = torch.bmm(self.gates(x_R, x_N, of), self.experts(x_R, x_N, of))
        out: Tensor = self.towers(mixed_NGW)
        return out

    def shared(self) -> Sequence[Tensor]:
        """The experts' last layer."""
        return (self.experts.last(),)

    def monitor(self, features: Features) -> Mapping[str, Tensor]:
        """Gates and their entropy."""
        return gate_use(self.gates(*features.sides(), features.batch.request_of), self.names)


@part
class StackedMultiGate(Interaction):
    """ML-MMoE: layers of experts, each reading its own mixture of the layer below; a gate and a tower per task on top."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Layers of experts.

        layers      of mixtures; 1 is MMoE
        experts     of each layer
        expert      layers of each expert
        tower       layers of each task's own
        activation  of all layers
        dropout     of all layers
        batch_norm  in all layers
        """

        kind: ClassVar[str] = "ml_mmoe"
        layers: int = 2
        experts: int = 4
        expert: tuple[int, ...] = (32,)
        tower: tuple[int, ...] = (16,)
        activation: Activation = "relu"
        dropout: float = 0.0
        batch_norm: bool = False

        def __post_init__(self) -> None:
            check_count(layers=self.layers, experts=self.experts)
            check_layers(expert=self.expert)
            check_layers(0, tower=self.tower)
            check_dropout(dropout=self.dropout)

    def __init__(self, fitted: FittedSchema, widths: Widths, outputs: int, options: Options) -> None:
        super().__init__()
        o = options
        more = (o.activation, o.dropout, o.batch_norm)
        self.names = gate_names(fitted, outputs)
        self.experts = Experts(o.experts, widths.request, widths.candidate, o.expert, *more)
        self.above = nn.ModuleList(
            GroupedMLP(o.experts, o.expert[-1], o.expert, None, *more) for _ in range(o.layers - 1)
        )
        into = [o.experts] * (o.layers - 1) + [outputs]
        self.gates = nn.ModuleList(Gates(gates, o.experts, widths) for gates in into)
        self.towers = Towers(outputs, o.expert[-1], o.tower, *more)

    def forward(self, features: Features) -> Tensor:
        """[N, outputs]."""
        x_R, x_N = features.sides()
        of = features.batch.request_of
        u_NEW = self.experts(x_R, x_N, of)
        for gates, layer in zip(self.gates, self.above, strict=False):
            mixed_NEW = torch.bmm(gates(x_R, x_N, of), u_NEW)
            u_NEW = apart(layer(mixed_NEW.flatten(1)), mixed_NEW.shape[1])
        out: Tensor = self.towers(torch.bmm(self.gates[-1](x_R, x_N, of), u_NEW))
        return out

    def shared(self) -> Sequence[Tensor]:
        """The last layer of the experts on top."""
        top = self.above[-1] if len(self.above) else self.experts
        assert isinstance(top, Experts | GroupedMLP)
        weight = top.last()
        assert weight is not None  # every network has a layer
        return (weight,)

    def monitor(self, features: Features) -> Mapping[str, Tensor]:
        """The tasks' gates and their entropy."""
        return gate_use(self.gates[-1](*features.sides(), features.batch.request_of), self.names)


def _composition(name: str, interaction: object, paper: str, requires: tuple[str, ...]) -> Composition:
    return Composition(
        name=name,
        representation=Plain.Options(),
        interactions=(interaction,),
        heads=TaskHeads.Options(),
        paper=paper,
        requires=requires,
    )


MOE = named(_composition("moe", MultiGate.Options(gates="one", tower=()), "10.1162/neco.1991.3.1.79", ()))
OMOE = named(_composition("omoe", MultiGate.Options(gates="one"), "10.1145/3219819.3220007", ("several tasks",)))
MMOE = named(_composition("mmoe", MultiGate.Options(), "10.1145/3219819.3220007", ("several tasks",)))
ML_MMOE = named(_composition("ml_mmoe", StackedMultiGate.Options(), "10.1609/aaai.v33i01.3301216", ("several tasks",)))
