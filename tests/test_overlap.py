"""A split that is given: parts that share rows are refused, in a column and in files of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import test_run
import tiny

from finerank.data.overlap import _shares, refuse_overlap
from finerank.data.prepare import prepare
from finerank.data.scratch import Scratch
from finerank.data.split import Split
from finerank.errors import UserError
from finerank.recipe import Recipe
from finerank.run import prepared

COLUMN = Split(by="column", column="part")


def world() -> pl.DataFrame:
    """The tiny world, with a sound split by time in a column."""
    samples = tiny.frames()[0]
    at = pl.when(pl.col("request") < 40).then(pl.lit("train"))
    return samples.with_columns(
        part=at.when(pl.col("request") < 50).then(pl.lit("validation")).otherwise(pl.lit("test"))
    )


def test_a_sound_split_is_fine(tmp_path: Path) -> None:
    samples, events = world(), tiny.frames()[1]
    prepare(tmp_path / "d", tiny.schema(), samples.lazy(), events.lazy(), tiny.KEYS, COLUMN)


def test_a_test_row_in_training_is_refused(tmp_path: Path) -> None:
    """As a copy with another request number and another label: who, when and what are the same."""
    samples, events = world(), tiny.frames()[1]
    copy = samples.filter(pl.col("part") == "test").head(1)
    copy = copy.with_columns(
        request=pl.lit(999, pl.Int64), click=1 - pl.col("click"), conversion=pl.lit(0, pl.Int64), part=pl.lit("train")
    )
    both = pl.concat([samples, copy], how="vertical_relaxed")
    with pytest.raises(UserError, match=r"1 rows of test are in train too"):
        prepare(tmp_path / "d", tiny.schema(), both.lazy(), events.lazy(), tiny.KEYS, COLUMN)


@pytest.mark.parametrize("known", [True, False])
def test_validation_equal_to_test_is_refused(known: bool) -> None:
    samples = world()
    test = samples.filter(pl.col("part") == "test")
    rows = pl.concat([samples.filter(pl.col("part") == "train"), test, test.sample(fraction=1, shuffle=True, seed=1)])
    part = pl.Series([0] * (rows.height - 2 * test.height) + [1] * test.height + [2] * test.height).to_numpy()
    with pytest.raises(UserError, match="rows of validation are those of test"):
        refuse_overlap(rows.lazy(), part, ["user", "time", "item", "tags"], known)


def test_without_users_equal_rows_may_be_two_impressions() -> None:
    rows = pl.DataFrame({"site": [1, 1, 2, 1, 3]}).lazy()
    part = pl.Series([0, 0, 0, 1, 2]).to_numpy()
    refuse_overlap(rows, part, ["site"], known=False)
    with pytest.raises(UserError, match=r"validation are in train too, the first with \{'site': 1\}"):
        refuse_overlap(rows, part, ["site"], known=True)


@pytest.mark.parametrize("block", [10, 1_000, 100_000])
def test_shares_are_made_in_a_few_passes_whatever_the_block(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = np.random.default_rng(0).integers(0, 2**63, 5_000).astype(np.uint64).repeat(2)
    passed, pieces = [0], Scratch.pieces

    def noted(scratch: Scratch, n: int) -> Any:
        passed[0] += n
        return pieces(scratch, n)

    monkeypatch.setattr(Scratch, "pieces", noted)
    shares = list(_shares(hashed, Scratch(None, block)))
    assert passed[0] < 20 * len(hashed)
    assert len(shares) == -(-len(hashed) // block)
    assert np.array_equal(np.sort(np.concatenate(shares)), np.arange(len(hashed)))
    for rows in shares:
        assert (np.diff(rows) > 0).all()
        assert (np.unique(hashed[rows], return_counts=True)[1] == 2).all()  # equal ones are in one share


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, Any]:
    """A recipe over files train, validation and test; the folder holds them."""
    test_run.logs(tmp_path)
    for (name,), rows in world().partition_by("part", as_dict=True, include_key=False).items():
        rows.write_parquet(tmp_path / f"{name}.parquet")
    table = test_run.table(epochs=1) | {"model": {"name": "lr"}}
    files = {"samples": "train.parquet", "validation": "validation.parquet", "test": "test.parquet"}
    return table | {"data": {k: v for k, v in table["data"].items() if k != "split"} | files}


def test_files_of_parts_are_the_split(parts: dict[str, Any], tmp_path: Path) -> None:
    recipe = Recipe.parse(parts, tmp_path)
    found = prepared(recipe, tmp_path / "d").manifest["split"]
    assert {name: rows for name, (_, rows) in found.items()} == dict(world()["part"].value_counts().iter_rows())
    assert Recipe.parse(recipe.resolved()).resolved() == recipe.resolved()
    assert {path.name for path in recipe.files()} == {
        "train.parquet",
        "validation.parquet",
        "test.parquet",
        "events.parquet",
    }


def test_one_file_for_two_parts_is_refused(parts: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "copy.parquet").write_bytes((tmp_path / "test.parquet").read_bytes())
    for name, match in (
        ("./test.parquet", "are the same file"),
        ("copy.parquet", "rows of validation are those of test"),
    ):
        with pytest.raises(UserError, match=match):
            prepared(Recipe.parse(parts | {"data": parts["data"] | {"validation": name}}, tmp_path), tmp_path / "d")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"test": None}, "all three"),
        ({"split": {"by": "user"}}, "one of the two"),
    ],
)
def test_half_given_parts_are_refused(
    parts: dict[str, Any], tmp_path: Path, change: dict[str, Any], match: str
) -> None:
    data = {k: v for k, v in (parts["data"] | change).items() if v is not None}
    with pytest.raises(UserError, match=match):
        Recipe.parse(parts | {"data": data}, tmp_path)


def test_files_with_other_columns_are_refused(parts: dict[str, Any], tmp_path: Path) -> None:
    pl.read_parquet(tmp_path / "test.parquet").drop("price").write_parquet(tmp_path / "test.parquet")
    with pytest.raises(UserError, match="same columns"):
        prepared(Recipe.parse(parts, tmp_path), tmp_path / "d")
