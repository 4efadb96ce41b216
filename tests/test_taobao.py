"""Taobao's log passes in pieces: the same rows as all at once, in memory that does not follow the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from finerank.datasets import taobao
from finerank.datasets.implicit import Sampler
from finerank.datasets.raw import numbered
from finerank.typed import build


def written(folder: Path, lines: int = 6_000) -> pl.DataFrame:
    """A log in no order of time, with repeats and items that change their category."""
    draw = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "user_id": draw.integers(1, 60, lines),
            "item_id": (300 * draw.random(lines) ** 2).astype(np.int64) + 7,
            "category_id": draw.integers(0, 5, lines),
            "behavior": draw.choice(["pv", "pv", "buy", "cart", "fav"], lines),
            "time": taobao.FIRST + draw.integers(0, taobao.DAYS * 48, lines) * 1_800,
        }
    )
    frame = pl.concat([frame, frame[draw.integers(0, lines, 500)]])[draw.permutation(lines + 500)]
    frame.write_csv(folder / "UserBehavior.csv", include_header=False)
    return frame


def at_once(frame: pl.DataFrame, options: taobao.Options) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(samples without what follows from their time, events), all in memory."""
    events = frame.unique(maintain_order=True).sort("time", maintain_order=True).with_row_index("event")
    catalogue = events.unique("item_id", keep="first", maintain_order=True).select("item_id", "category_id")
    (user, _), (item, _) = numbered(events["user_id"]), numbered(events["item_id"])
    sampler = Sampler(user, item, events["time"].to_numpy(), options.negatives, options.power, seed=options.seed)
    positives = np.flatnonzero((events["behavior"] == options.target).to_numpy())
    made = sampler.candidates(positives, options.per_positive)
    about = events.select("event", "user_id", "time")[made.event]
    rows = pl.concat([about, catalogue[made.item]], how="horizontal").with_columns(pl.Series("label", made.label))
    return rows, events.drop("event")


@pytest.mark.parametrize("block", [64, 1 << 18])
@pytest.mark.parametrize(
    "more",
    [{}, {"negatives": "paper", "power": 0.0}, {"target": "buy", "per_positive": 3, "power": 1.0}],
    ids=["default", "paper", "buy"],
)
def test_pieces_make_what_all_at_once_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, more: dict[str, Any]
) -> None:
    frame = written(tmp_path)
    options = build(taobao.Options, more)
    monkeypatch.setattr("finerank.data.scratch.HELD", 0 if block == 64 else 1 << 10)  # every array in a file
    made = taobao.convert(tmp_path, options, block)
    samples, events = at_once(frame, options)
    assert made.events is not None
    assert made.events.lazy().collect().with_columns(pl.col("behavior").cast(pl.String)).equals(events)
    found = made.samples.lazy().collect()
    assert found.select(samples.columns).equals(samples)
    assert made.counts["exact repeats"] == frame.height - events.height
    assert made.counts["positive rows"] == samples["label"].sum()
    assert made.room is not None
    folder = Path(made.room.name)
    made.write(tmp_path / "out")
    assert folder.is_dir()
    made.room.cleanup()
    assert pl.read_parquet(tmp_path / "out" / "samples.parquet").equals(found)
