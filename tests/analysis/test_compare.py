"""Effects over paired runs, against enumeration and textbook numbers."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from scipy import stats

from stabilitylab.analysis.compare import compare_runs
from stabilitylab.analysis.paired import holm, mean_interval, sign_flip_p
from stabilitylab.analysis.results import RunSummary


def summary(mitigation: str, seed: int, knn: float | None, lr: float = 0.1, *, diverged: bool = False) -> RunSummary:
    return RunSummary(f"{mitigation}_{seed}_{lr}", mitigation, seed, lr, knn, knn, 1.0, 2.0, 0.1, diverged)


def test_the_interval_is_students() -> None:
    values = np.array([0.01, 0.03, 0.02, 0.05])
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_interval(values) == pytest.approx((expected.low, expected.high))
    assert mean_interval(values[:1]) is None
    assert mean_interval(np.full(3, 0.1)) is None


def test_sign_flips_are_all_enumerated() -> None:
    values = np.array([1.0, 2.0, -0.5, 3.0, 0.7])
    flipped = [abs(np.mean(values * signs)) for signs in product((-1, 1), repeat=5)]
    assert sign_flip_p(values) == np.mean(np.array(flipped) >= abs(values.mean()) - 1e-12)
    assert sign_flip_p(np.ones(6)) == 2 / 64


def test_sign_flip_p_is_uniform_where_nothing_happens() -> None:
    p = [sign_flip_p(np.random.default_rng(s).normal(size=8)) for s in range(300)]
    assert 0.02 <= np.mean(np.array(p) <= 0.05) <= 0.09


def test_holm_against_the_definition() -> None:
    p = [0.01, 0.04, 0.03, None]
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06, None])
    for order in permutations(range(3)):
        shuffled = holm([p[i] for i in order])
        assert shuffled == pytest.approx([[0.03, 0.06, 0.06][i] for i in order])


def test_runs_are_paired_by_seed_not_by_position() -> None:
    runs = [summary("none", s, 0.7 + 0.01 * s) for s in (2, 0, 1)]
    runs += [summary("frozen-patch", s, 0.75 + 0.01 * s) for s in (0, 1, 2, 7)]
    effect = next(e for e in compare_runs(runs).effects if e.metric == "final_knn")
    assert effect.num_seeds == 3
    assert effect.difference == pytest.approx(0.05)
    assert effect.p_value == 0.25
    assert effect.warning != ""


def test_several_learning_rates_of_a_seed_are_one_seed() -> None:
    runs = [summary(m, 0, k, lr) for m, k in (("none", 0.7), ("frozen-patch", 0.8)) for lr in (0.1, 0.2)]
    effect = next(e for e in compare_runs(runs).effects if e.metric == "final_knn")
    assert (effect.num_seeds, effect.ci95, effect.p_value) == (1, None, None)
    assert "run at least 3" in effect.warning


def test_what_cannot_be_compared_is_said() -> None:
    assert "no run has mitigation" in compare_runs([summary("frozen-patch", 0, 0.5)]).notes[0]
    assert "nothing to compare" in compare_runs([summary("none", 0, 0.5)]).notes[0]
    apart = compare_runs([summary("none", 0, 0.5), summary("frozen-patch", 1, 0.6)])
    assert apart.effects == ()
    assert "not compared" in apart.notes[0]


def test_divergence_is_a_rate() -> None:
    runs = [summary("none", s, 0.1, diverged=s < 2) for s in range(4)] + [summary("x", s, 0.5) for s in range(4)]
    effect = next(e for e in compare_runs(runs).effects if e.metric == "diverged")
    assert (effect.baseline_mean, effect.mitigated_mean) == (0.5, 0.0)
