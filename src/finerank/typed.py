"""Typed configuration: plain data (what TOML holds) <-> frozen dataclasses, strictly, with errors that name the key.

    build(Recipe, apply_overrides(read_toml(path), ["training.epochs=3"]))      from a file to a typed object
    to_toml(plain(recipe))                                                     and back, exactly

A dataclass with a `kind: ClassVar[str]` carries it as the key `kind`, which tells the members of a union apart. A table without
`kind` means the kind of the field's default, where that has one.
TOML has no null: None is written by leaving the key out, so a field that may be None has the default None.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import tomllib
import types
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from finerank.errors import UserError, nearest

T = TypeVar("T")

# ------------------------------------------------------------------------------------------------ plain -> typed


def build(cls: type[T], data: object, where: str = "recipe") -> T:
    """A `cls` from plain data, every value checked against its annotation.

    cls    a dataclass whose fields are str, int, float (takes integers), bool, Literal, X | None, tuple[X, ...],
           tuple[X, Y], Mapping[str, X], dataclasses, unions of these (dataclasses told apart by `kind`), or Any
    where  the name of `data` in errors, e.g. ``recipe`` gives ``recipe.feature[2].encoding.min_count: got ...``

    Raises UserError for a value of another type, an unknown or missing key, and for what a `__post_init__` refuses.

    >>> from finerank.schema import Vocabulary
    >>> build(Vocabulary, {"min_count": 3})
    Vocabulary(min_count=3, max_size=None)
    """
    made: T = _convert(cls, data, where)
    return made


def _convert(accepted: Any, value: Any, where: str) -> Any:
    """`value` as the annotation `accepted` wants it."""
    origin, args = get_origin(accepted), get_args(accepted)
    if accepted is Any:
        return value
    if origin in (Union, types.UnionType):
        return _union(accepted, value, where)
    if not _fits(accepted, value):
        raise UserError(f"{where}: got {_got(value)}; accepted: {_name(accepted)}")
    if _is_class(accepted):
        return _instance(accepted, value, where)
    if origin is Literal:
        if value not in args:
            choices = (str(choice) for choice in args)
            raise UserError(f"{where}: got {_got(value)}; {nearest(str(value), choices)}")
        return value
    if origin is tuple:
        kinds = args[:1] * len(value) if args[1:] == (...,) else args
        if len(kinds) != len(value):
            raise UserError(f"{where}: got {_got(value)} of {len(value)} entries; accepted: {_name(accepted)}")
        return tuple(_convert(kind, v, f"{where}[{i}]") for i, (kind, v) in enumerate(zip(kinds, value, strict=True)))
    if origin is not None:  # a mapping
        return {_convert(args[0], k, where): _convert(args[1], v, f"{where}.{_key(k)}") for k, v in value.items()}
    if accepted is float:
        try:
            return float(value)
        except OverflowError:
            raise UserError(f"{where}: got {_got(value)}; accepted: a number below 1.8e308") from None
    return value


def _fits(accepted: Any, value: object) -> bool:
    """Whether `value` has the outer shape of an annotation that is no union; what is inside is checked later."""
    origin = get_origin(accepted)
    if accepted is Any:
        return True
    if _is_class(accepted) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    if origin is tuple:
        return isinstance(value, list | tuple)
    if origin is Literal:
        return type(value) in {type(choice) for choice in get_args(accepted)}
    if accepted is float:
        return type(value) in (int, float)
    if accepted in (str, int, bool, types.NoneType):
        return type(value) is accepted  # True is an int to Python, not to a reader of the recipe
    raise TypeError(f"no plain form for the annotation {accepted!r}")


def _union(accepted: Any, value: Any, where: str) -> Any:
    """The one member of a union that `value` means: by `kind` among dataclasses, by type otherwise."""
    members = [m for m in get_args(accepted) if _fits(m, value)]
    kinds = {_kind(m): m for m in members if _is_class(m) and _kind(m)}
    if isinstance(value, Mapping) and len(kinds) > 1 and len(kinds) == len(members):
        if not isinstance(value.get("kind"), str):
            got = f"got {_got(value['kind'])}" if "kind" in value else "missing"
            raise UserError(f"{where}.kind: {got}; accepted: {', '.join(map(str, kinds))}")
        if value["kind"] not in kinds:
            raise UserError(f"{where}.kind: got {_got(value['kind'])}; {nearest(value['kind'], map(str, kinds))}")
        return _convert(kinds[value["kind"]], value, where)
    if not members:
        raise UserError(f"{where}: got {_got(value)}; accepted: {_name(accepted)}")
    # An exact type first (the int of `float | int`); then, where several fit (tuples of this or that), in turn.
    members.sort(key=lambda m: m is not type(value))
    for member in members[:-1]:
        try:
            return _convert(member, value, where)
        except UserError:
            continue
    return _convert(members[-1], value, where)


def _instance(cls: Any, data: Mapping[str, Any], where: str) -> Any:
    """A dataclass from a table: keys checked first, then values, then what the class itself asks for."""
    fields, kind = _fields(cls), _kind(cls)
    given = dict(data)
    for key, usual in _usual_kinds(cls).items():
        if isinstance(given.get(key), Mapping):
            given[key] = {"kind": usual, **given[key]}
    if kind and given.pop("kind", kind) != kind:
        raise UserError(f"{where}.kind: got {_got(data['kind'])}; accepted: {kind}")
    for key in given:
        if key not in fields:
            raise UserError(f"{where}.{_key(key)}: unknown key; {nearest(key, [*fields, *(['kind'] if kind else [])])}")
    missing = [name for name, (_, needed) in fields.items() if needed and name not in given]
    if missing:
        raise UserError(f"{where}: missing {', '.join(missing)}; accepted: {', '.join(fields)}")
    values = {key: _convert(fields[key][0], value, f"{where}.{key}") for key, value in given.items()}
    try:
        return cls(**values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _is_class(accepted: object) -> bool:
    return isinstance(accepted, type) and dataclasses.is_dataclass(accepted)


@functools.cache
def _fields(cls: Any) -> dict[str, tuple[Any, bool]]:
    """Name -> (annotation, required?) of what the constructor takes."""
    hints = get_type_hints(cls)
    empty = dataclasses.MISSING
    fields = [f for f in dataclasses.fields(cls) if f.init]
    return {f.name: (hints[f.name], f.default is empty and f.default_factory is empty) for f in fields}


@functools.cache
def _usual_kinds(cls: Any) -> dict[str, str]:
    """Field -> the kind of its default value, of fields whose default has one: what a table without `kind` means."""
    defaults: dict[str, Any] = {f.name: type(f.default) for f in dataclasses.fields(cls)}
    return {name: str(_kind(default)) for name, default in defaults.items() if _is_class(default) and _kind(default)}


@functools.cache
def _kind(cls: Any) -> str | None:
    """A class's `kind: ClassVar[str]`; a field named kind is not one."""
    marked = get_origin(get_type_hints(cls).get("kind")) is ClassVar
    return str(cls.kind) if marked else None


_NAMES: dict[Any, str] = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    types.NoneType: "nothing (leave it out)",
}


def _name(accepted: Any) -> str:
    """An annotation in words, for errors."""
    origin, args = get_origin(accepted), get_args(accepted)
    if origin in (Union, types.UnionType):
        kinds = [repr(_kind(a)) for a in args if _is_class(a) and _kind(a)]
        names = ["a table with kind = " + ", ".join(kinds)] if kinds else []
        return " or ".join(dict.fromkeys([*names, *(_name(a) for a in args if not (_is_class(a) and _kind(a)))]))
    if origin is Literal:
        return ", ".join(repr(a) for a in args)
    if origin is tuple:
        each = f"each {_name(args[0])}" if args[1:] == (...,) else ", ".join(map(_name, args))
        return f"an array ({each})"
    if _is_class(accepted):
        kind = _kind(accepted)
        return f"a table with kind = {kind!r}" if kind else f"a table of {', '.join(_fields(accepted))}"
    if origin is not None:
        return f"a table (each value {_name(args[1])})"
    return _NAMES.get(accepted, "anything")


_TYPES = {str: "string", int: "integer", float: "float", bool: "boolean", list: "array", tuple: "array", dict: "table"}


def _got(value: object) -> str:
    """A value and its type as TOML calls it, kept short."""
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    return f"{_short(shown)} ({_TYPES.get(type(value), type(value).__name__)})"


def _short(shown: str) -> str:
    return shown if len(shown) <= 60 else shown[:57] + "..."


# ------------------------------------------------------------------------------------------------ typed -> plain


def plain(value: Any) -> Any:
    """The inverse of `build`: dataclasses become tables (with `kind` where they have one), tuples become lists.

    None is left out. Raises UserError for a None that cannot be left out because the field's default is another value,
    and TypeError for what has no plain form (arrays, tensors, open files).

    >>> from finerank.schema import Vocabulary
    >>> plain(Vocabulary(min_count=3))
    {'kind': 'vocabulary', 'min_count': 3}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = _kind(type(value))
        table: dict[str, Any] = {"kind": kind} if kind else {}
        for field in dataclasses.fields(value):
            content = getattr(value, field.name)
            if field.init and content is not None:
                table[field.name] = plain(content)
            elif field.init and field.default is not None:
                raise UserError(
                    f"{type(value).__name__}.{field.name}: None cannot be written, since TOML has no null and leaving "
                    "the key out means another value; accepted: a value, or a field whose default is None"
                )
        return table
    if isinstance(value, Mapping):
        return {key: plain(content) for key, content in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if type(value) in (str, int, float, bool):
        return value
    raise TypeError(f"{type(value).__name__} has no plain form")


def amended(before: Any, given: Any) -> Any:
    """The plain form of `before` with what is given changed, for `build` to judge. What is not given stays, in tables
    within as well.

    A table of another kind of a union begins anew: it has other keys than the one that stood there. A *field* called kind
    is an option like any other (`_kind` tells them apart), so changing it keeps its neighbours. In what has no type
    (a Mapping of anything) `kind` is taken to tell kinds apart.

    before  a dataclass, or plain data; given: plain data

    >>> from finerank.schema import Hashed, Vocabulary
    >>> amended(Vocabulary(min_count=3), {"max_size": 9})
    {'kind': 'vocabulary', 'min_count': 3, 'max_size': 9}
    >>> amended(Vocabulary(min_count=3), {"kind": "hashed", "buckets": 9})
    {'kind': 'hashed', 'buckets': 9}
    """
    cls: Any = type(before)
    typed = _is_class(cls)
    if not isinstance(given, Mapping) or not (typed or isinstance(before, Mapping)):
        return given
    kind, wanted = _kind(cls) if typed else before.get("kind"), given.get("kind")
    if isinstance(wanted, str) and wanted != kind and (kind or not typed):
        return given
    inner = vars(before) if typed else before
    return plain(before) | {key: amended(inner.get(key), value) for key, value in given.items()}


# ------------------------------------------------------------------------------------------------ TOML


def read_toml(path: str | Path) -> dict[str, Any]:
    """The content of a TOML file. Raises UserError if it cannot be read, with line and column if it is malformed."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; accepted: the path of a TOML file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); accepted: a readable TOML file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    except ValueError as error:  # a syntax error, or an integer of thousands of digits
        raise UserError(f"{path}: not valid TOML: {error}") from error
    except RecursionError:
        raise UserError(f"{path}: nested too deeply; accepted: a few levels of tables and arrays") from None


WIDTH = 100
"""Tables and arrays of tables below the top level stay on one line up to this many characters."""


def to_toml(data: Mapping[str, Any]) -> str:
    """What `plain` gives as TOML text, exactly: ``tomllib.loads(to_toml(d)) == d``. TypeError for other values."""
    return "\n".join(_lines(data, ())).strip("\n") + "\n" if data else ""


def _lines(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    """The lines of one table: its own keys first, since TOML has no way back out of a sub-table, then its tables."""
    own, below = [], []
    for key, value in table.items():
        tables = [value] if isinstance(value, Mapping) else value if _is_tables(value) else None
        line = f"{_key(key)} = {_inline(value)}"
        if tables is None or (path and len(line) <= WIDTH):
            own.append(line)
            continue
        name = ".".join(_key(part) for part in (*path, key))
        header = f"[{name}]" if isinstance(value, Mapping) else f"[[{name}]]"
        for each in tables:
            below += ["", header, *_lines(each, (*path, key))]
    return own + below


def _is_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, Mapping) for entry in value)


def _inline(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)  # the shortest text that reads back as the same double; inf and nan are TOML's words too
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(k)} = {_inline(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    raise TypeError(f"{type(value).__name__} has no TOML form")


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(key, its value in one, in the other) of every key that two tables of `plain` differ in, the first one's order first.

    Keys are those of `--set`, values are TOML, kept short; a key that is missing has the value ``nothing``.

    >>> differences({"training": {"epochs": 3}}, {"training": {"epochs": 4, "clip": 1.0}})
    [('training.epochs', '3', '4'), ('training.clip', 'nothing', '1.0')]
    """
    a, b = dict(_leaves(one, "")), dict(_leaves(other, ""))
    keys = [key for key in {**a, **b} if a.get(key) != b.get(key)]
    return [(key, _short(a.get(key, "nothing")), _short(b.get(key, "nothing"))) for key in keys]


def _leaves(value: Any, at: str) -> Iterator[tuple[str, str]]:
    """(dotted key, value as TOML) of all that is neither a table nor an array of tables."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{at}.{_key(key)}" if at else _key(key))
    elif _is_tables(value):
        for i, inner in enumerate(value):
            name = inner.get("name")
            yield from _leaves(inner, f"{at}.{_key(name)}" if isinstance(name, str) else f"{at}[{i}]")
    else:
        yield at, _inline(value)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _inline(key)


# ------------------------------------------------------------------------------------------------ --set key=value

_STEP = re.compile(r'"([^"]*)"|\[(\d+)\]|([^."\[\]]+)')


def apply_overrides(
    data: Mapping[str, Any], overrides: Iterable[str], example: str = "training.epochs=3"
) -> dict[str, Any]:
    """A copy of `data` with each ``key=value`` set, later ones winning: the `--set` of the command line.

    The value is read as a TOML value and, where it is none, taken as a string (``model.name=din``). The key is a
    dotted path; an entry of an array is named by its `name` or its index: ``feature.product_id.dim=8``,
    ``feature[2].dim=8``, ``feature."a.b".dim=8``. Missing tables are made, so that `build` judges unknown keys.
    A text of another form is refused with `example` as a model.

    >>> apply_overrides({"model": {"hidden": [200, 80]}}, ["model.hidden.1=40", "model.name=din"])
    {'model': {'hidden': [200, 40], 'name': 'din'}}
    """
    result: dict[str, Any] = deepcopy(dict(data))
    for override in overrides:
        key, equals, text = override.partition("=")
        steps = _steps(key.strip())
        if not equals or not steps:
            raise UserError(f"--set {override}: accepted: key=value with a dotted key, such as {example}")
        _set(result, steps, _value(text.strip()), f"--set {override}")
    return result


def with_values(data: Mapping[str, Any], values: Mapping[str, Any], where: str = "recipe") -> dict[str, Any]:
    """A copy of `data` with each dotted key set to a value, as `apply_overrides` does with texts.

    >>> with_values({"model": {"hidden": [200, 80]}}, {"model.hidden.1": 40, "training.epochs": 3})
    {'model': {'hidden': [200, 40]}, 'training': {'epochs': 3}}
    """
    result: dict[str, Any] = deepcopy(dict(data))
    for key, value in values.items():
        steps = _steps(key)
        if not steps:
            raise UserError(f"{where}.{_inline(key)}: accepted: a dotted key, such as training.tables.lr")
        _set(result, steps, deepcopy(value), f"{where}.{_inline(key)}")
    return result


def _set(place: Any, steps: list[str], value: Any, where: str) -> None:
    """Put a value where a path leads; missing tables are made."""
    for depth, step in enumerate(steps):
        done = ".".join(steps[:depth])
        if isinstance(place, list):
            at: Any = _entry(place, step, f"{where}: {done}")
        elif isinstance(place, dict):
            at = step
        else:
            raise UserError(f"{where}: {done} is {_got(place)}; accepted: the key of a table or array")
        if depth == len(steps) - 1:
            place[at] = value
        else:
            place = place.setdefault(at, {}) if isinstance(place, dict) else place[at]


def _steps(key: str) -> list[str]:
    """The parts of a dotted path; empty if it is not one."""
    steps: list[str] = []
    end = 0
    for match in _STEP.finditer(key):
        between = key[end : match.start()]
        if between != ("" if not steps or match[2] else "."):
            return []
        steps.append(next(part for part in match.groups() if part is not None))
        end = match.end()
    return steps if end == len(key) else []


def _entry(entries: list[Any], step: str, where: str) -> int:
    """The index of the entry that a step of a path means: its name, or else its number."""
    names = [entry["name"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("name"), str)]
    for i, entry in enumerate(entries):
        if isinstance(entry, dict) and entry.get("name") == step:
            return i
    if step.isdecimal() and int(step) < len(entries):
        return int(step)
    indices = f"an index below {len(entries)}" if entries else "nothing, for it is empty"
    raise UserError(
        f"{where} has no entry {step!r}; "
        + (f"{nearest(step, names)}, or {indices}" if names else f"accepted: {indices}")
    )


def _value(text: str) -> Any:
    """Text as a TOML value; as itself where it is none (a bare word, a date, several lines)."""
    try:
        read = tomllib.loads(f"value = {text}")
    except ValueError:
        return text
    value = read["value"]
    return value if set(read) == {"value"} and isinstance(value, str | int | float | list | dict) else text
