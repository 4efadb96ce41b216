"""Column files: a folder with one .npy file per named array and a manifest, opened by mapping it into memory.

Each file is numpy's format 1.0 with a header of fixed size: `np.load(file, mmap_mode="r")` reads it too, and rows can
be appended before their number is known. A folder appears whole or not at all: it is written beside its place and
renamed. Arrays of one folder may have different numbers of rows.

Nothing is synced: what lies in these folders can be made again from its source, and the disk would be waited for longer
than for the work. A process that dies leaves no half of a folder. After a cut of the power, files may lack what the system
had not yet written: opening sees a wrong size or header, `verify` anything else, and both say to prepare again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import xxhash

from finerank.data.folders import vacant
from finerank.errors import UserError
from finerank.runtime.blocks import Block, Lists
from finerank.runtime.history import Array, flatten, take_lists
from finerank.runtime.history import concat_blocks as concat_blocks
from finerank.runtime.history import take_block as take_block

FORMAT = "finerank columns 1"
MANIFEST = "manifest.json"
HEADER = 128  # bytes; a multiple of 64, so that rows are aligned
_DTYPE = re.compile(r"[<|][biufSU]\d+")  # never objects: reading those would unpickle


@dataclass(frozen=True)
class Column:
    """One array as the manifest describes it. shape: [rows] or [rows, width]; xxh3: hash of the rows' bytes."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    xxh3: str


def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape!r}, }}"
    body = text.ljust(HEADER - 11) + "\n"  # 6 bytes of magic, 2 of version, 2 of length, and the newline
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body.encode("ascii")


# ------------------------------------------------------------------------------------------------ writing


class _Stream:
    """One growing file: the type and width of its first rows are those of all."""

    def __init__(self, path: Path, first: Array) -> None:
        self.path, self.dtype, self.width = path, first.dtype, first.shape[1:]
        self.rows = 0
        self.hash = xxhash.xxh3_128()
        self.file: BinaryIO = path.open("wb")
        self.file.write(bytes(HEADER))

    def append(self, name: str, rows: Array) -> None:
        if rows.dtype != self.dtype or rows.shape[1:] != self.width:
            raise ValueError(
                f"column {name!r}: rows are {rows.dtype.str} {list(rows.shape)}, "
                f"the rows before them {self.dtype.str} {[self.rows, *self.width]}"
            )
        self.rows += len(rows)
        if rows.size:  # rows of no columns have no bytes to view
            data = np.ascontiguousarray(rows).view(np.uint8).reshape(-1).data
            self.hash.update(data)
            self.file.write(data)

    def close(self) -> Column:
        shape = (self.rows, *self.width)
        self.file.seek(0)
        self.file.write(_header(self.dtype.str, shape))
        self.file.close()
        return Column(self.path.name, self.dtype.str, shape, self.hash.hexdigest())


class ColumnWriter:
    """Writes a folder of columns piece by piece, in memory of one piece. To be used in a `with`: an exception inside it
    leaves nothing behind. One writer per folder at a time.

    >>> with ColumnWriter(folder) as out:  # doctest: +SKIP
    ...     out.append({"ids": ids, "time": time})

    Raises UserError if the folder exists and is not empty: nothing already written is lost.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        vacant(self.folder)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self._partial = self.folder.with_name(f".{self.folder.name}.partial")
        shutil.rmtree(self._partial, ignore_errors=True)  # left by a run that was killed
        self._partial.mkdir()
        self._streams: dict[str, _Stream] = {}

    def __enter__(self) -> ColumnWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if kind is None:
                self.close()
        finally:  # after a good end both lines find nothing to do
            for stream in self._streams.values():
                with suppress(OSError):  # a full disk is reported by the write, not again by the close
                    stream.file.close()
            shutil.rmtree(self._partial, ignore_errors=True)

    def append(self, arrays: Mapping[str, Array]) -> None:
        """Add rows to some or all arrays: [n] or [n, F]. The first rows of a name (maybe none) fix its type and F."""
        for name, given in arrays.items():
            rows = np.asarray(given)
            rows = rows.astype(rows.dtype.newbyteorder("<"), copy=False)
            if rows.ndim not in (1, 2) or not _DTYPE.fullmatch(rows.dtype.str):
                raise ValueError(
                    f"column {name!r}: {rows.dtype} {list(rows.shape)}; accepted: [n] or [n, F] of numbers or text"
                )
            if name not in self._streams:
                # numbered: two names may look the same when made safe
                safe = re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:100]
                self._streams[name] = _Stream(self._partial / f"{len(self._streams):02d}.{safe}.npy", rows)
            self._streams[name].append(name, rows)

    def append_all(self, name: str, array: Array, step: int, index: Array | None = None) -> None:
        """Add an array that may be mapped, or its rows `index`, `step` rows at a time."""
        self.append({name: array[:0]})
        for start in range(0, len(array if index is None else index), step):
            at = slice(start, start + step)
            self.append({name: array[at] if index is None else array[index[at]]})

    def close(self) -> None:
        """Finish the files and put the folder in its place."""
        columns = {name: vars(stream.close()) for name, stream in self._streams.items()}
        with (self._partial / MANIFEST).open("w", encoding="utf-8") as file:
            json.dump({"format": FORMAT, "columns": columns}, file, indent=1, ensure_ascii=False)
        os.replace(self._partial, self.folder)


# ------------------------------------------------------------------------------------------------ reading


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path}: {what}; the prepared data are incomplete or were altered: prepare again")


def read_manifest(folder: Path | str) -> dict[str, Column]:
    """The columns of a folder by name, in the order in which they were first written."""
    path = Path(folder) / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise _damaged(path, "there is no such file") from None
    except UnicodeDecodeError:
        raise _damaged(path, "not UTF-8 text") from None
    try:
        manifest: Any = json.loads(text)
        if manifest["format"] != FORMAT:
            raise _damaged(path, f"format is {manifest['format']!r}, this version reads {FORMAT!r}")
        columns = {
            str(name): Column(str(c["file"]), str(c["dtype"]), tuple(int(n) for n in c["shape"]), str(c["xxh3"]))
            for name, c in manifest["columns"].items()
        }
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, f"not a manifest of columns ({type(error).__name__}: {error})") from None
    for name, column in columns.items():
        if (
            not _DTYPE.fullmatch(column.dtype)
            or Path(column.file).name != column.file
            or min(column.shape, default=-1) < 0
        ):
            raise _damaged(path, f"column {name!r} is described as {vars(column)}")
    return columns


def read_columns(folder: Path | str) -> dict[str, Array]:
    """Open every array of a folder, mapped into memory and read-only: milliseconds, whatever the size.

    Sizes and headers are checked here, contents by `verify`. Raises UserError that names the file.
    """
    arrays: dict[str, Array] = {}
    for name, column in read_manifest(folder).items():
        path, dtype = Path(folder) / column.file, np.dtype(column.dtype)
        size = int(np.prod(column.shape, dtype=np.int64)) * dtype.itemsize
        try:
            with path.open("rb") as file:
                head, found = file.read(HEADER), os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            raise _damaged(path, "there is no such file") from None
        if found != HEADER + size:
            raise _damaged(path, f"has {found:,} bytes, not {HEADER + size:,}")
        if head != _header(column.dtype, column.shape):
            raise _damaged(path, f"its header is not that of {column.dtype} {list(column.shape)}")
        if size:
            arrays[name] = np.memmap(path, dtype=dtype, mode="r", offset=HEADER, shape=column.shape)
        else:  # nothing to map
            arrays[name] = np.empty(column.shape, dtype=dtype)
    return arrays


def verify(folder: Path | str) -> None:
    """Read every byte and compare with the hashes of the manifest. Raises UserError that names the first bad file."""
    arrays = read_columns(folder)
    for name, column in read_manifest(folder).items():
        content = xxhash.xxh3_128()
        rows = arrays[name]
        step = max(1, (1 << 24) // max(1, rows[:1].nbytes))  # 16 MiB at a time
        for start in range(0, len(rows) if rows.size else 0, step):
            content.update(rows[start : start + step].view(np.uint8).reshape(-1).data)
        if content.hexdigest() != column.xxh3:
            raise _damaged(
                Path(folder) / column.file, f"its content hashes to {content.hexdigest()}, not {column.xxh3}"
            )


# ------------------------------------------------------------------------------------------------ blocks


def narrow(ids: Array) -> Array:
    """Ids as int32: half the disk and half the page cache. Raises UserError where they do not fit."""
    if ids.dtype != np.int32 and ids.size and (ids.min() < 0 or ids.max() > np.iinfo(np.int32).max):
        raise UserError(
            f"ids from {ids.min()} to {ids.max()}: a table holds at most 2,147,483,647 rows; hash into fewer"
        )
    return ids.astype(np.int32, copy=False)


def block_arrays(block: Block[Array], prefix: str = "") -> dict[str, Array]:
    """A block as named arrays: "ids" and "numbers", and per list column x "x.index", "x.ids", "x.weights" (if it has
    any), "x.segments", "x.lengths"; ids as int32. `prefix` is put before each name."""
    arrays = {f"{prefix}ids": narrow(block.ids), f"{prefix}numbers": block.numbers}
    for name, lists in block.lists.items():
        arrays |= {f"{prefix}{name}.index": lists.index, f"{prefix}{name}.ids": narrow(lists.ids)}
        if lists.weights is not None:
            arrays[f"{prefix}{name}.weights"] = lists.weights
        arrays |= {f"{prefix}{name}.segments": lists.segments, f"{prefix}{name}.lengths": lists.lengths}
    return arrays


def block_of(arrays: Mapping[str, Array], prefix: str = "") -> Block[Array]:
    """The inverse of `block_arrays`, copying nothing: ids stay int32 (`take_block` widens what it takes)."""
    inside = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    lists = {}
    for name in [n.removesuffix(".index") for n in inside if n.endswith(".index")]:
        index, ids, segments, lengths = (inside[f"{name}.{part}"] for part in ("index", "ids", "segments", "lengths"))
        lists[name] = Lists(index, ids, inside.get(f"{name}.weights"), segments, lengths)
    return Block(inside["ids"], inside["numbers"], lists)


def without_copies(lists: Lists[Array]) -> Lists[Array]:
    """The same rows with equal lists (ids, ranks and weights) stored once; lists that no row has are dropped."""
    starts = np.cumsum(lists.lengths) - lists.lengths
    entries = lists.ids.astype(np.int64)
    if lists.weights is not None:
        entries = np.column_stack([entries, lists.weights.view(np.int32)])  # bits: NaN equals itself
    same_as = np.arange(len(lists.lengths))
    for length in np.unique(lists.lengths):  # a loop over lengths, of which there are few
        these = np.flatnonzero(lists.lengths == length)
        if length == 0:
            same_as[these] = these[0]
            continue
        rows = entries[flatten(starts[these], starts[these] + length)[0]].reshape(len(these), -1)
        _, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        same_as[these] = these[first[inverse.reshape(-1)]]
    return take_lists(replace(lists, index=same_as[lists.index]), np.arange(len(lists.index)))
