"""World 2: a user clicks what is like many of the things clicked before; how many, not which share.

P(click) = floor + (ceiling - floor) · min(count, enough) / enough, where count is of past clicks of the candidate's category
among the last `length`. Users differ in activity, so the share of a category (what softmax keeps) tells little of its
count (what it loses): DIN without softmax sees it, and the base model sees a sum that the candidate cannot ask.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from finerank.datasets.worlds.world import World, WorldOptions, categorical, draws, recipe, world


@dataclass(frozen=True, kw_only=True)
class InterestOptions(WorldOptions):
    """candidates: of a request; enough: clicks of a category after which more of them change nothing."""

    users: int = 2_000
    items: int = 1_000
    categories: int = 30
    rounds: int = 12
    candidates: int = 5
    length: int = 50
    enough: int = 8
    floor: float = 0.05
    ceiling: float = 0.8
    seed: int = 0


def interests(options: InterestOptions = InterestOptions()) -> World:
    """The world; truth: `category` of each item."""
    o = options
    draw = draws(o.seed, "law")
    category = np.arange(o.items) % o.categories
    likes = draw.integers(0, o.categories, (o.users, 3))  # what a user's first clicks are of
    activity = np.exp(draw.uniform(np.log(1), np.log(o.length), o.users)).astype(np.int64)  # first clicks of each user
    past = np.full((o.users, o.length), -1)  # items, the latest at the right
    events: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for step in range(int(activity.max())):
        users = np.flatnonzero(activity > step)
        own = likes[users, draw.integers(0, 3, len(users))]
        own = np.where(draw.random(len(users)) < 0.2, draw.integers(0, o.categories, len(users)), own)
        items = own + o.categories * draw.integers(0, o.items // o.categories, len(users))
        past[users] = np.concatenate([past[users, 1:], items[:, None]], axis=1)
        events.append((users, items, np.full(len(users), step)))
    rows = draws(o.seed, "rows")
    samples = []
    for step in range(o.rounds):
        time = int(activity.max()) + step
        candidates = rows.integers(0, o.items, (o.users, o.candidates))
        mine = likes[np.arange(o.users)[:, None], rows.integers(0, 3, candidates.shape)]
        near = rows.random(candidates.shape) < 0.4  # a recommender that knows something
        candidates = np.where(
            near, mine + o.categories * (candidates // o.categories % (o.items // o.categories)), candidates
        )
        same = (category[candidates][:, :, None] == category[past][:, None, :]) & (past >= 0)[:, None, :]
        count = same.sum(axis=2)
        p = o.floor + (o.ceiling - o.floor) * np.minimum(count, o.enough) / o.enough
        click = rows.random(p.shape) < p
        user = np.repeat(np.arange(o.users), o.candidates)
        samples.append(
            pl.DataFrame(
                {
                    "request": user + step * o.users,
                    "user": user,
                    "time": np.full(len(user), time),
                    "item": candidates.ravel(),
                    "category": category[candidates].ravel(),
                    "click": click.ravel().astype(np.int8),
                    "true_click": p.ravel(),
                }
            )
        )
        for k in range(o.candidates):
            users = np.flatnonzero(click[:, k])
            past[users] = np.concatenate([past[users, 1:], candidates[users, k][:, None]], axis=1)
            events.append((users, candidates[users, k], np.full(len(users), time)))
    user, item, when = (np.concatenate(column) for column in zip(*events, strict=True))
    log = pl.DataFrame({"user": user, "item": item, "category": category[item], "time": when})
    made = recipe(
        [categorical("item"), categorical("category")],
        [{"name": "click"}],
        {"name": "din"},
        keys={"request": "request", "user": "user", "time": "time"},
        histories=[{"name": "clicks", "fields": ["item", "category"], "max_length": o.length}],
    )
    return World(pl.concat(samples), made, log.sort("time", maintain_order=True), {"category": category})


world("interests", InterestOptions, interests, "World 2: clicks by the number of past clicks of the same category.")
