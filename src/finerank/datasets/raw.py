"""Raw public files: finding them, and reading delimited text in which any line may be damaged.

A file is read as lines and split here, because a CSV reader either stops at the first bad line or drops it in silence.
All of it is lazy: a file of 24 GB passes through in pieces.

Empty lines are no lines here: they are neither read nor counted.
"""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import polars as pl

from finerank.errors import UserError, nearest

Columns = dict[str, type[pl.DataType]]
NOWHERE = "\n"  # as a separator: no line holds it, so that the whole line is one field, whatever bytes it has
MALFORMED, CUT = "malformed", "cut"
LAST_LINE = 1 << 24  # bytes from the end of a file in which its last line lies


def commented(*sentences: str) -> str:
    """Lines of comment, to head a recipe."""
    return "".join(f"# {sentence}\n" for sentence in sentences)


def find(folder: Path, *patterns: str) -> Path:
    """The one file in `folder` that a pattern matches, as it is or with `.gz`; the first pattern that matches counts.

    Raises UserError when no file matches, or several do.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name the folder that holds {patterns[0]}")
    for pattern in patterns:
        found = sorted({*folder.glob(pattern), *folder.glob(f"{pattern}.gz")})
        if len(found) > 1:
            raise UserError(f"{folder}: holds {found[0].name} and {found[1].name}; leave one file for {pattern}")
        if found:
            return found[0]
    there = sorted(path.name for path in folder.iterdir())
    raise UserError(f"{folder}: no file {' or '.join(patterns)} (.gz will do); the folder holds {there[:8]}")


def holds(folder: Path, *names: str) -> bool:
    """Whether all these files are there, each as it is or with `.gz`."""
    return all((folder / name).is_file() or (folder / f"{name}.gz").is_file() for name in names)


def raw_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file with their ends, for what is no delimited text; gzip is undone, a byte order mark is left out.

    Raises UserError for a damaged gzip file.
    """
    with cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            if first := file.readline().removeprefix(codecs.BOM_UTF8):
                yield first
            yield from file
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"{path}: cannot be unpacked ({error}); is the file whole?") from error


def first_line(path: Path) -> str:
    """The first line that is not empty, without its end; "" if there is none. Raises UserError for UTF-16."""
    for line in raw_lines(path):
        if b"\x00" in line:
            raise UserError(f"{path}: the first line is no UTF-8 text (it holds zero bytes); save the file as UTF-8")
        if text := line.decode("utf-8", "replace").rstrip("\r\n"):
            return text
    return ""


def lines(path: Path) -> pl.LazyFrame:
    """One column `line`, without line ends (LF or CR LF) and without empty lines. Bytes that are no UTF-8 become U+FFFD.

    Raises UserError for a damaged gzip file.
    """
    unfinished(path)
    return _scanned(path)


def _scanned(path: Path) -> pl.LazyFrame:
    frame = pl.scan_csv(
        path,
        has_header=False,
        separator=NOWHERE,
        quote_char=None,
        encoding="utf8-lossy",
        schema={"line": pl.String},
        raise_if_empty=False,
    )
    return frame.with_columns(pl.col("line").str.strip_chars_end("\r")).filter(pl.col("line").str.len_bytes() > 0)


def fields(
    path: Path,
    columns: Mapping[str, type[pl.DataType]],
    separator: str = ",",
    header: bool = False,
    optional: Collection[str] = (),
    rest: str | None = None,
) -> pl.LazyFrame:
    """The columns of delimited text without quoting, typed, and `fault`: null, "malformed" or "cut".

    columns   name -> type, in the file's order; with a header they are found by name (blanks around names are ignored)
    optional  columns that may be empty; they are null then
    rest      one of the columns: it and all that follow in the file come as one text, separators and all
    A line is malformed if it has another number of fields, a number that does not parse, or nothing where something must be.
    It is cut if it is the file's last line besides and has no line end: a download or a copy broke off.
    """
    last = unfinished(path)  # first, for it tells of a damaged gzip file
    frame, names = _scanned(path), list(columns)
    if header:
        first = first_line(path)
        names = [name.strip() for name in first.split(separator)] if first else []
        for column in columns:
            if column not in names:
                raise UserError(f"{path}: no column {column!r} in the first line; {nearest(column, names)}")
        frame = frame.slice(1)
    parts = [f"·{i}" for i in range(len(names) if rest is None else names.index(rest) + 1)]
    split = frame.select(
        "line",
        pl.col("line").str.splitn(separator, len(parts)).struct.rename_fields(parts).alias("·parts"),
        whole=pl.col("line").str.count_matches(separator, literal=True) == len(names) - 1,
    ).unnest("·parts")
    texts = split.select(
        "line",
        "whole",
        **{f"·{name}": pl.col(parts[names.index(name)]).str.strip_chars() for name in columns},
    )
    # when-then rather than `replace`, which Polars would not stream
    values = {
        name: pl.when(pl.col(f"·{name}") != "").then(pl.col(f"·{name}")).cast(kind, strict=False)
        for name, kind in columns.items()
    }
    bad = ~pl.col("whole")
    for name, value in values.items():
        bad |= value.is_null() if name not in optional else value.is_null() & (pl.col(f"·{name}") != "")
    cut = pl.when(pl.col("line") == last).then(pl.lit(CUT)).otherwise(pl.lit(MALFORMED))
    return texts.select(**values, fault=pl.when(bad).then(cut))


def unfinished(path: Path) -> str:
    """The last line of a file if it has no line end, else "". Raises UserError for a damaged gzip file."""
    with path.open("rb") as file:
        if path.suffix != ".gz":  # what is packed can only be read through
            file.seek(max(0, path.stat().st_size - LAST_LINE))
        try:
            last = deque(gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file, maxlen=1)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path}: cannot be unpacked ({error}); is the file whole?") from error
    return last[0].decode("utf-8", "replace").rstrip("\r") if last and not last[0].endswith(b"\n") else ""


def marked(frame: pl.LazyFrame, fault: str, where: pl.Expr) -> pl.LazyFrame:
    """The frame with a further `fault` for rows that have none yet. `where` counts as false where it is null."""
    faulty = pl.col("fault").is_null() & where.fill_null(False)
    return frame.with_columns(fault=pl.when(faulty).then(pl.lit(fault)).otherwise(pl.col("fault")))


def sound(frame: pl.LazyFrame) -> pl.LazyFrame:
    """The rows without a fault."""
    return frame.filter(pl.col("fault").is_null()).drop("fault")


def told(frame: pl.LazyFrame, what: str = "") -> dict[str, int]:
    """{"read": ..., "kept": ..., "<fault>": ...}: lines by what became of them; `what` is put before each name."""
    prefix = f"{what}: " if what else ""
    try:
        counted = frame.select("fault").group_by("fault").len().collect(engine="streaming")
    except pl.exceptions.PolarsError as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{prefix}the file is not of the form it should have: {first}; is it the right one?") from error
    by_fault: dict[str | None, int] = dict(counted.iter_rows())
    if not by_fault:
        raise UserError(f"{prefix}the file has no lines; is it the right one, and whole?")
    out = {f"{prefix}read": sum(by_fault.values()), f"{prefix}kept": by_fault.pop(None, 0)}
    if not out[f"{prefix}kept"]:
        why = ", ".join(f"{count:,} {fault}" for fault, count in sorted(by_fault.items(), key=str))
        raise UserError(
            f"{prefix}no line is left of {sum(by_fault.values()):,} ({why}); is it the right file, and whole?"
        )
    return out | {f"{prefix}{fault}": count for fault, count in sorted(by_fault.items(), key=str)}


def numbered(column: pl.Series) -> tuple[np.ndarray, pl.Series]:
    """(codes int64 [N], distinct values [V]): the values numbered by first appearance."""
    values = column.unique(maintain_order=True)
    lookup = pl.DataFrame({"value": values}).with_row_index("code")
    codes = pl.DataFrame({"value": column}).join(lookup, on="value", how="left", maintain_order="left")["code"]
    return codes.to_numpy().astype(np.int64), values


def ranks(values: np.ndarray) -> np.ndarray:
    """int64 [N]: how many earlier elements are equal. `ranks([5, 5, 3, 5])` is `[0, 1, 0, 2]`."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])) if len(values) else np.zeros(0, dtype=np.int64)
    out = np.empty(len(values), dtype=np.int64)
    out[order] = np.arange(len(values)) - np.repeat(first, np.diff(np.append(first, len(values))))
    return out
