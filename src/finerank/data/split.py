"""Which requests are for training, validation and test: whole requests, never rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from finerank.errors import UserError

TRAIN, VALIDATION, TEST = 0, 1, 2
NAMES = {"train": TRAIN, "validation": VALIDATION, "test": TEST}


@dataclass(frozen=True, kw_only=True)
class Split:
    """How requests are split.

    by                time: the last requests are for test, those before for validation (the honest choice for logs)
                      user: whole users, by a hash of their name · column: a column that says train, validation or test
    validation, test  shares of the requests (of the users, for `user`)
    column            for by = "column"
    """

    by: Literal["time", "user", "column"] = "time"
    validation: float = 0.1
    test: float = 0.1
    column: str = "split"

    def __post_init__(self) -> None:
        if not (0 <= self.validation < 1 and 0 <= self.test < 1 and self.validation + self.test < 1):
            raise UserError(
                f"split: validation = {self.validation}, test = {self.test}; accepted: shares of at least 0 that leave "
                "some requests for training"
            )


def assign(split: Split, time: np.ndarray, user: np.ndarray, names: np.ndarray | None = None) -> np.ndarray:
    """int8 [R] for requests in time order: TRAIN, VALIDATION or TEST (`by` time or user).

    user    codes [R]; names: uint64 [U], the hash of each user's name, for by = "user": so that a user stays in its part
            when others come
    Requests of one moment stay together: a cut moves back to the first request of its time.
    """
    count = len(time)
    out = np.zeros(count, dtype=np.int8)
    if split.by == "time":
        for share, code in ((split.test + split.validation, VALIDATION), (split.test, TEST)):
            cut = count - round(share * count)
            if share and 0 < cut < count:
                cut = int(np.searchsorted(time, time[cut], side="left"))
            if share:
                out[cut:] = code
    elif names is not None and len(names):
        u = np.where(user >= 0, names[user] / 2.0**64, 1.0)  # rows of nobody are for training
        out[u < split.test + split.validation] = VALIDATION
        out[u < split.test] = TEST
    return out
