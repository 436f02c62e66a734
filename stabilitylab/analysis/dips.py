"""Dips of an accuracy curve: drops below what it had reached, larger than its own sampling error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from stabilitylab.analysis.results import Dip, DipLink, EvalCurve, Spike, SpikeRef

Z_OPEN = 4.0
Z_CLOSE = 2.0
MIN_DEPTH = 0.01
REACHED_OVER = 9
"""Evaluations whose median counts as reached: the highest single value of many is luck."""
LINK_WINDOW = 100
"""A spike belongs to a dip that starts at most this many iterations after its onset."""


def find_dips(
    curve: EvalCurve,
    spikes: Sequence[Spike] = (),
    *,
    z_open: float = Z_OPEN,
    min_depth: float = MIN_DEPTH,
    link_window: int = LINK_WINDOW,
) -> tuple[Dip, ...]:
    """Dips in order. Each is linked to the last spike whose onset precedes its trough, if one does."""
    iteration, value, error = _clean(curve)
    if len(value) < 3:
        return ()
    level = np.maximum.accumulate(_trailing_median(value, REACHED_OVER))
    reached = np.concatenate([[value[0]], level[:-1]])
    below = (reached - value) / error
    dips = []
    i = 0
    while i < len(value):
        if not (below[i] >= z_open and reached[i] - value[i] >= min_depth):
            i += 1
            continue
        before = reached[i]
        start = i
        while start > 0 and below[start - 1] >= Z_CLOSE:
            start -= 1
        stop = i
        while stop < len(value) and value[stop] < before - Z_CLOSE * error[stop]:
            stop += 1
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
        i = max(stop, i + 1)
    return tuple(_linked(dip, spikes, link_window) for dip in dips)


def link_dips(
    dips: Sequence[Dip], spikes: Sequence[Spike], *, num_iterations: int, link_window: int = LINK_WINDOW
) -> DipLink:
    """How many dips follow a spike, and how many would if the spikes were shifted round the run."""
    num_linked = sum(_preceding(dip, spikes, link_window) is not None for dip in dips)
    if not dips or not spikes or num_iterations < 2:
        return DipLink(len(dips), num_linked, None, None)
    onsets = np.zeros(num_iterations, dtype=np.int64)
    onsets[[spike.onset for spike in spikes if spike.onset < num_iterations]] = 1
    total = np.concatenate([[0], np.cumsum(np.tile(onsets, 2))])
    linked = np.zeros(num_iterations, dtype=np.int64)
    shifts = np.arange(num_iterations)
    for dip in dips:
        # A spike at onset + shift (round the end) falls in [low, high] when its onset falls in that range moved back.
        low = max(dip.start - link_window, 0)
        length = min(max(dip.trough, dip.start) - low + 1, num_iterations)
        first = (low - shifts) % num_iterations
        linked += (total[first + length] - total[first]) > 0
    return DipLink(len(dips), num_linked, float(linked.mean()), float((linked >= num_linked).mean()))


def _clean(curve: EvalCurve) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finite values in order, one an iteration (the last), and the standard error of each."""
    value = np.asarray(curve.value, dtype=np.float64)
    keep = np.isfinite(value)
    iteration, value = np.asarray(curve.iteration)[keep], value[keep]
    samples = np.asarray(curve.num_samples, dtype=np.float64)[keep]
    order = np.argsort(iteration, kind="stable")
    iteration, value, samples = iteration[order], value[order], samples[order]
    last = np.append(iteration[1:] != iteration[:-1], True) if len(iteration) else keep[:0]
    iteration, value, samples = iteration[last], value[last], samples[last]
    return iteration, value, _standard_error(value, samples)


def _standard_error(value: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Binomial, from the number of samples; where that is unknown, from how the curve itself jumps."""
    if len(value) == 0:
        return value
    jumps = np.abs(np.diff(value))
    fallback = max(1.4826 * float(np.median(jumps)) / np.sqrt(2), 1e-3) if len(jumps) else 1e-3
    count = np.where(samples > 0, samples, 1.0)
    share = np.clip(value, 0, 1)
    smooth = (share * count + 1) / (count + 2)  # a value of 0 or 1 still has an error
    return np.where(samples > 0, np.sqrt(smooth * (1 - smooth) / count), fallback)


def _trailing_median(value: np.ndarray, width: int) -> np.ndarray:
    padded = np.concatenate([np.full(width - 1, np.nan), value])
    return np.nanmedian(np.lib.stride_tricks.sliding_window_view(padded, width), axis=1)


def _area(iteration: np.ndarray, lost: np.ndarray) -> float:
    widths = np.diff(iteration) if len(iteration) > len(lost) else np.append(np.diff(iteration), 0)
    return float(np.sum(widths[: len(lost)] * lost))


def _preceding(dip: Dip, spikes: Sequence[Spike], window: int) -> Spike | None:
    before = [s for s in spikes if dip.start - window <= s.onset <= max(dip.trough, dip.start)]
    return max(before, key=lambda spike: spike.onset, default=None)


def _linked(dip: Dip, spikes: Sequence[Spike], window: int) -> Dip:
    spike = _preceding(dip, spikes, window)
    return dip if spike is None else replace(dip, after_spike=SpikeRef(spike.layer, spike.onset))
