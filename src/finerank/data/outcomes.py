"""Labels made from a log: what happened after a row, within a window, as far as it was known when the log was cut.

A row whose window was still open at the snapshot has no label (null, weight 0 in training), also where the event has come
already: keeping the early ones alone would raise the rate. Nothing unknown ever becomes a silent 0.

An event belongs to one row: the last one of its user (and of its `on` columns) at or before it; of several at that moment the
last in the file. So of three clicks before one purchase the third is converted. An event exactly `window` after its row
counts, and so does one at the row's own moment.

In memory: keys and times of the rows and of the events that match, sorted; no other column.  N rows · E events
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import polars as pl

from finerank.data.encode import canonical_series
from finerank.data.prepare import Keys
from finerank.data.source import UNITS, collect, microseconds
from finerank.data.staged import simple
from finerank.errors import UserError, nearest
from finerank.runtime.values import canonical
from finerank.schema import DAY, SECOND

Value = str | int | bool


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """Whether an event follows the row: a click after an impression, a purchase after a click, a push that is opened.

    An event belongs to one row: the last one of its user (and of its `on` columns) at or before it. Of three clicks on an
    item before one purchase the third is converted, and the other two are not.

    name         the label's column: 0, 1 or null
    window       seconds after the row in which the event must come; one exactly at the end counts
    where        which events of the log count, e.g. {event = "purchase"}
    on           columns that row and event must have in common besides the user, e.g. ["item"] or ["push_id"]
    file         a log of its own; left out: data.events
    open_window  what a row is whose window was still open at the snapshot. unknown: null · so_far: what had happened until
                 then, for models of delayed feedback; `<name>_elapsed` (seconds from the row to the snapshot) and
                 `<name>_delay` (seconds to the event, null without one) are added
    """

    kind: ClassVar[str] = "conversion"
    name: str
    window: float
    where: Mapping[str, Value] = field(default_factory=dict)
    on: tuple[str, ...] = ()
    file: str | None = None
    open_window: Literal["unknown", "so_far"] = "unknown"

    def __post_init__(self) -> None:
        _above_zero(f"label {self.name!r}: window", self.window, "seconds")

    @property
    def made(self) -> tuple[str, ...]:
        """The columns that are made."""
        more = (f"{self.name}_elapsed", f"{self.name}_delay") if self.open_window == "so_far" else ()
        return (self.name, *more)


@dataclass(frozen=True, kw_only=True)
class Amount:
    """What is spent within the window (GMV): 0 without a purchase, the sum of several.

    `<name>_bought` is 0 or 1. Two stages, P(buy) and the amount of those who buy: a binary task on `<name>_bought`, and a
    regression on `<name>` within it. An event belongs to one row, as for a conversion.

    name    the label's column: an amount, or null
    column  of the log: the amount of each event; null counts as 0
    cap     the most that a row's sum counts, since a few large orders rule a squared error; left out: no cap
    window, where, on, file   as for a conversion
    """

    kind: ClassVar[str] = "amount"
    name: str
    column: str
    window: float
    where: Mapping[str, Value] = field(default_factory=dict)
    on: tuple[str, ...] = ()
    file: str | None = None
    cap: float | None = None

    def __post_init__(self) -> None:
        _above_zero(f"label {self.name!r}: window", self.window, "seconds")
        if self.cap is not None:
            _above_zero(f"label {self.name!r}: cap", self.cap, "an amount")

    @property
    def made(self) -> tuple[str, ...]:
        """The columns that are made."""
        return self.name, f"{self.name}_bought"


@dataclass(frozen=True, kw_only=True)
class Dwell:
    """How long a row was looked at, capped: outliers are tabs left open.

    `<name>_weight` holds the capped seconds, and 1 where there are none (null, or 0 as logs have it of what was not clicked):
    as the weight of a click task it gives the weighted logistic regression whose odds are the expected watch time
    (Covington et al., RecSys 2016, section 4.2). A click of 0 seconds counts as one of a second.

    name       the label's column
    column     of the samples: seconds; null where it is not known. Left out: the seconds until the user's next event in the
               log, null after the last one
    cap        the most seconds that count
    measure    seconds · log1p: log(1 + seconds), the better target of a regression · completed: 1 if at least `threshold`
               of the whole was seen, else 0
    length     for completed: the column with the seconds of the whole; rows without, or with 0, have no label
    threshold  for completed: the share that makes it complete
    file       for column left out: a log of its own; left out too: data.events
    """

    kind: ClassVar[str] = "dwell"
    name: str
    column: str | None = None
    cap: float = 3_600.0
    measure: Literal["seconds", "log1p", "completed"] = "seconds"
    length: str | None = None
    threshold: float = 0.8
    file: str | None = None

    def __post_init__(self) -> None:
        _above_zero(f"label {self.name!r}: cap", self.cap, "seconds")
        if (self.measure == "completed") != (self.length is not None):
            raise UserError(
                f"label {self.name!r}: measure = {self.measure!r}, length = {self.length!r}; "
                "completed needs the column of the whole's seconds, the others none"
            )
        if not 0 < self.threshold <= 1:
            raise UserError(f"label {self.name!r}: threshold = {self.threshold}; accepted: above 0, up to 1")

    @property
    def made(self) -> tuple[str, ...]:
        """The columns that are made."""
        return self.name, f"{self.name}_weight"


@dataclass(frozen=True, kw_only=True)
class Retention:
    """Whether the user comes back on one of the days `first` ... `last` after the row's day (1, 1: the next day).

    Meant for one row per user and day (data.rows = "user_day"). Null until the last of these days is over.

    name         the label's column: 0, 1 or null
    first, last  days after the row's: 1 and 1 for the next day, 1 and 3 for within three days, 1 and 30 for thirty
    where        which events of the log are a return; none: every one
    file         a log of its own; left out: data.events
    """

    kind: ClassVar[str] = "retention"
    name: str
    first: int = 1
    last: int = 1
    where: Mapping[str, Value] = field(default_factory=dict)
    file: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.last:
            raise UserError(
                f"label {self.name!r}: first = {self.first}, last = {self.last}; accepted: 1 <= first <= last"
            )

    @property
    def made(self) -> tuple[str, ...]:
        """The columns that are made."""
        return (self.name,)


Label = Conversion | Amount | Dwell | Retention


def add_labels(
    samples: pl.LazyFrame,
    labels: Sequence[Label],
    log: Callable[[str | None], pl.LazyFrame],
    keys: Keys,
    snapshot: str | int | None = None,
    utc_offset: float = 0.0,
) -> pl.LazyFrame:
    """The samples, in their order, with the columns of these labels.

    log         the log of a label's `file`; None: the common one
    snapshot    when the logs were cut: they hold what happened until then, that moment included, and later events are not
                looked at. Whole number in keys.time_unit or ISO 8601 text; None: the last time in samples and log
    utc_offset  hours: days begin at 0:00 of this offset from the times' own clock
    Raises UserError for keys or columns that are missing, and columns that are there already.
    """
    names = samples.collect_schema().names()
    made: list[str] = []
    for label in labels:
        for column in label.made:
            if column in names or column in made:
                raise UserError(f"label {label.name!r}: column {column!r} is in the samples already; name it otherwise")
        made += label.made
    added = []
    for label in labels:
        if isinstance(label, Dwell) and label.column is not None:
            added.append(_seconds_given(samples, label, label.column))
            continue
        if keys.user is None or keys.time is None:
            raise UserError(f"label {label.name!r} looks for a user's events after a row; name keys.user and keys.time")
        source = _Source(samples, log(label.file), keys, snapshot)
        match label:
            case Conversion() | Amount():
                added.append(_following(source, label))
            case Retention():
                added.append(_returning(source, label, utc_offset))
            case Dwell():
                added.append(_shaped(label, _until_next(source), None))
    return pl.concat([samples, *(frame.lazy() for frame in added)], how="horizontal") if added else samples


def only(frame: pl.LazyFrame, where: Mapping[str, Value], place: str) -> pl.LazyFrame:
    """The rows whose columns equal these values, compared by canonical text: 1, 1.0 and "1" are one value."""
    schema = frame.collect_schema()
    for column, value in where.items():
        if column not in schema:
            raise UserError(f"{place}: where names the column {column!r}; {nearest(column, schema.names())}")
        frame = frame.filter(_equal(column, schema[column], canonical(value)))
    return frame


def _equal(column: str, dtype: pl.DataType, text: str | None) -> pl.Expr:
    """Whether a value's canonical text is this one; in Polars' own terms, which any source of rows can be asked with."""
    simple(pl.Series(column, [], dtype=dtype), f"column {column!r}")
    if text is None or dtype == pl.Null:
        return pl.lit(False)
    if not dtype.is_float():
        return (pl.col(column).cast(pl.String) == text).fill_null(False)
    try:
        value = float(text)
    except ValueError:
        return pl.lit(False)
    same = canonical(value) == text  # "1.0" is the text of no number
    return (pl.col(column).cast(pl.Float64) == value).fill_null(False) if same else pl.lit(False)


def user_days(samples: pl.LazyFrame, keys: Keys, utc_offset: float = 0.0) -> pl.LazyFrame:
    """The last row of each user on each day, which stands for the day; rows of nobody are left out.

    What is known when the day ends is then its past, the day's other events included.
    """
    if keys.user is None or keys.time is None:
        raise UserError("one row per user and day needs keys.user and keys.time")
    frame = collect(samples, [keys.user, keys.time], "samples")
    rows = pl.DataFrame(
        {
            "user": canonical_series(frame[keys.user]),
            "time": microseconds(frame[keys.time], keys.time_unit, "samples"),
        }
    ).with_row_index("row")
    rows = rows.with_columns(day=pl.Series(_day(rows["time"].to_numpy(), utc_offset)))
    last = rows.filter(pl.col("user").is_not_null()).sort("time", maintain_order=True)
    kept = last.group_by("user", "day").agg(pl.col("row").last())["row"]
    mask = np.zeros(frame.height, dtype=bool)
    mask[kept.to_numpy()] = True
    marked = pl.concat([samples, pl.DataFrame({"·kept": mask}).lazy()], how="horizontal")
    return marked.filter(pl.col("·kept")).drop("·kept")


# ------------------------------------------------------------------------------------------------ the parts


class _Source:
    """Rows and events as (keys, microseconds), the events cut at the snapshot."""

    def __init__(self, samples: pl.LazyFrame, log: pl.LazyFrame, keys: Keys, snapshot: str | int | None) -> None:
        self.samples, self.log, self.keys = samples, log, keys
        self.user, self.time = str(keys.user), str(keys.time)
        if snapshot is not None:
            self.snapshot = _moment(snapshot, keys)
        else:
            ends = [self._times(samples, "samples"), self._times(log, "log")]
            self.snapshot = max((int(times.max()) for times in ends if len(times)), default=0)

    def rows(self, on: Sequence[str] = ()) -> pl.DataFrame:
        """[N]: row, time, and a text per key."""
        return self._read(self.samples, on, (), "samples").with_row_index("row")

    def events(self, where: Mapping[str, Value], on: Sequence[str] = (), also: Sequence[str] = ()) -> pl.DataFrame:
        """[E] in order of time: time, a text per key (none of them null), the columns `also`."""
        found = self._read(only(self.log, where, "log"), on, also, "log").drop_nulls(self.by(on))
        return found.filter(pl.col("time") <= self.snapshot).sort("time", maintain_order=True)

    def by(self, on: Sequence[str]) -> list[str]:
        """The names of the keys in the frames above."""
        return ["key 0", *(f"key {i + 1}" for i in range(len(on)))]

    def _times(self, frame: pl.LazyFrame, place: str) -> np.ndarray:
        return microseconds(collect(frame, [self.time], place)[self.time], self.keys.time_unit, place)

    def _read(self, frame: pl.LazyFrame, on: Sequence[str], also: Sequence[str], place: str) -> pl.DataFrame:
        found = collect(frame, [self.user, self.time, *on, *also], place)
        keys = {name: canonical_series(found[c]) for name, c in zip(self.by(on), (self.user, *on), strict=True)}
        time = microseconds(found[self.time], self.keys.time_unit, place)
        return pl.DataFrame({"time": time} | keys | {f"also {c}": found[c] for c in also})


def _following(source: _Source, label: Conversion | Amount) -> pl.DataFrame:
    """[N]: what was attributed to each row within the window."""
    rows, by = source.rows(label.on), source.by(label.on)
    also = (label.column,) if isinstance(label, Amount) else ()
    events = source.events(label.where, label.on, also)
    owner = rows.sort("time", maintain_order=True).rename({"time": "asked"}).with_columns(time="asked")
    found = events.join_asof(owner, on="time", by=by, strategy="backward", check_sortedness=False)
    found = found.with_columns(delay=pl.col("time") - pl.col("asked")).filter(pl.col("delay") <= _span(label.window))
    wanted = [pl.col("delay").min()]
    if isinstance(label, Amount):
        amount = _numbers(found[f"also {label.column}"], f"label {label.name!r}: column {label.column!r} of the log")
        found = found.with_columns(amount=amount.fill_null(0.0))
        wanted.append(pl.col("amount").sum())
    of_row = rows.select("row", "time").join(
        found.group_by("row").agg(*wanted), on="row", how="left", maintain_order="left"
    )
    happened = of_row["delay"].is_not_null()
    named = rows.select(pl.all_horizontal(pl.col(by).is_not_null())).to_series()  # nobody's events are not known
    over = named & (of_row["time"] + _span(label.window) <= source.snapshot)
    if isinstance(label, Amount):
        total = of_row["amount"].fill_null(0.0)
        total = total if label.cap is None else total.clip(upper_bound=label.cap)
        return pl.DataFrame(
            {label.name: _where(over, total), f"{label.name}_bought": _where(over, happened.cast(pl.Int8))}
        )
    if label.open_window == "unknown":
        return pl.DataFrame({label.name: _where(over, happened.cast(pl.Int8))})
    elapsed = (source.snapshot - of_row["time"]) / SECOND
    return pl.DataFrame(
        {
            label.name: _where(named & (elapsed >= 0), happened.cast(pl.Int8)),
            f"{label.name}_elapsed": elapsed,
            f"{label.name}_delay": of_row["delay"] / SECOND,
        }
    )


def _returning(source: _Source, label: Retention, utc_offset: float) -> pl.DataFrame:
    """[N]: whether the user's next day from day + first on is at most day + last."""
    rows, events = source.rows(), source.events(label.where)
    day = _day(rows["time"].to_numpy(), utc_offset)
    active = events.select("key 0", found=pl.Series(_day(events["time"].to_numpy(), utc_offset)))
    active = active.unique().sort("found").with_columns(day="found")
    asked = rows.select("row", "key 0").with_columns(day=pl.Series(day + label.first)).sort("day", maintain_order=True)
    back = asked.join_asof(active, on="day", by="key 0", strategy="forward", check_sortedness=False).sort("row")
    returned = (back["found"] <= pl.Series(day + label.last)).fill_null(False).cast(pl.Int8)
    # all of that day is known
    over = pl.Series(day + label.last < _day(np.array([source.snapshot + 1]), utc_offset)[0])
    known = over & rows["key 0"].is_not_null()
    return pl.DataFrame({label.name: _where(known, returned)})


def _until_next(source: _Source) -> pl.Series:
    """[N]: seconds from each row to its user's next event, later than the row; null without one."""
    events = source.events({}).select("key 0", "time", following="time")
    rows = source.rows().sort("time", maintain_order=True)
    found = rows.join_asof(
        events, on="time", by="key 0", strategy="forward", allow_exact_matches=False, check_sortedness=False
    ).sort("row")
    return (found["following"] - found["time"]) / SECOND


def _seconds_given(samples: pl.LazyFrame, label: Dwell, column: str) -> pl.DataFrame:
    frame = collect(samples, [column, *([label.length] if label.length else [])], "samples")
    seconds = _numbers(frame[column], f"label {label.name!r}: column {column!r}")
    return _shaped(label, seconds, frame[label.length] if label.length else None)


def _shaped(label: Dwell, seconds: pl.Series, length: pl.Series | None) -> pl.DataFrame:
    """[N]: the measure, and the weight."""
    if (seconds < 0).any():
        raise UserError(f"label {label.name!r}: {int((seconds < 0).sum())} rows have seconds below 0; mend the log")
    capped = seconds.clip(upper_bound=label.cap)
    match label.measure:
        case "seconds":
            measured = capped
        case "log1p":
            measured = capped.log1p()
        case "completed":
            assert length is not None
            whole = _numbers(length, f"label {label.name!r}: column {label.length!r}")
            measured = _where(whole > 0, (seconds / whole >= label.threshold).cast(pl.Int8))
    # a weight of 0 would take the rows that were not watched, which the odds are measured against, out of the training
    return pl.DataFrame({label.name: measured, f"{label.name}_weight": capped.fill_null(0.0).replace(0.0, 1.0)})


def _numbers(column: pl.Series, place: str) -> pl.Series:
    """As float64; NaN is null."""
    if not column.dtype.is_numeric() and column.dtype != pl.Null:
        raise UserError(f"{place} is {column.dtype}; accepted: numbers")
    return column.cast(pl.Float64).fill_nan(None)


def _where(known: pl.Series, values: pl.Series) -> pl.Series:
    """The values, null where they are not known."""
    return pl.select(pl.when(known).then(values)).to_series()


def _day(time: np.ndarray, utc_offset: float) -> np.ndarray:
    """int64: the day's number of each moment (microseconds)."""
    if not -24 < utc_offset < 24:
        raise UserError(f"data.utc_offset = {utc_offset}; accepted: hours between -24 and 24, such as 8 or -3.5")
    day: np.ndarray = (time + round(utc_offset * 3_600) * SECOND) // (DAY * SECOND)
    return day


def _span(seconds: float) -> int:
    return round(seconds * SECOND)


def _moment(given: str | int, keys: Keys) -> int:
    if isinstance(given, int):
        return given * UNITS[keys.time_unit]
    return int(microseconds(pl.Series("snapshot", [given]), keys.time_unit, "data")[0])


def _above_zero(place: str, value: float, what: str) -> None:
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"{place} = {value}; accepted: {what} above 0")
