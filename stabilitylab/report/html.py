"""The HTML report: one self-contained file. Draws what analysis found, computes nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from stabilitylab.analysis.results import Comparison, LayerSeries, RunAnalysis, RunSeries
from stabilitylab.report import figures, tables, wording


@dataclass(frozen=True)
class ReportRun:
    """One run of a report. ``loss`` is (iteration, loss); ``events`` are (iteration, kind, detail)."""

    series: RunSeries
    analysis: RunAnalysis
    config: dict[str, Any]
    status: str
    created_at: str
    loss: tuple[np.ndarray, np.ndarray] | None
    provenance: dict[str, str]
    events: Sequence[tuple[int, str, str]]

    @property
    def trained_layers(self) -> list[LayerSeries]:
        return [layer for layer in self.series.layers if layer.trainable and len(layer.iteration)]


def render_report(runs: Sequence[ReportRun], comparison: Comparison | None) -> str:
    """The page. Names and values are escaped: nothing in a run can become markup or script."""
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("stabilitylab.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    charts = _Charts()
    pairs = [(run.series, run.analysis) for run in runs]
    losses = [(run.series.run, *run.loss) for run in runs if run.loss is not None]
    sections = [_section(run, index, charts) for index, run in enumerate(runs)]
    return environment.get_template("report.html.j2").render(
        title=", ".join(run.series.run for run in runs),
        headline=wording.headline(pairs, comparison),
        runs=sections,
        knn=charts.add("knn", figures.knn_curves(pairs), "time")
        if any("knn_top1" in run.series.evals for run in runs)
        else None,
        loss=charts.add("loss", figures.loss_curves(losses), "time") if losses else None,
        effects=tables.effect_rows(comparison) if comparison else [],
        comparison=comparison,
        differences=tables.config_differences([(run.series.run, run.config) for run in runs]),
        definitions=wording.DEFINITIONS,
        css=Markup(_template("report.css")),
        js=Markup(_template("report.js")),
        plotly=Markup(get_plotlyjs()),
        charts=Markup(charts.json()),
    )


def write_report(path: Path, html: str) -> None:
    """Replace ``path`` only when the new file is whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(html, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class _Charts:
    """The page's charts by id, as JSON that is safe inside a script element."""

    def __init__(self) -> None:
        self._charts: dict[str, dict[str, Any]] = {}

    def add(self, name: str, figure: figures.Figure, group: str = "") -> str:
        """Charts of one ``group`` zoom together along the iteration axis."""
        self._charts[name] = {**figure, "group": group}
        return name

    def json(self) -> str:
        return json.dumps(self._charts, allow_nan=False).replace("<", "\\u003c").replace("\u2028", "\\u2028")


def _section(run: ReportRun, index: int, charts: _Charts) -> dict[str, Any]:
    layers = run.trained_layers
    found = run.analysis
    recorded = [layer for layer in layers if np.isfinite(layer.grad_norm).any()]
    section: dict[str, Any] = {
        "name": run.series.run,
        "status": run.status,
        "created_at": run.created_at,
        "summary": wording.summary(run.series, found, run.status),
        "numbers": tables.key_numbers(run.series, found),
        "notes": found.notes,
        "lag_sentence": wording.lag_sentence(found),
        "link_sentence": wording.link_sentence(found),
        "layers": tables.layer_rows(run.series, found),
        "dips": tables.dip_rows(found),
        "events": [e for e in run.events if e[1] not in ("checkpoint",)],
        "provenance": run.provenance,
        "norms": None,
        "heat": None,
        "lag": None,
        "depth": None,
    }
    if recorded:
        ends = [recorded[0], recorded[-1]] if len(recorded) > 1 else recorded
        section["norms"] = charts.add(f"norms{index}", figures.layer_norms(run.series, found, ends), "time")
        section["heat"] = charts.add(f"heat{index}", figures.heat_map(run.series, found), "time")
    if found.lag is not None and found.lag.lags:
        section["lag"] = charts.add(f"lag{index}", figures.lag_histogram(found))
    if sum(row.ci95 is not None for row in found.propagation or ()) > 1:
        section["depth"] = charts.add(f"depth{index}", figures.depth_against_lag(found))
    return section


def _template(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")
