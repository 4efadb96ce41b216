"""Samples from a log of positives only: beside what was taken, negatives drawn by a stated law.

A metric depends on the law of the negatives as much as on the model (the DIN and the DIEN paper report the same model on the
same log as .87 and .76), so the law stands in the recipe and thereby in every run. Honest laws know what was known then:

    candidates   items of rows strictly earlier; a positive of an item never seen before is left out, for no negative
                 could be such an item: it would give itself away
    attributes   those of the item's last strictly earlier row, for positives and negatives alike; tables are joined later
    draws        a pure function of (seed, the row's place in time): what comes later changes nothing

exclude = "all" looks into the future, as published protocols do, and says so in the data set's notes.

In memory: the columns that the recipe reads.  E rows of the log · N positives kept · n negatives each
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from finerank.data.draws import Draws, by_first_appearance
from finerank.data.encode import canonical_series
from finerank.data.prepare import Keys
from finerank.data.source import collect, microseconds
from finerank.errors import UserError, nearest
from finerank.runtime.hashing import mix, uniform

DRAW, ORDER = 0, 1  # what random numbers are for: an order by the numbers that drew would show the labels


@dataclass(frozen=True, kw_only=True)
class Negatives:
    """Negatives for samples that hold positives only; keys.request, keys.user and keys.time must be named.

    count    of each positive, all different; fewer where no more items are known
    law      popularity: in proportion to (times taken so far)^power · uniform: every item seen so far alike
    power    of popularity, 0 to 1: unpopular items make easy negatives, popular ones hard ones
    exclude  seen: the user's items so far and those of the request; positives that the user had before are left out too
             (what will be new to the user?) · current: the request's items alone (for things taken again and again) ·
             all: every item of the user, future ones too, out of the whole catalogue: a protocol of published results
             that looks into the future, flagged wherever the data set is shown
    item     the column of the item
    label    the column that is made: 1 positive, 0 negative
    seed     of the draws and of the order within a request
    """

    count: int = 4
    law: Literal["popularity", "uniform"] = "popularity"
    power: float = 0.75
    exclude: Literal["seen", "current", "all"] = "seen"
    item: str = "item"
    label: str = "label"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"negatives: count = {self.count} for each positive; accepted: 1 and up, usually 4")
        if not (math.isfinite(self.power) and 0 <= self.power <= 1):
            raise UserError(f"negatives: power = {self.power}; accepted: 0 (uniform) to 1 (as often as taken)")


@dataclass(frozen=True, kw_only=True)
class Roles:
    """What the columns of the log are.

    candidate  of the item: as they were at the item's last earlier row
    positive   labels: null beside a negative
    weight     row weights: 1 beside a negative
    request    everything else that is read: repeated
    """

    candidate: Collection[str]
    positive: Collection[str]
    weight: Collection[str]
    request: Collection[str]


def with_negatives(
    log: pl.LazyFrame, options: Negatives, keys: Keys, roles: Roles, tell: Callable[[str], None] = lambda note: None
) -> pl.LazyFrame:
    """Positives and negatives, rows of a request adjacent, requests in order of time.

    log   one row per positive; rows of one keys.request are one request; without such a column each row is one, and it is
          made
    tell  told what a reader of results should know: positives left out, a law that knows the future
    """
    if keys.request is None or keys.user is None or keys.time is None:
        raise UserError(
            "negatives stand beside their positive, drawn as of its time for its user; name keys.request (it is made where "
            "the samples have no such column), keys.user and keys.time"
        )
    names = log.collect_schema().names()
    if options.label in names:
        raise UserError(f"negatives: column {options.label!r} is in the samples already; name the label otherwise")
    if options.item not in names:
        raise UserError(f"negatives: no column {options.item!r} for the item; {nearest(options.item, names)}")
    made_request = keys.request not in names
    wanted = {options.item, keys.user, keys.time, *({keys.request} - ({keys.request} if made_request else set()))}
    wanted |= {c for part in (roles.candidate, roles.positive, roles.weight, roles.request) for c in part if c in names}
    frame = collect(log, sorted(wanted), "samples")
    frame = frame.filter(*(canonical_series(frame[column]).is_not_null() for column in (options.item, keys.user)))
    if not frame.height:
        raise UserError(f"samples: no row has both a user ({keys.user!r}) and an item ({options.item!r})")
    time = microseconds(frame[keys.time], keys.time_unit, "samples")
    order = np.argsort(time, kind="stable")
    frame, time = frame[order], time[order]
    if made_request:
        frame = frame.with_columns(pl.Series(keys.request, np.arange(frame.height)))
    item, _ = by_first_appearance(_codes(frame[options.item]))
    drawn = _draw(options, item, _codes(frame[keys.user]), _codes(frame[keys.request]), time, tell)
    return _joined(frame, drawn, options, keys, roles).lazy()


@dataclass(frozen=True)
class _Drawn:
    """Candidates: `row` [M] of the log that each stands beside, `source` [M] row its item and attributes come from,
    `taken` [M]; in the order in which they are written."""

    row: np.ndarray
    source: np.ndarray
    taken: np.ndarray


def _draw(
    options: Negatives,
    item: np.ndarray,
    user: np.ndarray,
    request: np.ndarray,
    time: np.ndarray,
    tell: Callable[[str], None],
) -> _Drawn:
    size = len(item)
    rows = np.arange(size)
    looks_ahead = options.exclude == "all"
    known = np.full(size, size) if looks_ahead else np.searchsorted(time, time, "left")
    barred = np.full(size, size) if options.exclude != "seen" else np.searchsorted(time, time, "right")
    if looks_ahead:
        tell(
            'negatives: exclude = "all" draws from the whole catalogue without the items that a user takes later: it looks '
            "into the future, so results are comparable with those of the same protocol only"
        )
    else:
        new = _before(item, item, known) < 0  # the first of its item
        repeated = _before(user * (int(item.max()) + 1) + item, None, known) >= 0
        leave = new | repeated if options.exclude == "seen" else new
        rows = np.flatnonzero(~leave)
        if new.any():
            tell(f"negatives: {int(new.sum()):,} positives left out, the first of their item: no negative could be it")
        if options.exclude == "seen" and (repeated & ~new).any():
            tell(f"negatives: {int((repeated & ~new).sum()):,} positives left out that the user had before")
    power = options.power if options.law == "popularity" else 0.0
    who = user if options.exclude != "current" else request  # whose items are barred
    draws = Draws(item, who, power)
    key = mix(options.seed, DRAW)
    negatives = draws.draw(who[rows], known[rows], barred[rows], options.count, key, rows)  # [N, n]
    beside = np.repeat(rows, options.count)
    there = negatives.ravel() >= 0
    row = np.concatenate([rows, beside[there]])
    items = np.concatenate([item[rows], negatives.ravel()[there]])
    taken = np.concatenate([np.ones(len(rows), np.int8), np.zeros(int(there.sum()), np.int8)])
    source = _before(item, items, known[row])
    # a request of several positives may have drawn one negative twice: it stands there once
    _, first = np.unique((request[row] * (int(item.max()) + 1) + items) * 2 + taken, return_index=True)
    place = np.full(int(request.max()) + 1, size)
    np.minimum.at(place, request[row], row)  # a request stands at its first row
    lots = uniform(mix(options.seed, ORDER), row * (options.count + 1) + _slot(there, len(rows), options.count))
    order = first[np.lexsort((lots[first], place[request[row[first]]]))]
    return _Drawn(row[order], source[order], taken[order])


def _slot(there: np.ndarray, positives: int, count: int) -> np.ndarray:
    """[M]: 0 for a positive, 1 ... n for its negatives."""
    numbers = np.tile(np.arange(1, count + 1), len(there) // count)
    return np.concatenate([np.zeros(positives, np.int64), numbers[there]])


def _before(values: np.ndarray, asked: np.ndarray | None, known: np.ndarray) -> np.ndarray:
    """The last of the first `known` rows with the value asked for (None: each row's own), or -1."""
    asked = values if asked is None else asked
    unique, codes = np.unique(values, return_inverse=True)
    size = len(values) + 1
    keys = np.sort(codes * size + np.arange(len(values)))
    code = np.searchsorted(unique, asked)
    at = np.searchsorted(keys, code * size + known) - 1
    found = keys[np.maximum(at, 0)]
    out: np.ndarray = np.where((at >= 0) & (found // size == code), found % size, -1)
    return out


def _joined(frame: pl.DataFrame, drawn: _Drawn, options: Negatives, keys: Keys, roles: Roles) -> pl.DataFrame:
    candidate = {options.item, *roles.candidate} - {keys.request, keys.user, keys.time}
    of_item = [c for c in frame.columns if c in candidate]
    beside = frame.select([c for c in frame.columns if c not in candidate])[drawn.row]
    taken = pl.Series(options.label, drawn.taken)
    labels = [c for c in beside.columns if c in roles.positive and c not in roles.weight]
    weights = [c for c in beside.columns if c in roles.weight]
    beside = beside.with_columns(
        *(pl.when(taken == 1).then(c).alias(c) for c in labels),
        *(pl.when(taken == 1).then(c).otherwise(1).alias(c) for c in weights),
    )
    return beside.hstack(frame.select(of_item)[drawn.source]).with_columns(taken)


def _codes(column: pl.Series) -> np.ndarray:
    """int64 [E]: a code for each canonical text; all nulls are one value."""
    return canonical_series(column).rank("dense").cast(pl.Int64).fill_null(0).to_numpy()
