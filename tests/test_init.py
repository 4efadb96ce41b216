"""finerank init and vocab: what is guessed of a file, that every guess says why, and that the recipe runs."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import test_run
import tiny

from finerank.cli.app import verbs
from finerank.data.dataset import Dataset
from finerank.errors import UserError
from finerank.propose.proposal import Given, Proposal, propose
from finerank.recipe import Recipe
from finerank.run import prepared, run


def finerank(*words: object) -> None:
    verbs()([str(w) for w in words], standalone_mode=False)


def guessed(folder: Path, columns: dict[str, Any], **given: str) -> Proposal:
    """The proposal for a file of these columns, beside a label."""
    rows = len(next(iter(columns.values())))
    label = {"label": np.random.default_rng(0).integers(0, 2, rows)} if "label" not in columns else {}
    pl.DataFrame(columns | label).write_parquet(folder / "f.parquet")
    return propose(str(folder / "f.parquet"), given=Given(**given))


def kind(found: Proposal, column: str) -> str:
    guess = next(g for g in found.guesses if g.column == column)
    assert guess.why
    return guess.role if guess.feature is None else str(guess.feature["kind"])


# ------------------------------------------------------------------------------------------------ the whole


def test_a_proposed_recipe_runs_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, events = tiny.frames(requests=200)
    samples.drop("conversion").write_parquet(tmp_path / "samples.parquet")
    events.write_parquet(tmp_path / "events.parquet")
    monkeypatch.chdir(tmp_path)
    finerank("init", "samples.parquet", "--events", "events.parquet", "--request", "request", "-o", "made/recipe.toml")
    recipe = Recipe.read(tmp_path / "made" / "recipe.toml", ["training.epochs=1"])
    assert recipe.data.keys.user == "user"
    assert recipe.data.keys.request == "request"
    levels = {f.name: f.level for f in recipe.schema.features}
    assert levels == {"country": "request", "age": "request", "interests": "request", "item": "candidate"} | {
        "category": "candidate",
        "tags": "candidate",
        "price": "candidate",
        "position": "candidate",
        "user": "request",
    }
    assert "sequence" not in levels  # it rises with every row
    assert recipe.schema.feature("position").use == "train_only"
    assert set(recipe.schema.histories[0].fields) == {"item", "category", "tags", "price"}
    result = run(recipe, tmp_path / "run")
    assert "click" in result.test


def test_times_of_text_are_times(tmp_path: Path) -> None:
    """As CSV files hold them, in both files: the past is found, and no date becomes an input."""
    samples, events = tiny.frames(requests=200)
    text = pl.from_epoch(pl.lit(1_700_000_000) + pl.col("time")).dt.strftime("%Y-%m-%d %H:%M:%S")
    day = text.str.head(10)
    samples.select("user", "request", "click", "item", "category", time=text, joined=day, pay_time=text).write_csv(
        tmp_path / "samples.csv"
    )
    events.select("user", "item", "category", time=text).write_csv(tmp_path / "events.csv")
    found = propose(str(tmp_path / "samples.csv"), str(tmp_path / "events.csv"))
    assert next(g.why for g in found.guesses if g.role == "time") == "its name, and dates"
    whys = {g.column: g.why for g in found.guesses if g.role == "left out"}
    assert whys["joined"] == "a date that is no key: derive hour or weekday from it if it matters"
    assert "known only after the label" in whys["pay_time"]
    (tmp_path / "recipe.toml").write_text(found.recipe)
    recipe = Recipe.read(tmp_path / "recipe.toml", ["training.epochs=1"])
    assert recipe.data.keys.time == "time"
    assert tomllib.loads(found.recipe)["model"]["name"] == "din"
    assert {f.name for f in recipe.schema.features} == {"item", "category", "user"}
    assert "click" in run(recipe, tmp_path / "run").test


@pytest.mark.parametrize(("name", "role"), [("written", "time"), ("time", "time")])
def test_a_column_of_texts_is_the_time_if_all_are_times(tmp_path: Path, name: str, role: str) -> None:
    texts = [f"2023-11-{1 + i % 28:02d}T00:{i % 60:02d}Z" for i in range(99)]
    assert kind(guessed(tmp_path, {name: texts}), name) == role
    assert kind(guessed(tmp_path, {name: ["soon", *texts]}), name) != role


def test_a_joined_past_becomes_a_history(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    item = draw.integers(0, 40, 3_000)
    lengths = draw.integers(1, 6, 3_000)
    past = [draw.integers(0, 40, n) for n in lengths]
    columns = {
        "item_id": item,
        "cate_id": item % 7,
        "hist_item": ["^".join(map(str, p)) for p in past],
        "hist_cate": ["^".join(str(i % 7) for i in p) for p in past],
        "tags": ["|".join(f"t{t}" for t in draw.integers(0, 9, 3)) for _ in item],
    }
    found = guessed(tmp_path, columns)
    table = tomllib.loads(found.recipe)
    (history,) = table["history"]
    assert history["lists"] == {"item_id": "hist_item", "cate_id": "hist_cate"}
    assert history["separator"] == "^"
    assert table["model"]["name"] == "din"
    assert kind(found, "tags") == "multivalued"
    assert kind(found, "hist_item") == "history"


# ------------------------------------------------------------------------------------------------ column by column


def test_columns_become_what_they_look_like(tmp_path: Path) -> None:
    draw = np.random.default_rng(2)
    n = 2_000
    found = guessed(
        tmp_path,
        {
            "user_id": draw.integers(0, 100, n),
            "timestamp": 1_600_000_000 + np.arange(n),
            "city": draw.choice(["a", "b", "c"], n),
            "shop_id": draw.integers(0, 500, n),
            "grade": draw.integers(1, 5, n),
            "price": draw.lognormal(0, 2, n),
            "warmth": draw.normal(0, 1, n),
            "member": draw.integers(0, 2, n).astype(bool),
            "profile": ["|".join(f"t{t}#{r + 1}" for r, t in enumerate(draw.integers(0, 9, 3))) for _ in range(n)],
            "always": ["x"] * n,
            "empty": pl.Series([None] * n, dtype=pl.String),
            "order_id": np.arange(n),
            "comment": [f"text {i}x" for i in range(n)],
            "dwell_time": draw.normal(0, 1, n),
            "rank": draw.integers(1, 5, n),
        },
    )
    kinds = {c: kind(found, c) for c in ("city", "shop_id", "grade", "price", "warmth", "member", "profile")}
    assert kinds == {
        "city": "categorical", "shop_id": "categorical", "grade": "categorical", "price": "numeric",
        "warmth": "numeric", "member": "categorical", "profile": "ranked",
    }  # fmt: skip
    transforms = {g.column: g.feature.get("transform") for g in found.guesses if g.feature is not None}
    assert transforms["price"] == "log1p"
    assert transforms["warmth"] == "standard"
    assert {c: kind(found, c) for c in ("always", "empty", "order_id", "dwell_time")} == dict.fromkeys(
        ("always", "empty", "order_id", "dwell_time"), "left out"
    )
    assert [g.role for g in found.guesses[:2]] == ["user", "time"]
    assert next(g.feature for g in found.guesses if g.column == "rank")["use"] == "train_only"  # type: ignore[index]


def test_a_column_that_gives_the_label_away_is_left_out(tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    label = draw.integers(0, 2, 2_000)
    columns = {
        "label": label,
        "harmless": draw.choice(list("abc"), 2_000),
        "told": np.where(label == 1, "yes", "no"),
        "counted": label * 5.0 + draw.normal(0, 0.5, 2_000),
        "rare": draw.integers(0, 1_500, 2_000).astype(str),
    }
    found = guessed(tmp_path, columns)
    assert kind(found, "told") == kind(found, "counted") == "left out"
    assert "AUC" in next(g.why for g in found.guesses if g.column == "told")
    assert kind(found, "harmless") == kind(found, "rare") == "categorical"


def test_what_comes_after_a_click_is_no_input(tmp_path: Path) -> None:
    """Told by names, or by being set on clicks alone, however rarely and under whatever name."""
    draw = np.random.default_rng(5)
    n = 4_000
    click = draw.random(n) < 0.2
    of_clicks = lambda share: click & (draw.random(n) < share)  # noqa: E731
    seconds = draw.integers(1, 300, n)
    found = guessed(
        tmp_path,
        {
            "click": click.astype(int),
            "buy": of_clicks(0.1).astype(int),
            "watch": (seconds * draw.integers(0, 2, n)),
            "is_like": draw.integers(0, 2, n),
            "pay_time": seconds,
            "shipped": of_clicks(0.02),
            "stayed": np.where(of_clicks(0.5), seconds, 0),
            "left_at": pl.Series(seconds).set(pl.Series(~of_clicks(0.5)), None),
            "ticket": pl.Series(draw.choice(["x", "y"], n)).set(pl.Series(~of_clicks(0.5)), None),
            # all of these may be known before
            "buyer_level": draw.integers(0, 5, n),
            "user_buy_count": draw.integers(0, 50, n),
            "display_order": draw.integers(0, 5, n),
            "on_sale": draw.integers(0, 2, n),
            "liked": ["|".join(f"t{t}" for t in draw.integers(0, 9, 3)) for _ in range(n)],
            "seldom": np.arange(n) == np.flatnonzero(click)[7],  # on a single click, by chance
        },
        label="click",
    )
    whys = {g.column: g.why for g in found.guesses if g.role == "left out"}
    assert set(whys) == {"buy", "watch", "is_like", "pay_time", "shipped", "stayed", "left_at", "ticket", "label"}
    assert all(
        "known only after the label; if it is a task" in whys[c] for c in ("buy", "watch", "is_like", "pay_time")
    )
    assert whys["shipped"] == "1 only where the label is 1: surely written after it"
    assert whys["stayed"] == "other than 0 only where the label is 1: surely written after it"
    assert whys["left_at"] == whys["ticket"] == "known only where the label is 1: surely written after it"


def test_a_label_of_yes_and_no_is_told(tmp_path: Path) -> None:
    """Another column is taken for the label; of one that the user named nothing need be said."""
    draw = np.random.default_rng(8)
    columns = {"Click": draw.choice(["yes", "no"], 99), "conversion": draw.integers(0, 2, 99)}
    columns |= {"label": draw.integers(2, 9, 99), "order": draw.choice(["by price", "by name", "by date"], 99)}
    columns["Click"][0] = "yes"
    found = guessed(tmp_path, columns)
    assert kind(found, "conversion") == "label"
    note = "'Click' looks like a label by its name but holds texts such as 'yes': write 0 and 1"
    assert [w for w in found.warnings if "looks like a label" in w] == [note]
    assert f"# note: {note}" in found.recipe
    assert note not in guessed(tmp_path, columns, label="conversion").warnings


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (
            {"is_click": ["no", "yes", None]},
            "'is_click' looks like a label by its name but holds texts such as 'no': write 0",
        ),
        ({"outcome": ["Yes", "No", "Yes"]}, "'outcome' holds 'No' and 'Yes': write 0 and 1 if it is the label"),
        ({"结果": ["是", "否", "是"]}, "'结果' holds '否' and '是': write 0 and 1 if it is the label"),
    ],
)
def test_texts_that_alone_could_be_the_label_are_told(
    tmp_path: Path, columns: dict[str, list[str | None]], said: str
) -> None:
    """The advice was --label, which refuses such a column."""
    pl.DataFrame(columns | {"city": ["a", "b", "a"]}).write_parquet(tmp_path / "f.parquet")
    with pytest.raises(UserError) as refused:
        propose(str(tmp_path / "f.parquet"))
    assert said in str(refused.value)
    assert "--label" not in str(refused.value)
    assert "'city'" not in str(refused.value)


@pytest.mark.parametrize("name", ["item", "category", "Video"])
def test_numbers_that_name_things_are_ids(tmp_path: Path, name: str) -> None:
    """Taobao's `item`, of whole numbers and no `_id`, went in as a size: a DIN that knew no item."""
    draw = np.random.default_rng(11)
    columns = {name: draw.integers(0, 60, 400), "price": draw.integers(0, 60, 400), "click": draw.integers(0, 2, 400)}
    found = guessed(tmp_path, columns)
    assert kind(found, name) == "categorical"
    assert kind(found, "price") == "numeric"


@pytest.mark.parametrize(("filler", "proposed"), [(0, "0"), (None, None)])
def test_lists_that_are_filled_up_are_no_longer_pasts(tmp_path: Path, filler: int | None, proposed: str | None) -> None:
    """Data made for libraries that pad: their zeros would be events, and the most recent ones."""
    draw = np.random.default_rng(12)
    pasts = [draw.integers(1, 9, n).tolist() for n in [0, 1, 2, 3] * 100]
    columns = {"item_id": draw.integers(1, 9, 400), "hist_item": [p + [filler] * (40 - len(p)) for p in pasts]}
    found = guessed(tmp_path, columns)
    (tmp_path / "recipe.toml").write_text(found.recipe)
    (history,) = Recipe.read(tmp_path / "recipe.toml").schema.histories
    assert history.lists == {"item_id": "hist_item"}
    assert history.padding == proposed


def test_tags_that_are_filled_up_have_a_padding(tmp_path: Path) -> None:
    """As lists or as text; what stands in one place of each list is no filler, however common."""
    draw = np.random.default_rng(14)
    tags = [draw.integers(1, 9, n).tolist() for n in [0, 1, 2, 3] * 100]
    columns = {
        "genres": [t + [0] * (6 - len(t)) for t in tags],
        "moods": ["|".join(map(str, [-1] * (6 - len(t)) + t)) for t in tags],
        "traits": [[a, a % 3, b] for a, b in zip(draw.integers(10, 19, 400).tolist(), [0, 0, 1, 0] * 100, strict=True)],
        "apart": [t + [0] * (6 - len(t)) if i else [0, 1, 0, 2, 0, 0] for i, t in enumerate(tags)],
        "uneven": [[*t, 0] for t in tags],
    }
    found = guessed(tmp_path, columns)
    features = {f["name"]: f for f in tomllib.loads(found.recipe)["feature"]}
    assert {f["kind"] for f in features.values()} == {"multivalued"}
    paddings = {name: f.get("padding") for name, f in features.items()}
    assert paddings == {"genres": "0", "moods": "-1", "traits": None, "apart": None, "uneven": None}
    why = {g.column: g.why for g in found.guesses}
    assert "lists of one length, filled up with '0'" in why["genres"]
    (tmp_path / "recipe.toml").write_text(found.recipe)
    assert Recipe.read(tmp_path / "recipe.toml").schema.feature("moods").padding == "-1"  # type: ignore[union-attr]


def test_tags_with_weights_behind_them(tmp_path: Path) -> None:
    """The weights may never recur, the values do; and not every number behind a colon is a weight."""
    draw = np.random.default_rng(15)
    tags = [draw.integers(1, 9, 1 + i % 4).tolist() for i in range(400)]

    def joined(form: Callable[[int], str], separator: str = "|") -> list[str]:
        return [separator.join(form(t) for t in row) for row in tags]

    weighted = joined(lambda t: f"t{t}:{draw.random()}")
    columns = {
        "taste": weighted,
        "words": joined(lambda t: f"a:b{t}={draw.random():.1e}", ","),
        "listed": [text.split("|") for text in weighted],
        "hours": joined(lambda t: f"{10 + t}:30", " "),
        "sizes": joined(lambda t: f"size:{t}"),
        "versions": joined(lambda t: f"ios:{t}.5"),
        "some": joined(lambda t: f"t{t}:0.5" if t > 1 else "t1"),
    }
    found = guessed(tmp_path, columns)
    features = {f["name"]: f for f in tomllib.loads(found.recipe)["feature"]}
    separators = {name: f.get("weight_separator") for name, f in features.items() if f["kind"] == "multivalued"}
    weighted_ones = {"taste": ":", "words": "=", "listed": ":"}
    assert separators == weighted_ones | dict.fromkeys(["hours", "sizes", "versions", "some"])
    assert features["taste"]["separator"] == "|"
    assert "texts joined by '|', a weight behind each ':'" in {g.column: g.why for g in found.guesses}["taste"]
    (tmp_path / "recipe.toml").write_text(found.recipe)
    recipe = Recipe.read(tmp_path / "recipe.toml")
    assert recipe.schema.feature("words").weight_separator == "="  # type: ignore[union-attr]
    prepared(recipe, tmp_path / "data")


def test_lists_of_numbers_weigh_the_list_beside_them(tmp_path: Path) -> None:
    """They went in as ids, each number one; an embedding of another model did too."""
    draw = np.random.default_rng(16)
    tags = [draw.integers(1, 9, i % 4).tolist() for i in range(400)]
    weights = [draw.random(len(t)).round(3).tolist() for t in tags]
    columns = {
        "tags": tags,
        "tag_weights": weights,
        "words": ["|".join(f"w{t}" for t in row) for row in tags],
        "shares": ["|".join(map(str, row)) for row in weights],
        "embedding": draw.random((400, 4)).tolist(),
        "whole": [[float(t) for t in row] for row in tags],
    }
    found = guessed(tmp_path, columns)
    features = {f["name"]: f for f in tomllib.loads(found.recipe)["feature"]}
    assert {name: f.get("weights") for name, f in features.items()} == {
        "tags": "tag_weights", "words": "shares", "whole": None,
    }  # fmt: skip
    why = {g.column: g.why for g in found.guesses}
    assert why["tag_weights"] == "numbers that weigh the values of 'tags'"
    assert why["embedding"] == "lists of numbers that are not whole: sizes, and a list is of names"
    (tmp_path / "recipe.toml").write_text(found.recipe)
    prepared(Recipe.read(tmp_path / "recipe.toml"), tmp_path / "data")


def test_names_of_several_words_are_no_lists(tmp_path: Path) -> None:
    """`New York` was a list of `New` and `York`, `Widget 12` one of two tags, and no history knew the item."""
    draw = np.random.default_rng(17)
    columns = {
        "product": [f"Widget {i}" for i in draw.integers(0, 60, 400)],
        "city": draw.choice(["New York", "Los Angeles", "Reno"], 400),
        "place": draw.choice(["Oslo, Norway", "Bergen, Norway", "Turku, Finland"], 400),
        "words": [" ".join(f"w{w}" for w in draw.integers(0, 9, 3)) for _ in range(400)],
    }
    found = guessed(tmp_path, columns)
    kinds = {c: kind(found, c) for c in columns}
    assert kinds == dict.fromkeys(("product", "city", "place"), "categorical") | {"words": "multivalued"}


def test_columns_that_no_feature_may_be_called_after_are_read_all_the_same(tmp_path: Path) -> None:
    """A slash, a dot in front, and `age`, which of an event is how long ago it was: the proposed recipe was refused."""
    draw = np.random.default_rng(18)
    samples = {"user_id": draw.integers(0, 20, 400), "time": 1_700_000_000 + np.arange(400)}
    samples |= {"price/kg": draw.normal(0, 1, 400), ".shop_id": draw.integers(0, 9, 400), "age": draw.normal(0, 1, 400)}
    samples |= {"ok?/1": draw.integers(0, 2, 400)}
    pl.DataFrame(samples).write_parquet(tmp_path / "samples.parquet")
    pl.DataFrame(samples).drop("ok?/1").write_parquet(tmp_path / "events.parquet")
    found = propose(str(tmp_path / "samples.parquet"), str(tmp_path / "events.parquet"))
    (tmp_path / "recipe.toml").write_text(found.recipe)
    recipe = Recipe.read(tmp_path / "recipe.toml")
    assert recipe.schema.histories[0].fields == ("price_kg", "_shop_id")
    assert recipe.schema.tasks[0].name == "ok?_1"
    assert any("events.parquet: its 'age' is left out of the past" in w for w in found.warnings)
    prepared(recipe, tmp_path / "data")


def test_a_column_of_parts_is_the_split(tmp_path: Path) -> None:
    """It was an input, and the rows that its maker meant for training were tested on."""
    draw = np.random.default_rng(19)
    parts = ["train"] * 300 + ["validation"] * 50 + ["test"] * 50
    columns = {"item": draw.integers(0, 9, 400), "fold": parts[::-1], "some": ["train", "test"] * 200}
    found = guessed(tmp_path, columns)
    assert [kind(found, c) for c in ("fold", "some")] == ["split", "categorical"]
    (tmp_path / "recipe.toml").write_text(found.recipe)
    recipe = Recipe.read(tmp_path / "recipe.toml")
    assert (recipe.data.split.by, recipe.data.split.column) == ("column", "fold")
    assert not any("split is by position" in w for w in found.warnings)
    prepared(recipe, tmp_path / "data")


def test_a_list_is_no_past_of_what_is_not_known_when_serving(tmp_path: Path) -> None:
    """Small whole numbers were taken for past positions, and training refused the recipe."""
    draw = np.random.default_rng(20)
    lists = [draw.integers(1, 4, 1 + i % 3).tolist() for i in range(400)]
    columns = {"item_id": draw.integers(10, 19, 400), "position": draw.integers(1, 4, 400), "counts": lists}
    found = guessed(tmp_path, columns)
    assert kind(found, "counts") == "multivalued"
    (tmp_path / "recipe.toml").write_text(found.recipe)
    Recipe.read(tmp_path / "recipe.toml")


def test_a_joined_past_beside_events_is_said_to_be_left_out(tmp_path: Path) -> None:
    """The table called the column a history, and the recipe had none of it: the events' past stood alone there."""
    draw = np.random.default_rng(13)
    samples = {"user_id": draw.integers(0, 20, 400), "time": 1_700_000_000 + np.arange(400)}
    samples |= {"item_id": draw.integers(1, 9, 400), "label": draw.integers(0, 2, 400)}
    samples["hist_item"] = [draw.integers(1, 9, n).tolist() for n in [0, 1, 2, 3] * 100]
    pl.DataFrame(samples).write_parquet(tmp_path / "samples.parquet")
    pl.DataFrame(samples).select("user_id", "time", "item_id").write_parquet(tmp_path / "events.parquet")
    found = propose(str(tmp_path / "samples.parquet"), str(tmp_path / "events.parquet"))
    (guess,) = [g for g in found.guesses if g.column == "hist_item"]
    assert guess.role == "left out"
    assert "the past is that of" in guess.why
    assert "#   hist_item: " in found.recipe  # beside the other columns that are no input
    (tmp_path / "recipe.toml").write_text(found.recipe)
    (history,) = Recipe.read(tmp_path / "recipe.toml").schema.histories
    assert not history.lists


def test_a_log_that_says_when_events_were_known_is_believed(tmp_path: Path) -> None:
    """The column was passed over in silence: rows saw clicks that came in a day later."""
    rows = np.arange(60)
    samples = {
        "user_id": rows % 5,
        "time": 1_700_000_000 + rows,
        "item": [f"i{n % 7}" for n in rows],
        "click": rows % 2,
    }
    pl.DataFrame(samples).write_parquet(tmp_path / "s.parquet")
    events = {"user_id": rows % 5, "time": 1_700_000_000 + rows, "item": [f"i{n % 7}" for n in rows]}

    def proposed(known: list[int]) -> Proposal:
        pl.DataFrame(events | {"known_at": known}).write_parquet(tmp_path / "e.parquet")
        return propose(str(tmp_path / "s.parquet"), str(tmp_path / "e.parquet"))

    late = proposed([1_700_000_000 + n + 86_400 * (n % 2) for n in rows.tolist()])
    assert tomllib.loads(late.recipe)["data"]["keys"]["known_at"] == "known_at"
    assert any("'known_at' says by its name when an event was known" in w for w in late.warnings)
    early = proposed(rows.tolist())  # a column of something else
    assert "known_at" not in tomllib.loads(early.recipe)["data"]["keys"]


def test_times_that_are_no_times_are_told(tmp_path: Path) -> None:
    """Seconds as texts were left out, and 2023110422 counted as seconds, without a word."""
    rows = np.arange(60)
    texts = guessed(tmp_path, {"user_id": rows % 7, "time": [str(1_700_000_000 + n) for n in rows]})
    said = "'time' looks like the time by its name but holds texts such as '1700000000': these are texts: make whole"
    assert any(w.startswith(said) for w in texts.warnings)
    for first in (20231104, 2023110410, 20231104101500, 23110410):
        digits = guessed(tmp_path, {"user_id": rows % 7, "time": first + rows % 10})
        assert any(f"such as {first}, which look like a date but count as seconds" in w for w in digits.warnings)
    seconds = guessed(tmp_path, {"user_id": rows % 7, "time": 1_700_000_000 + rows})
    assert not any("look like a date" in w for w in seconds.warnings)


def test_a_request_of_several_moments_is_told(tmp_path: Path) -> None:
    """A recipe was written that training refused."""
    rows = np.arange(60)
    columns = {"request_id": rows // 3, "user_id": rows // 3 % 5, "time": 1_700_000_000 + rows // 3 * 10 + (rows == 59)}
    found = guessed(tmp_path, columns | {"item": rows % 11})
    (told,) = [w for w in found.warnings if "a request is one user at one moment" in w]
    assert told.startswith("1 of 20 values of 'request_id' have rows of several 'time'")


def test_exact_copies_are_told(tmp_path: Path) -> None:
    """A log that was written twice in part; without users and times equal rows may well be different ones."""
    draw = np.random.default_rng(10)
    columns = {
        "user_id": draw.integers(0, 50, 400),
        "time": 1_700_000_000 + np.arange(400),
        "item_id": np.arange(400) % 9,
    }
    columns |= {"label": draw.integers(0, 2, 400)}
    twice = {name: np.concatenate([values, values[:100]]) for name, values in columns.items()}
    twice["tags"] = [["a", "b"], ["c"], None, []] * 125
    notes = [w for w in guessed(tmp_path, twice).warnings if "copies" in w]
    assert len(notes) == 1
    assert notes[0].startswith(
        "100 of 500 rows are exact copies of others: they count in training and in metrics as often"
    )
    once = {name: values[:400] for name, values in twice.items()}
    nameless = {name: values for name, values in twice.items() if name not in ("user_id", "time")}
    for others in (once, nameless):
        assert not any("copies" in w for w in guessed(tmp_path, others).warnings)


def test_numbers_beside_nan_are_numbers(tmp_path: Path) -> None:
    """One nan, which training reads as missing, made a name of every price."""
    prices = [f"{n / 7:.3f}" for n in range(300)]
    found = guessed(
        tmp_path, {"price": ["nan", *prices], "stock": ["NaN", *map(str, range(300))], "word": ["nan"] * 301}
    )
    assert [kind(found, column) for column in ("price", "stock")] == ["numeric", "numeric"]
    assert "always 'nan'" in next(g.why for g in found.guesses if g.column == "word")


@pytest.mark.parametrize("word", ["NULL", r"\N", "None", "NA", "n/a", "-"])
def test_numbers_beside_a_word_for_none_are_told(tmp_path: Path, word: str) -> None:
    """2,000 prices were 2,000 names, most of them met once, and nothing was said."""
    prices = [f"{n / 7:.3f}" for n in range(300)]
    found = guessed(
        tmp_path,
        {"price": [word, *prices], "size": ["S", *map(str, range(300))], "city": [word, "Oslo"] * 150 + [word]},
    )
    (told,) = [w for w in found.warnings if "holds numbers" in w]
    assert told.startswith(f"'price' holds numbers but for {word!r} in 1 of 301 rows")
    assert told in found.recipe


def test_infinite_numbers_are_told(tmp_path: Path) -> None:
    """Training would refuse the recipe; of a column that is left out nothing need be said."""
    inf = float("inf")
    found = guessed(
        tmp_path, {"price": [1.0, inf, -inf, 2.5] * 30, "none": [1.0] * 120, "size": [1.0, None, 2.0, 3.0] * 30}
    )
    notes = [w for w in found.warnings if "infinite" in w]
    assert notes == ["'price' holds 60 infinite numbers, which training refuses: make them null"]
    assert f"# note: {notes[0]}" in found.recipe


def test_what_numbers_the_requests_is_found_under_any_name(tmp_path: Path) -> None:
    """A session's number went in as a number, beside the advice to number the requests."""
    draw = np.random.default_rng(9)
    user, time = draw.integers(0, 20, 100), np.sort(draw.integers(1_700_000_000, 1_700_500_000, 100))
    columns = {"hour": time // 3600, "session": np.arange(100), "user_id": user, "time": time}
    columns = {name: np.repeat(values, 3) for name, values in columns.items()} | {"item_id": draw.integers(0, 30, 300)}
    found = guessed(tmp_path, columns)
    request = next(g for g in found.guesses if g.role == "request")
    assert (request.column, request.why) == ("session", "each of its 100 values is one user at one moment")
    assert not any("give them one" in w for w in found.warnings)
    assert found.recipe.count("session") == 1  # the key, and no feature
    rows = {name: values[::3] for name, values in columns.items()}  # one of each: a number of rows is no request
    assert not any(g.role == "request" for g in guessed(tmp_path, rows).guesses)


@pytest.mark.parametrize("name", ["buy", "order", "cart", "pay", "like", "share", "watch"])
def test_outcomes_are_labels_by_name(tmp_path: Path, name: str) -> None:
    draw = np.random.default_rng(6)
    pl.DataFrame({"on_sale": draw.integers(0, 2, 99), name: draw.integers(0, 2, 99)}).write_csv(tmp_path / "f.csv")
    found = propose(str(tmp_path / "f.csv"))
    assert {g.column: g.role for g in found.guesses} == {"on_sale": "feature", name: "label"}


def test_names_are_read_as_people_write_them(tmp_path: Path) -> None:
    draw = np.random.default_rng(8)
    columns = {"Clicked?": draw.integers(0, 2, 120), "on sale": draw.integers(0, 2, 120)}
    columns |= {"User Name": [f"u{i}" for i in np.repeat(np.arange(40), 3)], "Req-ID": np.repeat(np.arange(40), 3)}
    columns |= {"Item ID": draw.integers(0, 90, 120), "点击时间": draw.normal(size=120)}
    pl.DataFrame(columns).write_csv(tmp_path / "f.csv")
    found = propose(str(tmp_path / "f.csv"))
    keys = {g.role: g.column for g in found.guesses if g.role != "feature"}
    assert keys == {"label": "Clicked?", "user": "User Name", "request": "Req-ID"}
    assert kind(found, "Item ID") == "categorical"
    assert kind(found, "点击时间") == "numeric"


def test_a_label_of_numbers_is_a_regression(tmp_path: Path) -> None:
    draw = np.random.default_rng(7)
    n = 600
    price = draw.lognormal(2, 1, n)
    price[:3] = np.nan
    item = draw.integers(0, 20, n)
    columns = {"price": price, "item_id": item, "with_tax": price * 1.2, "paid_by": draw.choice(["a", "b"], n)}
    found = guessed(tmp_path, columns | {"user_id": draw.integers(0, 30, n)}, label="price")
    label = next(g for g in found.guesses if g.column == "price")
    assert label.role == "label"
    assert "not zeros and ones alone: a regression" in label.why
    assert f"# price: {label.why}" in found.recipe
    assert kind(found, "with_tax") == "left out"
    assert kind(found, "item_id") == "categorical"
    assert not any("of the labels are 1" in w for w in found.warnings)
    (tmp_path / "recipe.toml").write_text(found.recipe)
    recipe = Recipe.read(tmp_path / "recipe.toml", ["training.epochs=1", "training.threads=1"])
    assert recipe.schema.task("price").kind == "regression"
    assert np.isfinite(run(recipe, tmp_path / "run").test["price"]["rmse"])


@pytest.mark.parametrize(("factor", "unit"), [(1, "s"), (1_000, "ms"), (1_000_000, "us")])
def test_the_unit_of_times_goes_into_the_recipe(tmp_path: Path, factor: int, unit: str) -> None:
    """It stood in the reason alone, and training refused the recipe."""
    draw = np.random.default_rng(8)
    time = (1_700_000_000 + 60 * np.arange(400)) * factor
    columns = {"time": time, "user_id": draw.integers(0, 30, 400), "item_id": draw.integers(0, 20, 400)}
    found = guessed(tmp_path, columns | {"click": draw.integers(0, 2, 400)})
    (tmp_path / "recipe.toml").write_text(found.recipe)
    recipe = Recipe.read(tmp_path / "recipe.toml", ["training.epochs=1", "training.threads=1"])
    assert recipe.data.keys.time_unit == unit
    result = run(recipe, tmp_path / "run")
    times = result.dataset.time
    assert int(times.max()) == int(time.max()) // factor * 1_000_000


def test_levels_are_told_by_requests(tmp_path: Path) -> None:
    draw = np.random.default_rng(4)
    columns = {
        "request_id": np.repeat(np.arange(200), 2),
        "device": np.repeat(draw.choice(["a", "b"], 200), 2),
        "item": draw.choice(["x", "y", "z"], 400),
    }
    found = guessed(tmp_path, columns)
    levels = {g.column: g.feature["level"] for g in found.guesses if g.feature is not None}
    assert levels == {"device": "request", "item": "candidate"}


def test_warnings_say_what_is_missing(tmp_path: Path) -> None:
    found = guessed(tmp_path, {"item": ["a", "b"] * 50})
    assert any("no column of times" in w for w in found.warnings)
    assert any("no column of users" in w for w in found.warnings)
    assert all(f"# note: {w}" in found.recipe for w in found.warnings)


@pytest.mark.parametrize(
    ("columns", "given", "sentence"),
    [
        ({"label": [1, 2, 3], "x": ["a", "b", "c"]}, {}, r"no column looks like a label .*--label"),
        (
            {"shown": [0, 1], "label": [1, 2], "seen": [1, 0]},
            {},
            r"'shown' and 'seen' hold zeros and ones, and no name says which is the label; name it with --label$",
        ),
        ({"label": [0, 1], "x": ["a", "b"]}, {"label": "lable"}, r"--label lable: no such column; .*label"),
        ({"label": [], "x": []}, {}, r"no rows"),
        (
            {"x": ["a", "b"], "y": [1, 2]},
            {"label": "x"},
            r"^--label x: the column is String, such as 'a'; accepted: zeros and ones, true and false, or numbers; write it "
            r"so, or name another column$",
        ),
        ({"x": [[1], [0]], "y": [1, 2]}, {"label": "x"}, r"--label x: the column is List\(Int64\)"),
        ({"x": [None, None], "y": [1, 2]}, {"label": "x"}, r"--label x: the column holds nothing but nulls"),
        ({"x": [float("nan")] * 2, "y": [1, 2]}, {"label": "x"}, r"--label x: the column holds no number but NaN"),
        (
            {"city": ["2023-11-04", "Rome"]},
            {"time": "city"},
            r"^--time city: the column is String, such as 'Rome'; accepted: whole numbers, dates, datetimes, ISO 8601 texts; "
            r"write them as 2023-11-04 22:17, or name another column$",
        ),
        (
            {"x": [True, False]},
            {"time": "x"},
            r"--time x: the column is Boolean, such as True; accepted: whole numbers",
        ),
        ({"x": [1.0, 1.5]}, {"time": "x"}, r"--time x: the column is Float64, such as 1.5; accepted: whole numbers"),
        (
            {"x": [float("nan")] * 2},
            {"time": "x"},
            r"--time x: the column is Float64, such as nan; accepted: whole numbers",
        ),
        ({"x": [None, None]}, {"time": "x"}, r"--time x: the column holds nothing but nulls"),
    ],
)
def test_what_cannot_be_proposed_says_why(
    tmp_path: Path, columns: dict[str, Any], given: dict[str, str], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        guessed(tmp_path, columns, **given)


@pytest.mark.parametrize(
    "times", [[-1, 2], [1.0, None], ["2023-11-04", "2023-11-04T22:17Z"], [date(2023, 11, 4), date(2023, 11, 5)]]
)
def test_a_column_of_times_may_be_named(tmp_path: Path, times: list[Any]) -> None:
    assert kind(guessed(tmp_path, {"when": times, "label": [0, 1]}, time="when"), "when") == "time"


def test_the_next_command_can_be_pasted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a folder with a space in its name the shell made two words."""
    (tmp_path / "my log").mkdir()
    pl.DataFrame({"x": ["a", "b"] * 30, "label": [0, 1, 1] * 20}).write_csv(tmp_path / "my log" / "f.csv")
    finerank("init", tmp_path / "my log" / "f.csv", "-o", tmp_path / "my log" / "r.toml")
    assert f"then: finerank train '{tmp_path / 'my log' / 'r.toml'}'" in capsys.readouterr().out.replace("\n", "")


def test_a_recipe_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        finerank("init", tmp_path / "f.csv", "-o", tmp_path / "r.toml")
    assert (tmp_path / "r.toml").read_text() == "mine"


# ------------------------------------------------------------------------------------------------ vocab


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny.dataset(tmp_path_factory.mktemp("tiny") / "data")


def test_vocab_lists_values_by_their_counts(data: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    finerank("vocab", data.folder, "category", "--top", 3)
    out = capsys.readouterr().out
    counts = data.fitted.tables["category"].counts
    best = int(np.argsort(-counts[3:], kind="stable")[0]) + 3
    line = next(line for line in out.splitlines() if line.split()[:1] == [str(best)])
    assert data.encoder.tables["category"].name(best) in line.split()
    assert f"{counts[best]:,}" in line.split()
    assert "5 values, 5 of them seen in training" in out


def test_vocab_finds_a_value_or_says_it_is_unknown(data: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    finerank("vocab", data.folder, "item", "--find", "i3", "--find", "never")
    out = capsys.readouterr().out
    assert "i3" in out
    assert "<out of vocabulary>" in out


def test_vocab_of_what_has_none(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a number has no vocabulary"):
        finerank("vocab", data.folder, "amount")
    with pytest.raises(UserError, match="no feature or table 'itm'; "):
        finerank("vocab", data.folder, "itm")
    with pytest.raises(UserError, match="no prepared data set here"):
        finerank("vocab", tmp_path, "item")


def test_vocab_reads_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test_run.logs(tmp_path)
    run(Recipe.parse(test_run.table(epochs=1) | {"model": {"name": "lr"}}, tmp_path), tmp_path / "run")
    finerank("vocab", tmp_path / "run", "country")
    assert "'country'" in capsys.readouterr().out
