"""xDeepFM and its Compressed Interaction Network. Lian et al., KDD 2018, section 3.

X^0: the vectors of F fields;  map h of layer k: X^k_h = sum_ij W^k_h,ij X^{k-1}_i ∘ X^0_j
logit = w · (sums of all maps over d)

The sums run over all pairs i, j in both orders, a field with itself included. The three branches (linear, CIN, network) add.

Differs from the textbook: every coordinate d is a case of its own, so a layer is one bilinear form over N·D small vectors;
its outer products exist for a slice of the rows at a time and are made again in the backward pass. Maps that only the sum
reads (the last layer's; half of each layer under `split_half`) are, with identity activation, folded to one map per output
before they meet a row: the same numbers, a share 1/H of the work. In the first layer, where both sides are X^0, a pair is made
in one order for both, and a request's own pairs once per request.
R requests · N candidates · F fields and numbers (A and B: left and right) · D width · H maps · K outputs
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import Function

from finerank.errors import UserError
from finerank.layers.activation import Activation, activation
from finerank.layers.products import spread_fields, whole_rows
from finerank.models.base import Tower
from finerank.models.composition import Features, Interaction, Widths
from finerank.models.lr import Linear
from finerank.models.plain import EmbeddingOptions, Plain, TaskHeads
from finerank.models.registry import Composition, named, part
from finerank.models.vectors import FieldVectors
from finerank.schema import FittedSchema


@part
class CIN(Interaction):
    """Explicit interactions of fields as whole vectors, one degree more with each layer."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """The maps.

        maps        H of each layer: 100 to 200 in the paper, 16 to 64 cost a tenth
        activation  identity in the paper; relu in some public code
        split_half  only half the maps of a layer go on, only the others are summed (public code; the paper does not)
        std         of the initial vectors of numbers
        """

        kind: ClassVar[str] = "cin"
        maps: tuple[int, ...] = (100, 100, 100)
        activation: Activation = "identity"
        split_half: bool = False
        std: float = 0.01

        def __post_init__(self) -> None:
            if not self.maps or min(self.maps) < 1:
                raise UserError(f"maps = {list(self.maps)}; accepted: at least one layer, each of at least 1 map")
            if self.split_half and any(h % 2 for h in self.maps[:-1]):
                raise UserError(f"maps = {list(self.maps)}, split_half = true; accepted: even counts, but for the last")

    def __init__(self, fitted: FittedSchema, widths: Widths, outputs: int, options: Options) -> None:
        super().__init__()
        self.vectors = FieldVectors(widths, options.std, "interaction 'cin'")
        fields, before = self.vectors.fields, self.vectors.fields
        self.split, self.folds = options.split_half, options.activation == "identity"
        self.weights = nn.ParameterList()
        self.on: list[int] = []  # maps that go on to the next layer: the first ones
        self.summed: list[int] = []  # maps that are summed: the last ones
        for k, maps in enumerate(options.maps):
            weight = nn.Parameter(torch.empty(maps, before, fields))
            nn.init.normal_(weight, std=(2.0 / (before * fields + maps)) ** 0.5)
            self.weights.append(weight)
            last = k == len(options.maps) - 1
            before = 0 if last else maps // 2 if self.split else maps
            self.on.append(before)
            self.summed.append(maps if last or not self.split else maps - before)
        self.acts = nn.ModuleList(activation(options.activation, maps) for maps in options.maps)
        self.last = nn.Parameter(torch.empty(outputs, sum(self.summed)))
        nn.init.xavier_normal_(self.last)

    def forward(self, features: Features) -> Tensor:
        """[N, K]."""
        v_RFD, v_NFD = self.vectors.sides(features)
        of = features.batch.request_of
        x0_NDF = whole_rows(v_RFD, v_NFD, of).transpose(1, 2).contiguous()
        x_NDH, logits = x0_NDF, x0_NDF.new_zeros((x0_NDF.shape[0], len(self.last)))
        layers = zip(
            self.weights, self.acts, self.on, self.summed, self.last.split_with_sizes(self.summed, dim=1), strict=True
        )
        for k, (weight, act, on, summed, last) in enumerate(layers):
            folds = self.folds and on + summed == len(weight)
            used = weight[:on] if folds else weight
            if folds:
                logits = logits + _folded(x_NDH, x0_NDF, torch.einsum("kh,hab->kab", last, weight[on:]))
            if len(used):
                maps = self._first(v_RFD, x0_NDF, used, of) if not k else bilinear(x_NDH, x0_NDF, used)
                if not self.folds:
                    maps = act(maps.flatten(0, 1)).view_as(maps)
                if not folds:
                    logits = logits + maps[:, :, len(weight) - summed :].sum(1) @ last.T
                x_NDH = maps[:, :, :on]
        return logits

    def _first(self, v_RFD: Tensor, x0_NDF: Tensor, weight_HFF: Tensor, of: Tensor) -> Tensor:
        """[N, D, H]: pairs within the request once per request."""
        r, v_NDF = self.vectors.request, x0_NDF[:, :, self.vectors.request :]
        if not r:
            return quadratic(x0_NDF, weight_HFF)
        own = quadratic(v_RFD.transpose(1, 2), weight_HFF[:, :r, :r])
        across = bilinear(x0_NDF[:, :, :r], v_NDF, _both_orders(weight_HFF, r))
        return spread_fields(own, of) + across + quadratic(v_NDF, weight_HFF[:, r:, r:])


def _folded(x_NDA: Tensor, y_NDB: Tensor, weight_KAB: Tensor) -> Tensor:
    """[N, K]: sum over d of x' W_k y."""
    return torch.stack([((x_NDA @ w) * y_NDB).flatten(1).sum(1) for w in weight_KAB.unbind(0)], dim=1)


class _Bilinear(Function):
    """Rows of outer products, a slice at a time: what exists at once is `SLICE` numbers, not rows · A · B."""

    SLICE = 1 << 20

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, y, weight)
        out = x.new_empty((len(x), len(weight)))
        for at in _Bilinear._slices(x, y):
            torch.mm(_outer(x[at], y[at]), weight.flatten(1).T, out=out[at])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, y, weight = ctx.saved_tensors
        of_x, of_y, of_weight = torch.empty_like(x), torch.empty_like(y), torch.zeros_like(weight.flatten(1))
        for at in _Bilinear._slices(x, y):
            grad = grads[0][at]
            of_weight.addmm_(grad.T, _outer(x[at], y[at]))
            of_outer = (grad @ weight.flatten(1)).view(-1, x.shape[1], y.shape[1])
            torch.sum(of_outer * y[at].unsqueeze(1), dim=2, out=of_x[at])
            of_y[at] = torch.bmm(x[at].unsqueeze(1), of_outer).squeeze(1)
        return of_x, of_y, of_weight.view_as(weight)

    @staticmethod
    def _slices(x: Tensor, y: Tensor) -> list[slice]:
        step = max(_Bilinear.SLICE // max(x.shape[1] * y.shape[1], 1), 1)
        return [slice(at, at + step) for at in range(0, len(x), step)]


def _outer(x: Tensor, y: Tensor) -> Tensor:
    return (x.unsqueeze(2) * y.unsqueeze(1)).flatten(1)


def bilinear(x_nDA: Tensor, y_nDB: Tensor, weight_HAB: Tensor) -> Tensor:
    """[n, D, H]: x' W_h y for every row and d."""
    x, y = x_nDA.flatten(0, 1), y_nDB.flatten(0, 1)
    if torch.compiler.is_exporting():
        return (_outer(x, y) @ weight_HAB.flatten(1).T).view(-1, x_nDA.shape[1], len(weight_HAB))
    out: Tensor = _Bilinear.apply(x, y, weight_HAB)  # type: ignore[no-untyped-call]
    return out.view(-1, x_nDA.shape[1], len(weight_HAB))


def quadratic(x_nDA: Tensor, weight_HAA: Tensor) -> Tensor:
    """[n, D, H]: x' W_h x. Pairs of one half with the other are made in one order only, and so on within the halves."""
    half = x_nDA.shape[2] // 2
    if half < 8:
        return bilinear(x_nDA, x_nDA, weight_HAA)
    left, right = x_nDA[:, :, :half], x_nDA[:, :, half:]
    within = quadratic(left, weight_HAA[:, :half, :half]) + quadratic(right, weight_HAA[:, half:, half:])
    return within + bilinear(left, right, _both_orders(weight_HAA, half))


def _both_orders(weight_HAA: Tensor, at: int) -> Tensor:
    """[H, at, A - at]: the weight of a pair across the line, for i before j and j before i together."""
    return weight_HAA[:, :at, at:] + weight_HAA[:, at:, :at].transpose(1, 2)


XDEEPFM = named(
    Composition(
        name="xdeepfm",
        representation=Plain.Options(embedding=EmbeddingOptions(width=10)),
        interactions=(Linear.Options(), CIN.Options(), Tower.Options(hidden=(400, 400), activation="relu")),
        heads=TaskHeads.Options(),
        paper="1803.05170",
    )
)
