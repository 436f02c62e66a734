"""Drift with planted truth: growth and shrinkage are reported with factor and period, jumps and zero starts are not."""

from __future__ import annotations

import numpy as np
import pytest

from stabilitylab.analysis.drift import MIN_ROWS, find_drifts
from stabilitylab.analysis.series import LayerSeries
from tests.synthetic import noise


def series(x: np.ndarray, rows: np.ndarray | None = None) -> LayerSeries:
    return LayerSeries("global", 0, np.arange(len(x)) if rows is None else rows, np.exp(x))


@pytest.mark.parametrize("step", [1, 100])
@pytest.mark.parametrize("factor", [800.0, 1 / 30])
def test_a_planted_drift_has_its_factor_and_stretch(factor: float, step: int) -> None:
    n = 5000
    ramp = np.clip((np.arange(n) - 1000) / 2500, 0, 1) * np.log(factor)
    found, why = find_drifts([series(noise(n, seed=3, phi=0.9) + ramp, np.arange(n) * step)])
    assert why == ""
    (drift,) = found
    assert drift.grows == (factor > 1)
    assert np.log(drift.factor) == pytest.approx(np.log(factor), abs=0.4)
    assert drift.start / step == pytest.approx(1000, abs=400)
    assert drift.end / step == pytest.approx(3500, abs=500)
    slope = np.log10(factor) / 2500 / step * 10_000
    assert drift.ci95[0] <= slope <= drift.ci95[1]
    assert drift.slope == pytest.approx(slope, rel=0.2)


@pytest.mark.parametrize(("phi", "sd"), [(0.5, 0.2), (0.99, 0.2), (0.995, 0.3)])
def test_the_slopes_interval_covers_the_planted_slope(phi: float, sd: float) -> None:
    """Also where the level itself wanders over hundreds of iterations."""
    covered = []
    for seed in range(40):
        total = np.log(np.random.default_rng(seed).uniform(20, 300))
        ramp = np.clip((np.arange(4000) - 1000) / 2000, 0, 1) * total
        found, _ = find_drifts([series(ramp + noise(4000, seed=seed, phi=phi, sd=sd))])
        if len(found) == 1:
            covered.append(found[0].ci95[0] <= total / 2000 * 10_000 / np.log(10) <= found[0].ci95[1])
    assert len(covered) >= 35
    assert np.mean(covered) >= 0.93


def test_what_is_no_drift() -> None:
    n = 4000
    level = noise(n, seed=1, phi=0.9)
    jump = level + np.where(np.arange(n) > 1733, 4.0, 0.0)
    zero_start = level + np.log(np.clip(np.arange(n) / 60, 1e-9, 1))
    spikes = level.copy()
    spikes[::150] += 5
    warmup = level - 3 * np.minimum(np.arange(n) / 60, 1)
    for x in (level, jump, zero_start, spikes, warmup):
        assert find_drifts([series(x)])[0] == ()


def test_a_drift_is_certain_only_if_the_interval_of_its_slope_excludes_0() -> None:
    """Random walks change by a factor of 10 in many places, and some of them need not be trends."""
    found = [
        drift
        for seed in range(12)
        for drift in find_drifts([series(np.cumsum(np.random.default_rng(seed).normal(0, 0.06, 4000)))])[0]
    ]
    assert {drift.certain for drift in found} == {True, False}
    for drift in found:
        assert drift.certain == (drift.ci95[0] > 0 or drift.ci95[1] < 0)


def test_too_few_rows_are_said() -> None:
    found, why = find_drifts([series(np.linspace(0, 9, MIN_ROWS - 1))])
    assert found == ()
    assert (
        why == f"not enough data for drift in every layer: {MIN_ROWS - 1} usable norms; at least {MIN_ROWS} are needed"
    )
