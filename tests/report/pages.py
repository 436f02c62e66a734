"""Reports of planted runs, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from stabilitylab.analysis.explain import explain_episodes
from stabilitylab.analysis.pipeline import analyze_run
from stabilitylab.analysis.results import Episode, EvalCurve, LayerSeries, RunSeries
from stabilitylab.comparison.effects import compare_runs, summarize_run
from stabilitylab.comparison.results import Comparison
from stabilitylab.report.html.page import render_report
from stabilitylab.run.analysed import AnalysedRun
from tests.synthetic import LAYERS, PlantedRun, planted_run

LR = 0.1


def report_run(
    series: RunSeries,
    *,
    mitigation: str = "",
    seed: int = 0,
    base_lr: float = LR,
    status: str = "finished",
    episodes: tuple[Episode, ...] = (),
) -> AnalysedRun:
    found = replace(analyze_run(series), episodes=episodes)
    return AnalysedRun(
        series=series,
        analysis=found,
        config={
            "mitigation": [mitigation] if mitigation else [],
            "train": {"seed": seed},
            "optim": {"base_lr": base_lr},
        },
        status=status,
        created_at="2026-01-01T00:00:00+00:00",
        loss=(np.arange(100), np.linspace(3, 1 + 0.1 * seed, 100)),
        provenance={"seed": str(seed), "torch_version": "2"},
        events=[(0, "mitigation", mitigation)] if mitigation else [],
        explanations=[(account.text, account.next) for account in explain_episodes(found)],
    )


def planted_episodes(planted: PlantedRun) -> tuple[Episode, ...]:
    """The truth: each planted wave through the layers is an episode."""
    found = []
    for wave in zip(*planted.onsets.values(), strict=True):
        order = tuple(sorted(zip(planted.onsets, wave, strict=True), key=lambda item: item[1]))
        leader, start = order[0]
        found.append(Episode(start, order[-1][1] + 4, leader, order, 1.0, leader, start + 1, 9.0, 12.0))
    return tuple(found)


def planted_page(name: str = "planted", layer: str = "patch_embed") -> str:
    """Two runs compared: one with planted spikes, lag and dips, one without."""
    unstable = planted_run(seed=0, layers=(layer, "blocks.0", "predictor"))
    calm = planted_run(seed=1, count=0, dips=False, layers=("tokens", "blocks.0", "predictor"))
    runs = [
        report_run(renamed(unstable.series, name), episodes=planted_episodes(unstable)),
        report_run(renamed(calm.series, "calm"), mitigation="frozen-patch"),
    ]
    return render_report(runs, comparison_of(runs))


def compared_runs(seeds: int = 3, rates: Sequence[float] = (0.05, 0.1)) -> list[AnalysedRun]:
    """Every mitigation, rate and seed; spikes and dips only without a mitigation, at the highest rate."""
    runs = []
    for rate in rates:
        for mitigation in ("", "frozen-patch"):
            for seed in range(seeds):
                unstable = not mitigation and rate == max(rates)
                planted = planted_run(seed=seed, n=1500, count=5 if unstable else 0, dips=unstable, layers=LAYERS[:3])
                series = renamed(planted.series, f"{mitigation or 'learned'}_{rate:g}_{seed}")
                episodes = planted_episodes(planted)
                runs.append(report_run(series, mitigation=mitigation, seed=seed, base_lr=rate, episodes=episodes))
    return runs


def comparison_of(runs: Sequence[AnalysedRun]) -> Comparison:
    return compare_runs(
        [
            summarize_run(
                r.series, r.analysis, mitigation=r.named.mitigation, seed=r.named.seed, base_lr=r.named.base_lr
            )
            for r in runs
        ]
    )


def renamed(series: RunSeries, name: str) -> RunSeries:
    return RunSeries(name, series.iterations, series.layers, series.evals)


def odd_runs() -> dict[str, AnalysedRun]:
    """Runs that lack what a report would draw."""
    nothing = np.array([], dtype=np.int64)
    flat = np.arange(100)
    some_nan = np.where(flat % 7 == 0, np.nan, 1.0 + flat / 100)
    broken = EvalCurve(flat, np.full(100, np.nan), np.zeros(100))
    return {
        "empty": report_run(RunSeries("empty", 0, ()), status="running"),
        "no gradients": report_run(
            RunSeries("curve", 50, (), {"knn_top1": EvalCurve(flat, flat / 100, np.full(100, 50))})
        ),
        "no kNN": report_run(RunSeries("grads", 100, (LayerSeries("only", 0, flat, np.ones(100)),))),
        "all NaN": report_run(RunSeries("broken", 100, (LayerSeries("only", 0, flat, np.full(100, np.nan)),))),
        "some NaN": report_run(
            RunSeries("some", 100, (LayerSeries("only", 0, flat, some_nan),), {"knn_top1": broken}), status="crashed"
        ),
        "zero norms": report_run(RunSeries("zeros", 100, (LayerSeries("only", 0, flat, np.zeros(100)),))),
        "one value": report_run(RunSeries("one", 1, (LayerSeries("only", 0, flat[:1], np.ones(1)),)), status="running"),
        "frozen": report_run(RunSeries("frozen", 9, (LayerSeries("f", 0, nothing, nothing.astype(float), False),))),
    }
