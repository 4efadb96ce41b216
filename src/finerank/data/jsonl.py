"""A file of JSON lines as a lazy frame: one object a line, its keys the columns, its arrays lists.

Types are settled here and not by Polars, which fails where the kinds of a column's values differ and does not say on which
line, and which loses in silence the entries of lists whose first ones are all empty. Then Polars reads; where it refuses, or
would take an array for a text, the lines are gone through for what to say.

    true, false               Boolean    whole numbers of int64     Int64
    numbers                   Float64    arrays                     List of what they hold
    nulls alone               Null, or text if more lines follow
    objects, and all others   text (an object as JSON); empty arrays hold texts
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, cast

import polars as pl
from polars.io.plugins import register_io_source

from finerank.data.lines import opened, refuse_encoding
from finerank.errors import UserError

_INT64 = range(-(2**63), 2**63)
_HOLDS = {pl.Int64: "whole numbers of 64 bits", pl.Float64: "numbers", pl.Boolean: "true and false", pl.String: "texts"}


def read(path: Path, files: Sequence[Path], text: Collection[str], looked_at: int) -> pl.LazyFrame:
    """The rows of these files, which `path` stands for. A column that a line does not have is null there.

    text       columns to read as text, so that ids of 64 bits and more are exact: lists of texts where they hold arrays
    looked_at  lines that tell what the columns are
    Raises UserError for a line among these that is no JSON object, or of a column with arrays that is none; others are told
    when they are read.
    """
    schema = _settled(path, files, text, looked_at)
    frame = pl.scan_ndjson(path, schema=schema)
    checked = False

    def check() -> None:
        """Whether what looks like an array in a column of texts is one. Once is enough."""
        nonlocal checked
        if not checked:
            refuse(files, schema, looked_at)
        checked = True

    def rows(
        columns: list[str] | None, predicate: pl.Expr | None, n: int | None, batch: int | None
    ) -> Iterator[pl.DataFrame]:
        """What Polars asks of a source."""
        wanted = frame if columns is None else frame.select(columns)
        try:
            for part in (wanted if n is None else wanted.head(n)).collect_batches(maintain_order=True):
                if any(_like_arrays(column) for column in part.get_columns()):
                    check()
                yield part if predicate is None else part.filter(predicate)
        except (pl.exceptions.PolarsError, OSError):
            refuse(files, schema, looked_at)
            raise

    return register_io_source(rows, schema=schema, is_pure=True)


def refuse(files: Sequence[Path], schema: pl.Schema, looked_at: int) -> None:
    """Raises UserError for the first line that is no JSON object, or whose value is not of its column's type."""
    for path in files:
        for number, found in _objects(path):
            for name, value in found.items():
                dtype = schema.get(name)
                if dtype is None or _fits(value, dtype):
                    continue
                inner = _inner(dtype) if isinstance(dtype, pl.List) else dtype
                holds = _HOLDS[type(inner)]
                raise UserError(
                    f"{path}: line {number:,}: {name!r} holds {_short(value)}, and the first {looked_at:,} lines hold "
                    f"{f'arrays of {holds}' if dtype is not inner else holds} there; accepted: one kind of value in all "
                    "lines. Write it alike, or null"
                )


def _settled(path: Path, files: Sequence[Path], text: Collection[str], looked_at: int) -> pl.Schema:
    """The types of the columns, in the order in which the lines name them."""
    kinds: dict[str, set[type]] = {}  # of values, or of entries of arrays
    arrays: dict[str, bool] = {}
    lines = ((file, number, found) for file in files for number, found in _objects(file))
    seen = 0
    for file, number, found in islice(lines, looked_at):
        seen += 1
        for name, value in found.items():
            of = kinds.setdefault(name, set())
            if value is None:
                continue
            several = isinstance(value, list)
            if arrays.setdefault(name, several) != several:
                raise UserError(
                    f"{file}: line {number:,}: {name!r} holds {_short(value)}, and lines before hold "
                    f"{'arrays' if not several else 'no arrays'} there; accepted: arrays in all lines or in none. Write one "
                    "value as an array of one, and none as [] or null"
                )
            of.update(_kind(entry) for entry in (value if several else (value,)) if entry is not None)
    if not kinds:
        raise UserError(f"{path}: not readable as JSON lines: no line has a key; is the file whole?")
    schema = pl.Schema()
    for name, of in kinds.items():
        dtype: pl.DataType = pl.String() if name in text else _type(of)
        if name not in arrays and seen < looked_at:  # null in all lines: what reads lists takes it too
            dtype = pl.Null()
        schema[name] = pl.List(dtype) if arrays.get(name) else dtype
    return schema


def _kind(value: Any) -> type:
    return object if type(value) is int and value not in _INT64 else type(value)


def _type(kinds: set[type]) -> pl.DataType:
    if kinds == {bool}:
        return pl.Boolean()
    if kinds == {int}:
        return pl.Int64()
    return pl.Float64() if kinds and kinds <= {int, float} else pl.String()


def _fits(value: Any, dtype: pl.DataType) -> bool:
    """Whether Polars reads a value as what it is. Anything but an array may be a text, and within arrays anything."""
    if value is None:
        return True
    if isinstance(dtype, pl.List):
        inner = _inner(dtype)
        return isinstance(value, list) and (inner == pl.String or all(_fits(entry, inner) for entry in value))
    if dtype == pl.String:
        return not isinstance(value, list)
    if dtype == pl.Float64:
        return type(value) in (int, float)
    return _kind(value) is (int if dtype == pl.Int64 else bool)


def _inner(dtype: pl.List) -> pl.DataType:
    return cast(pl.DataType, dtype.inner)  # as `_settled` made it


def _like_arrays(column: pl.Series) -> bool:
    return column.dtype == pl.String and bool(column.str.starts_with("[").any())


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file with the numbers of their lines. Raises UserError for a line that is none, but for empty ones."""
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                found = json.loads(line.decode(), parse_constant=_no_constant)
            except UnicodeDecodeError:
                refuse_encoding(path)
                raise  # it told
            except json.JSONDecodeError as error:
                what = f"is not JSON ({error.msg}, character {error.pos + 1:,})"
                raise _no_object(path, number, line, what) from error
            except (ValueError, RecursionError) as error:  # of our own, or of arrays in arrays in arrays
                raise _no_object(path, number, line, f"is not JSON ({error})") from error
            if not isinstance(found, dict):
                raise _no_object(path, number, line, f"holds {_short(found)}")
            yield number, found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON: write null")


def _no_object(path: Path, number: int, line: bytes, what: str) -> UserError:
    remedy = "mend or remove the line"
    if number == 1 and line.lstrip().startswith(b"["):
        remedy = "of one array of objects, jq -c '.[]' makes lines"
    elif number == 1 and line.strip() == b"{":
        remedy = "of objects over several lines, jq -c . makes lines"
    elif line.startswith(b"\xef\xbb\xbf"):
        remedy = "save the file without a byte order mark"
    elif not line.endswith(b"\n"):
        remedy = "is the file whole?"
    return UserError(f"{path}: line {number:,} {what}; accepted: one JSON object in every line; {remedy}")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:60] + "..."
