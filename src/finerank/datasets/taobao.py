"""Taobao UserBehavior: which item does a user look at next? Clicks, favourites, carts and purchases of nine days.

H. Zhu et al., Learning Tree-based Deep Model for Recommender Systems, KDD 2018 (the data's first use).

UserBehavior.csv has no header: user, item, category, behaviour (pv, buy, cart, fav), stamp. It knows no impressions, so
negatives are drawn (`datasets.implicit`). Days are Beijing's: 2017-11-25 to 12-03. Stamps outside are damaged clocks and are
dropped, as are exact repeats. The last day is for test, the one before for validation.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from finerank.data.scratch import Scratch
from finerank.datasets.adapter import Adapter, Converted, register
from finerank.datasets.implicit import Law, Sampler
from finerank.datasets.raw import Columns, commented, fields, find, marked, sound, told
from finerank.errors import UserError
from finerank.runtime.hashing import hash_integers, mix

BEIJING = 8 * 3600
FIRST = 1_511_539_200  # 2017-11-25 00:00 in Beijing
DAY = 86_400
DAYS = 9
BEHAVIOURS = ["pv", "buy", "cart", "fav"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The protocol's choices.

    target        the behaviour that is predicted: pv (default), or buy, cart, fav
    negatives     as_known (default) or paper (the whole catalogue): see `datasets.implicit`
    power         0: uniform; default 0.75, popularity^0.75 as known by then
    per_positive  negatives per positive
    users         share of the users that is kept, chosen by hash. Memory holds users, items and one hour; what is as long
                  as the file (100 million lines: some 15 GB) lies in the system's folder for temporary files (TMPDIR)
    seed          of the draws, and of the choice of users
    """

    target: Literal["pv", "buy", "cart", "fav"] = "pv"
    negatives: Law = "as_known"
    power: float = 0.75
    per_positive: int = 1
    users: float = 1.0
    seed: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.users <= 1:
            raise UserError(f"taobao: users = {self.users}; accepted: a share above 0 and at most 1")


COLUMNS: Columns = {
    "user_id": pl.Int64, "item_id": pl.Int64, "category_id": pl.Int64, "behavior": pl.String, "time": pl.Int64
}  # fmt: skip


def convert(folder: Path, options: Options, block: int = 1 << 18) -> Converted:
    """See `Adapter.convert`. block: rows in memory at a time."""
    path = find(folder, "UserBehavior.csv")
    frame = fields(path, COLUMNS)
    frame = marked(frame, "unknown behaviour", ~pl.col("behavior").is_in(["pv", "buy", "cart", "fav"]))
    frame = marked(frame, "outside 25 Nov - 3 Dec 2017", ~pl.col("time").is_between(FIRST, FIRST + DAYS * DAY - 1))
    counts = told(frame)
    frame = sound(frame)
    if options.users < 1:
        frame = frame.filter(pl.col("user_id").map_batches(lambda users: _chosen(users, options)))
    room = tempfile.TemporaryDirectory(prefix="finerank-taobao-")
    log = _Log.read(frame, Scratch(Path(room.name) / "arrays", block), Path(room.name), options.target)
    if log.lines > len(log.time):
        counts["exact repeats"] = log.lines - len(log.time)
    if not log.target.any():
        raise UserError(
            f"{path}: no event {options.target!r} is left of {counts['read']} lines; is this the right file?"
        )
    left_out, positives, samples = _samples(log, Path(room.name), options)
    counts |= {f"positives left out, {reason}": count for reason, count in left_out.items()}
    counts["positive rows"] = positives
    notes = [
        f"next {options.target}, {options.per_positive} drawn beside each; the last day is for test, the one before for "
        "validation; a log without impressions is no click-through log"
    ]
    if options.negatives == "paper":
        notes.append(
            'negatives = "paper" is a reproduction mode that looks into the future: it draws from the whole catalogue and '
            "bars every item that the user ever has"
        )
    recipe = commented("Deep Interest Network on Taobao UserBehavior.") + RECIPE
    return Converted(
        samples=pl.scan_parquet(samples),
        events=pl.scan_parquet(log.files),
        recipe=recipe,
        counts=counts,
        notes=tuple(notes),
        room=room,
    )


_LINE = np.dtype([("user_id", "i8"), ("item_id", "i8"), ("category_id", "i8"), ("behavior", "i1"), ("time", "i8")])
"""A line in the rooms of hours."""


@dataclass(frozen=True)
class _Log:
    """E events in order of time, exact repeats out; arrays as long as that lie in `scratch`.

    user, item    int64 [E]: codes; items numbered by first appearance
    time, target  int64 [E]; bool [E], the behaviour that is predicted
    users         int64 [U], of each code; items, category: int64 [I], the latter as of the item's first event: of later
                  changes nothing is known at the time
    files         the events, hour by hour; lines: how many there were
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    target: np.ndarray
    users: np.ndarray
    items: np.ndarray
    category: np.ndarray
    files: list[Path]
    lines: int
    scratch: Scratch

    @staticmethod
    def read(frame: pl.LazyFrame, scratch: Scratch, room: Path, target: str) -> _Log:
        """Lines are parted by hour, in files; what is repeated or of one moment lies in one hour."""
        lines = _parted(frame, room)
        user, item, time = (scratch.empty(lines) for _ in range(3))
        wanted = scratch.empty(lines, np.bool_)
        users, known = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)  # ascending
        items, category = [known], [known]
        names = pl.Series("behavior", BEHAVIOURS, dtype=pl.Enum(BEHAVIOURS))
        files, count = [], 0
        for hour in sorted(room.glob("*.hour")):
            found = np.fromfile(hour, _LINE)
            hour.unlink()
            events = pl.DataFrame({name: found[name] for name in _LINE.names or ()})
            events = events.unique(maintain_order=True).sort("time", maintain_order=True)
            events = events.with_columns(names.gather(events["behavior"]))
            files.append(hour.with_suffix(".parquet"))
            events.write_parquet(files[-1])
            at, count = slice(count, count + events.height), count + events.height
            user[at], item[at], time[at] = (events[name].to_numpy() for name in ("user_id", "item_id", "time"))
            wanted[at] = (events["behavior"].cast(pl.String) == target).to_numpy()
            users = _united(users, np.unique(user[at]))
            there, first = np.unique(item[at], return_index=True)
            new = ~_contains(known, there)
            known = _united(known, there)
            first = np.sort(first[new])
            items.append(item[at][first])
            category.append(events["category_id"].to_numpy()[first])
        of_items = np.concatenate(items)
        place = np.argsort(of_items)
        for at in scratch.pieces(count):
            user[at] = np.searchsorted(users, user[at])
            item[at] = place[np.searchsorted(known, item[at])]
        user, item, time, wanted = (values[:count] for values in (user, item, time, wanted))
        return _Log(user, item, time, wanted, users, of_items, np.concatenate(category), files, lines, scratch)


def _contains(known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """bool [n]: which of the values are among the known ones, ascending."""
    at = np.searchsorted(known, values)
    found: np.ndarray = np.append(known, -1)[at] == values
    return found & (at < len(known))


def _united(known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Both, ascending as they are, each once: `union1d` would sort all that is known again."""
    new = values[~_contains(known, values)]
    return np.insert(known, np.searchsorted(known, new), new)


def _parted(frame: pl.LazyFrame, room: Path) -> int:
    """Writes the lines by hour, in their order; how many there were."""
    lines = 0
    code = pl.col("behavior").cast(pl.Enum(BEHAVIOURS)).to_physical()
    for batch in frame.with_columns(code).collect_batches(maintain_order=True):
        found = np.empty(batch.height, _LINE)
        for name in _LINE.names or ():
            found[name] = batch[name].to_numpy()
        hour = (found["time"] - FIRST) // 3600
        order = np.argsort(hour, kind="stable")
        ends = np.flatnonzero(np.diff(hour[order])) + 1
        for part in np.split(order, ends) if len(order) else ():
            with (room / f"{hour[part[0]]:03d}.hour").open("ab") as file:
                found[part].tofile(file)
        lines += batch.height
    return lines


def _samples(log: _Log, room: Path, options: Options) -> tuple[dict[str, int], int, list[Path]]:
    """(positives left out, by reason; rows of positives; the files of rows)."""
    sampler = Sampler(
        log.user, log.item, log.time, options.negatives, options.power, seed=options.seed, scratch=log.scratch
    )
    left_out: Counter[str] = Counter()
    positives = 0
    files: list[Path] = []
    day = (pl.col("time") - FIRST) // DAY
    part = pl.when(day == DAYS - 1).then(pl.lit("test")).when(day == DAYS - 2).then(pl.lit("validation"))
    for at in log.scratch.pieces(len(log.time)):
        here = at.start + np.flatnonzero(log.target[at])
        if not len(here):
            continue
        made = sampler.candidates(here, options.per_positive)
        left_out.update(made.left_out)
        positives += int(made.label.sum())
        rows = pl.DataFrame(
            {
                "event": made.event.astype(np.uint32),
                "user_id": log.users[log.user[made.event]],
                "time": log.time[made.event],
                "item_id": log.items[made.item],
                "category_id": log.category[made.item],
                "label": made.label,
            }
        ).with_columns(
            split=part.otherwise(pl.lit("train")),
            hour=(pl.col("time") + BEIJING) % DAY // 3600,
            weekday=(day + 5) % 7 + 1,  # 1 Monday; 25 November 2017 was a Saturday
        )
        files.append(room / f"samples-{len(files):05d}.parquet")
        rows.write_parquet(files[-1])
    return dict(left_out), positives, files


def _chosen(users: pl.Series, options: Options) -> pl.Series:
    hashed = hash_integers(f"users {mix(options.seed)}", users.to_numpy())
    return pl.Series(hashed < np.uint64(min(options.users * 2.0**64, 2**64 - 1)))


RECIPE = """
[data]
samples = "samples.parquet"
events = "events.parquet"

[data.keys]
request = "event"
user = "user_id"
time = "time"

[data.split]
by = "column"
column = "split"

[[feature]]
kind = "categorical"
name = "hour"
level = "request"

[[feature]]
kind = "categorical"
name = "weekday"
level = "request"

[[feature]]
kind = "categorical"
name = "item_id"
level = "candidate"

[[feature]]
kind = "categorical"
name = "category_id"
level = "candidate"

[[history]]
name = "viewed"
fields = ["item_id", "category_id"]
where = {behavior = "pv"}
max_length = 50

[[history]]
name = "wanted"
fields = ["item_id", "category_id"]
where = {behavior = "cart"}
max_length = 20

[[history]]
name = "liked"
fields = ["item_id", "category_id"]
where = {behavior = "fav"}
max_length = 20

[[history]]
name = "bought"
fields = ["item_id", "category_id"]
where = {behavior = "buy"}
max_length = 20

[[task]]
name = "label"

[model]
name = "din"

[training]
epochs = 2
patience = 1
monitor = "auc"
"""

register(
    Adapter(
        name="taobao",
        options=Options,
        files=("UserBehavior.csv",),
        convert=convert,
        about="A hundred million actions of a million users of Taobao, 25 Nov - 3 Dec 2017 (Alibaba Tianchi; for research).",
    )
)
