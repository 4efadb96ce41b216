"""Public data sets: fixtures typed from the specification by another hand, small worlds end to end, the real files.

What the fixtures must give is worked out in raw/*/EXPECTED.md. The real files are read where FINERANK_DATA names their folder.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from finerank.datasets import online_retail as shipped
from finerank.datasets.adapter import Converted, adapter, names
from finerank.datasets.online_retail_raw import SCHEMA
from finerank.errors import UserError
from finerank.recipe import Recipe
from finerank.report.run_report import run_report
from finerank.run import Run, prepared, run
from finerank.typed import build

RAW = Path(__file__).parent / "raw"
REAL = Path(os.environ.get("FINERANK_DATA", "/nowhere"))


def convert(name: str, folder: Path, **options: Any) -> tuple[Converted, pl.DataFrame, pl.DataFrame]:
    """(converted, samples, events)."""
    known = adapter(name)
    made = known.convert(folder, build(known.options, options, name))
    assert made.events is not None
    return made, made.samples.lazy().collect(), made.events.lazy().collect()


def past(
    events: pl.DataFrame, row: Mapping[str, Any], column: str, user: str = "user_id", time: str = "time"
) -> list[Any]:
    """The history of a row, plainly: by time, and by place in the file where the log has one."""
    place = "sequence" if "sequence" in events.columns else time
    mine = events.filter(pl.col(user) == row[user]).sort(time, place, maintain_order=True)
    known = (pl.col(time) < row[time]) | ((pl.col(time) == row[time]) & (pl.col(place) < row[place]))
    return mine.filter(known)[column].to_list()


def the(samples: pl.DataFrame, **wanted: Any) -> dict[str, Any]:
    """The one row with these values."""
    return samples.row(by_predicate=pl.all_horizontal(pl.col(k) == v for k, v in wanted.items()), named=True)


# ------------------------------------------------------------------------------------------------ Amazon


def test_amazon_din_as_published() -> None:
    made, samples, events = convert("amazon", RAW / "amazon_reviews", negatives="paper", validation=0.0)
    assert made.counts["reviews: read"] == 11
    assert made.counts["reviews: kept"] == 9
    assert (made.counts["reviews: malformed"], made.counts["reviews: cut"]) == (1, 1)
    assert (made.counts["meta: kept"], made.counts["meta: of no reviewed item"], made.counts["meta: malformed"]) == (
        4,
        1,
        1,
    )
    assert made.counts["items without a category"] == 1
    by_split = samples.group_by("split").agg(pl.len(), pl.col("label").sum())
    assert sorted(by_split.rows()) == [("test", 6, 3), ("train", 6, 3)]
    row = the(samples, user_id="A1AA", split="test", label=1)
    assert (row["item_id"], row["category_id"]) == ("B000000003", "Tea")
    assert [i[-2:] for i in past(events, row, "item_id")] == ["01", "02", "01"]
    assert past(events, row, "category_id") == ["Jigsaws", "Yo-yos", "Jigsaws"]
    second = the(samples, user_id="A1AA", split="train", label=1, item_id="B000000001")
    assert [i[-2:] for i in past(events, second, "item_id")] == ["01", "02"]
    assert past(events, the(samples, user_id="A3CC", label=1), "item_id") == ["B000000004"]
    able = {"A1AA": {"04", "05"}, "A2BB": {"01", "03"}, "A3CC": {"02", "03", "05"}}
    for user, item in samples.filter(label=0).select("user_id", "item_id").iter_rows():
        assert item[-2:] in able[user]
    assert any("looks into the future: a negative is known never to be chosen later" in note for note in made.notes)


def test_amazon_dien_as_published() -> None:
    """Its negatives may be items that the user has: only that of the request is barred."""
    made, samples, events = convert("amazon", RAW / "amazon_reviews", protocol="dien", negatives="paper")
    positive = samples.filter(label=1)
    assert samples.height == 6
    assert set(positive.select("user_id", "item_id").iter_rows()) == {
        ("A1AA", "B000000003"), ("A2BB", "B000000004"), ("A3CC", "B000000001")
    }  # fmt: skip
    row = the(samples, user_id="A1AA", label=1)
    assert row["category_id"] == "Kitchen"
    assert past(events, row, "category_id") == ["Puzzles", "Yo-yos", "Puzzles"]
    assert (samples.filter(label=0).join(positive, on=["request", "item_id"]).height) == 0
    assert any("looks into the future: a negative is drawn by what is reviewed later" in note for note in made.notes)


@pytest.mark.parametrize("text", ["", "alpha;beta\n", '{"asin": "C1", "categories": [["Tea"]]}\n'])
def test_amazons_meta_file_of_something_else_is_one_sentence(text: str, tmp_path: Path) -> None:
    """All items without a category would train a model that never sees one."""
    reviews(tmp_path)
    (tmp_path / "meta_Toys.json").write_text(text)
    with pytest.raises(UserError, match=r"meta_Toys\.json: no line of \d tells the category of a reviewed item"):
        convert("amazon", tmp_path)


def test_amazon_layout() -> None:
    made, samples, events = convert("amazon", RAW / "amazon_grocery", protocol="leave_one_out", negatives="paper")
    assert [made.counts[f"{n}.csv: kept"] for n in ("train", "dev", "test")] == [7, 4, 4]
    assert made.counts["train.csv: malformed"] == 2
    assert samples.filter(label=1).group_by("split").len().sort("split").rows() == [
        ("test", 4),
        ("train", 3),
        ("validation", 4),
    ]
    row = the(samples, user_id=1, split="test", label=1)
    assert past(events, row, "item_id") == [1, 2, 3, 4]
    assert past(events, row, "category_id") == ["0", "0", "21", "0"]
    assert past(events, the(samples, user_id=1, item_id=3, label=1), "item_id") == [1, 2]
    assert past(events, the(samples, user_id=4, split="validation", label=1), "item_id") == [9]
    assert events.filter(item_id=9)["category_id"].to_list() == [None]


def test_the_layout_in_the_protocols_of_the_papers() -> None:
    """The files are put together again: the last event of each of the four users is for test, whatever file it was in."""
    made, samples, events = convert("amazon", RAW / "amazon_grocery", negatives="paper", validation=0.0)
    assert samples.filter(label=1).group_by("split").len().sort("split").rows() == [("test", 4), ("train", 7)]
    assert any("put together" in note for note in made.notes)
    row = the(samples, user_id=1, split="test", label=1)
    assert past(events, row, "item_id") == [1, 2, 3, 4]
    _, last, _ = convert("amazon", RAW / "amazon_grocery", protocol="dien", negatives="paper")
    assert last.filter(label=1).height == 4


def reviews(folder: Path, users: int = 60, items: int = 30, seed: int = 0) -> tuple[int, int]:
    """A raw Amazon world: (events, users)."""
    draw = np.random.default_rng(seed)
    lines = []
    for user in range(users):
        for item in draw.permutation(items)[: draw.integers(3, 12)]:
            line = {"reviewerID": f"U{user}", "asin": f"I{item}", "unixReviewTime": 86_400 * int(draw.integers(1, 90))}
            lines.append(json.dumps(line) if draw.random() < 0.5 else repr(line))
    draw.shuffle(lines)
    (folder / "reviews_Toys_5.json").write_text("\n".join(lines) + "\n")
    meta = ({"asin": f"I{i}", "categories": [["Toys", f"C{i % 4}"], ["All", f"D{i % 3}"]]} for i in range(items))
    (folder / "meta_Toys.json").write_text("".join(f"{m}\n" for m in meta))
    return len(lines), users


def test_the_arithmetic_of_the_published_protocols(tmp_path: Path) -> None:
    """DIN: 2 (events - 2 users) rows of training, 2 users of test; DIEN: 2 users rows in all."""
    events, users = reviews(tmp_path)
    counts = convert("amazon", tmp_path, negatives="paper", validation=0.0)[0].counts
    assert counts["rows of train"] == 2 * (events - 2 * users)
    assert counts["rows of test"] == 2 * users
    counts = convert("amazon", tmp_path, negatives="paper", validation=0.3)[0].counts
    assert 0 < counts["rows of validation"] < 2 * users
    assert counts["rows of train"] + counts["rows of validation"] == 2 * (events - 2 * users)
    counts = convert("amazon", tmp_path, protocol="dien", negatives="paper")[0].counts
    assert sum(counts[f"rows of {part}"] for part in ("train", "validation", "test")) == 2 * users


def test_amazon_as_known_knows_nothing_later(tmp_path: Path) -> None:
    reviews(tmp_path)
    made, samples, events = convert("amazon", tmp_path, per_positive=2)
    first = dict(events.group_by("item_id").agg(pl.col("time").min()).iter_rows())
    for row in samples.iter_rows(named=True):
        assert first[row["item_id"]] < row["time"]
        if not row["label"]:
            own = events.filter(pl.col("user_id") == row["user_id"], pl.col("time") <= row["time"])
            assert row["item_id"] not in own["item_id"]
    assert made.counts["requests left out, first sight of the item"] > 0


# ------------------------------------------------------------------------------------------------ MovieLens


def test_movielens_1m() -> None:
    made, samples, events = convert("movielens_1m", RAW / "movielens_1m")
    assert [made.counts[f"ratings: {what}"] for what in ("read", "kept", "malformed", "cut")] == [12, 9, 2, 1]
    assert (made.counts["users: kept"], made.counts["users: malformed"], made.counts["movies: kept"]) == (4, 1, 5)
    assert (samples.height, samples["label"].sum()) == (9, 5)
    assert past(events, the(samples, user_id=1, movie_id=661), "movie_id") == [1193, 914]
    assert past(events, the(samples, user_id=1, movie_id=661), "rating") == [5, 4]
    assert past(events, the(samples, user_id=2, movie_id=73), "movie_id") == []
    row = the(samples, user_id=3, movie_id=9999)
    assert row["genres"] is None
    assert past(events, row, "movie_id") == [661, 914, 73]
    assert past(events, row, "genres")[0] == "Animation|Children's|Musical"
    assert (row["zip"], the(samples, user_id=1, movie_id=661)["gender"]) == ("55117-1234", "F")


def test_movielens_autoints_label_drops_threes_from_the_rows_alone() -> None:
    _, samples, events = convert("movielens_1m", RAW / "movielens_1m", label="without_3")
    assert (samples.height, samples["label"].sum(), events.height) == (7, 5, 9)


def test_movielens_20m() -> None:
    made, samples, events = convert("movielens_20m", RAW / "movielens_20m")
    assert [made.counts[f"ratings: {what}"] for what in ("read", "kept", "malformed")] == [10, 8, 2]
    assert made.counts["movies: kept"] == 4
    assert samples.sort("user_id", "time", "movie_id")["label"].to_list() == [1, 1, 0, 1, 1, 0, 1, 0]
    assert past(events, the(samples, user_id=1, movie_id=2), "movie_id") == [11, 29]
    assert past(events, the(samples, user_id=2, movie_id=2), "movie_id") == [29]
    assert the(samples, user_id=1, movie_id=29)["genres"] == "Adventure|Drama|Fantasy|Mystery|Sci-Fi"
    assert the(samples, user_id=1, movie_id=11)["genres"] == "Comedy|Drama|Romance"  # beyond a comma within quotes
    assert (samples.group_by("user_id").agg(pl.col("split").n_unique())["split"] == 1).all()


# ------------------------------------------------------------------------------------------------ Taobao, Alimama


def test_taobao() -> None:
    made, _, events = convert("taobao", RAW / "taobao_userbehavior")
    assert [
        made.counts[w] for w in ("read", "kept", "malformed", "unknown behaviour", "outside 25 Nov - 3 Dec 2017")
    ] == [12, 8, 1, 1, 2]
    assert dict(events["behavior"].value_counts().iter_rows()) == {"pv": 5, "cart": 1, "buy": 1, "fav": 1}
    assert past(events, {"user_id": 1, "time": 1511572886}, "item_id") == [2268318, 2333346, 2576651]
    assert past(events, {"user_id": 100, "time": 1512281108}, "item_id") == [1603476, 1603476]
    assert past(events, {"user_id": 1000, "time": 1512230400}, "item_id") == []


def test_alimama() -> None:
    made, samples, events = convert("alimama", RAW / "alimama")
    assert (made.counts["raw_sample: kept"], made.counts["raw_sample: malformed"]) == (7, 2)
    assert made.counts["ad_feature: malformed"] == 1
    assert [made.counts[f"behavior_log: {w}"] for w in ("kept", "malformed", "unknown btag")] == [7, 1, 1]
    assert (samples.height, samples["clk"].sum()) == (7, 2)
    assert samples.filter(split="test")["time_stamp"].to_list() == [1494637644, 1494637644, 1494638778, 1494650879]
    row = the(samples, user=449818, adgroup_id=3)
    assert (row["cms_segid"], row["age_level"], row["shopping_level"], row["new_user_class_level"]) == (
        "49",
        "6",
        "3",
        "2",
    )
    assert the(samples, user=914836, adgroup_id=4)["brand"] is None  # the file says NULL
    assert the(samples, user=914836, adgroup_id=4)["new_user_class_level"] is None
    assert the(samples, adgroup_id=777)["cate_id"] is None
    keys = ("user", "time_stamp")
    assert past(events, the(samples, user=581738, adgroup_id=1), "cate_id", *keys) == [6406]
    assert past(events, the(samples, user=581738, adgroup_id=3), "btag", *keys) == ["pv", "cart"]
    assert past(events, the(samples, user=449818, adgroup_id=3), "cate_id", *keys) == [6406, None]
    assert past(events, the(samples, user=914836, adgroup_id=4), "brand", *keys) == ["87331", "95471"]
    assert past(events, the(samples, user=399907), "btag", *keys) == []
    assert convert("alimama", RAW / "alimama", users="profiled")[1].height == 6


def test_alimamas_random_validation_keeps_moments_whole_and_all_seven_days(tmp_path: Path) -> None:
    small("alimama", tmp_path)
    twice = (tmp_path / "raw_sample.csv").read_text().splitlines()
    (tmp_path / "raw_sample.csv").write_text("\n".join([*twice, *twice[1:]]))
    made, samples, _ = convert("alimama", tmp_path, validation="random")
    assert (samples.group_by("user", "time_stamp").agg(pl.col("split").n_unique())["split"] == 1).all()
    days = samples.filter(split="train").select((pl.col("time_stamp") - 1_494_000_000) // 86_400).to_series()
    assert set(days) == set(range(7))
    assert 0.02 < (samples["split"] == "validation").mean() < 0.08
    made.write(tmp_path / "out")
    prepared(Recipe.read(tmp_path / "out" / "recipe.toml"), tmp_path / "data")  # repeated lines are in one part


# ------------------------------------------------------------------------------------------------ Online Retail


def retail(folder: Path, form: str) -> pl.DataFrame:
    """A thousand shipped lines, and a line that is damaged, as the file goes round."""
    lines = (
        shipped.read_lines()
        .filter(pl.col("CustomerID").is_in([17850.0, 13047.0, 12583.0, 13748.0, 15100.0, 14688.0]))
        .head(1000)
    )
    head = lines.columns
    rows = [
        [r[0], r[1], r[2] or "", f"{r[3]:g}", r[4], f"{r[5]}", "" if r[6] is None else f"{r[6]:g}", r[7]]
        for r in lines.rows()
    ]
    if form == "csv":
        quote = lambda cell: '"' + cell.replace('"', '""') + '"' if "," in cell or '"' in cell else cell  # noqa: E731
        texts = [
            ",".join(quote(c if isinstance(c, str) else c.strftime("%m/%d/%Y %H:%M")) for c in row) for row in rows
        ]
        content = "\r\n".join([",".join(head), *texts, "536365,22423,caf\xe9,x,12/1/2010 8:26,1,,UK", "536365,2242"])
        (folder / "data.csv").write_bytes(content.encode("latin-1"))
        return lines
    shared: dict[str, int] = {}
    epoch = pl.datetime(1899, 12, 30)
    days = lines.select((pl.col("InvoiceDate") - epoch).dt.total_minutes() / 1440).to_series().to_list()

    def cell(i: int, j: int, value: Any) -> str:
        at = f'r="{"ABCDEFGH"[j]}{i + 1}"'
        if value == "":
            return ""
        if i and (j in (3, 4, 5, 6) or (j < 2 and value.isdigit() and not value.startswith("0"))):
            return f"<c {at}><v>{days[i - 1] if j == 4 else value}</v></c>"
        return f'<c {at} t="s"><v>{shared.setdefault(value, len(shared))}</v></c>'

    body = "".join(f"<row>{''.join(cell(i, j, v) for j, v in enumerate(r))}</row>" for i, r in enumerate([head, *rows]))
    escape = lambda t: t.replace("&", "&amp;").replace("<", "&lt;")  # noqa: E731
    main = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    with zipfile.ZipFile(folder / "Online Retail.xlsx", "w") as book:
        book.writestr("xl/worksheets/sheet1.xml", f"<worksheet {main}><sheetData>{body}</sheetData></worksheet>")
        strings = "".join(f"<si><t>{escape(text)}</t></si>" for text in shared)
        book.writestr("xl/sharedStrings.xml", f"<sst {main}>{strings}</sst>")
    return lines


@pytest.mark.parametrize("form", ["csv", "xlsx"])
def test_online_retail_gives_the_shipped_tables(form: str, tmp_path: Path) -> None:
    lines = retail(tmp_path, form)
    wanted = shipped.build(shipped.clean(lines))
    made, samples, events = convert("online_retail", tmp_path)
    assert made.counts["kept"] == 1000
    assert made.counts.get("malformed", 0) == (2 if form == "csv" else 0)
    assert samples.height > 100
    assert samples.equals(wanted.samples)
    assert events.equals(wanted.events)


@pytest.mark.parametrize(
    "line",
    [
        "536999,10001,TIN,nan,12/9/2010 8:26,1,17850,UK",
        "536999,10001,TIN,inf,12/9/2010 8:26,1,17850,UK",
        "536999,10001,TIN,1,12/9/2010 8:26,nan,17850,UK",
        "536999,10001,TIN,1,12/9/2010 8:26,1,nan,UK",
        "A536999,10001,TIN,1,12/9/2010 8:26,1,17850,UK",
    ],
)
def test_a_line_that_is_no_sale_stops_nothing(line: str, tmp_path: Path) -> None:
    """Not a number, and an invoice with a letter: left out and counted, and no other line with them."""
    sale = "536365,10002,TIN,2,12/1/2010 8:26,1.5,17850,UK"
    (tmp_path / "data.csv").write_text("\n".join([",".join(SCHEMA), sale, line]) + "\n")
    made, _, events = convert("online_retail", tmp_path)
    assert events["product_id"].to_list() == ["10002"]
    assert made.counts["no sale of a product to a known customer (cancelled, without customer, postage, ...)"] == 1


def test_a_damaged_spreadsheet_is_one_sentence(tmp_path: Path) -> None:
    retail(tmp_path, "xlsx")
    whole = (tmp_path / "Online Retail.xlsx").read_bytes()
    (tmp_path / "Online Retail.xlsx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not readable as a spreadsheet"):
        convert("online_retail", tmp_path)


# ------------------------------------------------------------------------------------------------ end to end


def small(name: str, folder: Path) -> None:
    """A small world in the raw format, large enough to train on."""
    draw = np.random.default_rng(1)
    write = lambda file, lines: (folder / file).write_text("\n".join(lines) + "\n")  # noqa: E731
    ratings = [
        (u, int(m), int(draw.integers(1, 6)), int(draw.integers(10**9, 10**9 + 10**6)))
        for u in range(1, 41)
        for m in draw.permutation(30)[:12]
    ]
    if name == "amazon":
        reviews(folder)
    elif name == "movielens_1m":
        write("ratings.dat", (f"{u}::{m}::{r}::{t}" for u, m, r, t in ratings))
        write("users.dat", (f"{u}::{'FM'[u % 2]}::25::{u % 5}::{u}" for u in range(1, 41)))
        write("movies.dat", (f"{m}::Film {m} (1999)::Drama|{'War' if m % 2 else 'Comedy'}" for m in range(30)))
    elif name == "movielens_20m":
        write("ratings.csv", ["userId,movieId,rating,timestamp", *(f"{u},{m},{r - 0.5},{t}" for u, m, r, t in ratings)])
        write("movies.csv", ["movieId,title,genres", *(f'{m},"Film, {m}",Drama|War' for m in range(30))])
    elif name == "taobao":
        moments = np.sort(1_511_539_200 + draw.integers(0, 9 * 86_400, 1500))
        behaviours = draw.choice(["pv", "pv", "pv", "buy", "cart", "fav"], 1500)
        items = draw.integers(0, 40, 1500)
        write(
            "UserBehavior.csv",
            (f"{draw.integers(0, 30)},{i},{i % 5},{b},{t}" for t, b, i in zip(moments, behaviours, items, strict=True)),
        )
    elif name == "alimama":
        moments = 1_494_000_000 + draw.integers(0, 8 * 86_400, 1200)
        rows = [
            (int(draw.integers(0, 30)), int(t), int(draw.integers(0, 20)), int(draw.random() < 0.3)) for t in moments
        ]
        write(
            "raw_sample.csv",
            [
                "user,time_stamp,adgroup_id,pid,nonclk,clk",
                *(f"{u},{t},{a},430548_1007,{1 - c},{c}" for u, t, a, c in rows),
            ],
        )
        write(
            "ad_feature.csv",
            [
                "adgroup_id,cate_id,campaign_id,customer,brand,price",
                *(f"{a},{a % 4},{a % 7},{a % 6},{a % 3 or 'NULL'},{a + 0.5}" for a in range(20)),
            ],
        )
        write(
            "user_profile.csv",
            [
                "userid,cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,shopping_level,occupation,"
                "new_user_class_level ",
                *(f"{u},1,2,{1 + u % 2},3,,3,0,2" for u in range(30)),
            ],
        )
        log = (
            (int(draw.integers(0, 30)), 1_493_000_000 + int(draw.integers(0, 15 * 10**5)), int(draw.integers(0, 4)))
            for _ in range(900)
        )
        write(
            "behavior_log.csv",
            [
                "user,time_stamp,btag,cate,brand",
                *(f"{u},{t},{['pv', 'cart', 'buy'][c % 3]},{c},{c + 1}" for u, t, c in log),
            ],
        )
    else:
        retail(folder, "csv")


MINE = ("alimama", "amazon", "movielens_1m", "movielens_20m", "online_retail", "taobao")


@pytest.mark.parametrize("name", MINE)
def test_the_written_recipe_trains(name: str, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    small(name, raw)
    convert(name, raw)[0].write(tmp_path / "out")
    told = json.loads((tmp_path / "out" / "counts.json").read_text())
    assert told["counts"]
    assert told["notes"]
    few = ("training.epochs=1", "training.threads=1", "training.keep_memory=false", "training.monitor=logloss")
    result = run(Recipe.read(tmp_path / "out" / "recipe.toml", few), tmp_path / "run")
    (found,) = result.test.values()
    assert np.isfinite(found["logloss"])
    assert found["rows"] > 0
    lengths = [int((s.end - s.start).max()) for s in result.dataset.slices.values()]
    assert min(lengths) > 0  # every history has something in it


@pytest.mark.parametrize("name", ["world_conversions", "world_sinusoids"])
def test_a_world_without_a_past_trains_as_written(name: str, tmp_path: Path) -> None:
    """Its model took for granted that there is a history, and training refused the recipe."""
    known = adapter(name)
    known.convert(Path(), known.options(rows=1_000)).write(tmp_path / "out")
    few = ("training.epochs=1", "training.threads=1", "training.keep_memory=false")
    assert run(Recipe.read(tmp_path / "out" / "recipe.toml", few), tmp_path / "run").test


@pytest.mark.parametrize("name", ["amazon", "taobao"])
def test_a_mode_that_looks_into_the_future_is_flagged_in_the_report(name: str, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    small(name, raw)
    made = convert(name, raw, negatives="paper")[0]
    made.write(tmp_path / "out")
    few = ("training.epochs=1", "training.threads=1", "training.keep_memory=false", "training.monitor=logloss")
    recipe = Recipe.read(tmp_path / "out" / "recipe.toml", (*few, "model.name=lr"))
    assert recipe.data.notes == made.notes
    result = run(recipe, tmp_path / "run")
    assert result.dataset.manifest["notes"][: len(made.notes)] == list(made.notes)
    page = run_report(Run.open(tmp_path / "run"), rows=100)
    data = page[page.index('id="data"') : page.index('id="timings"')]
    assert "reproduction mode that looks into the future" in data


@pytest.mark.parametrize("name", [n for n in MINE if n != "online_retail"])
def test_a_missing_file_is_one_sentence(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        convert(name, tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        convert(name, tmp_path / "none")


def test_no_row_is_one_sentence_and_writes_nothing(tmp_path: Path) -> None:
    """Of one event alone no request can be made; `finerank train` would be the first to tell."""
    (tmp_path / "UserBehavior.csv").write_text("1,2,3,pv,1511600000\n")
    made = convert("taobao", tmp_path)[0]
    with pytest.raises(
        UserError, match=r"no row is left to train on \(1 read, 1 kept, 1 positives left out, first sight"
    ):
        made.write(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["alimama", "criteo", "frappe", "mind"])
def test_a_count_of_none_is_refused_before_anything_is_written(name: str) -> None:
    with pytest.raises(UserError, match="min_count"):
        build(adapter(name).options, {"min_count": 0}, name)


def test_no_negatives_for_evaluation_are_refused(tmp_path: Path) -> None:
    """0 was read as: as many as of training."""
    reviews(tmp_path)
    with pytest.raises(UserError, match="negatives: 0 for each positive; accepted: 1 or more"):
        convert("amazon", tmp_path, for_evaluation=0)


def test_all_are_known() -> None:
    assert set(MINE) <= set(names())
    with pytest.raises(UserError, match="did you mean 'taobao'"):
        adapter("taobaoo")


# ------------------------------------------------------------------------------------------------ the real files


def real(folder: str) -> Path:
    if not (REAL / folder).exists():
        pytest.skip(f"FINERANK_DATA has no {folder}")
    return REAL / folder


def test_real_grocery() -> None:
    """151,254 events of 14,681 users; every event but a user's first is a request."""
    made, samples, events = convert("amazon", real("amazon_grocery"), protocol="leave_one_out", negatives="paper")
    assert [made.counts[f"{n}.csv: kept"] for n in ("train", "dev", "test")] == [121_892, 14_681, 14_681]
    assert (events["item_id"].n_unique(), events["category_id"].n_unique()) == (8_713, 57)
    assert samples.height == 2 * (151_254 - 14_681)
    assert samples["label"].mean() == 0.5
    made, samples, _ = convert("amazon", real("amazon_grocery"), protocol="leave_one_out")
    assert made.counts["requests left out, first sight of the item"] == 7_365
    assert samples.height == 258_416


def test_real_movielens_half() -> None:
    """487,650 ratings of users 1 to 2,999; 279,124 of them 4 or 5."""
    made, samples, events = convert("movielens_1m", real("movielens_1m_half"))
    assert made.counts["ratings: kept"] == samples.height == events.height == 487_650
    assert samples["label"].sum() == 279_124
    assert samples["user_id"].n_unique() == 2_999
    assert (made.counts["users: kept"], made.counts["movies: kept"]) == (6_040, 3_883)


def test_real_online_retail() -> None:
    """541,909 lines, 396,337 of them sales to a known customer: the shipped tables."""
    made, samples, events = convert("online_retail", real("online_retail"))
    assert made.counts["read"] == 541_909
    assert (samples.height, samples["bought"].sum(), events.height) == (821_585, 164_317, 386_326)
