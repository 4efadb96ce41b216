"""Avazu click-through rate (Kaggle 2014): ten days of mobile impressions, 21 to 30 October 2014.

`train.csv`, with a header: id, click, hour (YYMMDDHH), C1, banner_pos, site_*, app_*, device_*, C14...C21. The same
columns may also lie in train.csv, dev.csv and test.csv, of which only the first has the header: then these are the parts.

`id` is unique and dropped. The hour becomes the time, the hour of the day, the weekday (Sunday 0) and is_weekend.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

import polars as pl

from finerank.datasets.adapter import Adapter, Converted, published, register
from finerank.datasets.protocol import by_lot, by_position, declare, lot_note, total
from finerank.datasets.raw import fields, find, holds, marked, sound, told
from finerank.errors import UserError
from finerank.schema.checks import at_least

CONTEXT = ("C1", "banner_pos", "device_id", "device_ip", "device_model", "device_type", "device_conn_type")
PLACE = ("site_id", "site_domain", "site_category", "app_id", "app_domain", "app_category")
CREATIVE = tuple(f"C{i}" for i in range(14, 22))
COLUMNS = ("id", "click", "hour", *CONTEXT[:2], *PLACE, *CONTEXT[2:], *CREATIVE)
FFM_LINES = 4_218_938
"""Juan et al., RecSys 2016, section 4.1: the last so many lines are held out."""
SHARES = {"x1": (0.1, 0.2), "x4": (0.1, 0.1)}
"""Of validation and test: 28.3, 4.0 and 8.1 million rows (AFN), and ten folds."""


@dataclass(frozen=True, kw_only=True)
class AvazuOptions:
    """Protocol.

    split       days (default): the last day for test, the day before it for validation
                ffm: the last 4,218,938 lines for test, as many before them for validation (the paper has one part less)
                x1, x4: by lot, 70:10:20 and 80:10:10, as in the public leaderboards
    seed        of the lot
    min_count   rarer values count as one: 2 or 1 in the public leaderboards
    """

    split: Literal["days", "ffm", "x1", "x4"] = "days"
    seed: int = 2018
    min_count: int = 2

    def __post_init__(self) -> None:
        at_least(1, min_count=self.min_count)


def convert(folder: Path, options: AvazuOptions) -> Converted:
    """See the module."""
    train = find(folder, "train.csv")
    others = {"validation": "dev.csv", "test": "test.csv"}
    notes: tuple[str, ...]
    if holds(folder, *others.values()):
        if options.split != "days":
            raise UserError(
                f"avazu: split = {options.split!r}, but {folder} holds parts of its own (train.csv, dev.csv, test.csv); "
                "leave split out, or give the one train.csv of the competition"
            )
        parts = {"train": _lines(train, header=True)}
        parts |= {part: _lines(find(folder, name)) for part, name in others.items()}
        counts = total(*(told(frame) for frame in parts.values()))
        samples = pl.concat([sound(frame).with_columns(split=pl.lit(part)) for part, frame in parts.items()])
        notes = ("The parts are those of the files.",)
    else:
        frame = _lines(train, header=True)
        counts = told(frame)
        numbered = sound(frame).with_row_index("row")
        expression, notes = _split(options, counts["kept"], numbered)
        samples = numbered.with_columns(split=expression).drop("row")
    return Converted(samples=samples, recipe=_recipe(options), models=published("avazu"), counts=counts, notes=notes)


def _lines(path: Path, header: bool = False) -> pl.LazyFrame:
    """Kept and dropped lines: click, time, the hour's three features, and the rest as texts."""
    types: dict[str, type[pl.DataType]] = dict.fromkeys(COLUMNS, pl.String)
    frame = fields(path, types | {"click": pl.Int64}, header=header).drop("id")
    whole = pl.col("hour").str.contains(r"^\d{8}$")
    time = pl.when(whole).then(pl.col("hour") + "00").str.to_datetime("%y%m%d%H%M", time_unit="us", strict=False)
    frame = frame.with_columns(time=time).drop("hour")
    weekday = pl.col("time").dt.weekday() % 7  # Monday 1 ... Sunday 7 -> Sunday 0
    frame = frame.with_columns(
        hour=pl.col("time").dt.hour(), weekday=weekday, is_weekend=weekday.is_in([0, 6]).cast(pl.Int8)
    )
    return marked(frame, "malformed", ~pl.col("click").is_in([0, 1]) | pl.col("time").is_null())


def _split(options: AvazuOptions, rows: int, frame: pl.LazyFrame) -> tuple[pl.Expr, tuple[str, ...]]:
    match options.split:
        case "days":
            day = pl.col("time").dt.date()
            first, last = frame.select(day.min(), day.max().alias("last")).collect(engine="streaming").row(0)
            if last - first < timedelta(days=2):
                raise UserError(
                    f'avazu: the log spans {first} to {last}, and split = "days" takes three days; use split = "x4", or the '
                    "whole file"
                )
            part = pl.when(day == last).then(pl.lit("test")).when(day == last - timedelta(days=1))
            return part.then(pl.lit("validation")).otherwise(pl.lit("train")), (
                f"Test is {last}, validation the day before.",
            )
        case "ffm":
            note = f"Test is what the FFM paper calls validation, the last {FFM_LINES:,} lines; validation are as many before."
            return by_position(rows, FFM_LINES, FFM_LINES), (note,)
        case lot:
            return by_lot(SHARES[lot], options.seed), (lot_note(options.seed, lot),)


def _recipe(options: AvazuOptions) -> str:
    encoding = {"kind": "vocabulary", "min_count": options.min_count}
    return f"""\
# Avazu: a deep and cross network. Lines have no user and no request: each is a request of its own.
# device_id and device_ip are no users: most rows share one device_id. They are features like the others.

[data]
samples = "samples.parquet"

[data.keys]
time = "time"

[data.split]
by = "column"

# ---- when: weekday 0 is Sunday

{declare(("hour", "weekday", "is_weekend"), "request")}# ---- where it is shown, and on what

{declare((*CONTEXT, *PLACE), "request", encoding=encoding)}# ---- what is shown

{declare(CREATIVE, "candidate", encoding=encoding)}[[task]]
name = "click"

[model]
name = "dcn"

[training]
epochs = 2
monitor = "auc"
batch = {{rows = 4096}}
"""


AVAZU = register(
    Adapter(
        name="avazu",
        options=AvazuOptions,
        files=("train.csv", "or train.csv, dev.csv and test.csv"),
        convert=convert,
        about="Avazu mobile advertising, 40.4 million impressions of ten days in 2014; terms of the competition.",
    )
)
