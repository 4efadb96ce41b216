"""A schema and what the training data taught: all that a model needs to be built."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from finerank.schema.encodings import OOV, Encoding
from finerank.schema.schema import Schema


@dataclass(frozen=True)
class Columns:
    """The fixed, declared order of one block's columns: what `Block.ids`, `.numbers` and `.lists` hold.

    ids       (name, table) of each single-id column; in a history the last one is ("age", "<history>.age")
    numbers   names of number columns; a numeric feature x yields "x" (powers: also "x²" and "√x") and, if training rows
              missed it, "x?"
    lists     (name, table, rank table or None, weighted?, pooling) of each list column
    """

    ids: tuple[tuple[str, str], ...] = ()
    numbers: tuple[str, ...] = ()
    lists: tuple[ListColumn, ...] = ()

    def numbers_of(self, name: str) -> list[int]:
        """Where the columns of a numeric feature stand among `numbers`: it may yield several."""
        return [i for i, column in enumerate(self.numbers) if column in (name, f"{name}²", f"√{name}", f"{name}?")]


@dataclass(frozen=True, kw_only=True)
class ListColumn:
    """A list feature as a column: its name, tables, and how it is pooled."""

    name: str
    table: str
    ranks: str | None = None
    weighted: bool = False
    pooling: str = "mean"


@dataclass(frozen=True)
class FittedTable:
    """What training taught about one embedding table.

    rows      rows of the table, the three reserved ones included (for `growing`: capacity + 3)
    counts    int64 [rows] (for `growing`: per symbol): occurrences in the training rows, histories included
    encoding  the declared encoding, or "cuts" for buckets, ranks and ages
    dim, std  width and standard deviation of the initial values where a feature says them; None: the model's
    symbol    canonical text of a value -> its symbol, OOV for none (for all but `growing`: the row)
    """

    rows: int
    counts: np.ndarray
    encoding: Encoding | Literal["cuts"]
    dim: int | None = None
    std: float | None = None
    symbol: Callable[[str], int] = field(default=lambda text: OOV, compare=False, repr=False)


@dataclass(frozen=True)
class FittedSchema:
    """A schema and what the training rows taught: all that a model needs to be built.

    tables          by name
    request, candidate, histories   the column order of each block of a batch (inputs only; train_only apart)
    train_only      columns of candidate-level train-only features
    base_rates      per task: the mean label over its training space (binary: a rate; the initial logit comes from it)
    """

    schema: Schema
    tables: Mapping[str, FittedTable]
    request: Columns
    candidate: Columns
    histories: Mapping[str, Columns]
    train_only: Columns
    base_rates: Mapping[str, float]

    def blocks(self) -> Iterator[tuple[str, Columns]]:
        """(name, columns) of request, candidate and each history, in the order of a batch."""
        yield "request", self.request
        yield "candidate", self.candidate
        yield from self.histories.items()
