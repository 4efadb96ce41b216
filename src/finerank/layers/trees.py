"""Decision trees as arrays: which leaf a row falls into, in tensor operations that exporters understand.

N rows · C inputs · K trees · M nodes of a tree, inner ones and leaves · L leaves of a tree
An inner node sends a row left if x[feature] <= threshold; where x is NaN, by its own rule. A leaf sends it to itself, so
that all trees take the same number of steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Arrays = Mapping[str, Tensor]


class Trees(nn.Module):
    """K trees of at most L leaves, at most `depth` steps deep. Until `load` each is one leaf."""

    feature: Tensor
    threshold: Tensor
    nan_left: Tensor
    left: Tensor
    right: Tensor

    def __init__(self, count: int, leaves: int, depth: int) -> None:
        super().__init__()
        self.count, self.leaves, self.depth = count, leaves, depth
        for name, array in packed([], count, leaves).items():
            if name != "value":
                self.register_buffer(name, array)

    @torch.no_grad()
    def load(self, arrays: Arrays) -> None:
        """Take over what `packed` gave, in place."""
        for name, buffer in self.named_buffers():
            buffer.copy_(arrays[name])

    def forward(self, x_NC: Tensor) -> Tensor:
        """[N, C] -> int64 [N, K]: the leaf of each tree, 0 ... L - 1."""
        nodes = self.feature.shape[1]
        first_K = torch.arange(self.count, device=x_NC.device) * nodes
        at_NK = first_K.expand(x_NC.shape[0], -1)  # positions in the flattened arrays
        feature, threshold, nan_left, left, right = (
            t.flatten() for t in (self.feature, self.threshold, self.nan_left, self.left, self.right)
        )
        for _ in range(self.depth):
            x_NK = x_NC.gather(1, feature[at_NK])
            goes_left = (x_NK <= threshold[at_NK]) | (torch.isnan(x_NK) & nan_left[at_NK])
            at_NK = first_K + torch.where(goes_left, left[at_NK], right[at_NK])
        return at_NK - first_K - (nodes - self.leaves)


def packed(trees: list[Mapping[str, Any]], count: int, leaves: int) -> dict[str, Tensor]:
    """Trees as LightGBM's `dump_model` gives them (`tree_structure`) -> arrays [K, M]; `value` [K, L] is what leaves add.

    Inner nodes come first, then the leaves. Trees that were not grown are one leaf of value 0. A threshold becomes the greatest
    float32 not above it (`boundary`): then x <= threshold is the same in float32 and in float64 for every float32 x.
    """
    inner = leaves - 1
    shape = (count, inner + leaves)
    feature, nan_left = np.zeros(shape, np.int64), np.zeros(shape, bool)
    threshold, value = np.zeros(shape, np.float32), np.zeros((count, leaves))
    itself = np.broadcast_to(np.arange(inner + leaves), shape)
    left, right = itself.copy(), itself.copy()
    left[:, 0] = right[:, 0] = inner  # of a tree without inner nodes

    def walk(k: int, node: Mapping[str, Any]) -> int:
        if "split_index" not in node:
            leaf = int(node.get("leaf_index", 0))
            value[k, leaf] = node["leaf_value"]
            return inner + leaf
        i = int(node["split_index"])
        feature[k, i] = node["split_feature"]
        threshold[k, i] = boundary(node["threshold"])
        # LightGBM takes NaN for 0 where training met none
        nan_left[k, i] = node["default_left"] if node["missing_type"] == "NaN" else node["threshold"] >= 0
        left[k, i], right[k, i] = walk(k, node["left_child"]), walk(k, node["right_child"])
        return i

    for k, tree in enumerate(trees):
        walk(k, tree)
    arrays = {"feature": feature, "threshold": threshold, "nan_left": nan_left, "left": left, "right": right}
    return {name: torch.from_numpy(array) for name, array in (arrays | {"value": value}).items()}


ZERO = np.float32(1e-35)
"""LightGBM takes what is no further from 0 for 0."""


def boundary(threshold: float) -> np.float32:
    """The float32 b for which x <= b decides as LightGBM's x <= threshold does, for every float32 x."""
    if -float(ZERO) <= threshold < 0:
        below: np.float32 = np.nextafter(-ZERO, np.float32(-np.inf))
        return below
    return floor32(max(threshold, float(ZERO)) if threshold >= 0 else threshold)


def floor32(x: float) -> np.float32:
    """The greatest float32 that is not above x.

    >>> floor32(0.1) <= 0.1 < np.nextafter(floor32(0.1), np.float32(1))
    np.True_
    """
    with np.errstate(over="ignore"):
        near = np.float32(x)
        below: np.float32 = np.nextafter(near, np.float32(-np.inf))
    return near if float(near) <= x else below
