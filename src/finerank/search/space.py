"""What a search may change: keys of a recipe, each with a range or choices.

    [tune]
    "training.tables.lr" = {low = 1e-4, high = 1e-1, log = true}
    "model.representation.embedding.width" = {low = 8, high = 64, step = 8}
    "model.interactions.0.hidden" = {choices = [[200, 80], [64, 32]]}

in the recipe, or in a file of its own (with or without the header). Keys are those of `--set`, over the recipe with all
defaults written out, so that everything it has can be named. Bounds that are whole numbers make whole numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finerank.errors import UserError, nearest
from finerank.models.registry import parse
from finerank.recipe import Recipe
from finerank.training.options import TrainingOptions
from finerank.typed import build, read_toml, with_values

RATES = {
    "adam": ("lr", 1e-4, 1e-1),
    "adagrad": ("lr", 1e-3, 1.0),
    "sgd": ("lr", 1e-3, 1.0),
    "ftrl": ("alpha", 1e-3, 1.0),
}
"""What to search of an optimiser: its rate, and between what."""

STRENGTHS = {
    "mini_batch_aware": (1e-3, 10.0),
    "l2": (1e-4, 1.0),
    "l2_in_loss": (1e-8, 1e-2),
    "l2_per_row": (1e-6, 1.0),
}
"""Between what to search the strength of a regulariser."""

TOWERS = ((64, 32), (200, 80), (400, 400))


@dataclass(frozen=True, kw_only=True)
class Range:
    """From low to high, both included. step: of whole numbers, or of others; log: even on a logarithm."""

    low: float
    high: float
    step: float | None = None
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether the values are whole numbers."""
        return all(isinstance(x, int) for x in (self.low, self.high, *([] if self.step is None else [self.step])))

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values to try the key with."""
        return self.low, self.high

    @property
    def size(self) -> float:
        """How many values there are."""
        step = self.step or (1 if self.whole else 0)
        return math.floor((self.high - self.low) / step * (1 + 1e-9)) + 1 if step else math.inf


@dataclass(frozen=True)
class Choices:
    """One of these, each any value that a recipe may hold."""

    values: tuple[Any, ...]

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values to try the key with."""
        return self.values

    @property
    def size(self) -> float:
        """How many values there are."""
        return len(self.values)


Space = dict[str, Range | Choices]


def read_space(recipe_table: Mapping[str, Any], recipe: Recipe, file: Path | None = None) -> Space:
    """The space of a search: the file's, else the recipe's [tune], else `default_space`.

    Raises UserError for what is no range, and for a key or a value that the recipe does not take.
    """
    if file is not None:
        found = read_toml(file)
        table, where = found.get("tune", found), str(file)
    else:
        table, where = recipe_table.get("tune"), "tune"
    space = default_space(recipe) if table is None else parse_space(table, where)
    if not space:
        raise UserError(f"{where}: nothing to search; give at least one key with a range or choices")
    check(space, recipe, where)
    return space


def parse_space(table: Any, where: str = "tune") -> Space:
    """A [tune] table as it stands in TOML."""
    if not isinstance(table, Mapping):
        raise UserError(f'{where}: got {table!r}; accepted: a table of "key" = {{low = ..., high = ...}}')
    return {key: _entry(value, f'{where}."{key}"') for key, value in table.items()}


def _entry(value: Any, where: str) -> Range | Choices:
    accepted = "accepted: {low = 1e-4, high = 1e-1, log = true} or {choices = [...]}"
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: got {value!r}; {accepted}")
    known = ("low", "high", "step", "log", "choices")
    for key in value:
        if key not in known:
            raise UserError(f"{where}.{key}: unknown key; {nearest(key, known)}")
    if "choices" in value:
        choices = value["choices"]
        if not isinstance(choices, list) or not choices or len(value) > 1:
            raise UserError(
                f"{where}: got {dict(value)!r}; accepted: choices = [a, b, ...] with at least one, and nothing else"
            )
        return Choices(tuple(choices))
    for key in ("low", "high"):
        if key not in value:
            raise UserError(f"{where}: {key} is missing; {accepted}")
    for key in ("low", "high", "step"):
        x = value.get(key)
        if key in value and (isinstance(x, bool) or not isinstance(x, int | float) or not math.isfinite(x)):
            raise UserError(f"{where}.{key}: got {x!r}; accepted: a number")
    made = Range(low=value["low"], high=value["high"], step=value.get("step"), log=value.get("log", False))
    if not isinstance(made.log, bool):
        raise UserError(f"{where}.log: got {made.log!r}; accepted: true or false")
    if made.low > made.high:
        raise UserError(f"{where}: the range from {made.low} to {made.high} is empty; accepted: low of at most high")
    if made.log and made.low <= 0:
        raise UserError(f"{where}: low = {made.low} has no logarithm; accepted: above 0, or log = false")
    if made.step is not None and (made.log or made.step <= 0):
        raise UserError(f"{where}: step = {made.step}; accepted: above 0, and not beside log = true")
    return made


def check(space: Space, recipe: Recipe, where: str = "tune") -> None:
    """Raises UserError for a key or an end of a range that the recipe does not take, one key at a time."""
    resolved = recipe.resolved()
    for key, entry in space.items():
        part = key.split(".")[0]
        if part not in ("model", "training"):
            raise UserError(
                f'{where}."{key}": accepted: keys of model and training; all trials share one prepared data set'
            )
        for value in entry.ends:
            try:
                table = with_values({part: resolved[part]}, {key: value}, "tune")[part]
                parse(table, "recipe.model") if part == "model" else build(TrainingOptions, table, "recipe.training")
            except UserError as error:
                raise UserError(f'{where}."{key}" = {value!r}: {error}') from error


def changed(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe with some keys at other values."""
    return Recipe.parse(with_values(recipe.resolved(), values, "tune"), where="recipe")


def current(recipe: Recipe, key: str) -> Any:
    """The value of a key in the recipe; None where it has none."""
    place: Any = recipe.resolved()
    for step in key.split("."):
        if isinstance(place, list):
            place = place[int(step)] if step.isdecimal() and int(step) < len(place) else None
        else:
            place = place.get(step) if isinstance(place, Mapping) else None
    return place


# ------------------------------------------------------------------------------------------------ what is usual


def default_space(recipe: Recipe) -> Space:
    """What is worth searching of any recipe: rates of the optimisers, the tables' regulariser and initial spread, and of
    every part the layers, their number, dropout, batch normalisation, and of DIN's unit softmax and start."""
    resolved = recipe.resolved()
    training, space = resolved["training"], Space()
    for group in ("tables", "first_order", "dense"):
        if group in training:
            name, low, high = RATES[training[group]["kind"]]
            space[f"training.{group}.{name}"] = Range(low=low, high=high, log=True)
    if "regularise" in training:
        low, high = STRENGTHS[training["regularise"]["kind"]]
        space["training.regularise.strength"] = Range(low=low, high=high, log=True)
    for key, value in _leaves(resolved["model"], "model"):
        name = key.rpartition(".")[2]
        if name == "std":
            space[key] = Range(low=1e-4, high=1e-1, log=True)
        elif name == "width" and ".embedding." in key:
            space[key] = Choices(tuple(dict.fromkeys([8, 16, 32, value])))
        elif name == "dropout":
            space[key] = Range(low=0.0, high=0.5)
        elif name in ("batch_norm", "softmax") and isinstance(value, bool):
            space[key] = Choices((False, True))
        elif key.endswith(".unit.start"):
            space[key] = Choices(tuple(dict.fromkeys([0.0, 0.3, value])))
        elif name == "layers" and isinstance(value, int):
            space[key] = Range(low=1, high=max(4, value))
        elif name == "hidden" and value and ".interactions." in f".{key}":
            space[key] = Choices(tuple(dict.fromkeys([*TOWERS, tuple(value)])))
    entries = {key: _reaching(entry, current(recipe, key)) for key, entry in space.items()}
    return {key: entry for key, entry in entries.items() if _takes(recipe, key, entry)}


def _reaching(entry: Range | Choices, value: Any) -> Range | Choices:
    """The same, so wide that the recipe's own value is in it: a paper's setting is to be tried first."""
    if isinstance(entry, Choices):
        return Choices(tuple(map(_plain, entry.values)))
    return replace(entry, low=min(entry.low, value), high=max(entry.high, value)) if value > 0 else entry


def _takes(recipe: Recipe, key: str, entry: Range | Choices) -> bool:
    """Whether a part that only shares a name with what is usual takes these values."""
    try:
        check({key: entry}, recipe)
    except UserError:
        return False
    return True


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _leaves(value: Any, at: str) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything that is no table."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{at}.{key}")
    elif isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
        for i, inner in enumerate(value):
            yield from _leaves(inner, f"{at}.{i}")
    else:
        yield at, value
