"""Frappe and MovieLens tags: what becomes of each typed line, the parts, and a training from made-up lines of the format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from by_adapter import RAW, converted, trained

from finerank.datasets.leaderboard import COLUMNS
from finerank.errors import UserError


def test_frappe_keeps_and_drops_what_the_fixture_says() -> None:
    made = converted("frappe", RAW / "frappe")
    assert made.counts == {"read": 9, "kept": 6, "malformed": 2, "cut": 1}  # a label of 2, a line of ten fields
    frame = made.samples.lazy().collect()
    assert frame["label"].to_list() == [1, 0, 0, 1, 1, 0]
    assert frame["split"].to_list() == ["train"] * 4 + ["validation", "test"]
    assert frame["user"].to_list()[2:4] == ["451", "0451"]  # ids are names
    assert frame["city"].to_list()[4] == "16"  # without the carriage return
    assert "6 rows, and the leaderboard's files have 288,609: results are not comparable" in made.notes[1]


def test_movielens_tags_read_minus_one_as_a_negative() -> None:
    made = converted("movielens_latest", RAW / "movielens_latest")
    assert made.counts == {"read": 5, "kept": 4, "malformed": 1}
    assert made.samples.lazy().collect()["label"].to_list() == [1, 0, 0, 1]


def write(name: str, raw: Path) -> None:
    draw = np.random.default_rng(0)
    columns = [c for level in COLUMNS[name].values() for c in level]
    for part, rows in (("train", 300), ("valid", 60), ("test", 60)):
        lines = [",".join(["label", *columns])]
        lines += [
            ",".join(str(v) for v in (draw.integers(2), *draw.integers(9, size=len(columns)))) for _ in range(rows)
        ]
        raw.joinpath(f"{part}.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("name", ["frappe", "movielens_latest"])
def test_the_recipe_trains(name: str, tmp_path: Path) -> None:
    (raw := tmp_path / "raw").mkdir()
    write(name, raw)
    small = 'model.interactions=["linear", "fm", {kind = "tower", hidden = [8]}]'
    result = trained(converted(name, raw), tmp_path, small)
    assert 0 < result.test["click"]["logloss"] < 5
    assert result.dataset.manifest["split"]["test"][1] == 60


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("label,user_id,item_id,tag_id\n1,1,1,1\n")
    with pytest.raises(UserError, match=r"no file valid\.csv"):
        converted("movielens_latest", tmp_path)
