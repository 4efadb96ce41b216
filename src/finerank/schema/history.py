"""What a history is: a user's past as a row sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from finerank.errors import UserError
from finerank.schema.checks import at_least, check_separator, rising

SECOND = 1_000_000
"""In microseconds, as times are; what is declared is in seconds."""
DAY = 86_400
AGE_CUTS = (
    60,
    600,
    3_600,
    6 * 3_600,
    DAY,
    2 * DAY,
    4 * DAY,
    7 * DAY,
    14 * DAY,
    30 * DAY,
    60 * DAY,
    120 * DAY,
    365 * DAY,
)
"""Default cut points of an event's age, in seconds: a minute to a year."""


@dataclass(frozen=True, kw_only=True)
class History:
    """A user's past events of one sort, as seen by a row: known before its time, the most recent, oldest first.

    fields      names of features: an event-level feature, or a candidate feature whose table, encoding and meaning
                the event's column of that name shares (`product_id` of the past is `product_id` of the candidate)
    columns     event column of a field where it is not the feature's own column
    where       only events whose column equals the value, e.g. {event = "purchase"}
    lists       instead of the event log: columns of the samples that hold the lists, oldest first, field by field
    weights     beside lists: for every weighted field the column that holds its weights, one list (or number) per event
    separator   for list columns that are joined text (`a^b^c`)
    padding     what fills lists up to one length where data were made for padding (often 0): beside lists; an entry of
                which every field is this or missing is no event
    max_length  the most recent so many
    delay       seconds until an event is known: known_at = time + delay, unless the log has a `known_at` column
    ties        strict: only known_at < t counts · file_order: (known_at, sequence) < (t, sequence of the row)
    age_cuts    cut points of the event's age in seconds; the age's bucket is the id column `age`
    """

    name: str
    fields: tuple[str, ...]
    columns: Mapping[str, str] = field(default_factory=dict)
    where: Mapping[str, str | int | bool] = field(default_factory=dict)
    lists: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    separator: str | None = None
    padding: str | int | None = None
    max_length: int = 50
    delay: float = 0.0
    ties: Literal["strict", "file_order"] = "strict"
    age_cuts: tuple[int, ...] = AGE_CUTS

    def __post_init__(self) -> None:
        at_least(1, max_length=self.max_length)
        if not self.fields:
            raise UserError(f"history {self.name!r}: fields is empty; name what an event is described by")
        if len(set(self.fields)) < len(self.fields):
            raise UserError(f"history {self.name!r}: fields = {list(self.fields)}; accepted: each field once")
        check_separator(self.separator)
        if self.padding is not None and not self.lists:
            raise UserError(f"history {self.name!r}: padding is of lists, and a log of events has none; leave it out")
        if not 0 <= self.delay < float("inf"):
            raise UserError(f"history {self.name!r}: delay = {self.delay}; accepted: seconds, 0 or more")
        if not rising(self.age_cuts):
            raise UserError(f"history {self.name!r}: age_cuts = {list(self.age_cuts)}; accepted: rising seconds")

    @property
    def list_columns(self) -> dict[str, str]:
        """The columns of the samples that hold the past, by field; those of weights by `field·weights`."""
        return {**self.lists, **{f"{name}·weights": column for name, column in self.weights.items()}}
