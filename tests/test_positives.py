"""Samples from a log of positives: the law of the negatives, what is left out, and nothing from the future."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from finerank.data.positives import Negatives, Roles, with_negatives
from finerank.data.prepare import Keys
from finerank.datasets.worlds.popularity import PopularityOptions, popularity
from finerank.errors import UserError
from finerank.recipe import Recipe
from finerank.run import prepared

KEYS = Keys(request="request", user="user", time="time")
ROLES = Roles(candidate=("price",), positive=("rating",), weight=("seconds",), request=("country",))

BARE = Roles(candidate=(), positive=(), weight=(), request=())


def log(events: int = 300, users: int = 8, items: int = 15, seed: int = 0) -> pl.DataFrame:
    draw = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "user": draw.integers(0, users, events),
            "time": np.sort(draw.integers(0, events // 2, events)),
            "item": (items * draw.random(events) ** 2).astype(int),
            "price": draw.random(events).round(3),
            "rating": draw.integers(1, 6, events),
            "seconds": draw.integers(1, 99, events),
            "country": draw.integers(0, 3, events),
        }
    )


def made(frame: pl.DataFrame, options: Negatives = Negatives(), notes: list[str] | None = None) -> pl.DataFrame:
    return with_negatives(frame.lazy(), options, KEYS, ROLES, (notes if notes is not None else []).append).collect()


@pytest.mark.parametrize("exclude", ["seen", "current", "all"])
def test_candidates_and_attributes_against_a_loop(exclude: Any) -> None:
    frame, found = log(), made(log(), Negatives(exclude=exclude, count=3))
    rows = list(frame.iter_rows(named=True))
    expected = []
    for r, row in enumerate(rows):
        past = [p for p in rows if p["time"] < row["time"]]
        first, again = all(p["item"] != row["item"] for p in past), (row["user"], row["item"]) in {
            (p["user"], p["item"]) for p in past
        }  # fmt: skip
        if exclude == "all" or (not first and not (again and exclude == "seen")):
            expected.append(r)
    assert sorted(found.filter(label=1)["request"].to_list()) == expected
    for r in expected:
        row, candidates = rows[r], found.filter(request=r)
        past = rows if exclude == "all" else [p for p in rows if p["time"] < row["time"]]
        barred = {
            "seen": {p["item"] for p in rows if p["user"] == row["user"] and p["time"] <= row["time"]},
            "current": {row["item"]},
            "all": {p["item"] for p in rows if p["user"] == row["user"]},
        }[exclude]
        able = {p["item"] for p in past} - barred
        negatives = candidates.filter(label=0)
        assert negatives.height == negatives["item"].n_unique() == min(3, len(able))
        assert set(negatives["item"]) <= able
        price = {p["item"]: p["price"] for p in past}  # the last one stays
        for c in candidates.iter_rows(named=True):
            assert c["price"] == price[c["item"]]
            assert (c["user"], c["time"], c["country"]) == (row["user"], row["time"], row["country"])
            assert (c["rating"], c["seconds"]) == ((row["rating"], row["seconds"]) if c["label"] else (None, 1))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(0, 150), st.sampled_from(["seen", "current"]), st.sampled_from([0.0, 0.75]))
def test_deleting_what_comes_later_changes_nothing(seed: int, until: int, exclude: Any, power: float) -> None:
    frame, options = log(seed=seed), Negatives(exclude=exclude, power=power, count=2)
    early = frame.filter(pl.col("time") <= until)
    assume(not early.is_empty())  # a log without rows is refused
    whole = made(frame, options).filter(pl.col("time") <= until)
    assert made(early, options).equals(whole)


def test_the_mode_that_knows_the_future_does_and_says_so() -> None:
    frame, options = log(), Negatives(exclude="all")
    notes: list[str] = []
    early, whole = made(frame.head(150), options, notes), made(frame, options)
    assert not early.equals(whole.filter(pl.col("request").is_in(range(150))))
    assert len(notes) == 1
    assert "looks into the future" in notes[0]
    told: list[str] = []
    made(frame, Negatives(), told)
    assert not any("future" in note for note in told)
    assert any("the first of their item" in n for n in told)
    assert any("had before" in n for n in told)


@pytest.mark.parametrize(("law", "power"), [("uniform", 0.75), ("popularity", 0.5), ("popularity", 1.0)])
def test_negatives_follow_the_law_on_a_world_of_known_popularity(law: Any, power: float) -> None:
    """Chi-square against popularity as counted, at one moment: 20,000 late rows of users who know nothing else."""
    world = popularity(PopularityOptions(events=2_000, items=30, users=1, negatives=1))
    assert world.events is not None
    past = world.events.with_columns(user=pl.lit("past"), item=pl.col("item"))
    asked = pl.DataFrame({"user": [f"u{i}" for i in range(20_000)], "time": 10**6, "item": 0}).cast(
        {"time": pl.Int64, "item": past.schema["item"]}
    )
    frame = pl.concat([past.select("user", "time", "item"), asked])
    found = with_negatives(frame.lazy(), Negatives(law=law, power=power, count=1), KEYS, BARE).collect()
    drawn = Counter(found.filter(pl.col("time") == 10**6, pl.col("label") == 0)["item"].to_list())
    count = Counter(past["item"].to_list())

    def chi2(a: float) -> float:
        weight = {i: c**a for i, c in count.items() if i != 0}
        return sum(
            (drawn[i] - 20_000 * w / sum(weight.values())) ** 2 / (20_000 * w / sum(weight.values()))
            for i, w in weight.items()
        )

    assert drawn[0] == 0
    assert sum(drawn.values()) == 20_000
    true = 0.0 if law == "uniform" else power
    assert chi2(true) < 58.3  # upper .1 % point of 29 degrees of freedom
    assert chi2(true + 0.25) > 200


def test_rows_of_a_request_are_positives_of_one_and_none_is_drawn_twice() -> None:
    frame = log(items=40).with_columns(request=pl.col("user") * 1_000 + pl.col("time"))
    found = made(frame, Negatives(exclude="current", count=4))
    assert found.height == found.select("request", "item").n_unique()
    assert found.group_by("request").agg(pl.col("label").sum()).filter(pl.col("label") > 1).height > 5
    # adjacent, in order of time, and not the positive first
    assert (found["request"].rle_id().max() + 1) == found["request"].n_unique()  # type: ignore[operator]
    assert found["time"].is_sorted()
    assert 0.1 < found.group_by("request", maintain_order=True).first()["label"].mean() < 0.5  # type: ignore[operator]


def test_rows_of_nobody_are_left_out_however_they_say_so() -> None:
    """An empty text and NaN are no user, as everywhere: a common user of their own would bar each other's items."""
    frame = log().with_columns(pl.col("user").cast(pl.String))
    expected = made(frame.filter(pl.col("user") != "0"))
    for nobody in ("", None):
        found = made(frame.with_columns(user=pl.col("user").replace("0", nobody)))
        assert_frame_equal(found, expected)
    numbers = frame.with_columns(user=pl.col("user").cast(pl.Float64).replace(0.0, math.nan))
    assert made(numbers)["item"].to_list() == expected["item"].to_list()


def test_seeds_differ_and_file_order_within_a_moment_is_all_that_counts() -> None:
    frame = log().with_columns(time=pl.int_range(pl.len()))
    assert not made(frame).equals(made(frame, Negatives(seed=1)))
    assert made(frame).equals(made(frame.reverse()))


def test_two_hundred_thousand_draws_take_no_time() -> None:
    """A million took 7 seconds on one busy core; the limit here is far above."""
    import time

    world = popularity(PopularityOptions(events=60_000, items=20_000, users=5_000, negatives=1))
    assert world.events is not None
    started = time.perf_counter()
    found = with_negatives(world.events.lazy(), Negatives(exclude="current"), KEYS, BARE).collect()
    print(f"{found.height:,} rows in {time.perf_counter() - started:.1f} s")
    assert found.height > 200_000
    assert time.perf_counter() - started < 20


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Negatives(count=0), "count = 0"),
        (lambda: Negatives(power=1.5), "power = 1.5"),
        (lambda: made(log().with_columns(label=1)), "'label' is in the samples already"),
        (lambda: made(log().rename({"item": "iten"})), "no column 'item'"),
        (lambda: made(log().with_columns(item=pl.lit(None))), "no row has both"),
        (lambda: with_negatives(log().lazy(), Negatives(), replace(KEYS, request=None), ROLES), "keys.request"),
    ],
)
def test_each_mistake_has_a_sentence(make: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make()


# ------------------------------------------------------------------------------------------------ recipes


def recipe(folder: Path, **data: object) -> Recipe:
    features = [
        {"kind": "categorical", "name": "country", "level": "request"},
        {"kind": "categorical", "name": "item", "level": "candidate"},
        {"kind": "categorical", "name": "brand", "level": "candidate"},
        {"kind": "numeric", "name": "price", "level": "candidate"},
    ]
    keys = {"user": "user", "time": "time"} | ({"request": "request"} if "negatives" in data else {})
    given = {"samples": "log.parquet", "events": "log.parquet", "keys": keys} | data
    history = [{"name": "past", "fields": ["item", "brand"], "where": {"kind": "buy"}}]
    return Recipe.parse(
        {
            "data": given,
            "feature": features,
            "history": history,
            "task": [{"name": "label"}],
            "model": {"name": "base"},
        },
        folder,
    )


def write(folder: Path) -> None:
    kinds = log(600, items=30).with_columns(
        kind=pl.when(pl.int_range(pl.len()) % 3 == 0).then(pl.lit("view")).otherwise(pl.lit("buy")),
        brand=pl.col("item") % 4,
    )
    kinds.write_parquet(folder / "log.parquet")
    pl.DataFrame({"item": [str(i) for i in range(30)], "made_in": ["AB"[i % 2] for i in range(30)]}).write_parquet(
        folder / "items.parquet"
    )


def test_a_log_of_behaviours_becomes_a_data_set_by_a_recipe(tmp_path: Path) -> None:
    write(tmp_path)
    made_of = recipe(
        tmp_path,
        where={"kind": "buy"},
        negatives={"count": 2, "exclude": "current"},
        tables=[{"file": "items.parquet", "key": "item", "columns": ["made_in"]}],
    )
    again = Recipe.parse(made_of.resolved())
    assert again.resolved() == made_of.resolved()
    samples = again.sources()[0].collect()
    assert (samples["made_in"] == pl.Series(["AB"[i % 2] for i in samples["item"]])).all()
    assert (samples["brand"] == samples["item"] % 4).all()
    data = prepared(again, tmp_path / "data")
    assert data.fitted.base_rates["label"] == pytest.approx(1 / 3, abs=0.01)
    assert any("the first of their item" in note for note in data.manifest["notes"])


def test_an_input_made_from_the_label_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    label = {"kind": "conversion", "name": "price", "window": 5}
    with pytest.raises(UserError, match=r"feature 'price' reads the column 'price'.*not known when a row is scored"):
        recipe(tmp_path, label=[label])
    with pytest.raises(UserError, match=r"'price' reads.*belongs to the label 'w'"):
        recipe(tmp_path, label=[{"kind": "dwell", "name": "w", "column": "price"}])
    with pytest.raises(UserError, match=r"'price' reads.*'negatives'"):
        recipe(tmp_path, negatives={"label": "price"})
    with pytest.raises(UserError, match="label 'buy' reads a log"):
        Recipe.parse(
            {k: v for k, v in recipe(tmp_path).resolved().items() if k != "data"}
            | {"data": {"samples": "log.parquet", "label": [label | {"name": "buy"}]}},
            tmp_path,
        )


def test_labels_are_made_on_the_way(tmp_path: Path) -> None:
    """Views as samples; each says whether its user bought within five ticks; one row per user and day."""
    write(tmp_path)
    label = {"kind": "conversion", "name": "label", "window": 5, "where": {"kind": "buy"}}
    data = prepared(recipe(tmp_path, where={"kind": "view"}, label=[label]), tmp_path / "data")
    assert 0.1 < data.fitted.base_rates["label"] < 0.9
    end = log(600)["time"].max()
    late = data.time > (end - 5) * 1_000_000  # type: ignore[operator]
    assert late.any()
    assert (data.weights[data.rows_of(np.flatnonzero(late))] == 0).all()
    day = recipe(tmp_path, rows="user_day", label=[{"kind": "retention", "name": "label"}])
    assert day.sources()[0].collect()["user"].is_unique().all()


def test_a_where_that_keeps_no_row_is_told(tmp_path: Path) -> None:
    """And not taken for an empty file; one that keeps a row far down is none of them."""
    write(tmp_path)
    with pytest.raises(
        UserError, match=r"samples: where = {'kind': 'viw'} keeps no row; in the first rows kind holds for example '"
    ):
        prepared(recipe(tmp_path, where={"kind": "viw"}), tmp_path / "data")
    frame = pl.concat([log(40_000), log(3)]).with_columns(rare=pl.int_range(pl.len()) >= 40_001)
    frame.write_parquet(tmp_path / "log.parquet")
    assert recipe(tmp_path, where={"rare": True}).sources()[0].collect().height == 2
    log(0).with_columns(kind=pl.lit("")).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(UserError, match=r"samples: no rows; is this the right file\?"):
        prepared(recipe(tmp_path, where={"kind": "viw"}), tmp_path / "data")
