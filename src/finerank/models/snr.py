"""Sub-network routing. Ma et al., AAAI 2019, sections 3-4: which sub-networks a task uses is learnt, gate by gate.

Layers of sub-networks; what sub-network (or tower) i reads of those below is routed by gates z:

    SNR-Trans   v_i = sum_j z_ij W_ij u_j
    SNR-Aver    v_i = sum_j z_ij u_j

A gate is hard concrete (Louizos et al. 2018). In training, once for a batch, with u ~ U(0, 1):

    s = sigmoid((log u - log(1 - u) + log alpha) / beta),  z = min(1, max(0, s (zeta - gamma) + gamma))

and in evaluation z = min(1, max(0, sigmoid(log alpha) (zeta - gamma) + gamma)). The loss is charged for the gates expected to
be open, lambda sum P(z > 0) with P(z > 0) = sigmoid(log alpha - beta log(-gamma / zeta)). In the served graph, gates that
are exactly 0 do not exist: their W_ij, and sub-networks that nobody reads, are gone (`SNR.served`).

Differs from the textbook: the first layer multiplies the request's side once per request; sub-networks are batched, and all
W_ij of a layer are one matrix. The noise comes from torch's generator of the processor, for a GPU too; the training loop
seeds it by (seed, epoch, step).
N candidates · J sub-networks below · I above (the towers, on top) · W their width
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from finerank.errors import UserError
from finerank.layers.activation import Activation
from finerank.layers.checks import check_count, check_dropout, check_layers
from finerank.layers.experts import Experts, GroupedLinear, GroupedMLP, apart, select_groups
from finerank.layers.mlp import linear
from finerank.layers.noise import Noise
from finerank.models.composition import Features, Interaction, Widths
from finerank.models.mmoe import gate_names
from finerank.models.plain import Plain, TaskHeads
from finerank.models.registry import Composition, named, part
from finerank.models.shared_bottom import Towers
from finerank.schema import FittedSchema


@dataclass(frozen=True, kw_only=True)
class HardConcrete:
    """The distribution of a gate.

    beta         temperature, .5 to .9; the lower, the more a gate is 0 or 1
    gamma, zeta  the ends of the stretched interval: below 0 and above 1, so that 0 and 1 have mass of their own
    start        log alpha at the start; 1 to 2 begins with the gates open
    """

    beta: float = 2 / 3
    gamma: float = -0.1
    zeta: float = 1.1
    start: float = 1.5

    def __post_init__(self) -> None:
        if not (self.beta > 0 and self.gamma < 0 and self.zeta > 1 and math.isfinite(self.start)):
            raise UserError(
                f"beta = {self.beta}, gamma = {self.gamma}, zeta = {self.zeta}, start = {self.start}; accepted: beta above 0, "
                "gamma below 0, zeta above 1 (0 and 1 are then values of their own), a finite start"
            )


class HardConcreteGates(Noise):
    """Gates [I, J]. In training drawn at each call, for a batch as a whole; in evaluation what they settle at."""

    def __init__(self, above: int, below: int, options: HardConcrete) -> None:
        super().__init__()
        self.options = options
        self.log_alpha = nn.Parameter(torch.full((above, below), options.start))

    def forward(self) -> Tensor:
        """[I, J] in [0, 1]."""
        return self.drawn() if self.training else self.settled()

    def drawn(self) -> Tensor:
        """One draw, that has a gradient.

        By the processor's generator wherever the gates are, so that a seed is the same gates on every device: a few numbers
        per step.
        """
        eps = torch.finfo(torch.float32).eps
        u = torch.rand(self.log_alpha.shape, dtype=torch.float32, device="cpu").clamp(eps, 1 - eps).to(self.log_alpha)
        return self._stretched(torch.sigmoid((u.log() - (-u).log1p() + self.log_alpha) / self.options.beta))

    def settled(self) -> Tensor:
        """Without noise: what is evaluated and served."""
        return self._stretched(torch.sigmoid(self.log_alpha))

    def open(self) -> Tensor:
        """[I, J]: P(z > 0)."""
        o = self.options
        return torch.sigmoid(self.log_alpha - o.beta * math.log(-o.gamma / o.zeta))

    def _stretched(self, s: Tensor) -> Tensor:
        o = self.options
        return (s * (o.zeta - o.gamma) + o.gamma).clamp(0.0, 1.0)


class Routing(nn.Module):
    """What each of I above reads of J below: [N, J, W] -> [N, I, W]. outputs: W above; Aver has no weights."""

    def __init__(self, above: int, below: int, width: int, kind: Literal["trans", "aver"], gates: HardConcrete) -> None:
        super().__init__()
        self.gates = HardConcreteGates(above, below, gates)
        self.weight: nn.Parameter | None = None
        if kind == "trans":  # each above has one layer over all of below
            blocks = torch.stack([linear(below * width, width, bias=False).weight.detach() for _ in range(above)])
            self.weight = nn.Parameter(blocks.view(above, width, below, width).transpose(1, 2).contiguous())

    def forward(self, u_NJW: Tensor) -> Tensor:
        """See the class."""
        z_IJ = self.gates()
        if self.weight is None:
            return torch.matmul(z_IJ, u_NJW)
        above, below, out, into = self.weight.shape
        routed = (self.weight * z_IJ[:, :, None, None]).transpose(1, 2).reshape(above * out, below * into)
        return apart(nn.functional.linear(u_NJW.flatten(1), routed), above)


class PrunedRouting(nn.Module):
    """A routing without the gates that are 0: each above reads only whom it is joined to. Equal to `Routing` in evaluation."""

    def __init__(self, routing: Routing, above: Sequence[int], below: Sequence[int]) -> None:
        super().__init__()
        z_IJ = routing.gates.settled().detach()
        self.reads: list[list[int]] = []
        self.weights = nn.ParameterList()
        for i in above:
            read = [p for p, j in enumerate(below) if z_IJ[i, j] != 0]
            z = z_IJ[i, [below[p] for p in read]]
            self.reads.append(read)
            if routing.weight is None:
                self.weights.append(nn.Parameter(z, requires_grad=False))
            else:
                blocks = routing.weight.detach()[i, [below[p] for p in read]] * z[:, None, None]
                self.weights.append(nn.Parameter(blocks.transpose(0, 1).flatten(1), requires_grad=False))

    def forward(self, u_NJW: Tensor) -> Tensor:
        """[N, kept below, W] -> [N, kept above, W]."""
        out = []
        for read, weight in zip(self.reads, self.weights, strict=True):
            if not read:
                out.append(torch.zeros_like(u_NJW[:, 0]))
                continue
            # slices, not an index: neighbours are one piece, and exporters fold what is whole
            read_NJW = torch.stack([u_NJW[:, j] for j in read], dim=1)
            aver = weight.dim() == 1
            out.append(torch.matmul(weight, read_NJW) if aver else nn.functional.linear(read_NJW.flatten(1), weight))
        return torch.stack(out, dim=1)


@part
class SNR(Interaction):
    """Layers of sub-networks with learnt routes between them and into a tower per task."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Sub-networks, routes and what open gates cost.

        route       trans: every route has a matrix of its own; aver: none, so a sum of what is open. What reads such sums
                    begins with weights divided by the number of networks, as if it read means: ours
        layers      of sub-networks
        networks    of each layer
        width       of each sub-network, one layer
        tower       layers of each task's own
        gate        the distribution of a gate
        penalty     lambda of the open gates: 1e-5 leaves nearly all open in the paper, 1e-4 prunes
        activation  of all layers
        dropout     of all layers
        batch_norm  in all layers
        """

        kind: ClassVar[str] = "snr"
        route: Literal["trans", "aver"] = "trans"
        layers: int = 2
        networks: int = 4
        width: int = 32
        tower: tuple[int, ...] = (16,)
        gate: HardConcrete = HardConcrete()
        penalty: float = 1e-4
        activation: Activation = "relu"
        dropout: float = 0.0
        batch_norm: bool = False

        def __post_init__(self) -> None:
            check_count(layers=self.layers, networks=self.networks, width=self.width)
            check_layers(0, tower=self.tower)
            check_dropout(dropout=self.dropout)
            if not self.penalty >= 0:
                raise UserError(f"penalty = {self.penalty}; accepted: 0 (open gates cost nothing) or more")

    def __init__(self, fitted: FittedSchema, widths: Widths, outputs: int, options: Options) -> None:
        super().__init__()
        o = options
        more = (o.activation, o.dropout, o.batch_norm)
        self.penalty, self.names = o.penalty, gate_names(fitted, outputs)
        self.first = Experts(o.networks, widths.request, widths.candidate, (o.width,), *more)
        self.above = nn.ModuleList(
            GroupedMLP(o.networks, o.width, (o.width,), None, *more) for _ in range(o.layers - 1)
        )
        into = [o.networks] * (o.layers - 1) + [outputs]
        self.routes = nn.ModuleList(Routing(i, o.networks, o.width, o.route, o.gate) for i in into)
        self.towers = Towers(outputs, o.width, o.tower, *more)
        if o.route == "aver":  # sums of J are read; begin as if they were means
            readers = [
                next(m for m in net.layers if isinstance(m, GroupedLinear)) for net in (*self.above, self.towers)
            ]
            for reader in readers:
                reader.weight.data /= o.networks

    def forward(self, features: Features) -> Tensor:
        """[N, outputs]."""
        return _routed(features, self.first, self.routes, self.above, self.towers)

    def gates(self) -> list[HardConcreteGates]:
        """Of every layer, from below."""
        return [m for m in self.routes.modules() if isinstance(m, HardConcreteGates)]

    def penalties(self, features: Features) -> Mapping[str, Tensor]:
        """`open_gates`: lambda times the expected number of open gates."""
        if not self.penalty:
            return {}
        expected = torch.stack([gates.open().sum() for gates in self.gates()]).sum()
        return {"open_gates": self.penalty * features.batch.share * expected}

    def utilisation(self) -> dict[str, float]:
        """How much each task uses of what there is: the mean of its gates, as they settle."""
        settled = self.gates()[-1].settled().detach()
        return {name: float(settled[k].mean()) for k, name in enumerate(self.names)}

    def monitor(self, features: Features) -> Mapping[str, Tensor]:
        """Each task's gates as they settle, and its utilisation; the same for every row."""
        settled, rows = self.gates()[-1].settled(), features.batch.N
        found = {f"gate.{name}": settled[k].expand(rows, -1) for k, name in enumerate(self.names)}
        return found | {f"utilisation.{name}": settled[k].mean().expand(rows) for k, name in enumerate(self.names)}

    def shared(self) -> Sequence[Tensor]:
        """The last layer of the sub-networks on top."""
        top = self.above[-1] if len(self.above) else self.first
        assert isinstance(top, Experts | GroupedMLP)
        weight = top.last()
        assert weight is not None  # every network has a layer
        return (weight,)

    def served(self) -> Interaction:
        """Without what the gates have closed."""
        return PrunedSNR(self)


def _routed(features: Features, first: Experts, routes: nn.ModuleList, above: nn.ModuleList, towers: Towers) -> Tensor:
    """[N, outputs]: through the layers of sub-networks, from below."""
    u_NJW: Tensor = first(*features.sides(), features.batch.request_of)
    for route, layer in zip(routes, above, strict=False):
        v_NIW = route(u_NJW)
        u_NJW = apart(layer(v_NIW.flatten(1)), v_NIW.shape[1])
    out: Tensor = towers(routes[-1](u_NJW))
    return out


class PrunedSNR(Interaction):
    """What is left of an SNR for serving: the routes that are open, the sub-networks that somebody reads."""

    def __init__(self, whole: SNR) -> None:
        super().__init__()
        routes = [r for r in whole.routes if isinstance(r, Routing)]
        networks = whole.first.groups
        kept: list[list[int]] = [list(range(len(whole.names)))]  # from above: who is needed
        for route in reversed(routes):
            z_IJ = route.gates.settled().detach()
            read = (z_IJ[kept[0]] != 0).any(0).tolist()
            kept.insert(0, [j for j in range(networks) if read[j]] or [0])
        self.first = whole.first.only(kept[0])
        self.routes = nn.ModuleList(
            PrunedRouting(r, above, below) for r, below, above in zip(routes, kept, kept[1:], strict=False)
        )
        self.above = nn.ModuleList(copy.deepcopy(layer) for layer in whole.above)
        for layer, chosen in zip(self.above, kept[1:], strict=False):
            select_groups(layer, networks, chosen)
        self.towers = copy.deepcopy(whole.towers)
        self.eval()

    def forward(self, features: Features) -> Tensor:
        """[N, outputs]."""
        return _routed(features, self.first, self.routes, self.above, self.towers)


def _composition(name: str, route: Literal["trans", "aver"]) -> Composition:
    return Composition(
        name=name,
        representation=Plain.Options(),
        interactions=(SNR.Options(route=route),),
        heads=TaskHeads.Options(),
        paper="10.1609/aaai.v33i01.3301216",
        requires=("several tasks",),
    )


SNR_TRANS = named(_composition("snr_trans", "trans"))
SNR_AVER = named(_composition("snr_aver", "aver"))
