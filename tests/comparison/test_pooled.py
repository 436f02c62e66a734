"""Pooled lags by planted truth, few matches a run, unlike recording steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stabilitylab.analysis.pipeline import analyze_run
from stabilitylab.comparison.pooled import RunOnsets, pool_lag, pooled_lags
from tests.synthetic import planted_run

N = 1200


def runs(count: int, matches: int, lag: int, *, related: bool = True, step: int = 1, seed: int = 0) -> list[RunOnsets]:
    rng = np.random.default_rng([seed, count, matches, abs(lag)])
    made = []
    for _ in range(count):
        a = np.sort(rng.choice(np.arange(100, N - 100, 60), matches, replace=False))
        b = a + lag + rng.integers(-1, 2, matches) if related else np.sort(rng.integers(100, N - 100, matches))
        made.append(RunOnsets(a // step * step, -(-b // step) * step, N, step))
    return made


@pytest.mark.parametrize("lag", [-12, 0, 25])
def test_runs_with_two_matches_each_have_a_lag_together(lag: int) -> None:
    found = pool_lag(runs(8, 2, lag), group="g", source="a", target="b")
    assert found.median_iterations == pytest.approx(lag, abs=1)
    assert found.ci95 is not None
    assert found.ci95[0] <= lag <= found.ci95[1]
    assert found.verdict == {-12: "last leads", 0: "together", 25: "first leads"}[lag]
    assert (found.num_runs, found.num_given, found.num_matched) == (8, 8, 16)


def test_too_few_matches_or_runs_are_said() -> None:
    assert pool_lag(runs(2, 5, 10), group="g", source="a", target="b").verdict == "inconclusive"
    few = pool_lag(runs(4, 1, 10), group="g", source="a", target="b")
    assert few.verdict == "inconclusive"
    assert few.reason == "4 matches in 4 of 4 runs; at least 5 in 3 runs are needed"
    assert pool_lag([], group="g", source="a", target="b").num_matched == 0


def test_unrelated_runs_are_inconclusive() -> None:
    told = [
        pool_lag(runs(6, 4, 0, related=False, seed=s), group="g", source="a", target="b", seed=s).verdict
        for s in range(30)
    ]
    assert sum(verdict != "inconclusive" for verdict in told) <= 4


def test_recording_steps_widen_and_are_said() -> None:
    mixed = [*runs(4, 3, 20), *runs(4, 3, 20, step=10, seed=1)]
    found = pool_lag(mixed, group="g", source="a", target="b")
    assert "recording steps differ (1 to 10)" in found.reason
    assert found.ci95 is not None
    assert found.ci95[0] <= 20 <= found.ci95[1]
    sparse = pool_lag(runs(6, 3, 4, step=10), group="g", source="a", target="b")
    assert sparse.verdict == "not resolvable"


def test_groups_of_analysed_runs() -> None:
    analyses = [analyze_run(planted_run(seed=s, n=1500, count=3, lag=20).series) for s in range(4)]
    rows = pooled_lags({"none": analyses, "alone": analyses[:1]})
    assert {row.group for row in rows} == {"none"}
    last = next(row for row in rows if row.target == "predictor")
    assert last.verdict == "first leads"
    assert last.ci95 is not None
    assert last.ci95[0] <= 20 <= last.ci95[1]


@pytest.mark.parametrize("rows", ["sampled", "mean"])
def test_steps_that_vary_and_means_widen_the_pool(rows: str) -> None:
    """Each run is recorded every 4 iterations for half its length and every 12 from there: 12 is what an event leaves
    open, 18 where rows are means."""
    analyses = []
    for seed in range(6):
        series = planted_run(seed=seed, n=6000, count=8, lag=20).series
        at = np.concatenate([np.arange(0, 3000, 4), np.arange(3000, 6000, 12)])
        layers = []
        for layer in series.layers:
            norm = layer.grad_norm[at]
            if rows == "mean":
                norm = np.add.reduceat(layer.grad_norm, at) / np.diff(np.append(at, 6000))
            layers.append(replace(layer, iteration=at, grad_norm=norm))
        analyses.append(analyze_run(replace(series, layers=tuple(layers), rows=rows)))
    resolution = analyses[0].resolution
    assert resolution is not None
    assert (resolution.spacing, resolution.mostly) == ("changing", 12)
    last = next(row for row in pooled_lags({"g": analyses}) if row.target == "predictor")
    assert last.ci95 is not None
    assert last.ci95[1] - last.ci95[0] >= (24 if rows == "sampled" else 36)
    assert last.ci95[0] <= 20 <= last.ci95[1]
