"""Frappe and MovieLens tags as the public leaderboard of BARS splits them: train.csv, valid.csv, test.csv.

frappe            label, user, item and eight contexts: 96,203 uses of an app, and for each two apps not used in that context
movielens_latest  label, user_id, item_id, tag_id: 668,953 tags given, and for each two tags that the film did not get

Comma-separated with a header. Drawn 7:2:1 by lot by their publishers, so training sees rows later than the test's. A label
of -1 (as the papers of NFM and AFM write a negative, for a squared error) is read as 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from finerank.datasets.adapter import Adapter, Converted, published, register
from finerank.datasets.protocol import declare, total
from finerank.datasets.raw import fields, find, marked, sound, told
from finerank.schema.checks import at_least

PARTS = {"train": "train.csv", "validation": "valid.csv", "test": "test.csv"}
CONTEXTS = ("daytime", "weekday", "isweekend", "homework", "cost", "weather", "country", "city")
COLUMNS = {
    "frappe": {"request": ("user", *CONTEXTS), "candidate": ("item",)},
    "movielens_latest": {"request": ("user_id",), "candidate": ("item_id", "tag_id")},
}
ROWS = {"frappe": 288_609, "movielens_latest": 2_006_859}
"""Of all three parts together, in the leaderboard's files."""


@dataclass(frozen=True, kw_only=True)
class LeaderboardOptions:
    """min_count: rarer values count as one; the leaderboard keeps every value (1)."""

    min_count: int = 1

    def __post_init__(self) -> None:
        at_least(1, min_count=self.min_count)


def _convert(name: str) -> Callable[[Path, LeaderboardOptions], Converted]:
    columns = COLUMNS[name]
    types: dict[str, type[pl.DataType]] = {"label": pl.Float64}
    types |= dict.fromkeys((*columns["request"], *columns["candidate"]), pl.String)

    def convert(folder: Path, options: LeaderboardOptions) -> Converted:
        parts = {part: _lines(find(folder, file), types) for part, file in PARTS.items()}
        found = {part: told(frame) for part, frame in parts.items()}
        samples = pl.concat([sound(frame).with_columns(split=pl.lit(part)) for part, frame in parts.items()])
        counts = total(*found.values())
        notes = ("The parts are those of the files, drawn by lot by their publishers.", _size(name, counts["kept"]))
        return Converted(
            samples=samples, recipe=_recipe(name, options), models=published(name), counts=counts, notes=notes
        )

    return convert


def _lines(path: Path, types: Mapping[str, type[pl.DataType]]) -> pl.LazyFrame:
    frame = marked(fields(path, types, header=True), "malformed", ~pl.col("label").is_in([0.0, 1.0, -1.0]))
    return frame.with_columns(label=(pl.col("label") == 1).cast(pl.Int8))


def _size(name: str, rows: int) -> str:
    if rows == ROWS[name]:
        return f"{rows:,} rows, as many as the leaderboard's."
    return f"{rows:,} rows, and the leaderboard's files have {ROWS[name]:,}: results are not comparable with it."


def _recipe(name: str, options: LeaderboardOptions) -> str:
    encoding = {"kind": "vocabulary", "min_count": options.min_count}
    columns = COLUMNS[name]
    return f"""\
# {name}: each line is a request of its own. Settings that the leaderboard's (BARS) models share; models.toml has theirs.

[data]
samples = "samples.parquet"

[data.split]
by = "column"

{declare(columns["request"], "request", encoding=encoding)}{declare(columns["candidate"], "candidate", encoding=encoding)}\
[[task]]
name = "click"
column = "label"

[model]
name = "deepfm"

[training]
epochs = 100
patience = 1
plateau = 0.1
monitor = "auc"
batch = {{rows = 4096}}
"""


for _name, _about in (
    ("frappe", "Frappe: 288,609 rows of app use in context, as split by BARS; research."),
    ("movielens_latest", "MovieLens tags: 2,006,859 rows, as split by BARS; GroupLens, no redistribution."),
):
    register(
        Adapter(
            name=_name,
            options=LeaderboardOptions,
            files=tuple(PARTS.values()),
            convert=_convert(_name),
            about=_about,
        )
    )
