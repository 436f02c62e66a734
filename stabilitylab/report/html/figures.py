"""The charts of one run, as plain plotly dicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from stabilitylab.analysis.results import Episode, LayerSeries, RunAnalysis, RunSeries, Spike
from stabilitylab.report.downsample import heat_rows, min_max
from stabilitylab.report.html.plotting import COLOURS, DASHES, SYMBOLS, Figure, figure, line, numbers, points, text

MOST_OUTLINES = 300
NUMBERED = 12
_MANY_MARKS = 300


def layer_norms(analysis: RunAnalysis, layers: Sequence[LayerSeries]) -> Figure:
    """Gradient norms of some layers on a log axis, spikes marked at their peak."""
    traces: list[Figure] = []
    for index, layer in enumerate(layers):
        colour, name = COLOURS[index % 6], text(layer.name)
        x, y = min_max(layer.iteration, np.where(layer.grad_norm > 0, layer.grad_norm, np.nan))
        traces.append(line(x, y, name, colour, DASHES[index % 6], "%{y:.3g} at %{x}"))
        spikes = [s for s in analysis.spikes or () if s.layer == layer.name and s.kind == "spike"]
        if spikes:
            at = np.searchsorted(layer.iteration, [s.peak for s in spikes])
            marks = points(layer.iteration[at], layer.grad_norm[at], f"{name}: spikes", colour, SYMBOLS[index % 6])
            marks["text"] = [f"{s.ratio:.1f}x, z = {s.z:.1f}, from {s.onset} to {s.end}" for s in spikes]
            traces.append(marks | {"showlegend": False})
    shown = figure(traces, "iteration", "gradient norm")
    shown["layout"]["yaxis"] |= {"type": "log", "tickformat": "~g", "dtick": 1}
    return shown


def heat_map(series: RunSeries, analysis: RunAnalysis) -> Figure:
    """Iteration x layer: log10 of the gradient norm over the layer's own running median. Spike onsets are marked,
    episodes of several layers outlined; the farthest-reaching carry their number."""
    layers = tuple(layer for layer in series.layers if layer.trainable and len(layer.iteration))
    edges, cells = heat_rows(layers)
    names = [text(layer.name) for layer in layers]
    heat = {
        "type": "heatmap",
        "x": numbers(edges.round(1)),
        "y": names,
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
            "x": 0,  # as legends are: the mode bar is at the right
            "xanchor": "left",
            "yref": "container",
            "y": 1,
            "yanchor": "top",
            "ypad": 0,
        },
        "hoverongaps": False,
        "hovertemplate": "%{y} at %{x:.0f}: 10^%{z:.2f} of usual<extra></extra>",
    }
    spikes = [s for s in analysis.spikes or () if s.kind == "spike"]
    many = len(spikes) > _MANY_MARKS
    shown = figure([heat] if many else [heat, _circles(spikes)], "iteration", "")
    shown["layout"]["yaxis"] |= {"type": "category", "autorange": "reversed", "automargin": True}
    shown["layout"]["showlegend"] = False
    shown["layout"]["margin"] |= {"t": 52}
    row = {layer.name: place for place, layer in enumerate(layers)}
    shown["layout"]["shapes"] = _outlines(analysis.episodes or (), row) + ([_ticks(spikes, row)] if many else [])
    shown["layout"]["annotations"] = _labels(analysis.episodes or ())
    return shown


def _circles(spikes: Sequence[Spike]) -> Figure:
    marks = points([s.onset for s in spikes], [text(s.layer) for s in spikes], "spike onset", "ink", "circle-open")
    marks["marker"] |= {"size": 8, "line": {"width": 1.5, "color": "ink"}}
    return marks | {"text": [f"{s.ratio:.1f}x" for s in spikes]}


def _ticks(spikes: Sequence[Spike], row: Mapping[str, int]) -> Figure:
    """One path for all: a browser draws it at once, thousands of circles it does not."""
    at = [(s.onset, row[s.layer]) for s in spikes if s.layer in row]
    path = "".join(f"M{x},{y - 0.3:.1f}L{x},{y + 0.3:.1f}" for x, y in at)
    return {"type": "path", "path": path, "line": {"color": "ink", "width": 1}}


def outlined(episodes: Sequence[Episode]) -> list[tuple[int, Episode]]:
    """Number (from 1, by start) and episode of those that several layers share; the farthest-reaching, if many."""
    shared = [(n, e) for n, e in enumerate(episodes, 1) if len(e.order) > 1]
    farthest = sorted(shared, key=lambda item: (-len(item[1].order), -item[1].z))[:MOST_OUTLINES]
    return sorted(farthest, key=lambda item: item[1].start)


def numbered(episodes: Sequence[Episode]) -> set[int]:
    """The numbers that stand in the chart: those of the farthest-reaching."""
    farthest = sorted(outlined(episodes), key=lambda item: (-len(item[1].order), -item[1].z))
    return {n for n, _ in farthest[:NUMBERED]}


def _outlines(episodes: Sequence[Episode], row: Mapping[str, int]) -> list[Figure]:
    shapes: list[Figure] = []
    for _, episode in outlined(episodes):
        rows = [row[layer] for layer, _ in episode.order if layer in row]
        if not rows:
            continue
        shapes.append(
            {
                "type": "rect",
                "x0": episode.start - 1,
                "x1": episode.end + 1,
                "y0": min(rows) - 0.5,
                "y1": max(rows) + 0.5,
                "line": {"color": "ink", "width": 1.5},
            }
        )
    return shapes


def _labels(episodes: Sequence[Episode]) -> list[Figure]:
    """The numbers above the chart."""
    shown = numbered(episodes)
    return [
        {
            "text": str(n),
            "x": (episode.start + episode.end) / 2,
            "y": 1,
            "yref": "paper",
            "yanchor": "bottom",
            "showarrow": False,
            "font": {"size": 12, "color": "ink"},
        }
        for n, episode in outlined(episodes)
        if n in shown
    ]


def lag_histogram(analysis: RunAnalysis) -> Figure:
    """Matched lags, and what circular shifts give, scaled to the same number of pairs."""
    lag = analysis.lag
    assert lag is not None
    measured = {
        "type": "histogram",
        "x": list(lag.lags),
        "xbins": {"start": -102.5, "end": 102.5, "size": 5},
        "name": "measured",
        "marker": {"color": COLOURS[0]},
        "histnorm": "probability",
    }
    traces: list[Figure] = [measured]
    if lag.null_lags:
        counts, edges = np.histogram(lag.null_lags, np.arange(-102.5, 103, 5))
        share = counts / max(counts.sum(), 1)
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
    shown["layout"]["yaxis"] |= {"type": "category", "autorange": "reversed", "automargin": True}
    shown["layout"]["xaxis"] |= {"zeroline": True}
    shown["layout"]["showlegend"] = False
    return shown


def largest(spikes: Sequence[Spike]) -> Spike | None:
    """The spike that rises most above its usual norm, non-finite events apart."""
    return max((s for s in spikes if s.kind == "spike"), key=lambda s: s.ratio, default=None)
