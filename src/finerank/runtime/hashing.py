"""Hashes and counter-based randomness: pure functions of their arguments, the same on every machine and for ever.

Two uses: the symbol of a value in a hashed table (`hash64` and its vectorised twins), and every random draw of the
project, which is a function of named integers such as (seed, epoch, row) and of no hidden state (`mix`, `uniform`).
Numbers written into data sets depend on these functions: known answers in the tests pin them down.

splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014. xxh3: Y. Collet's xxHash.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import xxhash
from numpy.typing import NDArray

UInt64s: TypeAlias = NDArray[np.uint64]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX1, _MIX2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}", re.ASCII)


def splitmix64(state: UInt64s) -> UInt64s:
    """The output of the splitmix64 generator at each `state` (uint64, any shape): a bijection that mixes all bits."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is meant; numpy warns of it for single values
        z = state + np.uint64(_GOLDEN)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX1)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX2)
    return z ^ (z >> np.uint64(31))


# ------------------------------------------------------------------------------------------------ hashed tables


def hash64(table: str, text: str) -> int:
    """The 64-bit hash of a canonical text in an embedding table: the same text hashes apart in two tables.

    Text that is a canonical decimal int64 ("7", "-3"; not "07", "+7", "-0"): splitmix64(integer ^ seed of the table),
    so that integer columns hash without becoming text. Any other: xxh3_64 of `table + "\\x01" + text` in UTF-8.
    """
    integer = _as_int64(text)
    if integer is None:
        return xxhash.xxh3_64_intdigest(f"{table}\x01{text}".encode())
    return _splitmix64(integer & _MASK ^ seed_of(table))


def hash_integers(table: str, values: NDArray[np.int64]) -> UInt64s:
    """`hash64` of integers: int64 (any shape) -> uint64 of the same shape."""
    return splitmix64(values.astype(np.int64, copy=False).view(np.uint64) ^ np.uint64(seed_of(table)))


def hash_texts(table: str, texts: Sequence[str]) -> UInt64s:
    """`hash64` of each text: uint64 [len(texts)]. Integers among them are mixed together, which takes half the time."""
    integers = [_as_int64(text) for text in texts]
    out = hash_integers(table, np.array([value or 0 for value in integers], dtype=np.int64))
    others = np.array([value is None for value in integers], dtype=np.bool_)
    out[others] = [hash64(table, text) for text, value in zip(texts, integers, strict=True) if value is None]
    return out


@lru_cache(maxsize=4096)
def seed_of(table: str) -> int:
    """The 64-bit seed that sets the integers of one table apart from those of others."""
    return xxhash.xxh3_64_intdigest(f"{table}\x01".encode())


def _as_int64(text: str) -> int | None:
    if _INTEGER.fullmatch(text):
        value = int(text)
        if -(1 << 63) <= value < 1 << 63:
            return value
    return None


# ------------------------------------------------------------------------------------------------ randomness


def mix(*values: int) -> int:
    """One 64-bit number from several integers (taken modulo 2**64); the order matters. `mix(seed, epoch, row)`."""
    state = _GOLDEN
    for value in values:
        state = _splitmix64(state ^ value & _MASK)
    return state


def mix_array(key: int, values: NDArray[Any]) -> UInt64s:
    """`mix(key, value)` of each value: integers (any shape) -> uint64 of the same shape."""
    if values.dtype.kind not in "iu":
        raise TypeError(f"mix_array takes integers, got {values.dtype}")
    wide = values if values.dtype.kind == "u" else values.astype(np.int64)  # sign-extended, then modulo 2**64
    return splitmix64(wide.astype(np.uint64) ^ np.uint64(mix(key)))


def uniform(key: int, counter: NDArray[Any]) -> NDArray[np.float64]:
    """A number in [0, 1) for each counter (integers, any shape), on the grid of 2**-53. `key`: any integer, say a mix."""
    return (mix_array(key, counter) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _splitmix64(state: int) -> int:
    """`splitmix64` of one Python integer (a fifth of the time of a numpy scalar's)."""
    z = (state + _GOLDEN) & _MASK
    z = ((z ^ (z >> 30)) * _MIX1) & _MASK
    z = ((z ^ (z >> 27)) * _MIX2) & _MASK
    return z ^ (z >> 31)
