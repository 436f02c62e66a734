"""The vectorised baseline against its definition written as a loop."""

from __future__ import annotations

import numpy as np
import pytest

from stabilitylab.analysis.detection.baseline import MAD_TO_SD, SCALE_FLOOR, baseline, running_median
from tests.synthetic import noise


def upper_median(values: np.ndarray) -> float:
    return float(np.sort(values)[len(values) // 2])


@pytest.mark.parametrize("window", [2, 5, 50, 51])
@pytest.mark.parametrize("n", [1, 4, 49, 300])
def test_running_median(window: int, n: int) -> None:
    y = noise(n, seed=n)
    expected = [upper_median(y[max(0, i + 1 - window) : i + 1]) for i in range(n)]
    np.testing.assert_allclose(running_median(y, window), expected)


@pytest.mark.parametrize(("window", "warmup"), [(20, 10), (21, 10), (7, 3)])
def test_medians_of_the_unflagged_values_on_either_side(window: int, warmup: int) -> None:
    x = noise(300, seed=window)
    usable = np.random.default_rng(1).random(300) > 0.2
    usable[100:130] = False
    found = baseline(x, usable, window=window, warmup=warmup)
    for t in range(300):
        before = x[:t][usable[:t]]
        after = x[t + 1 :][usable[t + 1 :]]
        if len(before) >= warmup:
            assert found.before[t] == upper_median(before[-window:])
        else:
            assert np.isnan(found.before[t])
        if len(after) < warmup:
            assert np.isnan(found.after[t])
        elif len(after) >= window:
            assert found.after[t] == upper_median(after[:window])


def test_the_scale_is_the_noise() -> None:
    for sd in (0.05, 0.5):
        x = noise(5000, seed=3, sd=sd)
        scale = baseline(x, np.ones(5000, dtype=bool), window=200, warmup=50).scale
        assert np.median(scale) == pytest.approx(sd, rel=0.1)


def test_a_constant_series_has_the_floor_for_a_scale() -> None:
    found = baseline(np.zeros(500), np.ones(500, dtype=bool), window=200, warmup=50)
    assert (found.scale == SCALE_FLOOR).all()
    assert MAD_TO_SD == 1.4826


@pytest.mark.parametrize("window", [20, 21])
@pytest.mark.parametrize("removed", [0, 1, 5, 200])
def test_a_second_pass_that_reuses_the_first_gives_the_same_baseline(window: int, removed: int) -> None:
    rng = np.random.default_rng([window, removed])
    x = noise(3000, seed=5)
    usable = rng.random(3000) > 0.01
    first = baseline(x, usable, window=window, warmup=10)
    fewer = usable.copy()
    for start in [*rng.integers(0, 3000, removed), 0, 15, 2995]:  # also where a window is not yet or no longer full
        fewer[start : start + int(rng.integers(1, 40))] = False
    alone = baseline(x, fewer, window=window, warmup=10)
    reused = baseline(x, fewer, window=window, warmup=10, earlier=first)
    for name in ("before", "after", "scale"):
        np.testing.assert_array_equal(getattr(reused, name), getattr(alone, name))
