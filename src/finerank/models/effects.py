"""Options that were given and have no effect, for people: which, and why.

They are no errors: `tune` and `ablate` cross options, and a cross holds such combinations. So options that depend on others say
of themselves which are not read (`without_effect`), and a training says which of these were set.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Protocol, runtime_checkable

from finerank.models import registry
from finerank.models.registry import Composition


@runtime_checkable
class Dependent(Protocol):
    """Options of which some are not read under others."""

    def without_effect(self, stages: Collection[str]) -> Mapping[str, str]:
        """Of the options that are not read as things are: why. stages: kinds of the stages before the training."""
        ...


def without_effect(model: Composition) -> list[str]:
    """A sentence for each option that differs from its default and is not read."""
    known = registry.composition(model.name) if model.name in registry.names() else None
    stages = [o.kind for o in model.stages]
    before = {} if known is None else {o.kind: o for o in known.interactions}
    out = [*_notes(model.representation, known and known.representation, "model.representation", stages)]
    for i, options in enumerate(model.interactions):
        out += _notes(options, before.get(options.kind), f"model.interactions[{i}]", stages)
    return [*out, *_notes(model.heads, known and known.heads, "model.heads", stages)]


def _notes(options: Any, default: Any, where: str, stages: Collection[str]) -> Iterator[str]:
    """Of a part's options and those within. default: those of the named model; of another kind they say nothing."""
    idle = options.without_effect(stages) if isinstance(options, Dependent) else {}
    for field in fields(options):
        value = getattr(options, field.name)
        if type(default) is type(options):
            usual = getattr(default, field.name)
        else:
            usual = field.default if field.default_factory is MISSING else field.default_factory()
        if field.name in idle and value != usual:
            yield f"{where}.{field.name} has no effect: {idle[field.name]}"
        elif is_dataclass(value):
            yield from _notes(value, usual, f"{where}.{field.name}", stages)
