"""The HTML report: one self-contained file. It shows the results of the analysis and computes nothing."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from stabilitylab.analysis import sentences
from stabilitylab.comparison.arms import Arm
from stabilitylab.comparison.results import Comparison
from stabilitylab.report import charts as charted
from stabilitylab.report.charts import several_rates
from stabilitylab.report.definitions import definitions
from stabilitylab.report.html import states, tables, verdict, wording
from stabilitylab.report.html.caused import caused
from stabilitylab.report.html.draw import plotly_figure
from stabilitylab.report.marks import Chart
from stabilitylab.report.metric import MetricText
from stabilitylab.report.plots import report_panels
from stabilitylab.run.analysed import AnalysedRun, arms_of, last_finite

OPEN_UP_TO = 2
"""With more runs than this, the sections of the runs are folded and their charts are drawn when opened."""
MOST_EXPLANATIONS = 40


def render_report(runs: Sequence[AnalysedRun], comparison: Comparison | None) -> str:
    """Render the page. Names and values are escaped, so that a run cannot inject markup or scripts."""
    environment = Environment(
        loader=PackageLoader("stabilitylab.report.html", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    charts = _Charts(_span(runs))
    pairs = [(run.series, run.analysis) for run in runs]
    groups = arms_of(runs)
    titles, differences = tables.config_differences([(run.series.run, run.config) for run in runs])
    summaries = comparison.runs if comparison else ()
    analyses = [run.analysis for run in runs]
    metric = MetricText.of_comparison(comparison) if comparison else MetricText.of(analyses)
    rated = several_rates(summaries, metric)
    return environment.get_template("report.html.j2").render(
        title=", ".join(run.series.run for run in runs[:3]) + (" ..." if len(runs) > 3 else ""),
        headline=verdict.headline(pairs, comparison),
        answers=verdict.answers(
            pairs, [run.named.mitigation if run.trained_here else "" for run in runs], groups, comparison
        ),
        knn=_knn(runs, groups, charts),
        loss=None if metric.metric.name == "loss" else _loss(runs, groups, charts),  # it is the judged metric
        rates=tables.rate_rows(summaries, metric) if comparison and rated else None,
        rate_chart=charts.add("rates", charted.lr_sensitivity(comparison)) if comparison and rated else None,
        metric=metric,
        run_titles=tables.run_titles(metric),
        runs=[_section(run, index, charts) for index, run in enumerate(runs)],
        run_rows=tables.run_rows(summaries, [run.status for run in runs], metric) if len(runs) > OPEN_UP_TO else [],
        folded=len(runs) > OPEN_UP_TO,
        effects=tables.effect_rows(comparison) if comparison else [],
        pooled=states.pooled_rows(comparison.lags) if comparison else [],
        warnings=list(dict.fromkeys(e.warning for e in comparison.effects if e.warning)) if comparison else [],
        comparison=comparison,
        difference_titles=titles,
        differences=differences,
        definitions=definitions(metric.metric.name),
        css=Markup(_template("report.css")),
        js=Markup(_template("report.js")),
        plotly=_plotly(),
        charts=Markup(charts.json()),
    )


@cache
def _plotly() -> str:
    """Plotly's code, compressed. The page decompresses it, which more than halves the file size."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()


class _Charts:
    """The charts of the page by id, serialised to JSON that is safe inside a script element."""

    def __init__(self, span: tuple[int, int]) -> None:
        self._span = span
        self._charts: dict[str, dict[str, Any]] = {}

    def add(self, name: str, chart: Chart, group: str = "") -> str:
        """Add a chart. Charts of one ``group`` share their iteration axis and zoom together."""
        figure = plotly_figure(chart)
        if group:
            figure["layout"]["xaxis"] |= {"range": list(self._span)}
        self._charts[name] = {**figure, "group": group}
        return name

    def json(self) -> str:
        return json.dumps(self._charts, allow_nan=False).replace("<", "\\u003c").replace("\u2028", "\\u2028")


def _span(runs: Sequence[AnalysedRun]) -> tuple[int, int]:
    """The first and last iteration recorded by any of the runs."""
    recorded = [layer.iteration for run in runs for layer in run.series.layers]
    recorded += [curve.iteration for run in runs for curve in run.series.evals.values()]
    recorded += [run.loss[0] for run in runs if run.loss is not None]
    recorded = [iteration for iteration in recorded if len(iteration)]
    first = min((int(iteration[0]) for iteration in recorded), default=0)
    last = max((int(iteration[-1]) for iteration in recorded), default=0)
    return first, max(last, first + 1)


def _knn(runs: Sequence[AnalysedRun], groups: Sequence[Arm], charts: _Charts) -> tuple[str, str] | None:
    """The id of the chart and its description for screen readers."""
    metric = MetricText.of([run.analysis for run in runs])
    curves = [(run.name, metric.values(run.series)) for run in runs]
    ends = [(name, metric.factor * float(values[-1])) for name, values in curves if len(values)]
    if not ends:
        return None
    words = wording.curves_in_words(metric.label, ends, " %" if metric.metric.share else "")
    return charts.add("knn", charted.metric_curves(runs, groups), "time"), words


def _loss(runs: Sequence[AnalysedRun], groups: Sequence[Arm], charts: _Charts) -> tuple[str, str] | None:
    finals = [(run.name, last_finite(run.loss[1])) for run in runs if run.loss is not None]
    ends = [(name, final) for name, final in finals if final is not None]
    if not ends:
        return None
    chart = charted.loss_curves(runs, groups)
    return charts.add("loss", chart, "time"), wording.curves_in_words("the training loss", ends, "")


def _section(run: AnalysedRun, index: int, charts: _Charts) -> dict[str, Any]:
    layers = run.trained_layers
    analysis = run.analysis
    recorded = [layer for layer in layers if np.isfinite(layer.grad_norm).any()]
    section: dict[str, Any] = {
        "name": run.series.run,
        "status": run.status,
        "created_at": run.created_at,
        "summary": wording.summary(run.series, analysis, run.status),
        "numbers": tables.key_numbers(run.series, analysis),
        "notes": analysis.notes,
        "lag_sentence": sentences.lag_sentence(analysis),
        "cross_sentence": sentences.cross_sentence(analysis),
        "early_sentence": sentences.early_sentence(analysis),
        "link_sentence": sentences.link_sentence(analysis),
        "layers": tables.layer_rows(run.series, analysis),
        "episodes": tables.episode_rows(analysis),
        "explanations": run.explanations[:MOST_EXPLANATIONS],
        "more_explanations": max(len(run.explanations) - MOST_EXPLANATIONS, 0),
        "dips": tables.dip_rows(analysis),
        "drift_sentence": sentences.drift_sentence(analysis),
        "drifts": states.drift_rows(analysis),
        "more_drifts": max(len(analysis.drifts or ()) - states.MOST_DRIFTS, 0),
        "collapse_sentence": sentences.collapse_sentence(analysis),
        "signs": states.sign_rows(analysis.collapse),
        "events": [e for e in run.events if e[1] not in ("checkpoint",)],
        "provenance": run.provenance,
        "caused": caused(run),
        "norms": None,
        "heat": None,
        "lag": None,
        "depth": None,
        "panels": [(charts.add(f"{name}{index}", chart), caption) for name, caption, chart in report_panels(run)],
    }
    if recorded:
        ends = [recorded[0], recorded[-1]] if len(recorded) > 1 else recorded
        section["norms"] = charts.add(
            f"norms{index}", charted.spikes(analysis, ends, charted.iteration_axis([run.series])), "time"
        )
        section["norms_words"] = wording.norms_in_words(analysis, [layer.name for layer in ends])
        section["heat"] = charts.add(f"heat{index}", charted.heatmap(run), "time")
        section["heat_words"] = wording.heat_in_words(analysis)
        section["heat_height"] = min(max(22 * len(layers) + 110, 240), 580)
    if analysis.lag is not None and analysis.lag.lags:
        section["lag"] = charts.add(f"lag{index}", charted.lag(analysis))
    if sum(row.ci95 is not None for row in analysis.propagation or ()) > 1:
        section["depth"] = charts.add(f"depth{index}", charted.propagation(analysis))
    return section


def _template(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")
