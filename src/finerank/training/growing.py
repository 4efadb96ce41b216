"""Growing tables while training: who gets a row, and what the row starts as.

The map from symbol to row is brought up to date before each pass over new data, never within one: so a step is a
function of the data's position alone, and a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from finerank.errors import UserError
from finerank.models.composition import Model
from finerank.runtime.hashing import mix
from finerank.runtime.rows import RowMap
from finerank.schema import FIRST, OOV, FittedSchema, Growing
from finerank.training.optimisers import Optimisers


def row_maps(fitted: FittedSchema) -> dict[str, RowMap]:
    """An empty map for every growing table."""
    return {
        name: RowMap(table.encoding.capacity, table.encoding.admit_after)
        for name, table in fitted.tables.items()
        if isinstance(table.encoding, Growing)
    }


def admit(
    maps: Mapping[str, RowMap], fitted: FittedSchema, model: Model, optimisers: Optimisers, time: int, seed: int
) -> dict[str, tuple[int, int]]:
    """Count the training occurrences of this data set, admit and evict; {table: (admitted, evicted)}.

    A row given to a new id starts at the out-of-vocabulary row, plus how far a fresh row of the table is from the mean of its
    law, so that equal rows part; its optimiser state and its running count start anew. What has no row counts for the
    out-of-vocabulary row.
    """
    out = {}
    for name, row_map in maps.items():
        counts = fitted.tables[name].counts
        symbols = np.flatnonzero(counts[FIRST:]) + FIRST
        changes = row_map.observe(symbols, counts[symbols], time)
        out[name] = (len(changes.admitted_rows), len(changes.evicted_symbols))
        rows = torch.from_numpy(changes.admitted_rows)
        seen = np.bincount(row_map.rows_of(np.arange(len(counts))), counts, FIRST + row_map.capacity)  # [rows]
        occurrences = torch.from_numpy(seen.astype(np.int64))
        for weight_name, tables in model.embeddings().items():
            if name not in tables.start:
                continue
            weight, start = tables.weight.data, tables.start[name]
            if len(rows):
                where = (rows + start).to(weight.device)
                draw = torch.Generator().manual_seed(mix(seed, time, start) >> 1)
                fresh = tables.fresh(name, len(rows), draw).to(weight)
                weight[where] = weight[start + OOV] + fresh - tables.mean_of(name)
                optimisers.reset_rows(weight_name, where)
            met = occurrences.nonzero().squeeze(1)
            optimisers.observe_rows(weight_name, met + start, occurrences[met])
    return out


def maps_state(maps: Mapping[str, RowMap]) -> dict[str, Tensor]:
    """The maps as tensors for a checkpoint."""
    return {
        f"{name}.{key}": torch.from_numpy(array.copy())
        for name, row_map in maps.items()
        for key, array in row_map.state().items()
    }


def load_maps(maps: dict[str, RowMap], tensors: Mapping[str, Tensor]) -> None:
    """Take over saved maps, in place."""
    known = {key for key in tensors if key.rpartition(".")[0] in maps}
    if unexpected := sorted(set(tensors) - known):
        raise UserError(f"checkpoint: unexpected row maps {unexpected[:3]}; growing tables here: {sorted(maps)}")
    for name in maps:
        split = {key: key.rpartition(".") for key in tensors}
        maps[name] = RowMap.from_state(
            {key: tensors[k].numpy() for k, (table, _, key) in split.items() if table == name}
        )
