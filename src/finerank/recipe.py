"""recipe.toml <-> typed configuration. One file describes a run; every error names the key, what it got and what it takes.

[data]          samples, events (files; validation and test too, where they are files of their own), or
                dataset = {kind = "online_retail"}; [data.keys], [data.split]
[[data.label]]  kind, name, window, ...    (data.outcomes.Label)
[data.negatives]  count, law, exclude, ... (data.positives.Negatives)
[[feature]]     kind, name, level, ...     (schema.Feature)
[[history]]     name, fields, ...          (schema.History)
[[task]]        name, column, ...          (schema.Task)
[model]         name, or representation and interactions   (models.registry.parse)
[training]      training.options.TrainingOptions
[tune]          key = {low, high, ...}     (search.space; read by `finerank tune` alone)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import InitVar, dataclass, field, fields, replace
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar, Literal

import polars as pl

from finerank.data.asof import AsOf, add_as_of
from finerank.data.outcomes import Amount, Conversion, Dwell, Label, add_labels, only, user_days
from finerank.data.positives import Negatives, Roles, with_negatives
from finerank.data.prepare import Keys
from finerank.data.source import LOOKED_AT, blocks, files_of, scan
from finerank.data.split import Split
from finerank.errors import UserError, nearest
from finerank.models.registry import Composition, parse
from finerank.schema import Cross, Feature, History, Numeric, Schema, Task, column_of, source_columns
from finerank.training.options import TrainingOptions
from finerank.training.stages import amended
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
    notes              what a reader of results should know of the rows, such as a protocol that looks into the future: shown
                       in reports; data that differ in notes alone are the same

    A log of behaviours becomes samples in these steps, in this order; each is left out unless it is asked for:

    where       only rows of the samples whose columns equal these values, e.g. {event = "impression"}
    rows        user_day: the last row of each user on each day, for labels of retention
    label       labels made from what happened after the row (`data.outcomes`), each of the kind conversion, amount, dwell
                or retention; a [[task]] then names the column that it makes
    snapshot    when the logs were cut, for labels: a number in keys.time_unit or an ISO 8601 text; left out: the last
                time in samples and log. Rows whose window is still open then have no label
    utc_offset  hours that the days' beginning differs from the times' own clock (8: at 16:00 of it)
    negatives   for samples that hold positives only: candidates drawn beside them (`data.positives`)
    """

    samples: str | None = None
    validation: str | None = None
    test: str | None = None
    events: str | None = None
    dataset: OnlineRetail | None = None
    tables: tuple[AsOf, ...] = ()
    notes: tuple[str, ...] = ()
    keys: Keys = Keys()
    split: Split = Split()
    where: Mapping[str, str | int | bool] = field(default_factory=dict)
    rows: Literal["all", "user_day"] = "all"
    label: tuple[Label, ...] = ()
    snapshot: str | int | None = None
    utc_offset: float = 0.0
    negatives: Negatives | None = None

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
        if self.keys.time is None and any(t.known_at is not None for t in self.tables):
            raise UserError("tables with known_at are joined as of the row's time, so they need keys.time")
        if self.dataset is not None and (self.where or self.rows != "all" or self.label or self.negatives):
            raise UserError("where, rows, label and negatives make samples out of files; a known data set has its own")
        for label in self.label:
            if label.file is None and self.events is None and not (isinstance(label, Dwell) and label.column):
                raise UserError(f"label {label.name!r} reads a log: give events, or the label a file of its own")


@dataclass(frozen=True, kw_only=True)
class _File:
    """A recipe file. [model] is read by the registry, which knows the parts, and [tune] by `search.space`."""

    data: DataOptions
    feature: tuple[Feature, ...]
    history: tuple[History, ...] = ()
    task: tuple[Task, ...] = (Task(name="label"),)
    training: TrainingOptions = TrainingOptions()
    model: Any = None
    tune: Any = None


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
            label=tuple(replace(label, file=anchored(label.file)) for label in data.label),
        )
        object.__setattr__(self, "data", data)
        training = replace(self.training, warm_start=anchored(self.training.warm_start))
        object.__setattr__(self, "training", training)
        self._keep_labels_out()
        for stage in self.model.stages:
            amended(self.training, stage)  # a key that [training] does not take

    def _keep_labels_out(self) -> None:
        """Raises UserError for an input of the row that reads what a label is made of or made to be."""
        later = {column: label.name for label in self.data.label for column in label.made}
        later |= {d.column: d.name for d in self.data.label if isinstance(d, Dwell) and d.column is not None}
        later |= {self.data.negatives.label: "negatives"} if self.data.negatives else {}
        for feature in self.schema.features:
            for column in source_columns(feature) if feature.level != "event" and feature.use == "input" else ():
                if column in later:
                    raise UserError(
                        f"feature {feature.name!r} reads the column {column!r}, which belongs to the label {later[column]!r} "
                        'and is not known when a row is scored; drop it, or use = "train_only"'
                    )

    @staticmethod
    def read(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
        """The recipe in a TOML file, with each override ("training.epochs=3") set."""
        table = apply_overrides(read_toml(path), overrides)
        return Recipe.parse(table, Path(path).parent, str(path))

    @staticmethod
    def parse(table: Mapping[str, Any], folder: Path = Path("."), where: str = "recipe") -> Recipe:
        """The recipe in a nested dict, as TOML gives it."""
        unknown = [key for key in table if key not in {f.name for f in fields(_File)}]
        if not unknown and not isinstance(table.get("model"), Mapping):
            raise UserError(f'{where}.model: missing; accepted: a table, for example [model] with name = "din"')
        file = build(_File, table, where)
        if not file.feature:
            raise UserError(f"{where}.feature: is empty; declare at least one [[feature]]")
        try:
            schema = Schema(features=file.feature, histories=file.history, tasks=file.task)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        return Recipe(
            data=file.data,
            schema=schema,
            model=parse(file.model, f"{where}.model"),
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

    def data_part(self) -> dict[str, Any]:
        """What prepared data depend on, of `resolved`. Not the notes: they say something of the rows and change none."""
        resolved = self.resolved()
        resolved["data"].pop("notes")
        return {key: resolved[key] for key in ("data", "feature", "history", "task")}

    def toml(self) -> str:
        """`resolved` as TOML text."""
        return to_toml(self.resolved())

    def files(self) -> list[Path]:
        """The files of samples, events and tables as they are there now, folders and patterns expanded."""
        data = self.data
        given = (data.samples, data.validation, data.test, data.events, *(t.file for t in (*data.tables, *data.label)))
        return [file for name in given if name is not None for file in files_of(Path(name)) or [Path(name)]]

    def sources(self, tell: Callable[[str], None] = lambda note: None) -> tuple[pl.LazyFrame, pl.LazyFrame | None]:
        """(samples, events), lazily. tell: told what a reader of results should know, such as a law that knows the future."""
        data = self.data
        if data.dataset is not None:
            from finerank.datasets.online_retail import online_retail

            made = online_retail(data.dataset.task, data.dataset.negatives, data.dataset.seed)
            return self._with_tables(made.samples.lazy()), made.events.lazy()
        assert data.samples is not None
        text = self._text_columns()
        found = scan(data.samples, text) if data.test is None else self._parts(text)
        samples = self._made(found, tell)
        return self._with_tables(samples), scan(data.events, text) if data.events else None

    def sources_in(
        self, samples: Path | str, events: Path | str | None = None
    ) -> tuple[pl.LazyFrame, pl.LazyFrame | None]:
        """(samples, events) of other files, read as this recipe reads its own; their rows are candidates already."""
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

    def _made(self, samples: pl.LazyFrame, tell: Callable[[str], None]) -> pl.LazyFrame:
        """Rows chosen, labels made, negatives drawn: see `DataOptions`."""
        data = self.data
        if data.where:
            samples = _kept(samples, data.where)
        if data.rows == "user_day":
            samples = user_days(samples, data.keys, data.utc_offset)

        def log(file: str | None) -> pl.LazyFrame:
            return scan(file or data.events or "", self._text_columns())

        samples = add_labels(samples, data.label, log, data.keys, data.snapshot, data.utc_offset)
        if data.negatives is not None:
            samples = with_negatives(samples, data.negatives, data.keys, self._roles(data.negatives), tell)
        return samples

    def _roles(self, negatives: Negatives) -> Roles:
        """What the columns of a log of positives are."""
        data, schema = self.data, self.schema
        request = {c for f in schema.features if f.level == "request" for c in source_columns(f)}
        request |= {c for h in schema.histories for c in h.list_columns.values()} | {t.key for t in data.tables}
        request |= {data.split.column} if data.split.by == "column" else set()
        request |= {data.keys.sequence} if data.keys.sequence else set()
        candidate = {
            c for f in schema.features if f.level == "candidate" and not isinstance(f, Cross) for c in source_columns(f)
        }
        candidate = (candidate | {negatives.item}) - request
        joined = {c for t in data.tables for c in t.columns}
        for feature in schema.features:
            for column in feature.of if isinstance(feature, Cross) and feature.level == "candidate" else ():
                if column not in candidate | request | joined:
                    raise UserError(
                        f"feature {feature.name!r} crosses {column!r}, and negatives are drawn: is it the request's or the "
                        "item's? Declare a feature of that column with its level"
                    )
        positive = {t.column or t.name for t in schema.tasks} | {c for label in data.label for c in label.made}
        weight = {t.weight for t in schema.tasks if t.weight is not None}
        return Roles(
            candidate=candidate,
            positive=positive - {negatives.label},
            weight=weight,
            request=request - {negatives.item},
        )

    def _with_tables(self, samples: pl.LazyFrame) -> pl.LazyFrame:
        for table in self.data.tables:
            versions = scan(table.file, self._text_columns())
            samples = add_as_of(samples, versions, table, self.data.keys.time, self.data.keys.time_unit)
        return samples

    def _text_columns(self) -> set[str]:
        """Columns that a file of text must not turn into numbers: ids, whatever they look like."""
        out: set[str] = set()
        for feature in self.schema.features:
            if not isinstance(feature, Numeric) and feature.kind != "bucketed":
                out |= set(feature.of) if isinstance(feature, Cross) else {column_of(feature)}
        for history in self.schema.histories:
            out |= set(history.columns.values()) | set(history.list_columns.values())
        out |= {key for key in (self.data.keys.user, self.data.keys.request) if key is not None}
        out |= {t.key for t in self.data.tables} | ({self.data.negatives.item} if self.data.negatives else set())
        out |= {c for label in self.data.label if isinstance(label, Conversion | Amount) for c in label.on}
        return out - {t.column or t.name for t in self.schema.tasks}


def _kept(samples: pl.LazyFrame, where: Mapping[str, str | int | bool]) -> pl.LazyFrame:
    """The rows that `where` keeps. Raises UserError if it keeps none, which would later look like an empty file."""
    found = only(samples, where, "samples")
    if not any(block.height for block in blocks(found, where, 1, "samples")):  # ends at the first row that is kept
        head = next((block for block in blocks(samples, where, LOOKED_AT, "samples") if block.height), None)
        if head is not None:
            held = [
                f"{c} holds for example {', '.join(map(repr, head[c].unique(maintain_order=True)[:5]))}" for c in where
            ]
            raise UserError(
                f"samples: where = {dict(where)} keeps no row; in the first rows {', and '.join(held)}. Mend data.where, or "
                "leave it out to keep every row"
            )
    return found


def variants(base: Mapping[str, Any], file: Path, only: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """A recipe with each change that a TOML file names, as tables by name.

    file  a table per name: [name.training] amends the recipe's, key by key; whatever else it has replaces the recipe's
    only  these names; none: all
    Raises UserError for an entry that is no table, and for a name that is not there.
    """
    named = read_toml(file)
    for name, changes in named.items():
        if not isinstance(changes, Mapping):
            raise UserError(f"{file}: {name} is no table; accepted: [name] with model = ..., training = ...")
    only = list(only)
    if unknown := [name for name in only if name not in named]:
        raise UserError(f"--only {unknown[0]}: {file} has no such table; {nearest(unknown[0], named)}")
    out: dict[str, dict[str, Any]] = {}
    for name in only or named:
        out[name] = {**base, **named[name]}
        mine, given = base.get("training", {}), named[name].get("training")
        if isinstance(mine, Mapping) and isinstance(given, Mapping):
            out[name]["training"] = {**mine, **given}
    return out
