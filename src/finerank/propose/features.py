"""What sort of feature a column makes, from its name and values; what gives the label away is left out."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from finerank.metrics.ranking import auc
from finerank.propose.guess import NAMES, Guess, dates, mean, plainly
from finerank.propose.padding import filler
from finerank.propose.weights import fractions

GIVES_AWAY = 0.97
"""A column whose values alone order the labels this well was written after them."""
AFTER = ("dwell", "watch_time", "play_time", "duration", "revenue", "amount", "gmv", "paid")
"""Parts of names of what is only known once the label is."""
OUTCOME = re.compile(
    r"(is|if|did)?_?"
    r"(buy|bought|purchased?|ordered|order|cart|add_to_cart|pay|like|liked|shared?|watch|watched|follow|followed|forward|"
    r"fav|favou?rite|converted|conversion|clicked|click)"
    r"(_(label|flag|time|seconds?|secs?|s|ms))?"
)
"""Whole names of what a user does to a candidate once it is shown; not user_buy_count, which may be of the past."""
AT_A_GLANCE = 2_000
"""Rows that tell for most columns whether they vary within requests."""
BY_CHANCE = 1e-4
"""A column is set on positives alone by chance less often than this, or it is not held against it."""
SHOWN_ONLY = ("position", "pos", "rank", "propensity", "propensity_score", "action_prob")
"""Names of what training may see and a live request cannot."""
THINGS = (
    *("item", "product", "goods", "sku", "movie", "video", "song", "article", "news", "ad", "poi"),
    *("category", "cate", "cat", "brand", "shop", "seller", "author", "city"),
)
"""Whole names of what whole numbers stand for, not measure: an item's number taken as a size would teach nothing."""
SEPARATORS = ("|", "^", ";", " ", ",")
OF_NAMES = (" ", ",")
"""Separators that names hold as well: `New York`, `Oslo, Norway`."""
WEIGHT_SEPARATORS = (":", "=")


def guess_feature(frame: pl.DataFrame, column: pl.Series, label: pl.Series, keys: Mapping[str, str]) -> Guess:
    """What a column that is no key makes: a feature, or nothing and why."""
    name, low = column.name, plainly(column.name)
    known = column.drop_nulls()
    distinct = known.n_unique()
    if distinct == 0:
        return Guess(name, "left out", "nothing but nulls")
    if distinct == 1:
        return Guess(name, "left out", f"always {known[0]!r}")
    if name == "" or re.fullmatch(r"(unnamed.*|index|row_?id|column_\d+)", low):
        return Guess(name, "left out", "a row number by its name")
    if column.dtype.is_integer() and distinct == len(column) > 20 and column.is_sorted():
        return Guess(name, "left out", "it rises with every row: a row number")
    joined = column.dtype == pl.String and not dates(column) and separator_of(known) is not None
    several = isinstance(column.dtype, pl.List) or joined
    outcome = not several and (low in NAMES["label"] or OUTCOME.fullmatch(low) is not None)  # several: the past, joined
    if outcome or any(word in low for word in AFTER):
        return Guess(
            name, "left out", "by its name known only after the label; if it is a task of its own, add a [[task]]"
        )
    if set_ := _set_on_ones_alone(column, label):
        return Guess(name, "left out", f"{set_} only where the label is 1: surely written after it")
    found = _told(column, label)
    if found > GIVES_AWAY:
        return Guess(name, "left out", f"it alone orders the labels with AUC {found:.3f}: surely written after them")
    level = _level(frame, column, keys)
    base: dict[str, Any] = {**name_keys(name), "level": level}
    where = "one value per request" if level == "request" else "it varies within requests"
    if "request" not in keys:
        where = "each row is a request of its own"
    if low in SHOWN_ONLY:
        why = "by its name known in training and not when serving"
        return Guess(name, "feature", why, {"kind": "categorical", **base, "use": "train_only"})
    single = (column.dtype == pl.String and not separator_of(known)) or (
        column.dtype.is_integer() and low.endswith("id")
    )
    if single and len(known) > 1_000 and distinct > 0.9 * len(known):
        return Guess(name, "left out", f"{distinct:,} different values in {len(known):,} rows: none comes again")
    kind, more, why = _kind(column, known, distinct)
    if kind is None:
        return Guess(name, "left out", why)
    return Guess(name, "feature", f"{why}; {where}", {"kind": kind, **base, **more})


def name_keys(column: str) -> dict[str, str]:
    """The keys that name what reads this column: a recipe takes no name with a slash, or a dot in front."""
    name = re.sub(r"[/\\\0]|^\.", "_", column)
    return {"name": name} if name == column else {"name": name, "column": column}


def _kind(column: pl.Series, known: pl.Series, distinct: int) -> tuple[str | None, dict[str, Any], str]:
    """(kind, further keys, why) of a feature; kind None: leave it out."""
    dtype = column.dtype
    if isinstance(dtype, pl.List):
        if fractions(known.explode()):
            return None, {}, "lists of numbers that are not whole: sizes, and a list is of names"
        return "multivalued", *_entries(known, "lists")
    if dtype.is_temporal() or dates(column):
        return None, {}, "a date that is no key: derive hour or weekday from it if it matters"
    if dtype == pl.Boolean:
        return "categorical", {}, "true or false"
    if dtype == pl.String:
        separator = separator_of(known)
        if separator is not None:
            entries = known.head(2_000).str.split(separator).explode()
            joined = f"texts joined by {separator!r}"
            if fractions(entries):
                return None, {}, f"numbers joined by {separator!r} that are not whole: sizes, and a list is of names"
            if mean(entries.str.contains(r"#\d+$")) > 0.9:
                return "ranked", {"separator": separator}, f"{joined}, entries like {entries[0]!r}"
            more, why = _entries(known.str.split(separator), joined)
            return "multivalued", {"separator": separator, **more}, why
        return "categorical", _encoding(distinct, len(known)), f"text, {distinct:,} values"
    if dtype.is_integer():
        name = plainly(column.name)
        if name.endswith(("id", "_no", "code")) or name in THINGS or distinct <= 20:
            why = f"whole numbers, {distinct:,} values: codes, by their name or number"
            return "categorical", _encoding(distinct, len(known)), why
    if not dtype.is_numeric():
        return None, {}, f"of type {dtype}, which no feature reads"
    values = known.cast(pl.Float64).to_numpy()
    values = values[np.isfinite(values)]
    low, high = float(values.min()), float(values.max())
    deviation = float(values.std())
    skew = float((((values - values.mean()) / deviation) ** 3).mean()) if deviation > 0 else 0.0
    if low >= 0 and skew > 2:
        return "numeric", {"transform": "log1p"}, f"a number, {low:g} to {high:g}, with a long tail"
    return "numeric", {"transform": "standard"}, f"a number, {low:g} to {high:g}"


def _entries(lists: pl.Series, why: str) -> tuple[dict[str, Any], str]:
    """(further keys, why) of a multivalued feature, from its lists."""
    if (weights := weight_separator_of(lists.explode())) is not None:
        return {"weight_separator": weights}, f"{why}, a weight behind each {weights!r}"
    fills = filler(lists.head(5_000))
    return ({}, why) if fills is None else ({"padding": fills}, f"{why} of one length, filled up with {fills!r}")


def weight_separator_of(entries: pl.Series) -> str | None:
    """What stands between values and their weights: behind each a number up to 1, and not only whole ones.

    `10:30` may be a time, `size:3` a value and `ios:14.2` a version; a recipe can still say that they are weights.
    """
    if entries.dtype != pl.String:
        return None
    some = entries.filter((entries != "").fill_null(False))
    for separator in WEIGHT_SEPARATORS:
        texts = some.str.extract(rf"(?s)^.+{separator}(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)$", 1)
        if len(texts) and not texts.null_count():
            weights = texts.cast(pl.Float64)
            if (weights <= 1).all() and (weights != weights.round()).any():
                return separator
    return None


def _encoding(distinct: int, rows: int) -> dict[str, Any]:
    """Rare values of a large vocabulary teach nothing: seen twice, or out of vocabulary."""
    large = distinct > 1_000 and distinct > rows / 50
    return {"encoding": {"kind": "vocabulary", "min_count": 2}} if large else {}


def separator_of(texts: pl.Series) -> str | None:
    """What joins the values of a text column, if they recur as parts: in most rows, with far fewer parts than texts."""
    some = texts.head(2_000)
    for separator in SEPARATORS:
        lengths = some.str.count_matches(separator, literal=True)
        if mean(lengths) < 0.5:
            continue
        if separator in OF_NAMES and _names(texts, separator):
            continue
        parts = some.str.split(separator).explode()
        if (weights := weight_separator_of(parts)) is not None:
            parts = parts.str.replace(rf"{weights}[^{weights}]*$", "")  # values recur, whatever they weigh
        if parts.n_unique() < 0.5 * len(parts):
            return separator
    return None


def _names(texts: pl.Series, separator: str) -> bool:
    """Whether these are names rather than lists: they come again whole, and have as many parts as there are names."""
    whole = texts.drop_nulls().unique()
    return len(whole) < 0.5 * len(texts) and whole.str.split(separator).explode().n_unique() >= len(whole)


def _level(frame: pl.DataFrame, column: pl.Series, keys: Mapping[str, str]) -> str:
    """request, if the column has one value in every request (or user and moment) of more than one row."""
    together = [keys["request"]] if "request" in keys else [keys[k] for k in ("user", "time") if k in keys]
    if not together or ("request" not in keys and len(together) < 2):
        return "candidate"
    for rows in (frame.head(AT_A_GLANCE), frame):  # most columns vary at a glance
        groups = rows.group_by(together).agg(pl.col(column.name).n_unique().alias("values"), pl.len().alias("rows"))
        several = groups.filter(pl.col("rows") > 1)
        if (several["values"] > 1).any():
            return "candidate"
    return "request" if several.height else "candidate"


def _set_on_ones_alone(column: pl.Series, label: pl.Series) -> str:
    """How a column is set ("1", "not 0", "not null") on positives alone, too often for chance; else ""."""
    y = label.cast(pl.Float64).fill_nan(None)
    if not y.drop_nulls().is_in([0.0, 1.0]).all():
        return ""
    numbers = column.dtype.is_numeric() or column.dtype == pl.Boolean
    values = column.cast(pl.Float64).fill_nan(None) if numbers else column
    is_set = (
        values.is_not_null() & (values != 0).fill_null(False) if numbers else values.is_not_null()
    ) & y.is_not_null()
    ones = y.filter(is_set)
    if not len(ones) or (ones == 0).any() or mean(y) ** len(ones) > BY_CHANCE:
        return ""
    if not numbers or values.drop_nulls().len() == int(is_set.sum()):
        return "known"
    return "1" if values.filter(is_set).n_unique() == 1 and values.filter(is_set)[0] == 1 else "other than 0"


def _told(column: pl.Series, label: pl.Series) -> float:
    """AUC of the label by the column alone: a number as it is (either way), an id by the mean label of its other rows.

    Leaving the row itself out keeps rare ids from telling their own label. Of a label of other numbers: whether it is above
    its median, by the order of a number alone, for what an item's id says of a number (its price) is often known before.
    """
    y = label.cast(pl.Float64).to_numpy()
    numbers = not np.isin(y[~np.isnan(y)], (0.0, 1.0)).all()
    if numbers:
        y = np.where(np.isnan(y), y, y > np.nanmedian(y))
    known = column.is_not_null().to_numpy() & ~np.isnan(y)
    if isinstance(column.dtype, pl.List) or not known.any():
        return 0.5
    if column.dtype.is_numeric():
        values = column.cast(pl.Float64).to_numpy()
        known &= np.isfinite(values)
        found = auc(y[known], values[known])
        if math.isfinite(found) and max(found, 1 - found) > GIVES_AWAY:
            return max(found, 1 - found)
        if column.n_unique() > 1_000:
            return 0.5
    if numbers:
        return 0.5
    codes = column.rank("dense").fill_null(0).cast(pl.Int64).to_numpy()
    ones, rows = np.bincount(codes, np.nan_to_num(y)), np.bincount(codes)
    others = rows[codes] - 1
    known &= others > 0
    mean = (ones[codes] - y) / np.maximum(others, 1)
    found = auc(y[known], mean[known]) if known.sum() > 100 else math.nan
    return found if math.isfinite(found) else 0.5
