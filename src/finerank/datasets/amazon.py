"""Amazon reviews (2014): which item does a user review next? DIN's and DIEN's protocols, and a leave-one-out layout.

J. McAuley, C. Targett, Q. Shi, A. van den Hengel, Image-based recommendations on styles and substitutes, SIGIR 2015.

    din            every event of a user after the first is a request with its earlier events as history; the last is for
                   test (G. Zhou et al., KDD 2018, and the authors' code): 2 (events - 2 users) rows of training and
                   validation, 2 users of test, where negatives = "paper"
    dien           only the last event of each user is a request; a tenth of the users is for test (G. Zhou et al., AAAI 2019)
    leave_one_out  files train.csv, dev.csv, test.csv, item_meta.csv: each event is a request of its file's part

The first two read the reviews as published, or those four files, whose parts they leave aside.

All of them order a user's events by time and, within a second, by their place in the file: the stamps are whole days,
so most ties are real, and the recipe says ties = "file_order". A share of the users' events before the last is set aside
for validation, which the publications do not have.
"""

from __future__ import annotations

import ast
import json
import re
from array import array
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from finerank.data.split import NAMES, TEST, TRAIN, VALIDATION
from finerank.datasets.adapter import Adapter, Converted, published, register
from finerank.datasets.implicit import Law, Sampler
from finerank.datasets.raw import (
    MALFORMED,
    Columns,
    commented,
    fields,
    find,
    lines,
    numbered,
    ranks,
    raw_lines,
    sound,
    told,
)
from finerank.errors import UserError
from finerank.runtime.hashing import mix, uniform


@dataclass(frozen=True, kw_only=True)
class Options:
    """The protocol's choices.

    protocol        see the module; it also says which of an item's categories counts: din the last of the last list, dien
                    the last of the first
    negatives       as_known (default) or paper: see `datasets.implicit`. paper: din and leave_one_out draw from the whole
                    catalogue and bar every item that the user ever has; dien draws from the list of all reviews and bars
                    the positive alone
    power           as_known: of popularity; none: 1 for dien, else 0 (uniform), as in the papers
    per_positive    negatives per request; for_evaluation: of validation and test (none: as many)
    validation      share of the users whose event before the last (dien: whose last) is for validation
    seed            of the draws
    """

    protocol: Literal["din", "dien", "leave_one_out"] = "din"
    negatives: Law = "as_known"
    power: float | None = None
    per_positive: int = 1
    for_evaluation: int | None = None
    validation: float = 0.05
    seed: int = 1234

    def __post_init__(self) -> None:
        if not 0 <= self.validation < 1:
            raise UserError(f"amazon: validation = {self.validation}; accepted: a share of at least 0 and below 1")


@dataclass(frozen=True)
class _Reviews:
    """E events in the order of the files, I items. part: int8 [E] where the layout says it, else None."""

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    users: pl.Series  # [U] names
    items: pl.Series  # [I] names
    category: pl.Series  # [I], null where unknown
    counts: dict[str, int]
    part: np.ndarray | None = None


def convert(folder: Path, options: Options) -> Converted:
    """See `Adapter.convert`."""
    given = options.protocol == "leave_one_out"
    in_parts = given or (any(folder.glob("train.csv*")) and not any(folder.glob("reviews_*")))
    reviews = _layout(folder) if in_parts else _raw(folder, last=options.protocol == "din")
    order = np.lexsort((np.arange(len(reviews.time)), reviews.time))
    user, item, time = reviews.user[order], reviews.item[order], reviews.time[order]
    part = _parts(user, reviews.part[order] if given and reviews.part is not None else None, options)

    dien = options.protocol == "dien"
    power = (1.0 if dien else 0.0) if options.negatives == "paper" or options.power is None else options.power
    barred: Literal["user", "item"] = "item" if dien and options.negatives == "paper" else "user"
    sampler = Sampler(user, item, time, options.negatives, power, barred, options.seed)
    more = options.per_positive if options.for_evaluation is None else options.for_evaluation
    made = [
        sampler.candidates(np.flatnonzero(part == TRAIN), options.per_positive),
        sampler.candidates(np.flatnonzero(part > TRAIN), more),
    ]
    event, shown, label = (np.concatenate([getattr(m, name) for m in made]) for name in ("event", "item", "label"))

    def described(event: np.ndarray, item: np.ndarray) -> pl.DataFrame:
        """Whose and when the events are, with these items."""
        return pl.DataFrame(
            {
                "sequence": order[event],
                "user_id": reviews.users.gather(user[event]),
                "time": time[event],
                "item_id": reviews.items.gather(item),
                "category_id": reviews.category.gather(item),
            }
        )

    split = pl.Series("split", list(NAMES), dtype=pl.String).gather(part[event])
    left_out = Counter(made[0].left_out) + Counter(made[1].left_out)
    notes = [f"protocol {options.protocol}; histories by (time, place in the file)"]
    if in_parts and not given:
        notes.append("train.csv, dev.csv and test.csv were put together; their parts are not the protocol's")
    if options.negatives == "paper":
        notes.append(LOOKS_AHEAD.format(NEVER_CHOSEN if barred == "user" else FROM_ALL_REVIEWS))
    elif left_out:
        notes.append("a positive whose item nobody had before makes no request: being new would give it away")
    counts = reviews.counts | {f"requests left out, {reason}": count for reason, count in left_out.items()}
    counts |= {f"rows of {name}": int((part[event] == code).sum()) for name, code in NAMES.items()}
    return Converted(
        samples=described(event, shown).with_columns(split, label=label).with_columns(request="sequence"),
        events=described(np.arange(len(user)), item),
        recipe=commented("Deep Interest Network on Amazon reviews.") + RECIPE,
        models=published("amazon"),
        counts=counts,
        notes=tuple(notes),
    )


def _parts(user: np.ndarray, given: np.ndarray | None, options: Options) -> np.ndarray:
    """int8 [E]: the part of each event that is a request, -1 of the others. Events in order of time."""
    place = ranks(user)
    last = np.bincount(user)[user] - 1
    chance = uniform(mix(options.seed, 1), user)  # of each event's user
    part = np.full(len(user), -1, dtype=np.int8)
    if given is not None:
        return np.where(place > 0, given, part)
    if options.protocol == "din":
        part[place > 0] = TRAIN
        part[(place > 0) & (place == last - 1) & (chance < options.validation)] = VALIDATION
        part[(place > 0) & (place == last)] = TEST
        return part
    final = (place > 0) & (place == last)
    part[final] = TRAIN
    part[final & (chance < 0.1 + 0.9 * options.validation)] = VALIDATION
    part[final & (chance < 0.1)] = TEST
    return part


# ------------------------------------------------------------------------------------------------ files


def _raw(folder: Path, last: bool) -> _Reviews:
    """reviews_*_5.json and meta_*.json: one JSON object or Python dict a line."""
    reviews, meta = find(folder, "reviews_*_5.json", "reviews_*.json"), find(folder, "meta_*.json")
    users: dict[str, int] = {}  # numbered as they first appear
    items: dict[str, int] = {}
    user, item, time = array("q"), array("q"), array("q")
    counts: Counter[str] = Counter()
    for line in raw_lines(reviews):
        counts["reviews: read"] += 1
        found = _record(line)
        who, what, when = (found.get(key) for key in ("reviewerID", "asin", "unixReviewTime"))
        if not (isinstance(who, str) and who and isinstance(what, str) and what and type(when) is int):
            counts[_fault("reviews", line)] += 1
            continue
        user.append(users.setdefault(who, len(users)))
        item.append(items.setdefault(what, len(items)))
        time.append(when)
    counts["reviews: kept"] = len(time)
    category: list[str | None] = [None] * len(items)
    for line in raw_lines(meta):
        counts["meta: read"] += 1
        # most items of a catalogue have too few reviews to be here: their lines, if whole, are not parsed
        begins = _ASIN.match(line)
        if begins and begins[1].decode() not in items and line.rstrip().endswith(b"}"):
            counts["meta: of no reviewed item"] += 1
            continue
        found = _record(line)
        code = items.get(str(found.get("asin")))
        if "asin" in found and code is None:
            counts["meta: of no reviewed item"] += 1
            continue
        name = _category(found.get("categories"), last)
        if code is None or name is None:
            counts[_fault("meta", line)] += 1
            continue
        category[code] = name
        counts["meta: kept"] += 1
    if unknown := sum(name is None for name in category):
        counts["items without a category"] = unknown
    if not len(time):
        raise UserError(
            f"{reviews}: no review could be read of {counts['reviews: read']} lines; is this the right file?"
        )
    if unknown == len(items):
        raise UserError(
            f"{meta}: no line of {counts['meta: read']:,} tells the category of a reviewed item; is it the meta file of "
            f"{reviews.name}?"
        )
    names = pl.Series("category", category, dtype=pl.String)
    who_E, what_E, when_E = (np.frombuffer(codes, dtype=np.int64) for codes in (user, item, time))
    return _Reviews(who_E, what_E, when_E, pl.Series(list(users)), pl.Series(list(items)), names, dict(counts))


_ASIN = re.compile(rb"""\{["']asin["']: ?["'](\w+)["']""")


def _record(line: bytes) -> dict[Any, Any]:
    """The object of a line; empty if it is damaged."""
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return {}
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    return {}


def _fault(file: str, line: bytes) -> str:
    return f"{file}: malformed" if line.endswith(b"\n") else f"{file}: cut"


def _category(lists: object, last: bool) -> str | None:
    """The last category of the last list of categories, or of the first."""
    if not (isinstance(lists, list) and lists):
        return None
    chosen = lists[-1 if last else 0]
    return chosen[-1] if isinstance(chosen, list) and chosen and isinstance(chosen[-1], str) else None


def _layout(folder: Path) -> _Reviews:
    """train.csv, dev.csv and test.csv (user_id, item_id, time), item_meta.csv (item_id, i_category, ...)."""
    columns: Columns = dict.fromkeys(("user_id", "item_id", "time"), pl.Int64)
    counts: dict[str, int] = {}
    parts = []
    for code, name in ((TRAIN, "train"), (VALIDATION, "dev"), (TEST, "test")):
        frame = fields(find(folder, f"{name}.csv"), columns, header=True)
        counts |= told(frame, f"{name}.csv")
        parts.append(sound(frame).collect().with_columns(part=pl.lit(code, dtype=pl.Int8)))
    events = pl.concat(parts)
    if not events.height:
        raise UserError(f"{folder}: no event could be read; is this the right folder?")
    user, users = numbered(events["user_id"])
    item, items = numbered(events["item_id"])
    # the lists of related items hold commas and quotes; what counts stands before them
    meta = lines(find(folder, "item_meta.csv")).slice(1)
    meta = meta.select(
        item_id=pl.col("line").str.extract(r"^(\d+),[^,]+(?:,|$)", 1).cast(pl.Int64, strict=False),
        category=pl.col("line").str.extract(r"^\d+,([^,]+)(?:,|$)", 1),
    ).with_columns(fault=pl.when(pl.col("category").is_null()).then(pl.lit(MALFORMED)))
    counts |= told(meta, "item_meta.csv")
    known = sound(meta).collect().unique("item_id", keep="last")
    category = pl.DataFrame({"item_id": items}).join(known, on="item_id", how="left", maintain_order="left")["category"]
    if category.null_count():
        counts["items without a category"] = category.null_count()
    return _Reviews(user, item, events["time"].to_numpy(), users, items, category, counts, events["part"].to_numpy())


LOOKS_AHEAD = (
    'negatives = "paper" is a reproduction mode that looks into the future: a negative {}, '
    "and may be an item that did not exist yet; metrics are comparable with the publication's, and better than a server's"
)
NEVER_CHOSEN = "is known never to be chosen later"
FROM_ALL_REVIEWS = "is drawn by what is reviewed later as well"

RECIPE = """
[data]
samples = "samples.parquet"
events = "events.parquet"

[data.keys]
request = "request"
user = "user_id"
time = "time"
sequence = "sequence"

[data.split]
by = "column"
column = "split"

[[feature]]
kind = "categorical"
name = "item_id"
level = "candidate"

[[feature]]
kind = "categorical"
name = "category_id"
level = "candidate"

[[history]]
name = "reviewed"
fields = ["item_id", "category_id"]
max_length = 100
ties = "file_order"

[[task]]
name = "label"

[model]
name = "din"

[training]
epochs = 3
patience = 1
monitor = "auc"
"""

register(
    Adapter(
        name="amazon",
        options=Options,
        files=("reviews_*_5.json", "meta_*.json", "(or train.csv, dev.csv, test.csv, item_meta.csv)"),
        convert=convert,
        about="Amazon product reviews 1996-2014 by category (McAuley et al., SIGIR 2015); for research, no redistribution.",
    )
)
