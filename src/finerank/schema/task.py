"""What a task is: something to predict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Task:
    """Something to predict.

    kind     binary: 0 or 1 · regression: any number
    within   the task in whose positives this one lives (a conversion happens within a click): outside, its weight is 0
    weight   a column of row weights (default 1)
    """

    name: str
    column: str | None = None
    kind: Literal["binary", "regression"] = "binary"
    within: str | None = None
    weight: str | None = None
