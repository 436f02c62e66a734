"""Pooled lag over several runs of the same setting: one common lag, with an interval from resampling runs.

A short run has only one or two matching spikes, but an interval needs five, which three such runs have together. Runs
are the independent samples, not pairs of spikes, so runs are resampled. With fewer than six runs, the interval is the
whole range.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import uniform_filter1d

from stabilitylab.analysis.intervals import median_interval
from stabilitylab.analysis.lag import MIN_MATCHES, Reach, differences, pairs_around, verdict_of
from stabilitylab.analysis.lag import common_lag as densest_lag
from stabilitylab.analysis.results import RunAnalysis

MIN_RUNS = 3
RANGE_BELOW = 6
"""Fewer runs do not allow a narrower 95% interval: even the range of five runs misses the median in 1 of 16 cases."""
RESAMPLES = 999
SHIFTS = 499
MOST_CELLS = 2_000_000


@dataclass(frozen=True, slots=True)
class PooledLag:
    """Iterations from a spike in ``source`` to the matching spike in ``target``, over the runs of ``group``.

    ``num_given``: number of runs. ``num_runs``: number of runs with a match. ``verdict``, ``reason``: as in `Lag`.
    ``resolution``: the largest recording step.
    """

    group: str
    source: str
    target: str
    median_iterations: float | None
    ci95: tuple[float, float] | None
    p_value: float | None
    num_matched: int
    num_runs: int
    num_given: int
    verdict: str
    reason: str
    resolution: int = 1


@dataclass(frozen=True, slots=True)
class RunOnsets:
    """Onsets of one run: ``source`` (a,), ``target`` (b,). ``iterations``, ``step``: its length and recording step.
    ``open_by``: iterations by which each onset may be early; None means a step, if it is longer than one iteration."""

    source: np.ndarray
    target: np.ndarray
    iterations: int
    step: int = 1
    open_by: float | None = None

    @property
    def widens_by(self) -> float:
        return (self.step if self.step > 1 else 0.0) if self.open_by is None else self.open_by


def pooled_lags(groups: Mapping[str, Sequence[RunAnalysis]]) -> tuple[PooledLag, ...]:
    """For each group, the pooled lag from its first trained layer to every other layer with spikes, in order of depth.

    The layers are those of the first run of the group. Runs that start with a different layer are skipped, which the
    ``reason`` mentions.
    """
    pooled: list[PooledLag] = []
    for group, runs in groups.items():
        timed = [run for run in runs if run.lag is not None and run.spikes is not None]
        if len(timed) < 2:
            continue
        assert timed[0].lag is not None
        source, last = timed[0].lag.source, timed[0].lag.target
        alike = [run for run in timed if run.lag is not None and run.lag.source == source]
        for target in [name for name, _ in timed[0].layers if name != source]:
            onsets = [_onsets(run, source, target) for run in alike]
            if target != last and not any(len(run.target) for run in onsets):
                continue
            left = len(timed) - len(alike)
            note = f"{left} runs were skipped because their first layer is not {source}" if left else ""
            pooled.append(pool_lag(onsets, group=group, source=source, target=target, note=note))
    return tuple(pooled)


def pooled_between(runs: Sequence[RunAnalysis], target: str) -> PooledLag | None:
    """The pooled lag of runs of one setting from their first layer to ``target``. None with fewer than two runs, or if
    ``target`` has no spike in any run."""
    return next((lag for lag in pooled_lags({"": runs}) if lag.target == target), None)


def by_mitigation(runs: Iterable[tuple[str, RunAnalysis]]) -> tuple[PooledLag, ...]:
    """`pooled_lags` of runs given as (group, analysis)."""
    groups: dict[str, list[RunAnalysis]] = {}
    for group, run in runs:
        groups.setdefault(group, []).append(run)
    return pooled_lags(groups)


def pool_lag(
    runs: Sequence[RunOnsets], *, group: str, source: str, target: str, note: str = "", seed: int = 0
) -> PooledLag:
    """The pooled lag of runs of one setting. Each pair has an uncertainty of one recording step of its run."""
    steps = sorted({run.step for run in runs})
    step = steps[-1] if steps else 1
    reach = Reach.of(step, min((run.iterations for run in runs), default=0))
    notes = [note] if note else []
    if len(steps) > 1:
        notes.append(f"recording steps differ ({steps[0]} to {step}); each pair uses that of its run")
    pairs = [differences(run.source, run.target, reach.window) for run in runs]
    together = np.sort(np.concatenate(pairs)) if pairs else np.array([])
    lags: list[np.ndarray] = []
    if len(together):
        centre = densest_lag(together, reach.bandwidth)
        for run in runs:
            if len(run.source) and len(run.target):
                one, other = pairs_around(run.source, run.target, centre, reach)
                lags.append((run.target[other] - run.source[one]).astype(np.float64))
            else:
                lags.append(np.array([]))
    matched, with_match = sum(map(len, lags)), sum(len(own) > 0 for own in lags)

    def answer(
        verdict: str,
        reason: str,
        median: float | None = None,
        ci95: tuple[float, float] | None = None,
        p_value: float | None = None,
    ) -> PooledLag:
        full_reason = "; ".join([reason, *notes])
        return PooledLag(
            group, source, target, median, ci95, p_value, matched, with_match, len(runs), verdict, full_reason, step
        )

    if with_match < MIN_RUNS or matched < MIN_MATCHES:
        return answer(
            "inconclusive",
            f"{matched} matches in {with_match} of {len(runs)} runs; at least {MIN_MATCHES} in {MIN_RUNS} runs are "
            "needed",
        )
    open_by = [np.full(len(own), run.widens_by) for own, run in zip(lags, runs, strict=True)]
    shown = _interval(lags, seed)
    low = _interval([own - wide for own, wide in zip(lags, open_by, strict=True)], seed)[0]
    high = _interval([own + wide for own, wide in zip(lags, open_by, strict=True)], seed)[1]
    p_value = _chance(runs, reach, seed)
    verdict, reason = verdict_of(source, target, (low, high), p_value, shown, step)
    return answer(verdict, reason, float(np.median(np.concatenate(lags))), (low, high), p_value)


def _onsets(run: RunAnalysis, source: str, target: str) -> RunOnsets:
    def of(layer: str) -> np.ndarray:
        return np.unique(np.array([s.onset for s in run.spikes or () if s.layer == layer], dtype=np.int64))

    known = run.resolution
    step, open_by = (known.mostly, known.open_by) if known is not None else (1, None)
    return RunOnsets(of(source), of(target), run.iterations, step, open_by)


def _interval(lags: Sequence[np.ndarray], seed: int) -> tuple[float, float]:
    """Interval of the median, by resampling runs, widened to the sign-test interval of the runs' medians; the whole
    range with fewer than six runs."""
    own = [values for values in lags if len(values)]
    if len(own) < RANGE_BELOW:
        together = np.concatenate(own)
        return float(together.min()), float(together.max())
    rng = np.random.default_rng(seed)
    medians = [
        np.median(np.concatenate([own[i] for i in rng.integers(0, len(own), len(own))])) for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(medians, [2.5, 97.5], method="inverted_cdf")
    # With few runs, the bootstrap interval is too narrow; the sign-test interval of their medians keeps its level.
    sign = median_interval(np.array([np.median(values) for values in own]))
    return min(float(low), sign[0]), max(float(high), sign[1])


def _range(run: RunOnsets) -> int:
    """Length of the period in which events occur. A run has no events in its warm-up; shifting events through it would
    underestimate the matches by chance."""
    both = np.concatenate([run.source, run.target])
    length = int(both.max() - both.min()) + 1
    return max(int(length * (len(both) + 1) / max(len(both) - 1, 1)), 2)


def _chance(runs: Sequence[RunOnsets], reach: Reach, seed: int) -> float:
    """p-value: how often independent circular shifts of the targets match at least as many onsets at one lag."""
    rng = np.random.default_rng(seed)
    near = max(reach.window - reach.bandwidth, 0)
    observed = np.zeros(2 * reach.window + 1)
    by_chance = np.zeros((SHIFTS, 2 * reach.window + 1))
    for run in runs:
        if not len(run.source) or not len(run.target):
            continue
        span = _range(run)
        apart = np.subtract.outer(run.target, run.source).ravel()
        close = apart[np.abs(apart) <= reach.window]
        np.add.at(observed, close + reach.window, 1)
        free = span - 4 * reach.window
        moves = (
            (2 * reach.window + rng.integers(0, free, SHIFTS)) if free > 0 else rng.integers(1, max(span, 2), SHIFTS)
        )
        part = max(MOST_CELLS // len(apart), 1)
        for first in range(0, SHIFTS, part):
            moved = (apart[None, :] + moves[first : first + part, None] + reach.window) % span
            row, column = np.nonzero(moved <= 2 * reach.window)
            np.add.at(by_chance, (row + first, moved[row, column]), 1)
    width = 2 * reach.bandwidth + 1

    def most(counts: np.ndarray) -> np.ndarray:
        dense = np.rint(uniform_filter1d(counts, width, axis=-1, mode="constant") * width)
        middle = reach.window
        return np.asarray(dense[..., middle - near : middle + near + 1].max(axis=-1))

    return float((1 + (most(by_chance) >= most(observed)).sum()) / (1 + SHIFTS))
