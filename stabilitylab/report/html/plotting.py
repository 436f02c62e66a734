"""Traces and layouts as plain plotly dicts. Colours can be names, which the page maps to its light or dark theme."""

from __future__ import annotations

import html
from typing import Any

import numpy as np

Figure = dict[str, Any]

# Okabe and Ito's colour-blind safe palette, combined with distinct dashes and symbols.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("triangle-down", "diamond", "square", "circle", "cross", "star")


def text(value: str) -> str:
    """Escape text, because plotly interprets some HTML tags."""
    return html.escape(value, quote=False)


def line(x: Any, y: Any, name: str, colour: str, dash: str, hover: str | None) -> Figure:
    trace: Figure = {
        "type": "scatter",
        "mode": "lines",
        "x": numbers(x),
        "y": numbers(y),
        "name": name,
        "line": {"color": colour, "dash": dash, "width": 1.6},
    }
    return trace | ({"hoverinfo": "skip"} if hover is None else {"hovertemplate": f"{hover}<extra>{name}</extra>"})


def points(x: Any, y: Any, name: str, colour: str, symbol: str) -> Figure:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": numbers(x),
        "y": numbers(y),
        "name": name,
        "marker": {"color": colour, "symbol": symbol, "size": 9, "line": {"width": 1, "color": "page"}},
        "hovertemplate": "%{text}<extra>" + name + "</extra>",
    }


def figure(traces: list[Figure], x_title: str, y_title: str) -> Figure:
    layout = {
        "xaxis": {"title": {"text": x_title}},
        "yaxis": {"title": {"text": y_title}},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "margin": {"l": 60, "r": 16, "t": 36, "b": 48},
        "hovermode": "closest",
    }
    return {"data": traces, "layout": layout}


def numbers(values: Any) -> list[Any]:
    """Plain numbers rounded to 6 digits; non-finite values become None, a gap."""
    out: list[Any] = []
    for value in np.asarray(values).tolist():
        if isinstance(value, float):
            out.append(float(f"{value:.6g}") if np.isfinite(value) else None)
        else:
            out.append(value)
    return out
