from __future__ import annotations

import math

import pytest

from stabilitylab.config import resolve
from stabilitylab.recording.recorder import Recorder
from stabilitylab.recording.sink import NullSink
from stabilitylab.train.schedules import ema_momentum, learning_rate, weight_decay
from stabilitylab.train.trainer import Trainer


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


def test_a_constant_rate_stays_at_its_peak_after_the_warm_up() -> None:
    rates = [learning_rate(t, 100, 0.4, 20, "constant") for t in range(100)]
    assert rates == pytest.approx([0.02 * t for t in range(20)] + [0.4] * 80)


def test_the_trainer_follows_the_configured_schedule() -> None:
    values = {"train": {"iterations": 8, "batch_size": 16}, "optim": {"base_lr": 0.16, "warmup_iterations": 2}}
    for schedule, last in (("constant", 0.01), ("cosine", 0.01 * math.cos(math.pi * 5 / 12) ** 2)):
        trainer = Trainer(resolve({**values, "optim": {**values["optim"], "schedule": schedule}}))
        for iteration, views in enumerate(trainer.batches.iterate(0, 8)):
            trainer.step(Recorder([], NullSink(), log_grads=False), iteration, views)
        assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(last)


def test_ema_momentum_rises_to_one() -> None:
    assert ema_momentum(0, 50, 0.99) == pytest.approx(0.99)
    assert ema_momentum(25, 50, 0.99) == pytest.approx(0.995)
    assert ema_momentum(50, 50, 0.99) == pytest.approx(1.0)
    assert ema_momentum(30, 50, 0.99, "constant") == 0.99


def test_weight_decay_goes_from_start_to_end_by_half_a_cosine() -> None:
    values = [weight_decay(i, 100, 0.04, 0.4) for i in (0, 50, 100)]
    assert values == pytest.approx([0.04, 0.22, 0.4])
    assert weight_decay(70, 100, 0.1, None) == 0.1
