"""The bulk encoder: encodes whole columns, over the artefact of `runtime.encoder` (`data.fit` makes it).

Each *distinct* value is looked at once (`data.staged`); numpy spreads its symbol over the rows. Columns may be longer than
memory: everything goes a block of rows at a time, and comes out the same for every size of a block. Accepted columns:
integers, floats, bool, text, categorical, enum, null, lists of these, and texts that join their values where the feature
has a separator.

n rows · U distinct values · M entries of lists
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import DTypeLike, NDArray

from finerank.data.columns import ColumnWriter, block_arrays, narrow
from finerank.data.fit import Fitter as Fitter
from finerank.data.fit import Known, Occurrences, rows_at, whole
from finerank.data.scratch import Pile, Scratch
from finerank.data.staged import Column, Entries, Ids, Numbers, Rows, distinct, staged
from finerank.data.staged import canonical_series as canonical_series
from finerank.data.tally import hashed
from finerank.data.texts import dictionary, packed
from finerank.errors import UserError, nearest
from finerank.kernels import ids as loops
from finerank.runtime.blocks import Block, Lists
from finerank.runtime.encoder import Encoder
from finerank.runtime.fields import Field, fields_of, is_weighted, rank_table, tag_and_rank
from finerank.runtime.hashing import mix, splitmix64
from finerank.runtime.history import flatten
from finerank.runtime.symbols import GrowingTable, HashedTable, SymbolTable, Texts
from finerank.schema import (
    FIRST,
    MISSING,
    OOV,
    Bucketed,
    Feature,
    ListFeature,
    Numeric,
    Use,
)

Int64s: TypeAlias = NDArray[np.int64]

FINE = 1 << 13
"""Rows whose numbers are put side by side, and written, at a time: they fit the processor's cache."""

COARSE = 1 << 15
"""The same of ids, whose loop cuts them finely itself. Between its calls a thread waits for others to let Python go."""


def encode_block(
    encoder: Encoder, name: str, frame: pl.DataFrame, use: Use = "input", grow: bool = False
) -> Block[NDArray[Any]]:
    """The block of "request", "candidate" or a history (without ages), columns in the order of `encoder.columns`.

    frame   by source column; of a history by *field*, the weights of a weighted list field x as "x·weights"
    grow    append values not seen before to growing tables (in the order of fields, then rows); otherwise they are
            out of vocabulary. New segments of a log are encoded with grow=True, then the encoder is saved again.

    Raises UserError naming feature, row and value for what the per-request engine refuses too.
    """
    columns: dict[str, Column] = {}
    is_level = name in ("request", "candidate")
    for field in fields_of(encoder.schema, name, use):
        feature = field.feature
        wanted = field.columns if is_level else (feature.name, f"{feature.name}·weights")[: len(field.columns)]
        for column in wanted:
            if column not in frame.columns:
                raise UserError(
                    f"{name}: no column {column!r} for feature {feature.name!r}; {nearest(column, frame.columns)}"
                )
        if feature.name not in columns:
            columns[feature.name] = staged(feature, [frame[column] for column in wanted], whole(frame.height))
    made = BlockEncoder(encoder, name, columns, frame.height, None, whole(frame.height), use, grow=grow, dtype=np.int64)
    ids, numbers, index = made.block(slice(0, frame.height))
    return Block(ids, numbers, made.lists(index))


class BlockEncoder:
    """Encodes rows of staged columns, block by block, to be asked for from the first to the last.

    columns  by feature's name; n, index: how many rows, and which (None: each for itself)
    known    the encoder's tables as texts, for many values; None: each distinct value is looked up on its own
    dtype    of ids
    """

    def __init__(
        self,
        encoder: Encoder,
        name: str,
        columns: Mapping[str, Column],
        n: int,
        index: Int64s | None,
        scratch: Scratch,
        use: Use = "input",
        *,
        grow: bool = False,
        known: Known | None = None,
        dtype: DTypeLike = np.int32,
    ) -> None:
        self.encoder, self.columns, self.n, self.index, self.scratch = encoder, columns, n, index, scratch
        self.dtype = dtype
        self.fields = fields_of(encoder.schema, name, use)
        if grow:
            for field in self.fields:
                table = None if isinstance(columns[field.feature.name], Numbers) else encoder.table(field.feature)
                if isinstance(table, GrowingTable):
                    _grow(table, field, columns[field.feature.name], n, index, scratch, known)
        self._symbols = {
            field.name: symbols_of(encoder, field.feature, column, known)
            for field in self.fields
            if isinstance(column := columns[field.feature.name], Ids)
        }
        self._lists = {
            field.name: _ListEncoder(encoder, field, column, known, scratch, dtype, one=n <= scratch.block)
            for field in self.fields
            if isinstance(column := columns[field.feature.name], Entries)
        }
        self._of_ids = [field for field in self.fields if not isinstance(field.feature, Numeric | ListFeature)]
        self._of_numbers = len(encoder.columns(name, use).numbers)
        self._coded: dict[int, tuple[loops.Coded, NDArray[Any]]] = {}  # by place: the ids that a compiled loop finds
        if dtype == np.int32:
            self._symbols = {name: narrow(symbols) for name, symbols in self._symbols.items()}
            for i, field in enumerate(self._of_ids if loops.fits() else ()):
                if isinstance(column := columns[field.feature.name], Ids):
                    self._coded[i] = column.coded, self._symbols[field.name]

    def block(self, at: slice) -> tuple[NDArray[Any], NDArray[np.float32], dict[str, Int64s]]:
        """ids [n, F], numbers [n, C], and per list column which distinct list each row has [n]."""
        made = self._room(at.stop - at.start)
        for fine, into in _steps(at, FINE):
            self._fill_ids(fine, made.ids[into])
            self._fill_numbers(fine, made.numbers[into])
        return made.ids, made.numbers, self._index(at)

    def _index(self, at: slice) -> dict[str, Int64s]:
        rows = rows_at(self.index, at)
        return {name: lists.read(rows, at.stop - at.start) for name, lists in self._lists.items()}

    def _room(self, n: int) -> Block[NDArray[Any]]:
        """A block of n rows without lists, to be filled."""
        ids = np.empty((n, len(self._of_ids)), dtype=self.dtype)
        return Block(ids, np.empty((n, self._of_numbers), dtype=np.float32), {})

    def _fill_ids(self, at: slice, ids: NDArray[Any]) -> None:
        rows = rows_at(self.index, at)
        if self._coded:
            loops.place(ids, self._coded, rows)
        for i, field in enumerate(self._of_ids):
            feature, column = field.feature, self.columns[field.feature.name]
            if isinstance(column, Ids):
                if i not in self._coded:
                    ids[:, i] = self._symbols[field.name][column.codes(rows)]
            elif isinstance(feature, Bucketed):
                assert isinstance(column, Numbers)
                ids[:, i] = self.encoder.cuts(feature).bucket(column.read(rows))

    def _fill_numbers(self, at: slice, numbers: NDArray[np.float32]) -> None:
        rows, j = rows_at(self.index, at), 0
        for field in self.fields:
            feature, column = field.feature, self.columns[field.feature.name]
            if isinstance(feature, Numeric):
                assert isinstance(column, Numbers)
                source = range(at.start, at.stop) if isinstance(rows, slice) else rows

                def place(i: int, name: str = feature.name, source: range | Int64s = source) -> str:
                    return f"feature {name!r}, row {source[i]}"

                for number in self.encoder.number_columns(feature, column.read(rows), place):
                    numbers[:, j] = number
                    j += 1

    def empty(self) -> Block[NDArray[Any]]:
        """A block of no rows."""
        return replace(self._room(0), lists={name: lists.empty() for name, lists in self._lists.items()})

    def writes(self, out: ColumnWriter, prefix: str) -> list[Callable[[], None]]:
        """What writes all rows, as columns of the names that `block_arrays` gives: to be called once each, side by side if
        need be."""
        out.append(block_arrays(self.empty(), prefix))
        parts = (("ids", self._fill_ids, COARSE), ("numbers", self._fill_numbers, FINE))
        plain: list[Callable[[], None]] = [partial(self._write, out, prefix, *part) for part in parts]
        return [*plain, partial(self._write_lists, out, prefix)] if self._lists else plain

    def _write(
        self, out: ColumnWriter, prefix: str, name: str, fill: Callable[[slice, NDArray[Any]], None], step: int
    ) -> None:
        room = block_arrays(self._room(min(step, self.n)))[name]
        for at, into in _steps(slice(0, self.n), step):
            fill(at, part := room[: into.stop - into.start])
            out.append({f"{prefix}{name}": part})

    def _write_lists(self, out: ColumnWriter, prefix: str) -> None:
        for at in self.scratch.pieces(self.n):
            out.append({f"{prefix}{name}.index": rows for name, rows in self._index(at).items()})
        none = self.empty()
        lists = self.lists({name: column.index for name, column in none.lists.items()})  # no index: it is written
        for name, array in block_arrays(replace(none, lists=lists), prefix).items():
            if name not in (f"{prefix}ids", f"{prefix}numbers"):
                out.append_all(name, array, self.scratch.block)

    def lists(self, index: Mapping[str, Int64s]) -> dict[str, Lists[NDArray[Any]]]:
        """The list columns, after all blocks. index: of all rows [n]."""
        return {name: lists.close(index[name]) for name, lists in self._lists.items()}


def _steps(at: slice, step: int) -> Iterator[tuple[slice, slice]]:
    """The rows `step` at a time, and where they are among all of them."""
    for start in range(at.start, at.stop, step):
        stop = min(start + step, at.stop)
        yield slice(start, stop), slice(start - at.start, stop - at.start)


def symbols_of(encoder: Encoder, feature: Feature, column: Ids, known: Known | None) -> NDArray[np.integer[Any]]:
    """int32 or int64 [U + 1]: the symbol of each code of a column that occurs."""
    if known is not None and column in known.symbols:
        return known.symbols[column]
    out = np.full(column.size + 1, MISSING, dtype=np.int64)
    used = column.used()
    out[used] = _lookup(encoder.table(feature), column.texts(used), known)
    return out


def _lookup(table: SymbolTable, texts: pl.Series, known: Known | None) -> Int64s:
    """The symbol of each text, none of them missing."""
    if isinstance(table, HashedTable):
        return hashed(table, texts)
    if known is None:
        return table.lookup_all(texts.to_list())
    names = known.texts[table.table]
    codes = dictionary()
    codes.codes(names)  # 1, 2, ... in the order of their symbols; what comes later is not in the table
    found = codes.codes(texts).astype(np.int64)
    return np.where(found <= len(names), found + (FIRST - 1), OOV)


def _grow(
    table: GrowingTable,
    field: Field,
    column: Ids | Entries | Numbers,
    n: int,
    index: Int64s | None,
    scratch: Scratch,
    known: Known | None,
) -> None:
    """Append what these rows have and the table has not, in order of first occurrence."""
    assert not isinstance(column, Numbers)
    ids = column if isinstance(column, Ids) else column.ids
    found = Occurrences(ids.size, True)
    for at in scratch.pieces(n):
        rows, length = rows_at(index, at), at.stop - at.start
        if isinstance(column, Entries):
            rows, lengths = column.of(rows)
            length = int(lengths.sum())
        found.add(ids, rows, np.ones(length, dtype=bool))
    texts = ids.texts(found.used())
    if isinstance(field.feature, ListFeature):
        entries = [tag_and_rank(field.feature, text, field.top) for text in texts.to_list()]
        texts = pl.Series([entry[0] for entry in entries if entry], dtype=pl.String)
    if known is None:
        table.extend(texts.to_list())
        return
    before = known.texts[table.table]
    new = texts.unique(maintain_order=True)
    new = new.filter(pl.Series(_lookup(table, new, known) == OOV))
    table.append(Texts(*packed(new)))
    known.texts[table.table] = pl.concat([before, new])


# ------------------------------------------------------------------------------------------------ lists


class _ListEncoder:
    """A list column, equal lists stored once. Memory follows the distinct values, and the distinct lists."""

    def __init__(
        self,
        encoder: Encoder,
        field: Field,
        column: Entries,
        known: Known | None,
        scratch: Scratch,
        dtype: DTypeLike,
        one: bool,
    ) -> None:
        assert isinstance(field.feature, ListFeature)
        self.column, self.dtype, self.one = column, dtype, one
        self.weighted = is_weighted(field.feature)
        width = 2 if rank_table(field.feature) else 1
        self._symbols = np.zeros((column.ids.size + 1, width), dtype=np.int64)
        self._kept = np.zeros(column.ids.size + 1, dtype=bool)
        used = column.ids.used()
        texts = column.ids.texts(used)
        if field.feature.kind == "multivalued":
            self._symbols[used, 0] = _lookup(encoder.table(field.feature), texts, known)
            self._kept[used] = True
        else:
            entries = [encoder.entry(field.feature, text, field.top) for text in texts.to_list()]
            self._kept[used] = [entry is not None for entry in entries]
            self._symbols[used] = np.array([e or (0,) * width for e in entries], dtype=np.int64).reshape(-1, width)
        if dtype == np.int32:
            narrow(self._symbols)  # raises for what does not fit
        self._numbers: dict[tuple[int, ...], int] = {}
        self._ids, self._weights = Pile(scratch, dtype, width), Pile(scratch, np.float32)
        self._segments, self._lengths = Pile(scratch, np.int64), Pile(scratch, np.int64)

    def read(self, rows: Rows, n: int) -> Int64s:
        """int64 [n]: which distinct list each of the next rows has."""
        entries, lengths = self.column.of(rows)
        codes = self.column.ids.codes(entries)
        kept = self._kept[codes]
        segments = np.repeat(np.arange(n), lengths)[kept]
        weights = None
        if self.weighted:
            there = np.arange(entries.start, entries.stop) if isinstance(entries, slice) else entries
            weights = self.column.weights(there[kept])
        lists = distinct_lists(np.bincount(segments, minlength=n), self._symbols[codes[kept]], weights)
        return self._merged(lists)

    def _merged(self, lists: Lists[NDArray[Any]]) -> Int64s:
        """The block's distinct lists among those of all blocks: told apart by 128 bits."""
        number = np.arange(len(lists.lengths))
        starts = np.cumsum(lists.lengths) - lists.lengths
        new = number
        if not self.one:
            content = _content(lists.ids, lists.weights)
            hashes = [_list_hashes(lists.lengths, content, seed) for seed in (0, 1)]
            keys = zip(*(h.tolist() for h in hashes), lists.lengths.tolist(), strict=True)
            before = len(self._numbers)
            number = np.array([self._numbers.setdefault(k, len(self._numbers)) for k in keys], dtype=np.int64)
            new = np.flatnonzero(number >= before)
        entries = flatten(starts[new], starts[new] + lists.lengths[new])[0]
        self._ids.append(lists.ids[entries])
        if lists.weights is not None:
            self._weights.append(lists.weights[entries])
        self._segments.append(np.repeat(number[new], lists.lengths[new]))
        self._lengths.append(lists.lengths[new])
        index: Int64s = number[lists.index]
        return index

    def empty(self) -> Lists[NDArray[Any]]:
        """Of no rows."""
        none, width = np.empty(0, dtype=np.int64), self._symbols.shape[1]
        weights = np.empty(0, dtype=np.float32) if self.weighted else None
        return Lists(none, np.empty((0, width), dtype=self.dtype), weights, none, none)

    def close(self, index: Int64s) -> Lists[NDArray[Any]]:
        """All of it. index: int64 [n], of all rows."""
        weights = self._weights.close() if self.weighted else None
        return Lists(index, self._ids.close(), weights, self._segments.close(), self._lengths.close())


def distinct_lists(lengths: Int64s, ids: Int64s, weights: NDArray[np.float32] | None) -> Lists[NDArray[Any]]:
    """Lists of n rows, one after the other (lengths [n], entries [M, 1 or 2]), with equal lists stored once.

    Lists are told apart by a 64-bit hash, then compared entry by entry; should two different ones ever share a hash,
    another seed is tried. So the result is exact.
    """
    content = _content(ids, weights)
    starts = np.cumsum(lengths) - lengths
    position = np.arange(len(ids)) - np.repeat(starts, lengths)
    seed = 0
    while True:
        _, first, index = distinct([pl.Series(_list_hashes(lengths, content, seed))])
        model = starts[first][index]  # [n] where the list that stands for each row's begins
        if np.array_equal(lengths[first][index], lengths) and np.array_equal(
            content[np.repeat(model, lengths) + position], content
        ):
            break
        seed += 1
    kept = lengths[first]
    entry = np.arange(kept.sum()) + np.repeat(starts[first] - (np.cumsum(kept) - kept), kept)
    segments = np.repeat(np.arange(len(kept)), kept)
    return Lists(index, ids[entry], None if weights is None else weights[entry], segments, kept)


def _content(ids: Int64s, weights: NDArray[np.float32] | None) -> Int64s:
    return ids if weights is None else np.column_stack([ids, weights.view(np.int32).astype(np.int64)])


def _list_hashes(lengths: Int64s, content: Int64s, seed: int) -> NDArray[np.uint64]:
    """uint64 [n]: of what the lists hold, entry by entry."""
    starts = np.cumsum(lengths) - lengths
    position = np.arange(len(content)) - np.repeat(starts, lengths)
    hashed = splitmix64(position.astype(np.uint64) ^ np.uint64(mix(seed)))
    for column in content.T:
        hashed = splitmix64(hashed ^ column.astype(np.uint64))
    sums = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(hashed, dtype=np.uint64)])  # modulo 2**64
    out: NDArray[np.uint64] = sums[starts + lengths] - sums[starts]
    return out
