"""Labels and weights of samples: what a task's columns say, and where a row lies outside the task's space.

N rows · K tasks
"""

from __future__ import annotations

import numpy as np
import polars as pl

from finerank.errors import UserError
from finerank.schema import Schema


def label_columns(schema: Schema) -> list[str]:
    """The columns that the tasks read."""
    return [*(t.column or t.name for t in schema.tasks), *(t.weight for t in schema.tasks if t.weight)]


def labels_of(schema: Schema, frame: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """labels, weights: float32 [N, K]. Outside its space (see `Task.within`), or without a label, a row weighs 0.

    Raises UserError for labels that are no numbers, a binary task's that are not 0 or 1, weights below 0, and a label
    within another that is not 1.
    """
    names = [t.column or t.name for t in schema.tasks]
    labels = np.empty((frame.height, len(schema.tasks)), dtype=np.float32)
    weights = np.ones_like(labels)
    for k, task in enumerate(schema.tasks):
        column = frame[names[k]]
        if not (column.dtype.is_numeric() or column.dtype == pl.Boolean):
            raise UserError(f"samples: label column {names[k]!r} is {column.dtype}; accepted: numbers or true/false")
        labels[:, k] = column.cast(pl.Float64).to_numpy()
        if task.weight:
            given = frame[task.weight]
            if not (given.dtype.is_numeric() or given.dtype == pl.Boolean):
                raise UserError(f"samples: weight column {task.weight!r} is {given.dtype}; accepted: numbers")
            weights[:, k] = given.cast(pl.Float64).fill_nan(None).fill_null(0.0).to_numpy()
            if not (np.isfinite(weights[:, k]) & (weights[:, k] >= 0)).all():
                raise UserError(
                    f"samples: weight column {task.weight!r} has negative or infinite values; accepted: 0 or more"
                )
        if task.within is not None:
            parent = [t.name for t in schema.tasks].index(task.within)
            outside = ~((labels[:, parent] == 1) & (weights[:, parent] != 0))
            if task.kind == "binary" and (labels[outside & (weights[:, parent] != 0), k] == 1).any():
                count = int((labels[outside & (weights[:, parent] != 0), k] == 1).sum())
                raise UserError(
                    f"samples: {count} rows have {task.name} = 1 but {task.within} = 0, and {task.name} happens within "
                    f"{task.within}; drop these rows or mend the log"
                )
            weights[outside, k] = 0.0
        weights[np.isnan(labels[:, k]), k] = 0.0
        known = labels[weights[:, k] != 0, k]
        if not np.isfinite(known).all():
            raise UserError(f"samples: label column {names[k]!r} has infinite values")
        if task.kind == "binary" and not np.isin(known, (0.0, 1.0)).all():
            bad = known[~np.isin(known, (0.0, 1.0))][0]
            raise UserError(f"samples: label column {names[k]!r} holds {bad}; a binary task accepts 0 and 1")
    return labels, weights
