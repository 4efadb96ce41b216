"""Open Bandit and MIND: each typed line, what must not reach the graph, the reader's past, and trainings."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from by_adapter import RAW, converted, real, samples, trained

from finerank.errors import UserError

A, B = "81ce123cbb5bd8ce818f60fb3586bba5", "c39b0c7dd5d4eb9a18e7db6ba2f258f8"

# ------------------------------------------------------------------------------------------------ Open Bandit


def test_open_bandit_keeps_and_drops_what_the_fixture_says() -> None:
    made = converted("open_bandit", RAW / "open_bandit")
    assert made.counts == {
        "read": 7,
        "kept": 5,
        "malformed": 1,
        "cut": 1,
        "item_context: read": 3,
        "item_context: kept": 3,
        "kept, unknown item": 1,
    }
    one, two, three, four, unknown = made.samples.lazy().collect().to_dicts()
    assert (one["item_id"], one["position"], one["click"], one["propensity"]) == (1, 3, 0, 1 / 3)
    assert one["time"] == datetime(2019, 11, 24, 0, 0, 20, 600956)
    assert (one["item_feature_0"], one["item_feature_1"]) == (0.5437753679553131, B)
    assert (two["item_id"], two["position"], two["click"], two["affinity"]) == (0, 1, 1, 2.0)
    assert (two["affine_items"], two["affine_weights"]) == ([0, 2], [2.0, 1.0])
    assert (three["time"], three["user_feature_2"], three["user_feature_3"]) == (two["time"], B, None)
    assert (three["affine_items"], three["item_feature_0"], three["item_feature_3"]) == ([], None, B)
    assert (four["item_id"], four["position"], four["click"]) == (1, 1, 0)
    assert (unknown["item_id"], unknown["item_feature_1"], unknown["affinity"]) == (7, None, None)


def test_open_bandit_reads_the_other_policy_and_its_other_column_name() -> None:
    made = converted("open_bandit", RAW / "open_bandit", policy="bts")
    assert (made.counts["kept"], made.counts["malformed"]) == (2, 1), "a propensity of 0 is impossible"
    frame = made.samples.lazy().collect()
    assert frame["propensity"].to_list() == [0.08, 1e-05]
    both = samples("open_bandit", RAW / "open_bandit", policy="both")
    assert both["policy"].to_list() == ["random"] * 5 + ["bts"] * 2
    with pytest.raises(UserError, match=r"random/men\.csv"):
        converted("open_bandit", RAW / "open_bandit", campaign="men")


@pytest.fixture
def bandit_folder(tmp_path: Path) -> Path:
    """120 impressions of each policy, in the flat layout."""
    draw = np.random.default_rng(0)
    for policy in ("random", "bts"):
        source = RAW / "open_bandit" / policy / "all"
        head = source.joinpath("all.csv").read_text().splitlines()[0]
        lines = [head]
        for i in range(120):
            affinity = ",".join(str(float(draw.integers(3))) for _ in range(3))
            click, item, position = int(draw.random() < 0.4), int(draw.integers(3)), int(draw.integers(1, 4))
            lines.append(
                f"{i},2019-11-24 {i // 60:02d}:{i % 60:02d}:00+00:00,{item},{position},{click},0.3,{A},{B},{A},{B},{affinity}"
            )
        folder = tmp_path / "raw" / policy
        folder.mkdir(parents=True)
        folder.joinpath("all.csv").write_text("".join(line + "\n" for line in lines))
        folder.joinpath("item_context.csv").write_bytes(source.joinpath("item_context.csv").read_bytes())
    return tmp_path / "raw"


@pytest.mark.parametrize("policy", ["random", "both"])
def test_open_bandit_trains_with_positions_kept_out_of_the_graph(
    bandit_folder: Path, tmp_path: Path, policy: str
) -> None:
    result = trained(converted("open_bandit", bandit_folder, policy=policy), tmp_path)
    assert 0 <= result.test["click"]["auc"] <= 1
    fitted = result.dataset.fitted
    assert [name for name, _ in fitted.train_only.ids] == ["position"]
    assert "propensity" in fitted.train_only.numbers
    seen = {name for _, columns in fitted.blocks() for name in (*(n for n, _ in columns.ids), *columns.numbers)}
    assert not seen & {"position", "propensity"}
    assert ("policy" in seen) == (policy == "both")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (",timestamp,item_id,position,click", "no column propensity_score or action_prob"),
        (",timestamp,item_id,position,click,action_prob,user_feature_0", "does not end in columns user-item_affinity_"),
    ],
)
def test_open_bandit_of_another_header(tmp_path: Path, header: str, message: str) -> None:
    (tmp_path / "random").mkdir()
    (tmp_path / "random" / "all.csv").write_text(header + "\n")
    (tmp_path / "random" / "item_context.csv").write_text(
        "item_id,item_feature_0,item_feature_1,item_feature_2,item_feature_3\n"
    )
    with pytest.raises(UserError, match=message):
        converted("open_bandit", tmp_path)


def test_real_open_bandit(tmp_path: Path) -> None:
    folder = real("open_bandit")
    for policy, clicks in (("random", 38), ("bts", 42)):
        made = converted("open_bandit", folder, policy=policy)
        assert (made.counts["read"], made.counts["kept"], made.counts["kept, unknown item"]) == (10_000, 10_000, 0)
        frame = made.samples.lazy().collect()
        assert frame["click"].sum() == clicks
        assert set(frame["position"]) == {1, 2, 3}
    assert samples("open_bandit", folder)["propensity"].to_list() == [1 / 80] * 10_000
    result = trained(converted("open_bandit", folder, policy="both"), tmp_path)
    assert np.isfinite(result.test["click"]["logloss"])


# ------------------------------------------------------------------------------------------------ MIND


def test_mind_keeps_and_drops_what_the_fixture_says() -> None:
    made = converted("mind", RAW / "mind")
    assert made.counts == {
        "read": 9,
        "kept": 7,
        "malformed": 1,
        "cut": 1,
        "news: read": 8,
        "news: kept": 7,
        "news: malformed": 1,
        "rows": 16,
        "rows, unknown news": 1,
    }
    frame = made.samples.lazy().collect()
    by_request = frame.group_by("request", maintain_order=True).agg(
        "news_id", "click", pl.col("time", "history", "split").first()
    )
    assert by_request.select("request", "news_id", "click").rows() == [
        ("train-1", ["N3", "N4"], [1, 0]),
        ("train-2", ["N1", "N2", "N3"], [0, 0, 1]),
        ("train-3", ["N4", "N2"], [1, 0]),
        ("train-4", ["N4", "N1"], [0, 1]),
        ("train-6", ["N3", "N8"], [0, 1]),
        ("dev-8", ["N6", "N1"], [1, 0]),
        ("dev-9", ["N6", "N2", "N1"], [0, 1, 0]),
    ]
    assert by_request["time"].to_list() == [
        datetime(2019, 11, 11, 9, 5, 58),
        datetime(2019, 11, 12),
        datetime(2019, 11, 12, 12, 31, 5),
        datetime(2019, 11, 9, 23, 59, 59),
        datetime(2019, 11, 13, 7),
        datetime(2019, 11, 15, 12, 0, 1),
        datetime(2019, 11, 15, 1),
    ]
    past = [["N1", "N2", "N1"], [], ["N1", "N2", "N1", "N3"], ["N9"], ["N2"], ["N1", "N2", "N1", "N3", "N4"], []]
    assert by_request["history"].to_list() == past
    assert by_request["split"].to_list() == ["train"] * 4 + ["validation"] + ["test"] * 2


def test_mind_describes_news_and_past() -> None:
    frame = samples("mind", RAW / "mind")
    news = {row["news_id"]: row for row in frame.to_dicts()}
    assert (news["N1"]["category"], news["N1"]["subcategory"]) == ("sports", "football_nfl")
    assert (news["N1"]["title_entities"], news["N1"]["abstract_entities"]) == (["Q313381"], [])
    assert (news["N3"]["title_entities"], news["N3"]["abstract_entities"]) == (["Q1", "Q2"], ["Q3"])
    assert (news["N4"]["subcategory"], news["N4"]["title_entities"]) == ("newsus", None)
    assert (news["N6"]["category"], news["N6"]["subcategory"]) == ("autos", "autosnews")
    assert (news["N8"]["category"], news["N8"]["title_entities"]) == (None, None)
    past = {row["request"]: row for row in frame.to_dicts()}
    assert past["train-1"]["history_category"] == ["sports", "news", "sports"]
    assert past["train-1"]["history_subcategory"] == ["football_nfl", "newsworld", "football_nfl"]
    assert past["train-4"]["history_category"] == [None], "N9 is no known news, but it was read"
    assert past["dev-8"]["interests"] == ["football_nfl#1", "newsus#2", "newsworld#3", "weightloss#4"]
    assert past["dev-9"]["interests"] == []


def test_mind_cuts_the_past_but_not_the_profile() -> None:
    frame = samples("mind", RAW / "mind", history=2, interests=1)
    row = frame.filter(pl.col("request") == "dev-8").row(0, named=True)
    assert row["history"] == ["N3", "N4"]
    assert row["history_category"] == ["health", "news"]
    assert row["interests"] == ["football_nfl#1"], "twice in the whole past, though not in its last two"


def mind_files(folder: Path, impressions: int, draw: np.random.Generator, day: int = 9) -> None:
    folder.mkdir(parents=True)
    news = [f'N{i}\tc{i % 3}\ts{i % 5}\ta "title\t\turl\t[{{"WikidataId": "Q{i % 4}"}}]\t[]\n' for i in range(12)]
    folder.joinpath("news.tsv").write_text("".join(news))
    lines = []
    for i in range(impressions):
        past = " ".join(f"N{n}" for n in draw.integers(12, size=draw.integers(6)))
        shown = " ".join(f"N{n}-{int(k == 0)}" for k, n in enumerate(draw.permutation(12)[:4]))
        lines.append(
            f"{i}\tU{i % 9}\t11/{day + i // 24}/2019 {i % 12 + 1}:00:00 {'AP'[i % 24 // 12]}M\t{past}\t{shown}\n"
        )
    folder.joinpath("behaviors.tsv").write_text("".join(lines))


def test_mind_trains(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    mind_files(tmp_path / "raw" / "MINDsmall_train", 60, draw)
    mind_files(tmp_path / "raw" / "MINDsmall_dev", 20, draw, day=15)
    result = trained(converted("mind", tmp_path / "raw"), tmp_path)
    assert 0 <= result.test["click"]["gauc"] <= 1
    assert [c.name for c in result.dataset.fitted.request.lists] == ["interests"]
    assert set(result.dataset.fitted.histories) == {"clicked"}


def test_mind_without_dev_tests_on_the_end_of_train(tmp_path: Path) -> None:
    mind_files(tmp_path / "train", 60, np.random.default_rng(0))
    frame = samples("mind", tmp_path).unique("request").sort("time", "split")
    bounds = frame.group_by("split").agg(
        pl.col("time").min().alias("first"), pl.col("time").max().alias("last"), pl.len()
    )
    found = {row["split"]: row for row in bounds.to_dicts()}
    assert found["train"]["last"] < found["validation"]["first"]
    assert found["validation"]["last"] < found["test"]["first"]
    assert found["validation"]["len"] + found["test"]["len"] == pytest.approx(12, abs=2)
    assert len({row["request"] for row in samples("mind", tmp_path).to_dicts()}) == 60


def test_mind_reports_entities_that_are_no_json(tmp_path: Path) -> None:
    mind_files(tmp_path / "train", 10, np.random.default_rng(0))
    path = tmp_path / "train" / "news.tsv"
    path.write_text(path.read_text() + "N50\tc\ts\tt\ta\tu\t[{broken\t[]\nN51\tc\ts\tt\ta\tu\t[]\t[]\n")
    counts = converted("mind", tmp_path).counts
    assert (counts["news: read"], counts["news: kept"], counts["news: malformed"]) == (14, 13, 1)


def test_mind_needs_a_train_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no folder train or MINDsmall_train"):
        converted("mind", tmp_path)
