"""Fully connected layers, and the first layer that is computed per request for what belongs to the request."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from finerank.kernels.rows import fits
from finerank.kernels.tower import tower
from finerank.kernels.unit import Layer, has_bf16
from finerank.layers.activation import Activation, PReLU, activation
from finerank.layers.precision import leave, lowered, product
from finerank.layers.segments import one_each, spread


def initialise(weight: Tensor, normed: bool = False, after_norm: bool = False) -> None:
    """Initial values of a layer's weights [outputs, inputs]: Xavier-normal (Glorot and Bengio 2010).

    normed      batch normalisation follows: uniform within 1 / sqrt(inputs), a third to a half of that spread. The
                normalisation undoes the scale, and so what it sets is how far a step of the optimiser turns the layer
    after_norm  it makes logits of what was normalised: uniform within .1 / sqrt(inputs). What is normalised has a spread of
                one from the first step on, and Xavier's weights would make logits of it that differ by one for no reason;
                without a norm they begin near zero, as the embeddings do
    Both smaller ones were the better on every generated log tried (benchmarks/README.md, "Why one DIN stands at .63").
    """
    if normed or after_norm:
        bound = (0.1 if after_norm else 1.0) / math.sqrt(max(1, weight.shape[1]))
        nn.init.uniform_(weight, -bound, bound)
    else:
        nn.init.xavier_normal_(weight)


def linear(inputs: int, outputs: int, bias: bool = True, normed: bool = False, after_norm: bool = False) -> nn.Linear:
    """A linear layer with weights as `initialise` has them, and zero bias."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    initialise(layer.weight, normed, after_norm)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class Hidden(nn.Module):
    """What follows a linear layer: (batch norm,) activation, (dropout). [n, H] -> [n, H]."""

    def __init__(self, width: int, act: Activation, dropout: float, batch_norm: bool) -> None:
        super().__init__()
        self.width = width
        self.norm = BatchNorm(width) if batch_norm else None
        self.act = activation(act, width)
        self.dropout = nn.Dropout(dropout) if dropout else None

    def forward(self, x: Tensor) -> Tensor:
        """[n, H] -> [n, H]."""
        if x.dtype == torch.bfloat16 and not (self.norm is None and isinstance(self.act, nn.ReLU)):
            return self._follow(x.float()).to(x.dtype)  # statistics and slopes are float32
        return self._follow(x)

    def slope(self, like: Tensor) -> Tensor | None:
        """[H]: the slope below zero where all that follows is ReLU (0) or PReLU, as the compiled loops take it; else None.

        like: the layer's weight, whose type it has
        """
        if self.norm is not None or self.dropout is not None:
            return None
        match self.act:
            case PReLU():
                return self.act.slope
            case nn.ReLU():
                return like.new_zeros(self.width)
            case _:
                return None

    def _follow(self, x: Tensor) -> Tensor:
        if self.norm is not None:
            x = self.norm(x)
        x = self.act(x)
        return x if self.dropout is None else self.dropout(x)


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation that lets a training batch of one row (or none) through on its moving statistics."""

    def forward(self, input: Tensor) -> Tensor:
        """[n, H] -> [n, H]."""
        if self.training and input.shape[0] < 2:
            return nn.functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(input)


class MLP(nn.Module):
    """[n, inputs] -> [n, hidden[-1]] (or [n, outputs] with `outputs`: a last linear layer without activation).

    bias  of that last layer; the others have theirs always
    """

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        outputs: int | None = None,
        act: Activation = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [linear(inputs, width, normed=batch_norm), Hidden(width, act, dropout, batch_norm)]
            inputs = width
        if outputs is not None:
            layers.append(linear(inputs, outputs, bias, after_norm=batch_norm))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs] -> [n, outputs]."""
        layers = list(self.layers)
        last = layers.pop() if len(layers) % 2 else None
        for layer in layers:
            x = product(x, layer.weight, layer.bias) if isinstance(layer, nn.Linear) else layer(x)
        x = leave(x)
        return x if last is None else last(x)


class SplitLinear(nn.Module):
    """W·[x_R, x_N] + b = gather(W_R·x_R + b) + W_N·x_N: the user side is multiplied once per request, not per candidate.

    The same numbers as one linear layer over the joined input, of which it is initialised as a part each.
    """

    def __init__(self, request: int, candidate: int, outputs: int, bias: bool = True, normed: bool = False) -> None:
        super().__init__()
        joined = linear(request + candidate, outputs, bias, normed)
        self.weight, self.bias = joined.weight, joined.bias
        self.request = request

    def forward(self, x_R: Tensor, x_N: Tensor, request_of_N: Tensor, inside: bool = False) -> Tensor:
        """[R, request], [N, candidate], [N] -> [N, outputs]. inside: of a tower, which goes on in bf16 where that is so."""
        if not self.request:
            out = product(x_N, self.weight, self.bias)
        elif one_each(request_of_N, x_R.shape[0]):
            out = product(torch.cat([x_R, x_N], dim=1), self.weight, self.bias)
        else:
            per_request = product(x_R, self.weight[:, : self.request], self.bias)
            out = spread(per_request, request_of_N) + product(x_N, self.weight[:, self.request :])
        return out if inside else leave(out)


def after_first(
    hidden: Sequence[int], outputs: int, act: Activation = "relu", dropout: float = 0.0, batch_norm: bool = False
) -> nn.Module:
    """What follows a first layer of hidden[0] neurons: [n, hidden[0]] -> [n, outputs], the last layer without bias.

    Without hidden layers the first makes the outputs itself, and nothing follows.
    """
    if not hidden:
        return nn.Identity()
    after = Hidden(hidden[0], act, dropout, batch_norm)
    return nn.Sequential(after, MLP(hidden[0], hidden[1:], outputs, act, dropout, batch_norm, bias=False))


class SplitMLP(nn.Module):
    """An MLP over [x_R, x_N] with a last linear layer without bias; the request's part of its first layer once per request."""

    def __init__(
        self,
        request: int,
        candidate: int,
        hidden: Sequence[int],
        outputs: int = 1,
        act: Activation = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        first = hidden[0] if hidden else outputs
        self.first = SplitLinear(request, candidate, first, bool(hidden), normed=batch_norm and bool(hidden))
        self.rest = after_first(hidden, outputs, act, dropout, batch_norm)

    def forward(self, x_R: Tensor, x_N: Tensor, request_of_N: Tensor) -> Tensor:
        """[R, request], [N, candidate], [N] -> [N, outputs]."""
        compiled = lowered() and x_N.dtype == torch.float32 and fits(x_N) and has_bf16()
        if compiled and (layers := self._compiled_layers()):
            return self._compiled(x_R, x_N, request_of_N, *layers)
        out: Tensor = self.rest(self.first(x_R, x_N, request_of_N, inside=not isinstance(self.rest, nn.Identity)))
        return out

    def _compiled(
        self, x_R: Tensor, x_N: Tensor, request_of_N: Tensor, layers: list[Layer], last: Tensor, bent: bool
    ) -> Tensor:
        """[N, 1] by the compiled loops: the twin of what `forward` does otherwise."""
        weight, bias, request = self.first.weight, self.first.bias, self.first.request
        assert bias is not None
        add, of = bias.unsqueeze(0), None
        if request and one_each(request_of_N, x_R.shape[0]):
            x_N = torch.cat([x_R, x_N], dim=1)
        elif request:
            add, of = nn.functional.linear(x_R, weight[:, :request], bias), request_of_N
            layers[0] = Layer(weight[:, request:], bias, layers[0].slope)
        return tower(x_N, add, of, layers, last, bent)

    def _compiled_layers(self) -> tuple[list[Layer], Tensor, bool] | None:
        """(layers, last weight, whether an activation has a slope) where the compiled loops can: one output, ReLU or PReLU."""
        if not isinstance(self.rest, nn.Sequential):
            return None
        after, mlp = self.rest
        assert isinstance(after, Hidden)
        assert isinstance(mlp, MLP)
        hiddens = [after, *(m for m in mlp.layers if isinstance(m, Hidden))]
        *others, last = (m for m in mlp.layers if isinstance(m, nn.Linear))
        linears: list[SplitLinear | nn.Linear] = [self.first, *others]
        layers = []
        for layer, hidden in zip(linears, hiddens, strict=True):
            slope, bias = hidden.slope(layer.weight), layer.bias
            if slope is None or bias is None:
                return None
            layers.append(Layer(layer.weight, bias, slope))
        return None if last.out_features != 1 else (layers, last.weight, isinstance(after.act, PReLU))
