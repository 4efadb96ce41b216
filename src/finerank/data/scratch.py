"""Arrays that may be longer than memory: in memory as long as they are few, beyond that in files of a scratch folder.

Files are mapped, so what a process holds of its own (anonymous memory) follows the block; the page cache of the system
does the rest. Whoever makes a `Scratch` removes its folder. A full disk is an OSError, never a crash: space is reserved
before it is mapped.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array: TypeAlias = NDArray[Any]
Int64s: TypeAlias = NDArray[np.int64]

BLOCK = 1 << 20
"""Rows in memory at a time."""

HELD = 1 << 10
"""Bytes of arrays that stay in memory, for each row of a block: with the default block, 1 GiB in all."""

MANY = 16
"""Pieces of an array that share a room in memory: a block is read in as many."""

LEAF = 1 << 16
"""Numbers that are summed in one go, whatever the block is."""


class Scratch:
    """Makes arrays of any length.

    folder  made when the first array needs it; None: everything is in memory
    block   rows of an array that are in memory at a time
    """

    def __init__(self, folder: Path | None = None, block: int = BLOCK) -> None:
        self.folder, self.block = folder, block
        self._left = block * HELD
        self._names = itertools.count()

    def pieces(self, n: int) -> Iterator[slice]:
        """The rows 0...n-1, one block after the other."""
        for start in range(0, n, self.block):
            yield slice(start, min(start + self.block, n))

    def empty(self, shape: int | tuple[int, int], dtype: DTypeLike = np.int64) -> Array:
        """An array to be filled: [n] or [n, F]."""
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        if self.holds(size):
            return np.empty(shape, dtype)
        path = self.path()
        with path.open("w+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is told here, and not by a signal later
        return np.asarray(np.memmap(path, dtype=dtype, mode="r+", shape=shape))

    def holds(self, size: int) -> bool:
        """Whether so many bytes may stay in memory, beside those before."""
        if self.folder is None or size <= self._left:
            self._left -= size
            return True
        return False

    def full(self, n: int, value: int, dtype: DTypeLike = np.int64) -> Array:
        """[n] of one value."""
        out = self.empty(n, dtype)
        for at in self.pieces(n):
            out[at] = value
        return out

    def made(self, n: int, make: Callable[[slice], Array], dtype: DTypeLike = np.int64) -> Array:
        """[n]: what `make` gives for each block of rows."""
        out = self.empty(n, dtype)
        for at in self.pieces(n):
            out[at] = make(at)
        return out

    def take(self, values: Array, index: Int64s) -> Array:
        """[n]: the values at these places."""
        return self.made(len(index), lambda at: values[index[at]], values.dtype)

    def running(self, values: Int64s, out: Int64s | None = None) -> Int64s:
        """int64 [n]: the sum of each and those before it. out: where it is to be; may be `values`."""
        out, so_far = self.empty(len(values)) if out is None else out, 0
        for at in self.pieces(len(values)):
            out[at] = so_far + np.cumsum(values[at])
            so_far = int(out[at.stop - 1])
        return out

    def path(self) -> Path:
        """A new file."""
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"{next(self._names):05d}"

    # -------------------------------------------------------------------------------------------- order

    def order(self, *keys: Array) -> Int64s:
        """int64 [n]: the stable order by keys[0], then keys[1], ... (integers, [n] each)."""
        n = len(keys[0])
        if self._ascending(keys):
            return self.made(n, lambda at: np.arange(at.start, at.stop))
        if n <= self.block:
            return np.lexsort(keys[::-1])
        out = self.made(n, lambda at: np.arange(at.start, at.stop))
        self._sort(out, self.empty(n), keys)
        return out

    def _ascending(self, keys: tuple[Array, ...]) -> bool:
        for at in self.pieces(len(keys[0])):
            here = slice(at.start, at.stop + 1)  # one more: the step to the next block counts
            equal = np.ones(max(0, len(keys[0][here]) - 1), dtype=bool)
            for key in keys:
                before, after = key[here][:-1], key[here][1:]
                if (equal & (after < before)).any():
                    return False
                equal &= after == before
        return True

    def _sort(self, rows: Int64s, spare: Int64s, keys: tuple[Array, ...]) -> None:
        """Sort row numbers in place by parting them into buckets by ranges of the first key, until a bucket fits.

        rows   ascending, so that what is equal stays in order · spare: as long
        """
        if not keys or len(rows) < 2:
            return
        key, n = keys[0], len(rows)
        if n <= self.block:
            rows[:] = rows[np.lexsort([k[rows] for k in keys[::-1]])]
            return
        ends = [(key[rows[at]].min(), key[rows[at]].max()) for at in self.pieces(n)]
        least, greatest = min(a for a, _ in ends), max(b for _, b in ends)
        if least == greatest:
            self._sort(rows, spare, keys[1:])
            return
        sample = np.sort(key[rows[:: max(1, n // (1 << 16))]])
        cuts = np.unique(sample[:: max(1, len(sample) * self.block // (2 * n))])
        cuts = cuts[cuts > least] if (cuts > least).any() else np.array([greatest])
        counts = np.zeros(len(cuts) + 1, dtype=np.int64)
        for at in self.pieces(n):
            counts += np.bincount(np.searchsorted(cuts, key[rows[at]], side="right"), minlength=len(counts))
        next_ = np.cumsum(counts) - counts
        for at in self.pieces(n):
            bucket = np.searchsorted(cuts, key[rows[at]], side="right")
            by_bucket = np.argsort(bucket, kind="stable")
            here = np.bincount(bucket, minlength=len(counts))
            place = np.repeat(next_ - (np.cumsum(here) - here), here) + np.arange(len(bucket))
            spare[place] = rows[at][by_bucket]
            next_ += here
        for at in self.pieces(n):
            rows[at] = spare[at]
        for end, count in zip(np.cumsum(counts).tolist(), counts.tolist(), strict=True):
            self._sort(rows[end - count : end], spare[end - count : end], keys)

    def runs(self, *keys: Array) -> Int64s:
        """Where runs of equal rows begin, int64 [runs + 1], the last one n. keys: [n] each."""
        n, starts = len(keys[0]), Pile(self, np.int64)
        for at in self.pieces(n):
            here = slice(max(0, at.start - 1), at.stop)
            new = np.zeros(at.stop - here.start - 1, dtype=bool)
            for key in keys:
                new |= key[here][1:] != key[here][:-1]
            if not at.start:
                new = np.concatenate([[True], new])
            starts.append(at.start + np.flatnonzero(new))
        starts.append(np.array([n]))
        return starts.close()

    def spread(self, starts: Int64s, values: Array) -> Array:
        """[n]: the value of each run, for all its rows. starts: as `runs` gives them."""
        out = self.empty(int(starts[-1]), values.dtype)
        for at in self.pieces(len(out)):
            low = int(np.searchsorted(starts, at.start, side="right")) - 1
            high = int(np.searchsorted(starts, at.stop, side="left"))
            edges = np.clip(starts[low : high + 1], at.start, at.stop)
            out[at] = np.repeat(values[low:high], np.diff(edges))
        return out


class Pile:
    """An array that grows: pieces are put behind each other, then `close` gives it as a whole.

    Pieces held in memory lie in rooms for many of them: most arrays have one, and need not be put together again.
    """

    def __init__(self, scratch: Scratch, dtype: DTypeLike, width: int | None = None) -> None:
        self.scratch, self.dtype = scratch, np.dtype(dtype)
        self.rows = 0
        self._width: tuple[int, ...] = () if width is None else (width,)
        self._held: list[Array] = []
        self._left = 0  # rows of the last room that are free
        self._path: Path | None = None
        self._file: BinaryIO | None = None

    def append(self, piece: Array) -> None:
        """[n] or [n, width], of any type that fits."""
        room = self.room(len(piece))
        np.copyto(room, piece, casting="unsafe")
        self.put(room)

    def room(self, n: int) -> Array:
        """Where the next n rows may be written, to be `put` or not."""
        if self._file is not None:
            return np.empty((n, *self._width), self.dtype)
        if n > self._left or not self._held:
            self._make_room(n)
        start = len(self._held[-1]) - self._left
        return self._held[-1][start : start + n]

    def put(self, room: Array) -> None:
        """The room last asked for holds the next rows."""
        self.rows += len(room)
        if self._file is None and self.scratch.holds(room.nbytes):
            self._left -= len(room)
            return
        if self._file is None:
            self._path = self.scratch.path()
            self._file = self._path.open("wb")
            for held in self._full():
                self._file.write(held.data if held.size else b"")
            self._held = []
        self._file.write(room.data if room.size else b"")

    def _make_room(self, n: int) -> None:
        """For n rows, which may be the only ones; then for many times as much: what is not touched costs nothing."""
        if not self._held:
            self._open(n)
            return
        before = self._full()
        if len(before) > 1:
            self._held = before
            self._open(MANY * n)
            return
        self._held = []
        self._open(MANY * max(n, len(before[0])))
        self._held[0][: len(before[0])] = before[0]
        self._left -= len(before[0])

    def _open(self, n: int) -> None:
        self._held.append(np.empty((n, *self._width), self.dtype))
        self._left = n

    def _full(self) -> list[Array]:
        """What is held, without what is free."""
        return [*self._held[:-1], self._held[-1][: len(self._held[-1]) - self._left]] if self._held else []

    def close(self) -> Array:
        """All of it. Nothing can be appended any more."""
        shape = (self.rows, *self._width)
        if self._file is None or self._path is None:
            held = self._full()
            return held[0] if len(held) == 1 else np.concatenate([np.empty((0, *self._width), self.dtype), *held])
        self._file.close()
        if not np.prod(shape):
            return np.empty(shape, self.dtype)
        return np.asarray(np.memmap(self._path, dtype=self.dtype, mode="r", shape=shape))


def total(n: int, read: Callable[[slice], Array]) -> float:
    """The sum of n float64, the same for every block: `read` gives a part of them, `LEAF` at most at a time.

    Halves are halved again as in numpy's pairwise summation, so it is also the sum that numpy makes of the whole.
    """

    def part(low: int, high: int) -> float:
        if high - low <= LEAF:
            return float(np.sum(read(slice(low, high))))
        half = (high - low) // 2
        half -= half % 8
        return part(low, low + half) + part(low + half, high)

    return part(0, n)
