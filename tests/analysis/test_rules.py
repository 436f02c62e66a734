"""The published rules, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from stabilitylab.analysis.detection.rules import published_score, spike_score
from stabilitylab.analysis.detection.spikes import SpikeSettings, detect, detect_spikes
from stabilitylab.analysis.results import LayerSeries
from tests.synthetic import layer_series, noise, plant


@pytest.mark.parametrize(("rule", "window", "limit"), [("olmo", 1000, 7.0), ("zscore", 200, 3.0)])
def test_rolling_rules_against_a_loop(rule: str, window: int, limit: float) -> None:
    norm = np.exp(plant(noise(1500, seed=0, phi=0.5), [400, 1200], 2.0))
    score, mean = published_score(norm, rule, 50)
    assert np.isneginf(score[:50]).all()
    for i in range(50, 1500, 7):
        past = norm[max(0, i - window) : i]
        assert mean[i] == pytest.approx(past.mean())
        assert score[i] == pytest.approx((norm[i] - past.mean()) / past.std(ddof=1))
    fired = {i for i in range(50, 1500) if score[i] >= limit}
    spikes = detect_spikes(layer_series(np.log(norm)), SpikeSettings(rule=rule))
    assert {s.onset for s in spikes} <= fired
    assert fired <= {i for s in spikes for i in range(s.onset, s.end + 1)}
    assert spikes


def test_the_ema_rule_is_zclips() -> None:
    norm = np.exp(plant(noise(600, seed=1), [300], 2.0))
    mean, var = norm[:25].mean(), norm[:25].var()
    expected = {}
    for i in range(25, 600):
        z = (norm[i] - mean) / var**0.5
        expected[i] = z
        value = mean + (2.5 * 2.5 / z) * var**0.5 if z > 2.5 else norm[i]
        mean = 0.97 * mean + 0.03 * value
        var = 0.97 * var + 0.03 * (value - mean) ** 2
    score, _ = published_score(norm, "ema", 50)
    assert np.isneginf(score[:25]).all()
    np.testing.assert_allclose(score[25:], list(expected.values()))


@pytest.mark.parametrize("rule", ["olmo", "zscore", "ema"])
def test_rules_find_a_large_spike_and_keep_nonfinite_events(rule: str) -> None:
    norm = np.exp(noise(1000, seed=2, sd=0.1))
    norm[500] *= 50
    norm[700] = np.inf
    found = detect_spikes(LayerSeries("a", 0, np.arange(1000), norm), SpikeSettings(rule=rule))
    assert 500 in [s.onset for s in found if s.kind == "spike"]
    assert [s.onset for s in found if s.kind == "nonfinite"] == [700]
    (spike,) = (s for s in found if s.onset == 500)
    assert spike.ratio == pytest.approx(50, rel=0.4)


@pytest.mark.parametrize("rule", ["olmo", "zscore", "ema"])
@pytest.mark.parametrize("norm", [[], [1.0] * 40, [0.1] * 2000, [0.0] * 300, [np.nan] * 100])
def test_rules_on_series_with_nothing_to_compare(rule: str, norm: list[float]) -> None:
    found = detect(LayerSeries("a", 0, np.arange(len(norm)), np.array(norm)), SpikeSettings(rule=rule))
    assert [s for s in found.spikes if s.kind == "spike"] == []
    assert found.mirrored_events == 0


def test_the_mirrored_count_is_the_count_on_one_over_the_norm() -> None:
    x = noise(3000, seed=3, kind="t3")
    for rule in ("olmo", "zscore", "ema"):
        settings = SpikeSettings(rule=rule)
        assert detect(layer_series(x), settings).mirrored_events == len(detect_spikes(layer_series(-x), settings))


def test_the_spike_score_is_a_share() -> None:
    norm = np.ones(2000) + 0.01 * np.sin(np.arange(2000))
    norm[[600, 1500]] = 100.0
    assert spike_score(norm) == pytest.approx(2 / (2000 - 50))
    assert spike_score(norm[:40]) is None
