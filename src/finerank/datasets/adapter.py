"""A public data set: raw files as published -> samples, events and a recipe. One module of `finerank.datasets` each.

An adapter reads a folder of raw files and writes, with `Converted.write`, a folder that `finerank train` takes as it is:

    samples.parquet   one row per candidate          recipe.toml    a sensible recipe for the data set's usual protocol
    events.parquet    one row per event, if any      counts.json    lines read, kept, and dropped by reason; the protocol
    models.toml       changes to the recipe by name: models with published settings (`finerank bench --variants`), if any

Lines that are unknown, malformed or cut are counted by reason, never passed over in silence.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import polars as pl

import finerank.datasets
from finerank.data.folders import vacant, whole_or_nothing
from finerank.data.source import sink
from finerank.errors import UserError, nearest
from finerank.typed import to_toml


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What an adapter made of the raw files.

    recipe    TOML text; its samples and events are "samples.parquet" and "events.parquet"
    models    TOML text: a table per model with the settings that were published for it; see `published`
    counts    lines by what became of them: {"read": 100, "kept": 98, "malformed": 2, ...}
    notes     sentences for the reader: the protocol, and any oddity (a reproduction mode that looks into the future); they
              go into the recipe (data.notes), and so into the report of every run
    room      where what the lazy frames read lies, until nobody has this any more
    """

    samples: pl.DataFrame | pl.LazyFrame
    recipe: str
    events: pl.DataFrame | pl.LazyFrame | None = None
    models: str | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    room: tempfile.TemporaryDirectory[str] | None = None

    def write(self, folder: Path) -> None:
        """Write the folder, whole or not at all.

        Raises UserError if it exists and is not empty, the disk is full, or no row is left to write.
        """
        vacant(folder)
        with whole_or_nothing(folder) as partial:
            for name, frame in (("samples", self.samples), ("events", self.events)):
                if frame is not None:
                    sink(frame.lazy(), partial / f"{name}.parquet")
            if not pl.scan_parquet(partial / "samples.parquet").select(pl.len()).collect().item():
                counted = ", ".join(f"{count:,} {what}" for what, count in self.counts.items())
                raise UserError(f"no row is left to train on ({counted}); give more of the log, or another protocol")
            told = {"counts": dict(self.counts), "notes": list(self.notes)}
            (partial / "counts.json").write_text(json.dumps(told, indent=1, ensure_ascii=False), encoding="utf-8")
            (partial / "recipe.toml").write_text(self._noted(), encoding="utf-8")
            if self.models is not None:
                (partial / "models.toml").write_text(self.models, encoding="utf-8")

    def _noted(self) -> str:
        """The recipe with the notes in its [data]."""
        if not self.notes:
            return self.recipe
        before, header, after = self.recipe.partition("[data]\n")
        if not header:
            raise ValueError("the recipe has no line [data] for the notes")
        return before + header + to_toml({"notes": list(self.notes)}) + after


def published(name: str) -> str:
    """The models with published settings of a data set, as TOML text: `models/<name>.toml` beside this module."""
    return (resources.files("finerank.datasets") / "models" / f"{name}.toml").read_text(encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A public data set by name.

    options   a frozen dataclass of its protocol's choices, all with defaults; `--set key=value` amends it
    files     the raw files it looks for in the folder, as published: shown in help and in errors
    convert   (folder of raw files, options) -> Converted; raises UserError for a missing or damaged file
    about     one sentence: what it is, where it comes from, its licence
    """

    name: str
    options: type[Any]
    files: tuple[str, ...]
    convert: Callable[[Path, Any], Converted]
    about: str


_adapters: dict[str, Adapter] = {}


def register(adapter: Adapter) -> Adapter:
    """Registers an adapter under its name."""
    if adapter.name in _adapters:
        raise ValueError(f"data set {adapter.name!r} is registered twice")
    _adapters[adapter.name] = adapter
    return adapter


@cache
def _discover() -> None:
    for module in pkgutil.iter_modules(finerank.datasets.__path__):
        importlib.import_module(f"finerank.datasets.{module.name}")


def names() -> list[str]:
    """All data sets."""
    _discover()
    return sorted(_adapters)


def adapters() -> list[Adapter]:
    """All data sets, by name."""
    return [_adapters[name] for name in names()]


def adapter(name: str) -> Adapter:
    """The adapter of this name; an unknown name is an error that lists the known ones."""
    _discover()
    if name not in _adapters:
        raise UserError(f"no data set {name!r}; {nearest(name, _adapters)}")
    return _adapters[name]
