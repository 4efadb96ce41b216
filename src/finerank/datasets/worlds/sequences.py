"""World 9: what comes next depends on what came last: item sequences of a Markov chain, its order 1 or 2.

From a state, the next item is one of `branches` favourites with probability `faith`, else any. Order matters: a pooled history
sees the same items whichever came last. A chain of order 2 hides its law from a look at the last item alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from finerank.datasets.worlds.world import World, WorldOptions, categorical, draws, recipe, world


@dataclass(frozen=True, kw_only=True)
class SequenceOptions(WorldOptions):
    """order: of the chain, 1 or 2; negatives: random items beside the true next one."""

    users: int = 2_000
    length: int = 20
    items: int = 50
    branches: int = 3
    faith: float = 0.9
    order: int = 1
    negatives: int = 3
    seed: int = 0


def sequences(options: SequenceOptions = SequenceOptions()) -> World:
    """The world; truth: `favourites` [states, branches], the state being the last `order` items as one number."""
    o = options
    states = o.items**o.order
    favourites = draws(o.seed, "law").integers(0, o.items, (states, o.branches))
    draw = draws(o.seed, "rows")
    path = np.empty((o.users, o.length), dtype=np.int64)
    path[:, : o.order] = draw.integers(0, o.items, (o.users, o.order))
    users = np.arange(o.users)
    for t in range(o.order, o.length):
        state = np.zeros(o.users, dtype=np.int64)
        for back in range(o.order, 0, -1):
            state = state * o.items + path[:, t - back]
        faithful = draw.random(o.users) < o.faith
        chosen = favourites[state, draw.integers(0, o.branches, o.users)]
        path[:, t] = np.where(faithful, chosen, draw.integers(0, o.items, o.users))
    first = o.order  # before, nothing could be known
    steps = np.arange(first, o.length)
    user = np.repeat(users, len(steps))
    time = np.tile(steps, o.users)
    negatives = draw.integers(0, o.items, (len(user), o.negatives))
    candidates = np.concatenate([path[:, first:].reshape(-1, 1), negatives], axis=1)
    came = (candidates == candidates[:, :1]).astype(np.int8)  # a negative may be the true item: then it is one
    width = o.negatives + 1
    samples = pl.DataFrame(
        {
            "request": np.repeat(np.arange(len(user)), width),
            "user": np.repeat(user, width),
            "time": np.repeat(time, width),
            "item": candidates.ravel(),
            "came": came.ravel(),
        }
    )
    events = pl.DataFrame(
        {"user": np.repeat(users, o.length), "time": np.tile(np.arange(o.length), o.users), "item": path.ravel()}
    )
    made = recipe(
        [categorical("item")],
        [{"name": "came"}],
        {"name": "dien"},
        keys={"request": "request", "user": "user", "time": "time"},
        histories=[{"name": "past", "fields": ["item"]}],
    )
    made["data"]["split"]["by"] = "user"  # the chain does not change: other users are the fair test
    return World(samples, made, events, {"favourites": favourites})


world("sequences", SequenceOptions, sequences, "World 9: sequences of a Markov chain; what came last decides.")
