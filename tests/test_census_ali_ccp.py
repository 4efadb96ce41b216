"""Census-Income and Ali-CCP, the sets of two tasks: each typed line, the parts, and trainings of made-up lines."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from by_adapter import RAW, converted, real, samples, trained

from finerank.datasets import ali_ccp, census
from finerank.errors import UserError

# ------------------------------------------------------------------------------------------------ Census-Income


@pytest.fixture
def census_folder(tmp_path: Path) -> Path:
    """60 + 40 people: the fixture's whole lines with other ages, incomes and states."""
    draw = np.random.default_rng(0)
    folder = tmp_path / "raw"
    folder.mkdir()
    whole = (RAW / "census" / census.TRAIN).read_text().splitlines()[:6]
    for name, count in ((census.TRAIN, 60), (census.TEST, 40)):
        lines = []
        for _ in range(count):
            cells = str(draw.choice(whole)).split(", ")
            cells[0] = str(int(draw.integers(90)))
            cells[7] = str(draw.choice(["Never married", "Divorced"]))
            cells[-1] = str(draw.choice(list(census.INCOME)))
            lines.append(", ".join(cells) + "\n")
        folder.joinpath(name).write_text("".join(lines))
    return folder


def test_census_keeps_and_drops_what_the_fixture_says() -> None:
    made = converted("census_income", RAW / "census")
    assert made.counts == {"read": 12, "kept": 9, "malformed": 2, "cut": 1}
    frame = made.samples.lazy().collect()
    assert frame["age"].to_list() == [38, 52, 9, 30, 41, 27, 60, 35, 90]
    assert frame["income"].to_list() == [0, 1, 0, 0, 1, 0, 1, 0, 0]
    assert frame["never_married"].to_list() == [0, 0, 1, 1, 0, 0, 0, 1, 0]
    assert frame["college"].to_list() == [1, 1, 0, 1, 1, 0, 1, 1, 0]
    one, two, three, four, five = frame.head(5).to_dicts()
    assert (one["mig_chg_msa"], one["citizenship"]) == ("?", "Foreign born- Not a citizen of U S")
    assert (two["capital_gains"], two["weeks_worked"]) == (15024, 52)
    assert three["det_ind_code"] == "0"
    assert (four["income_50k"], four["year"]) == ("- 50000.", "94")
    assert five["wage_per_hour"] == 1450
    assert frame["split"].to_list()[:6] == ["train"] * 6
    assert set(frame["split"].to_list()[6:]) <= {"validation", "test"}


@pytest.mark.parametrize("group", [1, 2])
def test_census_trains_without_what_the_labels_are_made_of(census_folder: Path, tmp_path: Path, group: int) -> None:
    result = trained(converted("census_income", census_folder, group=group), tmp_path)
    first = {1: "income", 2: "college"}[group]
    assert list(result.test) == [first, "never_married"]
    schema = result.dataset.fitted.schema
    assert len(schema.features) == 42 - 4
    columns = {f.name for f in schema.features}
    assert not columns & {"education", "marital_stat", "instance_weight", "income_50k", *result.test}
    assert {f.name for f in schema.features if f.kind == "numeric"} == set(census.NUMBERS)


def test_census_of_one_file_is_divided_by_lot(census_folder: Path) -> None:
    (census_folder / census.TRAIN).unlink()
    packed = census_folder / f"{census.TEST}.gz"
    packed.write_bytes(gzip.compress((census_folder / census.TEST).read_bytes()))
    (census_folder / census.TEST).unlink()
    made = converted("census_income", census_folder)
    assert "not comparable" in made.notes[0]
    frame = made.samples.lazy().collect()
    assert frame.height == 40
    assert set(frame["split"]) == {"train", "validation", "test"}
    assert not frame["split"].equals(samples("census_income", census_folder, seed=5)["split"])


def test_real_census(tmp_path: Path) -> None:
    """The specification, section 4.9: rates, and the correlations that settle what "college" means."""
    made = converted("census_income", real("census_income"))
    assert made.counts == {"read": 99762, "kept": 99762}
    frame = made.samples.lazy().collect()
    rates = frame.select(pl.col("income", "never_married", "college").mean() * 100).row(0)
    assert rates == pytest.approx((6.20, 43.25, 19.5), abs=0.005 * 2)
    correlations = frame.select(a=pl.corr("income", "never_married").abs(), b=pl.corr("college", "never_married").abs())
    assert correlations.row(0) == pytest.approx((0.1787, 0.2376), abs=5e-5)
    result = trained(made, tmp_path)
    assert result.test["income"]["auc"] > 0.9
    assert result.test["never_married"]["auc"] > 0.97


# ------------------------------------------------------------------------------------------------ Ali-CCP


def items(*entries: tuple[str, int, float]) -> str:
    return f"{len(entries)}," + "\x01".join(f"{field}\x02{i}\x03{value}" for field, i, value in entries)


def write_ali_ccp(folder: Path) -> None:
    """20 users and 200 impressions in either half."""
    draw = np.random.default_rng(0)

    def some(fields: tuple[str, ...], most: int) -> list[tuple[str, int, float]]:
        return [
            (f, int(draw.integers(6)), float(round(draw.random() + 0.5, 3)))
            for f in fields
            for _ in range(draw.integers(most + 1))
        ]

    for half in ("train", "test"):
        common = [f"{u:016x}," + items(("101", u, 1.0), ("121", u % 3, 1.0), *some(ali_ccp.PAST, 5)) for u in range(20)]
        skeleton = []
        for i in range(200):
            click = int(draw.random() < 0.5)
            row = items(
                ("205", int(draw.integers(9)), 1.0), *some((ali_ccp.INTENTIONS, *ali_ccp.CROSSES), 2), ("301", 1, 1.0)
            )
            skeleton.append(f"{i},{click},{int(click and draw.random() < 0.5)},{int(draw.integers(20)):016x},{row}")
        (folder / f"common_features_{half}.csv").write_text("".join(line + "\n" for line in common))
        (folder / f"sample_skeleton_{half}.csv").write_text("".join(line + "\n" for line in skeleton))


@pytest.fixture
def ali_folder(tmp_path: Path) -> Path:
    (folder := tmp_path / "raw").mkdir()
    write_ali_ccp(folder)
    return folder


def test_ali_ccp_keeps_and_drops_what_the_fixture_says() -> None:
    made = converted("ali_ccp", RAW / "aliccp")
    assert made.counts == {
        "read": 10,
        "kept": 6,
        "malformed": 2,
        "purchase without click": 1,
        "unknown common features": 1,
        "common features: read": 4,
        "common features: kept": 3,
        "common features: malformed": 1,
    }
    frame = made.samples.lazy().collect()
    assert frame["click"].to_list() == [0, 1, 1, 0, 1, 0]
    assert frame["purchase"].to_list() == [0, 0, 1, 0, 0, 0]
    assert frame["205"].to_list() == [4013539, 4013540, 4013541, 4013541, 4013540, 4013541]
    assert frame["split"].to_list()[-2:] == ["test", "test"]
    one, two, three = frame.head(3).to_dicts()
    assert one["210"] == [9077801, 9077802]
    assert [one[f"D{f}"] for f in ali_ccp.CROSSES] == pytest.approx([2.30259, 0.69315, 1.09861, 2.99573])
    assert (one["101"], one["127"]) == (31319, 3438760)
    assert one["109_14"] == [4067381, 4067382, 4067383]
    assert one["109_14_weight"] == pytest.approx([1.09861, 2.70805, 0.69315])
    assert [one[f] for f in ("110_14", "127_14", "150_14")] == [[4530001], [3864001], [8700001, 8700002]]
    assert (two["207"], two["210"], two["D508"]) == (None, [], None)
    assert (three["101"], three["109_14"], three["124"], three["301"]) == (31320, [], None, 9351)
    assert three["D508"] == pytest.approx(0.69315)
    last = frame.row(-2, named=True)
    assert (last["101"], last["110_14"]) == (31321, [4530001])
    assert last["110_14_weight"] == pytest.approx([3.45])


def test_ali_ccp_keeps_the_heaviest_of_long_lists_in_their_order() -> None:
    frame = samples("ali_ccp", RAW / "aliccp", longest=2)
    assert frame["109_14"].to_list()[0] == [4067381, 4067382]
    assert frame["109_14_weight"].to_list()[0] == pytest.approx([1.09861, 2.70805])
    assert frame["210"].to_list()[0] == [9077801, 9077802]


def test_ali_ccp_validates_on_the_end_of_training(ali_folder: Path) -> None:
    frame = samples("ali_ccp", ali_folder, validation=0.2)
    assert frame["split"].to_list() == ["train"] * 160 + ["validation"] * 40 + ["test"] * 200
    users = frame.group_by("request").agg(pl.col("101").n_unique(), pl.col("split").n_unique())
    assert users.select(pl.col("101", "split").max()).row(0) == (1, 1)


def test_ali_ccp_names_an_index_that_comes_twice(ali_folder: Path) -> None:
    path = ali_folder / "common_features_train.csv"
    path.write_text(path.read_text() + f"{3:016x}," + items(("101", 77, 1.0)) + "\n")
    made = converted("ali_ccp", ali_folder)
    assert made.counts["common features: repeated"] == 1
    frame = made.samples.lazy().collect()
    assert frame.height == 400
    assert 77 not in frame["101"]


def test_ali_ccp_trains_two_tasks(ali_folder: Path, tmp_path: Path) -> None:
    result = trained(converted("ali_ccp", ali_folder, min_count=1), tmp_path)
    assert list(result.test) == ["click", "purchase", "click&purchase"]
    lists = {c.name for c in result.dataset.fitted.request.lists if c.weighted}
    assert lists == set(ali_ccp.PAST)


@pytest.mark.parametrize("options", [{"validation": 0.0}, {"longest": 0}, {"min_count": 0}])
def test_ali_ccp_options_have_bounds(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match="accepted"):
        converted("ali_ccp", RAW / "aliccp", **options)
