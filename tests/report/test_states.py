"""What lasts and what is pooled, in the page and in the tables of a comparison: planted, and read back as text."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from stabilitylab.analysis.results import EvalCurve, LayerSeries, RunSeries
from stabilitylab.analysis.sentences import drift_count, drift_sentence
from stabilitylab.comparison.pooled import by_mitigation
from stabilitylab.report.comparison import comparison_html, comparison_markdown
from stabilitylab.report.html.page import render_report
from tests.report.pages import compared_runs, comparison_of, report_run

N = 3000


def said(page: str) -> str:
    """The page's text without markup and plotly's code."""
    own = page.split('<script type="application/json"')[0].split("<body>")[1]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", own))


def series(*, grows: float = 1.0, collapses_at: int | None = None) -> RunSeries:
    """Two layers without spikes; the norm of the first changes by ``grows``; features differ until they do not."""
    rng = np.random.default_rng(3)
    at = np.arange(N)
    trend = np.log(grows) * np.clip((at - 500) / 2000, 0, 1)
    layers = [
        LayerSeries("patch_embed", 0, at, np.exp(0.1 * rng.standard_normal(N) + trend)),
        LayerSeries("head", 1, at, np.exp(0.1 * rng.standard_normal(N))),
    ]
    every = np.arange(0, N, 100)
    gone = np.zeros(len(every), dtype=bool) if collapses_at is None else every >= collapses_at
    accuracy = np.where(gone, 0.1, 0.85) + rng.normal(0, 0.005, len(every))
    curve = EvalCurve(every, accuracy, np.full(len(every), 1000))
    spread = np.where(gone, 1e-4, 0.11)
    scalars = {"feature_spread": (every, spread), "feature_dim": (every, np.full(len(every), 64.0))}
    return RunSeries("r", N, tuple(layers), {"knn_top1": curve}, scalars=scalars)


def test_a_growing_norm_is_told_on_the_first_screen_and_in_numbers() -> None:
    page = said(render_report([report_run(series(grows=200.0))], None))
    assert re.search(
        r"No spikes or dips beyond chance, but the norm of 1 layer grows by up to \d+x \(patch_embed\)", page
    )
    factor = float(re.search(r"patch_embed, from \S+ to \S+ \((\d+)x\) over iterations", page)[1])  # type: ignore[index]
    assert 150 < factor < 260
    assert "Table of drifts" in page
    assert "No collapse" in page
    flat = said(render_report([report_run(series())], None))
    assert "No instability found" in flat
    assert "Table of drifts" not in flat


def test_the_headline_tells_partly_collapsed_features_and_a_shrinking_norm() -> None:
    run = report_run(series())
    assert run.analysis.collapse is not None
    partly = replace(run.analysis.collapse, verdict="partly", iteration=1400, reason="low rank")
    page = said(render_report([replace(run, analysis=replace(run.analysis, collapse=partly))], None))
    assert "No spikes or dips beyond chance, but features partly collapsed at iteration 1400" in page
    assert "Partly collapsed from iteration 1400 on: low rank." in page
    page = said(render_report([report_run(series(grows=1 / 50))], None))
    assert re.search(
        r"No instability found; the norm of 1 layer shrinks to as little as 1/[\d.]+ \(patch_embed\)", page
    )


def test_a_drift_that_is_not_certain_is_not_told_as_drift() -> None:
    run = report_run(series(grows=200.0))
    assert run.analysis.drifts is not None
    (drift,) = run.analysis.drifts
    unsure = replace(drift, ci95=(-1.0, 12.0), certain=False)
    both = (unsure, replace(drift, layer="head"))
    page = said(render_report([replace(run, analysis=replace(run.analysis, drifts=(unsure,)))], None))
    assert "No instability found" in page
    assert "drifts in" not in page
    told = "In 1 layer the norm changes by a factor of 10 or more, but wanders so much that a drift is not certain."
    assert told in page
    assert "(-1 to +12), not certain" in page
    two = replace(run.analysis, drifts=both)
    assert two.certain_drifts == both[1:]
    assert drift_sentence(two).startswith("The gradient norm drifts in 1 layer; most in head")
    assert "In another layer the norm changes" in drift_sentence(two)
    assert drift_count(two) == "1, and 1 that is not certain"


def test_a_collapse_is_the_headline() -> None:
    page = said(render_report([report_run(series(collapses_at=2000))], None))
    assert "Collapsed at iteration 2000: " in page
    assert "features collapsed at iteration 2000" in page
    assert re.search(r"feature spread gone 2,000 0\.0001 0\.125", page)
    assert re.search(r"feature rank not judged: not recorded", page)


def test_pooled_lags_are_in_the_report_of_several_runs_and_in_tables() -> None:
    runs = compared_runs(seeds=3, rates=(0.1,))
    lags = by_mitigation((run.summary.mitigation, run.analysis) for run in runs)
    told = next(lag for lag in lags if lag.group == "none" and lag.ci95 is not None)
    compared = replace(comparison_of(runs), lags=lags)
    low, high = told.ci95 or (0, 0)
    page = said(render_report(runs, compared))
    assert "Lag pooled over runs" in page
    for text in (page, said(comparison_html(compared) + '<script type="application/json"')):
        assert f"{told.source} {told.target} {told.median_iterations:g} {low:g} to {high:g}" in text
    assert f"| {told.median_iterations:g} | {low:g} to {high:g} |" in comparison_markdown(compared)
