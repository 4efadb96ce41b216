"""As-of tables against a brute-force search, and their leak test."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finerank.data.asof import AsOf, add_as_of
from finerank.errors import UserError
from finerank.recipe import Recipe

SPEC = AsOf(file="prices.parquet", key="item", known_at="changed", columns=("price",))
VERSIONS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=12)
ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 10)), min_size=1, max_size=12)


def tables(rows: list[tuple[int, int]], versions: list[tuple[int, int]]) -> tuple[pl.LazyFrame, pl.LazyFrame]:
    samples = pl.DataFrame(
        {"item": [r[0] for r in rows], "time": [r[1] for r in rows]}, schema={"item": pl.Int64, "time": pl.Int64}
    )
    prices = pl.DataFrame(
        {
            "item": [v[0] for v in versions],
            "changed": [v[1] for v in versions],
            "price": [float(i) for i in range(len(versions))],
        },
        schema={"item": pl.Int64, "changed": pl.Int64, "price": pl.Float64},
    )
    return samples.lazy(), prices.lazy()


@settings(derandomize=True, deadline=None, max_examples=150)
@given(ROWS, VERSIONS)
def test_last_version_known_strictly_before(rows: list[tuple[int, int]], versions: list[tuple[int, int]]) -> None:
    found = add_as_of(*tables(rows, versions), SPEC, "time").collect()
    assert found["item"].to_list() == [r[0] for r in rows]
    for (item, time), price in zip(rows, found["price"].to_list(), strict=True):
        known = [(t, i) for i, (key, t) in enumerate(versions) if key == item and t < time]
        assert price == (float(max(known)[1]) if known else None)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(ROWS, VERSIONS, st.integers(0, 10))
def test_later_versions_change_nothing(rows: list[tuple[int, int]], versions: list[tuple[int, int]], cut: int) -> None:
    rows = [r for r in rows if r[1] <= cut] or [(0, cut)]
    all_ = add_as_of(*tables(rows, versions), SPEC, "time").collect()
    samples, prices = tables(rows, versions)
    early = add_as_of(samples, prices.filter(pl.col("changed") < cut), SPEC, "time").collect()
    assert all_.equals(early)


def test_when_a_version_was_known_may_be_a_column_too() -> None:
    samples, prices = tables([(0, 5)], [(0, 1), (0, 3)])
    spec = AsOf(file="prices.parquet", key="item", known_at="changed", columns=("price", "changed"))
    found = add_as_of(samples, prices, spec, "time").collect()
    assert found.rows() == [(0, 5, 1.0, 3)]


def test_a_recipe_adds_the_columns_of_its_tables(tmp_path: Path) -> None:
    samples, prices = tables([(0, 5), (1, 2), (0, 1)], [(0, 1), (0, 4), (1, 3)])
    samples.with_columns(label=pl.Series([1, 0, 1])).collect().write_parquet(tmp_path / "samples.parquet")
    prices.collect().write_csv(tmp_path / "prices.csv")
    table = {
        "data": {
            "samples": "samples.parquet",
            "keys": {"time": "time"},
            "tables": [{"file": "prices.csv", "key": "item", "known_at": "changed", "columns": ["price"]}],
        },
        "feature": [{"kind": "numeric", "name": "price", "level": "candidate"}],
        "model": {"name": "lr"},
    }
    found, _ = Recipe.parse(table, tmp_path).sources()
    assert found.collect()["price"].to_list() == [1.0, None, None]
    assert Recipe.parse(Recipe.parse(table, tmp_path).resolved()).data.tables[0].columns == ("price",)


def test_errors_name_the_table_and_the_column() -> None:
    samples, prices = tables([(0, 5)], [(0, 1)])
    with pytest.raises(UserError, match=r"table prices\.parquet: column 'price' is in the samples already"):
        add_as_of(samples.with_columns(price=1.0), prices, SPEC, "time")
    with pytest.raises(UserError, match=r"table prices\.parquet: no column 'changed'"):
        add_as_of(samples, prices.rename({"changed": "change"}), SPEC, "time")
