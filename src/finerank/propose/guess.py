"""A guess: what one column is taken for, and why. And the columns that say who, when and together."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

from finerank.data.source import DIGITS, iso_times, write_times
from finerank.data.split import NAMES as PARTS
from finerank.errors import UserError

Role = Literal["label", "request", "user", "time", "split", "feature", "history", "left out"]

NAMES: Mapping[str, tuple[str, ...]] = {
    "label": (
        "label",
        "click",
        "clicked",
        "clk",
        "is_click",
        "target",
        "y",
        "bought",
        "purchase",
        "purchased",
        "conversion",
        "buy",
        "order",
        "pay",
        "cart",
        "like",
        "share",
        "watch",
    ),
    "user": (
        "user_id",
        "user",
        "userid",
        "user_name",
        "username",
        "uid",
        "customer",
        "customer_id",
        "member_id",
        "visitor_id",
        "reviewerid",
    ),
    "request": (
        "request",
        "request_id",
        "req_id",
        "impression_id",
        "imp_id",
        "impression",
        "query_id",
        "search_id",
        "pv_id",
    ),
    "time": ("time", "timestamp", "ts", "time_stamp", "event_time", "datetime", "unixreviewtime", "created_at"),
}


@dataclass(frozen=True)
class Guess:
    """What one column is taken for. feature: its table in the recipe, for role "feature"; why: in words."""

    column: str
    role: Role
    why: str
    feature: Mapping[str, Any] | None = None


def plainly(name: str) -> str:
    """A column's name as the names here are written: `Clicked?` is clicked, `user name` is user_name."""
    return re.sub(r"\W+", "_", name.lower()).strip("_")


def task_kind(label: pl.Series) -> tuple[Literal["binary", "regression"], str]:
    """(kind, why) of the task that this column, named by the user, makes. Raises UserError for one that makes none."""
    if not len(given := label.drop_nulls()):
        raise UserError(f"--label {label.name}: the column holds nothing but nulls; name another column")
    if not (label.dtype.is_numeric() or label.dtype == pl.Boolean):
        raise UserError(
            f"--label {label.name}: the column is {label.dtype}, such as {given[0]!r}; accepted: zeros and ones, true and "
            "false, or numbers; write it so, or name another column"
        )
    known = label.cast(pl.Float64).fill_nan(None).drop_nulls().to_numpy()
    if not len(known):
        raise UserError(f"--label {label.name}: the column holds no number but NaN; name another column")
    if np.isin(known, (0.0, 1.0)).all():
        return "binary", "you said so"
    return "regression", (
        f"you said so; numbers from {known.min():g} to {known.max():g}, not zeros and ones alone: a regression. To predict a "
        "yes or no, make a column of zeros and ones of it"
    )


def check_time(time: pl.Series) -> None:
    """Raises UserError for a column, named by the user, that holds no times. Their unit is not looked at."""
    if not len(given := time.drop_nulls()):
        raise UserError(f"--time {time.name}: the column holds nothing but nulls; name another column")
    if len(bad := _no_times(given)):
        raise UserError(
            f"--time {time.name}: the column is {time.dtype}, such as {bad[0]!r}; accepted: whole numbers, dates, datetimes, "
            f"ISO 8601 texts; {write_times(bad[0])}, or name another column"
        )


def find_role(frame: pl.DataFrame, role: str, given: str | None) -> tuple[str, str] | None:
    """(column, why) of a role, or None."""
    if given is not None:
        return given, "you said so"
    by_name = {plainly(c): c for c in frame.columns}
    for name in NAMES[role]:
        if name in by_name and _could_be(frame[by_name[name]], role):
            return by_name[name], f"its name, and {_looks(frame[by_name[name]], role)}"
    if role == "label":
        binary = zeros_and_ones(frame)
        if len(binary) == 1:
            return binary[0], "the only column of zeros and ones"
    if role == "time":
        dated = [c for c in frame.columns if dates(frame[c])]
        if len(dated) == 1:
            return dated[0], "the only column of dates"
    return None


def find_moments(
    frame: pl.DataFrame, user: tuple[str, str] | None, time: tuple[str, str] | None, taken: Collection[str]
) -> tuple[str, str] | None:
    """(column, why) of what numbers the requests under whatever name: one value for each user and moment of several rows."""
    if user is None or time is None:
        return None
    moments = frame.select(pl.struct(user[0], time[0]).n_unique()).item()
    if moments in (1, frame.height):
        return None
    for column in frame.get_columns():
        could = column.dtype.is_integer() or column.dtype == pl.String
        if column.name in taken or not could or column.null_count() or column.n_unique() != moments:
            continue
        if frame.select(pl.struct(column.name, user[0], time[0]).n_unique()).item() == moments:
            return column.name, f"each of its {moments:,} values is one user at one moment"
    return None


def find_split(frame: pl.DataFrame) -> str | None:
    """The column that says which part a row belongs to, by its values: all three, for a recipe needs them."""
    texts = [column for column in frame.get_columns() if column.dtype == pl.String]
    return next((column.name for column in texts if set(column.unique()) == set(PARTS)), None)


def zeros_and_ones(frame: pl.DataFrame) -> list[str]:
    """The columns that could be the label by their values."""
    return [column for column in frame.columns if _could_be(frame[column], "label")]


def _could_be(column: pl.Series, role: str) -> bool:
    if role == "label":
        numbers = column.dtype.is_numeric() or column.dtype == pl.Boolean
        return numbers and set(column.drop_nulls().unique().head(3).to_list()) == {0, 1}
    if role == "time":
        whole = column.dtype.is_integer() and column.null_count() == 0 and int(str(column.min())) >= 0
        return whole or dates(column)
    return column.n_unique() > 1


def dates(column: pl.Series) -> bool:
    """Whether these are dates or datetimes, or texts of them that training would read."""
    known = column.drop_nulls()
    return len(known) > 0 and not column.dtype.is_numeric() and not len(_no_times(known))


def _no_times(known: pl.Series) -> pl.Series:
    """The values that training would not read as times."""
    if known.dtype == pl.String:
        return known.to_frame().filter(iso_times(pl.first()).is_null()).to_series()
    if known.dtype.is_float():
        return known.filter(known % 1 != 0)
    read = known.dtype.is_integer() or known.dtype == pl.Date or isinstance(known.dtype, pl.Datetime)
    return known.clear() if read else known


def _looks(column: pl.Series, role: str) -> str:
    if role == "label":
        return f"zeros and ones, {100 * mean(column):.1f} % ones"
    if role == "time":
        return "dates" if dates(column) else f"whole numbers in {time_unit(column)}"
    return f"{column.n_unique():,} values in {len(column):,} rows"


def time_unit(column: pl.Series) -> str:
    """The unit of whole-number times: by how far they are from 1970 to 2100. Of dates "s", for theirs is not asked."""
    most = float(str(column.max())) if column.dtype.is_numeric() and column.null_count() < len(column) else 0.0
    return "s" if most < 4_200_000_000 else "ms" if most < 4_200_000_000_000 else "us"


def calendar(column: pl.Series) -> bool:
    """Whether all whole numbers are dates written as digits: 20231104, with the hour 2023110422, or to the second."""
    if not column.dtype.is_integer() or not len(known := column.drop_nulls()):
        return False
    return bool(known.cast(pl.String).str.contains(f"^({DIGITS})$").all())


def mean(values: pl.Series) -> float:
    """The mean of a column of numbers or truths; 0 of nothing."""
    found = values.cast(pl.Float64).mean()
    return float(found) if isinstance(found, float) else 0.0
