"""The baseline of a gradient norm: medians and noise scale of the values before and after each iteration.

The definition is sequential ("the last W values that are not part of a spike"), but the computation is vectorised:
spikes are removed, one rolling median runs over the remaining values, and an index maps each iteration to its window.
The same rolling median, read W values later, is the median of the next W values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import median_filter

MAD_TO_SD = 1.4826
SCALE_FLOOR = 0.01
"""Smallest noise sd, in log units: a constant series has a noise sd of 0. Log units do not depend on scale."""
SCALE_BLOCK = 25
SCALE_BLOCKS = 20


@dataclass(frozen=True, slots=True)
class Baseline:
    """Per iteration (n,): ``before``, the median of the last W unflagged values (NaN during the warm-up); ``after``,
    the median of the next W (NaN where too few are left); ``scale``, the noise sd."""

    before: np.ndarray
    after: np.ndarray
    scale: np.ndarray


def running_median(y: np.ndarray, window: int) -> np.ndarray:
    """(m,) -> (m,): upper median of the last ``window`` values up to and including each; fewer at the start."""
    if len(y) == 0:
        return y.copy()
    head = min(window, len(y))
    medians = median_filter(y, size=window, origin=(window - 1) // 2, mode="nearest")
    triangle = np.where(np.tri(head, dtype=bool), y[:head], np.inf)
    triangle.sort(axis=1)
    counts = np.arange(1, head + 1)
    medians[:head] = triangle[counts - 1, counts // 2]
    return medians


def baseline(x: np.ndarray, usable: np.ndarray, *, window: int, warmup: int) -> Baseline:
    """The baseline of log norms ``x`` (n,). ``usable`` (n,): False where a value is missing or flagged."""
    y = x[usable]
    m = len(y)
    if m < warmup:
        nothing = np.full(len(x), np.nan)
        return Baseline(nothing, nothing, nothing)
    count = np.cumsum(usable)
    seen = count - usable  # unflagged values before each iteration
    up_to = running_median(y, window)
    from_here = np.empty(m)  # median of y[j : j + window]
    tail = min(window - 1, m)
    if m >= window:
        from_here[: m - window + 1] = up_to[window - 1 :]
    from_here[m - tail :] = running_median(y[m - tail :][::-1], window)[::-1]
    before = np.where(seen >= warmup, up_to[np.maximum(seen - 1, 0)], np.nan)
    after = np.where(m - count >= warmup, from_here[np.minimum(count, m - 1)], np.nan)
    scale = residual_scale(x - before, usable & (seen >= warmup))
    return Baseline(before, after, scale)


def residual_scale(residual: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """(n,) -> (n,): noise sd, from the median of the absolute residuals in blocks of 25.

    Residuals are one-step-ahead, so an autocorrelated series gets the scale on which it wanders and not the smaller one
    within a window. The scale is the larger of that of the 20 blocks before and the 20 after, so that a series that
    becomes noisier does not raise an alarm at the change.
    """
    sizes = np.abs(residual[usable])
    blocks = len(sizes) // SCALE_BLOCK
    if blocks == 0:
        level = np.median(sizes) if len(sizes) else 0.0
        return np.full(len(residual), max(MAD_TO_SD * level, SCALE_FLOOR))
    grid = sizes[: blocks * SCALE_BLOCK].reshape(blocks, SCALE_BLOCK)
    medians = np.partition(grid, SCALE_BLOCK // 2, axis=1)[:, SCALE_BLOCK // 2]
    past = running_median(medians, SCALE_BLOCKS)
    future = running_median(medians[::-1], SCALE_BLOCKS)[::-1]
    block = np.arange(blocks + 1)
    noisier = np.maximum(past[np.maximum(block - 1, 0)], future[np.minimum(block + 1, blocks - 1)])
    scale = np.maximum(MAD_TO_SD * noisier, SCALE_FLOOR)
    of_usable = np.repeat(scale, SCALE_BLOCK)[: len(sizes)]  # the last block may be shorter
    if len(sizes) == len(residual):
        return of_usable
    return np.append(of_usable, of_usable[-1])[np.cumsum(usable) - usable]
