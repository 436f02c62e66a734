"""Responses to kicks: planted arrivals and decays are found, noise is not."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from stabilitylab.cause.responses import _leaves_zero, directions, respond, time_constant


def planted(kicks: int, tau: float, rng: np.random.Generator, noise: float = 0.1, delay: int = 3) -> np.ndarray:
    """(kicks, 60, 4): the kicked layer answers at once, the second after ``delay``, the third not, the fourth with
    noise alone that differs from kick to kick."""
    t = np.arange(60)
    answer = np.exp(-t / tau)
    late = np.where(t >= delay, 0.4 * np.exp(-(t - delay) / tau), 0.0)
    values = np.zeros((kicks, 60, 4))
    values[..., 0], values[..., 1] = answer, late
    values[..., (0, 3)] += noise * rng.standard_normal((kicks, 60, 2))
    values[:, delay:, 1] += noise * rng.standard_normal((kicks, 60 - delay))
    return values


def test_a_planted_response_is_found_with_its_arrival_peak_and_decay() -> None:
    for seed in range(5):
        own, second, third, noise = respond("a", ["a", "b", "c", "d"], planted(12, 10.0, np.random.default_rng(seed)))
        assert (own.arrival, own.peak_at) == (0, 0)
        assert second.arrival == 3
        assert 3 <= second.peak_at <= 5
        assert second.peak_ci95[0] - 0.05 < 0.4 < second.peak_ci95[1] + 0.05
        assert own.decay == pytest.approx(10, rel=0.2)
        assert own.decay_ci95[0] <= own.decay <= own.decay_ci95[1]
        assert (third.reached, third.peak, third.arrival, third.decay) == (False, 0.0, None, None)
        assert noise.arrival is None


def test_chance_reaches_a_layer_no_more_often_than_promised() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(60):
        # Smooth noise of a size of its own each kick, as diverging futures have.
        walks = rng.standard_normal((8, 40, 3)).cumsum(1) * rng.exponential(1, (8, 1, 1))
        hits += any(r.reached for r in respond("a", ["a", "b", "c"], walks))
    assert hits <= 8  # 5% of 60 is 3; more than 8 has a probability of 0.4%


@pytest.mark.parametrize("kicks", [6, 7])
def test_few_kicks_keep_the_level(kicks: int) -> None:
    # 32 and 64 sign patterns: at most 1 and 3 of them may count as an arrival.
    rng = np.random.default_rng(0)
    magnitudes = rng.exponential(1, (kicks, 5, 2))
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=kicks - 1)))
    hits = [_leaves_zero(magnitudes * np.array([1.0, *row])[:, None, None], 0).any() for row in signs]
    assert 1 <= sum(hits) <= int(0.05 * len(signs))


def test_no_kick_gives_exactly_nothing_and_few_kicks_are_not_judged() -> None:
    for r in respond("a", ["a", "b"], np.zeros((8, 20, 2))):
        assert (r.reached, r.peak, r.decay) == (False, 0.0, None)
        assert not r.mean.any()
    (r,) = respond("a", ["a"], np.ones((5, 20, 1)))
    assert (r.reached, r.arrival) == (None, None)


def test_time_constants_of_noisy_exponentials() -> None:
    rng = np.random.default_rng(0)
    t = np.arange(100)
    curves = np.stack([np.exp(-t / tau) + 0.05 * rng.standard_normal(100) for tau in (3.0, 10.0, 40.0, 2000.0)])
    found = time_constant(curves)
    np.testing.assert_allclose(found[:3], [3, 10, 40], rtol=0.15)
    assert np.isinf(found[3])


def test_which_way_kicks_travel() -> None:
    strong, none = np.ones((8, 10, 3)), np.zeros((8, 10, 3))
    none[..., 1] = 1.0
    rng = np.random.default_rng(1)
    responses = respond("a", ["a", "b", "c"], strong + 0.1 * rng.standard_normal(strong.shape))
    responses += respond("b", ["a", "b", "c"], none)
    assert directions(responses, ["a", "b", "c"]) == {"towards the output": (2, 3), "towards the input": (0, 1)}
