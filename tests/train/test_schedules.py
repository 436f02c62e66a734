from __future__ import annotations

import math

import pytest

from stabilitylab.train.schedules import ema_momentum, learning_rate


def test_learning_rate_warms_up_linearly_then_follows_half_a_cosine() -> None:
    total, warmup, peak = 100, 20, 0.4
    assert [learning_rate(t, total, peak, warmup) for t in (0, 5, 10)] == pytest.approx([0, 0.1, 0.2])
    assert learning_rate(20, total, peak, warmup) == pytest.approx(peak)
    assert learning_rate(60, total, peak, warmup) == pytest.approx(peak / 2)
    for t in range(20, 100):
        # cos(2x) = 1 - 2 sin(x)^2, so half a cosine is a cosine squared at half the angle.
        assert learning_rate(t, total, peak, warmup) == pytest.approx(peak * math.cos(math.pi * (t - 20) / 160) ** 2)


def test_no_warmup_starts_at_the_peak() -> None:
    assert learning_rate(0, 10, 0.3, 0) == pytest.approx(0.3)


def test_ema_momentum_rises_to_one() -> None:
    assert ema_momentum(0, 50, 0.99) == pytest.approx(0.99)
    assert ema_momentum(25, 50, 0.99) == pytest.approx(0.995)
    assert ema_momentum(50, 50, 0.99) == pytest.approx(1.0)
    assert ema_momentum(30, 50, 0.99, "constant") == 0.99
