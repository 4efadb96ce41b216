"""Networks side by side: experts, towers and sub-networks as batched multiplications, without a loop over them.

G networks of a group stand beside each other in one row of G * H numbers, network after network; what works neuron by
neuron (activation, batch norm, dropout) needs not know of them. All first layers are one `SplitLinear`, so the request's
side of all networks is multiplied once per request.

R requests · N candidates · G networks · H width of each
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from finerank.layers.activation import Activation
from finerank.layers.mlp import Hidden, SplitLinear, initialise


def apart(x: Tensor, groups: int) -> Tensor:
    """[N, G * H, ...] -> [N, G, H, ...]."""
    return x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])


class GroupedLinear(nn.Module):
    """G linear layers, each over its own part of the row, initialised as if alone: [N, G * inputs] -> [N, G * outputs]."""

    def __init__(
        self,
        groups: int,
        inputs: int,
        outputs: int,
        bias: bool = True,
        normed: bool = False,
        after_norm: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(groups, outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(groups, outputs)) if bias else None
        for weight in self.weight.data:
            initialise(weight, normed, after_norm)

    def forward(self, x: Tensor) -> Tensor:
        """[N, G * inputs] -> [N, G * outputs]."""
        x_GNI = apart(x, self.weight.shape[0]).transpose(0, 1)
        y_GNO = torch.bmm(x_GNI, self.weight.transpose(1, 2))
        if self.bias is not None:
            y_GNO = y_GNO + self.bias.unsqueeze(1)
        return y_GNO.transpose(0, 1).flatten(1)


class GroupedMLP(nn.Module):
    """G multilayer perceptrons of one shape: [N, G * inputs] -> [N, G * last].

    hidden   layers with activation; outputs: of a last linear layer without bias and activation, None: there is none
    """

    def __init__(
        self,
        groups: int,
        inputs: int,
        hidden: Sequence[int],
        outputs: int | None = None,
        act: Activation = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [
                GroupedLinear(groups, inputs, width, normed=batch_norm),
                Hidden(groups * width, act, dropout, batch_norm),
            ]
            inputs = width
        if outputs is not None:
            layers.append(GroupedLinear(groups, inputs, outputs, bias=False, after_norm=batch_norm))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """[N, G * inputs] -> [N, G * last]."""
        out: Tensor = self.layers(x)
        return out

    def last(self) -> Tensor | None:
        """The weight of the last layer, if there is one."""
        grouped: list[Tensor] = [m.weight for m in self.layers if isinstance(m, GroupedLinear)]
        return grouped[-1] if grouped else None


class SplitGroups(SplitLinear):
    """G linear layers over the same row, as one: -> [N, G * outputs], each initialised as if it were alone."""

    def __init__(
        self, groups: int, request: int, candidate: int, outputs: int, bias: bool = True, normed: bool = False
    ) -> None:
        super().__init__(request, candidate, groups * outputs, bias)
        for weight in self.weight.data.view(groups, outputs, request + candidate):
            initialise(weight, normed)


class Experts(nn.Module):
    """G networks that read the whole row: [R, ...], [N, ...] -> [N, G, last of hidden]."""

    def __init__(
        self,
        groups: int,
        request: int,
        candidate: int,
        hidden: Sequence[int],
        act: Activation = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.groups = groups
        self.first: SplitLinear = SplitGroups(groups, request, candidate, hidden[0], normed=batch_norm)
        self.act = Hidden(groups * hidden[0], act, dropout, batch_norm)
        self.rest = GroupedMLP(groups, hidden[0], hidden[1:], None, act, dropout, batch_norm)

    def forward(self, x_R: Tensor, x_N: Tensor, request_of_N: Tensor) -> Tensor:
        """[R, request], [N, candidate], [N] -> [N, G, H]."""
        return apart(self.rest(self.act(self.first(x_R, x_N, request_of_N))), self.groups)

    def last(self) -> Tensor:
        """The weight of the last layer: what the outputs share when they share experts."""
        return self.first.weight if (last := self.rest.last()) is None else last

    def only(self, kept: Sequence[int]) -> Experts:
        """A copy with these networks alone, in this order."""
        out = copy.deepcopy(self)
        out.groups = len(kept)
        select_groups(out, self.groups, kept)
        return out


def select_groups(module: nn.Module, groups: int, kept: Sequence[int]) -> None:
    """Keep some of the networks, in place: whatever has a row per neuron of every network, or a block per network."""
    for inner in module.modules():
        own = (*inner.named_parameters(recurse=False), *inner.named_buffers(recurse=False))
        for name, tensor in own:
            if not tensor.dim():
                continue
            blocks = tensor.detach().view(groups, tensor.shape[0] // groups, *tensor.shape[1:])
            chosen = blocks[list(kept)].reshape(-1, *tensor.shape[1:]).clone()
            if isinstance(tensor, nn.Parameter):
                chosen = nn.Parameter(chosen, tensor.requires_grad)
            setattr(inner, name, chosen)
