"""What a recipe can make of a column: laws of buckets, powers of ranks, tags with ranks, widths by rule; by hand and by
brute force. That both encoders agree on all of it is shown in test_encoders_agree.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Context, Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finerank.data.encode import Fitter, encode_block
from finerank.data.prepare import prepare
from finerank.data.split import Split
from finerank.data.tally import CRITEO_LOW, POINTS, criteo_cuts, width_cuts
from finerank.errors import UserError
from finerank.explain.importance import _fields
from finerank.layers.embedding import Embedding
from finerank.models.plain import EmbeddingOptions, FieldEmbedding
from finerank.models.registry import composition
from finerank.runtime.encoder import Encoder
from finerank.schema import (
    FIRST,
    MISSING,
    Bucketed,
    Categorical,
    Columns,
    Feature,
    Growing,
    Hashed,
    Numeric,
    Ranked,
    Schema,
)  # fmt: skip
from finerank.training.loop import Trainer
from finerank.training.options import TrainingOptions
from finerank.widths import scaled_width, width_of

quick = settings(derandomize=True, max_examples=60, deadline=None)


def fitted(feature: Feature, values: Sequence[Any]) -> tuple[Encoder, dict[str, np.ndarray]]:
    fitter = Fitter(Schema(features=(feature,)))
    fitter.add(feature, pl.Series("x", values, strict=False))
    return fitter.finish(), fitter.counts


def symbols(encoder: Encoder, values: Sequence[Any]) -> list[int]:
    ids: list[int] = encoder.candidates([{"x": v} for v in values]).ids[:, 0].tolist()
    return ids


# ------------------------------------------------------------------------------------------------ laws of buckets

BUCKETED: dict[str, Bucketed] = {
    law: Bucketed(name="x", level="candidate", law=law, buckets=4)  # type: ignore[arg-type]
    for law in ("quantile", "equal_width", "criteo")
}


@pytest.mark.parametrize("law", BUCKETED)
def test_columns_with_nothing_to_cut(law: str) -> None:
    for values in ([5.0] * 4, [None, 5.0, math.nan], [5.0]):
        encoder, _ = fitted(BUCKETED[law], values)
        assert encoder.tables["x"].size == FIRST + 1
        assert symbols(encoder, [5, -1e9, 1e300, None]) == [FIRST, FIRST, FIRST, MISSING]
    encoder, counts = fitted(BUCKETED[law], [None, None])
    assert symbols(encoder, [7, None]) == [FIRST, MISSING]
    assert counts["x"].tolist() == [0, 0, 2, 0]
    with pytest.raises(UserError, match="feature 'x', row 1: got inf; accepted: finite numbers or null"):
        fitted(BUCKETED[law], [1.0, math.inf])
    with pytest.raises(UserError, match=r"candidate 0: feature 'x': .*infinite"):
        symbols(encoder, [-math.inf])


@quick
@given(st.lists(st.integers(-4, 4) | st.floats(-1e9, 1e9), min_size=2, max_size=40), st.sampled_from([*BUCKETED]))
def test_no_end_bucket_is_empty_and_order_is_kept(values: list[float], law: str) -> None:
    encoder, counts = fitted(BUCKETED[law], [float(v) for v in values])
    found = symbols(encoder, sorted(values))
    assert found == sorted(found)
    assert counts["x"][FIRST:].sum() == len(values)
    assert counts["x"][FIRST] > 0
    assert counts["x"][-1] > 0
    if law == "quantile":  # heavy ties included
        assert (counts["x"][FIRST:] > 0).all()
    if law != "criteo":
        assert encoder.tables["x"].size <= FIRST + 4


def test_equal_widths_by_hand() -> None:
    encoder, counts = fitted(BUCKETED["equal_width"], [0, 1, 1, 8])
    assert encoder.tables["x"].names[FIRST:] == ["[-inf, 2)", "[2, 4)", "[4, 6)", "[6, inf)"]
    assert counts["x"][FIRST:].tolist() == [3, 0, 0, 1]
    assert symbols(encoder, [-7, 2, 5.9, 6, 100]) == [3, 4, 5, 6, 6]
    assert np.isfinite(width_cuts(-1.7e308, 1.7e308, 4)).all()
    assert len(width_cuts(1.0, math.nextafter(1.0, 2), 10)) == 1  # two numbers next to each other have one cut


def criteo_rule(v: int) -> int:
    return math.floor(math.log(v) ** 2) if v > 2 else v - 2


def test_criteo_rule_on_whole_numbers() -> None:
    encoder, _ = fitted(BUCKETED["criteo"], range(12))
    assert [s - FIRST - 2 for s in symbols(encoder, range(12))] == [-2, -1, 0, 1, 1, 2, 3, 3, 4, 4, 5, 5]
    values = np.concatenate([np.arange(-60, 200_000), np.geomspace(200_000, 2**62, 20_000).astype(np.int64)])
    cuts = criteo_cuts(float(values[0]), float(values[-1]))
    got = np.searchsorted(cuts, values.astype(np.float64), side="right") + criteo_rule(-60)
    assert (got == [criteo_rule(v) for v in values.tolist()]).all()


def test_criteo_rule_at_its_edges() -> None:
    exact = Context(prec=60)
    cuts = criteo_cuts(-5.0, 1e12)
    assert cuts[:8].tolist() == [-4, -3, -2, -1, 0, 1, 2, 2.7182818284590455]
    for k, cut in enumerate(cuts[7:].tolist(), start=1):
        below, above = math.nextafter(cut, 0), cut
        assert exact.power(exact.ln(Decimal(below)), 2) < k <= exact.power(exact.ln(Decimal(above)), 2)
    encoder, _ = fitted(BUCKETED["criteo"], [-3.0, -1.0, 40.0])
    assert symbols(encoder, [-1e9, -3, -2.5, -2, -0.5, 0.99]) == [3, 3, 3, 4, 5, 6]  # below the least: with it
    assert symbols(encoder, [40]) == symbols(encoder, [1e300])
    assert criteo_cuts(-1e300, -1e9).tolist() == []
    assert criteo_cuts(1e290, 1e300).tolist() == []
    assert criteo_cuts(-1e300, 0.0)[0] == CRITEO_LOW + 1


def test_tables_are_shared_by_buckets_of_one_law_only() -> None:
    one = Bucketed(name="a", level="candidate", table="t", law="equal_width")
    Schema(features=(one, Bucketed(name="b", level="candidate", table="t", law="equal_width")))
    for other in ({"law": "quantile"}, {"law": "equal_width", "buckets": 100}):
        with pytest.raises(UserError, match="share the table 't' but not their encoding"):
            Schema(features=(one, Bucketed(name="b", level="candidate", table="t", **other)))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ powers

POWERS = Numeric(name="x", level="candidate", transform="powers")


def numbers(encoder: Encoder, values: Sequence[Any]) -> np.ndarray:
    return encoder.candidates([{"x": v} for v in values]).numbers


def test_powers_by_hand() -> None:
    encoder, _ = fitted(POWERS, [10.0, 20.0, 20.0, 40.0, None])  # shares 1/8, 1/2, 7/8
    assert encoder.columns("candidate").numbers == ("x", "x²", "√x", "x?")
    shares = {10: 1 / 8, 15: 5 / 16, 20: 1 / 2, 30: 11 / 16, 40: 7 / 8, -1e9: 1 / 8, 1e300: 7 / 8}
    got = numbers(encoder, [*shares, None])
    for row, share in zip(got, shares.values(), strict=False):
        assert row.tolist() == pytest.approx([share, share**2, math.sqrt(share), 0])
    assert got[-1].tolist() == [0, 0, 0, 1]


def test_the_columns_of_a_number_are_found_together() -> None:
    columns = Columns(numbers=("a", "x", "x²", "√x", "x?", "b", "b?"))
    assert [columns.numbers_of(name) for name in ("a", "x", "b", "y")] == [[0], [1, 2, 3, 4], [5, 6], []]
    assert _fields(columns) == ["a", "x", "b"]


def test_powers_of_columns_with_nothing_to_rank() -> None:
    encoder, _ = fitted(POWERS, [3.0, 3.0])
    assert numbers(encoder, [3.0, 9.0]).tolist() == [[0.5, 0.25, np.float32(math.sqrt(0.5))]] * 2
    encoder, _ = fitted(POWERS, [None, None])
    assert numbers(encoder, [3.0, None]).tolist() == [[0, 0, 0, 0], [0, 0, 0, 1]]
    with pytest.raises(UserError, match="too large for transform = 'powers'"):
        fitted(POWERS, [-1.7e308, 1.7e308])


def test_many_values_are_ranked_between_stored_points() -> None:
    draw = np.random.default_rng(0)
    x = np.concatenate([draw.lognormal(0, 3, 50_000), np.zeros(20_000)])
    encoder, _ = fitted(POWERS, x)
    stats = encoder.numbers["x"]
    assert len(stats.points) <= POINTS + 1
    assert (stats.points[0], stats.points[-1]) == (x.min(), x.max())
    some = draw.choice(x, 300)
    below, own = (x[:, None] < some).mean(0), (x[:, None] == some).mean(0)
    assert np.abs(numbers(encoder, some.tolist())[:, 0] - (below + own / 2)).max() < 2 / POINTS
    assert numbers(encoder, [0.0])[0, 0] == np.float32(1 / 7)


@quick
@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=30), st.lists(st.floats(-1e305, 1e305), max_size=8))
def test_powers_rise_and_stay_between_0_and_1(train: list[float], other: list[float]) -> None:
    encoder, _ = fitted(POWERS, train)
    found = numbers(encoder, sorted([*train, *other]))
    assert (np.diff(found[:, 0]) >= 0).all()
    assert ((found >= 0) & (found <= 1)).all()


# ------------------------------------------------------------------------------------------------ tags with ranks

VALUES = [["war#1", "c#d#2", "art#9", "new", None, "#1", "war#3"], [], None, ["art#1"]]


def entries(encoder: Encoder, name: str) -> list[str]:
    """Of the first row, by name."""
    lists = encode_block(encoder, "candidate", pl.DataFrame({"x": VALUES})).lists[name]
    ids = lists.ids[lists.segments == lists.index[0], 0]
    return [encoder.tables["x"].name(int(s)) for s in ids]


def ranked(**options: Any) -> Encoder:
    return fitted(Ranked(name="x", level="candidate", max_rank=3, **options), VALUES)[0]


def test_what_becomes_of_a_rank() -> None:
    tags = ["war", "c#d", "art", "new", "war"]
    assert entries(ranked(), "x") == tags
    assert entries(ranked(rank="none"), "x") == tags
    assert entries(ranked(rank="joint"), "x") == ["war#1", "c#d#2", "art#0", "new#0", "war#3"]
    parts = ranked(rank="segments", segments=(1, 2, 3))
    assert [entries(parts, f"x.top{k}") for k in (1, 2, 3)] == [["war"], ["war", "c#d"], ["war", "c#d", "war"]]
    assert list(parts.tables) == ["x"]
    assert [c.ranks for c in parts.columns("candidate").lists] == [None] * 3
    assert {c.table for c in parts.columns("candidate").lists} == {"x"}


def test_a_vocabulary_of_segments_counts_an_entry_of_the_widest_once() -> None:
    feature = Ranked(name="x", level="candidate", max_rank=9, rank="segments", segments=(1, 2))
    encoder, counts = fitted(feature, VALUES)
    names = encoder.tables["x"].names
    assert dict(zip(names, counts["x"].tolist(), strict=True)) == {n: 0 for n in names[:FIRST]} | {
        "war": 1, "c#d": 1, "art": 1,
    }  # fmt: skip
    joint, counts = fitted(Ranked(name="x", level="candidate", rank="joint", encoding=Hashed(buckets=50)), VALUES)
    assert counts["x"].sum() == 6
    assert joint.tables["x"].lookup("war#1") != joint.tables["x"].lookup("war#3")


# ------------------------------------------------------------------------------------------------ widths


def test_widths_by_rule() -> None:
    sizes = [10**k for k in range(3, 7)]
    assert [width_of("log2", n) for n in sizes] == [10, 14, 17, 20]
    assert [width_of("dcn", n) for n in sizes] == [33, 60, 106, 189]
    assert [width_of("quarter", n) for n in sizes] == [6, 10, 18, 32]
    assert [width_of("quarter:16", 10**4), width_of("quarter:0.25", 10**4), width_of(7, 10**4)] == [160, 3, 7]
    for n in (0, 1, 2, 3, 15, 16, 17, 80, 81, 82, 2**31):
        assert width_of("log2", n) == max(1, math.ceil(math.log2(n))) if n else 1
        d = width_of("dcn", n)
        assert d**4 <= 1296 * n < (d + 1) ** 4 or (n, d) == (0, 1)
    assert [scaled_width(d, s) for d, s in ((33, 0.5), (1, 0.5), (1, 0.1), (33, 1), (33, 2))] == [17, 1, 1, 33, 66]


def test_a_table_is_as_wide_as_its_values_want_and_its_ranks_follow() -> None:
    features = (
        Categorical(name="a", level="candidate", encoding=Hashed(buckets=1000), dim="log2"),
        Categorical(name="b", level="candidate", encoding=Growing(capacity=81), dim="dcn"),
        Ranked(name="r", level="candidate", max_rank=3, dim="quarter:3"),
        Bucketed(name="n", level="candidate", cuts=(1.0, 2.0, 3.0, 4.0), dim="log2"),
        Categorical(name="plain", level="candidate"),
    )
    fitter = Fitter(Schema(features=features))
    fitter.add("r", pl.Series([[f"t{i}#1" for i in range(16)]]))
    encoder = fitter.finish()
    dims = {name: t.dim for name, t in encoder.fitted_tables(fitter.counts).items()}
    assert dims == {"a": 10, "b": 18, "r": 6, "n": 3, "plain": None, "r.rank": 6}


def test_rules_and_scale_reach_the_tables_of_every_model(tmp_path: Path) -> None:
    samples, events = tiny.frames(40)
    features = tuple(
        Ranked(name="interests", level="request", max_rank=3, dim="quarter:2") if f.name == "interests" else f
        for f in tiny.schema().features
    )
    schema = Schema(features=features, histories=tiny.schema().histories, tasks=tiny.schema().tasks)
    data = prepare(tmp_path / "d", schema, samples.lazy(), events.lazy(), tiny.KEYS, Split(validation=0.2, test=0.2))
    tags = data.fitted.tables["interests"].rows - FIRST
    dim = width_of("quarter:2", tags)
    for scale in (0.5, 1.0, 2.0):
        embed = FieldEmbedding(data.fitted, EmbeddingOptions(width=8, dim_scale=scale, std=0.5)).embedding
        assert embed.widths["interests"] == embed.widths["interests.rank"] == scaled_width(dim, scale)
        assert embed.widths["item"] == 8
        assert 0.3 < float(embed.of(8).weight.detach().std()) < 0.6
    first_order = Embedding(data.fitted, width=1, forced=True, scale=2.0)
    assert set(first_order.widths.values()) == {1}
    assert torch.equal(embed.of(8).table("item")[0], torch.zeros(8))


# ------------------------------------------------------------------------------------------------ initial scale


def test_a_table_starts_as_wide_spread_as_its_feature_says(tmp_path: Path) -> None:
    """On drawn rows: their standard deviation is within five of its own standard errors of what was asked for."""
    features = (
        Categorical(name="a", level="candidate", encoding=Hashed(buckets=2_000), std=0.3),
        Categorical(name="b", level="candidate", encoding=Hashed(buckets=2_000)),
        Categorical(name="c", level="candidate", encoding=Hashed(buckets=2_000), table="shared"),
        Categorical(name="d", level="candidate", encoding=Hashed(buckets=2_000), table="shared", std=0.001),
        Ranked(name="r", level="candidate", max_rank=400, std=2.0, separator="|"),
        Categorical(name="g", level="candidate", encoding=Growing(capacity=500), std=0.3),
        Categorical(name="zero", level="candidate", encoding=Hashed(buckets=50), std=0.0),
    )
    n = 300
    samples = pl.DataFrame({f.name: [f"{i}#{i}" if f.name == "r" else f"{i}" for i in range(n)] for f in features})
    samples = samples.with_columns(label=pl.Series([i % 2 for i in range(n)]))
    data = prepare(tmp_path / "d", Schema(features=features), samples.lazy(), split=Split())
    embedding = FieldEmbedding(data.fitted, EmbeddingOptions(width=16, std=0.01)).embedding
    tables = embedding.of(16)
    asked = {"a": 0.3, "b": 0.01, "shared": 0.001, "r": 2.0, "r.rank": 2.0, "g": 0.3, "zero": 0.0}
    assert asked.keys() == tables.sizes.keys()
    for name, std in asked.items():
        rows = tables.table(name)
        assert not rows[0].any()  # padding
        drawn = rows[1:].flatten().double()
        error = std / math.sqrt(2 * len(drawn))
        assert abs(float(drawn.std()) - std) <= 5 * error, name
        assert abs(float(drawn.mean())) <= 5 * std / math.sqrt(len(drawn))
    first_order = Embedding(data.fitted, width=1, std=0.0, forced=True)
    assert not first_order.of(1).weight.any()

    trainer = Trainer(composition("fm"), data, TrainingOptions(keep_memory=False, threads=1, seed=3))
    trainer.begin()
    growing = next(t for t in trainer.model.embeddings().values() if t.own).table("g")
    given_rows = growing[FIRST : FIRST + trainer.row_maps["g"].held] - growing[1]  # what `admit` drew
    assert trainer.row_maps["g"].held > 200
    assert abs(float(given_rows.std()) - 0.3) < 5 * 0.3 / math.sqrt(2 * given_rows.numel())


def test_two_scales_of_one_table_are_refused() -> None:
    one = Categorical(name="a", level="candidate", table="t", std=0.1)
    for other in (None, 0.1):
        Schema(features=(one, Categorical(name="b", level="candidate", table="t", std=other)))
    with pytest.raises(
        UserError, match=r"share the table 't', but one says std = 0\.1 and the other 0\.2; leave it to one"
    ):
        Schema(features=(one, Categorical(name="b", level="candidate", table="t", std=0.2)))
    for wrong in (-0.1, math.nan, math.inf):
        with pytest.raises(UserError, match=r"accepted: 0 or more, usually 0\.001 to 0\.1"):
            Bucketed(name="a", level="candidate", std=wrong)
