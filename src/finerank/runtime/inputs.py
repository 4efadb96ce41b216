"""The inputs of a served graph: fixed names, fixed order, no structures, segment ids and never offsets.

    request.ids [R, F_u] · request.numbers [R, C_u] · candidate.ids [N, F_i] · candidate.numbers [N, C_i] · request_of [N]
    per history h: h.ids [T, F] · h.numbers [T, C] · h.segments [T] · h.positions [T] · h.ages [T] (microseconds) ·
    h.lengths [R] · h.pair_candidate [P] · h.pair_event [P]
    noise.request, noise.candidate   [R, ..], [N, ..] where the model draws its scores (`runtime.noise`)
    per list column c of a block b: b.c.index [n] · b.c.ids [M, 1 or 2] · b.c.weights [M] · b.c.segments [M] · b.c.lengths [L]

The exporter and the scorer both read this, so that what is traced is what is fed. Train-only columns have no input.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from finerank.errors import UserError
from finerank.runtime.blocks import Block
from finerank.runtime.noise import Noise
from finerank.schema import Columns

A = TypeVar("A")


@dataclass(frozen=True, kw_only=True)
class Input:
    """One input: its name, its dtype, and a letter or a number for each axis (letters vary from call to call)."""

    name: str
    dtype: Literal["int64", "float32"] = "int64"
    axes: tuple[str | int, ...]


def inputs_of(
    request: Columns, candidate: Columns, histories: Mapping[str, Columns], noise: Noise | None = None
) -> tuple[Input, ...]:
    """All inputs that a graph over these columns may have, in the declared order. Columns of width 0 have none.

    Raises UserError where the schema's names would give two inputs one name.
    """
    out = [*_block_inputs("request", request, "R"), *_block_inputs("candidate", candidate, "N")]
    out.append(Input(name="request_of", axes=("N",)))
    for name, columns in histories.items():
        out += history_inputs(name, columns)
    for side, width in noise.widths().items() if noise is not None else ():
        out.append(Input(name=f"noise.{side}", dtype="float32", axes=("R" if side == "request" else "N", width)))
    twice = [name for name, count in Counter(i.name for i in out).items() if count > 1]
    if twice:
        raise UserError(
            f"export: two inputs of the graph would be named {twice[0]!r}; give the history it begins with another name "
            "('request', 'candidate' and 'noise' are taken)"
        )
    return tuple(out)


def history_inputs(name: str, columns: Columns) -> list[Input]:
    """The inputs of one history."""
    return [
        *_block_inputs(name, columns, f"T {name}"),
        Input(name=f"{name}.segments", axes=(f"T {name}",)),
        Input(name=f"{name}.positions", axes=(f"T {name}",)),
        Input(name=f"{name}.ages", axes=(f"T {name}",)),
        Input(name=f"{name}.lengths", axes=("R",)),
        Input(name=f"{name}.pair_candidate", axes=(f"P {name}",)),
        Input(name=f"{name}.pair_event", axes=(f"P {name}",)),
    ]


def history_of(name: str, histories: Iterable[str]) -> str | None:
    """The history that `history` or `history.field` speaks of (the longest that fits), None for none."""
    return max((h for h in histories if name == h or name.startswith(f"{h}.")), key=len, default=None)


def _block_inputs(name: str, columns: Columns, axis: str) -> list[Input]:
    out = []
    if columns.ids:
        out.append(Input(name=f"{name}.ids", axes=(axis, len(columns.ids))))
    if columns.numbers:
        out.append(Input(name=f"{name}.numbers", dtype="float32", axes=(axis, len(columns.numbers))))
    for c in columns.lists:
        at = f"{name}.{c.name}"
        out.append(Input(name=f"{at}.index", axes=(axis,)))
        out.append(Input(name=f"{at}.ids", axes=(f"M {at}", 2 if c.ranks else 1)))
        if c.weighted:
            out.append(Input(name=f"{at}.weights", dtype="float32", axes=(f"M {at}",)))
        out.append(Input(name=f"{at}.segments", axes=(f"M {at}",)))
        out.append(Input(name=f"{at}.lengths", axes=(f"L {at}",)))
    return out


def named_arrays(name: str, block: Block[A]) -> dict[str, A]:
    """A block's arrays (or tensors) by the names of their inputs."""
    found = {f"{name}.ids": block.ids, f"{name}.numbers": block.numbers}
    for column, lists in block.lists.items():
        at = f"{name}.{column}"
        found |= {f"{at}.index": lists.index, f"{at}.ids": lists.ids}
        if lists.weights is not None:
            found[f"{at}.weights"] = lists.weights
        found |= {f"{at}.segments": lists.segments, f"{at}.lengths": lists.lengths}
    return found
