"""Early warning on planted alarms: lead, hits, false alarms, and the level of chance."""

from __future__ import annotations

import numpy as np
import pytest

from stabilitylab.analysis.early_warning import HORIZON, early_warning
from stabilitylab.analysis.results import EarlyWarning, LayerSeries
from tests.synthetic import layer_series, noise, plant, spikes_at, spread_onsets

N = 8000


def warned(lead: int, *, share: float = 1.0, extra: int = 0, seed: int = 0) -> tuple[EarlyWarning, int]:
    """Two layers with 15 spikes each; ``share`` of them are preceded by an alarm, ``extra`` alarms precede nothing."""
    rng = np.random.default_rng(seed)
    series, spikes, planted = [], [], 0
    for depth, name in enumerate(("a", "b")):
        onsets = spread_onsets(rng, 15, N, apart=200)
        chosen = onsets[: round(share * 15)]
        false = onsets[:extra] + 100
        planted += len(chosen)
        x = plant(noise(N, seed=10 * seed + depth, sd=0.1), [*(chosen - lead), *false], 2.0, width=3)
        series.append(layer_series(x, name, depth))
        spikes += spikes_at(onsets.tolist(), name)
    return early_warning("adam_rms", series, spikes, num_iterations=N), planted


@pytest.mark.parametrize("lead", [1, 6, 18])
def test_the_planted_lead_is_measured(lead: int) -> None:
    found, planted = warned(lead, share=0.8, extra=4)
    assert found.num_spikes == 30
    assert abs(found.num_warned - planted) <= 1
    assert found.hit_rate == found.num_warned / 30
    assert found.hit_ci95 is not None
    assert found.hit_ci95[0] < 0.8 < found.hit_ci95[1]
    assert found.median_lead == lead
    assert found.lead_ci95 is not None
    assert found.lead_ci95[0] <= lead <= found.lead_ci95[1]
    assert 8 <= found.num_false <= 10  # the noise may add one a layer
    assert found.false_per_10k == pytest.approx(10_000 * found.num_false / (2 * N))
    assert found.p_value is not None
    assert found.p_value < 0.01


def test_a_signal_that_follows_is_no_warning() -> None:
    found, _ = warned(-1)
    assert found.num_warned <= 1
    assert found.p_value is not None
    assert found.p_value > 0.05
    assert found.lead_ci95 is None
    assert found.reason


def test_unrelated_alarms_warn_as_often_as_chance_says() -> None:
    wrong, rates, expected = 0, [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x = plant(noise(N, seed=seed, sd=0.1), rng.integers(300, N - 100, 40), 2.0, width=3)
        spikes = spikes_at(np.sort(rng.integers(300, N - 100, 40)).tolist(), "a")
        found = early_warning("s", [layer_series(x, "a")], spikes, num_iterations=N)
        assert found.p_value is not None
        assert found.hit_rate_by_chance is not None
        wrong += found.p_value < 0.05
        rates.append(found.hit_rate)
        expected.append(found.hit_rate_by_chance)
    assert wrong <= 6  # 2 expected; 7 or more has probability 0.003
    assert np.mean(rates) == pytest.approx(np.mean(expected), abs=0.02)
    assert np.mean(expected) == pytest.approx(1 - np.exp(-40 * HORIZON / N), abs=0.02)


def test_nothing_to_warn_of_or_with() -> None:
    still = LayerSeries("a", 0, np.arange(N), np.ones(N))
    quiet = early_warning("s", [still], spikes_at([500], "a"), num_iterations=N)
    assert (quiet.num_spikes, quiet.num_alarms, quiet.hit_rate, quiet.reason) == (1, 0, None, "s raised no alarm")
    alarms = [layer_series(plant(noise(N, seed=0, sd=0.1), [1000], 3.0), "a")]
    elsewhere = early_warning("s", alarms, spikes_at([500], "b"), num_iterations=N)
    assert elsewhere.reason == "no spike in a layer with recorded s"
    assert elsewhere.num_false == elsewhere.num_alarms >= 1
