"""The past of every user, fed event by event, as requests see it: one profile store for each history of a schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from finerank.errors import UserError
from finerank.runtime.blocks import Block
from finerank.runtime.encoder import Encoder
from finerank.runtime.history import LAST, ProfileStore
from finerank.runtime.values import canonical
from finerank.schema import SECOND, History

Int64s: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Past:
    """What a request sees of one history. events: T rows, oldest first; ages: int64 [T], request minus event, microseconds."""

    events: Block[NDArray[Any]]
    ages: Int64s


class Profiles:
    """Takes events in as the log has them, and gives each request what its row would have seen offline.

    keep  events kept per user and history; None keeps all (see `ProfileStore`)
    Histories that are list columns have no store: the request itself brings them. Safe to use from several threads.
    """

    def __init__(self, encoder: Encoder, keep: int | None = None) -> None:
        self.encoder = encoder
        self.stores = {
            h.name: ProfileStore(encoder.events(h.name, []), max_length=h.max_length, ties=h.ties, keep=keep)
            for h in encoder.schema.histories
            if not h.lists
        }

    def add(
        self, user: object, event: Mapping[str, object], time: int, known_at: int | None = None, sequence: int = LAST
    ) -> None:
        """Record an event in every history that it belongs to.

        user      as the log has it (text, integer, ...); an event of nobody (null) is dropped, as it is offline
        time      of the event, microseconds; known_at: None: the time plus the history's delay
        sequence  position in the log; the default comes after all others, in order of arrival
        Raises UserError for a value of a wrong type, or an event that is known before it happens.
        """
        _whole(time=time, known_at=known_at, sequence=sequence)
        key = canonical(user)
        for name, store in self.stores.items():
            history = self.encoder.schema.history(name)
            if key is None or not _belongs(history, event):
                continue
            known = time + round(history.delay * SECOND) if known_at is None else known_at
            block = self.encoder.events(name, [event])
            store.append(key, np.array([known]), np.array([time]), np.array([sequence]), block)

    def recall(self, user: object, time: int, sequence: int | None = None) -> dict[str, Past]:
        """What a request of this user at `time` (microseconds) sees, by history.

        sequence  the request's position in the log, for a replay; None: it is live, after everything recorded
        Raises UserError for a time that is no whole number.
        """
        _whole(time=time, sequence=sequence)
        key = canonical(user)
        out = {}
        for name, store in self.stores.items():
            if key is not None:
                events, times, _ = store.history(key, time, sequence)
                out[name] = Past(events, time - times)
        return out


def _whole(time: object, **more: object) -> None:
    """Refuse a time that is missing or no whole number: a null that became a number would be an age of centuries."""
    for name, value in {"time": time, **more}.items():
        missing = value is None and name != "time"
        if not missing and (isinstance(value, bool) or not isinstance(value, int | np.integer)):
            raise UserError(f"profiles: {name} = {value!r}; accepted: a whole number, of times in microseconds")


def _belongs(history: History, event: Mapping[str, object]) -> bool:
    """Whether the history's `where` takes the event; values are compared by their canonical text."""
    return all(canonical(event.get(column)) == canonical(value) for column, value in history.where.items())
