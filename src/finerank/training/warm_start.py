"""A warm start: a new training begins with what an older run learnt, taken over by name.

Two data sets number the same values differently, so a row of an embedding table goes over by (table, name of the value),
never by its number. What is taken over, and what is not:

    rows 0, 1, 2           padding, out of vocabulary, missing: of every table that both runs have
    a value of both        its row
    a value that is new    starts at the old out-of-vocabulary row plus its own fresh draw, so that equal rows part: what
                           `growing.admit` does for a new id within one run
    growing tables         a value that had a row gets one before the new data are counted, and may be evicted by them
    hashed tables          bucket by bucket, where there are as many buckets (the hash is seeded by the table's name)
    buckets and ages       a bucket of the same two ends is the same value
    dense weights, buffers where name and shape agree; the others start anew, and the report says which and why
    optimiser state        starts anew: means of gradients belong to the rows and the losses of the old data
    calibration            is fitted anew when training is over

Only the best weights, the encoder and the row maps of the old run are read; nothing of it is written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import xxhash

from finerank.data.dataset import Dataset
from finerank.errors import UserError
from finerank.layers.embedding import Tables
from finerank.layers.trees import Trees
from finerank.models.composition import Model
from finerank.models.registry import Composition, build
from finerank.runtime.rows import RowMap
from finerank.runtime.symbols import HashedTable, Int64s, SymbolTable
from finerank.schema import FIRST, OOV, Columns, FittedSchema
from finerank.training.checkpoint import Checkpoints, restore
from finerank.training.growing import admit, load_maps, row_maps
from finerank.training.optimisers import Optimisers

CALIBRATION = "calibration."
BEFORE = -1
"""When the values of the old run count as last seen: before anything of the new data."""


@dataclass(frozen=True)
class Learnt:
    """What a training ended with: the best weights, and the names of their rows (data set, map of growing tables)."""

    model: Model
    dataset: Dataset
    maps: Mapping[str, RowMap]


@dataclass(frozen=True)
class OldRun:
    """A finished run to start from: its folder, its model before it saw data, the data set that it learnt from.

    content  a hash of what is read of it: weights, maps and names
    """

    folder: Path
    composition: Composition
    dataset: Dataset
    content: str

    @staticmethod
    def of(folder: Path, composition: Composition, dataset: Dataset) -> OldRun:
        """Raises UserError where it has no weights."""
        best = folder / "best"
        current = Checkpoints(best).current()
        if current is None:
            raise UserError(f"{best}: no weights here; train that run again")
        encoder = dataset.folder / "encoder"
        files = [best / current / "state.json", encoder / "encoder.json", *sorted(encoder.glob("tables/*/table.json"))]
        content = b"".join(file.read_bytes() for file in files)  # these hold the hashes of all others
        return OldRun(folder, composition, dataset, xxhash.xxh3_128_hexdigest(content))

    @property
    def identity(self) -> dict[str, Any]:
        """What a run that begins with it remembers of it."""
        return {"source": str(self.folder), "content": self.content}

    def learnt(self) -> Learnt:
        """Read it. Raises UserError where its weights are gone, damaged, or of another model than its recipe says."""
        found = Checkpoints(self.folder / "best").load()
        assert found is not None  # `of` saw to it
        parts = found.parts("model", "map")
        model = build(self.composition, self.dataset.fitted)
        restore(model, {k: t for k, t in parts["model"].items() if not k.startswith(CALIBRATION)}, str(found.path))
        maps = row_maps(self.dataset.fitted)
        load_maps(maps, parts["map"])
        return Learnt(model, self.dataset, maps)


@dataclass(frozen=True, kw_only=True)
class TakenTable:
    """One table of one weight.

    there, here  values with a row of their own: in the old run, in the new one; found: of those here, how many were there
    share        of the occurrences in the new training rows that fall on found values
    why          what stood in the way; "" where nothing did
    """

    table: str
    weight: str
    there: int
    here: int
    found: int
    share: float
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What a warm start took over: `warm_start.json` in the run's folder.

    parameters  dense weights and buffers that went over; left: (name, why not); unused: names that only the old run has
    notes       what a reader of results should know
    """

    source: str
    content: str
    tables: tuple[TakenTable, ...]
    parameters: tuple[str, ...]
    left: tuple[tuple[str, str], ...]
    unused: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def write(self, path: Path) -> None:
        """As JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def take_over(old: OldRun, now: Learnt, optimisers: Optimisers, seed: int) -> Taken:
    """Move what `old` learnt into the freshly built model of `now`, whose maps are empty yet, and fill these.

    Raises UserError, before anything is moved, where a table that both have is encoded otherwise or has another width,
    and where nothing at all would go over.
    """
    then = old.learnt()
    every = _counterparts(then.model, now.model)
    pairs = [pair for pair in every if pair.table in now.dataset.fitted.tables]
    parameters, left, unused = _dense(then.model, now.model)
    left += [(pair.weight, "is of a part's own values, which begin anew") for pair in every if pair not in pairs]
    if not parameters and not any(pair.theirs for pair in pairs):
        raise UserError("nothing of that run has a place in this model")
    for pair in pairs:
        _refuse_another_table(pair, then, now)
    for pair in pairs:
        _take_reserved_rows(pair, now)
    _keep_rows(then, now)
    admit(now.maps, now.dataset.fitted, now.model, optimisers, 0, seed)
    tables = tuple(_take_rows(pair, then, now) for pair in pairs)
    here, there = now.model.state_dict(), then.model.state_dict()
    for name in parameters:
        here[name].copy_(there[name])
    optimisers.restart()
    return Taken(
        **old.identity,
        tables=tables,
        parameters=tuple(parameters),
        left=tuple(left),
        unused=tuple(unused),
        notes=tuple(_notes(_seen(then), _seen(now))),
    )


# ------------------------------------------------------------------------------------------------ which table is which


@dataclass(frozen=True)
class _Pair:
    """A table of one weight here, and the tables of the weight there that hold it; None: nothing does, and why."""

    table: str
    weight: str
    mine: Tables
    theirs: Tables | None
    why: str = ""


def _counterparts(then: Model, now: Model) -> list[_Pair]:
    """For every table of every weight: the old weight that holds the table, in the same place of the model if there is
    one, else the only one of its sort (embeddings, first-order weights), as from one model to another."""
    old, first_there, first_here = then.embeddings(), then.first_order(), now.first_order()
    out = []
    for weight, mine in now.embeddings().items():
        first = weight in first_here
        for table in mine.start:
            holding = {n: t for n, t in old.items() if table in t.start and (n in first_there) == first}
            same = [t for n, t in holding.items() if _place(n) == _place(weight)]
            found = same or list(holding.values())
            why = "is new" if not found else "is there more than once" if len(found) > 1 else ""
            if not why and first and found[0].width != mine.width:  # one number per output of another model
                why = f"has {found[0].width} numbers a value there and {mine.width} here"
            out.append(_Pair(table, weight, mine, None if why else found[0], why))
    return out


def _place(weight: str) -> str:
    """A weight's place in the model, without its width: `representation.embed.embedding.tables.16.weight`."""
    return re.sub(r"\.tables\.\d+\.weight$", "", weight)


def _refuse_another_table(pair: _Pair, then: Learnt, now: Learnt) -> None:
    if pair.theirs is None:
        return
    kinds = [_kind(side.dataset.encoder.tables[pair.table]) for side in (then, now)]
    if kinds[0] != kinds[1]:
        raise UserError(
            f"table {pair.table!r} is {kinds[0]} there and {kinds[1]} here, so its rows mean other things; give the feature "
            "the same encoding, or name its table otherwise to begin it anew"
        )
    if pair.theirs.width != pair.mine.width:
        raise UserError(
            f"table {pair.table!r} is {pair.theirs.width} wide there and {pair.mine.width} here; give both the same width "
            "(dim of the feature, width of the model), or name the table otherwise to begin it anew"
        )


def _kind(table: SymbolTable) -> str:
    return f"hashed into {table.buckets:,} buckets" if isinstance(table, HashedTable) else f"a {table.kind} table"


# ------------------------------------------------------------------------------------------------ rows


def _shared(then: SymbolTable, now: SymbolTable) -> tuple[Int64s, Int64s]:
    """The symbols, there and here, of the values that both tables know."""
    if isinstance(now, HashedTable):
        every = np.arange(FIRST, now.size, dtype=np.int64)
        return every, every
    old, new = (pl.DataFrame({"name": table.names}).with_row_index("symbol")[FIRST:] for table in (then, now))
    both = new.join(old, on="name", suffix="_there", maintain_order="left")
    there, here = (both[column].cast(pl.Int64).to_numpy() for column in ("symbol_there", "symbol"))
    return there, here


def _take_reserved_rows(pair: _Pair, now: Learnt) -> None:
    """Padding, out of vocabulary, missing. Values of a fixed table start about the second, as far off as the draw that is there
    (those of a growing table: when `admit` gives them a row)."""
    if pair.theirs is not None:
        old, new = pair.theirs.table(pair.table)[:FIRST], pair.mine.table(pair.table)
        new[:FIRST] = old.to(new.device)
        if pair.table not in now.maps:
            new[FIRST:] += new[OOV] - pair.mine.mean_of(pair.table)


def _keep_rows(then: Learnt, now: Learnt) -> None:
    """Values of growing tables that had a row have one here as well; the most counted first, should room be short."""
    for table, row_map in now.maps.items():
        if table in then.maps:
            there, here = _shared(then.dataset.encoder.tables[table], now.dataset.encoder.tables[table])
            held = then.maps[table].rows_of(there) >= FIRST
            counts = np.maximum(then.maps[table].counts_of(there[held]), row_map.admit_after)
            row_map.observe(here[held], counts, BEFORE)


def _take_rows(pair: _Pair, then: Learnt, now: Learnt) -> TakenTable:
    """The rows of the values that both know."""
    table, fitted = pair.table, now.dataset.fitted.tables[pair.table]
    growing = table in now.maps
    told = TakenTable(
        table=table,
        weight=pair.weight,
        there=0,
        here=now.maps[table].held if growing else fitted.rows - FIRST,
        found=0,
        share=0.0,
        why=pair.why,
    )
    if pair.theirs is None:
        return told
    known = then.dataset.encoder.tables[table]
    there, here = symbols = _shared(known, now.dataset.encoder.tables[table])
    if growing:
        there, here = then.maps[table].rows_of(there), now.maps[table].rows_of(here)
    kept = (there >= FIRST) & (here >= FIRST)
    new = pair.mine.table(table)
    rows = pair.theirs.table(table)[torch.from_numpy(there[kept])]
    new[torch.from_numpy(here[kept]).to(new.device)] = rows.to(new.device)
    counted = symbols[1][kept]
    counted = counted[counted < len(fitted.counts)]  # a growing table knows values that training rows never had
    return replace(
        told,
        there=then.maps[table].held if growing else known.size - FIRST,
        found=int(kept.sum()),
        share=float(fitted.counts[counted].sum() / max(fitted.counts[FIRST:].sum(), 1)),
    )


# ------------------------------------------------------------------------------------------------ everything else


def _dense(then: Model, now: Model) -> tuple[list[str], list[tuple[str, str]], list[str]]:
    """(names that go over, (name, why not), names that only the old model has) of what is no table."""
    old, new = (
        {k: t for k, t in m.state_dict().items() if k not in m.embeddings() and not k.startswith(CALIBRATION)}
        for m in (then, now)
    )
    taken, left = [], []
    grown = tuple(f"{name}." for name, module in now.named_modules() if isinstance(module, Trees))
    for name, tensor in new.items():
        if grown and name.startswith(grown):
            left.append((name, "is grown from the data"))
        elif name not in old:
            left.append((name, "is new"))
        elif old[name].shape != tensor.shape or old[name].dtype != tensor.dtype:
            left.append((name, f"is {list(old[name].shape)} there and {list(tensor.shape)} here"))
        else:
            taken.append(name)
    return taken, left, [name for name in old if name not in new]


def _seen(side: Learnt) -> FittedSchema:
    """What of the data the model sees."""
    return side.model.narrow.fitted if side.model.narrow else side.dataset.fitted


def _notes(then: FittedSchema, now: FittedSchema) -> list[str]:
    """Equal shapes may stand for other fields: said where the fields of a block differ."""
    old = {block: _names(columns) for block, columns in then.blocks()}
    return [
        f"{block}: its fields are {', '.join(_names(columns)) or 'none'}, and were "
        f"{', '.join(old.get(block, [])) or 'none'}; dense weights of equal shape went over all the same, though their "
        "columns may mean other fields"
        for block, columns in now.blocks()
        if _names(columns) != old.get(block, [])
    ]


def _names(columns: Columns) -> list[str]:
    return [*(name for name, _ in columns.ids), *columns.numbers, *(c.name for c in columns.lists)]
