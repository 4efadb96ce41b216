"""The bulk and the per-request encoder give the same blocks, bit for bit; and both give what the specification says."""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finerank.data.encode import Fitter, canonical_series, distinct_lists, encode_block
from finerank.data.tally import quantile_cuts
from finerank.errors import UserError
from finerank.runtime.blocks import Block
from finerank.runtime.encoder import Encoder, age_ids
from finerank.runtime.hashing import hash64
from finerank.runtime.symbols import GrowingTable, HashedTable
from finerank.runtime.values import canonical
from finerank.schema import (
    FIRST,
    MISSING,
    OOV,
    Bucketed,
    Categorical,
    Columns,
    Cross,
    Feature,
    Growing,
    Hashed,
    History,
    ListColumn,
    MultiValued,
    Numeric,
    Ranked,
    Schema,
    Vocabulary,
)  # fmt: skip

quick = settings(derandomize=True, max_examples=16, deadline=None)

# ------------------------------------------------------------------------------------------------ a schema of every kind

ENCODINGS = {
    "v": Vocabulary(),
    "v2": Vocabulary(min_count=2, max_size=3),
    "h": Hashed(buckets=7),
    "g": Growing(capacity=3),
}


def every_kind() -> Schema:
    features: list[Feature] = []
    for key, encoding in ENCODINGS.items():
        features.append(Categorical(name=f"id_{key}", level="candidate", column="id", encoding=encoding))
    for key in ("h", "v2"):
        features.append(Cross(name=f"cross_{key}", level="candidate", of=("id", "x"), encoding=ENCODINGS[key]))
    for key in ("v", "g"):
        features.append(MultiValued(name=f"tags_{key}", level="candidate", column="tags", encoding=ENCODINGS[key]))
    for key in ("h", "g"):
        features.append(
            Ranked(name=f"ranked_{key}", level="candidate", column="ranked", encoding=ENCODINGS[key], max_rank=3)
        )
    features += [
        Numeric(name=f"x_{t}", level="candidate", column="x", transform=t)  # type: ignore[arg-type]
        for t in ("none", "log1p", "standard", "minmax", "powers")
    ]
    features += [
        Ranked(name=f"ranks_{rank}", level="candidate", column="ranked", rank=rank, max_rank=3, segments=(1, 3))  # type: ignore[arg-type]
        for rank in ("joint", "segments", "none")
    ]
    features += [
        Bucketed(name="b_width", level="candidate", column="x", law="equal_width", buckets=3),
        Bucketed(name="b_criteo", level="candidate", column="x", law="criteo"),
        Ranked(
            name="joined_segments",
            level="candidate",
            column="joined",
            separator="|",
            rank="segments",
            segments=(1, 2),
            encoding=Growing(capacity=3),
        ),
        Bucketed(name="b_fitted", level="candidate", column="x", buckets=4),
        Bucketed(name="b_given", level="candidate", column="x", cuts=(-1.0, 0.0, 0.1, 1e6)),
        MultiValued(name="weighted", level="candidate", column="tags", weights="w"),
        MultiValued(
            name="w_sum", level="candidate", column="tags", weights="w", pooling="sum", encoding=Hashed(buckets=5)
        ),
        MultiValued(name="joined", level="candidate", column="joined", separator="|"),
        MultiValued(name="own", level="candidate", separator="|", weight_separator=":"),
        MultiValued(name="padded", level="candidate", column="tags", weights="w", padding=1),
        MultiValued(name="padded_joined", level="candidate", column="joined", separator="|", padding="a"),
        MultiValued(
            name="padded_own", level="candidate", column="own", separator="|", weight_separator=":", padding="a"
        ),
        MultiValued(
            name="own_g", level="candidate", column="own", separator="|", weight_separator=":", encoding=ENCODINGS["g"]
        ),
        Ranked(name="joined_ranked", level="candidate", column="joined", separator="|", max_rank=2),
        Cross(name="three", level="candidate", of=("id", "flag", "joined"), encoding=Vocabulary()),
        Categorical(name="flag", level="candidate"),
        Categorical(name="position", level="candidate", use="train_only", column="id", table="id_v"),
        Categorical(name="user", level="request", column="id", table="id_v"),
        Numeric(name="balance", level="request", column="x"),
        Categorical(name="kind", level="event", encoding=Vocabulary()),
    ]
    past = History(
        name="past",
        fields=("id_v", "kind", "x_standard", "b_fitted", "weighted", "ranked_h", "x_powers", "ranks_segments", "own"),
        columns={"id_v": "item", "kind": "flag"},
    )
    lists = History(name="given", fields=("id_v",), lists={"id_v": "clicked"})
    return Schema(features=tuple(features), histories=(past, lists))


SCHEMA = every_kind()
GOOD = {"id": 1, "x": 1.0, "flag": True, "tags": ["a"], "w": [1.0], "ranked": ["a#1"], "joined": "a", "own": "a:1"}
TRAIN = pl.DataFrame([GOOD])

# ------------------------------------------------------------------------------------------------ columns of any sort

FEW_TEXTS = [
    "",
    "1",
    "01",
    "1.0",
    "-0",
    "a",
    "手机",
    "e\u0301",
    "\u00e9",
    "👩‍👩‍👧",
    "שלום",
    "NaN",
    "true",
    "a#1",
    "a#x",
]
TEXT = st.sampled_from(FEW_TEXTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=3)
INTEGER = st.sampled_from([0, 1, -1, 2**53 + 1, 2**63 - 1, -(2**63)]) | st.integers(-3, 3)
SPECIAL = [0.0, -0.0, 1.0, -2.0, 0.1, 1e15, 2.0**53, 1e30, -1e-30, 5e-324, math.nan]
FLOAT = st.sampled_from(SPECIAL) | st.floats(-1e6, 1e6)

IDS: Mapping[Any, st.SearchStrategy[Any]] = {
    pl.Int64: INTEGER, pl.Int8: st.integers(-3, 3), pl.UInt64: st.sampled_from([0, 1, 2**63, 2**64 - 1]),
    pl.Float64: FLOAT | st.sampled_from([math.inf, -math.inf]), pl.Float32: st.sampled_from([0.5, 0.1, 16777216.0, -0.0]),
    pl.Boolean: st.booleans(), pl.String: TEXT, pl.Categorical: TEXT, pl.Null: st.none(),
    pl.Enum(["", "1", "a", "é"]): st.sampled_from(["", "1", "a"]),
}  # fmt: skip
NUMBERS: Mapping[Any, st.SearchStrategy[Any]] = {
    pl.Int64: INTEGER, pl.UInt64: st.sampled_from([0, 1, 2**63, 2**64 - 1]), pl.Float64: FLOAT, pl.Boolean: st.booleans(),
    pl.Float32: st.sampled_from([0.5, 0.1, -0.0, math.nan]), pl.Null: st.none(),
    pl.String: st.sampled_from(["", "1", "01", " -2.5e3 ", "nan", "0.1"]),
}  # fmt: skip
ENTRIES: Mapping[Any, st.SearchStrategy[Any]] = {k: v for k, v in IDS.items() if k not in (pl.Categorical, pl.Null)}


def column(draw: st.DrawFn, kinds: Mapping[Any, st.SearchStrategy[Any]], n: int, dtype: Any) -> pl.Series:
    return pl.Series(draw(st.lists(st.none() | kinds[dtype], min_size=n, max_size=n)), dtype=dtype)


@st.composite
def two_frames(draw: st.DrawFn) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Training rows, and other rows of the same types with values never seen."""
    id_type, x_type, entry = (draw(st.sampled_from(list(kinds))) for kinds in (IDS, NUMBERS, ENTRIES))
    flag_type = draw(st.sampled_from(list(IDS)))
    lists = st.lists(st.tuples(st.none() | ENTRIES[entry], st.sampled_from([1.0, 0.5, -0.0, 0.0, 1e-3])), max_size=3)
    joined = st.lists(st.sampled_from(["a", "b", "", "a#1", "a#9", "军事#2", "x#y#1"]), max_size=3).map("|".join)
    own = st.lists(st.sampled_from(["a:1", "b:.5", "", ":3", ":", "a:b:-2", "军事: 1e-3 ", "a:1.0"]), max_size=3).map(
        "|".join
    )
    frames = []
    for n in (draw(st.integers(1, 12)), draw(st.integers(0, 12))):
        pairs = draw(st.lists(st.none() | lists, min_size=n, max_size=n))
        frames.append(
            pl.DataFrame(
                {
                    "id": column(draw, IDS, n, id_type),
                    "x": column(draw, NUMBERS, n, x_type),
                    "flag": column(draw, IDS, n, flag_type),
                    "tags": pl.Series([p and [v for v, _ in p] for p in pairs], dtype=pl.List(entry)),
                    "w": pl.Series([p and [w for _, w in p] for p in pairs], dtype=pl.List(pl.Float64)),
                    "ranked": pl.Series(
                        draw(st.lists(st.none() | st.lists(st.none() | TEXT, max_size=3), min_size=n, max_size=n)),
                        dtype=pl.List(pl.String),
                    ),
                    "joined": pl.Series(draw(st.lists(st.none() | joined, min_size=n, max_size=n)), dtype=pl.String),
                    "own": pl.Series(draw(st.lists(st.none() | own, min_size=n, max_size=n)), dtype=pl.String),
                }
            )
        )
    return frames[0], frames[1]


# ------------------------------------------------------------------------------------------------ helpers


def source(feature: Feature, frame: pl.DataFrame) -> list[pl.Series]:
    if isinstance(feature, Cross):
        return [frame[c] for c in feature.of]
    return [frame[feature.column or feature.name]]


def fit(
    schema: Schema, frame: pl.DataFrame, weights: np.ndarray | None = None
) -> tuple[Encoder, dict[str, np.ndarray]]:
    fitter = Fitter(schema)
    for feature in schema.features:
        if feature.level != "event":
            fitter.add(feature, source(feature, frame), weights)
    for history in schema.histories:
        for name in history.fields:
            fitter.add(name, source(schema.feature(name), event_source(frame))[0], weights)
    return fitter.finish(), fitter.counts


def event_source(frame: pl.DataFrame) -> pl.DataFrame:
    """The same columns as an event log names them."""
    return frame.with_columns(item=frame["id"], kind=frame["flag"])


def by_field(frame: pl.DataFrame) -> pl.DataFrame:
    """The columns of the history `past`, named by field, as the bulk engine reads them."""
    names = {
        "id_v": "id",
        "kind": "flag",
        "x_standard": "x",
        "b_fitted": "x",
        "weighted": "tags",
        "weighted·weights": "w",
    }
    names |= {"ranked_h": "ranked", "x_powers": "x", "ranks_segments": "ranked", "own": "own"}
    return frame.select(**{field: pl.col(c) for field, c in names.items()})


def assert_same(a: Block[np.ndarray], b: Block[np.ndarray]) -> None:
    """Equal to the bit, in types, shapes and the order of distinct lists."""
    assert list(a.lists) == list(b.lists)
    pairs = [("ids", a.ids, b.ids), ("numbers", a.numbers, b.numbers)]
    for name, left in a.lists.items():
        right = b.lists[name]
        assert (left.weights is None) == (right.weights is None)
        pairs += [(f"{name}.{k}", getattr(left, k), getattr(right, k)) for k in ("index", "ids", "segments", "lengths")]
        if left.weights is not None:
            pairs.append((f"{name}.weights", left.weights, right.weights))
    for name, x, y in pairs:
        assert (x.dtype, x.shape) == (y.dtype, y.shape), name
        assert x.tobytes() == y.tobytes(), f"{name}: {x.tolist()} != {y.tolist()}"


def assert_fits(block: Block[np.ndarray], columns: Columns, encoder: Encoder, age: bool = False) -> None:
    """The block has the columns that the encoder declares, and every symbol is one of its table."""
    ids = columns.ids[:-1] if age else columns.ids
    assert block.ids.shape[1] == len(ids)
    assert block.numbers.shape[1] == len(columns.numbers)
    assert list(block.lists) == [c.name for c in columns.lists]
    assert (block.ids.dtype, block.numbers.dtype) == (np.int64, np.float32)
    assert np.isfinite(block.numbers).all()
    for j, (_, table) in enumerate(ids):
        assert ((block.ids[:, j] > 0) & (block.ids[:, j] < encoder.tables[table].size)).all()
    for c in columns.lists:
        lists = block.lists[c.name]
        for j, table in enumerate([c.table] if c.ranks is None else [c.table, c.ranks]):
            assert ((lists.ids[:, j] > 0) & (lists.ids[:, j] < encoder.tables[table].size)).all()
        assert (lists.weights is not None) == c.weighted
        assert len(lists.ids) == len(lists.segments) == lists.lengths.sum()


def agree(encoder: Encoder, frame: pl.DataFrame) -> None:
    """Both engines on all blocks of a frame."""
    rows = list(frame.iter_rows(named=True))
    candidates = encode_block(encoder, "candidate", frame)
    assert_same(candidates, encoder.candidates(rows, strict=True))
    assert_fits(candidates, encoder.columns("candidate"), encoder)
    requests = encode_block(encoder, "request", frame)
    assert_fits(requests, encoder.columns("request"), encoder)
    for i, row in enumerate(rows[:2]):
        assert_same(encode_block(encoder, "request", frame[i : i + 1]), encoder.request(row))
        assert requests.ids[i].tolist() == encoder.request(row).ids[0].tolist()
        assert requests.numbers[i].tobytes() == encoder.request(row).numbers[0].tobytes()
        assert (
            candidates.numbers[i].tobytes() == encoder.candidates([row]).numbers[0].tobytes()
        )  # one by one as together
    past = encode_block(encoder, "past", by_field(frame))
    assert_same(past, encoder.events("past", list(event_source(frame).iter_rows(named=True)), strict=True))
    assert_fits(past, encoder.columns("past"), encoder, age=True)


# ------------------------------------------------------------------------------------------------ the engines agree


@quick
@given(two_frames(), st.data())
def test_engines_agree_on_everything_and_after_a_round_trip(
    frames: tuple[pl.DataFrame, pl.DataFrame], data: st.DataObject
) -> None:
    train, other = frames
    weights = data.draw(st.none() | st.lists(st.integers(0, 3), min_size=train.height, max_size=train.height))
    encoder, counts = fit(SCHEMA, train, None if weights is None else np.array(weights))
    agree(encoder, train)
    agree(encoder, other)
    for name, table in encoder.tables.items():
        assert counts[name].shape == (table.size,)
    with tempfile.TemporaryDirectory() as folder:
        encoder.save(Path(folder))
        again = Encoder.load(Path(folder))
    assert (again.schema, again.numbers) == (encoder.schema, encoder.numbers)
    assert {n: t.names for n, t in again.tables.items()} == {n: t.names for n, t in encoder.tables.items()}
    for name in ("candidate", "request"):
        assert_same(encode_block(encoder, name, other), encode_block(again, name, other))
    agree(again, other)


@quick
@given(st.data(), st.sampled_from(list(IDS)))
def test_bulk_canonical_texts_are_the_single_ones(data: st.DataObject, dtype: Any) -> None:
    series = column(data.draw, IDS, data.draw(st.integers(0, 9)), dtype)
    assert canonical_series(series).to_list() == [canonical(v) for v in series.to_list()]


@pytest.mark.parametrize("transform", ["none", "log1p", "standard", "minmax", "powers"])
def test_numbers_agree_to_the_bit_on_many_values(transform: Any) -> None:
    # vector instructions and their scalar remainders must round alike: 1-row arrays against long ones
    rng = np.random.default_rng(0)
    x = rng.normal(size=2000) * 10.0 ** rng.integers(-20, 20, 2000)
    schema = Schema(features=(Numeric(name="x", level="candidate", transform=transform),))
    encoder, _ = fit(schema, pl.DataFrame({"x": x}))
    bulk = encode_block(encoder, "candidate", pl.DataFrame({"x": x})).numbers
    single = np.concatenate([encoder.candidates([{"x": v}]).numbers for v in x.tolist()])
    assert bulk.tobytes() == single.tobytes()


# ------------------------------------------------------------------------------------------------ worked out by hand


def one(
    feature: Feature, values: Sequence[Any] | pl.Series, **more: Sequence[Any]
) -> tuple[Encoder, dict[str, np.ndarray]]:
    name = getattr(feature, "column", None) or feature.name
    return fit(Schema(features=(feature,)), pl.DataFrame({name: values, **more}, strict=False))


def ids(encoder: Encoder, **columns: Sequence[Any]) -> list[int]:
    n = len(next(iter(columns.values())))
    block = encoder.candidates([{name: values[i] for name, values in columns.items()} for i in range(n)])
    return block.ids[:, 0].tolist()


def test_vocabulary_symbols_and_counts() -> None:
    feature = Categorical(name="c", level="candidate", encoding=Vocabulary(min_count=2))
    encoder, counts = one(feature, ["b", "a", "a", None, "b", "z", ""])
    assert encoder.tables["c"].names[FIRST:] == ["a", "b"]
    assert counts["c"].tolist() == [0, 1, 2, 2, 2]  # padding, z, null and "", a, b
    assert ids(encoder, c=["a", "b", "z", None, "", "new", math.nan]) == [3, 4, OOV, MISSING, MISSING, OOV, MISSING]


def test_one_and_one_point_nought_are_one_value_but_texts_are_not() -> None:
    encoder, _ = one(Categorical(name="c", level="candidate"), [1, 2, 1])
    assert ids(encoder, c=[1, 1.0, "1", np.int8(1), "01", "1.0", True]) == [3, 3, 3, 3, OOV, OOV, OOV]
    bulk = encode_block(encoder, "candidate", pl.DataFrame({"c": [1.0, 2.0, -0.0, 1.5]}))
    assert bulk.ids[:, 0].tolist() == [3, 4, OOV, OOV]


def test_hashed_symbols_are_the_hash_of_the_table_and_fields_map_apart() -> None:
    features = tuple(
        Categorical(name=n, level="candidate", column="c", encoding=Hashed(buckets=1000)) for n in ("p", "q")
    )
    encoder, counts = fit(Schema(features=features), pl.DataFrame({"c": [5, 5, 7]}))
    block = encoder.candidates([{"c": 5}, {"c": "x"}, {"c": None}])
    for j, table in enumerate(("p", "q")):
        assert block.ids[:, j].tolist() == [FIRST + hash64(table, t) % 1000 for t in ("5", "x")] + [MISSING]
    assert block.ids[0, 0] != block.ids[0, 1]
    assert counts["p"][block.ids[0, 0]] == 2
    table = encoder.tables["p"]
    assert isinstance(table, HashedTable)
    assert table.values_in(int(block.ids[0, 0])) == ["5"]
    assert table.values_in(FIRST + hash64("p", "7") % 1000) == ["7"]


def test_growing_tables_grow_only_when_asked_and_old_symbols_stay() -> None:
    features = (
        Categorical(name="c", level="candidate", encoding=Growing(capacity=2)),
        Ranked(name="r", level="candidate", encoding=Growing(capacity=9), table="c2"),
    )
    schema = Schema(features=features)
    encoder, counts = fit(schema, pl.DataFrame({"c": ["b", "a", "b"], "r": [["x#1"], [], None]}))
    assert encoder.tables["c"].names[FIRST:] == ["b", "a"]
    assert counts["c"].tolist() == [0, 0, 0, 2, 1]
    fitted = encoder.fitted_tables(counts)
    assert (fitted["c"].rows, len(fitted["c"].counts), fitted["r.rank"].rows) == (5, 5, FIRST + 21)
    later = pl.DataFrame({"c": ["z", "a", "y", "z"], "r": [["x#2", "n#1"], ["x#1"], None, ["m"]]})
    assert encode_block(encoder, "candidate", later).ids[:, 0].tolist() == [OOV, 4, OOV, OOV]
    grown = encode_block(encoder, "candidate", later, grow=True)
    assert grown.ids[:, 0].tolist() == [5, 4, 6, 5]
    assert grown.lists["r"].ids.tolist() == [[3, 5], [4, 4], [3, 4], [5, 3]]  # (x, 2) (n, 1) | (x, 1) | (m, unknown)
    assert encoder.tables["c"].names[FIRST:] == ["b", "a", "z", "y"]
    assert isinstance(encoder.tables["c"], GrowingTable)
    assert_same(grown, encoder.candidates(list(later.iter_rows(named=True))))


def test_cross_is_missing_if_a_part_is_and_joins_canonical_texts() -> None:
    cross = Cross(name="k", level="candidate", of=("a", "b"), encoding=Hashed(buckets=10**6))
    encoder, _ = fit(Schema(features=(cross,)), pl.DataFrame({"a": [1], "b": ["x"]}))
    known = FIRST + hash64("k", "1\x02x") % 10**6
    assert ids(encoder, a=[1, 1.0, "1", None, 1], b=["x", "x", "x", "x", ""]) == [known] * 3 + [MISSING] * 2
    struct = pl.DataFrame({"b": ["x"], "a": [1]}).to_struct("k")  # by name, whatever the order
    fitter = Fitter(encoder.schema)
    fitter.add(cross, struct)
    fitter.finish()
    assert np.flatnonzero(fitter.counts["k"]).tolist() == [known]


def test_numeric_transforms_by_hand() -> None:
    x = [1.0, 3.0, None, 5.0]
    sd = math.sqrt(8 / 3)
    expected = {
        "none": (7.0, -7.0),
        "log1p": (math.log(8), -math.log(8)),
        "standard": (4 / sd, -10 / sd),
        "minmax": (1.5, -2.0),
    }
    for transform, (plus, minus) in expected.items():
        encoder, _ = one(Numeric(name="x", level="candidate", transform=transform), x)  # type: ignore[arg-type]
        assert encoder.columns("candidate").numbers == ("x", "x?")
        got = encoder.candidates([{"x": 7}, {"x": "-7"}, {"x": None}, {}]).numbers
        assert got.tolist() == [pytest.approx([plus, 0]), pytest.approx([minus, 0]), [0, 1], [0, 1]]
    for transform in ("standard", "minmax"):  # constant columns become 0; 0.1 three times has no exact mean
        encoder, _ = one(Numeric(name="x", level="candidate", transform=transform), [0.1] * 3)  # type: ignore[arg-type]
        assert encoder.columns("candidate").numbers == ("x",)
        assert encoder.candidates([{"x": 0.1}, {"x": None}]).numbers.tolist() == [[0], [0]]


def test_a_schema_of_numbers_alone_is_saved_too(tmp_path: Path) -> None:
    encoder, _ = one(Numeric(name="x", level="candidate"), [1.0, 2.5, None])
    encoder.save(tmp_path / "new" / "folder")
    again = Encoder.load(tmp_path / "new" / "folder")
    assert (again.schema, again.numbers, again.tables) == (encoder.schema, encoder.numbers, {})


def test_statistics_come_in_pieces_and_see_weighted_training_rows_only() -> None:
    feature = Numeric(name="x", level="candidate")
    fitter = Fitter(Schema(features=(feature,)))
    fitter.add("x", pl.Series([1e9 + 1, 1e9 + 2, 1e300, None]), np.array([1, 2, 0, 0]))
    fitter.add("x", pl.Series([1e9 + 3]))
    stats = fitter.finish().numbers["x"]
    values = np.array([1, 2, 2, 3])
    assert (stats.shift, stats.scale) == (pytest.approx(1e9 + 2), pytest.approx(values.std()))
    assert not stats.missing  # the row without a value is no training row


def test_buckets_share_out_the_training_rows() -> None:
    assert quantile_cuts(np.arange(1.0, 101), np.ones(100, dtype=np.int64), 10).tolist() == list(range(11, 101, 10))
    assert quantile_cuts(np.array([0.0, 1, 2]), np.array([90, 5, 5]), 10).tolist() == [1]  # one value fills nine shares
    assert quantile_cuts(np.array([3.0]), np.array([7]), 4).tolist() == []
    encoder, counts = one(Bucketed(name="b", level="candidate", buckets=4), [4, 1, 3, 2, None, 2.0])
    assert encoder.tables["b"].names[FIRST:] == ["[-inf, 2)", "[2, 3)", "[3, 4)", "[4, inf)"]
    assert counts["b"].tolist() == [0, 0, 1, 1, 2, 1, 1]
    assert ids(encoder, b=[-1e9, 1.99, 2, "3", None, 1e30]) == [3, 3, 4, 5, MISSING, 6]


def test_lists_are_stored_once_in_order_of_first_occurrence() -> None:
    feature = MultiValued(name="m", level="candidate", weights="w")
    encoder, counts = one(feature, [["b", "b", "a"], None], w=[[1.0, 1.0, 1.0], None])
    assert counts["m"].tolist() == [0, 0, 0, 2, 1]
    values = [["a", "b"], ["b", "a"], None, ["a", None, "b"], [], ["a", "b"], ["", "zz"]]
    weights = [[1.0, 2.0], [1.0, 2.0], None, [1.0, 9.0, 2.0], [], [1.0, 2.5], [1.0, 0.1]]
    rows = [{"m": m, "w": w} for m, w in zip(values, weights, strict=True)]
    lists = encoder.candidates(rows).lists["m"]
    assert lists.index.tolist() == [0, 1, 2, 0, 2, 3, 4]
    assert lists.lengths.tolist() == [2, 2, 0, 2, 1]
    assert lists.ids[:, 0].tolist() == [4, 3, 3, 4, 4, 3, OOV]
    assert lists.segments.tolist() == [0, 0, 1, 1, 3, 3, 4]
    assert lists.weights is not None
    assert lists.weights.tolist() == [1, 2, 1, 2, 1, 2.5, np.float32(0.1)]
    assert_same(encoder.candidates(rows), encode_block(encoder, "candidate", pl.DataFrame({"m": values, "w": weights})))


def test_weights_in_the_text_of_their_values() -> None:
    """As if they were a column of their own: joined text, or lists of texts."""
    feature = MultiValued(name="m", level="candidate", separator="|", weight_separator=":")
    encoder, counts = one(feature, ["sports:.7|music:.3", "sports:1", None])
    assert encoder.tables["m"].names[FIRST:] == ["sports", "music"]
    assert counts["m"].tolist() == [0, 0, 0, 2, 1]
    assert encoder.columns("candidate").lists == (ListColumn(name="m", table="m", weighted=True, pooling="mean"),)
    values = ["music:.3|sports:-2", "sports:1|", ":5|new:0", "", None]  # of no value the weight means nothing
    split = [None if v is None else v.split("|") for v in values]
    for column in (pl.Series(values), pl.Series(split)):
        single = encoder.candidates([{"m": v} for v in column.to_list()])
        lists = single.lists["m"]
        assert lists.ids[:, 0].tolist() == [4, 3, 3, OOV]
        assert lists.weights is not None
        assert lists.weights.tolist() == [np.float32(0.3), -2, 1, 0]
        assert lists.index.tolist() == [0, 1, 2, 3, 3]
        assert_same(encode_block(encoder, "candidate", pl.DataFrame({"m": column})), single)
    beside = MultiValued(name="m", level="candidate", weights="w")
    other, _ = one(beside, [["sports", "music"], ["sports"]], w=[[0.7, 0.3], [1.0]])
    columns = {"m": [["music", "sports"], ["sports"], ["new"], [], None], "w": [[0.3, -2.0], [1.0], [0.0], [], None]}
    assert_same(encode_block(other, "candidate", pl.DataFrame(columns)), single)


@pytest.mark.parametrize("padding", [0, "0"])
def test_what_fills_lists_up_is_no_value(padding: int | str) -> None:
    """Before or behind, as numbers or text; one value, however it is written: as of histories."""
    columns: list[tuple[pl.Series, list[list[str]]]] = [
        (pl.Series([[3, 7, 0, 0], [0, 0, 0, 3], [0, 0, 0, 0]]), [["3", "7"], ["3"], []]),
        (pl.Series([[0.0, 7.0], [-0.0, math.nan]]), [["7"], []]),
        (pl.Series([[3, 0], [7, 0]], dtype=pl.Array(pl.Int64, 2)), [["3"], ["7"]]),
        (pl.Series([["0", "00", "3"], None]), [["00", "3"], []]),
        (pl.Series([["0", "3"]], dtype=pl.List(pl.Categorical)), [["3"]]),
        (pl.Series(["3|7|0|0", "0", "", None]), [["3", "7"], [], [], []]),
    ]
    feature = MultiValued(name="m", level="candidate", separator="|", padding=padding)
    for column, expected in columns:
        encoder, counts = one(feature, column)
        table = encoder.tables["m"]
        assert sorted(table.names[FIRST:]) == sorted({text for row in expected for text in row})
        assert counts["m"].sum() == sum(map(len, expected))
        bulk = encode_block(encoder, "candidate", pl.DataFrame({"m": column}))
        assert_same(bulk, encoder.candidates([{"m": v} for v in column.to_list()]))
        lists = bulk.lists["m"]
        found = [lists.ids[lists.segments == i, 0].tolist() for i in lists.index]
        assert found == [[table.lookup(text) for text in row] for row in expected]
    plain, _ = one(MultiValued(name="m", level="candidate"), [[0, 3]])  # a value like any other, unless it is said
    assert plain.tables["m"].names[FIRST:] == ["0", "3"]


def test_padding_goes_with_its_weight() -> None:
    beside = MultiValued(name="m", level="candidate", weights="w", padding=0)
    own = MultiValued(name="m", level="candidate", separator="|", weight_separator=":", padding=0)
    encoder, _ = one(beside, [[3, 0]], w=[[1.0, None]])
    rows = {"m": [[3, 0], [0, 3], [0, 0]], "w": [[0.5, 9.0], [None, 2.0], [math.nan, 0.0]]}
    block = encode_block(encoder, "candidate", pl.DataFrame(rows))
    assert block.lists["m"].lengths.tolist() == [1, 1, 0]
    assert block.lists["m"].weights.tolist() == [0.5, 2]  # type: ignore[union-attr]
    assert_same(block, encoder.candidates([{"m": m, "w": w} for m, w in zip(*rows.values(), strict=True)]))
    encoder, _ = one(own, ["3:1|0"])  # with a weight or without
    texts = ["3:.5|0:9", "0|3:2", "0:0|0"]
    assert_same(block, encode_block(encoder, "candidate", pl.DataFrame({"m": texts})))
    assert_same(block, encoder.candidates([{"m": text} for text in texts]))
    with pytest.raises(UserError, match="got 1 values but 2 weights"):
        encode_block(one(beside, [[3]], w=[[1.0]])[0], "candidate", pl.DataFrame({"m": [[0]], "w": [[1.0, 2.0]]}))


def test_an_entry_is_split_at_the_last_weight_separator() -> None:
    feature = MultiValued(name="m", level="candidate", separator=" ", weight_separator="::")
    encoder, _ = one(feature, ["a::b::1", "a:::2 \n::3"])
    assert encoder.tables["m"].names[FIRST:] == ["\n", "a:", "a::b"]


@pytest.mark.parametrize("bad", ["sports", "sports:", "sports:x", "sports:nan", "sports:-inf", "sports:1_0", "7"])
def test_an_entry_without_a_weight_is_named_with_its_row(bad: str) -> None:
    feature = MultiValued(name="m", level="candidate", separator="|", weight_separator=":")
    encoder, _ = one(feature, ["sports:.7"])
    words = (
        f"got {bad!r}, which has no finite number behind its last ':'; accepted: a value and its weight, "
        "such as 'sports:0.7'"
    )
    with pytest.raises(UserError) as caught:
        encode_block(encoder, "candidate", pl.DataFrame({"m": ["a:1", "", f"b:2|{bad}|c"]}))
    assert str(caught.value) == f"feature 'm', row 2: {words}"
    with pytest.raises(UserError) as caught:
        encoder.candidates([{"m": "a:1"}, {"m": ""}, {"m": f"b:2|{bad}|c"}])
    assert str(caught.value) == f"candidate 2: feature 'm': {words}"


def test_a_weight_beyond_float32_is_refused_wherever_it_stands() -> None:
    encoder, _ = one(MultiValued(name="m", level="candidate", separator="|", weight_separator=":"), ["a:1"])
    with pytest.raises(UserError, match=r"^feature 'm': got an entry whose weight is missing or beyond float32"):
        encode_block(encoder, "candidate", pl.DataFrame({"m": ["a:1e300"]}))
    with pytest.raises(UserError, match="candidate 0: feature 'm': got an entry whose weight is missing or beyond"):
        encoder.candidates([{"m": "a:1e300"}])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"weight_separator": ""}, "weight_separator is empty; accepted: the text between a value and its weight"),
        (
            {"weight_separator": ":", "weights": "w"},
            "weights = 'w' beside weight_separator = ':'; accepted: one of the",
        ),
        (
            {"weight_separator": ":", "separator": ":"},
            "weight_separator = ':' beside separator = ':'; accepted: two texts",
        ),
    ],
)
def test_separators_that_could_not_be_told_apart_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        MultiValued(name="m", level="candidate", **given)


def test_distinct_lists_survive_hashes_that_collide(monkeypatch: pytest.MonkeyPatch) -> None:
    import finerank.data.encode as module

    honest, seeds = module.splitmix64, []

    def weak(state: np.ndarray) -> np.ndarray:
        return np.zeros_like(state) if len(seeds) < 3 else honest(state)  # all lists look alike until the third seed

    monkeypatch.setattr(module, "mix", lambda seed: seeds.append(seed) or seed)
    monkeypatch.setattr(module, "splitmix64", weak)
    lists = distinct_lists(
        np.array([1, 1, 1]), np.array([[3], [4], [3]]), None
    )  # of one length: content tells them apart
    assert lists.index.tolist() == [0, 1, 0]
    assert lists.ids[:, 0].tolist() == [3, 4]
    assert seeds == [0, 1, 2]
    seeds.clear()
    lists = distinct_lists(np.array([1, 2, 0, 1]), np.array([[3], [3], [3], [3]]), None)  # of one content: length does
    assert lists.index.tolist() == [0, 1, 2, 0]
    assert lists.lengths.tolist() == [1, 2, 0]


def test_ranks_have_their_own_table() -> None:
    encoder, counts = one(
        Ranked(name="r", level="candidate", max_rank=3, table="tag"), [["war#1", "war#9", "c#d#2", "#1"]]
    )
    column = encoder.columns("candidate").lists[0]
    assert column == ListColumn(name="r", table="tag", ranks="r.rank", weighted=False, pooling="mean")
    lists = encoder.candidates([{"r": ["war#2", "c#d#3", "war", "new#1", None, "#1"]}]).lists["r"]
    war, cd = (encoder.tables["tag"].lookup(t) for t in ("war", "c#d"))
    assert lists.ids.tolist() == [[war, 5], [cd, 6], [war, 3], [OOV, 4]]
    assert counts["r.rank"].tolist() == [
        0,
        0,
        0,
        1,
        1,
        1,
        0,
    ]  # rank 0 of war#9, 1 of war#1, 2 of c#d#2; "#1" has no tag
    assert encoder.tables["r.rank"].size == FIRST + 4


def test_history_reads_its_feature_and_ages_compare_exactly() -> None:
    encoder, _ = fit(SCHEMA, TRAIN)
    columns = encoder.columns("past")
    assert columns.ids == (("id_v", "id_v"), ("kind", "kind"), ("b_fitted", "b_fitted"), ("age", "past.age"))
    assert columns.numbers == ("x_standard", "x_powers", "x_powers²", "√x_powers")
    lists = ["weighted", "ranked_h", "ranks_segments.top1", "ranks_segments.top3", "own"]
    assert [c.name for c in columns.lists] == lists
    assert encoder.columns("given").ids == (("id_v", "id_v"),)  # list columns have no times, so no ages
    assert "given.age" not in encoder.tables
    block = encoder.events("past", [{"item": 1, "flag": True}, {"item": 2}])
    assert block.ids[:, :2].tolist() == [[3, 3], [OOV, MISSING]]
    minute, year = 60_000_000, 365 * 86_400_000_000
    ages = np.array([-5, 0, minute - 1, minute, year - 1, year, 2**62])
    assert age_ids(encoder, "past", ages).tolist() == [3, 3, 3, 4, 15, 16, 16]
    assert encoder.tables["past.age"].size == 17
    assert encoder.columns("candidate", use="train_only").ids == (("position", "id_v"),)
    train_only = encode_block(encoder, "candidate", pl.DataFrame({"id": [1, 9]}), use="train_only")
    assert train_only.ids.tolist() == [[3], [OOV]]


def test_event_counts_weigh_as_often_as_training_rows_see_them() -> None:
    feature = Categorical(name="c", level="candidate")
    fitter = Fitter(Schema(features=(feature,), histories=(History(name="h", fields=("c",)),)))
    fitter.add("c", pl.Series(["a", "b", "never"]), np.array([5, 1, 0]))
    fitter.add("c", pl.Series(["b"]))
    encoder = fitter.finish()
    assert encoder.tables["c"].names[FIRST:] == ["a", "b"]
    assert fitter.counts["c"].tolist() == [0, 0, 0, 5, 2]
    assert fitter.counts["h.age"].sum() == 0
    tags = Ranked(name="r", level="candidate", max_rank=2)
    fitter = Fitter(Schema(features=(tags,)))
    fitter.add(tags, pl.Series([["x#1", "y"], None, ["x#2"], ["z"]]), np.array([3, 9, 2, 0]))
    assert fitter.finish().tables["r"].names[FIRST:] == ["x", "y"]
    assert fitter.counts["r"].tolist() == [0, 0, 0, 5, 3]
    assert fitter.counts["r.rank"].tolist() == [0, 0, 0, 3, 3, 2]
    with pytest.raises(UserError, match="1 rows but 2 weights"):
        Fitter(encoder.schema).add("c", pl.Series(["a"]), np.array([1, 1]))


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"id": {"a": 1}}, "candidate 1: feature 'id_v': got .* of type dict"),
        ({"id": "\ud800"}, "candidate 1: feature 'id_v': .*surrogate"),
        ({"x": "abc"}, "candidate 1: feature 'x_none': got 'abc'"),
        ({"x": math.inf}, "candidate 1: feature 'x_none': .*infinite"),
        ({"x": 1e300}, "candidate 1: feature 'x_none': 1e[+]300 is beyond float32"),
        ({"tags": "a"}, "candidate 1: feature 'tags_v': got 'a' .*separator"),
        ({"tags": 7}, "candidate 1: feature 'tags_v': got 7 .*put it into a list"),
        ({"tags": [["a"]]}, "candidate 1: feature 'tags_v': got .* of type list"),
        ({"tags": ["a", "b"]}, "candidate 1: feature 'weighted': got 2 values but 1 weights"),
        ({"w": [None]}, "candidate 1: feature 'weighted': .*weight is missing"),
        ({"w": ["much"]}, "candidate 1: feature 'weighted': got 'much'"),
    ],
)
def test_a_bad_value_is_named_with_its_candidate(bad: dict[str, Any], words: str) -> None:
    encoder, _ = fit(SCHEMA, TRAIN)
    with pytest.raises(UserError, match=words):
        encoder.candidates([GOOD, GOOD | bad])


def test_a_missing_column_is_a_missing_value_unless_strict() -> None:
    encoder, _ = fit(SCHEMA, TRAIN)
    nothing = encoder.candidates([{}])
    assert_same(nothing, encoder.candidates([dict.fromkeys(TRAIN.columns)]))
    assert set(nothing.ids[0].tolist()) == {MISSING}
    with pytest.raises(UserError, match="candidate 1: no 'flag', which feature 'three' reads; "):
        encoder.candidates([GOOD, {k: v for k, v in GOOD.items() if k != "flag"}], strict=True)
    with pytest.raises(UserError, match="candidate 0: got 7; accepted: an object"):
        encoder.candidates([7])  # type: ignore[list-item]
    with pytest.raises(UserError, match="request: feature 'user'"):
        encoder.request({"id": []})
    with pytest.raises(UserError, match="history 'past', event 0: feature 'kind'"):
        encoder.events("past", [{"flag": b"x"}])
    with pytest.raises(UserError, match="no history 'future'"):
        encoder.events("future", [])


@pytest.mark.parametrize(
    ("name", "series", "words"),
    [
        ("id", pl.Series([1, 2]).cast(pl.Datetime), "feature 'id_v': got a column of Datetime"),
        ("x", pl.Series([1.0, math.inf]), "feature 'x_none', row 1: got inf"),
        ("x", pl.Series(["1", "abc"]), "feature 'x_none', row 1: got 'abc'"),
        ("x", pl.Series([0.0, 1e300]), "feature 'x_none', row 1: 1e[+]300 is beyond float32"),
        ("tags", pl.Series(["a", "b"]), "feature 'tags_v': got a column of String; .*separator"),
        ("tags", pl.Series([1, 2]), "feature 'tags_v': got a column of Int64; .*lists"),
        ("tags", pl.Series([["a"], ["a", "b"]]), "feature 'weighted', row 1: got 2 values but 1 weights"),
        ("w", pl.Series([[1.0], [None]]), "feature 'weighted': .*weight is missing"),
    ],
)
def test_a_bad_column_is_named_with_its_row(name: str, series: pl.Series, words: str) -> None:
    encoder, _ = fit(SCHEMA, TRAIN)
    with pytest.raises(UserError, match=words):
        encode_block(encoder, "candidate", pl.concat([TRAIN, TRAIN]).with_columns(series.alias(name)))
    with pytest.raises(UserError, match=f"candidate: no column '{name}' for feature"):
        encode_block(encoder, "candidate", TRAIN.drop(name))


@pytest.mark.parametrize(("weight", "words"), [(math.inf, "got inf"), ("x", "got 'x'")])
def test_a_bad_weight_is_named_with_its_row_and_not_its_entry(weight: object, words: str) -> None:
    encoder, _ = fit(SCHEMA, TRAIN)
    tags = pl.Series("tags", [["a", "b", "b"], ["a"], ["b"]])
    weights = pl.Series("w", [[type(weight)(i) for i in range(3)], [], [weight]])
    frame = pl.concat([TRAIN] * 3).with_columns(tags, weights)
    with pytest.raises(UserError, match="feature 'weighted', row 1: got 1 values but 0 weights"):
        encode_block(encoder, "candidate", frame)
    whole = frame.with_columns(pl.Series("tags", [["a", "b", "b"], [], ["b"]]))
    with pytest.raises(UserError, match=f"feature 'weighted', row 2: {words}"):
        encode_block(encoder, "candidate", whole)


def test_training_numbers_too_large_for_their_transform_and_table_names_that_clash_are_refused() -> None:
    for transform in ("standard", "minmax"):
        with pytest.raises(UserError, match=r"feature 'x': training values .*log1p"):
            one(Numeric(name="x", level="candidate", transform=transform), [1.7e308, -1.7e308])  # type: ignore[arg-type]
    clash = (Ranked(name="r", level="candidate"), Categorical(name="r.rank", level="candidate"))
    with pytest.raises(UserError, match=r"'r\.rank' is kept"):
        Fitter(Schema(features=clash))


def test_a_damaged_encoder_is_told_by_file(tmp_path: Path) -> None:
    encoder, _ = fit(SCHEMA, TRAIN)
    encoder.save(tmp_path)
    path = tmp_path / "encoder.json"
    whole = path.read_bytes()
    for content in (whole[:-9], whole.replace(b'"shift": 1.0', b'"shift": 2.0'), b""):
        assert content != whole
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"encoder\.json: truncated or altered"):
            Encoder.load(tmp_path)
    path.write_bytes(whole)
    Encoder.load(tmp_path)
    (tmp_path / "tables" / "000" / "text.npy").unlink()
    with pytest.raises(UserError, match=r"text\.npy: cannot be read"):
        Encoder.load(tmp_path)


def test_the_per_request_engine_needs_neither_torch_nor_polars_nor_pyarrow() -> None:
    code = (
        "import sys, finerank.runtime.encoder, finerank.runtime.rows\n"
        "print(sorted({'torch', 'polars', 'pyarrow'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
