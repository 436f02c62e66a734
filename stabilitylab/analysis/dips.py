"""Dips of an evaluation curve: drops below the level it had reached that exceed its sampling error.

A metric for which lower is better is negated first (see metrics.py), so here higher is always better.

Consecutive evaluations are tested together: four that lie 3 standard errors below the level are stronger evidence than
one that lies 4 below, but none of the four would pass a test on single values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import median

import numpy as np
from scipy.ndimage import median_filter

from stabilitylab.analysis.results import Dip, DipLink, EvalCurve, Spike, SpikeRef

Z_OPEN = 4.0
Z_CLOSE = 2.0
MIN_DEPTH = 0.01
REACHED_OVER, HELD_OVER = 9, 25
"""The level is the higher of two medians: that of the last 9 evaluations outside dips, and the highest so far of any 25
consecutive ones. The maximum of many single values would be biased upwards, and so would that of medians of 9."""
TREND_OVER, TREND_BLOCKS = 5, 4
TREND_FROM = 1.0
"""If the medians of the last four blocks of five evaluations each rise by at least this many standard errors, the level
is extrapolated: otherwise dips of a rising curve would be missed. The recovery from an undetected dip is shorter."""
TREND_ERROR = 1.2
"""Uncertainty of the extrapolation in standard errors, which is subtracted from it."""
TOGETHER = (1, 2, 3, 5, 8)
LEVEL_VARIANCE = 0.1
"""Variance of the level, in squared standard errors: it does not shrink when several evaluations are averaged."""
NOISE_OVER = 41
"""Number of evaluations, centred on each one, whose second differences give its noise."""
SHORT = 4.0
"""A noise estimate from n evaluations is multiplied by 1 + SHORT / n."""
LINK_WINDOW = 100
"""A dip is linked to a spike if it may have begun at most this many iterations after the onset of the spike. A dip may
begin anywhere between two evaluations."""


def find_dips(
    curve: EvalCurve,
    spikes: Sequence[Spike] = (),
    *,
    z_open: float = Z_OPEN,
    min_depth: float = MIN_DEPTH,
    link_window: int = LINK_WINDOW,
    binomial: bool = True,
) -> tuple[Dip, ...]:
    """Dips in order of time. Each is linked to the last spike within reach whose onset precedes its trough, if any.

    ``z_open``: depth in standard errors from which a drop counts as a dip. ``min_depth``: least depth, in the units of
    the curve. ``link_window``: in iterations; see `LINK_WINDOW`. ``binomial``: whether the values are shares of
    ``num_samples``, which gives their standard error. Otherwise, and where ``num_samples`` is 0, the error is estimated
    from the noise of the curve.
    """
    iteration, value, error = _clean(curve, min_depth, binomial)
    if len(value) < 3:
        return ()
    limits = _limits(value, error, z_open, min_depth)
    close = np.zeros(len(value))  # an earlier evaluation below this belongs to the dip
    level = _Level()
    dips: list[Dip] = []
    i = free = 0
    while i < len(value):
        before = level.reached(float(value[i]), float(error[i]))
        close[i] = before - Z_CLOSE * error[i]
        constant = error[i] == 0 and before <= value[i]  # a curve without noise that did not fall
        if before < limits[i].min() or constant:
            level.add(float(value[i]))
            i += 1
            continue
        start, stop = _strongest(before - limits, i)
        line = before - Z_CLOSE * error
        low = value < np.where(np.arange(len(value)) < i, close, line)
        # A single good evaluation does not end a dip, neither before its start nor after it.
        while low[max(start - 2, free) : start].any():
            start = start - 1 if low[start - 1] else start - 2
        while stop < len(value) and (value[stop : stop + 2] < line[stop : stop + 2]).any():
            stop += 1
        level.unbroken = 0
        trough = start + int(np.argmin(value[start:stop]))
        depth = float(before - value[trough])
        lost = np.maximum(before - value[start:stop], 0)
        dips.append(
            Dip(
                start=int(iteration[start]),
                trough=int(iteration[trough]),
                recovered=int(iteration[stop]) if stop < len(value) else None,
                depth=depth,
                z=float(depth / error[trough]) if error[trough] else math.inf,
                area=_area(iteration[start : stop + 1], lost),
                began_after=int(iteration[start - 1]) if start else None,
                down_until=int(iteration[stop - 1]),
            )
        )
        i = free = stop
    return tuple(_linked(dip, spikes, link_window) for dip in dips)


class _Level:
    """The level that the curve had reached, from the evaluations outside dips."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.held = -np.inf
        self.unbroken = 0  # evaluations since the last dip

    def add(self, value: float) -> None:
        self.values.append(value)
        self.unbroken += 1
        if len(self.values) >= HELD_OVER:
            self.held = max(self.held, median(self.values[-HELD_OVER:]))

    def reached(self, first: float, error: float) -> float:
        """Level expected at the next evaluation, whose standard error is ``error``; ``first`` if it is the first."""
        if not self.values:
            return first
        recent = median(self.values[-REACHED_OVER:])
        if self.unbroken >= TREND_BLOCKS * TREND_OVER:
            starts = range(-TREND_BLOCKS * TREND_OVER, 0, TREND_OVER)
            middles = [median(self.values[k : k + TREND_OVER or None]) for k in starts]
            rises = [later - earlier for earlier, later in pairwise(middles)]
            if min(rises) > TREND_FROM * error:
                # Extrapolate from the middle of the last block to the next evaluation. The slope flattens at the rate
                # at which it has flattened so far.
                lead = (TREND_OVER + 1) / 2 * rises[-1] / TREND_OVER * min(rises[-1] / rises[-2], 1.0)
                recent = max(recent, middles[-1] + lead - TREND_ERROR * error)
        return max(recent, self.held)


def _limits(value: np.ndarray, error: np.ndarray, z_open: float, min_depth: float) -> np.ndarray:
    """(n, len(TOGETHER)): the lowest level for which the next 1, 2, 3 ... evaluations together are a dip."""
    limits = np.full((len(value), len(TOGETHER)), np.inf)
    for column, count in enumerate(TOGETHER):
        last = len(value) - count + 1
        if last < 1:
            break
        variance = _forward_mean(error**2, count) / count
        if count > 1:
            variance += LEVEL_VARIANCE * error[:last] ** 2
        limits[:last, column] = _forward_mean(value, count) + np.maximum(z_open * np.sqrt(variance), min_depth)
    return limits


def _strongest(margin: np.ndarray, i: int) -> tuple[int, int]:
    """Start and stop of the stretch, starting at ``i`` or shortly after, that exceeds its limit by most."""
    row, column = np.unravel_index(np.argmax(margin[i : i + max(TOGETHER)]), margin[i : i + max(TOGETHER)].shape)
    return i + int(row), i + int(row) + TOGETHER[int(column)]


def _forward_mean(x: np.ndarray, count: int) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(x, count).mean(axis=1)


def link_dips(
    dips: Sequence[Dip],
    spikes: Sequence[Spike],
    *,
    num_iterations: int,
    link_window: int = LINK_WINDOW,
    first: int = 0,
) -> DipLink:
    """Count the dips that follow a spike, and compare with circular shifts of the spikes.

    ``num_iterations``: iterations of the run. ``first``: its first recorded iteration. ``link_window``: in iterations.
    The expected count and the p-value are None without dips or spikes.
    """
    span = num_iterations - first
    num_linked = sum(_preceding(dip, spikes, link_window) is not None for dip in dips)
    if not dips or not spikes or span < 2:
        return DipLink(len(dips), num_linked, None, None)
    low = np.maximum(np.array([dip.earliest for dip in dips]) - link_window, first)
    high = np.array([max(dip.trough, dip.start) for dip in dips])
    onsets = np.array([spike.onset for spike in spikes])
    # For each dip, the shifts that move some spike into its range form intervals on a circle. The number of linked dips
    # changes only at interval ends, so the cost depends on the number of spikes and dips, not of iterations.
    ends = []
    for begin, end in zip(low.tolist(), high.tolist(), strict=True):
        ends.append(_union(begin - onsets, end - onsets, span))
    edges = np.unique(np.concatenate([[0, span], *(np.ravel(pair) for pair in ends)]))
    linked = np.zeros(len(edges) - 1, dtype=np.int64)
    for begins, stops in ends:
        change = np.zeros(len(edges), dtype=np.int64)
        np.add.at(change, np.searchsorted(edges, begins), 1)
        np.add.at(change, np.searchsorted(edges, stops), -1)
        linked += np.cumsum(change)[:-1]
    width = np.diff(edges)
    expected = float((linked * width).sum() / span)
    return DipLink(len(dips), num_linked, expected, float(width[linked >= num_linked].sum() / span))


def _union(low: np.ndarray, high: np.ndarray, span: int) -> tuple[np.ndarray, np.ndarray]:
    """Union of closed integer intervals on a circle of length ``span``: starts and exclusive stops."""
    length = np.minimum(high - low + 1, span)
    begin = low % span
    stop = begin + length
    begins = np.concatenate([begin, np.zeros(int((stop > span).sum()), dtype=np.int64)])
    stops = np.concatenate([np.minimum(stop, span), stop[stop > span] - span])
    order = np.argsort(begins, kind="stable")
    begins, stops = begins[order], np.maximum.accumulate(stops[order])
    first = np.concatenate([[True], begins[1:] > stops[:-1]])
    return begins[first], stops[np.append(np.flatnonzero(first)[1:] - 1, len(stops) - 1)]


def _clean(curve: EvalCurve, min_depth: float, binomial: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Iterations, finite values and their standard errors, in order; the last value of a repeated iteration."""
    value = np.asarray(curve.value, dtype=np.float64)
    keep = np.isfinite(value)
    iteration, value = np.asarray(curve.iteration)[keep], value[keep]
    samples = np.asarray(curve.num_samples, dtype=np.float64)[keep]
    order = np.argsort(iteration, kind="stable")
    iteration, value, samples = iteration[order], value[order], samples[order]
    last = np.append(iteration[1:] != iteration[:-1], True) if len(iteration) else keep[:0]
    iteration, value, samples = iteration[last], value[last], samples[last]
    noise = noise_of(value, floor=0.1 * min_depth)
    if not binomial:
        return iteration, value, noise
    count = np.where(samples > 0, samples, 1.0)
    share = np.clip(np.abs(value), 0, 1)  # error rates are negated
    smooth = (share * count + 1) / (count + 2)  # so that values of 0 and 1 have an error above 0
    return iteration, value, np.where(samples > 0, np.sqrt(smooth * (1 - smooth) / count), noise)


def noise_of(value: np.ndarray, floor: float) -> np.ndarray:
    """Standard deviation (n,) of the noise of a curve (n,), from its second differences, which remove the trend.

    It is the larger of the estimate for the whole curve and the local one, and at least ``floor``. It is increased for
    short curves, because their estimate is uncertain.
    """
    n = len(value)
    if n < 3:
        return np.full(n, floor)
    bends = np.abs(value[2:] - 2 * value[1:-1] + value[:-2])
    around = np.pad(median_filter(bends, size=min(NOISE_OVER, len(bends)), mode="nearest"), 1, mode="edge")
    sd = 1.4826 * np.maximum(around, np.median(bends)) / np.sqrt(6)
    return np.maximum(sd * (1 + SHORT / n), floor)


def _area(iteration: np.ndarray, lost: np.ndarray) -> float:
    widths = np.diff(iteration) if len(iteration) > len(lost) else np.append(np.diff(iteration), 0)
    return float(np.sum(widths[: len(lost)] * lost))


def _preceding(dip: Dip, spikes: Sequence[Spike], window: int) -> Spike | None:
    before = [s for s in spikes if dip.earliest - window <= s.onset <= max(dip.trough, dip.start)]
    return max(before, key=lambda spike: spike.onset, default=None)


def _linked(dip: Dip, spikes: Sequence[Spike], window: int) -> Dip:
    spike = _preceding(dip, spikes, window)
    return dip if spike is None else replace(dip, after_spike=SpikeRef(spike.layer, spike.onset))
