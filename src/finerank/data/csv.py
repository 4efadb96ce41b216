"""A CSV file as a lazy frame that a compiled loop reads where the file is plain, and Polars where it is not.

The two give the same rows. The file is cut into blocks of whole lines, which are read side by side; from the first block on
that is not plain (`kernels.csv`), Polars reads: so whatever is odd about a file is for Polars to say, but for what it reads
without a word (`data.lines`).
"""

from __future__ import annotations

import mmap
import os
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.io.plugins import register_io_source

from finerank.data.lines import refuse_encoding, refuse_ragged
from finerank.kernels import csv as loops

BYTES = 1 << 22
"""Of lines that are read at a time."""

Piece: TypeAlias = tuple[NDArray[np.uint8], int]
"""Bytes, and how many of them are whole lines: see `kernels.csv.read`."""

THREADS = min(4, os.cpu_count() or 1)


def numbered(path: Path, separator: str, names: list[str], text: Collection[str], looked_at: int) -> pl.Schema | None:
    """The types of a file of whole numbers, but for columns to be read as text; None: ask Polars.

    looked_at   lines that Polars would look at, which may take it as long as it takes the loop to read the file
    """
    schema = pl.Schema({name: pl.String() if name in text else pl.Int64() for name in names})
    numbers = [name for name in names if name not in text]
    file = _File(path, separator, schema)
    first = next(file.pieces(), None) if numbers and loops.fits(separator) else None
    head = file.read(first, numbers)
    if head is None or head.height <= looked_at:
        return None
    return None if any(column.is_null().all() for column in head.head(looked_at // 2)) else schema


def quick(frame: pl.LazyFrame, paths: Sequence[Path], separator: str) -> pl.LazyFrame:
    """The same rows, read faster where it can be, and checked where it cannot. frame: Polars' own scan of the files.

    The loop reads one file, whose types are settled.
    """
    schema = frame.collect_schema()
    file = _File(paths[0], separator, schema) if len(paths) == 1 and loops.fits(separator) else None
    checked = False

    def check(rows: int | None) -> None:
        """What Polars would cut or fill in silence. Once is enough."""
        nonlocal checked
        for path in () if checked else paths:
            refuse_ragged(path, separator, rows)
        checked = checked or rows is None

    def read(
        columns: list[str] | None, predicate: pl.Expr | None, rows: int | None, batch: int | None
    ) -> Iterator[pl.DataFrame]:
        """What Polars asks of a source: these columns, of the first rows, those of them that a predicate holds for."""
        wanted = schema.names() if columns is None else columns
        try:
            parts = _rows(frame, file, wanted, THREADS if rows is None else 0, lambda: check(rows))
            for part in _first(parts, rows):
                yield part if predicate is None else part.filter(predicate)
        except pl.exceptions.ComputeError as error:
            if "utf-8" in str(error).lower():
                for path in paths:
                    refuse_encoding(path)
            raise

    return register_io_source(read, schema=schema, is_pure=True)


def _rows(
    frame: pl.LazyFrame, file: _File | None, columns: list[str], ahead: int, check: Callable[[], None]
) -> Iterator[pl.DataFrame]:
    """These columns of all rows, in order. check: called before Polars reads."""
    done = 0
    if file is not None and columns and all(type(file.schema[name]) in loops.KINDS for name in columns):
        for part in file.blocks(columns, ahead):
            if part is None:
                break
            done += part.height
            yield part
        else:
            return
    check()
    # no slice, for which Polars would count lines and not rows
    for part in frame.select(columns).collect_batches(maintain_order=True):
        yield part[done:] if done else part
        done = max(0, done - part.height)


def _first(parts: Iterator[pl.DataFrame], rows: int | None) -> Iterator[pl.DataFrame]:
    for part in parts:
        yield part if rows is None else part.head(rows)
        if rows is not None:
            rows -= part.height
            if rows <= 0:
                return


class _File:
    """A file of lines, the first of which names the columns of the schema."""

    def __init__(self, path: Path, separator: str, schema: pl.Schema) -> None:
        self.path, self.separator, self.schema = path, separator, schema

    def blocks(self, columns: list[str], ahead: int = THREADS) -> Iterator[pl.DataFrame | None]:
        """These columns, a block of lines at a time; None: from here on the lines are not plain.

        ahead   how many blocks are read before they are asked for
        """
        waiting: deque[Future[pl.DataFrame | None]] = deque()
        with ThreadPoolExecutor(THREADS) as pool:
            for piece in self.pieces():
                waiting.append(pool.submit(self.read, piece, columns))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def pieces(self) -> Iterator[Piece | None]:
        """The lines behind the header, some at a time; None: the header is not plain, or is of another file."""
        with self.path.open("rb") as file:
            text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        whole, start = np.frombuffer(text, dtype=np.uint8), self._behind_header(text)
        if start is None:
            yield None
            return
        while start < len(text):
            end = text.rfind(b"\n", start, start + BYTES) + 1
            if not end and start + BYTES < len(text):  # a long line
                end = text.find(b"\n", start + BYTES) + 1
            end = end or len(text)
            if end + loops.SPARE <= len(text):
                yield whole[start:], end - start
            else:  # the last ones, with all that they may lack
                rest = text[start:end]
                rest += b"" if rest.endswith(b"\n") else b"\n"
                yield np.frombuffer(rest + bytes(loops.SPARE), dtype=np.uint8), len(rest)
            start = end

    def read(self, piece: Piece | None, columns: list[str]) -> pl.DataFrame | None:
        """These columns of some lines; None: they are not plain."""
        if piece is None:
            return None
        names = [name if name in columns else None for name in self.schema]
        found = loops.read(*piece, self.separator, names, self.schema.dtypes())
        return None if found is None else found[columns]

    def _behind_header(self, text: mmap.mmap) -> int | None:
        """Where the second line begins."""
        end = text.find(b"\n") + 1
        line = text[: end or len(text)].removesuffix(b"\n").removesuffix(b"\r")
        found = [
            name[1:-1] if len(name) > 1 and name[:1] == name[-1:] == b'"' else name
            for name in line.split(self.separator.encode())
        ]
        return (end or len(text)) if found == [name.encode() for name in self.schema] else None
