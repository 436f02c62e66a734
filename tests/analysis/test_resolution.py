"""Recording only every n-th iteration: intervals contain the truth, and no order finer than the step is claimed."""

from __future__ import annotations

import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from stabilitylab.analysis.episodes import find_episodes, join_gap
from stabilitylab.analysis.explain import explain_episodes
from stabilitylab.analysis.pipeline import analyze_run
from stabilitylab.analysis.resolution import resolution_of
from stabilitylab.analysis.results import RunAnalysis
from stabilitylab.analysis.series import EvalCurve, LayerSeries, RunSeries
from stabilitylab.analysis.shifts import covered
from stabilitylab.analysis.timeline import Timeline
from tests.synthetic import spikes_at

N = 20_000


def two_layers(lag: int, seed: int = 0) -> list[np.ndarray]:
    """Norms of two layers whose spikes decay over 40 iterations."""
    rng = np.random.default_rng(seed)
    onsets = np.arange(500, N - 500, 400) + rng.integers(0, 200, len(range(500, N - 500, 400)))
    layers = []
    for late in (0, lag):
        x = np.exp(rng.normal(0, 0.12, N))
        for onset in onsets + late:
            t = np.arange(onset, onset + 160)
            x[t] *= 1 + 7 * np.exp(-(t - onset) / 40)
        layers.append(x)
    return layers


def run(*layers: tuple[np.ndarray, np.ndarray]) -> RunSeries:
    series = tuple(LayerSeries(f"l{depth}", depth, *rows) for depth, rows in enumerate(layers))
    return RunSeries("r", N, series)


def analysed(lag: int, step: int, *, mean: bool = False, keep: np.ndarray | None = None) -> RunAnalysis:
    layers = []
    for depth, x in enumerate(two_layers(lag)):
        rows = np.arange(0, N - step, step)
        value = x[: len(rows) * step].reshape(-1, step).mean(1) if mean else x[rows]
        rows, value = (rows, value) if keep is None else (rows[keep], value[keep])
        layers.append(LayerSeries(f"l{depth}", depth, rows, value))
    return analyze_run(RunSeries("r", N, tuple(layers), rows="mean" if mean else ""), dips=False)


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("step", [1, 10, 25])
def test_the_interval_holds_the_lag_and_no_order_is_claimed_below_the_step(step: int, mean: bool) -> None:
    for lag in (0, 6, 30):
        found = analysed(lag, step, mean=mean)
        assert found.lag is not None
        assert found.lag.ci95 is not None
        low, high = found.lag.ci95
        assert low <= lag <= high
        if step > 1:
            assert found.lag.median_iterations is not None
            assert low <= found.lag.median_iterations - step
            assert high >= found.lag.median_iterations + step
            if lag < step:
                assert found.lag.verdict == "not resolvable"
                assert f"{step} iterations apart" in found.lag.reason
        assert found.lag.verdict != "last leads"
        assert found.lag.resolution == step
    if step == 10:
        assert found.lag.verdict == "first leads"  # 30 iterations are three rows: the order shows


def test_an_irregular_step_counts_at_each_pair() -> None:
    keep = np.sort(np.random.default_rng(0).choice(N - 1, N // 8, replace=False))
    found = analysed(3, 1, keep=keep)
    assert found.resolution is not None
    assert found.resolution.spacing == "irregular"
    assert found.lag is not None
    assert found.lag.ci95 is not None
    assert found.lag.ci95[0] <= 3 <= found.lag.ci95[1]
    assert found.lag.verdict == "not resolvable"


def test_spacing_and_the_probability_of_seeing_a_spike() -> None:
    def of(rows: np.ndarray, stand: str = "") -> LayerSeries:
        return LayerSeries("l", 0, rows, np.ones(len(rows)))

    every = resolution_of([of(np.arange(500))])
    assert (every.step, every.spacing, every.rows, every.in_words()) == (1, "regular", "sampled", "")
    tenth = resolution_of([of(np.arange(0, 5000, 10))], evaluations=np.arange(0, 5000, 25))
    assert (tenth.step, tenth.spacing, tenth.rows, tenth.eval_step) == (10, "regular", "unknown", 25)
    assert dict(tenth.seen) == {1: pytest.approx(0.1), 2: pytest.approx(0.2), 5: pytest.approx(0.5)}
    assert "10% for width 1" in tenth.in_words()
    changing = resolution_of([of(np.concatenate([np.arange(0, 1000, 2), np.arange(1000, 9000, 20)]))])
    assert changing.spacing == "changing"
    assert (changing.smallest, changing.largest) == (2, 20)
    # By counting: the share of positions of a spike 5 wide that a row falls into.
    rows = np.sort(np.random.default_rng(1).choice(3000, 300, replace=False))
    counted = np.mean([((rows >= t) & (rows < t + 5)).any() for t in range(int(rows[0]) - 4, int(rows[-1]) - 4)])
    assert dict(resolution_of([of(rows)]).seen)[5] == pytest.approx(counted, abs=0.01)
    assert "1/10 of its height" in resolution_of([of(np.arange(0, 5000, 10))], rows="mean").in_words()
    assert resolution_of([of(np.arange(1))]).spacing == "unknown"


def test_layers_within_a_step_have_no_leader() -> None:
    spikes = [*spikes_at([100], "a"), *spikes_at([110], "b")]
    (episode,) = find_episodes(spikes, num_layers=2, gap=join_gap(2, 1.0, 10), step=10)
    assert not episode.order_known
    (apart,) = find_episodes(spikes, num_layers=2, gap=50)
    assert apart.order_known
    found = analysed(6, 25)
    text = explain_episodes(found)[0].text
    assert "within the recording step of 25 iterations: it is unknown which led" in text


def test_time_and_memory_follow_rows_not_iterations() -> None:
    rng = np.random.default_rng(0)
    value = [np.exp(rng.normal(0, 0.1, 2000)) for _ in range(2)]
    for x in value:
        x[rng.choice(np.arange(300, 1900), 30, replace=False)] *= 9
    curve = np.linspace(0.2, 0.9, 200)
    curve[100:104] = 0.3

    def run(step: int, start: int = 0) -> tuple[RunAnalysis, int, float]:
        rows = start + np.arange(2000) * step
        layers = tuple(LayerSeries(f"l{i}", i, rows, x) for i, x in enumerate(value))
        evals = {"knn_top1": EvalCurve(rows[::10], curve, np.full(200, 500))}
        tracemalloc.start()
        began = time.process_time()
        found = analyze_run(RunSeries("r", int(rows[-1]) + 1, layers, evals))
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found, used, time.process_time() - began

    run(1)
    near, memory, _ = run(1)
    for step, start in ((1_000_000, 0), (1, 2_000_000_000)):
        far, more, _ = run(step, start)
        assert more < 2 * memory + 5e6
        assert [len(far.spikes or ()), len(far.dips or ())] == [len(near.spikes or ()), len(near.dips or ())]
    # A record that starts late is judged like one that starts at 0: chance is measured over what was recorded.
    assert near.lag is not None
    assert far.lag is not None
    assert far.lag.p_value == near.lag.p_value
    assert far.dip_link is not None
    assert near.dip_link is not None
    assert far.dip_link == replace(near.dip_link)


def test_a_gap_in_the_record_is_short_on_the_clock() -> None:
    rows = np.concatenate([np.arange(100), 1_000_000 + np.arange(100)])
    line = Timeline.of(rows)
    assert line.span == 399
    np.testing.assert_array_equal(line.times(np.array([0, 99, 1_000_000, 1_000_099])), [0, 99, 299, 398])


def test_covered_counts_integers_once() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        low = rng.integers(-20, 60, 6)
        high = low + rng.integers(-2, 20, 6)
        expected = {i for a, b in zip(low.tolist(), high.tolist(), strict=True) for i in range(a, b + 1) if 0 <= i < 50}
        assert covered(low, high, 0, 50) == len(expected)


def test_a_step_that_changes_and_layers_recorded_apart() -> None:
    """Every 2nd iteration, then every 25th: no order within 25 is claimed. One layer every iteration, the other every
    10th: the interval of the cross-correlation is as wide as the coarser one, too."""
    first, last = two_layers(6)
    at = np.concatenate([np.arange(0, N // 2, 2), np.arange(N // 2, N, 25)])
    found = analyze_run(run((at, first[at]), (at, last[at])))
    assert found.resolution is not None
    assert (found.resolution.spacing, found.resolution.mostly) == ("changing", 25)
    assert any("recorded every 2 to 25 iterations" in note for note in found.notes)
    assert found.lag is not None
    assert found.lag.resolution == 25
    assert found.lag.verdict in ("not resolvable", "first leads")
    every, tenth = np.arange(N), np.arange(0, N, 10)
    apart = analyze_run(run((every, first), (tenth, last[tenth]))).lag
    assert apart is not None
    for interval in (apart.ci95, apart.cross.ci95 if apart.cross else None):
        assert interval is not None
        assert interval[0] <= 6 <= interval[1]
