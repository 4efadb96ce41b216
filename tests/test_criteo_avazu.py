"""Criteo and Avazu: what becomes of each typed line, the parts, and a training from made-up lines of the same format."""

from __future__ import annotations

import gzip
import json
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from by_adapter import RAW, converted, real, samples, trained

from finerank.datasets import avazu, criteo
from finerank.datasets.protocol import by_position
from finerank.errors import UserError


def criteo_line(draw: np.random.Generator) -> str:
    numbers = ["" if draw.random() < 0.3 else str(int(draw.geometric(0.05)) - 3) for _ in criteo.NUMBERS]
    categories = ["" if draw.random() < 0.1 else f"{int(draw.integers(4)):08x}" for _ in criteo.CATEGORIES]
    return "\t".join([str(int(draw.random() < 0.4)), *numbers, *categories])


def avazu_line(draw: np.random.Generator, i: int, day: int) -> str:
    rest = [f"{int(draw.integers(5)):08x}" for _ in avazu.COLUMNS[3:]]
    return ",".join([str(i), str(int(draw.random() < 0.4)), f"1410{day}{int(draw.integers(24)):02d}", *rest])


def write_criteo(folder: Path) -> None:
    draw = np.random.default_rng(0)
    folder.joinpath("train.txt").write_text("".join(criteo_line(draw) + "\n" for _ in range(210)))


def write_avazu(folder: Path) -> None:
    draw = np.random.default_rng(0)
    lines = [",".join(avazu.COLUMNS), *(avazu_line(draw, i, 21 + i // 40) for i in range(200))]
    folder.joinpath("train.csv").write_text("".join(line + "\n" for line in lines))


@pytest.fixture
def criteo_folder(tmp_path: Path) -> Path:
    (folder := tmp_path / "raw").mkdir()
    write_criteo(folder)
    return folder


@pytest.fixture
def avazu_folder(tmp_path: Path) -> Path:
    (folder := tmp_path / "raw").mkdir()
    write_avazu(folder)
    return folder


# ------------------------------------------------------------------------------------------------ Criteo


def test_criteo_keeps_and_drops_what_the_fixture_says() -> None:
    made = converted("criteo", RAW / "criteo")
    assert made.counts == {"read": 8, "kept": 6, "malformed": 1, "cut": 1}
    frame = made.samples.lazy().collect()
    assert frame["label"].to_list() == [0, 1, 0, 1, 0, 1]
    one, two, three, four, five, six = frame.to_dicts()
    assert (one["I5"], one["C1"], one["C26"]) == (1382, "68fd1e64", "68fd1e7d")
    assert two["I2"] == -1
    assert (two["I1"], two["I3"], two["I7"]) == (None, None, 0)
    assert [two[c] for c in ("C3", "C19", "C20")] == [None] * 3
    assert {three[n] for n in criteo.NUMBERS} == {None}
    assert (four["I2"], four["C23"], four["C24"], four["C25"], four["C26"]) == (-2, "68fd1e7a", None, None, None)
    assert five["C26"] == "68fd1e7d"
    assert six["I3"] == 65535
    assert {six[c] for c in criteo.CATEGORIES} == {"ffffffff"}


def parts(frame: pl.DataFrame) -> list[str]:
    """The parts in file order, each named once as long as it lasts."""
    return frame["split"].rle().struct.field("value").to_list()


def test_criteo_parts_by_position_put_validation_before_test(criteo_folder: Path) -> None:
    frame = samples("criteo", criteo_folder)
    assert parts(frame) == ["train", "validation", "test"]
    assert frame["split"].value_counts().sort("split")["count"].to_list() == [21, 168, 21]
    frame = samples("criteo", criteo_folder, split="dcn")
    assert parts(frame) == ["train", "validation", "test"]
    assert frame["split"].value_counts().sort("split")["count"].to_list() == [15, 180, 15]


def test_positions_of_unequal_parts() -> None:
    frame = pl.DataFrame({"row": range(10)}).select(split=by_position(10, validation=3, test=2))
    assert frame["split"].to_list() == ["train"] * 5 + ["validation"] * 3 + ["test"] * 2
    for validation, test in ((0, 2), (3, 0), (5, 5)):
        with pytest.raises(UserError, match="does not go with 10 rows"):
            by_position(10, validation, test)


def test_criteo_ffm_holds_out_the_last_lines(criteo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"last 6,040,618 rows for test .* does not go with 210 rows"):
        converted("criteo", criteo_folder, split="ffm")
    monkeypatch.setattr(criteo, "FFM_LINES", 30)
    frame = samples("criteo", criteo_folder, split="ffm")
    assert frame["split"].to_list() == ["train"] * 150 + ["validation"] * 30 + ["test"] * 30


def test_criteo_lots_repeat_and_follow_the_seed(criteo_folder: Path) -> None:
    made = converted("criteo", criteo_folder, split="x1")
    assert "cannot be had" in made.notes[0]
    frame = made.samples.lazy().collect()
    assert frame["split"].equals(samples("criteo", criteo_folder, split="x1")["split"])
    assert not frame["split"].equals(samples("criteo", criteo_folder, split="x1", seed=1)["split"])
    shares = {part: (frame["split"] == part).mean() for part in ("train", "validation", "test")}
    assert shares == pytest.approx({"train": 0.72, "validation": 0.18, "test": 0.1}, abs=0.07)


def test_criteo_lines_in_three_files_keep_their_parts(tmp_path: Path) -> None:
    line = (RAW / "criteo" / "train.txt").read_bytes().split(b"\n")[0] + b"\n"
    for name, count in (("train", 5), ("dev", 2), ("test", 3)):
        (tmp_path / f"{name}.csv").write_bytes(line * count)
    made = converted("criteo", tmp_path)
    assert made.counts == {"read": 10, "kept": 10}
    assert made.samples.lazy().collect()["split"].to_list() == ["train"] * 5 + ["validation"] * 2 + ["test"] * 3
    with pytest.raises(UserError, match="holds parts of its own"):
        converted("criteo", tmp_path, split="x4")


def test_criteo_trains(criteo_folder: Path, tmp_path: Path) -> None:
    result = trained(converted("criteo", criteo_folder, min_count=2), tmp_path)
    assert 0 <= result.test["click"]["auc"] <= 1
    tables = result.dataset.fitted.tables
    assert {"I1_bucket", "I13_bucket", "C1", "C26"} <= set(tables)
    numbers = result.dataset.fitted.candidate.numbers
    assert {f"I{i}" for i in range(1, 14)} <= set(numbers), "both copies are kept"


# ------------------------------------------------------------------------------------------------ Avazu


def test_avazu_keeps_and_drops_what_the_fixture_says() -> None:
    made = converted("avazu", RAW / "avazu", split="x4")
    assert made.counts == {"read": 9, "kept": 6, "malformed": 2, "cut": 1}
    frame = made.samples.lazy().collect()
    assert "id" not in frame.columns
    assert frame["click"].to_list() == [0, 1, 0, 0, 1, 0]
    assert frame["hour"].to_list() == [0, 1, 23, 0, 12, 23]
    assert frame["weekday"].to_list() == [2, 2, 2, 6, 0, 4]
    assert frame["is_weekend"].to_list() == [0, 0, 0, 1, 1, 0]
    one, _, three, four, five, last = frame.to_dicts()
    assert (one["time"], one["C20"]) == (datetime(2014, 10, 21), "-1")
    assert (three["C20"], three["C21"]) == ("100084", "79")
    assert (four["site_id"], five["banner_pos"]) == ("85f751fd", "1")
    assert (last["time"], last["C1"]) == (datetime(2014, 10, 30, 23), "1010")


def test_avazu_by_days_tests_on_the_last(avazu_folder: Path) -> None:
    fixture = samples("avazu", RAW / "avazu")
    assert fixture["split"].to_list() == ["train"] * 5 + ["test"], "no line is of the day before the last"
    days = samples("avazu", avazu_folder).select("split", day=pl.col("time").dt.day()).unique().sort("day")
    assert days["split"].to_list() == ["train"] * 3 + ["validation", "test"]


def test_avazu_of_one_day_cannot_be_split_by_days(tmp_path: Path) -> None:
    lines = (RAW / "avazu" / "train.csv").read_bytes().split(b"\n")[:3]
    (tmp_path / "train.csv").write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(UserError, match='takes three days; use split = "x4"'):
        converted("avazu", tmp_path)


def test_avazu_parts_without_a_header(tmp_path: Path) -> None:
    lines = (RAW / "avazu" / "train.csv").read_bytes().splitlines(keepends=True)
    for name, some in (("train", lines[:4]), ("dev", lines[4:5]), ("test", lines[5:6])):
        (tmp_path / f"{name}.csv").write_bytes(b"".join(some))
    made = converted("avazu", tmp_path)
    assert made.counts == {"read": 5, "kept": 5}
    assert made.samples.lazy().collect()["split"].to_list() == ["train"] * 3 + ["validation", "test"]


@pytest.mark.parametrize("name", ["criteo", "avazu"])
def test_parts_may_be_packed(name: str, tmp_path: Path) -> None:
    """Avazu read the packed train.csv alone, divided it by days, and left the other two aside without a word."""
    draw = np.random.default_rng(0)
    for i, part in enumerate(("train", "dev", "test")):
        lines = [criteo_line(draw) if name == "criteo" else avazu_line(draw, i, 21 + day) for day in range(3)]
        head = [",".join(avazu.COLUMNS)] if (name, part) == ("avazu", "train") else []
        (tmp_path / f"{part}.csv.gz").write_bytes(gzip.compress("\n".join([*head, *lines, ""]).encode()))
    assert samples(name, tmp_path)["split"].to_list() == [
        part for part in ("train", "validation", "test") for _ in range(3)
    ]


def test_avazu_trains(avazu_folder: Path, tmp_path: Path) -> None:
    made = converted("avazu", avazu_folder)
    result = trained(made, tmp_path)
    assert 0 <= result.test["click"]["auc"] <= 1
    manifest = json.loads((tmp_path / "made" / "counts.json").read_text())
    assert manifest["counts"] == {"read": 200, "kept": 200}
    assert manifest["notes"] == ["Test is 2014-10-25, validation the day before."]


# ------------------------------------------------------------------------------------------------ damaged files


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("criteo", "other.txt", b"", "no file train.txt"),
        ("avazu", "train.csv", b"id,click\n1,0\n", "no column 'hour' in the first line"),
        ("avazu", "train.csv", b"", "no column 'id' in the first line"),
        ("criteo", "train.txt.gz", b"\x1f\x8b\x08\x00cut", "is the file whole"),
        ("criteo", "train.txt", b"1,2,3\n", r"no line is left of 1 \(1 malformed\); is it the right file"),
    ],
)
def test_damaged_files_get_one_sentence(tmp_path: Path, name: str, file: str, content: bytes, message: str) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=message):
        converted(name, tmp_path)


@pytest.mark.parametrize("name", ["criteo", "avazu", "census_income", "open_bandit", "mind", "ali_ccp"])
def test_a_missing_folder_is_told(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        converted(name, tmp_path / "nowhere")


# ------------------------------------------------------------------------------------------------ real files


def test_real_criteo(tmp_path: Path) -> None:
    made = converted("criteo", real("criteo_sample"))
    assert made.counts == {"read": 8000, "kept": 8000}
    frame = made.samples.lazy().collect()
    clicks = frame.group_by("split").agg(pl.col("label").sum()).sort("split")["label"].to_list()
    assert clicks == [86, 1549, 93], "test, train, validation"
    result = trained(made, tmp_path, 'model={name="lr"}')
    assert result.test["click"]["auc"] > 0.6


def test_real_avazu(tmp_path: Path) -> None:
    made = converted("avazu", real("avazu_sample"))
    assert made.counts == {"read": 8999, "kept": 8999}
    assert made.samples.lazy().select(pl.col("click").sum()).collect().item() == 1563
    result = trained(made, tmp_path, 'model={name="lr"}')
    assert result.test["click"]["auc"] > 0.6
