"""A split that was given is checked: no row of test or validation may be one of training, and the two must differ.

A published "validation" file that is the test file, and a builder that leaves each user's test row in training, are real
and common; both make metrics look better than they are. Splits that are made here (by time, by user) cannot overlap.

A row is known by who, when and what: user, time (and place in the log, where there is one), and the candidate's columns. Labels
do not count: a copy with another label is a copy. Nor does the request's name: a copy may have another. Where rows have no
user or no time, equal rows may well be different impressions; then only parts equal as a whole are refused. N rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl

from finerank.data.scratch import Pile, Scratch
from finerank.data.source import blocks, collect
from finerank.data.split import NAMES, TEST, TRAIN, VALIDATION
from finerank.errors import UserError
from finerank.runtime.hashing import splitmix64


def refuse_overlap(
    samples: pl.LazyFrame,
    part: np.ndarray,
    columns: Sequence[str],
    known: bool,
    hashed: np.ndarray | None = None,
    scratch: Scratch | None = None,
) -> None:
    """Raises UserError if rows of one part are in another.

    part     int8 [N]: TRAIN, VALIDATION or TEST, in the samples' order
    columns  what makes a row what it is
    known    whether equal rows are one and the same (see the module)
    hashed   `row_hashes` of these columns [N], if they are at hand; else the samples are read again, should they be needed
    scratch  where arrays of so many rows lie; None: in memory
    """
    scratch = scratch or Scratch()
    name = {code: name for name, code in NAMES.items()}
    rows = {code: sum(int((part[at] == code).sum()) for at in scratch.pieces(len(part))) for code in NAMES.values()}
    pairs = ((VALIDATION, TEST), (VALIDATION, TRAIN), (TEST, TRAIN))
    same = {(one, other): rows[one] == rows[other] != 0 for one, other in pairs}
    if not known and not any(same.values()):
        return  # parts of different sizes are not equal as a whole
    if hashed is None:
        pile = Pile(scratch, np.uint64)
        for block in blocks(samples, columns, scratch.block, "samples"):
            pile.append(row_hashes(block.get_columns()))
        hashed = pile.close()
    common = {pair: (0, len(part)) for pair in pairs}  # how many rows of one are in the other, and the first of them
    for here in _shares(hashed, scratch):  # equal rows lie in the same share
        of = {code: hashed[here[part[here] == code]] for code in NAMES.values()}
        for one, other in pairs:
            a, b = of[one], of[other]
            same[one, other] &= len(a) == len(b) and np.array_equal(np.sort(a), np.sort(b))
            if known:
                found = here[part[here] == one][np.isin(a, b)]
                count, first = common[one, other]
                common[one, other] = (count + len(found), min(first, int(found[0])) if len(found) else first)
    for one, other in pairs:
        if same[one, other]:
            raise UserError(
                f"samples: the rows of {name[one]} are those of {name[other]}; give each part rows of its own, "
                "or what is measured is not what will be"
            )
        count, first = common[one, other]
        if count:
            row = collect(samples.slice(first, 1), columns, "samples").row(0, named=True)
            raise UserError(
                f"samples: {count} rows of {name[one]} are in {name[other]} too, the first with {row}; "
                "drop them from one of the two"
            )


def row_hashes(columns: Sequence[pl.Series]) -> np.ndarray:
    """uint64 [n]: a hash of each row of some columns."""
    hashed = np.zeros(len(columns[0]), dtype=np.uint64)
    for column in columns:
        hashed = splitmix64(hashed ^ column.hash().to_numpy())
    return hashed


def _shares(hashed: np.ndarray, scratch: Scratch) -> Iterator[np.ndarray]:
    """The rows, ascending, of one share of all hashes after the other: about a block of them each."""
    shares = -(-len(hashed) // scratch.block)
    share = scratch.made(len(hashed), lambda at: (hashed[at] >> np.uint64(20)) % np.uint64(shares), np.int32)
    order = scratch.order(share)  # once: to look for each share in all hashes would be a pass a block
    counts = np.zeros(shares, dtype=np.int64)
    for at in scratch.pieces(len(hashed)):
        counts += np.bincount(share[at], minlength=shares)
    for end, count in zip(np.cumsum(counts).tolist(), counts.tolist(), strict=True):
        yield order[end - count : end]
