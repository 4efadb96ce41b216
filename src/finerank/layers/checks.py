"""What the options of a network may be: refused in one sentence, with the option's own name."""

from __future__ import annotations

from collections.abc import Sequence

from finerank.errors import UserError


def check_layers(least: int = 1, **layers: Sequence[int]) -> None:
    """Raise UserError unless each of these has `least` layers or more, of at least one neuron each."""
    for name, widths in layers.items():
        if len(widths) < least or min(widths, default=1) < 1:
            many = "at least one layer, each" if least else "layers, or none, each"
            raise UserError(f"{name} = {list(widths)}; accepted: {many} of at least 1 neuron")


def check_count(least: int = 1, **counts: int) -> None:
    """Raise UserError for a count below `least`."""
    for name, count in counts.items():
        if count < least:
            raise UserError(f"{name} = {count}; accepted: at least {least}")


def check_dropout(**rates: float) -> None:
    """Raise UserError for a rate outside [0, 1)."""
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise UserError(f"{name} = {rate}; accepted: from 0 (none) to below 1")
