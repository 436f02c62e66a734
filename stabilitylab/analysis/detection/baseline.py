"""The baseline of a gradient norm: medians and noise scale of the values before and after each iteration.

The definition is sequential ("the last W values that are not part of a spike"), but the computation is vectorised:
spikes are removed, one rolling median runs over the remaining values, and an index maps each iteration to its window.
The same rolling median, read W values later, is the median of the next W values.
"""

from __future__ import annotations

from bisect import insort
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
    the median of the next W (NaN where too few are left); ``scale``, the noise sd.

    ``usable`` (n,) and ``medians`` (number of usable values,): from which the next pass is computed faster.
    """

    before: np.ndarray
    after: np.ndarray
    scale: np.ndarray
    usable: np.ndarray | None = None
    medians: np.ndarray | None = None


def running_median(y: np.ndarray, window: int) -> np.ndarray:
    """(m,) -> (m,): upper median of the last ``window`` values up to and including each; fewer at the start."""
    if len(y) == 0:
        return y.copy()
    medians = _full_windows(y, window)
    ordered: list[float] = []
    for i, value in enumerate(y[:window].tolist()):
        insort(ordered, value)
        medians[i] = ordered[(i + 1) // 2]
    return medians


def _full_windows(y: np.ndarray, window: int) -> np.ndarray:
    """As `running_median`; the first ``window`` - 1 values are undefined."""
    medians: np.ndarray = median_filter(y, size=window, origin=(window - 1) // 2, mode="nearest")
    return medians


def _updated(y: np.ndarray, window: int, usable: np.ndarray, earlier: Baseline) -> np.ndarray:
    """The running median of ``y``, the ``usable`` values. It is taken from ``earlier`` wherever the window has no value
    that was removed since."""
    if earlier.usable is None or earlier.medians is None or (usable & ~earlier.usable).any():
        return running_median(y, window)
    stays = usable[earlier.usable]
    gone = np.flatnonzero(~stays)
    medians: np.ndarray = earlier.medians[stays]
    # Removed values lie between y[at - 1] and y[at]; the windows that end at y[at : at + window - 1] contained them.
    at = np.unique(gone - np.arange(len(gone)))
    edges = np.flatnonzero(np.diff(at) >= window) + 1
    firsts = at[np.concatenate([[0], edges]).astype(np.int64)] if len(at) else at
    stops = np.minimum(at[np.concatenate([edges - 1, [-1]]).astype(np.int64)] + window - 1, len(y)) if len(at) else at
    if int((stops - firsts).sum()) + window * len(firsts) > len(y) // 2:
        return running_median(y, window)
    parts, kept = [], []
    for first, stop in zip(firsts.tolist(), stops.tolist(), strict=True):
        if first < window - 1:
            medians[:stop] = running_median(y[:stop], window)
        elif stop > first:
            parts.append(y[first - window + 1 : stop])
            kept.append((first, stop))
    if parts:
        joined = _full_windows(np.concatenate(parts), window)
        end = 0
        for part, (first, stop) in zip(parts, kept, strict=True):
            end += len(part)
            medians[first:stop] = joined[end - (stop - first) : end]
    return medians


def baseline(
    x: np.ndarray, usable: np.ndarray, *, window: int, warmup: int, earlier: Baseline | None = None
) -> Baseline:
    """The baseline of log norms ``x`` (n,). ``usable`` (n,): False where a value is missing or flagged.

    ``earlier``: the baseline of the same series with more usable values. The result does not depend on it.
    """
    y = x[usable]
    m = len(y)
    if m < warmup:
        nothing = np.full(len(x), np.nan)
        return Baseline(nothing, nothing, nothing)
    count = np.cumsum(usable)
    seen = count - usable  # unflagged values before each iteration
    up_to = running_median(y, window) if earlier is None else _updated(y, window, usable, earlier)
    from_here = np.empty(m)  # median of y[j : j + window]
    tail = min(window - 1, m)
    if m >= window:
        from_here[: m - window + 1] = up_to[window - 1 :]
    from_here[m - tail :] = running_median(y[m - tail :][::-1], window)[::-1]
    before = up_to.take(seen - 1, mode="clip")
    warm = int(np.searchsorted(seen, warmup))
    before[:warm] = np.nan
    after = from_here.take(count, mode="clip")
    after[int(np.searchsorted(count, m - warmup, side="right")) :] = np.nan
    scale = np.concatenate([np.zeros(warm), residual_scale((x - before)[warm:], usable[warm:], seen[warm:] - warmup)])
    scale[:warm] = scale[warm] if warm < len(x) else SCALE_FLOOR
    return Baseline(before, after, scale, usable, up_to)


def residual_scale(residual: np.ndarray, usable: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """(n,) -> (n,): noise sd, from the median of the absolute residuals in blocks of 25.

    ``seen`` (n,): number of usable residuals before each.

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
    whole: np.ndarray = of_usable.take(seen, mode="clip")
    return whole
