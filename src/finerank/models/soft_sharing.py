"""A network per task, tied together softly: by an L2 constraint, by cross-stitch units, by a common factorisation.

The competitors of MMoE (Ma et al., KDD 2018, section 5.2):

    l2_constrained   alpha · sum_{k<l} |theta_k - theta_l|^2 is added to the loss (Duong et al., ACL 2015); alpha = 0: the
                     networks know nothing of each other
    cross_stitch     after every hidden layer x~_k = sum_l A_kl x_l, A learnt (Misra et al., CVPR 2016); A = 1: likewise
    tucker           the weights of a layer over all tasks [I, O, K] are a Tucker product, S x1 U1 x2 U2 x3 U3 (Yang and
                     Hospedales, ICLR 2017), for every hidden layer; biases and the last layer are each task's own

Differs from the textbook: first layers multiply the request's side once per request (tucker: into the ranks of U1); the
networks are batched. theta holds all layers; embeddings are shared anyway.
N candidates · K networks, one per task · H width of a layer · a, b, c ranks of U1, U2, U3
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from finerank.errors import UserError
from finerank.layers.activation import Activation
from finerank.layers.checks import check_dropout, check_layers
from finerank.layers.experts import Experts, GroupedLinear, SplitGroups, apart
from finerank.layers.mlp import Hidden, SplitLinear, linear
from finerank.models.composition import Features, Interaction, Widths
from finerank.models.plain import Plain, TaskHeads
from finerank.models.registry import Composition, named, part
from finerank.models.shared_bottom import Towers
from finerank.schema import FittedSchema


@dataclass(frozen=True, kw_only=True)
class _Nets:
    """The networks.

    hidden      layers of each task's network
    activation  of all layers
    dropout     of all layers
    batch_norm  in all layers
    """

    hidden: tuple[int, ...] = (128, 64)
    activation: Activation = "relu"
    dropout: float = 0.0
    batch_norm: bool = False

    def __post_init__(self) -> None:
        check_layers(hidden=self.hidden)
        check_dropout(dropout=self.dropout)


@part
class L2Constrained(Interaction):
    """A network per task; training charges the squared distance of every two networks' parameters."""

    @dataclass(frozen=True, kw_only=True)
    class Options(_Nets):
        """The networks and what holds them together.

        hidden      layers of each task's network
        alpha       times |theta_k - theta_l|^2 of every two networks; 0: nothing does
        activation  of all layers
        dropout     of all layers
        batch_norm  in all layers
        """

        kind: ClassVar[str] = "l2_constrained"
        alpha: float = 1e-3

        def __post_init__(self) -> None:
            super().__post_init__()
            if not self.alpha >= 0:
                raise UserError(f"alpha = {self.alpha}; accepted: 0 (networks on their own) or more")

    def __init__(self, fitted: FittedSchema, widths: Widths, outputs: int, options: Options) -> None:
        super().__init__()
        o = options
        more = (o.activation, o.dropout, o.batch_norm)
        self.alpha, self.tasks = o.alpha, outputs
        self.nets = Experts(outputs, widths.request, widths.candidate, o.hidden, *more)
        self.last = Towers(outputs, o.hidden[-1], (), *more)

    def forward(self, features: Features) -> Tensor:
        """[N, outputs]."""
        x_R, x_N = features.sides()
        out: Tensor = self.last(self.nets(x_R, x_N, features.batch.request_of))
        return out

    def penalties(self, features: Features) -> Mapping[str, Tensor]:
        """`l2_constraint`: alpha times the squared distances, as K sum_k |theta_k - mean|^2."""
        if not self.alpha or self.tasks == 1:
            return {}
        total = torch.zeros((), device=self.nets.first.weight.device)
        for parameter in self.parameters():  # of every network, one after the other
            of_net = parameter.view(self.tasks, -1)
            total = total + self.tasks * (of_net - of_net.mean(0)).square().sum()
        return {"l2_constraint": self.alpha * features.batch.share * total}


@part
class CrossStitch(Interaction):
    """A network per task whose layers read a learnt mixture of all networks' layers below."""

    @dataclass(frozen=True, kw_only=True)
    class Options(_Nets):
        """The networks and how they begin.

        hidden      layers of each task's network
        own         A_kk at the start; the other networks share 1 - own. 1: networks that begin on their own
        activation  of all layers
        dropout     of all layers
        batch_norm  in all layers
        """

        kind: ClassVar[str] = "cross_stitch"
        own: float = 0.9

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0 <= self.own <= 1:
                raise UserError(f"own = {self.own}; accepted: from 0 to 1, .9 in the paper")

    def __init__(self, fitted: FittedSchema, widths: Widths, outputs: int, options: Options) -> None:
        super().__init__()
        o, width = options, options.hidden[0]
        self.first = SplitGroups(outputs, widths.request, widths.candidate, width, normed=o.batch_norm)
        self.acts = nn.ModuleList(Hidden(outputs * h, o.activation, o.dropout, o.batch_norm) for h in o.hidden)
        self.layers = nn.ModuleList(
            GroupedLinear(outputs, h, below, normed=o.batch_norm) for h, below in pairwise(o.hidden)
        )
        self.layers.append(GroupedLinear(outputs, o.hidden[-1], 1, bias=False, after_norm=o.batch_norm))
        other = (1 - o.own) / max(outputs - 1, 1)
        start = torch.full((outputs, outputs), other).fill_diagonal_(o.own if outputs > 1 else 1.0)
        self.stitches = nn.ParameterList(nn.Parameter(start.clone()) for _ in o.hidden)

    def forward(self, features: Features) -> Tensor:
        """[N, outputs]."""
        x_R, x_N = features.sides()
        h: Tensor = self.first(x_R, x_N, features.batch.request_of)
        for act, stitch, layer in zip(self.acts, self.stitches, self.layers, strict=True):
            x_NKH = apart(act(h), stitch.shape[0])
            h = layer(torch.matmul(stitch, x_NKH).flatten(1))
        return h


@part
class TensorFactorization(Interaction):
    """A network per task whose hidden layers' weights are one Tucker product over all tasks."""

    @dataclass(frozen=True, kw_only=True)
    class Options(_Nets):
        """The networks and the ranks.

        hidden      layers of each task's network
        ranks       of inputs, outputs and tasks in every layer; more than there are of either means all of them
        activation  of all layers
        dropout     of all layers
        batch_norm  in all layers
        """

        kind: ClassVar[str] = "tucker"
        ranks: tuple[int, int, int] = (32, 32, 2)

        def __post_init__(self) -> None:
            super().__post_init__()
            if min(self.ranks) < 1:
                raise UserError(f"ranks = {list(self.ranks)}; accepted: three numbers of at least 1")

    def __init__(self, fitted: FittedSchema, widths: Widths, outputs: int, options: Options) -> None:
        super().__init__()
        o = options
        inputs = (widths.request + widths.candidate, *o.hidden[:-1])
        a = [min(o.ranks[0], n) for n in inputs]
        self.first = SplitLinear(widths.request, widths.candidate, a[0], bias=False)
        self.into = nn.ModuleList(linear(n, r, bias=False) for n, r in zip(inputs[1:], a[1:], strict=True))
        self.cores = nn.ModuleList(
            _Core(r, min(o.ranks[1], h), min(o.ranks[2], outputs), h, outputs) for r, h in zip(a, o.hidden, strict=True)
        )
        self.acts = nn.ModuleList(Hidden(outputs * h, o.activation, o.dropout, o.batch_norm) for h in o.hidden)
        self.last = GroupedLinear(outputs, o.hidden[-1], 1, bias=False, after_norm=o.batch_norm)

    def forward(self, features: Features) -> Tensor:
        """[N, outputs]."""
        x_R, x_N = features.sides()
        x_Na = self.first(x_R, x_N, features.batch.request_of)
        h: Tensor = self.acts[0](self.cores[0](x_Na.unsqueeze(1)))
        for into, core, act in zip(self.into, self.cores[1:], self.acts[1:], strict=True):
            h = act(core(into(apart(h, self.last.weight.shape[0]))))
        out: Tensor = self.last(h)
        return out

    def shared(self) -> Sequence[Tensor]:
        """The core of the last hidden layer."""
        core = self.cores[-1]
        assert isinstance(core, _Core)
        return (core.core,)


class _Core(nn.Module):
    """S x2 U2 x3 U3 and the biases of one layer: [N, K, a] or [N, 1, a] (read by all) -> [N, K * H]."""

    def __init__(self, a: int, b: int, c: int, width: int, tasks: int) -> None:
        super().__init__()
        self.core = nn.Parameter(torch.randn(a, b, c) * a**-0.5)
        self.outputs = nn.Parameter(torch.randn(b, width) * b**-0.5)
        self.tasks = nn.Parameter(torch.randn(tasks, c) * c**-0.5)
        self.bias = nn.Parameter(torch.zeros(tasks, width))

    def forward(self, x_NKa: Tensor) -> Tensor:
        """See the class."""
        of_task_Kab = torch.einsum("abc,kc->kab", self.core, self.tasks)
        x_KNa = x_NKa.expand(-1, self.tasks.shape[0], -1).transpose(0, 1)
        y_KNH = torch.bmm(x_KNa, of_task_Kab) @ self.outputs + self.bias.unsqueeze(1)
        return y_KNH.transpose(0, 1).flatten(1)


def _composition(name: str, options: object, paper: str) -> Composition:
    return Composition(
        name=name,
        representation=Plain.Options(),
        interactions=(options,),
        heads=TaskHeads.Options(),
        paper=paper,
        requires=("several tasks",),
    )


L2 = named(_composition("l2_constrained", L2Constrained.Options(), "10.3115/v1/P15-2139"))
STITCH = named(_composition("cross_stitch", CrossStitch.Options(), "1604.03539"))
TUCKER = named(_composition("tensor_factorization", TensorFactorization.Options(), "1605.06391"))
