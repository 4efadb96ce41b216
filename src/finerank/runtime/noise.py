"""Noise that a model reads when it scores: standard normals as a function of (seed, request, column, value, place).

A model that draws its parameters anew for each request (Thompson sampling) is given the draw as an input of its graph. All rows
of a request that hold the same value of a column get the same draw of it, as one draw of the parameters must give; another
request gets another. So a score depends neither on the order of candidates nor on what else is in the batch, and is the same in
the server and offline, where a request goes by its position in the log (`Dataset.sequence`).
n rows · F columns · W normals of each
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from finerank.runtime.blocks import Block
from finerank.runtime.hashing import UInt64s, hash64, hash_integers, mix, seed_of, splitmix64
from finerank.schema import Columns

Array: TypeAlias = NDArray[Any]
Side = Literal["request", "candidate"]
SIDES: tuple[Side, ...] = ("request", "candidate")


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What a model asks for: `width` normals for each of these columns, in order."""

    seed: int
    width: int
    request: tuple[str, ...]
    candidate: tuple[str, ...]

    def columns(self, side: Side) -> tuple[str, ...]:
        """The columns of one side."""
        return self.request if side == "request" else self.candidate

    def widths(self) -> dict[Side, int]:
        """Normals of a row, of each side that has any."""
        return {side: len(self.columns(side)) * self.width for side in SIDES if self.columns(side)}


def request_key(name: int | str) -> int:
    """What noise knows a request by: a number and its text are the same request."""
    return hash64("request", str(name))


def request_keys(sequence: NDArray[np.int64]) -> UInt64s:
    """`request_key` of many numbers."""
    return hash_integers("request", sequence)


def draws(noise: Noise, side: Side, columns: Columns, block: Block[Array], keys: UInt64s) -> NDArray[np.float32]:
    """[n, F * W] of one side. block: ids as the graph reads them (embedding rows); keys: `request_key` of each row."""
    ids = {name: j for j, (name, _) in enumerate(columns.ids)}
    out = []
    for name in noise.columns(side):
        state = splitmix64(keys ^ np.uint64(mix(noise.seed, seed_of(name))))
        value = block.ids[:, ids[name]].astype(np.uint64) if name in ids else _of_lists(block, name)
        out.append(normals(splitmix64(state ^ value), noise.width))
    return np.concatenate(out, axis=1) if out else np.zeros((len(keys), 0), np.float32)


def _of_lists(block: Block[Array], name: str) -> UInt64s:
    """[n]: a number for the entries of each row's list, whatever their order."""
    lists = block.lists[name]
    entries = lists.ids.astype(np.uint64)
    with np.errstate(over="ignore"):
        hashed = entries[:, 0]
        for rank in entries.T[1:]:
            hashed = splitmix64(hashed) ^ rank
        totals = np.zeros(len(lists.lengths), np.uint64)
        np.add.at(totals, lists.segments, splitmix64(hashed))
    return totals[lists.index]


def normals(states: UInt64s, width: int) -> NDArray[np.float32]:
    """[n] -> [n, width]: independent standard normals of each state, by Box and Muller's pairs."""
    pairs = (width + 1) // 2
    bits = splitmix64(states[:, None] ^ np.arange(2 * pairs, dtype=np.uint64))
    u = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    radius, angle = np.sqrt(-2 * np.log1p(-u[:, :pairs])), 2 * np.pi * u[:, pairs:]
    out = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return out[:, :width].astype(np.float32)
