"""The numbers of a figure with their intervals as a LaTeX table."""

from __future__ import annotations

from collections.abc import Sequence

from stabilitylab.analysis.results import LayerLag
from stabilitylab.comparison.results import Comparison
from stabilitylab.errors import NoDataError
from stabilitylab.report.comparison import comparison_latex, rates_table
from stabilitylab.report.html.tables import run_titles
from stabilitylab.report.metric import MetricText
from stabilitylab.report.paper import latex
from stabilitylab.run.analysed import AnalysedRun


def numbers_latex(kind: str, runs: Sequence[AnalysedRun], comparison: Comparison | None) -> str:
    """The table for a figure of ``kind``. Raises NoDataError if the runs lack the numbers."""
    if kind == "compare":
        if comparison is None:
            raise NoDataError("a comparison needs at least two runs")
        return comparison_latex(comparison)
    if kind == "lr-sensitivity":
        caption, titles, rows, align = rates_table(
            comparison.runs if comparison else (), MetricText.of_comparison(comparison)
        )
        if not rows:
            raise NoDataError(
                "sensitivity to the learning rate needs runs with the same metric at two base learning rates"
            )
        return latex.table(titles, rows, align=align, caption=caption, label="tab:stablab-lr")
    if kind == "lag":
        return "\n".join(_lags(run) for run in runs)
    return _runs(runs)


def _lags(run: AnalysedRun) -> str:
    """Median lag of each layer with its interval."""
    measured = [row for row in run.analysis.propagation or () if row.median_lag is not None]
    if not measured:
        raise NoDataError(f"run {run.series.run} has no lag to show: no spikes matched")
    rows = [(row.layer, str(row.depth), *_interval(row), str(row.num_matched)) for row in measured]
    first = run.analysis.lag.source if run.analysis.lag else measured[0].layer
    return latex.table(
        ("layer", "depth", "median lag", "95% interval", "matched"), rows, align="lrrrr",
        caption=f"{run.series.run}: iterations from a spike in {first} to the matching spike", label="tab:stablab-lag",
    )  # fmt: skip


def _interval(row: LayerLag) -> tuple[str, str]:
    median = "" if row.median_lag is None else f"{row.median_lag:g}"
    return median, "fewer than 5 matches" if row.ci95 is None else f"{row.ci95[0]:g} to {row.ci95[1]:g}"


def _runs(runs: Sequence[AnalysedRun]) -> str:
    """Accuracy, spikes, lag and dips of each run."""
    metric = MetricText.of([run.analysis for run in runs])
    points = 100.0 if metric.metric.share else 1.0
    final, best, _, deepest = run_titles(metric)
    rows = []
    for run in runs:
        analysis, lag = run.analysis, run.analysis.lag
        finite = metric.values(run.series)
        timed = lag is not None and lag.median_iterations is not None and lag.ci95 is not None
        rows.append(
            (
                run.series.run,
                metric.number(float(finite[-1])) if len(finite) else "",
                metric.number(metric.best(finite)) if len(finite) else "",
                "not judged" if analysis.spikes_unjudged else str(len(analysis.spikes or ())),
                f"{analysis.false_alarms.expected:.2g}"
                if analysis.false_alarms and not analysis.spikes_unjudged
                else "",
                f"{lag.median_iterations:g} ({lag.ci95[0]:g} to {lag.ci95[1]:g})"
                if lag is not None and lag.ci95 is not None and timed
                else "inconclusive",
                "not judged" if analysis.dips is None else str(len(analysis.dips)),
                "" if analysis.dips is None else f"{points * max((d.depth for d in analysis.dips), default=0.0):.3g}",
            )
        )
    titles = (
        "run",
        final,
        best,
        "spikes",
        "by chance",
        "lag (95% interval)",
        "dips" if metric.higher else "rises",
        deepest,
    )
    return latex.table(titles, rows, align="lrrrrrrr", caption="Instability of each run", label="tab:stablab-runs")
