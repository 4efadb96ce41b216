"""Where rows come from: Parquet, CSV, JSON-lines (these packed too) and Arrow files, or any Polars frame, read lazily."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from finerank.data import csv, jsonl
from finerank.data.lines import refuse_header
from finerank.errors import UserError, nearest
from finerank.runtime.values import shown
from finerank.schema import SECOND

TimeUnit = Literal["s", "ms", "us"]
Packing = Literal["uncompressed", "gzip", "zstd"]
UNITS = {"s": SECOND, "ms": SECOND // 1_000, "us": 1}
LAST = 253_402_300_800 * SECOND  # the end of the year 9999; later times come of a wrong unit
LOOKED_AT = 10_000
"""Lines of a file of text that tell the types of its columns."""

_DAY, _CLOCK, _ZONE = "[0-9]{4}-[0-9]{2}-[0-9]{2}", "[0-9]{2}:[0-9]{2}", "(Z|[+-][0-9]{2}(:?[0-9]{2})?)"
_SECONDS, _FRACTION = ":[0-9]{2}", r"\.[0-9]{1,9}"
_ISO = (  # what a text looks like (Polars alone would take 2023-1-5 too), and its format: the fast ones apart
    (_DAY, "%Y-%m-%d"),
    (f"{_DAY} {_CLOCK}", "%Y-%m-%d %H:%M"),
    (f"{_DAY} {_CLOCK}{_SECONDS}", "%Y-%m-%d %H:%M:%S"),
    (f"{_DAY} {_CLOCK}{_SECONDS}{_FRACTION}", "%Y-%m-%d %H:%M:%S%.f"),
    (f"{_DAY} {_CLOCK}{_ZONE}", "%Y-%m-%d %H:%M%#z"),
    (f"{_DAY} {_CLOCK}{_SECONDS}({_FRACTION})?{_ZONE}", "%Y-%m-%d %H:%M:%S%.f%#z"),
)

_MONTH_DAY = "(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])"
_HOUR, _SIXTY = "([01][0-9]|2[0-3])", "[0-5][0-9]"
DIGITS = (
    f"(19|20)[0-9]{{2}}{_MONTH_DAY}({_HOUR}({_SIXTY}({_SIXTY})?)?)?"
    f"|[0-9]{{2}}{_MONTH_DAY}({_HOUR})?"  # with minutes it would have as many digits as seconds since 1970
)
"""What a date written in digits alone looks like, 20231104 or 2023110422: no number of seconds."""

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_JSON = (".jsonl", ".ndjson")
_TEXT = (*_SEPARATORS, *_JSON)
_SUFFIXES = (".parquet", *_TEXT, ".arrow", ".feather", ".ipc")
_PACKED: Mapping[str, Packing] = {".gz": "gzip", ".zst": "zstd"}
"""Behind the suffix of a file of text. Reading goes by how the file begins, writing by this."""
KINDS = f"{', '.join(_SUFFIXES)}; files of text packed too ({', '.join('.csv' + end for end in _PACKED)})"
"""What names of files may end with."""
WRITTEN = f".parquet, {', '.join(_TEXT)}; files of text packed too ({', '.join('.csv' + end for end in _PACKED)})"
"""The same of files that `sink` writes."""


def scan(path: Path | str, text: Collection[str] = ()) -> pl.LazyFrame:
    """A file, or a pattern such as `logs/*.parquet`, as a lazy frame.

    text  columns to read as they stand when the file is one of text, so that "007" stays "007": ids of all kinds
    Raises UserError for a file that is not there, of an unknown kind or not readable as what its name says.
    """
    path = Path(path)
    suffix = _kind(path)
    if suffix not in _SUFFIXES:
        raise UserError(f"{path}: cannot tell what it holds from its name; accepted: {KINDS}")
    if not path.exists() and not glob.glob(str(path), recursive=True):
        raise UserError(f"{path}: no such file; paths in a recipe are relative to the recipe's folder")
    if path.is_dir() and not any(path.iterdir()):
        raise UserError(f"{path}: is an empty folder; name a file, or a folder that holds {suffix[1:]} files")
    try:
        if suffix == ".parquet":
            frame = pl.scan_parquet(path, extra_columns="ignore")  # that later files of a pattern have
        elif suffix in _SEPARATORS:
            separator = _SEPARATORS[suffix]
            files = files_of(path)
            names = pl.scan_csv(path, separator=separator, infer_schema=False).collect_schema().names()
            refuse_header(path, names, files, separator)
            plain = csv.numbered(path, separator, names, text, LOOKED_AT) if path.is_file() else None
            if plain is None:
                as_text = {name: pl.String for name in names if name in text}
                frame = pl.scan_csv(path, separator=separator, schema_overrides=as_text, infer_schema_length=LOOKED_AT)
            if path.is_file():  # its types are known now, and need not be looked for again when it is read
                schema = frame.collect_schema() if plain is None else plain
                frame = pl.scan_csv(path, separator=separator, schema=schema)
            frame = csv.quick(frame, files, separator)
        elif suffix in _JSON:
            frame = jsonl.read(path, files_of(path), text, LOOKED_AT)
        else:
            frame = pl.scan_ipc(path)
        frame.collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path}: not readable as {suffix[1:]}: {_why(error)}") from error
    return frame


def _kind(path: Path) -> str:
    """The suffix that tells what a file holds: ".csv" of clicks.csv.gz too. What is no text is never packed as a whole."""
    suffix, inner = path.suffix.lower(), Path(path.stem).suffix.lower()
    return inner if suffix in _PACKED and inner in _TEXT else suffix


def can_write(path: Path) -> bool:
    """Whether `sink` knows what to write from a name."""
    return _kind(path) in (".parquet", *_TEXT)


def files_of(path: Path) -> list[Path]:
    """The files that a name, a folder or a pattern stands for; none where nothing is there."""
    found = [path] if path.exists() else [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
    inside = [sorted(one.rglob("*")) if one.is_dir() else [one] for one in found]
    # a pattern may match a folder and what lies in it
    return list(dict.fromkeys(file for files in inside for file in files if file.is_file()))


def collect(frame: pl.LazyFrame, columns: Iterable[str], where: str) -> pl.DataFrame:
    """These columns of a frame, in memory. Raises UserError for a column that is not there, or rows that do not parse."""
    columns = _checked(frame, columns, where)
    try:
        return frame.select(columns).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(columns, where, error) from error


def blocks(frame: pl.LazyFrame, columns: Iterable[str], rows: int, where: str) -> Iterator[pl.DataFrame]:
    """The same, `rows` rows at a time and in order: read once, in memory of some blocks."""
    columns = _checked(frame, columns, where)
    batches = frame.select(columns).collect_batches(chunk_size=rows, maintain_order=True)
    while True:
        try:
            batch = next(batches, None)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise _unreadable(columns, where, error) from error
        if batch is None:
            return
        yield batch
        del batch  # its memory is for the next one


def _checked(frame: pl.LazyFrame, columns: Iterable[str], where: str) -> list[str]:
    columns = list(dict.fromkeys(columns))
    names = frame.collect_schema().names()
    for column in columns:
        if column not in names:
            raise UserError(f"{where}: no column {column!r}; {nearest(column, names)}")
    return columns


def _unreadable(columns: list[str], where: str, error: Exception) -> UserError:
    return UserError(f"{where}: reading {columns} failed: {_why(error)}")


def _why(error: Exception) -> str:
    """What Polars says, less its advice to programmers, and the remedy."""
    said = re.sub(r",? (hint: |consider passing ).*", "", _first_line(error))
    unlike = ("data type mismatch", "did not find column", "schema names differ", "schema lengths differ")
    if any(words in said for words in unlike):
        return f"{said}; the files differ: write the same columns, of the same types and in one order, into all"
    return f"{said}; is the file whole?"


def sink(frame: pl.LazyFrame, path: Path, name: Path | None = None) -> None:
    """Write a frame as its name says (see `can_write`), a piece at a time.

    name   the name that the file will have, if it is written under another one
    Raises OSError for a failure of the disk, which Polars hides in a text, and UserError for rows that cannot be read.
    """
    name = name or path
    kind = _kind(name)
    packed: Packing = _PACKED.get(name.suffix.lower(), "uncompressed")
    try:
        if kind in _SEPARATORS:
            frame.sink_csv(path, separator=_SEPARATORS[kind], compression=packed, check_extension=False)
        elif kind in _JSON:
            frame.sink_ndjson(path, compression=packed, check_extension=False)
        else:
            frame.sink_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise UserError(
                f"{path}: cannot be written: {_first_line(error)}; are the files it is made of whole?"
            ) from error
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error


def iso_times(text: pl.Expr) -> pl.Expr:
    """ISO 8601 texts, the year first, as datetimes in UTC; null for every other text.

    Each text by itself: of a whole column Polars would guess one format, and read 05/04/2023 as the fifth of April.
    """
    text = text.str.replace("T", " ", literal=True)
    found = []
    for looks, form in _ISO:
        alike = pl.when(text.str.contains(f"^{looks}$")).then(text)
        found.append(alike.str.to_datetime(form, time_unit="us", strict=False).dt.replace_time_zone(None))
    return pl.coalesce(found)


def write_times(bad: object) -> str:
    """What a message says of a value that is no time: the remedy."""
    if isinstance(bad, str) and re.fullmatch("[0-9]+", bad) and not re.fullmatch(DIGITS, bad):
        return "these are texts: make whole numbers of the column"
    return "write them as 2023-11-04 22:17"


def microseconds(column: pl.Series, unit: TimeUnit, where: str) -> np.ndarray:
    """A time column as int64 microseconds: dates and datetimes as they are, whole numbers in `unit`, ISO texts parsed."""
    if column.null_count():
        raise UserError(f"{where}: {column.null_count()} rows have no time in column {column.name!r}; drop them first")
    if column.dtype.is_integer() or column.dtype.is_float():
        values, most = column.to_numpy(), LAST // UNITS[unit]
        if column.dtype.is_float() and (not np.isfinite(values).all() or (values != np.floor(values)).any()):
            raise UserError(
                f"{where}: column {column.name!r} has times with a fraction; give whole {unit} or datetimes"
            )
        far = values[(values > most) | (values < -most)]
        if len(far):
            raise UserError(
                f"{where}: column {column.name!r} holds {far[0]}, which in {unit} is beyond the year 9999; "
                f"is the unit right? accepted for keys.time_unit: {', '.join(UNITS)}"
            )
        return values.astype(np.int64) * UNITS[unit]
    if column.dtype == pl.String:
        parsed = column.to_frame().select(iso_times(pl.first())).to_series()
        if parsed.null_count():
            bad = column.filter(parsed.is_null())[0]
            raise UserError(
                f"{where}: column {column.name!r} holds {shown(bad)}; accepted: numbers, datetimes, ISO 8601 texts; "
                f"{write_times(bad)}"
            )
        column = parsed
    if column.dtype == pl.Date or isinstance(column.dtype, pl.Datetime):
        return column.cast(pl.Datetime("us")).to_physical().to_numpy()
    raise UserError(
        f"{where}: column {column.name!r} is {column.dtype}; accepted for times: integers, dates, datetimes"
    )


def whole_numbers(column: pl.Series, where: str) -> np.ndarray:
    """A column of whole numbers as int64 [n]. Raises UserError for anything else, and for one that lacks some."""
    values = column.cast(pl.Int64, strict=False) if column.dtype.is_integer() else column.clear(1)
    if values.null_count():
        raise UserError(
            f"{where}: column {column.name!r} is {column.dtype} or has nulls or numbers from 2^63 on; accepted: whole numbers"
        )
    return values.to_numpy()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
