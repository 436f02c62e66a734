"""A report of planted runs, for the tests of this folder."""

from __future__ import annotations

import numpy as np

from stabilitylab.analysis.compare import compare_runs, summarize_run
from stabilitylab.analysis.results import EvalCurve, LayerSeries, RunSeries
from stabilitylab.analysis.run import analyze_run
from stabilitylab.report.html import ReportRun, render_report
from tests.synthetic import planted_run


def report_run(series: RunSeries, *, mitigation: str = "", status: str = "finished") -> ReportRun:
    return ReportRun(
        series=series,
        analysis=analyze_run(series),
        config={"mitigation": [mitigation] if mitigation else [], "train": {"seed": 0}},
        status=status,
        created_at="2026-01-01T00:00:00+00:00",
        loss=(np.arange(100), np.linspace(3, 1, 100)),
        provenance={"seed": "0", "torch_version": "2"},
        events=[(0, "mitigation", mitigation)] if mitigation else [],
    )


def planted_page(name: str = "planted", layer: str = "patch_embed") -> str:
    """Two runs compared: one with planted spikes, lag and dips, one without."""
    unstable = planted_run(seed=0, layers=(layer, "blocks.0", "predictor"))
    calm = planted_run(seed=1, count=0, dips=False, layers=("tokens", "blocks.0", "predictor"))
    runs = [
        report_run(renamed(unstable.series, name)),
        report_run(renamed(calm.series, "calm"), mitigation="frozen-patch"),
    ]
    summaries = [
        summarize_run(run.series, run.analysis, mitigation=mitigation, seed=0, base_lr=0.1)
        for run, mitigation in zip(runs, ("none", "frozen-patch"), strict=True)
    ]
    return render_report(runs, compare_runs(summaries))


def renamed(series: RunSeries, name: str) -> RunSeries:
    return RunSeries(name, series.iterations, series.layers, series.evals)


def odd_runs() -> dict[str, ReportRun]:
    """Runs that lack what a report would draw."""
    nothing = np.array([], dtype=np.int64)
    flat = np.arange(100)
    return {
        "empty": report_run(RunSeries("empty", 0, ()), status="running"),
        "no gradients": report_run(
            RunSeries("curve", 50, (), {"knn_top1": EvalCurve(flat, flat / 100, np.full(100, 50))})
        ),
        "no kNN": report_run(RunSeries("grads", 100, (LayerSeries("only", 0, flat, np.ones(100)),))),
        "all NaN": report_run(RunSeries("nan", 100, (LayerSeries("only", 0, flat, np.full(100, np.nan)),))),
        "frozen": report_run(RunSeries("frozen", 9, (LayerSeries("f", 0, nothing, nothing.astype(float), False),))),
    }
