"""What the protocols of several data sets share: parts by lot or by position, and the recipe's text.

Parts are a column `split` of the samples (train, validation, test), so that samples.parquet says by itself which row was
used for what. Both ways keep to the kept lines' numbers: a malformed line moves no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import polars as pl

from finerank.errors import UserError
from finerank.runtime.hashing import mix, uniform
from finerank.typed import to_toml


def by_lot(shares: tuple[float, float], seed: int, row: str = "row") -> pl.Expr:
    """The part of each row by a seeded hash of its number: the same for the same file, on any machine.

    shares  of validation and of test, about
    """
    validation, test = shares
    key = mix(seed)

    def draw(rows: pl.Series) -> pl.Series:
        u = uniform(key, rows.to_numpy())
        part = np.where(u < test, "test", np.where(u < test + validation, "validation", "train"))
        return pl.Series(rows.name, part, dtype=pl.String)

    return pl.col(row).map_batches(draw, return_dtype=pl.String, is_elementwise=True)


def by_position(rows: int, validation: int, test: int, row: str = "row") -> pl.Expr:
    """The part of each of `rows` rows: the last `test` are for test, the `validation` before them for validation.

    Raises UserError if nothing is left for training, or a part is empty.
    """
    if not 0 < validation < rows or not 0 < test < rows - validation:
        raise UserError(
            f"a split with the last {test:,} rows for test and {validation:,} before them for validation does not go with "
            f"{rows:,} rows; use another split, or the whole file"
        )
    train = pl.col(row) < rows - validation - test
    return (
        pl.when(train)
        .then(pl.lit("train"))
        .when(pl.col(row) < rows - test)
        .then(pl.lit("validation"))
        .otherwise(pl.lit("test"))
    )


def lot_note(seed: int, shares: str) -> str:
    """What a reader of a split by lot should know."""
    return (
        f"Parts by lot, seed {seed}, in the shares of {shares}. The published parts were drawn by other generators: their "
        "rows, and so their checksums, cannot be had without their files. By lot, training sees rows later than the test's."
    )


def total(*counts: Mapping[str, int]) -> dict[str, int]:
    """The counts of several files, added up."""
    out: dict[str, int] = {}
    for each in counts:
        for name, count in each.items():
            out[name] = out.get(name, 0) + count
    return out


def declare(names: Iterable[str], level: str, kind: str = "categorical", **more: object) -> str:
    """TOML of one [[feature]] for each name, and a blank line after it."""
    return to_toml({"feature": [{"kind": kind, "name": name, "level": level, **more} for name in names]}) + "\n"
