"""Templates -> one HTML file: style and pictures inside, nothing fetched, no script."""

from __future__ import annotations

import math

from jinja2 import Environment, PackageLoader, StrictUndefined

from finerank.metrics.estimate import Estimate


def render(template: str, **values: object) -> str:
    """The page of a template of `report/templates`. Texts are escaped; only `charts` return markup."""
    return _templates().get_template(template).render(**values)


def number(value: float | None, digits: int = 4) -> str:
    """A number for people: digits after the point, thousands parted, an en dash for what is not defined."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def interval(estimate: Estimate, digits: int = 4) -> str:
    """low to high; empty where there is none."""
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return ""
    return f"{number(estimate.low, digits)} to {number(estimate.high, digits)}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share as per cent."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f} %"


def _templates() -> Environment:
    templates = Environment(
        loader=PackageLoader("finerank.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"number": number, "interval": interval, "percent": percent}
    return templates
