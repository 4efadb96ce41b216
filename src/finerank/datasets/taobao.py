"""Taobao UserBehavior: which item does a user look at next? Clicks, favourites, carts and purchases of nine days.

H. Zhu et al., Learning Tree-based Deep Model for Recommender Systems, KDD 2018 (the data's first use).

UserBehavior.csv has no header: user, item, category, behaviour (pv, buy, cart, fav), stamp. It knows no impressions, so
negatives are drawn (`datasets.implicit`). Days are Beijing's: 2017-11-25 to 12-03. Stamps outside are damaged clocks and are
dropped, as are exact repeats. The last day is for test, the one before for validation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from finerank.datasets.adapter import Adapter, Converted, register
from finerank.datasets.implicit import Law, Sampler
from finerank.datasets.raw import Columns, commented, fields, find, marked, numbered, sound, told
from finerank.errors import UserError
from finerank.runtime.hashing import hash_integers, mix

BEIJING = 8 * 3600
FIRST = 1_511_539_200  # 2017-11-25 00:00 in Beijing
DAY = 86_400
DAYS = 9


@dataclass(frozen=True, kw_only=True)
class Options:
    """The protocol's choices.

    target        the behaviour that is predicted: pv (default), or buy, cart, fav
    negatives     as_known (default) or paper (the whole catalogue): see `datasets.implicit`
    power         0: uniform; default 0.75, popularity^0.75 as known by then
    per_positive  negatives per positive
    users         share of the users that is kept, chosen by hash: the whole file (100 million lines) wants some 30 GB of
                  memory, a tenth of the users a tenth of that
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


def convert(folder: Path, options: Options) -> Converted:
    """See `Adapter.convert`."""
    path = find(folder, "UserBehavior.csv")
    frame = fields(path, COLUMNS)
    frame = marked(frame, "unknown behaviour", ~pl.col("behavior").is_in(["pv", "buy", "cart", "fav"]))
    frame = marked(frame, "outside 25 Nov - 3 Dec 2017", ~pl.col("time").is_between(FIRST, FIRST + DAYS * DAY - 1))
    counts = told(frame)
    frame = sound(frame)
    if options.users < 1:
        frame = frame.filter(pl.col("user_id").map_batches(lambda users: _chosen(users, options)))
    events = frame.with_columns(pl.col("behavior").cast(pl.Enum(["pv", "buy", "cart", "fav"]))).collect(
        engine="streaming"
    )
    lines = events.height
    events = events.unique(maintain_order=True).sort("time", maintain_order=True).with_row_index("event")
    if lines > events.height:
        counts["exact repeats"] = lines - events.height
    target = events["behavior"].cast(pl.String) == options.target
    if not target.any():
        raise UserError(
            f"{path}: no event {options.target!r} is left of {counts['read']} lines; is this the right file?"
        )

    # an item's category is that of its first event: of later changes nothing is known at the time
    catalogue = events.unique("item_id", keep="first", maintain_order=True).select("item_id", "category_id")
    (user, _), (item, _) = numbered(events["user_id"]), numbered(events["item_id"])
    sampler = Sampler(user, item, events["time"].to_numpy(), options.negatives, options.power, seed=options.seed)
    made = sampler.candidates(np.flatnonzero(target.to_numpy()), options.per_positive)
    about = events.select("event", "user_id", "time")[made.event]
    day = (pl.col("time") - FIRST) // DAY
    part = pl.when(day == DAYS - 1).then(pl.lit("test")).when(day == DAYS - 2).then(pl.lit("validation"))
    samples = pl.concat([about, catalogue[made.item]], how="horizontal").with_columns(
        pl.Series("label", made.label),
        split=part.otherwise(pl.lit("train")),
        hour=(pl.col("time") + BEIJING) % DAY // 3600,
        weekday=(day + 5) % 7 + 1,  # 1 Monday; 25 November 2017 was a Saturday
    )  # fmt: skip
    counts |= {f"positives left out, {reason}": count for reason, count in made.left_out.items()}
    counts["positive rows"] = int(made.label.sum())
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
    return Converted(samples=samples, events=events.drop("event"), recipe=recipe, counts=counts, notes=tuple(notes))


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
