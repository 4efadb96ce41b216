"""A CSV file as a lazy frame that a compiled loop reads where the file is plain, and Polars where it is not.

The two give the same rows. The file is cut into blocks of whole lines, which are read side by side; from the first block on
that is not plain (`kernels.csv`), Polars reads: so whatever is odd about a file, and every complaint, is for Polars to say.
"""

from __future__ import annotations

import mmap
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
from polars.io.plugins import register_io_source

from finerank.kernels import csv as loops

BYTES = 1 << 21
"""Of lines that are read at a time."""

THREADS = min(8, os.cpu_count() or 1)


def quick(frame: pl.LazyFrame, path: Path, separator: str) -> pl.LazyFrame:
    """The same rows, read faster where it can be. frame: Polars' own scan of the file, its types settled."""
    if not loops.fits(separator):
        return frame
    schema = frame.collect_schema()
    file = _File(path, separator, schema)

    def read(
        columns: list[str] | None, predicate: pl.Expr | None, rows: int | None, batch: int | None
    ) -> Iterator[pl.DataFrame]:
        """What Polars asks of a source: these columns, of the first rows, those of them that a predicate holds for."""
        wanted = schema.names() if columns is None else columns
        for part in _first(_rows(frame, file, wanted), rows):
            yield part if predicate is None else part.filter(predicate)

    return register_io_source(read, schema=schema, is_pure=True)


def _rows(frame: pl.LazyFrame, file: _File, columns: list[str]) -> Iterator[pl.DataFrame]:
    """These columns of all rows, in order."""
    done = 0
    if columns and all(type(file.schema[name]) in loops.KINDS for name in columns):
        for part in file.blocks(columns):
            if part is None:
                break
            done += part.height
            yield part
        else:
            return
    for part in frame.select(columns).collect_batches(maintain_order=True):  # no slice: Polars counts lines for it, not rows
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

    def blocks(self, columns: list[str]) -> Iterator[pl.DataFrame | None]:
        """These columns, a block of lines at a time; None: from here on the lines are not plain."""
        with self.path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start = self._behind_header(mapped)
        if start is None:
            yield None
            return
        waiting: deque[Future[pl.DataFrame | None]] = deque()
        with ThreadPoolExecutor(THREADS) as pool:
            for text, size in _pieces(mapped, start):
                waiting.append(pool.submit(self._read, text, size, columns))
                if len(waiting) > THREADS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _behind_header(self, text: mmap.mmap) -> int | None:
        """Where the second line begins; None if the first is not what it should be."""
        end = text.find(b"\n") + 1
        line = text[: end or len(text)].removesuffix(b"\n").removesuffix(b"\r")
        found = [
            name[1:-1] if len(name) > 1 and name[:1] == name[-1:] == b'"' else name
            for name in line.split(self.separator.encode())
        ]
        return end or None if found == [name.encode() for name in self.schema] else None

    def _read(self, text: np.ndarray, size: int, columns: list[str]) -> pl.DataFrame | None:
        names = [name if name in columns else None for name in self.schema]
        found = loops.read(text, size, self.separator, names, self.schema.dtypes())
        return None if found is None else found[columns]


def _pieces(text: mmap.mmap, start: int) -> Iterator[tuple[np.ndarray, int]]:
    """Blocks of whole lines from `start` on, as `kernels.csv.read` takes them."""
    whole = np.frombuffer(text, dtype=np.uint8)
    while start < len(text):
        end = text.rfind(b"\n", start, start + BYTES) + 1
        if not end and start + BYTES < len(text):  # a long line
            end = text.find(b"\n", start + BYTES) + 1
        end = end or len(text)
        if end + loops.SPARE <= len(text):
            yield whole[start:], end - start
        else:  # the last one, with all that it may lack
            rest = text[start:end]
            rest += b"" if rest.endswith(b"\n") else b"\n"
            yield np.frombuffer(rest + bytes(loops.SPARE), dtype=np.uint8), len(rest)
        start = end
