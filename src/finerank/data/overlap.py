"""A split that was given is checked: no row of test or validation may be one of training, and the two must differ.

A published "validation" file that is the test file, and a builder that leaves each user's test row in training, are real
and common; both make metrics look better than they are. Splits that are made here (by time, by user) cannot overlap.

A row is known by who, when and what: user, time (and place in the log, where there is one), and the candidate's columns. Labels
do not count: a copy with another label is a copy. Nor does the request's name: a copy may have another. Where rows have no
user or no time, equal rows may well be different impressions; then only parts equal as a whole are refused. N rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from finerank.data.source import collect
from finerank.data.split import NAMES, TEST, TRAIN, VALIDATION
from finerank.errors import UserError
from finerank.runtime.hashing import splitmix64


def refuse_overlap(samples: pl.LazyFrame, part: np.ndarray, columns: Sequence[str], known: bool) -> None:
    """Raises UserError if rows of one part are in another.

    part     int8 [N]: TRAIN, VALIDATION or TEST, in the samples' order
    columns  what makes a row what it is
    known    whether equal rows are one and the same (see the module)
    """
    hashed = np.zeros(len(part), dtype=np.uint64)
    for column in columns:  # one at a time: a log may be long
        hashed = splitmix64(hashed ^ collect(samples, [column], "samples")[column].hash().to_numpy())
    of = {code: hashed[part == code] for code in NAMES.values()}
    name = {code: name for name, code in NAMES.items()}
    for one, other in ((VALIDATION, TEST), (VALIDATION, TRAIN), (TEST, TRAIN)):
        a, b = of[one], of[other]
        if len(a) and len(a) == len(b) and np.array_equal(np.sort(a), np.sort(b)):
            raise UserError(
                f"samples: the rows of {name[one]} are those of {name[other]}; give each part rows of its own, "
                "or what is measured is not what will be"
            )
        if not known:
            continue
        common = np.flatnonzero((part == one) & np.isin(hashed, b))
        if len(common):
            row = collect(samples.slice(int(common[0]), 1), columns, "samples").row(0, named=True)
            raise UserError(
                f"samples: {len(common)} rows of {name[one]} are in {name[other]} too, the first with {row}; "
                "drop them from one of the two"
            )
