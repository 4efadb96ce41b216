"""Encoded columns as words again: the symbol tables keep every name."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from finerank.runtime.blocks import Block
from finerank.runtime.encoder import Encoder
from finerank.runtime.values import CROSS
from finerank.schema import Columns


def names_of(encoder: Encoder, columns: Columns, block: Block[np.ndarray]) -> list[Mapping[str, str]]:
    """Per row of the block, the value of each id and list column by name. Numbers are left out: they are scaled.

    The age of an event is left out too; it is told in time, not in buckets.
    """
    rows: list[dict[str, str]] = [{} for _ in range(len(block))]
    for j, (name, table) in enumerate(columns.ids[: block.ids.shape[1]]):
        if name != "age":
            for row, symbol in zip(rows, block.ids[:, j].tolist(), strict=True):
                row[name] = encoder.tables[table].name(symbol).replace(CROSS, " × ")
    for column in columns.lists:
        lists = block.lists[column.name]
        texts: list[list[str]] = [[] for _ in lists.lengths]
        for of, ids in zip(lists.segments.tolist(), lists.ids.tolist(), strict=True):
            rank = "" if column.ranks is None else f"#{encoder.tables[column.ranks].name(ids[1])}"
            texts[of].append(encoder.tables[column.table].name(ids[0]) + rank)
        for row, of in zip(rows, lists.index.tolist(), strict=True):
            row[column.name] = " ".join(texts[of])
    return list(rows)
