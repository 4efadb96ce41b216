"""Request-shaped data: the laws of data A with several candidates a request, the history stored once per request.

    python benchmarks/worlds.py FOLDER [requests]

Writes `R_{train,test}.parquet` with a column `request` (finerank stores a history once per request) and, for the peers,
`R_{train,test}.csv`, every row with its history, in the columns of data A. The last tenth of the requests is
the test part. 40,000 requests of ten candidates each give as many rows as data A has.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import polars as pl

USERS, ITEMS, CATEGORIES, LONGEST, CANDIDATES = 200_000, 60_000, 800, 50, 10


def zipf(n: int, exponent: float) -> np.ndarray:
    weights = 1.0 / np.arange(1, n + 1) ** exponent
    return weights / weights.sum()


class World:
    """Items of Zipf popularity in Zipf-sized categories; users who like three categories each."""

    def __init__(self, draw: np.random.Generator) -> None:
        self.draw = draw
        popularity = np.empty(ITEMS)
        popularity[draw.permutation(ITEMS)] = zipf(ITEMS, 1.05)
        self.category = draw.choice(CATEGORIES, ITEMS, p=zipf(CATEGORIES, 0.7))
        self.by_category = np.argsort(self.category, kind="stable")
        self.until = np.concatenate([[0.0], np.cumsum(popularity[self.by_category])])
        sorted_categories = self.category[self.by_category]
        self.low = self.until[np.searchsorted(sorted_categories, np.arange(CATEGORIES), "left")]
        self.high = self.until[np.searchsorted(sorted_categories, np.arange(CATEGORIES), "right")]
        share = self.high - self.low
        self.liked = draw.choice(CATEGORIES, (USERS, 3), p=share / share.sum())
        self.of_item, self.of_user = draw.normal(0, 0.6, ITEMS), draw.normal(0, 0.3, USERS)

    def items(self, user: np.ndarray, own: float) -> np.ndarray:
        """One item each: with probability `own` from a category the user likes, else by popularity alone."""
        n = len(user)
        category = self.liked[user, self.draw.integers(0, 3, n)]
        theirs = self.draw.random(n) < own
        low, high = np.where(theirs, self.low[category], 0.0), np.where(theirs, self.high[category], self.until[-1])
        at = np.searchsorted(self.until, low + self.draw.random(n) * (high - low), "right") - 1
        return self.by_category[np.clip(at, 0, ITEMS - 1)]


def generate(folder: Path, requests: int = 40_000, seed: int = 20_240_503) -> None:
    """Write the files that the module's docstring names."""
    draw = np.random.default_rng(seed)
    world = World(draw)
    user = draw.choice(USERS, requests, p=zipf(USERS, 0.5))
    length = np.clip(np.rint(draw.lognormal(np.log(20.0) - 0.25 * 0.81, 0.9, requests)), 1, LONGEST).astype(np.int64)
    of_event = np.repeat(np.arange(requests), length)
    past = world.items(user[of_event], 0.6)
    of_row = np.repeat(np.arange(requests), CANDIDATES)
    item = world.items(user[of_row], 0.5)
    # share of the history in the candidate's category
    pair = of_event * CATEGORIES + world.category[past]
    kinds, counts = np.unique(pair, return_counts=True)
    wanted = of_row * CATEGORIES + world.category[item]
    at = np.minimum(np.searchsorted(kinds, wanted), len(kinds) - 1)
    match = np.where(kinds[at] == wanted, counts[at], 0) / length[of_row]
    logit = -1.1 + 3.0 * np.sqrt(match) + world.of_item[item] + world.of_user[user[of_row]]
    label = (draw.random(len(item)) < 1 / (1 + np.exp(-logit))).astype(np.int64)

    def lists(values: np.ndarray) -> pl.Series:
        events = pl.DataFrame({"request": of_event, "value": (values + 1).astype(np.int32)})
        return events.group_by("request", maintain_order=True).agg("value")["value"]

    by_request = pl.DataFrame(
        {
            "request": np.arange(requests),
            "user_id": (user + 1).astype(np.int32),
            "hist_item": lists(past),
            "hist_cate": lists(world.category[past]),
        }
    )
    rows = pl.DataFrame(
        {
            "request": of_row,
            "label": label,
            "item_id": (item + 1).astype(np.int32),
            "cate_id": (world.category[item] + 1).astype(np.int32),
        }
    )
    cut = requests - requests // 10
    order = ["label", "user_id", "item_id", "cate_id", "hist_item", "hist_cate"]
    for name, part in (("train", pl.col("request") < cut), ("test", pl.col("request") >= cut)):
        flat = rows.filter(part).join(by_request, on="request", how="left", maintain_order="left")
        flat.write_parquet(folder / f"R_{name}.parquet")
        joined = pl.col("hist_item", "hist_cate").cast(pl.List(pl.String)).list.join("^")
        flat.select(order).with_columns(joined).write_csv(folder / f"R_{name}.csv")
    print(f"R: {requests} requests, {len(item)} rows, rate {label.mean():.3f}, mean history {length.mean():.1f}")


if __name__ == "__main__":
    generate(Path(sys.argv[1]), *map(int, sys.argv[2:]))
