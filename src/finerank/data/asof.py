"""As-of tables: attributes of items or users that change, as they were known at the moment of a row.

A row at time t sees, for its key, the last version with known_at < t: the same rule as for events (`runtime.history`), of
which this is the case with one event. Prices, stock, a user's long-term top tags computed every night: whatever has versions
is a table of versions, and never a join on today's value, which would tell the past about the future.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from finerank.data.encode import canonical_series
from finerank.data.source import TimeUnit, collect, microseconds
from finerank.errors import UserError


@dataclass(frozen=True, kw_only=True)
class AsOf:
    """Columns that a table of versions adds to the samples.

    file      one row per version
    key       the column of samples and table that says whose version it is; 1, 1.0 and "1" are one key
    known_at  the column of the table that says when a version was known (a nightly profile: when the night's run was done);
              left out: attributes that never change (a brand, a birthday), one row per key
    columns   what to add; null where no version was known yet
    """

    file: str
    key: str
    columns: tuple[str, ...]
    known_at: str | None = None


def add_as_of(
    samples: pl.LazyFrame, table: pl.LazyFrame, spec: AsOf, time: str | None, time_unit: TimeUnit = "s"
) -> pl.LazyFrame:
    """The samples, in their order, with the table's columns as known strictly before each row's time.

    time       the samples' time column; whole numbers of samples and table are both in `time_unit`
    Of several versions known at the same moment the last in the file counts.
    Raises UserError if a column is there already, is missing, or a version has no time.
    """
    names = samples.collect_schema().names()
    for column in spec.columns:
        if column in names:
            raise UserError(f"table {spec.file}: column {column!r} is in the samples already; rename one of the two")
    if spec.known_at is None:
        return pl.concat([samples, _constant(samples, table, spec).lazy()], how="horizontal")
    if time is None:
        raise UserError(
            f"table {spec.file}: known_at = {spec.known_at!r} is compared with the row's time; name keys.time"
        )
    keys = collect(samples, [spec.key, time], "samples")
    versions = collect(table, [spec.key, spec.known_at, *spec.columns], f"table {spec.file}")
    left = pl.DataFrame(
        {
            "·row": pl.Series(range(keys.height), dtype=pl.UInt32),
            spec.key: canonical_series(keys[spec.key]),
            "·time": microseconds(keys[time], time_unit, "samples"),
        }
    )
    right = versions.select(spec.columns).with_columns(
        canonical_series(versions[spec.key]).alias(spec.key),
        pl.Series("·time", microseconds(versions[spec.known_at], time_unit, f"table {spec.file}")),
    )
    found = left.sort("·time", maintain_order=True).join_asof(
        right.sort("·time", maintain_order=True),
        on="·time",
        by=spec.key,
        strategy="backward",
        allow_exact_matches=False,  # known strictly before
        check_sortedness=False,  # sorted above; Polars cannot see it within groups
    )
    added = found.sort("·row").select(spec.columns)
    return pl.concat([samples, added.lazy()], how="horizontal")


def _constant(samples: pl.LazyFrame, table: pl.LazyFrame, spec: AsOf) -> pl.DataFrame:
    """[N]: the columns of a table with one row per key."""
    keys = collect(samples, [spec.key], "samples")[spec.key]
    given = collect(table, [spec.key, *spec.columns], f"table {spec.file}")
    given = given.with_columns(canonical_series(given[spec.key])).drop_nulls(spec.key)
    if twice := given.height - given[spec.key].n_unique():
        raise UserError(
            f"table {spec.file}: {twice} rows repeat a {spec.key!r}; give one row for each, or known_at: when each was known"
        )
    asked = pl.DataFrame({spec.key: canonical_series(keys)})
    return asked.join(given, on=spec.key, how="left", maintain_order="left").select(spec.columns)
