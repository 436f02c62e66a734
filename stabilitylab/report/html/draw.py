"""Draw a chart as a plain plotly dict. Colours can be names, which the page maps to its light or dark theme."""

from __future__ import annotations

from typing import Any

import numpy as np

from stabilitylab.report.downsample import heat_rows, min_max
from stabilitylab.report.html.plotting import COLOURS, DASHES, SYMBOLS, Figure, figure, line, numbers, points, text
from stabilitylab.report.marks import Axis, Band, Bars, Chart, Drawing, Heat, Line, Outline, Points

LEGEND_ABOVE = 3
"""Maximum legend entries above the chart. A longer legend goes below it, because it would overlap the mode bar."""
MANY_MARKS = 300
"""More onsets than this are drawn as one path, because browsers are slow with thousands of circles."""


def plotly_figure(chart: Chart) -> Figure:
    """The chart as a plotly figure: ``data`` and ``layout``."""
    drawing = _Drawing(chart)
    for mark in chart.marks:
        drawing.add(mark)
    shown = figure(drawing.traces, text(chart.x.title), text(chart.y.title))
    layout = shown["layout"]
    layout["xaxis"] |= _axis(chart.x)
    layout["yaxis"] |= _axis(chart.y)
    if chart.x.beside is not None:
        title, ticks = chart.x.beside
        layout["xaxis2"] = {
            "overlaying": "x", "matches": "x", "side": "top", "title": {"text": text(title), "standoff": 4},
            "tickvals": [value for value, _ in ticks], "ticktext": [text(label) for _, label in ticks],
            "showgrid": False, "zeroline": False,
        }  # fmt: skip
        layout["margin"] |= {"t": 72}
        layout["legend"] |= {"y": 1.16}
        # Plotly draws an axis only if a trace uses it.
        unseen = {"type": "scatter", "x": [value for value, _ in ticks], "y": [None] * len(ticks), "xaxis": "x2"}
        drawing.traces.append({**unseen, "yaxis": "y", "showlegend": False, "hoverinfo": "skip"})
    if drawing.shapes:
        layout["shapes"] = drawing.shapes
    if chart.y.names:
        layout["showlegend"] = False
    elif len(drawing.in_legend) > LEGEND_ABOVE:
        layout["legend"] = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0}
    if any(isinstance(mark, Heat) for mark in chart.marks):
        layout.setdefault("shapes", [])
        layout["annotations"] = drawing.annotations
        layout["margin"] |= {"t": 92 if chart.x.beside else 52}
    elif any(isinstance(mark, Bars) for mark in chart.marks):
        layout["bargap"] = 0.05
    return shown


def _axis(axis: Axis) -> Figure:
    wanted: Figure = {}
    if axis.log:
        wanted |= {"type": "log"} if axis.ticks else {"type": "log", "tickformat": "~g", "dtick": 1}
    if axis.names:
        wanted |= {"type": "category", "autorange": "reversed", "automargin": True}
    if axis.ticks:
        wanted |= {"tickvals": [value for value, _ in axis.ticks], "ticktext": [text(label) for _, label in axis.ticks]}
    if axis.zero_line:
        wanted |= {"zeroline": True}
    return wanted


class _Drawing(Drawing):
    def __init__(self, chart: Chart) -> None:
        self.names = [text(name) for name in chart.y.names]
        self.traces: list[Figure] = []
        self.shapes: list[Figure] = []
        self.annotations: list[Figure] = []
        self.in_legend: set[tuple[str, int]] = set()

    def draw_line(self, mark: Line) -> None:
        colour, label = COLOURS[mark.style % 6], text(mark.label)
        if mark.role == "chance":
            middle = (mark.x[:-1] + mark.x[1:]) / 2  # type: ignore[operator]
            trace = line(middle, mark.y, label, colour, "dash", None)
            self.traces.append(trace | {"line": {"color": colour, "dash": "dash", "shape": "hvh", "width": 2}})
            return
        if mark.role == "span":
            trace = line(mark.x, mark.y, label, colour, "solid", None)
            self.traces.append(trace | {"line": {"color": colour, "width": 8}, "opacity": 0.22, "showlegend": False})
            return
        x, y = min_max(*_arrays(mark)) if mark.role in ("curve", "seed") else (mark.x, mark.y)
        trace = line(x, y, label, colour, DASHES[mark.style % 6], mark.hover)
        trace["line"] |= {"width": {"seed": 1.1, "mean": 2.6}.get(mark.role, 1.6)}
        if mark.run:
            trace["hovertemplate"] = f"{mark.hover}<extra>{text(mark.run)}</extra>"
        first = (mark.label, mark.style) not in self.in_legend
        self.in_legend.add((mark.label, mark.style))
        self.traces.append(trace | {"legendgroup": f"{mark.style} {label}", "showlegend": first})

    def draw_points(self, mark: Points) -> None:
        label = text(mark.label)
        if mark.hollow and len(mark.x) > MANY_MARKS:
            path = "".join(f"M{x},{y - 0.3:.1f}L{x},{y + 0.3:.1f}" for x, y in zip(mark.x, mark.y, strict=True))
            self.shapes.append({"type": "path", "path": path, "line": {"color": "ink", "width": 1}})
            return
        colour, symbol = ("ink", "circle-open") if mark.hollow else (COLOURS[mark.style % 6], SYMBOLS[mark.style % 6])
        y = [self.names[int(row)] for row in mark.y] if self.names else mark.y
        trace = points(mark.x, y, label if mark.hollow or not mark.what else f"{label}: {mark.what}", colour, symbol)
        trace["text"] = [text(hover) for hover in mark.texts]
        if mark.hollow:
            trace["marker"] |= {"size": 8, "line": {"width": 1.5, "color": "ink"}}
        if mark.low:
            trace["marker"]["symbol"] = "circle"
            above = [high - x for high, x in zip(mark.high, mark.x, strict=True)]
            below = [x - low for low, x in zip(mark.low, mark.x, strict=True)]
            trace["error_x"] = {"type": "data", "array": above, "arrayminus": below, "color": colour, "thickness": 1.5}
        if mark.run:
            trace["hovertemplate"] = f"%{{text}}<extra>{text(mark.run)}</extra>"
        self.traces.append(trace | {"legendgroup": f"{mark.style} {label}", "showlegend": False})

    def draw_heat(self, mark: Heat) -> None:
        edges, cells = heat_rows(mark.layers)
        self.traces.append(
            {
                "type": "heatmap",
                "x": numbers(edges.round(1)),
                "y": self.names,
                "z": [numbers(row.round(2)) for row in cells],
                "zmin": 0,
                "zmax": 1.5,
                "colorscale": "heat",
                "colorbar": {
                    "tickvals": [0, 0.5, 1, 1.5],
                    "ticktext": ["1x", "3x", "10x", "30x"],
                    "orientation": "h",
                    "thickness": 8,
                    "lenmode": "pixels",
                    "len": 200,
                    "x": 0,  # left, like legends: the mode bar is on the right
                    "xanchor": "left",
                    "yref": "container",
                    "y": 1,
                    "yanchor": "top",
                    "ypad": 0,
                },
                "hoverongaps": False,
                "hovertemplate": "%{y} at %{x:.0f}: 10^%{z:.2f} of the usual norm<extra></extra>",
            }
        )

    def draw_outline(self, mark: Outline) -> None:
        box = {"x0": mark.first, "x1": mark.last, "y0": mark.top - 0.5, "y1": mark.bottom + 0.5}
        self.shapes.append({"type": "rect", **box, "line": {"color": "ink", "width": 1.5}})
        if mark.number:
            self.annotations.append(
                {
                    "text": mark.number,
                    "x": (mark.first + mark.last) / 2,
                    "y": 1,
                    "yref": "paper",
                    "yanchor": "bottom",
                    "showarrow": False,
                    "font": {"size": 12, "color": "ink"},
                }
            )

    def draw_bars(self, mark: Bars) -> None:
        middle, width = (mark.edges[:-1] + mark.edges[1:]) / 2, mark.edges[1:] - mark.edges[:-1]
        self.traces.append(
            {
                "type": "bar",
                "x": numbers(middle),
                "y": numbers(mark.shares),
                "width": numbers(0.95 * width),
                "name": text(mark.label),
                "marker": {"color": COLOURS[mark.style % 6]},
                "hovertemplate": "%{y:.3f} around %{x}<extra></extra>",
            }
        )

    def draw_band(self, mark: Band) -> None:
        self.shapes.append(
            {"type": "rect", "x0": mark.low, "x1": mark.high, "y0": 0, "y1": 1, "yref": "paper",
             "fillcolor": COLOURS[mark.style % 6], "opacity": 0.12, "line": {"width": 0}}
        )  # fmt: skip


def _arrays(mark: Line) -> tuple[Any, Any]:
    return np.asarray(mark.x), np.asarray(mark.y, dtype=np.float64)
