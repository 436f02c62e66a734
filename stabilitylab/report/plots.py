"""The charts of a run by name, as plotly figures for `Run.plot`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from stabilitylab.comparison.results import Comparison
from stabilitylab.errors import NoDataError
from stabilitylab.registry import Registry
from stabilitylab.report import charts
from stabilitylab.report.html.draw import plotly_figure
from stabilitylab.report.html.plotting import text
from stabilitylab.report.marks import Axis, Chart, Line
from stabilitylab.run.analysed import AnalysedRun, arms_of
from stabilitylab.signals import SIGNALS

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from pandas import DataFrame

PAGE = {
    "ink": "#1d1f21",
    "page": "#ffffff",
    "heat": [[0, "#ffffff"], [0.25, "#fde0a8"], [0.5, "#f2924b"], [0.75, "#c43c4e"], [1, "#4a1260"]],
}
"""The values of colour names outside the report. The report maps them to the reader's light or dark theme."""
MOST_LAYERS = 12


class SignalSource(Protocol):
    """A source of recorded signals for plots, such as a `Run`."""

    def signal(self, name: str = ...) -> DataFrame: ...


@dataclass(frozen=True)
class Plot:
    """A kind of plot. ``draw(run, source, **options)`` returns a `Chart` of an `AnalysedRun` and raises NoDataError if
    ``run`` lacks the data. ``source`` provides the signals; it is None in a report. ``help``: one line, also the
    caption in a report. ``in_report``: whether to add it to each run's section of the report."""

    help: str
    draw: Callable[..., Chart]
    in_report: bool = False


def report_panels(run: AnalysedRun) -> list[tuple[str, str, Chart]]:
    """(name, caption, chart) of the additional panels for which ``run`` has data."""
    panels = []
    for name, plot in PLOTS.items():
        if plot.in_report:
            try:
                panels.append((name, plot.help, plot.draw(run, None)))
            except NoDataError:
                continue
    return panels


def plots_of(run: AnalysedRun, source: SignalSource) -> dict[str, str]:
    """name -> description of the plots for which ``run`` has data."""
    available = {}
    for name, plot in PLOTS.items():
        try:
            plot.draw(run, source)
        except NoDataError:
            continue
        available[name] = plot.help
    return available


def draw_comparison(kind: str, runs: Sequence[AnalysedRun], comparison: Comparison) -> go.Figure:
    """The figure of ``kind``, one of `COMPARISON_PLOTS`. Raises NoDataError if no run has data for it."""
    chart = COMPARISON_PLOTS[kind].draw(runs, comparison)
    if not chart.marks:
        raise NoDataError(f"plot {kind!r}: no run has the data to draw")
    return _figure(chart, ", ".join(run.name for run in runs))


def draw(kind: str, run: AnalysedRun, source: SignalSource, options: dict[str, Any]) -> go.Figure:
    """The figure of ``kind``, validated by plotly. Raises NoDataError for an unknown option or missing data."""
    try:
        chart = PLOTS[kind].draw(run, source, **options)
    except TypeError as error:
        if "keyword argument" not in str(error):
            raise
        raise NoDataError(f"plot {kind!r}: {str(error).partition('() ')[2]}") from None
    return _figure(chart, run.name)


def _figure(chart: Chart, title: str) -> go.Figure:
    import plotly.graph_objects as go

    shown = go.Figure(in_colour(plotly_figure(chart)))
    return shown.update_layout(template="plotly_white", title={"text": text(title), "x": 0.01})


def in_colour(value: Any) -> Any:
    """Replace colour names in a figure."""
    if isinstance(value, dict):
        data = ("x", "y", "z", "text", "name", "title")
        return {key: item if key in data else in_colour(item) for key, item in value.items()}
    if isinstance(value, list):
        return [in_colour(item) for item in value]
    return PAGE.get(value, value) if isinstance(value, str) else value


def _need_gradients(run: AnalysedRun) -> None:
    if not any(np.isfinite(layer.grad_norm).any() for layer in run.trained_layers):
        raise NoDataError(f"run {run.name} has no recorded gradients; train with --log-grads")


def _spikes(run: AnalysedRun, source: SignalSource, layers: list[str] | None = None) -> Chart:
    _need_gradients(run)
    known = {layer.name: layer for layer in run.trained_layers if np.isfinite(layer.grad_norm).any()}
    ends = list(known.values())
    if layers is None:
        shown = [ends[0], ends[-1]] if len(ends) > 1 else ends
        return charts.spikes(run.analysis, shown, charts.iteration_axis([run.series]))
    unknown = [name for name in layers if name not in known]
    if unknown:
        raise NoDataError(f"run {run.name} has no gradients of {unknown[0]!r}; it has {', '.join(known)}")
    return charts.spikes(run.analysis, [known[name] for name in layers], charts.iteration_axis([run.series]))


def _heat(run: AnalysedRun, source: SignalSource) -> Chart:
    _need_gradients(run)
    return charts.heatmap(run)


def _metric(run: AnalysedRun, source: SignalSource) -> Chart:
    chart = charts.metric_curves([run], arms_of([run]))
    if not chart.marks:
        raise NoDataError(f"run {run.name} has no evaluation curve")
    return chart


def _loss(run: AnalysedRun, source: SignalSource) -> Chart:
    if run.loss is None or not np.isfinite(run.loss[1]).any():
        raise NoDataError(f"run {run.name} has no training loss")
    return charts.loss_curves([run], arms_of([run]))


def _lag(run: AnalysedRun, source: SignalSource) -> Chart:
    lag = run.analysis.lag
    if lag is None or not lag.lags:
        raise NoDataError(f"run {run.name} has no lag to draw: {lag.reason if lag else 'no layer has a gradient'}")
    return charts.lag(run.analysis)


def _propagation(run: AnalysedRun, source: SignalSource) -> Chart:
    if not any(row.ci95 is not None for row in run.analysis.propagation or ()):
        raise NoDataError(f"run {run.name}: no layer has enough spikes that match those of the first layer")
    return charts.propagation(run.analysis)


def _signal(run: AnalysedRun, source: SignalSource, name: str = "grad_norm", layers: list[str] | None = None) -> Chart:
    frame = source.signal(name)
    names = list(frame.columns) if layers is None else layers
    unknown = [layer for layer in names if layer not in frame.columns]
    if unknown:
        raise NoDataError(f"{name} was not recorded in {unknown[0]!r}; it was recorded in {', '.join(frame.columns)}")
    if layers is None and len(names) > MOST_LAYERS:  # evenly from input to output
        names = [names[i] for i in np.linspace(0, len(names) - 1, MOST_LAYERS).round().astype(int)]
    declared = SIGNALS.get(name)
    series = [(layer, frame[layer].dropna()) for layer in names]
    unit = "" if declared is None or declared.unit == "1" else f", {declared.unit}"
    positive = all(bool((values > 0).all()) for _, values in series)
    log = positive and not (declared is not None and declared.signed)
    return Chart(
        charts.ITERATION,
        Axis(f"{name}{unit}", log=log),
        tuple(
            Line(values.index.to_numpy(), values.to_numpy(), layer, style, hover="%{y:.4g} at %{x}")
            for style, (layer, values) in enumerate(series)
        ),
    )


PLOTS: Registry[Plot] = Registry(
    "plot",
    {
        "spikes": Plot("gradient norm of the first and the last layer (layers=[...]), spikes marked", _spikes),
        "heatmap": Plot("gradient norm of every layer over iterations, relative to its usual norm", _heat),
        "metric": Plot("the evaluation curve, dips marked", _metric),
        "loss": Plot("the training loss", _loss),
        "lag": Plot("lags from the first to the last layer, compared with chance", _lag),
        "propagation": Plot("median lag of each layer behind the first", _propagation),
        "signal": Plot("any recorded signal by layer (name=..., layers=[...])", _signal),
    },
    group="stabilitylab.plots",
)

COMPARISON_PLOTS = {
    "metric": Plot("the evaluation curve of every run", lambda runs, _: charts.metric_curves(runs, arms_of(runs))),
    "loss": Plot("the training loss of every run", lambda runs, _: charts.loss_curves(runs, arms_of(runs))),
    "finals": Plot("the final value of every run by mitigation", lambda runs, c: charts.finals(runs, arms_of(runs), c)),
    "lr_sensitivity": Plot("the final value by base learning rate", lambda _, c: charts.lr_sensitivity(c)),
}
