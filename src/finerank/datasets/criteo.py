"""Criteo display advertising (Kaggle 2014): a week of impressions, 13 counts and 26 hashed categories, no names.

`train.txt`: tab-separated, no header: label, I1...I13 (whole numbers, may be empty or negative), C1...C26 (8 hex digits,
may be empty); 45,840,617 lines in order of time, without times. The same lines may also lie in three files, train.csv,
dev.csv and test.csv: then these are the parts.

An empty number is missing, which is not 0. Each number is used twice: in the buckets of floor(ln(v)^2), which give a
linear model a weight for every range, and as itself between 0 and 1, which keeps the order for a network.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from finerank.datasets.adapter import Adapter, Converted, published, register
from finerank.datasets.protocol import by_lot, by_position, declare, lot_note, total
from finerank.datasets.raw import fields, find, holds, marked, sound, told
from finerank.errors import UserError
from finerank.schema.checks import at_least

NUMBERS = tuple(f"I{i}" for i in range(1, 14))
CATEGORIES = tuple(f"C{i}" for i in range(1, 27))
FFM_LINES = 6_040_618
"""Juan et al., RecSys 2016, section 4.1: the last so many lines are held out."""
GIVEN = {"train": "train.csv", "validation": "dev.csv", "test": "test.csv"}
SHARES = {"x1": (0.18, 0.10), "x4": (0.10, 0.10)}
"""Of validation and test: 33.0, 8.3 and 4.6 million rows (AFN), and ten folds."""


@dataclass(frozen=True, kw_only=True)
class CriteoOptions:
    """Protocol.

    split       position (default): the last tenth for test, the tenth before it for validation
                dcn: the last seventh, about a day, for validation and test, in this order (the paper draws by lot)
                ffm: the last 6,040,618 lines for test, as many before them for validation (the paper has one part less)
                x1, x4: by lot, 72:18:10 and 80:10:10, as in the public leaderboards
    seed        of the lot
    min_count   rarer categories count as one: 10 or 2 on the whole file, 1 on a sample
    numbers     what the counts become beside their buckets: minmax (default), or log1p, as the DCN paper has them
    """

    split: Literal["position", "dcn", "ffm", "x1", "x4"] = "position"
    seed: int = 2018
    min_count: int = 10
    numbers: Literal["minmax", "log1p"] = "minmax"

    def __post_init__(self) -> None:
        at_least(1, min_count=self.min_count)


def convert(folder: Path, options: CriteoOptions) -> Converted:
    """See the module."""
    notes: tuple[str, ...] = ()
    if holds(folder, *GIVEN.values()):
        if options.split != "position":
            raise UserError(
                f"criteo: split = {options.split!r}, but {folder} holds parts of its own ({', '.join(GIVEN.values())}); "
                "leave split out, or give train.txt"
            )
        parts = {part: _lines(find(folder, name)) for part, name in GIVEN.items()}
        counts = total(*(told(frame) for frame in parts.values()))
        samples = pl.concat([sound(frame).with_columns(split=pl.lit(part)) for part, frame in parts.items()])
        notes = ("The parts are those of the files.",)
    else:
        frame = _lines(find(folder, "train.txt"))
        counts = told(frame)
        expression, notes = _split(options, counts["kept"])
        samples = sound(frame).with_row_index("row").with_columns(split=expression).drop("row")
    return Converted(samples=samples, recipe=_recipe(options), models=published("criteo"), counts=counts, notes=notes)


def _lines(path: Path) -> pl.LazyFrame:
    types: dict[str, type[pl.DataType]] = {"label": pl.Int64}
    types |= dict.fromkeys(NUMBERS, pl.Int64) | dict.fromkeys(CATEGORIES, pl.String)
    frame = fields(path, types, "\t", optional=NUMBERS + CATEGORIES)
    return marked(frame, "malformed", ~pl.col("label").is_in([0, 1]))


def _split(options: CriteoOptions, rows: int) -> tuple[pl.Expr, tuple[str, ...]]:
    match options.split:
        case "position":
            return by_position(rows, round(0.1 * rows), round(0.1 * rows)), (
                "Parts by position: lines are in order of time.",
            )
        case "dcn":
            day = round(rows / 7)
            note = "The last seventh of the lines stands for the last day, for the file marks none; validation comes first."
            return by_position(rows, day // 2, day - day // 2), (note,)
        case "ffm":
            note = f"Test is what the FFM paper calls validation, the last {FFM_LINES:,} lines; validation are as many before."
            return by_position(rows, FFM_LINES, FFM_LINES), (note,)
        case lot:
            return by_lot(SHARES[lot], options.seed), (lot_note(options.seed, lot),)


def _recipe(options: CriteoOptions) -> str:
    encoding = {"kind": "vocabulary", "min_count": options.min_count}
    buckets = "".join(
        declare([f"{name}_bucket"], "candidate", "bucketed", column=name, law="criteo") for name in NUMBERS
    )
    return f"""\
# Criteo: a deep and cross network. Lines have no user and no request: each is a request of its own.

[data]
samples = "samples.parquet"

[data.split]
by = "column"

# ---- the 13 counts, in the buckets of floor(ln(v)^2) for v > 2, else v - 2

{buckets}# ---- and as numbers

{declare(NUMBERS, "candidate", "numeric", transform=options.numbers)}# ---- the 26 categories

{declare(CATEGORIES, "candidate", encoding=encoding)}[[task]]
name = "click"
column = "label"

[model]
name = "dcn"

[training]
epochs = 2
monitor = "auc"
batch = {{rows = 4096}}
"""


CRITEO = register(
    Adapter(
        name="criteo",
        options=CriteoOptions,
        files=("train.txt", "or train.csv, dev.csv and test.csv"),
        convert=convert,
        about="Criteo Kaggle display advertising, 45.8 million impressions of a week; terms of the competition.",
    )
)
