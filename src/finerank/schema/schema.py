"""All declarations of a data set together."""

from __future__ import annotations

from dataclasses import dataclass

from finerank.errors import UserError, nearest
from finerank.schema.features import (
    Bucketed,
    Cross,
    Feature,
    Level,
    MultiValued,
    Numeric,
    Use,
    column_of,
    field_names,
    source_columns,
)
from finerank.schema.history import History
from finerank.schema.task import Task


@dataclass(frozen=True, kw_only=True)
class Schema:
    """All declarations of a data set, checked against each other. Order is meaning: fields keep the order given."""

    features: tuple[Feature, ...]
    histories: tuple[History, ...] = ()
    tasks: tuple[Task, ...] = (Task(name="label"),)

    def __post_init__(self) -> None:
        self._check_names()
        for history in self.histories:
            self._check_history(history)
            self._check_events_of_lists(history)
        self._check_tasks()
        self._check_labels_are_no_inputs()
        self._check_tables()

    def _check_names(self) -> None:
        for what, names in (
            ("feature", [f.name for f in self.features]),
            ("field", [name for f in self.features for name in field_names(f)]),
            ("history", [h.name for h in self.histories]),
            ("task", [t.name for t in self.tasks]),
        ):
            twice = sorted({n for n in names if names.count(n) > 1})
            if twice:
                raise UserError(f"schema: {what} {twice[0]!r} is declared twice; names must differ")
            for name in names:  # histories and tables are folders on disk
                if not name or name.startswith(".") or "/" in name or "\\" in name or "\0" in name:
                    raise UserError(f"schema: {what} {name!r}: a name is not empty, has no slash and no dot in front")
        if not self.tasks:
            raise UserError("schema: no task; declare at least one [[task]] with a label column")

    def _check_labels_are_no_inputs(self) -> None:
        """A model that reads the answer is perfect until it is served. Of past events it may: they are over."""
        labels = {task.column or task.name: task.name for task in self.tasks}
        for feature in self.features:
            for column in source_columns(feature):
                if column in labels and feature.use == "input" and feature.level != "event":
                    raise UserError(
                        f"feature {feature.name!r}: its column {column!r} is the label of task {labels[column]!r}, so the "
                        "model would read the answer; remove the feature, or declare it at level 'event' for the past"
                    )

    def _check_history(self, history: History) -> None:
        if history.name in ("request", "candidate"):
            raise UserError(f"history {history.name!r}: the name is taken by a level; name it after its events")
        for name in history.fields:
            feature = self.field(history, name)
            if name == "age":
                raise UserError(f"history {history.name!r}: a field may not be called 'age': that is the event's age")
            if feature.use != "input":
                raise UserError(
                    f"history {history.name!r}: field {name!r} has use {feature.use!r}; what must not reach the graph "
                    "cannot be part of the past either; accepted: features with use = 'input'"
                )
            if isinstance(feature, Cross) or feature.level == "request":
                raise UserError(
                    f"history {history.name!r}: field {name!r} is a {feature.level}-level {feature.kind}; accepted: "
                    "event-level features and candidate features that are not crosses"
                )
        for where, given in (("columns", history.columns), ("lists", history.lists)):
            for name in given:
                if name not in history.fields:
                    raise UserError(
                        f"history {history.name!r}: {where} names {name!r}; {nearest(name, history.fields)}"
                    )
        if history.lists and set(history.lists) != set(history.fields):
            raise UserError(f"history {history.name!r}: lists must name a column for each of {list(history.fields)}")
        weighted = [n for n in history.fields if getattr(self.feature(n), "weights", None) is not None]
        if set(history.weights) != set(weighted if history.lists else ()):
            raise UserError(
                f"history {history.name!r}: weights names columns for {sorted(history.weights)}; accepted: beside lists "
                f"one for each weighted field, here {weighted if history.lists else 'none, for there are no lists'}"
            )

    def _check_events_of_lists(self, history: History) -> None:
        """One event column is one list column: a request's events are read by event column."""
        seen: dict[str, tuple[str, str]] = {}
        for name in history.fields if history.lists else ():
            feature = self.feature(name)
            reads = {history.columns.get(name, column_of(feature)): history.lists[name]}
            if isinstance(feature, MultiValued) and feature.weights is not None:
                reads[feature.weights] = history.weights[name]
            for column, at in reads.items():
                other, before = seen.setdefault(column, (name, at))
                if before != at:
                    raise UserError(
                        f"history {history.name!r}: fields {other!r} and {name!r} both read {column!r} of an event, but "
                        f"lists of their own, {before!r} and {at!r}; tell them apart by `columns` of the history"
                    )

    def _check_tasks(self) -> None:
        """A task lives within one that is declared before it."""
        names = [t.name for t in self.tasks]
        for i, task in enumerate(self.tasks):
            if task.within is not None and task.within not in names[:i]:
                raise UserError(
                    f"task {task.name!r}: within = {task.within!r} must be a task declared before it; "
                    f"{nearest(task.within, names[:i])}"
                )

    def _check_tables(self) -> None:
        """Features that share a table agree on what its rows mean."""
        sharers: dict[str, tuple[str, object]] = {}
        scales: dict[str, tuple[str, float]] = {}
        for feature in self.features:
            if isinstance(feature, Numeric):
                continue
            if feature.std is not None:
                by, std = scales.setdefault(feature.table or feature.name, (feature.name, feature.std))
                if std != feature.std:
                    raise UserError(
                        f"features {by!r} and {feature.name!r} share the table {feature.table or feature.name!r}, but one says "
                        f"std = {std} and the other {feature.std}; leave it to one of them, or make them equal"
                    )
            made = (feature.cuts, feature.law, feature.buckets) if isinstance(feature, Bucketed) else feature.encoding
            meaning = (made, feature.dim)
            first, known = sharers.setdefault(feature.table or feature.name, (feature.name, meaning))
            if known != meaning:
                raise UserError(
                    f"features {first!r} and {feature.name!r} share the table {feature.table or feature.name!r} but not "
                    "their encoding and dim; make them equal or name another table"
                )

    def feature(self, name: str) -> Feature:
        """The feature of this name."""
        for feature in self.features:
            if feature.name == name:
                return feature
        raise UserError(f"no feature {name!r} in the schema; {nearest(name, [f.name for f in self.features])}")

    def history(self, name: str) -> History:
        """The history of this name."""
        for history in self.histories:
            if history.name == name:
                return history
        raise UserError(f"no history {name!r} in the schema; {nearest(name, [h.name for h in self.histories])}")

    def task(self, name: str) -> Task:
        """The task of this name."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise UserError(f"no task {name!r} in the schema; {nearest(name, [t.name for t in self.tasks])}")

    def field(self, history: History, name: str) -> Feature:
        """The feature that a history's field reads its meaning from."""
        known = [f.name for f in self.features]
        if name not in known:
            raise UserError(f"history {history.name!r}: field {name!r} is no feature; {nearest(name, known)}")
        return self.feature(name)

    def at(self, level: Level, *kinds: type, use: Use | None = "input") -> list[Feature]:
        """The features of one level, of the given kinds, in declared order."""
        return [
            f
            for f in self.features
            if f.level == level and (use is None or f.use == use) and (not kinds or isinstance(f, kinds))
        ]
