"""Lags by planted truth, and when the answer must be "inconclusive"."""

from __future__ import annotations

import numpy as np
import pytest

from stabilitylab.analysis.intervals import median_interval
from stabilitylab.analysis.lag import match, measure_lag, propagation
from stabilitylab.analysis.results import Lag
from tests.synthetic import spikes_at, spread_onsets

N = 10_000


def lag_of(a: np.ndarray, b: np.ndarray, **more: int) -> Lag:
    return measure_lag(spikes_at(a), spikes_at(b), source="first", target="last", num_iterations=N, **more)


@pytest.mark.parametrize("lag", [-30, 0, 7, 40])
def test_a_planted_lag_is_found_on_either_side(lag: int) -> None:
    rng = np.random.default_rng(lag + 100)
    a = spread_onsets(rng, 30, N)
    found = lag_of(a, a + lag + rng.integers(-2, 3, 30))
    assert found.median_iterations is not None
    assert abs(found.median_iterations - lag) <= 1
    assert found.ci95 is not None
    assert found.ci95[0] <= lag <= found.ci95[1]
    assert found.verdict == {-30: "last leads", 0: "together"}.get(lag, "first leads")
    assert found.p_value is not None
    assert found.p_value < 0.02


def test_missed_and_extra_spikes_do_not_pull_the_lag_to_zero() -> None:
    rng = np.random.default_rng(0)
    a = spread_onsets(rng, 40, N, apart=60)
    b = np.sort(np.concatenate([rng.choice(a, 24, replace=False) + 35, rng.integers(300, N, 30)]))
    found = lag_of(a, b)
    assert found.median_iterations == pytest.approx(35, abs=1)
    assert found.num_matched >= 24
    nearest = np.array([min(b - onset, key=abs) for onset in a])
    assert abs(nearest.mean()) < 25  # what matching with the nearest would say


def test_unrelated_spikes_are_inconclusive_at_the_level_promised() -> None:
    wrong = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        found = lag_of(np.sort(rng.integers(0, N, 25)), np.sort(rng.integers(0, N, 25)))
        wrong += found.verdict != "inconclusive"
    assert wrong <= 7  # 5% of 60 is 3; 8 or more has probability 0.01


def test_the_interval_covers() -> None:
    covered = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        a = spread_onsets(rng, 9, N, apart=300)
        found = lag_of(a, a + 20 + np.round(rng.normal(0, 3, 9)).astype(int))
        assert found.ci95 is not None
        covered += found.ci95[0] <= 20 <= found.ci95[1]
    assert covered >= 91


def test_median_interval_holds_its_level_exactly() -> None:
    # Order statistics 1 and 6 of 6 hold the median with 1 - 2/2^6 = 0.969; 5 values cannot reach 0.95.
    assert median_interval(np.arange(6.0)) == (0.0, 5.0)
    assert median_interval(np.arange(9.0)) == (1.0, 7.0)
    assert median_interval(np.arange(5.0)) == (0.0, 4.0)


def test_matches_are_one_to_one() -> None:
    lags = match(np.array([100, 103, 500]), np.array([110, 510]), 50)
    assert len(lags) == 2


def test_why_it_is_inconclusive() -> None:
    few = lag_of(np.array([100, 300, 500]), np.array([110, 310, 510]))
    assert (few.verdict, few.num_matched) == ("inconclusive", 3)
    assert "at least 5 are needed" in few.reason
    none = lag_of(np.array([], dtype=int), np.array([100]))
    assert none.reason == "no spike in first"
    alone = measure_lag([], [], source="a", target="a", num_iterations=N)
    assert "only one layer" in alone.reason


def test_depth_against_lag_is_the_planted_wave() -> None:
    a = spread_onsets(np.random.default_rng(5), 12, N, apart=200)
    layers = [("l0", 0), ("l1", 1), ("l2", 2), ("quiet", 3)]
    spikes = [s for i in range(3) for s in spikes_at(a + 10 * i, f"l{i}")]
    rows = propagation(spikes, layers, source="l0", num_iterations=N)
    assert [row.median_lag for row in rows] == [0, 10, 20, None]
    assert [row.num_matched for row in rows] == [12, 12, 12, 0]
