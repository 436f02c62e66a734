"""Cross-correlation against a plain sum, planted lags on either side, and the level of chance."""

from __future__ import annotations

import numpy as np
import pytest

from stabilitylab.analysis.crosscorr import CUT, FLOOR, SMOOTH, CrossCorrelator, on_grid
from stabilitylab.analysis.lag import Reach, measure_lag, shift_test
from stabilitylab.analysis.pipeline import analyze_run
from stabilitylab.analysis.results import CrossLag
from tests.synthetic import planted_run, spikes_at, spread_onsets


def excesses(seed: int, lag: int, n: int = 5000, count: int = 25) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    onsets = spread_onsets(rng, count, n)
    a, b = np.zeros(n), np.zeros(n)
    for onset in onsets:
        a[onset : onset + 4] = rng.uniform(3, 10)
        late = onset + lag + int(rng.integers(-1, 2))
        b[late : late + 4] = rng.uniform(3, 10)
    return a, b


@pytest.mark.parametrize("lag", [-60, -12, 0, 35, 88])
def test_a_planted_lag_is_found_on_either_side(lag: int) -> None:
    a, b = excesses(abs(lag), lag)
    found = CrossCorrelator(a, window=100).lag_of(b)
    assert found is not None
    assert abs(found.lag - lag) <= 1
    assert found.ci95[0] <= lag <= found.ci95[1]
    assert found.ci95[1] - found.ci95[0] <= 5
    assert found.p_value <= 0.05
    assert found.correlation > 0.5


def test_the_correlation_is_the_plain_sum() -> None:
    a, b = excesses(3, 20, n=1200, count=8)
    found = CrossCorrelator(a, window=40).lag_of(b)
    x, y = a - a.mean(), b - b.mean()
    around = np.array([sum(x[i] * y[(i + k) % 1200] for i in range(1200)) for k in range(-60, 61)])
    smooth = np.convolve(around, np.ones(SMOOTH), "valid")[60 - 40 - SMOOTH // 2 :][:81]
    assert found is not None
    assert found.lag == np.argmax(smooth) - 40
    near = around[int(found.lag) + 60 - SMOOTH // 2 :][:SMOOTH]
    assert found.correlation == pytest.approx(near.max() / np.sqrt((x**2).sum() * (y**2).sum()))
    itself = CrossCorrelator(a, window=40).lag_of(a)
    assert itself is not None
    assert itself.correlation == pytest.approx(1)


def test_scores_are_put_on_a_regular_grid() -> None:
    score = np.array([FLOOR - 0.1, 5.0, 99.0, np.nan, -np.inf], dtype=np.float32)
    grid = on_grid(np.array([0, 5, 15, 20, 25]), score, step=5, length=7)
    np.testing.assert_array_equal(grid, [0, 5, 0, CUT, 0, 0, 0])


def test_nothing_to_correlate() -> None:
    a, b = excesses(0, 5)
    assert CrossCorrelator(a, window=100).lag_of(np.zeros(5000)) is None
    assert CrossCorrelator(np.zeros(5000), window=100).lag_of(b) is None
    assert CrossCorrelator(a[:300], window=100).lag_of(b[:300]) is None
    assert CrossCorrelator(a[:0], window=1).lag_of(b[:0]) is None


def test_both_estimates_of_a_run_agree_and_either_end_may_lead() -> None:
    for lag in (25, -25):
        found = analyze_run(planted_run(seed=6, lag=lag).series)
        assert found.lag is not None
        assert found.lag.cross is not None
        assert found.lag.verdict == ("first leads" if lag > 0 else "last leads")
        assert found.lag.cross.lag == pytest.approx(lag, abs=1)
        assert found.lag.agree is True
        wave = [row.cross.lag for row in found.propagation or () if row.cross is not None]
        assert wave == pytest.approx([lag * depth / 4 for depth in (1, 2, 3, 4)], abs=2)


def test_disagreement_is_said() -> None:
    a = spread_onsets(np.random.default_rng(1), 20, 9000, apart=250)
    other = CrossLag(lag=-30.0, ci95=(-33.0, -28.0), correlation=0.4, p_value=0.01)
    found = measure_lag(
        spikes_at(a), spikes_at(a + 20), source="first", target="last", num_iterations=9000, cross=other
    )
    assert found.agree is False
    assert "cross-correlation disagrees: -30 iterations (-33 to -28)" in found.reason
    chance = CrossLag(lag=-30.0, ci95=(-33.0, -28.0), correlation=0.1, p_value=0.5)
    assert measure_lag(
        spikes_at(a), spikes_at(a + 20), source="first", target="last", num_iterations=9000, cross=chance
    ).agree is None  # fmt: skip


def test_the_shift_test_is_every_shift() -> None:
    rng = np.random.default_rng(2)
    span, window = 900, 60
    a, b = np.sort(rng.choice(span, 12, replace=False)), np.sort(rng.choice(span, 14, replace=False))

    def densest(shift: int) -> int:
        moved = (b + shift) % span
        gaps = (moved[:, None] - a[None, :] + span // 2) % span - span // 2
        return max(int((np.abs(gaps - centre) <= 5).sum()) for centre in range(-55, 56))

    observed = densest(0)
    counts = [densest(-shift) for shift in range(2 * window + 1, span - 2 * window)]
    p_value, lags = shift_test(a, b, Reach(window), span)
    assert p_value == pytest.approx((1 + sum(c >= observed for c in counts)) / (1 + len(counts)))
    assert all(abs(lag) <= window for lag in lags)
