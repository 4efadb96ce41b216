"""What features, histories and tasks are: declarations only.

A schema says what the columns of a log mean; it knows no data, no tensors and no models. `FittedSchema` adds what the
training data taught (sizes, counts, statistics); models are built from it.
"""

from finerank.schema.encodings import FIRST, MISSING, OOV, PADDING, Encoding, Growing, Hashed, Vocabulary
from finerank.schema.features import (
    Bucketed,
    Categorical,
    Cross,
    Feature,
    Level,
    ListFeature,
    MultiValued,
    Numeric,
    Ranked,
    SingleId,
    Use,
    column_of,
    field_names,
    segments_of,
    source_columns,
    table_of,
)
from finerank.schema.fitted import Columns, FittedSchema, FittedTable, ListColumn
from finerank.schema.history import AGE_CUTS, DAY, SECOND, History
from finerank.schema.schema import Schema
from finerank.schema.task import Task

__all__ = [
    "AGE_CUTS",
    "DAY",
    "FIRST",
    "MISSING",
    "OOV",
    "PADDING",
    "SECOND",
    "Bucketed",
    "Categorical",
    "Columns",
    "Cross",
    "Encoding",
    "Feature",
    "FittedSchema",
    "FittedTable",
    "Growing",
    "Hashed",
    "History",
    "Level",
    "ListColumn",
    "ListFeature",
    "MultiValued",
    "Numeric",
    "Ranked",
    "Schema",
    "SingleId",
    "Task",
    "Use",
    "Vocabulary",
    "column_of",
    "field_names",
    "segments_of",
    "source_columns",
    "table_of",
]
