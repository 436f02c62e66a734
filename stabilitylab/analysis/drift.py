"""Drift: a gradient norm grows or shrinks by a factor of 10 or more, over a period much longer than a spike.

The level is the median log norm in each of up to 60 blocks of time. A jump between two blocks (a start from zero, a
restart) is not a drift: the curve is split there, and each part is judged separately. Within a part, a stretch ends
where the level reverses by more than a factor of 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from stabilitylab.analysis.series import LayerSeries

FACTOR = 10.0
BLOCKS, MIN_BLOCKS = 60, 10
ROWS_A_BLOCK = 20
MIN_ROWS = MIN_BLOCKS * ROWS_A_BLOCK
"""Drift is not judged with fewer recorded norms: a stretch must be much longer than a spike."""
MOST_ROWS = 6_000
STRETCH_BLOCKS = 4
TURN = float(np.log(2))
JUMP = float(np.log(3))
"""A larger change between two blocks is a jump if the changes before and after it are less than half as large."""
WANDER = 5.0
"""Half-width of the slope's interval, in sd of the level at either end. The noise of neighbouring blocks is correlated,
so many blocks carry little more information than the two ends, and the ends are chosen at the extremes. With this
factor the interval covers the true slope in 95% of simulated series, even with noise correlated over 200 iterations."""
PER = 10_000


@dataclass(frozen=True, slots=True)
class Drift:
    """A layer's gradient norm changed from ``before`` to ``after`` between the iterations ``start`` and ``end``.

    ``factor``: after / before, below 1 if the norm shrank. ``slope``: mean slope in decades per 10,000 iterations.
    ``ci95``: its 95% confidence interval. ``certain``: False if the interval contains 0: the level wanders so much that
    the change need not be a trend.
    """

    layer: str
    start: int
    end: int
    before: float
    after: float
    factor: float
    slope: float
    ci95: tuple[float, float]
    certain: bool = True

    @property
    def grows(self) -> bool:
        return self.factor > 1


def find_drifts(layers: Sequence[LayerSeries]) -> tuple[tuple[Drift, ...], str]:
    """Drifts of all layers in order of start, and why some layers are not judged (empty if all are)."""
    drifts: list[Drift] = []
    few: list[int] = []
    for layer in layers:
        # A few hundred rows per block are enough for its median.
        thin = slice(None, None, max(len(layer.iteration) // MOST_ROWS, 1))
        norm = np.asarray(layer.grad_norm[thin], dtype=np.float64)
        usable = np.isfinite(norm) & (norm > 0)
        rows = int(usable.sum())
        if rows < MIN_ROWS:
            few.append(rows)
            continue
        drifts += _drifts(layer.name, np.asarray(layer.iteration[thin])[usable], np.log(norm[usable]))
    why = ""
    if few:
        which = "every layer" if len(few) == len(layers) else f"{len(few)} of {len(layers)} layers"
        why = f"not enough data for drift in {which}: {max(few)} usable norms; at least {MIN_ROWS} are needed"
    return tuple(sorted(drifts, key=lambda drift: (drift.start, drift.layer))), why


def _drifts(name: str, iteration: np.ndarray, x: np.ndarray) -> list[Drift]:
    time, level = _levels(iteration, x)
    change = np.diff(level)
    around = np.maximum(np.abs(np.append(change[1:], 0)), np.abs(np.concatenate([[0], change[:-1]])))
    jumps = np.flatnonzero((np.abs(change) > JUMP) & (around < np.abs(change) / 2)) + 1
    edges = [0, *jumps.tolist(), len(level)]
    drifts = []
    for low, high in pairwise(edges):
        for start, stop in _stretches(level[low:high]):
            a, b = low + start, low + stop
            if abs(level[b] - level[a]) < np.log(FACTOR):
                continue
            # Blocks within a factor of 1.4 of the level at either end are plateaus, not part of the drift.
            near = np.abs(level[a : b + 1] - level[a]) < TURN / 2
            there = np.abs(level[a : b + 1] - level[b]) < TURN / 2
            first, last = int(np.flatnonzero(near)[-1]), int(np.argmax(there))
            steepest = np.abs(np.diff(level[a : b + 1])).max()
            if last - first >= STRETCH_BLOCKS and steepest <= abs(level[b] - level[a]) / 2:
                stretch = slice(a + first, a + last + 1)
                drifts.append(_drift(name, time[stretch], level[stretch], level[a], level[b]))
    return drifts


def _levels(iteration: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Time and median log norm of blocks of equal duration. Blocks with too few rows are skipped."""
    blocks = int(np.clip(len(x) // ROWS_A_BLOCK, MIN_BLOCKS, BLOCKS))
    first, span = int(iteration[0]), int(iteration[-1] - iteration[0]) + 1
    starts = np.searchsorted(iteration, first + np.arange(blocks + 1) * span / blocks)
    kept = np.flatnonzero(np.diff(starts) >= min(ROWS_A_BLOCK // 4, max(int(np.diff(starts).max()), 1)))
    # One sort by block and value, in place of a median for each block: a run has thousands of blocks.
    ordered = x[np.lexsort((x, np.repeat(np.arange(blocks), np.diff(starts))))]
    return _middles(iteration, starts, kept), _middles(ordered, starts, kept)


def _middles(ordered: np.ndarray, starts: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """(k,): the medians of the ``kept`` blocks, each of which is sorted, between ``starts``."""
    total = starts[kept] + starts[kept + 1] - 1
    return (ordered[total // 2] + ordered[(total + 1) // 2]) / 2


def _stretches(level: np.ndarray) -> list[tuple[int, int]]:
    """Index pairs of consecutive turning points. A turning point is where the level reverses by more than TURN."""
    if len(level) < 2:
        return []
    turns = [0]
    low = high = 0
    direction = 0
    for i in range(1, len(level)):
        if level[i] > level[high]:
            high = i
        if level[i] < level[low]:
            low = i
        if direction >= 0 and level[high] - level[i] > TURN:
            turns.append(high)
            direction, low = -1, i
            high = i
        elif direction <= 0 and level[i] - level[low] > TURN:
            turns.append(low)
            direction, high = 1, i
            low = i
        elif direction > 0:
            low = high
        elif direction < 0:
            high = low
    turns.append(high if direction > 0 else low if direction < 0 else len(level) - 1)
    return [(a, b) for a, b in pairwise(turns) if b > a]


def _drift(name: str, time: np.ndarray, level: np.ndarray, before: float, after: float) -> Drift:
    """``time`` and ``level`` (k,): the blocks of one stretch. ``before``, ``after``: log levels at its ends."""
    # A parabola models the curvature; its residuals give the sd of the level.
    at = (time - time[0]) / (time[-1] - time[0])
    curve = np.polynomial.polynomial.polyfit(at, level, 2)
    rest = level - np.polynomial.polynomial.polyval(at, curve)
    wander = float(np.sqrt(np.square(rest).sum() / max(len(rest) - 3, 1)))
    slope = float(curve[1] + curve[2]) / (time[-1] - time[0])
    half = WANDER * wander * np.sqrt(2) / (time[-1] - time[0])
    decades = PER / np.log(10)
    low, high = float((slope - half) * decades), float((slope + half) * decades)
    return Drift(
        layer=name,
        start=int(time[0]),
        end=int(time[-1]),
        before=float(np.exp(before)),
        after=float(np.exp(after)),
        factor=float(np.exp(after - before)),
        slope=float(slope * decades),
        ci95=(low, high),
        certain=low > 0 or high < 0,
    )
