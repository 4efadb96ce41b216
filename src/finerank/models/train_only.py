"""A small network over what only training knows: position, device, propensity bucket, ... (`Batch.train_only`).

Heads ask it within their loss, so that neither it nor its columns are in the served graph.
N candidates · C columns · D width of a column's vector · K outputs
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from finerank.data.batch import Batch
from finerank.errors import UserError, nearest
from finerank.layers.mlp import MLP
from finerank.schema import MISSING, OOV, FittedSchema, Growing


class TrainOnly(nn.Module):
    """[N, K] of the train-only columns with one id per row.

    columns  their names; none: all there are
    outputs  K
    width    D, of each column's vector, where there is a hidden layer
    hidden   layers over the joined vectors; none: every value of every column has K numbers of its own, which add up
    start    what the outputs are at first, about

    Its weights are few, so they are moved by the dense optimiser and no regulariser of tables pulls at them.
    """

    def __init__(
        self,
        fitted: FittedSchema,
        columns: Sequence[str],
        outputs: int,
        width: int = 8,
        hidden: Sequence[int] = (),
        start: float = 0.0,
    ) -> None:
        super().__init__()
        known = dict(fitted.train_only.ids)
        for name in columns:
            if name not in known:
                raise UserError(
                    f"heads.columns: {name!r} is no train-only column with one id per row{_declared(fitted, name)}; "
                    f"{nearest(name, known)}"
                    if known
                    else f'heads.columns: {name!r}, and no candidate feature has use = "train_only"; declare it so'
                )
        self.names = tuple(columns) or tuple(known)
        if not self.names:
            raise UserError(
                'heads: no train-only column; declare a categorical or bucketed candidate feature with use = "train_only", '
                "such as the position"
            )
        self.places = [list(known).index(name) for name in self.names]
        self.tables = [known[name] for name in self.names]
        each = width if hidden else outputs
        self.values = nn.ModuleList(nn.Embedding(fitted.tables[table].rows, each) for table in self.tables)
        for table in self.values:
            assert isinstance(table, nn.Embedding)
            nn.init.normal_(table.weight, std=0.1 if hidden else 0.0)
        self.mlp = MLP(each * len(self.names), hidden, outputs) if hidden else None
        self.start = start

    def ids(self, batch: Batch) -> Tensor:
        """int64 [N, C]: the values of the columns."""
        assert batch.train_only is not None
        return batch.train_only.ids[:, self.places]

    def forward(self, ids_NC: Tensor) -> Tensor:
        """[N, C] -> [N, K]."""
        vectors = [table(ids) for table, ids in zip(self.values, ids_NC.unbind(1), strict=True)]
        if self.mlp is None:
            return torch.stack(vectors).sum(0) + self.start
        out: Tensor = self.mlp(torch.cat(vectors, dim=1)) + self.start
        return out

    def missing(self) -> Tensor:
        """int64 [1, C]: a row of which nothing is known."""
        return torch.full((1, len(self.names)), MISSING)


def _declared(fitted: FittedSchema, name: str) -> str:
    """How a feature is declared that is no train-only column, beside how one is."""
    for f in fitted.schema.features:
        if f.name == name:
            return (
                f' (it is {f.kind} with level = "{f.level}", use = "{f.use}"; declare it categorical or bucketed with '
                'level = "candidate", use = "train_only")'
            )
    return ""


def row_of(fitted: FittedSchema, column: str, value: str, key: str) -> int:
    """The row of a train-only column's value. Raises UserError, naming the option `key`, for a value that has none."""
    table = fitted.tables[dict(fitted.train_only.ids)[column]]
    if isinstance(table.encoding, Growing):
        raise UserError(
            f'{key} = {value!r}: {column!r} is encoded as "growing", whose rows move; use a vocabulary, or {key} = ""'
        )
    row = table.symbol(value)
    if row == OOV:
        raise UserError(
            f"{key} = {value!r} is no value of {column!r} in the training rows; name the value that is always seen "
            f'(usually the first position), or {key} = "" for no anchor'
        )
    return row


def judged_tasks(fitted: FittedSchema, tasks: Sequence[str]) -> tuple[str, ...]:
    """The binary tasks that a position bears on: those named, or else all that live within no other.

    Raises UserError for another name, and where there is none.
    """
    binary = [t for t in fitted.schema.tasks if t.kind == "binary"]
    for name in tasks:
        if name not in {t.name for t in binary}:
            raise UserError(f"heads.tasks: {name!r} is no binary task; {nearest(name, [t.name for t in binary])}")
    found = tuple(tasks) or tuple(t.name for t in binary if t.within is None)
    if not found:
        raise UserError("heads: no binary task for a position to bear on; declare one")
    return found
