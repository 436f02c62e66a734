"""A report names the metric of the run and no other."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from stabilitylab.analysis.series import EvalCurve, RunSeries
from stabilitylab.comparison.effects import compare_runs, summarize_run
from stabilitylab.report.html.page import render_report
from stabilitylab.report.paper.figures import render
from stabilitylab.report.paper.numbers import numbers_latex
from tests.report.pages import report_run
from tests.report.test_html import own_part
from tests.synthetic import planted_run

FORMS = {
    "val_acc": (lambda a: a, "accuracy dips", "points"),
    "val_top1": (lambda a: 100 * a, "accuracy dips", "points"),
    "val_loss": (lambda a: 2 - a, "rises of val_loss", "Largest rise 0."),
    "perplexity": (lambda a: np.exp(2 - a), "rises of perplexity", "a factor of 1."),
}


def named(name: str, seed: int = 1, run: str = "mine") -> RunSeries:
    series = planted_run(seed=seed).series
    curve = series.evals["knn_top1"]
    value = FORMS[name][0](curve.value)
    return replace(series, run=run, evals={name: EvalCurve(curve.iteration, value, curve.num_samples)})


@pytest.mark.parametrize("name", FORMS)
def test_a_page_names_the_judged_metric_and_no_other(name: str) -> None:
    _, dips, depth = FORMS[name]
    page = own_part(render_report([report_run(named(name))], None))
    said = re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", " ", page.split('id="charts"')[0], flags=re.DOTALL))
    assert "kNN" not in said
    assert f"4 {dips}" in said
    assert depth in said
    assert f"judged by {name}: {'higher' if 'acc' in name or 'top1' in name else 'lower'} is better" in said


@pytest.mark.parametrize("name", FORMS)
def test_figures_and_tables_follow_the_metric(name: str) -> None:
    run = report_run(named(name))
    assert render("knn", [run], None, width="single", form="svg").startswith(b"<?xml")
    table = numbers_latex("spikes", [run], None)
    assert "kNN" not in table
    assert f"final {name}".replace("_", r"\_") in table


@pytest.mark.parametrize(("name", "verdict"), [("val_acc", "better"), ("val_loss", "worse")])
def test_a_comparison_knows_the_direction(name: str, verdict: str) -> None:
    """The treated runs end 0.05 higher: better for an accuracy, worse for a loss."""
    rows = []
    for seed in range(4):
        for mitigation, shift in (("none", 0.0), ("frozen-patch", 0.05 + 0.001 * seed)):
            run = report_run(named(name, seed, f"{mitigation}_{seed}"), mitigation="", seed=seed)
            row = summarize_run(run.series, run.analysis, mitigation=mitigation, seed=seed, base_lr=0.1)
            rows.append(replace(row, final=(row.final or 0.0) + shift))
    compared = compare_runs(rows)
    assert (compared.metric, compared.goal) == (name, "max" if verdict == "better" else "min")
    effect = next(e for e in compared.effects if e.metric == f"final_{name}")
    assert effect.verdict == verdict
    assert effect.difference == pytest.approx(0.0515, abs=1e-9)
