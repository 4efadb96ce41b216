"""The ten worlds follow the laws they state, and are what they are whatever else is drawn."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from finerank.datasets import adapter, worlds
from finerank.datasets.worlds import World
from finerank.datasets.worlds.interactions import PAIR, TRIPLE
from finerank.errors import UserError
from finerank.recipe import Recipe

NAMES = (
    "interactions",
    "interests",
    "drift",
    "sinusoids",
    "conversions",
    "positions",
    "delays",
    "popularity",
    "sequences",
    "watches",
)


def made(name: str, **options: Any) -> World:
    module = adapter.adapter(f"world_{name}")
    world = getattr(worlds, name)(module.options(**options))
    assert isinstance(world, World)
    return world


@pytest.mark.parametrize("name", NAMES)
def test_a_world_is_a_function_of_its_options(name: str) -> None:
    one, two, other = made(name), made(name), made(name, seed=7)
    assert one.samples.equals(two.samples)
    assert not one.samples.equals(other.samples)


@pytest.mark.parametrize("name", NAMES)
def test_labels_are_drawn_by_the_law_that_is_told(name: str) -> None:
    """Each `true_` column is the mean of its label: in every tenth of the rows by that column."""
    samples = made(name).samples
    for column in (c for c in samples.columns if c.startswith("true_")):
        label = {"true_click": "click", "true_conversion": "conversion"}.get(column, column.removeprefix("true_"))
        if name in ("positions", "delays") or (name == "conversions" and label == "conversion"):
            continue  # seen through a look, a delay, a click: tested below
        tenth = samples.sort(column).with_row_index().with_columns(tenth=pl.col("index") * 10 // samples.height)
        for _, part in tenth.group_by("tenth"):
            error = part[label].cast(pl.Float64).std() / part.height**0.5 + 1e-9  # type: ignore[operator]
            assert abs(part[label].mean() - part[column].mean()) < 4 * error + 1e-3  # type: ignore[operator]


@pytest.mark.parametrize("name", NAMES)
def test_the_written_folder_is_a_recipe_that_reads_no_truth(name: str, tmp_path: Path) -> None:
    data = adapter.adapter(f"world_{name}")
    data.convert(tmp_path, data.options()).write(tmp_path / "world")
    recipe = Recipe.read(tmp_path / "world" / "recipe.toml")
    samples, _ = recipe.sources()
    names = samples.collect_schema().names()
    used = {f.name for f in recipe.schema.features} | {t.name for t in recipe.schema.tasks}
    assert used <= set(names)
    assert not any(n.startswith("true_") for n in used)


# ------------------------------------------------------------------------------------------------ one by one


def test_interactions_are_those_planted_and_nothing_else() -> None:
    world = made("interactions", rows=200_000, values=6)
    p = world.samples["true_click"].to_numpy()
    logit = np.log(p / (1 - p))

    def explained(fields: str) -> float:
        """Share of the variance of the logit that the cells of these fields explain."""
        cell = np.ravel_multi_index([world.samples[f].to_numpy() for f in fields], (6,) * len(fields))
        mean = np.bincount(cell, logit, 6 ** len(fields)) / np.maximum(np.bincount(cell, minlength=6 ** len(fields)), 1)
        return float(mean[cell].var() / logit.var())

    assert explained(PAIR) == pytest.approx(1.5**2 / (1.5**2 + 1), abs=0.05)
    assert explained(TRIPLE) == pytest.approx(1 / (1.5**2 + 1), abs=0.05)
    assert max(explained(f) for f in "ABCDEFGH") < 0.01
    assert max(explained(pair) for pair in ("CD", "DE", "AC", "BF", "GH")) < 0.01


def test_interests_count_the_past_by_brute_force() -> None:
    world = made("interests", users=40, rounds=4, length=10, enough=5)
    assert world.events is not None
    past: dict[int, list[tuple[int, int]]] = {}
    for user, category, time in world.events.select("user", "category", "time").iter_rows():
        past.setdefault(user, []).append((time, category))
    for user, time, category, p in world.samples.select("user", "time", "category", "true_click").iter_rows():
        known = [c for when, c in past[user] if when < time][-10:]
        assert p == pytest.approx(0.05 + 0.75 * min(known.count(category), 5) / 5)
    clicked = world.samples.filter(pl.col("click") == 1).height
    assert world.events.filter(pl.col("time") >= world.samples["time"].min()).height == clicked


def test_drift_brings_new_ids_every_hour_and_takes_old_ones() -> None:
    world = made("drift", hours=6, leave=0.2)
    seen: set[int] = set()
    for hour, new in enumerate(world.truth["new"]):
        items = set(world.samples.filter(pl.col("hour") == hour)["item"].to_list())
        if hour:
            assert len(new) == pytest.approx(60, abs=30)
            assert items - seen == set(new) & items
        seen |= items


def test_the_cosine_of_the_sinusoids_is_the_dial() -> None:
    for p in (0.0, 0.5, 1.0):
        a, b = made("sinusoids", correlation=p, rows=10).truth["weights"]
        assert a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) == pytest.approx(p, abs=1e-12)
    same = made("sinusoids", correlation=1.0).samples
    assert (same["y1"] - same["y2"]).std() == pytest.approx(0.1 * 2**0.5, rel=0.05)
    assert made("sinusoids", seed=1).truth["weights"] == pytest.approx(made("sinusoids", seed=2).truth["weights"])


def test_conversions_live_within_clicks_and_their_law_beyond() -> None:
    samples = made("conversions", relation=0.9).samples
    assert samples.filter((pl.col("click") == 0) & (pl.col("conversion") == 1)).is_empty()
    clicked, others = samples.filter(pl.col("click") == 1), samples.filter(pl.col("click") == 0)
    assert clicked["conversion"].mean() == pytest.approx(clicked["true_conversion"].mean(), abs=0.01)
    assert clicked["true_conversion"].mean() > others["true_conversion"].mean() + 0.1  # type: ignore[operator]


def test_positions_fade_and_good_items_stand_higher() -> None:
    world = made("positions", requests=20_000)
    by = world.samples.group_by("position").agg(pl.col("click").sum(), pl.col("true_click").sum()).sort("position")
    seen = (by["click"] / by["true_click"]).to_numpy()
    np.testing.assert_allclose(seen, world.truth["seen"], rtol=0.12)
    assert by["true_click"][0] > 1.5 * by["true_click"][-1]
    assert world.samples.group_by("request").agg(pl.col("item").n_unique())["item"].min() == 10


def test_delays_hide_late_conversions() -> None:
    samples = made("delays").samples
    late = samples.filter((pl.col("eventual") == 1) & (pl.col("conversion") == 0))
    assert (late["delay"] >= late["elapsed"]).all()
    known = samples.filter(pl.col("conversion") == 1)
    assert (known["delay"] < known["elapsed"]).all()
    assert samples["eventual"].mean() == pytest.approx(samples["true_conversion"].mean(), abs=0.01)
    assert samples["conversion"].mean() < 0.75 * samples["eventual"].mean()  # type: ignore[operator]
    assert samples.filter(pl.col("eventual") == 0)["delay"].is_null().all()
    assert samples["time"].is_sorted()


def test_popularity_is_a_power_of_the_rank() -> None:
    world = made("popularity", events=200_000, items=50, exponent=1.2, power=0.5)
    assert world.events is not None
    count = np.bincount(world.events["item"].to_numpy(), minlength=50)
    expected = world.truth["share"] * 200_000
    assert float(((count - expected) ** 2 / expected).sum()) < 49 + 5 * (2 * 49) ** 0.5  # chi-square, 49 degrees
    negatives = world.samples.filter(pl.col("taken") == 0)["item"].to_numpy()
    law = world.truth["share"] ** 0.5
    expected = law / law.sum() * len(negatives)
    count = np.bincount(negatives, minlength=50)
    assert float(((count - expected) ** 2 / expected).sum()) < 49 + 5 * (2 * 49) ** 0.5


@pytest.mark.parametrize("order", [1, 2])
def test_sequences_follow_their_chain(order: int) -> None:
    world = made("sequences", items=12, order=order, users=3_000)
    assert world.events is not None
    path = world.events["item"].to_numpy().reshape(3_000, -1)
    state = path[:, :-1] if order == 1 else path[:, :-2] * 12 + path[:, 1:-1]
    following = path[:, order:]
    faithful = (world.truth["favourites"][state] == following[:, :, None]).any(axis=2).mean()
    favourites = np.mean([len(set(f)) for f in world.truth["favourites"]])
    assert faithful == pytest.approx(0.9 + 0.1 * favourites / 12, abs=0.01)
    rows = world.samples.filter(pl.int_range(pl.len()).over("request") == 0)
    assert rows["came"].min() == 1
    truth = {(u, t): i for u, t, i in world.events.select("user", "time", "item").iter_rows()}
    assert all(truth[u, t] == i for u, t, i in rows.select("user", "time", "item").head(500).iter_rows())


@pytest.mark.parametrize(("bias", "low", "high"), [(-3.0, 0.04, 0.09), (0.0, 0.45, 0.55)])
def test_watches_are_as_frequent_and_as_long_as_told(bias: float, low: float, high: float) -> None:
    world = made("watches", bias=bias)
    share, watch = world.truth["watched"], world.samples["watch"].to_numpy()
    assert low < (watch > 0).mean() < high
    assert (watch > 0).mean() == pytest.approx(share.mean(), rel=0.05)
    watched = watch > 0
    mean = world.samples["true_watch"].to_numpy() / share
    ratio = watch[watched] / mean[watched]  # exponential: mean and standard deviation 1
    assert (ratio.mean(), ratio.std()) == (pytest.approx(1, abs=0.05), pytest.approx(1, abs=0.07))


def test_options_are_checked_by_name() -> None:
    with pytest.raises(TypeError):
        adapter.adapter("world_drift").options(hour=3)


@pytest.mark.parametrize("name", NAMES)
def test_options_that_make_no_world_are_refused(name: str) -> None:
    options = adapter.adapter(f"world_{name}").options
    counted = {f.name for f in fields(options) if isinstance(f.default, int)}
    for option in counted - {"seed", "law"}:
        with pytest.raises(UserError, match=f"{option} = 0; accepted: 1 or more"):
            options(**{option: 0})
    for option in counted & {"seed", "law"}:
        with pytest.raises(UserError, match=f"{option} = -2; accepted: 0 or more"):
            options(**{option: -2})
    for option in {f.name for f in fields(options)} - counted:
        with pytest.raises(UserError, match=f"{option} = nan; accepted: "):
            options(**{option: float("nan")})


def test_a_share_above_one_is_refused() -> None:
    with pytest.raises(UserError, match=r"correlation = 3\.0; accepted: 0 to 1"):
        made("sinusoids", correlation=3.0)
