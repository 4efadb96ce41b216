"""The columns of one level as arrays: what both encoders produce and what a batch is made of.

n rows of the block · F single-id columns · C number columns · L distinct lists · M entries of all distinct lists
The order of the columns is fixed by `schema.Columns`; the same class holds numpy arrays here and tensors in a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Lists(Generic[A]):
    """One list column, stored once per distinct list, so that pooling costs what is distinct.

    index     [n] which distinct list a row has
    ids       [M, 1], or [M, 2] with the rank as the second id
    weights   [M] float32, or None when the column has no weights
    segments  [M] which distinct list an entry belongs to, ascending
    lengths   [L] entries of each distinct list (an empty list has none)
    """

    index: A
    ids: A
    weights: A | None
    segments: A
    lengths: A

    def map(self, fn: Callable[[A], B]) -> Lists[B]:
        """The same structure with `fn` applied to every array."""
        weights = None if self.weights is None else fn(self.weights)
        return Lists(fn(self.index), fn(self.ids), weights, fn(self.segments), fn(self.lengths))


@dataclass(frozen=True)
class Block(Generic[A]):
    """The columns of one level. ids: int64 [n, F]; numbers: float32 [n, C]; lists: by feature name, in declared order."""

    ids: A
    numbers: A
    lists: Mapping[str, Lists[A]] = field(default_factory=dict)

    def __len__(self) -> int:
        ids: Any = self.ids
        return int(ids.shape[0])

    def map(self, fn: Callable[[A], B]) -> Block[B]:
        """The same structure with `fn` applied to every array."""
        return Block(fn(self.ids), fn(self.numbers), {name: lists.map(fn) for name, lists in self.lists.items()})
