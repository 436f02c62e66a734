"""Figures for papers with matplotlib: column width, distinguishable without colour, embedded fonts."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stabilitylab.comparison.results import Comparison
from stabilitylab.errors import NoDataError
from stabilitylab.report import charts
from stabilitylab.report.charts import several_rates
from stabilitylab.report.metric import MetricText
from stabilitylab.report.paper import WIDTHS
from stabilitylab.report.paper.draw import draw, short
from stabilitylab.run.analysed import AnalysedRun, arms_of

MOST_ROWS = 4

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.0,
    "text.parse_math": False,  # show a dollar sign in a name literally
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.hashsalt": "stablab",
    "savefig.dpi": 300,
}


def render(kind: str, runs: Sequence[AnalysedRun], comparison: Comparison | None, *, width: str, form: str) -> bytes:
    """A figure of ``kind`` as the bytes of a PDF, SVG or PNG file. Raises NoDataError if the runs lack the data."""
    with matplotlib.rc_context(cast(Any, STYLE)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the glyph is drawn as a box
        figure = KINDS[kind](list(runs), comparison, width)
        out = io.BytesIO()
        undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}[form]
        figure.savefig(out, format=form, metadata=undated)
    return out.getvalue()


def _figure(width: str, height: float) -> Figure:
    return Figure(figsize=(WIDTHS[width], height), layout="constrained")


def _knn(runs: list[AnalysedRun], comparison: Comparison | None, width: str) -> Figure:
    _need_metric(runs)
    figure = _figure(width, 2.1)
    draw(figure.subplots(), charts.metric_curves(runs, arms_of(runs)), legend="lower right")
    return figure


def _spikes(runs: list[AnalysedRun], comparison: Comparison | None, width: str) -> Figure:
    return _a_row_each(runs, width, 1.5, _draw_spikes)


def _draw_spikes(axis: Axes, run: AnalysedRun) -> None:
    layers = run.trained_layers
    ends = [layers[0], layers[-1]] if len(layers) > 1 else layers
    chart = charts.spikes(run.analysis, ends, charts.iteration_axis([run.series]))
    options: dict[str, Any] = {"bbox_to_anchor": (1, 0.98), "ncols": 2, "borderaxespad": 0.1}
    draw(axis, chart, legend="lower right", width=0.7, **options)


def _heatmap(runs: list[AnalysedRun], comparison: Comparison | None, width: str) -> Figure:
    rows = max(len(run.trained_layers) for run in runs)
    return _a_row_each(runs, width, min(max(0.11 * rows + 0.75, 1.4), 3.2), _draw_heatmap)


def _draw_heatmap(axis: Axes, run: AnalysedRun) -> None:
    draw(axis, charts.heatmap(run))


def _a_row_each(
    runs: list[AnalysedRun], width: str, height: float, draw_one: Callable[[Axes, AnalysedRun], None]
) -> Figure:
    for run in runs:
        if not any(len(layer.iteration) for layer in run.trained_layers):
            raise NoDataError(f"run {run.series.run} has no recorded gradients; train with --log-grads")
    if len(runs) > MOST_ROWS:
        raise NoDataError(f"{len(runs)} runs do not fit in one column; select at most {MOST_ROWS}")
    figure = _figure(width, height * len(runs))
    axes = figure.subplots(len(runs), 1, squeeze=False)[:, 0]
    for axis, run in zip(axes, runs, strict=True):
        draw_one(axis, run)
        if len(runs) > 1:
            axis.set_title(short(run.series.run), loc="left")
    return figure


def _lag(runs: list[AnalysedRun], comparison: Comparison | None, width: str) -> Figure:
    if len(runs) > 1:
        raise NoDataError("the lag can be drawn for only one run; select one")
    analysis = runs[0].analysis
    if analysis.lag is None or not analysis.lag.lags:
        reason = analysis.lag.reason if analysis.lag is not None else "no layer has a gradient"
        raise NoDataError(f"run {runs[0].series.run} has no lag to draw: {reason}")
    shape, height = ((2, 1), 3.6) if width == "single" else ((1, 2), 2.0)
    figure = _figure(width, height)
    left, right = figure.subplots(*shape)
    draw(left, charts.lag(analysis), legend="upper left")
    chart = charts.propagation(analysis)
    draw(right, chart)
    if not chart.marks:
        text = "fewer than 5 matched spikes\nin every other layer"
        right.text(0.5, 0.5, text, ha="center", transform=right.transAxes)
        right.set_yticks([])
    return figure


def _compare(runs: list[AnalysedRun], comparison: Comparison | None, width: str) -> Figure:
    if comparison is None:
        raise NoDataError("a comparison needs at least two runs")
    _need_metric(runs)
    if width == "single":
        figure = _figure(width, 3.6)
        left, right = figure.subplots(2, 1)
    else:
        figure = _figure(width, 2.1)
        left, right = figure.subplots(1, 2, width_ratios=[1.7, 1])
    arms = arms_of(runs)
    draw(left, charts.metric_curves(runs, arms), legend="lower right")
    draw(right, charts.finals(runs, arms, comparison))
    right.set_xlim(-0.5, len(arms) - 0.5)
    right.tick_params(axis="x", labelrotation=20 if len(arms) > 2 else 0)
    return figure


def _lr_sensitivity(runs: list[AnalysedRun], comparison: Comparison | None, width: str) -> Figure:
    if comparison is None or not several_rates(comparison.runs, MetricText.of_comparison(comparison)):
        raise NoDataError("sensitivity to the learning rate needs runs with the same metric at two base learning rates")
    figure = _figure(width, 2.1)
    draw(figure.subplots(), charts.lr_sensitivity(comparison), legend="best")
    return figure


def _need_metric(runs: list[AnalysedRun]) -> None:
    metric = MetricText.of([run.analysis for run in runs])
    for run in runs:
        if not len(metric.values(run.series)):
            hint = "; train with --set eval.knn_every=10" if metric.metric.name == "knn_top1" else ""
            raise NoDataError(f"run {run.series.run} has no {metric.label}{hint}")


KINDS: dict[str, Callable[[list[AnalysedRun], Comparison | None, str], Figure]] = {
    "knn": _knn,
    "spikes": _spikes,
    "lag": _lag,
    "heatmap": _heatmap,
    "compare": _compare,
    "lr-sensitivity": _lr_sensitivity,
}
