"""Effects over paired runs, against enumeration and textbook numbers."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
from scipy import stats

from stabilitylab.analysis.results import LayerSeries, RunSeries
from stabilitylab.comparison.effects import compare_runs, global_norm
from stabilitylab.comparison.paired import detectable_size, holm, mean_interval, power, seeds_needed, sign_flip_p
from stabilitylab.comparison.results import Effect, RunSummary


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


def test_power_is_what_simulation_gives() -> None:
    """The noncentral t against counting, and the seeds and sizes that follow from it."""
    rng = np.random.default_rng(5)
    for n, size in ((3, 1.5), (5, 1.0), (10, 1.0)):
        draws = rng.normal(size, 1.0, (20_000, n))
        half = stats.t.ppf(0.975, n - 1) * draws.std(axis=1, ddof=1) / np.sqrt(n)
        assert power(n, size) == pytest.approx(np.mean(np.abs(draws.mean(axis=1)) > half), abs=0.012)
    assert power(1, 5.0) == 0.0
    assert power(10, 0.0) == pytest.approx(0.05)
    needed = seeds_needed(1.0)
    assert needed == 10  # the textbook's n for d = 1, 80%, two-sided 5%
    assert power(needed - 1, 1.0) < 0.8 <= power(needed, 1.0)
    for size in (0.15, 0.5, 0.9, 2.0, 5.0):
        needed = seeds_needed(size)
        assert needed is not None
        assert needed == next(n for n in range(2, 1000) if power(n, size) >= 0.8)
    assert seeds_needed(0.01) is None
    size = detectable_size(8)
    assert size is not None
    assert power(8, size) == pytest.approx(0.8, abs=1e-3)
    assert detectable_size(1) is None


def test_verdicts_are_read_off_the_interval() -> None:
    def effect(differences: list[float], metric: str = "final_knn") -> Effect:
        runs = [summary("none", s, 0.5) for s in range(len(differences))]
        runs += [summary("x", s, 0.5 + d) for s, d in enumerate(differences)]
        return next(e for e in compare_runs(runs).effects if e.metric == metric)

    assert effect([0.1, 0.11, 0.12, 0.1]).verdict == "better"
    assert effect([-0.1, -0.11, -0.12, -0.1]).verdict == "worse"
    assert effect([0.1, -0.1, 0.3, 0.05]).verdict == "no difference shown"
    assert effect([0.1, 0.11]).verdict == "too few seeds"
    assert effect([0.0, 0.0, 0.0]).verdict == "no difference shown"
    few = effect([0.1, 0.11, 0.12])
    assert few.verdict == "better"
    assert "no p below 0.05 is possible" in few.warning
    assert few.effect_size == pytest.approx(0.11 / 0.01)
    assert few.detectable == pytest.approx(0.01 * detectable_size(3), rel=1e-6)  # type: ignore[operator]


def test_a_lower_spike_rate_is_better() -> None:
    runs = [replace(summary("none", s, 0.5), spikes_per_10k=20.0 + s) for s in range(4)]
    runs += [replace(summary("x", s, 0.5), spikes_per_10k=5.0 + s**2 / 10) for s in range(4)]
    effect = next(e for e in compare_runs(runs).effects if e.metric == "spikes_per_10k")
    assert effect.verdict == "better"


def test_lr_sensitivity_is_what_is_lost_against_the_best_rate() -> None:
    table = {"none": {0.1: (0.7, 0.72), 0.2: (0.8, 0.78), 0.4: (0.5, 0.6)}, "x": {0.1: (0.7, 0.7), 0.2: (0.75, 0.8)}}
    runs = []
    for name, by_lr in table.items():
        for lr, values in by_lr.items():
            runs += [summary(name, seed, knn, lr) for seed, knn in enumerate(values)]
    none, x = compare_runs(runs).lr_sensitivity
    assert [lr for lr, _ in none.by_lr] == [0.1, 0.2]  # 0.4 was not run with x
    assert none.mean == pytest.approx(np.mean([(0.1 + 0) / 2, (0.06 + 0) / 2]))
    assert x.mean == pytest.approx(np.mean([0.05 / 2, 0.1 / 2]))
    assert x.num_seeds == 2
    assert dict(x.by_lr)[0.2] == pytest.approx(0.775)
    assert compare_runs([summary("none", s, 0.5) for s in range(3)]).lr_sensitivity == ()


def test_a_run_without_knn_is_named() -> None:
    notes = compare_runs([summary("none", 0, None), summary("x", 0, 0.5)]).notes
    assert "none_0_0.1: no knn_top1 was recorded" in notes


def test_the_whole_norm_is_that_of_the_layers_at_shared_iterations() -> None:
    a = LayerSeries("a", 0, np.array([0, 1, 1, 2, 5]), np.array([3.0, 9.0, 3.0, 3.0, 1.0]))
    b = LayerSeries("b", 1, np.array([1, 2, 3, 4, 7]), np.array([4.0, 4.0, 1.0, 1.0, 1.0]))
    frozen = LayerSeries("c", 2, np.array([], dtype=int), np.array([]), trainable=False)
    np.testing.assert_allclose(global_norm(RunSeries("r", 8, (a, b, frozen))), [5.0, 5.0])
    assert len(global_norm(RunSeries("r", 0, (frozen,)))) == 0
