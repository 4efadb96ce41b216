"""The plain parts: fields as they are, one head per task.

R requests · N candidates · F fields · D width of a field
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from finerank.data.batch import Batch, TensorBlock
from finerank.errors import UserError
from finerank.layers.embedding import BlockVectors, Embedding
from finerank.layers.mlp import linear
from finerank.models.composition import Features, Head, Heads, Representation, Widths
from finerank.models.narrow import Narrowing
from finerank.models.registry import part
from finerank.schema import Columns, Cross, FittedSchema


@dataclass(frozen=True, kw_only=True)
class EmbeddingOptions:
    """How wide the fields are and how they begin.

    width      of a field; a table of another width (a feature's own `dim`) is projected to it
    dim_scale  times every feature's own `dim`: a search tries 0.5, 1 and 2
    std        of the initial values; worth a search of its own, from 1e-4 to 0.1
    """

    width: int = 16
    dim_scale: float = 1.0
    std: float = 0.01

    def __post_init__(self) -> None:
        if self.width < 1:
            raise UserError(f"width = {self.width}; accepted: at least 1, usually 8 to 64")
        if not 0 < self.dim_scale < math.inf:
            raise UserError(f"dim_scale = {self.dim_scale}; accepted: above 0, usually 0.5, 1 or 2")
        if not 0 <= self.std < math.inf:
            raise UserError(f"std = {self.std}; accepted: at least 0, usually 0.01")


class FieldEmbedding(nn.Module):
    """Embeds a batch and gives every field the same width D; a table of another width is projected, per table."""

    def __init__(
        self,
        fitted: FittedSchema,
        options: EmbeddingOptions,
        blocks: Sequence[str] | None = None,
        ages: bool = True,
    ) -> None:
        super().__init__()
        self.embedding = Embedding(fitted, options.width, options.std, blocks, ages=ages, scale=options.dim_scale)
        self.dim = options.width
        self.table_of = {name: _table_of(cols) for name, cols in fitted.blocks()}
        unequal = {t: w for t, w in self.embedding.widths.items() if w != options.width}
        # tables may have any name; a module's name may not contain a dot, nor be one of ModuleDict's methods
        self.project = nn.ModuleDict(
            {_safe(t): linear(w, options.width, bias=False) for t, w in sorted(unequal.items())}
        )

    def forward(
        self, batch: Batch, extra: Mapping[str, tuple[str, TensorBlock]] | None = None
    ) -> dict[str, BlockVectors]:
        """Vectors of every block, by name; `extra` as in `Embedding.forward`."""
        found: dict[str, BlockVectors] = self.embedding(batch, extra)
        return found

    def fields(self, block: str, vectors: BlockVectors) -> Tensor:
        """[n, F, D] in schema order."""
        if isinstance(vectors.vectors, Tensor) and vectors.vectors.shape[2] == self.dim:
            return vectors.vectors
        return self.as_fields(block, vectors.names, vectors.joined())

    def as_fields(self, block: str, names: Sequence[str], joined: Tensor) -> Tensor:
        """[n, sum of widths] of the named columns side by side -> [n, F, D]."""
        tables = [self.table_of[block][name] for name in names]
        widths = [self.embedding.widths[t] for t in tables]
        if all(w == self.dim for w in widths):
            return joined.view(joined.shape[0], len(names), self.dim)
        parts = joined.split_with_sizes(widths, dim=1)
        equal = [
            p if w == self.dim else self.project[_safe(t)](p) for p, w, t in zip(parts, widths, tables, strict=True)
        ]
        return torch.stack(equal, dim=1)

    def width_of(self, block: str, names: Sequence[str]) -> int:
        """Width of the named columns side by side."""
        return sum(self.embedding.widths[self.table_of[block][name]] for name in names)

    def columns(self, block: str) -> tuple[str, ...]:
        """Names of the embedded columns of a block, in schema order."""
        return self.embedding.order[block]


def _safe(name: str) -> str:
    return "of " + name.replace(".", "·")


def _table_of(cols: Columns) -> dict[str, str]:
    return dict(cols.ids) | {c.name: c.table for c in cols.lists}


@part
class Plain(Representation):
    """The fields of the request and of the candidate; histories are left out."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """How fields are embedded.

        embedding  width and initial spread of the fields
        crosses    embed crosses too; off, they are left to a linear part beside this
        """

        kind: ClassVar[str] = "plain"
        embedding: EmbeddingOptions = EmbeddingOptions()
        crosses: bool = True

    def __init__(self, fitted: FittedSchema, options: Options) -> None:
        super().__init__()
        crosses = [f.name for f in fitted.schema.features if isinstance(f, Cross) and f.use == "input"]
        self.narrow = None if options.crosses or not crosses else Narrowing(fitted, crosses, "representation.crosses")
        fitted = self.narrow.fitted if self.narrow else fitted
        self.embed = FieldEmbedding(fitted, options.embedding, ("request", "candidate"))
        self.widths = plain_widths(fitted, self.embed)

    def forward(self, batch: Batch) -> Features:
        """See `Features`."""
        seen = batch if self.narrow is None else self.narrow(batch)
        return replace(plain_features(seen, self.embed, self.embed(seen)), batch=batch)


def plain_widths(fitted: FittedSchema, embed: FieldEmbedding) -> Widths:
    """The widths of request and candidate fields and numbers, without histories."""
    return Widths(
        embed.dim,
        len(embed.columns("request")),
        len(embed.columns("candidate")),
        len(fitted.request.numbers),
        len(fitted.candidate.numbers),
        embed.columns("request"),
        embed.columns("candidate"),
    )


def plain_features(batch: Batch, embed: FieldEmbedding, found: Mapping[str, BlockVectors]) -> Features:
    """The features without histories, to which a representation adds what it makes of them."""
    return Features(
        batch,
        embed.fields("request", found["request"]),
        embed.fields("candidate", found["candidate"]),
        batch.request.numbers,
        batch.candidate.numbers,
    )


@part
class TaskHeads(Heads):
    """One head per task, over the task's own space, with a global bias that starts at the base rate."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """No options: links follow the tasks' kinds."""

        kind: ClassVar[str] = "tasks"

    def __init__(self, fitted: FittedSchema, options: Options) -> None:
        super().__init__()
        tasks = fitted.schema.tasks
        self.heads = tuple(Head(t.name, t.name, "sigmoid" if t.kind == "binary" else "identity") for t in tasks)
        self.inputs = len(tasks)
        self.bias = nn.Parameter(initial_bias(fitted))

    def forward(self, logits_NK: Tensor) -> Tensor:
        """[N, K] -> [N, K]."""
        return logits_NK + self.bias


def initial_bias(fitted: FittedSchema) -> Tensor:
    """[K]: logit of a binary task's base rate, mean of a regression's; so that training starts at the prior."""
    out = []
    for task in fitted.schema.tasks:
        rate = torch.tensor(float(fitted.base_rates[task.name]), dtype=torch.float64)
        out.append(torch.logit(rate, eps=1e-6) if task.kind == "binary" else rate)
    return torch.stack(out).float()
