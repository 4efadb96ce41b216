"""The fitted encoder and its per-request engine: raw values -> symbols and numbers.

What the training rows taught (symbol tables, statistics of numbers) is held here; `data.encode` fits it and is the bulk
engine over the same artefact. What each kind of value means is said once, in values.py, `Encoder.entry` and `scaled`,
which both engines call. Property tests prove the engines equal, bit for bit.

n rows · F single-id columns · C number columns · L distinct lists · M entries of all distinct lists
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from finerank.errors import UserError, nearest
from finerank.runtime.blocks import Block, Lists
from finerank.runtime.fields import (
    Field,
    age_table,
    declared_tables,
    fields_of,
    filler_of,
    is_weighted,
    rank_table,
    tag_and_rank,
    weight_separator,
)
from finerank.runtime.symbols import CutsTable, Int64s, SymbolTable, read_json, write_json
from finerank.runtime.values import canonical, cross_text, list_weights, number, shown, split_weight
from finerank.schema import (
    FIRST,
    SECOND,
    Bucketed,
    Columns,
    Cross,
    Feature,
    FittedTable,
    Growing,
    ListColumn,
    ListFeature,
    Numeric,
    Schema,
    Use,
    table_of,
)
from finerank.typed import build, plain
from finerank.widths import width_of

T = TypeVar("T")
Place: TypeAlias = Callable[[int], str]
"""Names row i in an error message."""


@dataclass(frozen=True, kw_only=True)
class NumberStats:
    """What the training rows taught about a numeric feature: it becomes (x - shift) / scale.

    missing        some training row lacked it, so that an indicator column `x?` follows it
    points, ranks  for transform = "powers": rising values, and the share of the training rows below each (a value's own
                   rows count half)
    """

    shift: float = 0.0
    scale: float = 1.0
    missing: bool = False
    points: tuple[float, ...] = ()
    ranks: tuple[float, ...] = ()


@dataclass(frozen=True)
class Encoder:
    """Everything that turns raw values into a `Block`. tables: by table name; numbers: by numeric feature's name."""

    schema: Schema
    tables: Mapping[str, SymbolTable]
    numbers: Mapping[str, NumberStats]

    def columns(self, block: str, use: Use = "input") -> Columns:
        """The column order of a block ("request", "candidate" or a history).

        A history whose events have times ends with the id column ("age", "<history>.age"), which is not in the blocks
        that the encoders make: the age depends on the row that looks back, see `age_ids`.
        """
        ids, numbers, lists = [], [], []
        for field in fields_of(self.schema, block, use):
            feature, name = field.feature, field.name
            if isinstance(feature, Numeric):
                numbers += [name, f"{name}²", f"√{name}"] if feature.transform == "powers" else [name]
                numbers += [f"{name}?"] if self.numbers[name].missing else []
            elif isinstance(feature, ListFeature):
                lists.append(
                    ListColumn(
                        name=name,
                        table=str(table_of(feature)),
                        ranks=rank_table(feature),
                        weighted=is_weighted(feature),
                        pooling=feature.pooling,
                    )
                )
            else:
                ids.append((name, str(table_of(feature))))
        if use == "input" and age_table(block) in self.tables:
            ids.append(("age", age_table(block)))
        return Columns(tuple(ids), tuple(numbers), tuple(lists))

    def fitted_tables(self, counts: Mapping[str, NDArray[np.int64]]) -> dict[str, FittedTable]:
        """What models need to know of each embedding table. counts: int64 per symbol, as the fitter gives them."""
        specs = declared_tables(self.schema)
        rows = {
            name: FIRST + spec.encoding.capacity if isinstance(spec.encoding, Growing) else self.tables[name].size
            for name, spec in specs.items()
        }
        fitted = {}
        for name, spec in specs.items():
            model = spec.like or name  # the table that says how wide it is, and how it starts
            dim, std = specs[model].dim, specs[model].std
            width = None if dim is None else width_of(dim, rows[model] - FIRST)
            fitted[name] = FittedTable(
                rows=rows[name],
                counts=counts[name],
                encoding=spec.encoding,
                dim=width,
                std=std,
                symbol=self.tables[name].lookup,
            )
        return fitted

    # -------------------------------------------------------------------------------------------- one request

    def request(self, values: Mapping[str, object], *, strict: bool = False) -> Block[NDArray[Any]]:
        """The request-level block, one row. values: by source column.

        strict   a column that is not there is an error; otherwise it is a missing value
        Raises UserError naming feature and value for a value of a wrong type.
        """
        return self._block("request", [values], lambda i: "request", strict)

    def candidates(self, rows: Sequence[Mapping[str, object]], *, strict: bool = False) -> Block[NDArray[Any]]:
        """The candidate-level block, n rows, from mappings by source column. Errors also name the candidate's index."""
        return self._block("candidate", rows, lambda i: f"candidate {i}", strict)

    def events(
        self, history: str, rows: Sequence[Mapping[str, object]], *, strict: bool = False
    ) -> Block[NDArray[Any]]:
        """The block of past events (without ages), from mappings by event column: `History.columns`, else the feature's."""
        self.schema.history(history)
        return self._block(history, rows, lambda i: f"history {history!r}, event {i}", strict)

    def _block(
        self, name: str, rows: Sequence[Mapping[str, object]], place: Place, strict: bool
    ) -> Block[NDArray[Any]]:
        for i, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise UserError(f"{place(i)}: got {shown(row)}; accepted: an object with a value per column")
        ids, numbers, lists = [], [], {}
        for field in fields_of(self.schema, name):
            feature = field.feature
            for column in field.columns if strict else ():
                for i, row in enumerate(rows):
                    if column not in row:
                        raise UserError(
                            f"{place(i)}: no {column!r}, which feature {feature.name!r} reads; {nearest(column, row)}"
                        )
            values = [[row.get(column) for row in rows] for column in field.columns]

            def where(i: int, name: str = feature.name) -> str:
                return f"{place(i)}: feature {name!r}"

            if isinstance(feature, Numeric):
                numbers += self.number_columns(feature, _floats(values[0], where), where)
            elif isinstance(feature, Bucketed):
                ids.append(self.cuts(feature).bucket(_floats(values[0], where)))
            elif isinstance(feature, ListFeature):
                lists[field.name] = self._lists(field, values, where)
            elif isinstance(feature, Cross):
                ids.append(self.table(feature).lookup_all(_each(cross_text, zip(*values, strict=True), where)))
            else:
                ids.append(self.table(feature).lookup_all(_each(canonical, values[0], where)))
        return block_from(len(rows), ids, numbers, lists)

    def _lists(self, field: Field, columns: list[list[object]], place: Place) -> Lists[NDArray[Any]]:
        feature = field.feature
        assert isinstance(feature, ListFeature)
        own, filler = weight_separator(feature), filler_of(feature)

        def known(text: str | None) -> str | None:
            """A value, or None for what fills up lists."""
            return None if text == filler else text

        def read(values: tuple[object, ...]) -> tuple[tuple[tuple[int, ...], ...], bytes]:
            """The symbols of each entry that is neither null nor padding, and the bytes of the weights."""
            texts = [known(canonical(item)) for item in list_items(values[0], feature.separator)]
            given: list[float | None] = []
            if own is not None:
                pairs = [split_weight(text, own) for text in texts]
                texts, given = [known(text) for text, _ in pairs], [weight for _, weight in pairs]
            elif len(values) > 1:
                column = weight_items(values[1], feature.separator)
                if len(column) != len(texts):
                    raise UserError(f"got {len(texts)} values but {len(column)} weights; give one weight per value")
                given = [number(weight) for weight in column]
            entries = [self.entry(feature, text, field.top) for text in texts]
            symbols = tuple(entry for entry in entries if entry is not None)
            if not is_weighted(feature):
                return symbols, b""
            weights = np.array([np.nan if w is None else w for w in given], dtype=np.float64)
            return symbols, list_weights(weights[[entry is not None for entry in entries]]).tobytes()

        distinct: dict[tuple[tuple[tuple[int, ...], ...], bytes], int] = {}
        index = [distinct.setdefault(key, len(distinct)) for key in _each(read, zip(*columns, strict=True), place)]
        width = 2 if rank_table(feature) else 1
        lengths = np.array([len(entries) for entries, _ in distinct], dtype=np.int64)
        weights = np.frombuffer(b"".join(w for _, w in distinct), dtype=np.float32).copy()
        return Lists(
            index=np.array(index, dtype=np.int64),
            ids=np.array([e for entries, _ in distinct for e in entries], dtype=np.int64).reshape(-1, width),
            weights=weights if is_weighted(feature) else None,
            segments=np.repeat(np.arange(len(lengths)), lengths),
            lengths=lengths,
        )

    # -------------------------------------------------------------------------------------------- shared by both engines

    def table(self, feature: Feature) -> SymbolTable:
        """The symbol table of a feature with ids."""
        return self.tables[str(table_of(feature))]

    def cuts(self, feature: Bucketed) -> CutsTable:
        """The cut points of a bucketed feature."""
        table = self.table(feature)
        assert isinstance(table, CutsTable)
        return table

    def entry(self, feature: ListFeature, text: str | None, top: int | None) -> tuple[int, ...] | None:
        """The symbols of one entry of a list: (value,), or (tag, rank) where ranks are embedded; None: to be dropped.

        text  canonical; top: of a segment, the greatest rank that it takes in
        """
        found = tag_and_rank(feature, text, top)
        if found is None:
            return None
        symbol = self.table(feature).lookup(found[0])
        return (symbol, FIRST + found[1]) if rank_table(feature) else (symbol,)

    def number_columns(self, feature: Numeric, x: NDArray[np.float64], place: Place) -> list[NDArray[np.float32]]:
        """The columns of a numeric feature and, if training rows lacked it, its indicator. x: [n], NaN where missing."""
        stats = self.numbers[feature.name]
        columns = powers(stats, x) if feature.transform == "powers" else [scaled(feature, stats, x, place)]
        return [*columns, np.isnan(x).astype(np.float32)] if stats.missing else columns

    # -------------------------------------------------------------------------------------------- files

    def save(self, folder: Path) -> None:
        """Write `encoder.json` and one folder per symbol table."""
        folder.mkdir(parents=True, exist_ok=True)
        for i, table in enumerate(self.tables.values()):  # by number: a table's name need not be a file's name
            table.save(folder / "tables" / f"{i:03d}")
        content = {"schema": plain(self.schema), "numbers": plain(self.numbers), "tables": list(self.tables)}
        write_json(folder / "encoder.json", content)

    @staticmethod
    def load(folder: Path) -> Encoder:
        """The encoder that `save` wrote. Raises UserError naming the file that is missing, truncated or altered."""
        path = folder / "encoder.json"
        content = read_json(path)
        schema = build(Schema, content["schema"], f"{path}: schema")
        tables = {name: SymbolTable.load(folder / "tables" / f"{i:03d}") for i, name in enumerate(content["tables"])}
        for name, table in tables.items():
            if table.table != name:
                raise UserError(f"{folder}: found the table {table.table!r} where {name!r} belongs; prepare again")
        return Encoder(schema, tables, build(dict[str, NumberStats], content["numbers"], f"{path}: numbers"))


def age_ids(encoder: Encoder, history: str, ages: NDArray[np.int64]) -> Int64s:
    """The age bucket of past events. ages: int64 [T], row time minus event time in microseconds, compared exactly."""
    cuts = np.array(encoder.schema.history(history).age_cuts, dtype=np.int64) * SECOND
    return (FIRST + np.searchsorted(cuts, ages, side="right")).astype(np.int64)


# ------------------------------------------------------------------------------------------------ the specification


def scaled(feature: Numeric, stats: NumberStats, x: NDArray[np.float64], place: Place) -> NDArray[np.float32]:
    """A numeric feature as the model sees it: [n] float64, NaN where missing -> float32, 0 where missing."""
    with np.errstate(over="ignore"):
        y = np.sign(x) * np.log1p(np.abs(x)) if feature.transform == "log1p" else (x - stats.shift) / stats.scale
        out: NDArray[np.float32] = y.astype(np.float32)
    if np.isfinite(out).all():  # one look at most columns
        return out
    out[np.isnan(x)] = 0.0
    bad = np.flatnonzero(~np.isfinite(out))
    if len(bad):
        i = int(bad[0])
        raise UserError(
            f"{place(i)}: {float(x[i])!r} is beyond float32 after transform = {feature.transform!r}; "
            'clean the column or use transform = "log1p"'
        )
    return out


def powers(stats: NumberStats, x: NDArray[np.float64]) -> list[NDArray[np.float32]]:
    """x~, x~² and √x~ of numbers, [n] each: linear between the stored points, 0 where missing.

    Written out in elementary operations, which IEEE 754 rounds in one way only: one row and many agree to the bit.
    """
    known = ~np.isnan(x)
    share = np.zeros(len(x))
    if len(stats.points) == 1:
        share[known] = stats.ranks[0]
    elif stats.points:
        points, ranks = np.array(stats.points), np.array(stats.ranks)
        inside = x[known].clip(points[0], points[-1])
        at = (np.searchsorted(points, inside, side="right") - 1).clip(max=len(points) - 2)
        part = (inside - points[at]) / (points[at + 1] - points[at])
        share[known] = ranks[at] + part * (ranks[at + 1] - ranks[at])
    return [y.astype(np.float32) for y in (share, share * share, np.sqrt(share))]


def block_from(
    n: int,
    ids: Sequence[NDArray[np.int64]],
    numbers: Sequence[NDArray[np.float32]],
    lists: Mapping[str, Lists[NDArray[Any]]],
) -> Block[NDArray[Any]]:
    """A block from its columns ([n] each), which may be none."""
    return Block(
        np.stack(ids, axis=1) if ids else np.empty((n, 0), dtype=np.int64),
        np.stack(numbers, axis=1) if numbers else np.empty((n, 0), dtype=np.float32),
        dict(lists),
    )


def _each(read: Callable[[Any], T], values: Iterable[object], place: Place) -> list[T]:
    """`read` of each value; an error says where."""
    out: list[T] = []
    try:
        for value in values:
            out.append(read(value))
    except UserError as error:
        raise UserError(f"{place(len(out))}: {error}") from None
    return out


def _floats(values: Sequence[object], place: Place) -> NDArray[np.float64]:
    """Numbers as float64, NaN where missing."""
    found = _each(number, values, place)
    return np.array([np.nan if x is None else x for x in found], dtype=np.float64)


def weight_items(value: object, separator: str | None) -> list[object]:
    """`list_items` of a column of weights, where one number is the weight of a list of one."""
    alone = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return list_items([value] if alone and value == value else value, separator)


def list_items(value: object, separator: str | None) -> list[object]:
    """The entries of a list column's value: a list, a numpy array, or text joined by `separator`; null has none."""
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return list(value)
    if value is None or value == "" or (isinstance(value, (float, np.floating)) and np.isnan(value)):
        return []
    if isinstance(value, str) and separator:
        return list(value.split(separator))
    remedy = "say how the text is joined: separator" if isinstance(value, str) else "put it into a list"
    raise UserError(f"got {shown(value)} of type {type(value).__name__}; accepted: a list or null; {remedy}")
