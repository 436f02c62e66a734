"""Dips of an evaluation curve: drops below what it had reached, larger than its own sampling error. A metric for which
lower is better is judged with its sign turned (see metrics.py), so here higher is always better.

Several evaluations in a row are judged together: four that lie 3 standard errors down are surer than one that lies 4
down, and one by one none of them would be seen.
"""

from __future__ import annotations

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
"""Reached is the higher of two medians: of the last 9 evaluations outside dips, and the highest there ever was of 25.
The highest single value of many is luck; the highest of many medians of 9 still is, a little."""
TREND_OVER, TREND_BLOCKS = 5, 4
TREND_FROM = 1.0
"""While the medians of four fives rise by this many standard errors each, reached is where they lead: else a curve that
climbs hides its dips. A rebound from an unseen dip does not rise so long."""
TREND_ERROR = 1.2
"""Standard errors by which such a lead is itself uncertain, taken off."""
TOGETHER = (1, 2, 3, 5, 8)
LEVEL_VARIANCE = 0.1
"""Of what was reached, in squared standard errors: it does not average out over evaluations."""
NOISE_OVER = 41
"""Evaluations whose second differences give the noise at the one in their middle."""
SHORT = 4.0
"""A noise estimated from n evaluations is raised by 1 + SHORT / n."""
LINK_WINDOW = 100
"""A spike belongs to a dip that starts at most this many iterations after its onset."""


def find_dips(
    curve: EvalCurve,
    spikes: Sequence[Spike] = (),
    *,
    z_open: float = Z_OPEN,
    min_depth: float = MIN_DEPTH,
    link_window: int = LINK_WINDOW,
    binomial: bool = True,
) -> tuple[Dip, ...]:
    """Dips in order. Each is linked to the last spike whose onset precedes its trough, if one does.

    ``binomial``: values are shares of ``num_samples``, which then gives their standard error; else, and where
    ``num_samples`` is 0, the error comes from the curve's own noise. ``min_depth``: in the curve's units.
    """
    iteration, value, error = _clean(curve, min_depth, binomial)
    if len(value) < 3:
        return ()
    limits = _limits(value, error, z_open, min_depth)
    close = np.zeros(len(value))  # below this, an evaluation before the opening belongs to the dip
    level = _Level()
    dips: list[Dip] = []
    i = free = 0
    while i < len(value):
        before = level.reached(float(value[i]), float(error[i]))
        close[i] = before - Z_CLOSE * error[i]
        if before < limits[i].min():
            level.add(float(value[i]))
            i += 1
            continue
        start, stop = _surest(before - limits, i)
        line = before - Z_CLOSE * error
        low = value < np.where(np.arange(len(value)) < i, close, line)
        while low[max(start - 2, free) : start].any():  # one good evaluation alone is neither start
            start = start - 1 if low[start - 1] else start - 2
        while stop < len(value) and (value[stop : stop + 2] < line[stop : stop + 2]).any():
            stop += 1  # nor recovery
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
                z=float(depth / error[trough]),
                area=_area(iteration[start : stop + 1], lost),
            )
        )
        i = free = stop
    return tuple(_linked(dip, spikes, link_window) for dip in dips)


class _Level:
    """What the curve had reached, from the evaluations outside dips."""

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
        """At the next evaluation, whose standard error is ``error``. ``first`` stands in where nothing came before."""
        if not self.values:
            return first
        recent = median(self.values[-REACHED_OVER:])
        if self.unbroken >= TREND_BLOCKS * TREND_OVER:
            starts = range(-TREND_BLOCKS * TREND_OVER, 0, TREND_OVER)
            middles = [median(self.values[k : k + TREND_OVER or None]) for k in starts]
            rises = [later - earlier for earlier, later in pairwise(middles)]
            if min(rises) > TREND_FROM * error:
                # From the middle of the last block to the next evaluation, at a rise that slackens as it did.
                lead = (TREND_OVER + 1) / 2 * rises[-1] / TREND_OVER * min(rises[-1] / rises[-2], 1.0)
                recent = max(recent, middles[-1] + lead - TREND_ERROR * error)
        return max(recent, self.held)


def _limits(value: np.ndarray, error: np.ndarray, z_open: float, min_depth: float) -> np.ndarray:
    """(n, TOGETHER) the least level from which the next evaluations, one or several together, are a dip."""
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


def _surest(margin: np.ndarray, i: int) -> tuple[int, int]:
    """Start and stop of the stretch, opening at ``i`` or soon after, that passes its limit by most."""
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
    """How many dips follow a spike, and how many would if the spikes were shifted round the run, from its ``first``
    recorded iteration to its last."""
    span = num_iterations - first
    num_linked = sum(_preceding(dip, spikes, link_window) is not None for dip in dips)
    if not dips or not spikes or span < 2:
        return DipLink(len(dips), num_linked, None, None)
    starts = np.array([dip.start for dip in dips])
    low = np.maximum(starts - link_window, first)
    high = np.maximum([dip.trough for dip in dips], starts)
    onsets = np.array([spike.onset for spike in spikes])
    # Shifts that bring some spike into a dip's range make intervals round the circle. The number of dips linked changes
    # only at their ends, so those are all that is looked at: time follows spikes and dips, not iterations.
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
    """Closed intervals of integers round a circle of ``span``, joined: where they begin and, exclusive, stop."""
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
    """Finite values in order, one an iteration (the last), and the standard error of each."""
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
    share = np.clip(np.abs(value), 0, 1)  # the sign of an error rate is turned
    smooth = (share * count + 1) / (count + 2)  # a value of 0 or 1 still has an error
    return iteration, value, np.where(samples > 0, np.sqrt(smooth * (1 - smooth) / count), noise)


def noise_of(value: np.ndarray, floor: float) -> np.ndarray:
    """Standard deviation (n,) of the noise of a curve (n,), from its second differences, which leave a trend out.

    It is that of the whole curve, or of the evaluations around where they vary more; at least ``floor``; larger for
    short curves, whose noise is itself uncertain.
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
    before = [s for s in spikes if dip.start - window <= s.onset <= max(dip.trough, dip.start)]
    return max(before, key=lambda spike: spike.onset, default=None)


def _linked(dip: Dip, spikes: Sequence[Spike], window: int) -> Dip:
    spike = _preceding(dip, spikes, window)
    return dip if spike is None else replace(dip, after_spike=SpikeRef(spike.layer, spike.onset))
