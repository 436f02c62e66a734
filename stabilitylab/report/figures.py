"""Charts as plain plotly dicts: traces and layout. Colours are names; the page maps them to light or dark."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.ndimage import median_filter

from stabilitylab.analysis.results import LayerSeries, RunAnalysis, RunSeries, Spike
from stabilitylab.report.downsample import block_max, min_max

Figure = dict[str, Any]

# Okabe and Ito's colour-blind safe palette, told apart by dash and symbol as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("triangle-down", "diamond", "square", "circle", "cross", "star")
_HEAT_WINDOW = 201


def knn_curves(runs: Sequence[tuple[RunSeries, RunAnalysis]]) -> Figure:
    """kNN accuracy of every run, each dip's trough marked and its span thickened."""
    traces: list[Figure] = []
    for index, (series, analysis) in enumerate(runs):
        curve = series.evals.get("knn_top1")
        if curve is None:
            continue
        colour, name = COLOURS[index % 6], text(series.run)
        traces.append(line(curve.iteration, 100 * curve.value, name, colour, DASHES[index % 6], "%{y:.1f} % at %{x}"))
        dips = analysis.dips or ()
        for dip in dips:
            end = dip.recovered if dip.recovered is not None else int(curve.iteration[-1])
            inside = (curve.iteration >= dip.start) & (curve.iteration <= end)
            span = line(curve.iteration[inside], 100 * curve.value[inside], name, colour, "solid", None)
            traces.append(span | {"line": {"color": colour, "width": 8}, "opacity": 0.22, "showlegend": False})
        at = [int(np.flatnonzero(curve.iteration == dip.trough)[0]) for dip in dips]
        if at:
            marks = points(curve.iteration[at], 100 * curve.value[at], f"{name}: dips", colour, SYMBOLS[index % 6])
            marks["text"] = [f"dip of {100 * d.depth:.1f} points, {d.z:.1f} standard errors" for d in dips]
            traces.append(marks)
    return figure(traces, "iteration", "kNN top-1, %")


def layer_norms(series: RunSeries, analysis: RunAnalysis, layers: Sequence[LayerSeries]) -> Figure:
    """Gradient norms of some layers on a log axis, spikes marked at their peak."""
    traces: list[Figure] = []
    for index, layer in enumerate(layers):
        colour, name = COLOURS[index % 6], text(layer.name)
        x, y = min_max(layer.iteration, layer.grad_norm)
        traces.append(line(x, y, name, colour, DASHES[index % 6], "%{y:.3g} at %{x}"))
        spikes = [s for s in analysis.spikes or () if s.layer == layer.name and s.kind == "spike"]
        if spikes:
            at = np.searchsorted(layer.iteration, [s.peak for s in spikes])
            marks = points(layer.iteration[at], layer.grad_norm[at], f"{name}: spikes", colour, SYMBOLS[index % 6])
            marks["text"] = [f"{s.ratio:.1f}x, z = {s.z:.1f}, from {s.onset} to {s.end}" for s in spikes]
            traces.append(marks)
    shown = figure(traces, "iteration", "gradient norm")
    shown["layout"]["yaxis"] |= {"type": "log", "exponentformat": "power", "dtick": 1}
    return shown


def heat_map(series: RunSeries, analysis: RunAnalysis) -> Figure:
    """Iteration x layer: log10 of the gradient norm over the layer's own running median; spike onsets marked."""
    layers = [layer for layer in series.layers if layer.trainable and len(layer.iteration)]
    rows = []
    for layer in layers:
        with np.errstate(divide="ignore", invalid="ignore"):
            x = np.log10(layer.grad_norm)
        usual = median_filter(np.where(np.isfinite(x), x, np.nanmedian(x)), size=min(_HEAT_WINDOW, len(x)))
        rows.append(block_max(x - usual))
    longest = max(layers, key=lambda layer: len(layer.iteration)).iteration
    columns = max(map(len, rows))
    at = np.linspace(longest[0], longest[-1], columns)
    heat = {
        "type": "heatmap",
        "x": _list(at.round(1)),
        "y": [text(layer.name) for layer in layers],
        "z": [_list(row.round(2)) + [None] * (columns - len(row)) for row in rows],
        "zmin": 0,
        "zmax": 1.5,
        "colorscale": "heat",
        "colorbar": {
            "title": {"text": "times usual", "side": "right"},
            "tickvals": [0, 0.5, 1, 1.5],
            "ticktext": ["1", "3", "10", "30"],
            "thickness": 10,
        },
        "hovertemplate": "%{y} at %{x:.0f}: 10^%{z:.2f} of usual<extra></extra>",
    }
    spikes = [s for s in analysis.spikes or () if s.kind == "spike"]
    marks = points([s.onset for s in spikes], [text(s.layer) for s in spikes], "spike onset", "ink", "circle-open")
    marks["marker"] |= {"size": 9, "line": {"width": 1.5, "color": "ink"}}
    marks["text"] = [f"{s.ratio:.1f}x" for s in spikes]
    shown = figure([heat, marks], "iteration", "")
    shown["layout"]["yaxis"] |= {"autorange": "reversed", "automargin": True}
    shown["layout"]["showlegend"] = False
    return shown


def lag_histogram(analysis: RunAnalysis) -> Figure:
    """Matched lags, and what circular shifts give, scaled to the same number of pairs."""
    lag = analysis.lag
    assert lag is not None
    bins = {"start": -102.5, "end": 102.5, "size": 5}
    measured = {
        "type": "histogram",
        "x": list(lag.lags),
        "xbins": bins,
        "name": "measured",
        "marker": {"color": COLOURS[0]},
        "histnorm": "probability",
    }
    traces: list[Figure] = [measured]
    if lag.null_lags:
        counts, edges = np.histogram(lag.null_lags, np.arange(-102.5, 103, 5))
        share = counts / counts.sum()
        chance = line((edges[:-1] + edges[1:]) / 2, share, "chance alone", COLOURS[1], "dash", None)
        traces.append(chance | {"line": {"color": COLOURS[1], "dash": "dash", "shape": "hvh", "width": 2}})
    shown = figure(traces, f"iterations from {text(lag.source)} to {text(lag.target)}", "share of matched spikes")
    shown["layout"]["bargap"] = 0.05
    if lag.ci95 is not None:
        shown["layout"]["shapes"] = [
            {"type": "rect", "x0": lag.ci95[0], "x1": lag.ci95[1], "y0": 0, "y1": 1, "yref": "paper",
             "fillcolor": COLOURS[0], "opacity": 0.12, "line": {"width": 0}},
        ]  # fmt: skip
    return shown


def depth_against_lag(analysis: RunAnalysis) -> Figure:
    """Median lag of each layer behind the first one, with its interval: a travelling wave is a slope."""
    rows = [row for row in analysis.propagation or () if row.ci95 is not None]
    x = [row.median_lag for row in rows]
    trace = points(x, [text(row.layer) for row in rows], "median lag", COLOURS[0], "circle")
    intervals = [(row.median_lag or 0.0, row.ci95) for row in rows]
    above = [ci95[1] - median if ci95 else 0 for median, ci95 in intervals]
    below = [median - ci95[0] if ci95 else 0 for median, ci95 in intervals]
    trace["error_x"] = {"type": "data", "array": above, "arrayminus": below, "color": COLOURS[0], "thickness": 1.5}
    trace["text"] = [f"{row.num_matched} matched" for row in rows]
    shown = figure([trace], "median lag, iterations", "")
    shown["layout"]["yaxis"] |= {"autorange": "reversed", "automargin": True}
    shown["layout"]["xaxis"] |= {"zeroline": True}
    shown["layout"]["showlegend"] = False
    return shown


def loss_curves(runs: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> Figure:
    """Training loss of every run."""
    traces = []
    for index, (name, iteration, loss) in enumerate(runs):
        x, y = min_max(iteration, loss)
        traces.append(line(x, y, text(name), COLOURS[index % 6], DASHES[index % 6], "%{y:.3f} at %{x}"))
    return figure(traces, "iteration", "loss")


def text(value: str) -> str:
    """Plotly reads a little HTML in its texts; a name is shown as it is."""
    return html.escape(value, quote=False)


def line(x: Any, y: Any, name: str, colour: str, dash: str, hover: str | None) -> Figure:
    trace: Figure = {
        "type": "scatter",
        "mode": "lines",
        "x": _list(x),
        "y": _list(y),
        "name": name,
        "line": {"color": colour, "dash": dash, "width": 1.6},
    }
    return trace | ({"hoverinfo": "skip"} if hover is None else {"hovertemplate": f"{hover}<extra>{name}</extra>"})


def points(x: Any, y: Any, name: str, colour: str, symbol: str) -> Figure:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": _list(x),
        "y": _list(y),
        "name": name,
        "marker": {"color": colour, "symbol": symbol, "size": 9, "line": {"width": 1, "color": "paper"}},
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


def _list(values: Any) -> list[Any]:
    """Plain numbers, rounded to 6 digits; what is not finite is a gap."""
    out: list[Any] = []
    for value in np.asarray(values).tolist():
        if isinstance(value, float):
            out.append(float(f"{value:.6g}") if np.isfinite(value) else None)
        else:
            out.append(value)
    return out


def largest(spikes: Sequence[Spike]) -> Spike | None:
    """The spike with the largest z, non-finite events apart."""
    return max((s for s in spikes if s.kind == "spike"), key=lambda s: s.z, default=None)
