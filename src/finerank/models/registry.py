"""Names: of parts (for recipes) and of compositions (for people). Registration stands beside what it registers.

Every module of `finerank.models` is imported on first use, so a new file is in the registry, the command line and the
test matrix without touching another file.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, TypeVar, Union, cast

import finerank.models
from finerank.errors import UserError, nearest
from finerank.models import separate
from finerank.models.composition import Heads, Interaction, Model, Part, Representation
from finerank.models.narrow import Narrowing
from finerank.models.stages import Stage
from finerank.schema import Bucketed, Categorical, Cross, FittedSchema, Schema
from finerank.typed import amended, plain
from finerank.typed import build as build_typed

P = TypeVar("P", bound=type[Part])
S = TypeVar("S", bound=type[Stage])

_parts: dict[type[Part], dict[str, type[Part]]] = {Representation: {}, Interaction: {}, Heads: {}}
_stages: dict[str, type[Stage]] = {}
_named: dict[str, Composition] = {}


@dataclass(frozen=True, kw_only=True)
class Composition:
    """A model before it has seen data: options of each part.

    paper       arXiv number or DOI; "" for what has none
    exemptions  checks of the test matrix that do not apply: {check: (reason, the test that replaces it)}
    requires    what a schema must have: "history", "two tasks" (one within the other), "several tasks", "train-only ids",
                "delay" (a number within a task)
    without     fields and histories of the schema that the model is not to see (`narrow.names_of`)
    stages      options of what is trained before it, in order (`models.stages`)
    separate    every output has a representation and interactions of its own: nothing is shared, embeddings included
                (`models.separate`)
    """

    name: str
    representation: Any
    interactions: tuple[Any, ...]
    heads: Any
    paper: str = ""
    requires: tuple[str, ...] = ()
    exemptions: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    stages: tuple[Any, ...] = ()
    separate: bool = False

    @property
    def least_tasks(self) -> int:
        """How many tasks the schema must have."""
        return 3 if "delay" in self.requires else 2 if {"two tasks", "several tasks"} & set(self.requires) else 1

    def table(self) -> dict[str, Any]:
        """The [model] table of a recipe that `parse` reads back."""
        out: dict[str, Any] = {} if self.name == "custom" else {"name": self.name}
        out |= {
            "representation": plain(self.representation),
            "interactions": [plain(o) for o in self.interactions],
            "heads": plain(self.heads),
        }
        if self.stages or (self.name in _named and _named[self.name].stages):
            out["stages"] = [plain(o) for o in self.stages]
        out |= {"without": list(self.without)} if self.without else {}
        return out | {"separate": True} if self.separate else out


def part(cls: P) -> P:
    """Registers a part under its options' `kind`."""
    base = next(b for b in _parts if issubclass(cls, b))
    kind = cls.Options.kind
    if kind in _parts[base]:
        raise ValueError(f"{base.__name__} {kind!r} is registered twice")
    _parts[base][kind] = cls
    return cls


def stage(cls: S) -> S:
    """Registers a stage under its options' `kind`."""
    if cls.Options.kind in _stages:
        raise ValueError(f"stage {cls.Options.kind!r} is registered twice")
    _stages[cls.Options.kind] = cls
    return cls


def named(composition: Composition) -> Composition:
    """Registers a composition under its name."""
    if composition.name in _named:
        raise ValueError(f"model {composition.name!r} is registered twice")
    _named[composition.name] = composition
    return composition


@cache
def _discover() -> None:
    for module in pkgutil.iter_modules(finerank.models.__path__):
        importlib.import_module(f"finerank.models.{module.name}")


def names() -> list[str]:
    """All named compositions."""
    _discover()
    return sorted(_named)


def composition(name: str, where: str = "model") -> Composition:
    """The named composition; an unknown name is an error that lists the known ones."""
    _discover()
    if name not in _named:
        raise UserError(f"{where}.name = {name!r} is not known; {nearest(name, _named)}")
    return _named[name]


def options_of(base: type[Part]) -> Any:
    """The union of the options of all parts of a sort: what a recipe accepts in that place."""
    return Union[_classes(base)]  # noqa: UP007 - built at run time


def _classes(base: type[Part]) -> tuple[Any, ...]:
    _discover()
    return tuple(cls.Options for cls in _parts[base].values())


def stages() -> list[type[Stage]]:
    """All stages, by kind."""
    _discover()
    return [_stages[kind] for kind in sorted(_stages)]


def stage_of(options: Any) -> Stage:
    """The stage that these options describe."""
    return _stages[options.kind](options)


def part_class(base: type[Part], options: Any) -> type[Part]:
    """The class that these options build."""
    return _parts[base][options.kind]


def parse(table: Mapping[str, Any], where: str = "model") -> Composition:
    """A recipe's [model] table -> composition.

    `name` starts from a named composition; `representation`, `interactions`, `heads` replace or amend its parts. A part
    given without `kind` amends the options of the part the composition has; with another `kind` it replaces it. `without`
    names what of the schema is left out; names are checked against the data, by `build`. `separate = true` gives every
    output parts of its own. `stages` is a list of what is trained before ([]: nothing), or a table that amends options by the
    stage's kind.
    """
    table = dict(table)
    known = ("name", "representation", "interactions", "heads", "without", "separate", "stages")
    for key in table:
        if key not in known:
            raise UserError(f"{where}.{key}: unknown key; {nearest(key, known)}")
    if not isinstance(table.get("name", ""), str):
        raise UserError(f"{where}.name: got {table['name']!r}; accepted: a text, one of {', '.join(names())}")
    if "name" not in table and not {"representation", "interactions"} <= set(table):
        raise UserError(f"{where}: give a name ({', '.join(names())}), or a representation and interactions")
    base = composition(table["name"], where) if "name" in table else composition("lr")
    changes: dict[str, Any] = (
        {} if "name" in table else {"name": "custom", "paper": "", "exemptions": {}, "requires": (), "stages": ()}
    )
    if "representation" in table:
        before = base.representation if "name" in table else None
        changes["representation"] = _amend(
            before, table["representation"], _classes(Representation), f"{where}.representation"
        )
    if "heads" in table:
        changes["heads"] = _amend(base.heads, table["heads"], _classes(Heads), f"{where}.heads")
    if "interactions" in table:
        given = table["interactions"]
        if not isinstance(given, list | tuple) or not given:
            raise UserError(f"{where}.interactions: got {given!r}; accepted: a list of at least one interaction")
        known_kinds = {o.kind: o for o in base.interactions}
        changes["interactions"] = tuple(
            _amend(known_kinds.get(_kind(g)), g, _classes(Interaction), f"{where}.interactions[{i}]")
            for i, g in enumerate(given)
        )
    if "stages" in table:
        changes["stages"] = _amended_stages(base.stages if "name" in table else (), table["stages"], f"{where}.stages")
    whole = build_typed(_Whole, {key: table[key] for key in ("without", "separate") if key in table}, where)
    changes |= {key: getattr(whole, key) for key in ("without", "separate") if key in table}
    return replace(base, **changes)


def _amended_stages(before: tuple[Any, ...], given: Any, where: str) -> tuple[Any, ...]:
    """Options of the stages from a recipe: a list names all of them, a table amends those there are."""
    known = {o.kind: o for o in before}
    if isinstance(given, Mapping):
        for kind in given:
            if kind not in known:
                raise UserError(f"{where}.{kind}: the model has no such stage; {nearest(kind, known)}")
        return tuple(_amend(o, given[k], (type(o),), f"{where}.{k}") if k in given else o for k, o in known.items())
    if not isinstance(given, list | tuple):
        raise UserError(
            f"{where}: got {given!r}; accepted: a list of stages ([]: none), or a table of options by stage"
        )
    all_kinds = tuple(cls.Options for cls in stages())
    out = tuple(_amend(known.get(_kind(g)), g, all_kinds, f"{where}[{i}]") for i, g in enumerate(given))
    if twice := {o.kind for o in out if [p.kind for p in out].count(o.kind) > 1}:
        raise UserError(f"{where}: {min(twice)!r} is given twice; accepted: each stage once")
    return out


@dataclass(frozen=True)
class _Whole:
    without: tuple[str, ...] = ()
    separate: bool = False


def _kind(given: Any) -> str:
    if isinstance(given, str):
        return given
    return str(given.get("kind", "")) if isinstance(given, Mapping) else ""


def _amend(before: Any, given: Any, accepted: tuple[Any, ...], where: str) -> Any:
    """Options from a recipe: a text is a kind with its defaults; a table amends `before` when the kind is the same."""
    if isinstance(given, str):
        given = {"kind": given}
    if not isinstance(given, Mapping):
        raise UserError(f"{where}: got {given!r}; accepted: the kind of a part as a text, or a table of its options")
    options: Any = Union[accepted]  # noqa: UP007 - built at run time
    return build_typed(options, amended(before, given), where)


def build(model: Composition, fitted: FittedSchema) -> Model:
    """The composition's parts for a fitted schema. Draws initial values from torch's generator: seed it before."""
    narrow = Narrowing(fitted, model.without) if model.without else None
    fitted = narrow.fitted if narrow else fitted
    refuse(model, fitted.schema)
    make: Any = part_class(Heads, model.heads)
    heads: Heads = make(fitted, model.heads)
    if model.separate:
        nets = [_net(model, fitted, 1) for _ in range(heads.inputs)]
        representation, interactions = separate.side_by_side(fitted, nets)
    else:
        representation, interactions = _net(model, fitted, heads.inputs)
    built = Model(model.name, fitted, representation, interactions, heads, narrow)
    built.table = model.table()
    return built


def refuse(model: Composition, schema: Schema) -> None:
    """Raise UserError for a model that the schema is not enough for, as far as that is known before data are prepared."""
    original = _named.get(model.name, model)
    for needed in model.requires:
        of = _needed_by[needed]
        replaced = getattr(model, of).kind != getattr(original, of).kind  # then what it needed is needed no more
        if not replaced and not _requirements[needed](schema):
            raise UserError(
                f"model {model.name!r} needs {needed} in the schema, and this schema has none; {_remedies[needed]}"
            )
    if model.heads.kind == "tasks" and not model.separate:
        _refuse_outputs(model, len(schema.tasks))


def _refuse_outputs(model: Composition, outputs: int) -> None:
    for options in model.interactions:
        if outputs != 1 and cast(type[Interaction], part_class(Interaction, options)).single:
            raise UserError(
                f"interaction {options.kind!r} gives one output and the heads need {outputs}; use a tower for several tasks, "
                "or separate = true in [model]: a network for each"
            )


def _net(model: Composition, fitted: FittedSchema, outputs: int) -> tuple[Representation, list[Interaction]]:
    _refuse_outputs(model, outputs)
    make: Any = part_class(Representation, model.representation)
    representation: Representation = make(fitted, model.representation)
    interactions: list[Interaction] = []
    for options in model.interactions:
        make = part_class(Interaction, options)
        interactions.append(make(fitted, representation.widths, outputs, options))
    return representation, interactions


_requirements: dict[str, Callable[[Schema], bool]] = {
    "history": lambda schema: bool(schema.histories),
    "two tasks": lambda schema: any(t.within is not None for t in schema.tasks),
    "several tasks": lambda schema: len(schema.tasks) > 1,
    "train-only ids": lambda schema: any(
        f.use == "train_only" and f.level == "candidate" and isinstance(f, Categorical | Bucketed | Cross)
        for f in schema.features
    ),
    "delay": lambda schema: any(t.kind == "regression" and t.within is not None for t in schema.tasks),
}

_remedies = {
    "history": "declare a [[history]] of the user's past events",
    "two tasks": "declare a [[task]] that lives within another (within = its name)",
    "several tasks": "declare a [[task]] for each label, or take a model of one task",
    "train-only ids": 'declare a categorical or bucketed candidate feature with use = "train_only", such as the position',
    "delay": 'declare a [[task]] of kind = "regression" within the conversion: how long it took',
}
_needed_by = {
    "history": "representation",
    "two tasks": "heads",
    "several tasks": "heads",
    "train-only ids": "heads",
    "delay": "heads",
}
