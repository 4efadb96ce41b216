"""recipe.toml <-> typed configuration. One file describes a run; every error names the key, what it got and what it takes.

[data]          samples, events (files; validation and test too, where they are files of their own), or
                dataset = {kind = "online_retail"}; [data.keys], [data.split]
[[feature]]     kind, name, level, ...     (schema.Feature)
[[history]]     name, fields, ...          (schema.History)
[[task]]        name, column, ...          (schema.Task)
[model]         name, or representation and interactions   (models.registry.parse)
[training]      training.options.TrainingOptions
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Mapping
from dataclasses import InitVar, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar, Literal

import polars as pl

from finerank.data.asof import AsOf, add_as_of
from finerank.data.prepare import Keys
from finerank.data.source import scan
from finerank.data.split import Split
from finerank.errors import UserError
from finerank.models.registry import Composition, parse
from finerank.schema import Cross, Feature, History, Numeric, Schema, Task, column_of
from finerank.training.options import TrainingOptions
from finerank.typed import apply_overrides, build, plain, read_toml, to_toml

PART = "·part"  # the column that says from which of three files a row came


@dataclass(frozen=True, kw_only=True)
class OnlineRetail:
    """The data set that is shipped with the package (`datasets/online_retail.py`).

    task       discover: products never bought before · basket: all of an invoice
    negatives  drawn for each positive
    """

    kind: ClassVar[str] = "online_retail"
    task: Literal["discover", "basket"] = "discover"
    negatives: int = 4
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Where the rows come from, who is who in them, and how they are split. Paths are relative to the recipe.

    samples, events    files: one row per candidate; one row per past event
    validation, test   files of these parts, where a data set comes split; samples then is the training part, and no
                       [data.split] is given
    dataset            a known data set instead of files
    keys               who, when and together
    split              what is for training, validation and test
    tables             attributes that change, added to the samples as they were known before each row (`data.asof`)
    """

    samples: str | None = None
    validation: str | None = None
    test: str | None = None
    events: str | None = None
    dataset: OnlineRetail | None = None
    tables: tuple[AsOf, ...] = ()
    keys: Keys = Keys()
    split: Split = Split()

    def __post_init__(self) -> None:
        if (self.samples is None) == (self.dataset is None):
            raise UserError("give either samples (a file) or dataset (a known one), one of the two")
        if (self.validation is None) != (self.test is None) or (self.test is not None and self.samples is None):
            raise UserError("files of parts: give samples (for training), validation and test, all three")
        if self.test is not None:
            given = Split(by="column", column=PART)
            if self.split not in (Split(), given):
                raise UserError("give either files for validation and test, or [data.split], one of the two")
            object.__setattr__(self, "split", given)
        if self.tables and self.keys.time is None:
            raise UserError("tables are joined as of the row's time, so they need keys.time")


@dataclass(frozen=True, kw_only=True)
class _File:
    """The typed part of a recipe file; [model] is read by the registry, which knows the parts."""

    data: DataOptions
    feature: tuple[Feature, ...]
    history: tuple[History, ...] = ()
    task: tuple[Task, ...] = (Task(name="label"),)
    training: TrainingOptions = TrainingOptions()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A run, fully described. Build it in Python, or read it with `Recipe.read`.

    folder  where relative paths start. They are made absolute, so that the recipe as resolved means the same from
            anywhere: also from the run's folder, where it is kept
    """

    data: DataOptions
    schema: Schema
    model: Composition
    training: TrainingOptions = TrainingOptions()
    folder: InitVar[Path] = Path(".")

    def __post_init__(self, folder: Path) -> None:
        def anchored(name: str | None) -> str | None:
            return None if name is None else os.path.abspath(folder / name)

        tables = tuple(replace(t, file=os.path.abspath(folder / t.file)) for t in self.data.tables)
        data = self.data
        parts = {name: anchored(getattr(data, name)) for name in ("samples", "validation", "test")}
        for one, other in combinations(parts, 2):
            if parts[one] is not None and parts[one] == parts[other]:
                raise UserError(f"data.{one} and data.{other} are the same file, {parts[one]}; give each part its own")
        data = replace(
            data,
            samples=parts["samples"],
            validation=parts["validation"],
            test=parts["test"],
            events=anchored(data.events),
            tables=tables,
        )
        object.__setattr__(self, "data", data)

    @staticmethod
    def read(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
        """The recipe in a TOML file, with each override ("training.epochs=3") set."""
        table = apply_overrides(read_toml(path), overrides)
        return Recipe.parse(table, Path(path).parent, str(path))

    @staticmethod
    def parse(table: Mapping[str, Any], folder: Path = Path("."), where: str = "recipe") -> Recipe:
        """The recipe in a nested dict, as TOML gives it."""
        rest = {key: value for key, value in table.items() if key != "model"}
        if not isinstance(table.get("model"), Mapping):
            raise UserError(f'{where}.model: missing; accepted: a table, for example [model] with name = "din"')
        file = build(_File, rest, where)
        if not file.feature:
            raise UserError(f"{where}.feature: is empty; declare at least one [[feature]]")
        try:
            schema = Schema(features=file.feature, histories=file.history, tasks=file.task)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        return Recipe(
            data=file.data,
            schema=schema,
            model=parse(table["model"], f"{where}.model"),
            training=file.training,
            folder=folder,
        )

    def resolved(self) -> dict[str, Any]:
        """Everything that was set, defaults included, as the nested dict that `parse` reads back."""
        return {
            "data": plain(self.data),
            "feature": [plain(f) for f in self.schema.features],
            "history": [plain(h) for h in self.schema.histories],
            "task": [plain(t) for t in self.schema.tasks],
            "model": self.model.table(),
            "training": plain(self.training),
        }

    def toml(self) -> str:
        """`resolved` as TOML text."""
        return to_toml(self.resolved())

    def files(self) -> list[Path]:
        """The files of samples, events and tables as they are there now, patterns expanded."""
        data = self.data
        given = (data.samples, data.validation, data.test, data.events, *(t.file for t in self.data.tables))
        found = [glob.glob(name) or [name] for name in given if name is not None]
        return [Path(name) for names in found for name in sorted(names)]

    def sources(self) -> tuple[pl.LazyFrame, pl.LazyFrame | None]:
        """(samples, events), lazily."""
        data = self.data
        if data.dataset is not None:
            from finerank.datasets.online_retail import online_retail

            made = online_retail(data.dataset.task, data.dataset.negatives, data.dataset.seed)
            return self._with_tables(made.samples.lazy()), made.events.lazy()
        assert data.samples is not None
        if data.test is not None:
            text = self._text_columns()
            return self._with_tables(self._parts(text)), scan(data.events, text) if data.events else None
        return self.sources_in(data.samples, data.events)

    def sources_in(
        self, samples: Path | str, events: Path | str | None = None
    ) -> tuple[pl.LazyFrame, pl.LazyFrame | None]:
        """(samples, events) of other files, read as this recipe reads its own."""
        text = self._text_columns()
        return self._with_tables(scan(samples, text)), scan(events, text) if events else None

    def _parts(self, text: set[str]) -> pl.LazyFrame:
        """The samples of three files, one after the other."""
        data = self.data
        assert data.samples is not None
        assert data.validation is not None
        assert data.test is not None
        files = {"train": data.samples, "validation": data.validation, "test": data.test}
        frames = {name: scan(file, text).with_columns(pl.lit(name).alias(PART)) for name, file in files.items()}
        try:
            whole = pl.concat(frames.values(), how="vertical_relaxed")
            whole.collect_schema()
        except pl.exceptions.PolarsError as error:
            raise UserError(
                f"{data.samples}, {data.validation} and {data.test} do not have the same columns: "
                f"{str(error).splitlines()[0]}"
            ) from error
        return whole

    def _with_tables(self, samples: pl.LazyFrame) -> pl.LazyFrame:
        for table in self.data.tables:
            assert self.data.keys.time is not None
            versions = scan(table.file, self._text_columns())
            samples = add_as_of(samples, versions, table, self.data.keys.time, self.data.keys.time_unit)
        return samples

    def _text_columns(self) -> set[str]:
        """Columns that CSV must not turn into numbers: ids, whatever they look like."""
        out: set[str] = set()
        for feature in self.schema.features:
            if isinstance(feature, Cross):
                out |= set(feature.of)
            elif not isinstance(feature, Numeric) and feature.kind != "bucketed":
                out.add(column_of(feature))
        for history in self.schema.histories:
            out |= set(history.columns.values()) | set(history.lists.values())
        out |= {key for key in (self.data.keys.user, self.data.keys.request) if key is not None}
        out |= {t.key for t in self.data.tables}
        return out - {t.column or t.name for t in self.schema.tasks}
