"""Panels that several sections draw: Vega-Lite specifications to set side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finerank.report import charts

Points = Sequence[Mapping[str, object]]


def curves(
    points: Points,
    x: str,
    y: str,
    *,
    title: str = "",
    scale_x: Mapping[str, object] | None = None,
    scale_y: Mapping[str, object] | None = None,
    law: Points = (),
    values: Sequence[float] = (),
    columns: int = 4,
) -> dict[str, Any]:
    """Lines through the means of points (x, y, series) of several seeds, each seed a faint dot.

    law     a dashed line of (x, y): what is true
    values  where the x axis has labels; columns: of the legend
    """
    axis = {"values": list(values), "format": "~g"} if values else {"grid": (scale_x or {}).get("type") != "log"}
    at_x = {"field": "x", "type": "quantitative", "title": x, "scale": {"zero": False, **(scale_x or {})}, "axis": axis}
    at_y = {"field": "y", "type": "quantitative", "title": y, "scale": {"zero": False, **(scale_y or {})}}
    at_y["axis"] = {"grid": (scale_y or {}).get("type") != "log"}  # whose lines stand too close
    color = {
        "field": "series",
        "type": "nominal",
        "sort": None,
        "legend": {"title": None, "orient": "bottom", "columns": columns, "labelLimit": 300, "symbolOpacity": 1},
    }
    data = {"values": list(points)}
    mean = {"x": at_x, "y": {**at_y, "aggregate": "mean"}, "color": color}
    layers: list[dict[str, Any]] = [
        {
            "data": data,
            "mark": {"type": "point", "filled": True, "size": 22, "opacity": 0.45},
            "encoding": {"x": at_x, "y": at_y, "color": color},
        },
        {"data": data, "mark": {"type": "line", "strokeWidth": 2}, "encoding": mean},
    ]
    if law:
        mark = {"type": "line", "color": charts.INK, "strokeDash": [4, 4], "strokeWidth": 1.4}
        layers.append({"data": {"values": list(law)}, "mark": mark, "encoding": {"x": at_x, "y": at_y}})
    head = {"title": {"text": title, "fontWeight": "normal", "fontSize": 12}} if title else {}
    return {**head, "width": 280, "height": 220, "layer": layers}


def beside(panels: Sequence[Mapping[str, Any]], describe: str, *, apart: bool = False) -> str:
    """The panels in a row. apart: colours mean something else in each; otherwise one legend is for all."""
    resolve = {"resolve": {"scale": {"color": "independent"}, "legend": {"color": "independent"}}} if apart else {}
    return str(charts.svg({"hconcat": list(panels), "spacing": 40, **resolve}, describe))
