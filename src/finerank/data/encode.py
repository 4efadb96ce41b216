"""The bulk encoder: fits on training columns, and encodes whole columns, over the artefact of `runtime.encoder`.

Python sees each *distinct* value once, in the same functions that serve a request; Polars finds the distinct values and
numpy spreads their symbols over the rows. Accepted columns: integers, floats, bool, text, categorical, enum, null,
lists of these, and texts that join their values where the feature has a separator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from finerank.data.tally import CutsTally, Moments, Ranks, TextTally
from finerank.errors import UserError, nearest
from finerank.runtime.blocks import Block, Lists
from finerank.runtime.encoder import Encoder, block_from
from finerank.runtime.fields import declared_tables, fields_of, is_weighted, rank_table, source_columns, tag_and_rank
from finerank.runtime.hashing import mix, splitmix64
from finerank.runtime.symbols import GrowingTable, HashedTable
from finerank.runtime.values import CROSS, canonical, list_weights, number
from finerank.schema import MISSING, Bucketed, Feature, ListFeature, Numeric, Schema, Use, table_of

Int64s: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]
Columns: TypeAlias = pl.Series | Sequence[pl.Series]

INT64 = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32)
"""Integer types whose every value is an int64."""

# ------------------------------------------------------------------------------------------------ fitting


class Fitter:
    """Learns an encoder from training columns, given one after the other, in pieces if need be.

    counts   after `finish`: per table, int64 per symbol, how often it occurs in the training rows
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.counts: dict[str, Int64s] = {}
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
        columns = _columns_of(feature, series)
        each = np.ones(len(columns[0]), dtype=np.int64) if weights is None else np.asarray(weights, dtype=np.int64)
        if len(each) != len(columns[0]):
            raise UserError(
                f"feature {feature.name!r}: {len(columns[0])} rows but {len(each)} weights; give one per row"
            )
        if not each.all():
            columns, each = [column.filter(pl.Series(each != 0)) for column in columns], each[each != 0]
        if isinstance(feature, Numeric):
            self._numbers[feature.name].add(_floats(feature, columns[0]), each)
            return
        table = str(table_of(feature))
        if isinstance(feature, Bucketed):
            self._cuts[table].add(_floats(feature, columns[0]), each)
        elif isinstance(feature, ListFeature):
            flat, lengths = _flatten(feature, columns[0])
            texts, inverse = _distinct_texts(feature, [flat])
            counts = _sums(inverse, np.repeat(each, lengths), len(texts)).tolist()
            entries = [tag_and_rank(feature, text) for text in texts]
            known = [(*entry, n) for entry, n in zip(entries, counts, strict=True) if entry is not None]
            kept = [n for _, _, n in known]
            self._texts[table].add([tag for tag, _, _ in known], kept)
            if ranks := rank_table(feature):
                self._cuts[ranks].add(np.array([float(rank) for _, rank, _ in known]), np.array(kept, dtype=np.int64))
        else:
            texts, inverse = _distinct_texts(feature, columns)
            self._texts[table].add(texts, _sums(inverse, each, len(texts)).tolist())

    def finish(self) -> Encoder:
        """The encoder. A table that was given no values has the three reserved symbols only (a cut one: one bucket)."""
        tables = {}
        for name, spec in self._specs.items():
            tally = self._cuts[name] if spec.encoding == "cuts" else self._texts[name]
            tables[name], self.counts[name] = tally.fit(name, spec)
        numbers = {f.name: self._numbers[f.name].fit(f) for f in self.schema.features if isinstance(f, Numeric)}
        return Encoder(self.schema, tables, numbers)


# ------------------------------------------------------------------------------------------------ encoding


def encode_block(
    encoder: Encoder, name: str, frame: pl.DataFrame, use: Use = "input", grow: bool = False
) -> Block[NDArray[Any]]:
    """The block of "request", "candidate" or a history (without ages), columns in the order of `encoder.columns`.

    frame   by source column; of a history by *field*, the weights of a weighted list field x as "x·weights"
    grow    append values not seen before to growing tables (in the order of fields, then rows); otherwise they are
            out of vocabulary. New segments of a log are encoded with grow=True, then the encoder is saved again.

    Raises UserError naming feature, row and value for what the per-request engine refuses too.
    """
    ids, numbers, lists = [], [], {}
    is_level = name in ("request", "candidate")
    for field in fields_of(encoder.schema, name, use):
        feature = field.feature
        wanted = field.columns if is_level else (feature.name, f"{feature.name}·weights")[: len(field.columns)]
        for column in wanted:
            if column not in frame.columns:
                raise UserError(
                    f"{name}: no column {column!r} for feature {feature.name!r}; {nearest(column, frame.columns)}"
                )
        columns = [frame[column] for column in wanted]
        if isinstance(feature, Numeric):
            numbers += encoder.number_columns(feature, _floats(feature, columns[0]), _place(feature))
        elif isinstance(feature, ListFeature):
            lists[field.name] = _encode_lists(encoder, feature, field.top, columns, grow)
        else:
            ids.append(encode_ids(encoder, feature, columns, grow))
    return block_from(frame.height, ids, numbers, lists)


def encode_ids(encoder: Encoder, feature: Feature, series: Columns, grow: bool = False) -> Int64s:
    """The symbols of a single-id feature's column: int64 [n]. series, grow: as in `Fitter.add`, `encode_block`."""
    columns = _columns_of(feature, series)
    if isinstance(feature, Bucketed):
        return encoder.cuts(feature).bucket(_floats(feature, columns[0]))
    table = encoder.table(feature)
    if isinstance(table, HashedTable) and len(columns) == 1 and columns[0].dtype in INT64:
        symbols = table.lookup_integers(columns[0].fill_null(0).cast(pl.Int64).to_numpy())
        return np.where(columns[0].is_null().to_numpy(), MISSING, symbols)
    texts, inverse = _distinct_texts(feature, columns)
    symbols = table.extend(texts) if grow and isinstance(table, GrowingTable) else table.lookup_all(texts)
    return symbols[inverse]


def _encode_lists(
    encoder: Encoder, feature: ListFeature, top: int | None, columns: list[pl.Series], grow: bool
) -> Lists[NDArray[Any]]:
    flat, lengths = _flatten(feature, columns[0])
    texts, inverse = _distinct_texts(feature, [flat])
    table = encoder.table(feature)
    if grow and isinstance(table, GrowingTable):
        table.extend(entry[0] for t in texts if (entry := tag_and_rank(feature, t, top)) is not None)
    entries = [encoder.entry(feature, text, top) for text in texts]
    width = 2 if rank_table(feature) else 1
    symbols = np.array([e or (0,) * width for e in entries], dtype=np.int64).reshape(-1, width)
    kept = np.array([e is not None for e in entries], dtype=bool)[inverse]
    segments = np.repeat(np.arange(len(lengths)), lengths)[kept]
    weights = None
    if is_weighted(feature):
        given, given_lengths = _flatten_weights(feature, columns[1])
        uneven = np.flatnonzero(given_lengths != lengths)
        if len(uneven):
            i = int(uneven[0])
            raise UserError(
                f"{_place(feature)(i)}: got {lengths[i]} values but {given_lengths[i]} weights; give one weight per value"
            )
        try:
            weights = list_weights(_floats(feature, given)[kept])
        except UserError as error:
            raise UserError(f"feature {feature.name!r}: {error}") from None
    return distinct_lists(np.bincount(segments, minlength=len(lengths)), symbols[inverse[kept]], weights)


def distinct_lists(lengths: Int64s, ids: Int64s, weights: NDArray[np.float32] | None) -> Lists[NDArray[Any]]:
    """Lists of n rows, one after the other (lengths [n], entries [M, 1 or 2]), with equal lists stored once.

    Lists are told apart by a 64-bit hash, then compared entry by entry; should two different ones ever share a hash,
    another seed is tried. So the result is exact.
    """
    content = ids if weights is None else np.column_stack([ids, weights.view(np.int32).astype(np.int64)])
    starts = np.cumsum(lengths) - lengths
    position = np.arange(len(ids)) - np.repeat(starts, lengths)
    seed = 0
    while True:
        hashed = splitmix64(position.astype(np.uint64) ^ np.uint64(mix(seed)))
        for column in content.T:
            hashed = splitmix64(hashed ^ column.astype(np.uint64))
        sums = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(hashed, dtype=np.uint64)])  # modulo 2**64
        _, first, index = _distinct([pl.Series(sums[starts + lengths] - sums[starts])])
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


# ------------------------------------------------------------------------------------------------ columns


def canonical_series(series: pl.Series) -> pl.Series:
    """The canonical text (`runtime.values`) of each row, as a String column; null is missing."""
    series = _simple(series, f"column {series.name!r}")
    if series.dtype.is_integer():
        return series.cast(pl.String)
    if series.dtype == pl.String:
        return pl.select(pl.when(series != "").then(series).alias(series.name)).to_series()
    values, _, inverse = _distinct([series])
    texts = pl.Series(series.name, [canonical(value) for (value,) in values.iter_rows()], dtype=pl.String)
    return texts.gather(inverse)


def _distinct(columns: Sequence[pl.Series]) -> tuple[pl.DataFrame, Int64s, Int64s]:
    """The distinct rows of some columns in order of first occurrence [U], the first row of each [U], and each row's [n]."""
    frame = pl.DataFrame([column.alias(str(i)) for i, column in enumerate(columns)])
    groups = frame.with_row_index("row").group_by(frame.columns, maintain_order=True).agg("row")
    rows = groups["row"].explode().cast(pl.Int64).to_numpy()  # of one group after the other; no group is empty
    sizes = groups["row"].list.len().cast(pl.Int64).to_numpy()
    index = np.empty(len(rows), dtype=np.int64)
    index[rows] = np.repeat(np.arange(len(sizes)), sizes)
    return groups.select(frame.columns), rows[np.cumsum(sizes) - sizes], index


def _distinct_texts(feature: Feature, columns: Sequence[pl.Series]) -> tuple[list[str | None], Int64s]:
    """The canonical texts of the distinct values (of a cross: joined), and which of them each row has."""
    values, _, inverse = _distinct([_simple(column, f"feature {feature.name!r}") for column in columns])
    texts = [canonical_series(column) for column in values.iter_columns()]
    return pl.select(pl.concat_str(texts, separator=CROSS)).to_series().to_list(), inverse


def _simple(series: pl.Series, place: str) -> pl.Series:
    """A column of integers, floats, bools or text."""
    dtype = series.dtype
    if dtype in (pl.Categorical, pl.Enum, pl.Null):
        return series.cast(pl.String)
    if dtype.is_integer() or dtype.is_float() or dtype in (pl.String, pl.Boolean):
        return series
    raise UserError(
        f"{place}: got a column of {dtype}; accepted: integers, floats, bool or text; cast it to one of these"
    )


def _floats(feature: Feature, series: pl.Series) -> Floats:
    """Numbers as float64 [n], NaN where missing; the values that `number` takes."""
    place = _place(feature)
    series = _simple(series, f"feature {feature.name!r}")
    if series.dtype == pl.String:
        values, first, inverse = _distinct([series])
        found = []
        for (value,), row in zip(values.iter_rows(), first.tolist(), strict=True):
            try:
                found.append(number(value))
            except UserError as error:
                raise UserError(f"{place(row)}: {error}") from None
        return np.array([np.nan if x is None else x for x in found], dtype=np.float64)[inverse]
    out: Floats = series.cast(pl.Float64).fill_null(np.nan).to_numpy()
    infinite = np.flatnonzero(np.isinf(out))
    if len(infinite):
        raise UserError(f"{place(int(infinite[0]))}: got {out[infinite[0]]}; accepted: finite numbers or null")
    return out


def _flatten(feature: ListFeature, series: pl.Series) -> tuple[pl.Series, Int64s]:
    """A list column as its entries one after the other, and the length of each row's list (null: 0)."""
    if series.dtype in (pl.Categorical, pl.Enum):
        series = series.cast(pl.String)
    if series.dtype == pl.Null:
        return pl.Series([], dtype=pl.String), np.zeros(len(series), dtype=np.int64)
    if series.dtype == pl.String and feature.separator:
        series = canonical_series(series).str.split(feature.separator)
    if isinstance(series.dtype, pl.Array):
        series = series.arr.to_list()
    if not isinstance(series.dtype, pl.List):
        remedy = "say how the text is joined: separator" if series.dtype == pl.String else "put the values into lists"
        raise UserError(f"feature {feature.name!r}: got a column of {series.dtype}; accepted: lists; {remedy}")
    lengths = series.list.len().fill_null(0).cast(pl.Int64)
    return series.filter(lengths > 0).explode(), lengths.to_numpy()


def _flatten_weights(feature: ListFeature, series: pl.Series) -> tuple[pl.Series, Int64s]:
    """`_flatten` of a column of weights, where one number is the weight of a list of one."""
    if not (series.dtype.is_integer() or series.dtype.is_float()):
        return _flatten(feature, series)
    known = series.is_not_null() & series.cast(pl.Float64).is_not_nan().fill_null(True)
    return series.filter(known), known.cast(pl.Int64).to_numpy()


def _columns_of(feature: Feature, series: Columns) -> list[pl.Series]:
    """The columns a feature reads, from one series, several, or a struct of them."""
    if not isinstance(series, pl.Series):
        return list(series)
    if not isinstance(series.dtype, pl.Struct):
        return [series]
    parts: Mapping[str, pl.Series] = series.struct.unnest().to_dict()
    for column in source_columns(feature):
        if column not in parts:
            raise UserError(f"feature {feature.name!r}: no {column!r} in the struct; {nearest(column, parts)}")
    return [parts[column] for column in source_columns(feature)]


def _sums(groups: Int64s, values: Int64s, n: int) -> Int64s:
    """The sum of the values of each of `n` groups, exactly."""
    out = np.zeros(n, dtype=np.int64)
    np.add.at(out, groups, values)
    return out


def _place(feature: Feature) -> Callable[[int], str]:
    return lambda row: f"feature {feature.name!r}, row {row}"
