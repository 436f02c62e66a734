"""The trailing baseline that spikes stand out from: median and scale of the last W unflagged values.

The scale is that of the prediction residuals, 1.4826 x the trailing median of |x - trailing median|. It grows with
drift and autocorrelation, where a scale around one common median would not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import median_filter

MAD_TO_SD = 1.4826
SCALE_FLOOR = 0.01  # log units, 1%: a constant series has no noise to divide by


@dataclass(frozen=True, slots=True)
class Baseline:
    """``median`` and ``scale`` (n,) for each value, from the values before it; NaN where there are too few."""

    median: np.ndarray
    scale: np.ndarray


def trailing_baseline(x: np.ndarray, flagged: np.ndarray, window: int, warmup: int) -> Baseline:
    """Baseline of each value of ``x`` (n,) from the last ``window`` unflagged finite values before it.

    ``window`` is odd. The first ``warmup`` usable values have none.
    """
    usable = np.isfinite(x) & ~flagged
    kept = x[usable]
    # How many usable values stand before each position: flagged positions use the baseline of that point.
    before = np.cumsum(usable) - usable
    median = _trailing_median(kept, window, warmup)
    residual = np.abs(kept - median[:-1])
    scale = MAD_TO_SD * _trailing_median(residual, window, warmup // 2, skip=warmup)
    return Baseline(median[before], np.maximum(scale[before], SCALE_FLOOR))


def _trailing_median(x: np.ndarray, window: int, warmup: int, skip: int = 0) -> np.ndarray:
    """(n + 1,): entry t is the median of the last ``window`` values before t, NaN for fewer than ``warmup``.

    The first ``skip`` values of ``x`` do not exist yet.
    """
    n = len(x)
    out = np.full(n + 1, np.nan)
    first = skip + max(1, warmup)
    for t in range(first, min(n, skip + window - 1) + 1):  # windows that are still growing
        out[t] = np.median(x[skip:t])
    if n >= skip + window:
        full = median_filter(x[skip:], size=window, origin=(window - 1) // 2, mode="nearest")
        out[skip + window :] = full[window - 1 :]
    return out
