"""Drift: a gradient norm that grows or shrinks by a factor of 10 or more, over a stretch much longer than a spike.

The log norm's level is the median of each of up to 60 blocks of time. A jump from one block to the next (a zero start,
a restart) is no drift: the curve is cut there, and each part is judged by itself. In a part, a stretch lasts until the
level turns back by more than a factor of 2.
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
"""With fewer recorded norms no drift is judged: a stretch must be much longer than a spike."""
MOST_ROWS = 12_000
STRETCH_BLOCKS = 4
TURN = float(np.log(2))
JUMP = float(np.log(3))
"""A change this large from one block to the next is a jump where its neighbours change less than half as much."""
WANDER = 5.0
"""Half the slope's interval, in sd of the level at either end. Neighbouring blocks wander together, so that many blocks
tell little more than the two ends, and the ends are chosen where the level lies farthest out. With this factor the
interval covers the planted slope in 95% of series even where the level wanders over 200 iterations."""
PER = 10_000


@dataclass(frozen=True, slots=True)
class Drift:
    """A layer's norm went from ``before`` to ``after``, by ``factor`` (below 1 where it shrank), from iteration
    ``start`` to ``end``. ``slope``: decades per 10,000 iterations, on average over the stretch; ``ci95`` its
    interval."""

    layer: str
    start: int
    end: int
    before: float
    after: float
    factor: float
    slope: float
    ci95: tuple[float, float]

    @property
    def grows(self) -> bool:
        return self.factor > 1


def find_drifts(layers: Sequence[LayerSeries]) -> tuple[tuple[Drift, ...], str]:
    """Drifts of all layers, by start, and why some layers are not judged (empty where all are)."""
    found: list[Drift] = []
    few: list[int] = []
    for layer in layers:
        # A block's median is as good from some hundred rows as from thousands.
        thin = slice(None, None, max(len(layer.iteration) // MOST_ROWS, 1))
        norm = np.asarray(layer.grad_norm[thin], dtype=np.float64)
        usable = np.isfinite(norm) & (norm > 0)
        rows = int(usable.sum())
        if rows < MIN_ROWS:
            few.append(rows)
            continue
        found += _drifts(layer.name, np.asarray(layer.iteration[thin])[usable], np.log(norm[usable]))
    why = ""
    if few:
        which = "every layer" if len(few) == len(layers) else f"{len(few)} of {len(layers)} layers"
        why = f"not enough data for drift in {which}: {max(few)} usable norms, and {MIN_ROWS} are needed"
    return tuple(sorted(found, key=lambda drift: (drift.start, drift.layer))), why


def _drifts(name: str, iteration: np.ndarray, x: np.ndarray) -> list[Drift]:
    time, level = _levels(iteration, x)
    change = np.diff(level)
    around = np.maximum(np.abs(np.append(change[1:], 0)), np.abs(np.concatenate([[0], change[:-1]])))
    jumps = np.flatnonzero((np.abs(change) > JUMP) & (around < np.abs(change) / 2)) + 1
    edges = [0, *jumps.tolist(), len(level)]
    found = []
    for low, high in pairwise(edges):
        for start, stop in _stretches(level[low:high]):
            a, b = low + start, low + stop
            if abs(level[b] - level[a]) < np.log(FACTOR):
                continue
            # What lies within a factor of 1.4 of either end is a plateau, not part of the stretch.
            near = np.abs(level[a : b + 1] - level[a]) < TURN / 2
            there = np.abs(level[a : b + 1] - level[b]) < TURN / 2
            first, last = int(np.flatnonzero(near)[-1]), int(np.argmax(there))
            steepest = np.abs(np.diff(level[a : b + 1])).max()
            if last - first >= STRETCH_BLOCKS and steepest <= abs(level[b] - level[a]) / 2:
                stretch = slice(a + first, a + last + 1)
                found.append(_drift(name, time[stretch], level[stretch], level[a], level[b]))
    return found


def _levels(iteration: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Time and median of blocks of equal time; a block with too few rows is left out."""
    blocks = int(np.clip(len(x) // ROWS_A_BLOCK, MIN_BLOCKS, BLOCKS))
    first, span = int(iteration[0]), int(iteration[-1] - iteration[0]) + 1
    starts = np.searchsorted(iteration, first + np.arange(blocks + 1) * span / blocks)
    kept = np.flatnonzero(np.diff(starts) >= min(ROWS_A_BLOCK // 4, max(int(np.diff(starts).max()), 1)))
    time = np.array([np.median(iteration[starts[k] : starts[k + 1]]) for k in kept])
    return time, np.array([np.median(x[starts[k] : starts[k + 1]]) for k in kept])


def _stretches(level: np.ndarray) -> list[tuple[int, int]]:
    """Index pairs from one turning point to the next: where the level turned back by more than TURN."""
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
    """``time`` and ``level`` (k,) of the blocks of one stretch; the levels it comes from and goes to."""
    # A parabola takes what is curved; what it leaves is how far the level wanders.
    at = (time - time[0]) / (time[-1] - time[0])
    curve = np.polynomial.polynomial.polyfit(at, level, 2)
    rest = level - np.polynomial.polynomial.polyval(at, curve)
    wander = float(np.sqrt(np.square(rest).sum() / max(len(rest) - 3, 1)))
    slope = float(curve[1] + curve[2]) / (time[-1] - time[0])
    half = WANDER * wander * np.sqrt(2) / (time[-1] - time[0])
    decades = PER / np.log(10)
    return Drift(
        layer=name,
        start=int(time[0]),
        end=int(time[-1]),
        before=float(np.exp(before)),
        after=float(np.exp(after)),
        factor=float(np.exp(after - before)),
        slope=float(slope * decades),
        ci95=(float((slope - half) * decades), float((slope + half) * decades)),
    )
