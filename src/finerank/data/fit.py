"""Fitting: what training columns teach, counted block by block. What comes out does not depend on the blocks.

n rows · U distinct values
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from finerank.data.scratch import Pile, Scratch
from finerank.data.staged import Column, Columns, Entries, Ids, Numbers, Rows, columns_of, staged
from finerank.data.tally import CutsTally, Moments, Ranks, TextTally
from finerank.errors import UserError
from finerank.kernels import ids as loops
from finerank.runtime.encoder import Encoder
from finerank.runtime.fields import declared_tables, rank_table, tag_and_rank
from finerank.runtime.symbols import SymbolTable
from finerank.schema import MISSING, OOV, Feature, Growing, Hashed, ListFeature, Numeric, Schema, table_of

Int64s: TypeAlias = NDArray[np.int64]


@dataclass
class Known:
    """The tables in forms that many values are looked up in at once.

    texts    per table, the texts of its symbols from `FIRST` on
    symbols  of a column that alone taught a vocabulary: int32 [size + 1], the symbol of each of its codes
    """

    texts: dict[str, pl.Series] = field(default_factory=dict)
    symbols: dict[Ids, NDArray[np.int32]] = field(default_factory=dict)


def whole(n: int) -> Scratch:
    """In memory, all rows one block."""
    return Scratch(None, max(1, n))


def rows_at(index: Int64s | None, at: slice) -> Rows:
    """The rows that a block stands for. index: None: each for itself."""
    return at if index is None else np.asarray(index[at], dtype=np.int64)


def counted(weights: NDArray[Any]) -> slice | NDArray[np.bool_]:
    """The rows of weights other than 0: as a slice if they come first, as after a split by time, which copies nothing."""
    n = int(np.count_nonzero(weights))
    return slice(0, n) if weights[:n].all() else weights != 0


class Occurrences:
    """How often each code of a column occurs, and in which order the codes occur first."""

    def __init__(self, size: int, ordered: bool) -> None:
        self.counts = np.zeros(size + 1, dtype=np.int64)
        self.first = np.full(size + 1 if ordered else 0, np.iinfo(np.int64).max)
        self._seen = 0

    def add(self, column: Ids, rows: Rows, weights: NDArray[Any]) -> None:
        """The next rows [n]; those of weight 0 are no rows."""
        if loops.fits():
            first = self.first if len(self.first) else None
            self._seen = loops.count(self.counts, first, column.coded, rows, weights, self._seen)
            return
        these = counted(weights)
        codes, weights = column.codes(rows)[these], weights[these]
        if weights.dtype == bool or (weights == 1).all():
            self.counts += np.bincount(codes, minlength=len(self.counts))
        else:
            self.counts += np.bincount(codes, weights, len(self.counts)).astype(np.int64)  # float64: exact to 2^53
        if len(self.first):
            new = np.flatnonzero(self.first[codes] > self._seen + len(codes))
            self.first[codes[new[::-1]]] = self._seen + new[::-1]  # the last one written stays: the first of all
        self._seen += len(codes)

    def used(self) -> Int64s:
        """The codes that occurred, 0 (missing) left out, in order of first occurrence where that is known."""
        codes = np.flatnonzero(self.counts[1:]) + 1
        return codes[np.argsort(self.first[codes])] if len(self.first) else codes


class Fitter:
    """Learns an encoder from training columns, given one after the other, in pieces if need be.

    counts   after `finish`: per table, int64 per symbol, how often it occurs in the training rows
    known    after `finish`: see `Known`
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.counts: dict[str, Int64s] = {}
        self.known = Known()
        self._coded: dict[str, tuple[Ids, Int64s]] = {}  # per table, a column that was counted, and its codes
        self._specs = declared_tables(schema)
        self._cuts = {name: CutsTally() for name, spec in self._specs.items() if spec.encoding == "cuts"}
        self._texts = {name: TextTally() for name, spec in self._specs.items() if spec.encoding != "cuts"}
        self._numbers = {
            f.name: Ranks() if f.transform == "powers" else Moments() for f in schema.features if isinstance(f, Numeric)
        }

    def add(self, feature: Feature | str, series: Columns, weights: NDArray[Any] | None = None) -> None:
        """Count a column of training rows, or of past events for a history's field.

        feature   a feature or its name; a history's field counts for the feature whose meaning it shares
        series    its column; of a cross all columns, in the order of `of`, or a struct of them (weights are not needed)
        weights   integers [n]: how many training rows each value counts for; 0: none, as if it were not there; default 1
        """
        feature = self.schema.feature(feature) if isinstance(feature, str) else feature
        columns = columns_of(feature, series)
        n = len(columns[0])
        each = np.ones(n, dtype=np.int64) if weights is None else np.asarray(weights, dtype=np.int64)
        if len(each) != n:
            raise UserError(f"feature {feature.name!r}: {n} rows but {len(each)} weights; give one per row")
        if not each.all():
            columns, each = [column.filter(pl.Series(each != 0)) for column in columns], each[each != 0]
        columns = columns[:1] if isinstance(feature, ListFeature) else columns
        self.count(feature, staged(feature, columns, whole(n)), each, None, whole(n))

    def count(
        self, feature: Feature, column: Column, weights: NDArray[Any], index: Int64s | None, scratch: Scratch
    ) -> None:
        """`add` of a staged column. weights: integers [n] of the rows that `index` names (None: of all, in order)."""
        if isinstance(column, Numbers):
            self._count_numbers(feature, column, weights, index, scratch)
        elif isinstance(column, Entries):
            assert isinstance(feature, ListFeature)
            self._count_entries(feature, column, weights, index, scratch)
        else:
            found = Occurrences(column.size, self._ordered(feature))
            for at in scratch.pieces(len(weights)):
                found.add(column, rows_at(index, at), weights[at])
            codes = found.used()
            first = found.first[codes] if len(found.first) else np.zeros(len(codes), dtype=np.int64)
            missing, table = int(found.counts[0]), str(table_of(feature))
            self._texts[table].add(column.texts(codes), found.counts[codes], first, missing)
            self._coded[table] = column, codes

    def _count_entries(
        self, feature: ListFeature, column: Entries, weights: NDArray[Any], index: Int64s | None, scratch: Scratch
    ) -> None:
        found = Occurrences(column.ids.size, True)
        for at in scratch.pieces(len(weights)):
            entries, lengths = column.of(rows_at(index, at))
            found.add(column.ids, entries, np.repeat(weights[at], lengths))
        codes = found.used()
        texts, counts = column.ids.texts(codes), found.counts[codes]
        table = self._texts[str(table_of(feature))]
        if feature.kind == "multivalued":
            table.add(texts, counts, found.first[codes])
            return
        known = [(i, *entry) for i, text in enumerate(texts.to_list()) if (entry := tag_and_rank(feature, text))]
        kept = np.array([i for i, _, _ in known], dtype=np.int64)
        tags = pl.DataFrame({"tag": pl.Series([tag for _, tag, _ in known], dtype=pl.String), "count": counts[kept]})
        merged = tags.with_row_index("at").group_by("tag").agg(pl.col("count").sum(), pl.col("at").min())
        table.add(merged["tag"], merged["count"].to_numpy(), merged["at"].cast(pl.Int64).to_numpy())
        if ranks := rank_table(feature):
            self._cuts[ranks].add(np.array([float(rank) for _, _, rank in known]), counts[kept])

    def _count_numbers(
        self, feature: Feature, column: Numbers, weights: NDArray[Any], index: Int64s | None, scratch: Scratch
    ) -> None:
        tally = self._numbers[feature.name] if isinstance(feature, Numeric) else self._cuts[str(table_of(feature))]
        exact = isinstance(feature, Numeric) and feature.transform == "standard"
        numbers, counts = Pile(scratch, np.float64), Pile(scratch, np.int64)
        for at in scratch.pieces(len(weights)):
            these = counted(weights[at])
            x, w = column.read(rows_at(index, at))[these], weights[at][these]
            if not isinstance(tally, Moments):
                tally.add(x, w.astype(np.int64, copy=False))
                continue
            tally.span(x)
            if exact:
                known = ~np.isnan(x)
                numbers.append(x[known])
                counts.append(w[known])
        if isinstance(tally, Moments):
            tally.add(numbers.close(), counts.close())

    def _ordered(self, feature: Feature) -> bool:
        """Whether the feature's table asks in which order values came."""
        return isinstance(self._specs[str(table_of(feature))].encoding, Growing | Hashed)

    def finish(self) -> Encoder:
        """The encoder. A table that was given no values has the three reserved symbols only (a cut one: one bucket)."""
        tables: dict[str, SymbolTable] = {}
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # sorted side by side
            texts = {name: pool.submit(tally.fit, name, self._specs[name]) for name, tally in self._texts.items()}
        for name, spec in self._specs.items():
            if spec.encoding == "cuts":
                tables[name], self.counts[name] = self._cuts[name].fit(name, spec)
                continue
            tables[name], self.counts[name], self.known.texts[name] = texts[name].result()
            symbols = self._texts[name].symbols
            if symbols is not None and name in self._coded:
                column, codes = self._coded[name]
                of_codes = self.known.symbols[column] = np.full(column.size + 1, OOV, dtype=np.int32)
                of_codes[0], of_codes[codes] = MISSING, symbols
        numbers = {f.name: self._numbers[f.name].fit(f) for f in self.schema.features if isinstance(f, Numeric)}
        return Encoder(self.schema, tables, numbers)
