"""Embedding tables: one gather for all tables of equal width, and gradients only for the rows that a batch touches.

R requests · N candidates · T events · F single-id columns · L distinct lists · M list entries · D width

All tables of one width lie behind each other in one weight. In training the distinct rows of the batch are gathered
into a small leaf tensor first, so that backward fills [rows of the batch, D] and never [vocabulary, D]; row optimisers
(`training/row_optim.py`) take it from there. With ``sparse=False`` the weight itself is the leaf: the plain twin, for any
`torch.optim` optimiser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finerank.data.batch import Batch, TensorBlock, TensorLists
from finerank.kernels import rows as loops
from finerank.kernels.pages import in_huge_pages
from finerank.layers.segments import segment_max, segment_mean, segment_sum
from finerank.schema import FIRST, Columns, FittedSchema, ListColumn, field_names
from finerank.widths import scaled_width


@dataclass
class Touched:
    """The rows of a weight that one forward pass read, and the leaf that their gradient lands in."""

    rows: Tensor  # [U] int64, distinct
    values: Tensor  # [U, D], requires_grad
    readers: Tensor | None  # [U] float32, where they are counted: places at which the batch's candidates read each


@dataclass(frozen=True)
class Gradient:
    """What the backward passes of a step left for one weight.

    rows     int64 [U], distinct
    values   [U, D], summed over all passes
    readers  float32 [U], where they are counted: places at which the step's candidates read each row
    """

    rows: Tensor
    values: Tensor
    readers: Tensor | None = None


class Tables(nn.Module):
    """Named tables of one width in one weight.

    sizes   rows of each table by name; row 0 of each (padding) is zero and stays so
    std     standard deviation of the initial values; 0 for first-order weights; own: of a table of its own, by name
    high    initial values are uniform from 0 to this instead; 0: they are normal
    sparse  gather the touched rows into a leaf in training (see the module's docstring)
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        width: int,
        std: float,
        sparse: bool = True,
        own: Mapping[str, float] = MappingProxyType({}),
        high: float = 0.0,
    ) -> None:
        super().__init__()
        self.sizes = dict(sizes)
        self.width, self.std, self.own, self.high, self.sparse = width, std, own, high, sparse
        starts = np.concatenate([[0], np.cumsum(list(sizes.values()))])
        self.start = {name: int(start) for name, start in zip(sizes, starts, strict=False)}
        self.weight = nn.Parameter(in_huge_pages(torch.empty(int(starts[-1]), width)))
        with torch.no_grad():
            _drawn(self.weight, std, high)
            for name, start in self.start.items():
                if name in own:
                    _drawn(self.weight[start : start + sizes[name]], own[name], 0.0)
                self.weight[start] = 0.0
        self.touched: list[Touched] = []
        self.before_gather: Callable[[Tensor], None] | None = None  # told the distinct rows (a decay to catch up)
        self._mark: np.ndarray | None = None  # scratch of the plain twin, [rows]

    def mean_of(self, name: str) -> float:
        """The mean of the law of one table's initial values."""
        return 0.0 if name in self.own else self.high / 2

    def fresh(self, name: str, count: int, generator: torch.Generator) -> Tensor:
        """[count, D]: rows drawn as the initial values of one table are."""
        std, high = (self.own[name], 0.0) if name in self.own else (self.std, self.high)
        return _drawn(torch.empty(count, self.width), std, high, generator)

    def table(self, name: str) -> Tensor:
        """The rows of one table: a view [rows, D] of the weight."""
        start = self.start[name]
        return self.weight.detach()[start : start + self.sizes[name]]

    def forward(self, ids: Tensor, readers: Tensor | None = None) -> Tensor:
        """int64 [n] positions in the weight -> [n, D]. readers: float32 [n], how many candidates read each."""
        compiled = loops.fits(self.weight) and not torch.compiler.is_exporting()
        if not torch.is_grad_enabled() and compiled:
            return loops.gather(self.weight, ids.contiguous())
        if not (self.sparse and self.training and torch.is_grad_enabled()):
            return F.embedding(ids, self.weight)
        rows, local = self._distinct(ids)
        if self.before_gather is not None:
            self.before_gather(rows)
        weight = self.weight.detach()
        values = (loops.gather(weight, rows) if compiled else weight.index_select(0, rows)).requires_grad_()
        if readers is not None:
            readers = readers.new_zeros(len(rows)).index_add_(0, local, readers)
        self.touched.append(Touched(rows, values, readers))
        if values.device.type != "cpu":
            return values.index_select(0, local)  # the way back of F.embedding sorts, which takes longer
        return loops.lookup(values, local) if compiled else F.embedding(local, values)

    def _distinct(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(rows, local): the distinct ids and, for each id, where it stands among them. Linear time: no sort."""
        if ids.device.type != "cpu":
            rows, local = torch.unique(ids, return_inverse=True)
            return rows, local
        if loops.fits(self.weight):
            return loops.distinct(ids)
        if self._mark is None or len(self._mark) != len(self.weight):
            self._mark = np.zeros(len(self.weight), dtype=np.int32)
        mark, index = self._mark, ids.numpy()
        count = np.arange(len(index))
        mark[index] = count  # of equal ids the last one stays
        rows = index[mark[index] == count]
        mark[rows] = np.arange(len(rows))
        return torch.from_numpy(rows), torch.from_numpy(mark[index])

    def take_gradient(self) -> tuple[Tensor, Tensor] | None:
        """(rows [U], gradient [U, D]) of `take`."""
        taken = self.take()
        return None if taken is None else (taken.rows, taken.values)

    def take(self) -> Gradient | None:
        """The gradient of all forward passes since the last call; None when there were none."""
        touched = [t for t in self.touched if t.values.grad is not None]
        self.touched = []
        if not touched:
            return None
        grads = [t.values.grad for t in touched if t.values.grad is not None]
        readers = [t.readers for t in touched if t.readers is not None]
        if len(touched) == 1:
            return Gradient(touched[0].rows, grads[0], *readers)
        rows, local = self._distinct(torch.cat([t.rows for t in touched]))

        def summed(parts: list[Tensor]) -> Tensor:
            joined = torch.cat(parts)
            return joined.new_zeros((len(rows), *joined.shape[1:])).index_add_(0, local, joined)

        return Gradient(rows, summed(grads), summed(readers) if readers else None)


def _drawn(values: Tensor, std: float, high: float, generator: torch.Generator | None = None) -> Tensor:
    """Fills `values` in place: uniform from 0 to `high`, else normal, else 0."""
    if high:
        return values.uniform_(0.0, high, generator=generator)
    return values.normal_(0.0, std, generator=generator) if std else values.zero_()


@dataclass(frozen=True)
class BlockVectors:
    """The embedded columns of one block of n rows, in schema order.

    vectors  [n, F, D] when all widths are equal, else one [n, d] a column
    entries  by list column: [M, d], the entries of its distinct lists before they are pooled
    """

    names: tuple[str, ...]
    vectors: Tensor | tuple[Tensor, ...]
    entries: Mapping[str, Tensor] = field(default_factory=dict)

    def joined(self, names: Sequence[str] | None = None) -> Tensor:
        """[n, sum of widths]: the named columns (default: all) side by side."""
        if isinstance(self.vectors, Tensor):
            if names is None or tuple(names) == self.names:
                return self.vectors.flatten(1)
            if tuple(names) == self.names[: len(names)]:
                return self.vectors[:, : len(names)].flatten(1)
        columns = [self.column(name) for name in (self.names if names is None else names)]
        return torch.cat(columns, dim=1)

    def column(self, name: str) -> Tensor:
        """[n, d]: one column."""
        i = self.names.index(name)
        return self.vectors[:, i] if isinstance(self.vectors, Tensor) else self.vectors[i]


class Embedding(nn.Module):
    """Embeds every id of a batch: one gather per width.

    fitted   sizes and columns
    width    of every table whose feature declares no `dim` of its own
    std      initial standard deviation of every table whose feature declares none; 0.01 is the usual choice, a wrong one
             costs more than most architectures give
    blocks   which blocks to embed ("request", "candidate", history names); default all
    forced   give every table this width and std, whatever its feature declares (first-order weights)
    scale    times the widths that features declare, rounded
    ages     embed the age of past events; False for models that do not read it, so that nothing idle is touched
    high     initial values are uniform from 0 to this, whatever `std`; 0: normal
    """

    def __init__(
        self,
        fitted: FittedSchema,
        width: int = 16,
        std: float = 0.01,
        blocks: Sequence[str] | None = None,
        forced: bool = False,
        sparse: bool = True,
        ages: bool = True,
        scale: float = 1.0,
        high: float = 0.0,
    ) -> None:
        super().__init__()
        chosen = {name: cols for name, cols in fitted.blocks() if blocks is None or name in blocks}
        if not ages:
            chosen = {name: _without_age(cols) for name, cols in chosen.items()}
        self.columns: dict[str, Columns] = chosen
        self.order = {name: _schema_order(fitted, cols) for name, cols in chosen.items()}
        used: dict[str, int] = {}
        for cols in chosen.values():
            for table in _tables(cols):
                dim = None if forced else fitted.tables[table].dim
                used[table] = width if dim is None else scaled_width(dim, scale)
        self.widths = used
        self.width = width
        by_width: dict[int, dict[str, int]] = {}
        for table in sorted(used):
            by_width.setdefault(used[table], {})[table] = fitted.tables[table].rows
        declared = {} if forced else {t: s for t in used if (s := fitted.tables[t].std) is not None}
        self.tables = nn.ModuleDict(
            {str(w): Tables(sizes, w, std, sparse, declared, high) for w, sizes in sorted(by_width.items())}
        )
        self.groups = {name: self._id_groups(name) for name in chosen}
        self.counting = False  # note in training how many candidates read each row (`Gradient.readers`)

    def of(self, width: int) -> Tables:
        """The tables of one width."""
        tables = self.tables[str(width)]
        assert isinstance(tables, Tables)
        return tables

    def forward(
        self, batch: Batch, extra: Mapping[str, tuple[str, TensorBlock]] | None = None
    ) -> dict[str, BlockVectors]:
        """Every chosen block embedded, by name.

        extra: more blocks to embed in the same gather, {name: (block whose columns it has, block)}: sampled negatives
        """
        blocks: dict[str, tuple[str, TensorBlock]] = {}
        for name in self.columns:
            source = {"request": batch.request, "candidate": batch.candidate}.get(name)
            blocks[name] = (name, batch.histories[name].events if source is None else source)
        blocks |= dict(extra or {})

        pieces: dict[int, list[Tensor]] = {}
        readers: dict[int, list[Tensor]] = {}
        counting = self.counting and self.training and torch.is_grad_enabled()
        for like, block in blocks.values():
            for width, ids in self._ids(like, block):
                pieces.setdefault(width, []).append(ids)
            if counting:
                for width, counts in self._readers(like, block, readers_of(batch, like)):
                    readers.setdefault(width, []).append(counts)
        found: dict[int, Iterator[Tensor]] = {}
        for width, lookups in pieces.items():
            joined = torch.cat([ids.flatten() for ids in lookups])
            rows = self.of(width)(joined, torch.cat(readers[width]) if counting else None)
            parts = rows.split_with_sizes([ids.numel() for ids in lookups])
            found[width] = iter([part.view(*ids.shape, width) for part, ids in zip(parts, lookups, strict=True)])
        return {name: self._assemble(like, block, found) for name, (like, block) in blocks.items()}

    def _id_groups(self, like: str) -> list[tuple[int, list[int], list[int]]]:
        """(width, columns, start of each column's table) of a block's single ids."""
        groups: dict[int, tuple[list[int], list[int]]] = {}
        for j, (_, table) in enumerate(self.columns[like].ids):
            width = self.widths[table]
            columns, starts = groups.setdefault(width, ([], []))
            columns.append(j)
            starts.append(self.of(width).start[table])
        return [(w, columns, starts) for w, (columns, starts) in groups.items()]

    def _ids(self, like: str, block: TensorBlock) -> list[tuple[int, Tensor]]:
        """(width, positions in the weight) of every lookup of a block, in the order `_assemble` consumes them."""
        out = []
        for width, columns, starts in self.groups[like]:
            every = columns == list(range(block.ids.shape[1]))
            ids = block.ids if every else block.ids[:, columns]
            out.append((width, ids + torch.tensor(starts, dtype=torch.int64, device=ids.device)))
        for column in self.columns[like].lists:
            lists = block.lists[column.name]
            width = self.widths[column.table]
            out.append((width, lists.ids[:, 0] + self.of(width).start[column.table]))
            if column.ranks is not None:
                out.append((width, lists.ids[:, 1] + self.of(width).start[column.ranks]))
        return out

    def _readers(self, like: str, block: TensorBlock, per_row: Tensor) -> Iterator[tuple[int, Tensor]]:
        """(width, float32 [n]) of every lookup that `_ids` gives, flattened: how many candidates read it.

        per_row  of the block's rows; a distinct list is read by the candidates of all rows that have it
        """
        for width, columns, _ in self.groups[like]:
            yield width, per_row.repeat_interleave(len(columns))
        for column in self.columns[like].lists:
            lists = block.lists[column.name]
            per_list = per_row.new_zeros(lists.lengths.shape[0]).index_add_(0, lists.index, per_row)
            per_entry = per_list.index_select(0, lists.segments)
            width = self.widths[column.table]
            yield width, per_entry
            if column.ranks is not None:
                yield width, per_entry

    def _assemble(self, like: str, block: TensorBlock, found: Mapping[int, Iterator[Tensor]]) -> BlockVectors:
        cols = self.columns[like]
        by_name: dict[str, Tensor] = {}
        entries_of: dict[str, Tensor] = {}
        groups = self.groups[like]
        if len(groups) == 1 and not cols.lists:
            return BlockVectors(self.order[like], next(found[groups[0][0]]))  # ids are already in schema order
        for width, columns, _ in groups:
            vectors: Tensor = next(found[width])
            for k, j in enumerate(columns):
                by_name[cols.ids[j][0]] = vectors[:, k]
        for column in cols.lists:
            width = self.widths[column.table]
            entries: Tensor = next(found[width])
            if column.ranks is not None:
                entries = entries + next(found[width])
            lists, entries_of[column.name] = block.lists[column.name], entries
            by_name[column.name] = pool(entries, lists, column).index_select(0, lists.index)
        order = self.order[like]
        vectors_in_order = tuple(by_name[name] for name in order)
        if len({v.shape[1] for v in vectors_in_order}) == 1:
            return BlockVectors(order, torch.stack(vectors_in_order, dim=1), entries_of)
        if not vectors_in_order:
            return BlockVectors(order, block.numbers.new_zeros((block.ids.shape[0], 0, self.width)))
        return BlockVectors(order, vectors_in_order, entries_of)


def readers_of(batch: Batch, block: str) -> Tensor:
    """float32 [n]: how many of the batch's candidates read each row of a block; a request's own and its events all of its."""
    of_candidate = torch.ones(batch.N, device=batch.request_of.device)
    if block == "candidate":
        return of_candidate
    of_request = of_candidate.new_zeros(batch.R).index_add_(0, batch.request_of, of_candidate)
    return of_request if block == "request" else of_request.index_select(0, batch.histories[block].segments)


def pool(entries_MD: Tensor, lists: TensorLists, column: ListColumn) -> Tensor:
    """[M, D] -> [L, D]: every distinct list pooled once."""
    count = lists.lengths.shape[0]
    if lists.weights is not None:
        weights = lists.weights.unsqueeze(1)
        entries_MD = entries_MD * weights
        if column.pooling == "mean":
            total = segment_sum(weights.abs(), lists.segments, count)
            return segment_sum(entries_MD, lists.segments, count) / total.clamp(min=1e-12)
    match column.pooling:
        case "sum":
            return segment_sum(entries_MD, lists.segments, count)
        case "mean":
            return segment_mean(entries_MD, lists.segments, count)
        case _:
            return segment_max(entries_MD, lists.segments, count)


def _tables(cols: Columns) -> list[str]:
    names = [table for _, table in cols.ids]
    for column in cols.lists:
        names += [column.table] + ([column.ranks] if column.ranks else [])
    return names


def _without_age(cols: Columns) -> Columns:
    return replace(cols, ids=cols.ids[:-1]) if cols.ids and cols.ids[-1][0] == "age" else cols


def _schema_order(fitted: FittedSchema, cols: Columns) -> tuple[str, ...]:
    """Names of a block's embedded columns in the order of the schema (a history's age last)."""
    names = [name for name, _ in cols.ids]
    if not cols.lists:
        return tuple(names)
    declared = {name: i for i, name in enumerate(n for f in fitted.schema.features for n in field_names(f))}
    return tuple(sorted([*names, *(c.name for c in cols.lists)], key=lambda n: declared.get(n, len(declared))))


assert FIRST == 3  # the layout of every table: padding, out of vocabulary, missing, values
