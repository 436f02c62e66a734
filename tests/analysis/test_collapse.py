"""Collapse by planted signs, and what is not judged."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stabilitylab.analysis.collapse import chance_loss, find_collapse
from stabilitylab.analysis.series import EvalCurve, RunSeries

AT = np.arange(0, 1000, 20)


def run(
    spread: np.ndarray | None = None,
    rank: np.ndarray | None = None,
    loss: np.ndarray | None = None,
) -> RunSeries:
    scalars = {}
    if spread is not None:
        scalars |= {"feature_spread": (AT, spread), "feature_dim": (AT, np.full(len(AT), 64.0))}
    if rank is not None:
        scalars["feature_rank"] = (AT, rank)
    if loss is not None:
        scalars["loss"] = (np.arange(len(loss)), loss)
    facts: dict[str, str | float] = {"method": "mocov3", "temperature": 0.2, "batch_size": 128}
    return RunSeries("r", 1000, (), scalars=scalars, facts=facts)


def falling(before: float, after: float, at: int = 25) -> np.ndarray:
    return np.where(np.arange(len(AT)) < at, before, after)


def accuracy(values: np.ndarray) -> tuple[str, EvalCurve]:
    return "knn_top1", EvalCurve(AT, values, np.full(len(AT), 500))


def test_features_that_no_longer_differ() -> None:
    found = find_collapse(run(falling(0.1, 1e-4), falling(12, 1.01)), accuracy(falling(0.85, 0.1)))
    assert (found.verdict, found.iteration) == ("collapsed", 500)
    assert [sign.state for sign in found.signs] == ["gone", "gone", "not judged", "gone"]
    only_features = find_collapse(run(falling(0.1, 1e-4)))
    assert (only_features.verdict, only_features.iteration) == ("collapsed", 500)


def test_partly_and_not() -> None:
    assert find_collapse(run(np.full(50, 0.09), falling(16, 3))).verdict == "partly"
    assert find_collapse(run(np.full(50, 0.09)), accuracy(falling(0.8, 0.1))).verdict == "partly"
    fell = find_collapse(run(falling(0.09, 0.015)))  # to 0.12 of the isotropic spread, a sixth of what it was
    assert (fell.verdict, fell.iteration) == ("partly", 500)
    healthy = find_collapse(run(np.full(50, 0.09), np.full(50, 12.0)), accuracy(np.linspace(0.2, 0.9, 50)))
    assert healthy.verdict == "not"
    recovered = np.full(50, 0.1)
    recovered[20:30] = 1e-4
    assert find_collapse(run(recovered)).verdict == "not"


def test_features_that_always_lay_close_together_are_healthy() -> None:
    """A narrow encoder: 0.13 of the isotropic spread, more than half of what the untrained one had, and it learns."""
    narrow = falling(0.029, 0.016, at=5)
    assert find_collapse(run(narrow)).verdict == "not"
    learns = accuracy(np.linspace(0.5, 0.85, 50))
    assert find_collapse(run(narrow, np.full(50, 3.3)), learns).verdict == "not"
    fell = falling(0.09, 0.015)
    assert find_collapse(run(fell, np.full(50, 3.3)), learns).verdict == "not"  # the accuracy says it is none
    assert find_collapse(run(fell, falling(12, 2.5)), learns).verdict == "partly"  # two signs of the features
    assert find_collapse(run(np.full(50, 1e-3))).verdict == "collapsed"  # from the first evaluation on
    # Real runs: a spread of 0.05 of the isotropic one and a rank of 2 beside the best accuracy; all three fallen.
    assert find_collapse(run(falling(0.08, 0.006), falling(9.3, 2.1)), learns).verdict == "partly"
    fallen = accuracy(falling(0.74, 0.32, at=30))
    found = find_collapse(run(falling(0.08, 0.006), falling(6.6, 1.3)), fallen)
    assert (found.verdict, found.iteration) == ("collapsed", 600)


def test_without_features_the_accuracy_decides() -> None:
    assert find_collapse(run(), accuracy(falling(0.8, 0.1))).verdict == "collapsed"
    assert find_collapse(run(), accuracy(falling(0.8, 0.4))).verdict == "partly"


def test_what_was_not_measured_is_not_judged() -> None:
    found = find_collapse(run())
    assert found.verdict == "not judged"
    assert "feature_spread: not recorded" in found.reason
    few = RunSeries("r", 100, (), scalars={"feature_spread": (AT[:3], np.zeros(3))})
    assert "3 values; at least 5 are needed" in find_collapse(few).reason


def test_the_loss_at_chance() -> None:
    chance = 4 * 0.2 * math.log(128)
    assert chance_loss(run().facts) == pytest.approx(chance)
    assert chance_loss({"method": "simclr", "temperature": 0.2, "batch_size": 64}) == pytest.approx(math.log(127))
    assert chance_loss({"method": "byol", "batch_size": 64}) == 0
    assert chance_loss({"method": "swav", "batch_size": 64}) is None
    rng = np.random.default_rng(0)
    loss = np.concatenate([rng.normal(2.5, 0.2, 600), rng.normal(chance, 0.01, 400)])
    found = find_collapse(run(loss=loss))
    assert (found.verdict, found.signs[2].since) == ("partly", 600)
    both = find_collapse(run(falling(0.1, 1e-4), loss=loss))
    assert "loss at its chance level since 600" in both.reason


def test_byol_collapses_to_a_loss_of_zero() -> None:
    """Without a predictor all outputs become alike, whatever the encoder's own features are."""
    rng = np.random.default_rng(0)
    facts: dict[str, str | float] = {"method": "byol", "batch_size": 32}

    def verdict(loss: np.ndarray) -> tuple[str, int | None]:
        healthy = {"feature_spread": (AT, np.full(len(AT), 0.1)), "feature_dim": (AT, np.full(len(AT), 64.0))}
        found = find_collapse(
            RunSeries("r", 1000, (), scalars=healthy | {"loss": (np.arange(len(loss)), loss)}, facts=facts)
        )
        return found.verdict, found.iteration

    assert verdict(2.4 * np.exp(-np.arange(1000) / 100)) == ("collapsed", 400)
    assert verdict(0.3 + 0.05 * rng.random(1000)) == ("not", None)
    back = np.concatenate([np.full(500, 1e-4), 0.2 + 0.05 * rng.random(500)])  # it was, and came back
    assert verdict(back) == ("not", None)


def test_features_that_are_nearly_equal_but_keep_what_they_learned_are_partly_collapsed() -> None:
    """Real runs: one large common component (0.01 of the isotropic spread, a rank of 1.1) beside the best accuracy."""
    equal = run(falling(0.1, 1e-3), falling(9, 1.1))
    learned = accuracy(np.linspace(0.65, 0.9, 50))
    found = find_collapse(equal, learned)
    assert (found.verdict, found.iteration) == ("partly", 500)
    assert found.reason.endswith("; but knn_top1 rose from 0.65 to 0.89")
    # No better than the untrained encoder (0.65), or than it by less than two standard errors of 500 samples (0.06).
    for values in (np.full(50, 0.65), np.linspace(0.65, 0.69, 50), falling(0.9, 0.65)):
        assert find_collapse(equal, accuracy(np.append(0.65, values[1:]))).verdict == "collapsed"
    # Where the untrained encoder was not evaluated, the accuracy must be near its best.
    for last, verdict in ((0.88, "partly"), (0.7, "collapsed")):
        curve = EvalCurve(AT[5:], np.append(np.full(30, 0.9), np.full(15, last)), np.zeros(45, dtype=int))
        assert find_collapse(equal, ("val_acc", curve)).verdict == verdict
