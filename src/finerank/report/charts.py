"""Pictures as SVG text: Vega-Lite drawn on this machine (vl-convert), in one style.

A chart is a function of plain values; nothing here knows a run. Marks carry names, so that the pictures of a page can be
read by a screen reader and found by a test.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import vl_convert
from markupsafe import Markup

from finerank.metrics.estimate import Estimate

Values: TypeAlias = Sequence[Mapping[str, object]]
Spec: TypeAlias = dict[str, Any]

INK, QUIET, RULE = "#1b1f24", "#6a737d", "#e3e6ea"
BLUE, ORANGE, GREEN, RED = "#2563a8", "#d9822b", "#3a8f5c", "#b6403a"
SERIES = [BLUE, ORANGE, GREEN, "#8a5aa8", "#4d9aa8", "#8f7a3a", RED, QUIET]
FONT = "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', 'Noto Sans CJK SC', sans-serif"
WIDTH, HEIGHT = 250, 190
ROOM = {"left": 12, "top": 5, "right": 8, "bottom": 5}
"""Around a picture."""
NAMED = ROOM | {"left": 34}
"""Around one with names at its side, which a browser may write wider than the drawer measured."""
GAP = 14
"""Between the labels of an upright axis and its title: a browser's letters may be wider than those the drawer measured."""

CONFIG: Spec = {
    "font": FONT,
    "background": "transparent",
    "view": {"stroke": None},
    "axis": {
        "labelColor": QUIET,
        "titleColor": QUIET,
        "titleFontWeight": "normal",
        "titleFontSize": 12,
        "labelFontSize": 11,
        "gridColor": RULE,
        "domainColor": RULE,
        "tickColor": RULE,
        "labelLimit": 260,
        "labelOverlap": True,
        "tickCount": 6,
    },
    "axisY": {"titlePadding": GAP},
    "axisX": {"titlePadding": 6, "labelSeparation": 8, "labelFlush": False},
    "legend": {
        "labelColor": INK,
        "titleColor": QUIET,
        "titleFontWeight": "normal",
        "symbolType": "stroke",
        "labelFontSize": 11,
        "columnPadding": 14,
    },
    "header": {"labelColor": INK, "titleColor": QUIET, "titleFontWeight": "normal"},
    "range": {"category": SERIES},
}


def svg(spec: Spec, describe: str) -> Markup:
    """The SVG of a Vega-Lite specification. describe: what the picture shows, for who cannot see it."""
    whole = {"$schema": "https://vega.github.io/schema/vega-lite/v6.json", "config": CONFIG, "padding": ROOM, **spec}
    drawn = vl_convert.vegalite_to_svg(_printable(whole))
    label = str(Markup.escape(_printable(describe)))
    return Markup(drawn.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1))


_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


def _printable(value: Any) -> Any:
    """Texts without characters that XML forbids: names come from the user's data, and the drawer dies of one."""
    if isinstance(value, str):
        return _UNPRINTABLE.sub("\ufffd", value)
    if isinstance(value, Mapping):
        return {key: _printable(v) for key, v in value.items()}
    return [_printable(v) for v in value] if isinstance(value, list | tuple) else value


def _x(field: str, title: str, **more: object) -> Spec:
    return {"field": field, "type": "quantitative", "title": title, **more}


def _series(values: Values, title: str, width: int = WIDTH) -> Spec:
    """The colour of each series, and below the picture a legend no wider than it; none for a single series."""
    names = list(dict.fromkeys(str(v["series"]) for v in values))
    longest = 32 + 7 * max((len(name) for name in names), default=0)  # symbol and gaps, and letters, in pixels
    columns = max(1, min(len(names), width // longest))
    legend = {"title": title or None, "orient": "bottom", "columns": columns, "labelLimit": width}
    return {"field": "series", "type": "nominal", "sort": None, "legend": legend if len(names) > 1 else None}


def lines(
    values: Values, x: str, y: str, describe: str, *, whole: bool = False, diagonal: bool = False, legend: str = ""
) -> Markup:
    """Lines of (x, y, series). whole: x counts things; diagonal: both axes run 0 to 1 with the diagonal drawn."""
    unit = {"domain": [0, 1]} if diagonal else {"zero": False, "nice": True}
    last = max((round(float(str(v["x"]))) for v in values), default=1) if whole else 1
    axis: Spec = {"values": list(range(1, last + 1)), "format": "d"} if whole else {}
    layers: list[Spec] = []
    if diagonal:
        ends = {"values": [{"x": 0, "y": 0}, {"x": 1, "y": 1}]}
        mark = {"type": "line", "color": QUIET, "strokeDash": [4, 4], "strokeWidth": 1}
        layers.append({"data": ends, "mark": mark, "encoding": {"x": _x("x", x), "y": _x("y", y)}})
    layers.append(
        {
            "data": {"values": list(values)},
            "mark": {"type": "line", "strokeWidth": 2, "point": {"size": 26} if whole else False},
            "encoding": {
                "x": _x("x", x, scale=unit if diagonal else {"nice": False}, axis=axis),
                "y": _x("y", y, scale=unit),
                "order": {"field": "x", "type": "quantitative"},
                "color": _series(values, legend),
            },
        }
    )
    return svg({"width": WIDTH, "height": WIDTH if diagonal else HEIGHT, "layer": layers}, describe)


def by_date(values: Values, y: str, describe: str) -> Markup:
    """Lines over days. values: {x: ISO date, y, series}."""
    encoding = {
        "x": {"field": "x", "type": "temporal", "title": None, "axis": {"format": "%b %d", "labelAngle": -40}},
        "y": _x("y", y, axis={"format": "%"}),
        "color": _series(values, "field", 2 * WIDTH),
    }
    mark = {"type": "line", "strokeWidth": 1.5}
    return svg(
        {"width": 2 * WIDTH, "height": HEIGHT, "data": {"values": list(values)}, "mark": mark, "encoding": encoding},
        describe,
    )


def reliability(bins: Values, describe: str) -> Markup:
    """Predicted against observed, with the interval of each bin. bins: {predicted, observed, low, high, rows}."""
    top = max([1e-3, *(float(str(b[k])) for b in bins for k in ("predicted", "observed"))]) * 1.06
    scale = {"domain": [0, top], "nice": False, "clamp": True}
    diagonal = {"values": [{"predicted": 0, "observed": 0}, {"predicted": top, "observed": top}]}
    at = {"x": _x("predicted", "predicted", scale=scale), "y": _x("observed", "observed", scale=scale)}
    return svg(
        {
            "width": WIDTH,
            "height": WIDTH,
            "layer": [
                {"data": diagonal, "mark": {"type": "line", "color": QUIET, "strokeDash": [4, 4]}, "encoding": at},
                {
                    "data": {"values": list(bins)},
                    "mark": {"type": "rule", "color": BLUE, "opacity": 0.5},
                    "encoding": {"x": at["x"], "y": {**at["y"], "field": "low"}, "y2": {"field": "high"}},
                },
                {
                    "data": {"values": list(bins)},
                    "mark": {"type": "point", "filled": True, "color": BLUE, "size": 46, "opacity": 1},
                    "encoding": at,
                },
            ],
        },
        describe,
    )


def scores(bins: Values, describe: str) -> Markup:
    """How many rows got which score, by label. bins: {low, high, share, label}."""
    return svg(
        {
            "width": WIDTH,
            "height": HEIGHT,
            "data": {"values": list(bins)},
            "mark": {"type": "bar", "opacity": 0.55},
            "encoding": {
                "x": _x("low", "predicted", bin={"binned": True}, scale={"zero": True}),
                "x2": {"field": "high"},
                "y": {**_x("share", "share of its rows"), "stack": None},
                "color": {
                    "field": "label",
                    "type": "nominal",
                    "scale": {"domain": ["negative", "positive"], "range": [QUIET, BLUE]},
                    "legend": {"title": None, "orient": "bottom", "symbolType": "square"},
                },
            },
        },
        describe,
    )


def intervals(
    values: Sequence[tuple[str, Estimate]], title: str, describe: str, *, line: float | None = None
) -> Markup:
    """A point with its 95 % interval per name, one below the other. line: a value to compare with (zero, the whole)."""
    rows = [{"name": name, "value": e.value, "low": e.low, "high": e.high} for name, e in values]
    y = {"field": "name", "type": "nominal", "sort": None, "title": None}
    scale = {"zero": False, "nice": True}
    layers: list[Spec] = []
    if line is not None:
        mark = {"type": "rule", "color": QUIET, "strokeDash": [4, 4]}
        layers.append(
            {"data": {"values": [{"at": line}]}, "mark": mark, "encoding": {"x": _x("at", title, scale=scale)}}
        )
    data = {"values": rows}
    layers.append(
        {
            "data": data,
            "mark": {"type": "rule", "color": BLUE, "strokeWidth": 2, "opacity": 0.55},
            "encoding": {"y": y, "x": _x("low", title, scale=scale), "x2": {"field": "high"}},
        }
    )
    layers.append(
        {
            "data": data,
            "mark": {"type": "point", "filled": True, "size": 52, "color": BLUE, "opacity": 1},
            "encoding": {"y": y, "x": _x("value", title, scale=scale)},
        }
    )
    return svg({"padding": NAMED, "width": WIDTH, "height": {"step": 22}, "layer": layers}, describe)


def differences(values: Sequence[tuple[str, Estimate]], title: str, describe: str) -> Markup:
    """A point with its 95 % interval per name, about a line at zero: blue above it, red below, grey where they meet."""
    rows = [{"name": name, "value": e.value, "low": e.low, "high": e.high} for name, e in values]
    y = {"field": "name", "type": "nominal", "sort": None, "title": None}
    color = {
        "condition": [{"test": "datum.low > 0", "value": BLUE}, {"test": "datum.high < 0", "value": RED}],
        "value": QUIET,
    }
    data = {"values": rows}
    axis = {"labelExpr": "datum.value == 0 ? '0' : format(datum.value, '+.3~f')", "tickCount": 7}
    layers: list[Spec] = [
        {
            "data": {"values": [{"at": 0}]},
            "mark": {"type": "rule", "color": QUIET, "strokeDash": [4, 4]},
            "encoding": {"x": _x("at", title, axis=axis)},
        },
        {
            "data": data,
            "mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.55},
            "encoding": {"y": y, "x": _x("low", title, axis=axis), "x2": {"field": "high"}, "color": color},
        },
        {
            "data": data,
            "mark": {"type": "point", "filled": True, "size": 52, "opacity": 1},
            "encoding": {"y": y, "x": _x("value", title, axis=axis), "color": color},
        },
    ]
    return svg({"padding": NAMED, "width": 2.4 * WIDTH, "height": {"step": 22}, "layer": layers}, describe)


def bars(values: Values, title: str, describe: str) -> Markup:
    """Bars of (name, value, low, high) side by side, negative ones in red; thin rules show low to high."""
    y = {"field": "name", "type": "nominal", "sort": None, "title": None}
    color = {"condition": {"test": "datum.value < 0", "value": RED}, "value": BLUE}
    data = {"values": list(values)}
    layers: list[Spec] = [
        {
            "data": data,
            "mark": {"type": "bar", "height": 13},
            "encoding": {"y": y, "x": _x("value", title), "color": color},
        },
        {
            "data": data,
            "mark": {"type": "rule", "color": INK, "opacity": 0.6},
            "encoding": {"y": y, "x": _x("low", title), "x2": {"field": "high"}},
        },
    ]
    return svg({"padding": NAMED, "width": WIDTH, "height": {"step": 20}, "layer": layers}, describe)


def shares(values: Values, describe: str) -> Markup:
    """A bar of shares per name, each a piece of its own shade. values: {name, part, share}; parts are counted from 1."""
    count = len({v["part"] for v in values})
    return svg(
        {
            "padding": NAMED,
            "width": WIDTH,
            "height": {"step": 24},
            "data": {"values": list(values)},
            "mark": {"type": "bar", "height": 16, "stroke": "white", "strokeWidth": 1},
            "encoding": {
                "y": {"field": "name", "type": "nominal", "sort": None, "title": None},
                "x": _x("share", "mean gate", stack="zero", scale={"nice": False}),
                "order": {"field": "part", "type": "quantitative"},
                "color": {
                    "field": "part",
                    "type": "ordinal",
                    "scale": {"scheme": "blues" if count > 1 else "tableau10"},
                    "legend": {"title": "expert", "orient": "bottom", "symbolType": "square"},
                },
            },
        },
        describe,
    )


def lit(values: Values, describe: str, events: int, unit: str) -> Markup:
    """A strip per candidate: its past from left (oldest) to right, each event as strong as it lit up.

    values: {candidate, event, position, strength}; `event` is what a reader sees below, `unit` what strength is
    """
    size = max(14, min(34, 740 // max(events, 1)))  # a page wide, as far as names stay apart
    x: Spec = {"field": "event", "sort": {"field": "position"}, "axis": {"labelLimit": 210}}
    y: Spec = {"field": "candidate", "sort": None, "axis": {"labelLimit": 320}}
    return _cells(values, describe, unit, x, y, size, NAMED, {"orient": "top", "offset": 4})


def matrix(values: Values, describe: str, unit: str) -> Markup:
    """A cell per (row, column), as strong as its value. values: {row, column, strength}, in the order of both axes."""
    x: Spec = {"field": "column", "sort": None, "axis": {"labelLimit": 210}}
    y: Spec = {"field": "row", "sort": None, "axis": {"labelLimit": 210, "labelOverlap": False}}
    return _cells(values, describe, unit, x, y, 26, ROOM, {"orient": "right"})


def _cells(
    values: Values, describe: str, unit: str, x: Spec, y: Spec, width: int, room: Mapping[str, int], legend: Spec
) -> Markup:
    """A grid of cells that are red below zero, blue above, with every name of x below it. width: of a cell, pixels."""
    leaning = x["axis"] | {"labelAngle": -60, "labelOverlap": False}
    return svg(
        {
            "padding": {**room, "bottom": 40},
            "width": {"step": width},
            "height": {"step": 26},
            "data": {"values": list(values)},
            "mark": {"type": "rect", "stroke": "white", "strokeWidth": 1, "cornerRadius": 2},
            "encoding": {
                "x": {**x, "type": "nominal", "title": None, "axis": leaning},
                "y": {**y, "type": "nominal", "title": None},
                "color": {
                    "field": "strength",
                    "type": "quantitative",
                    "title": unit,
                    "scale": {"scheme": "redblue", "domainMid": 0},
                    "legend": {"gradientLength": 160, "gradientThickness": 10, **legend},
                },
            },
        },
        describe,
    )


def plane(values: Values, describe: str, title: str) -> Markup:
    """Dots on a plane, coloured by score, as large as they are frequent. values: {x, y, score, count, name}."""
    bare = {"axis": None}
    at = {"x": _x("x", "", scale={"zero": False}, **bare), "y": _x("y", "", scale={"zero": False}, **bare)}
    named = [v for v in values if v.get("label")]
    return svg(
        {
            "width": 700,
            "height": 460,
            "layer": [
                {
                    "data": {"values": list(values)},
                    "mark": {"type": "point", "filled": True, "opacity": 0.8},
                    "encoding": {
                        **at,
                        "color": {
                            **_x("score", title),
                            "scale": {"scheme": "viridis"},
                            "legend": {"orient": "right", "gradientLength": 140},
                        },
                        "size": {**_x("count", "count"), "scale": {"type": "sqrt", "range": [18, 260]}, "legend": None},
                    },
                },
                {
                    "data": {"values": named},
                    "mark": {"type": "text", "dy": -10, "fontSize": 10, "color": INK},
                    "encoding": {**at, "text": {"field": "label"}},
                },
            ],
        },
        describe,
    )
