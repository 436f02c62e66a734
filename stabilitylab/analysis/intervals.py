"""Confidence intervals of a median and of a share."""

from __future__ import annotations

import numpy as np
from scipy.stats import binom


def median_interval(lags: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The narrowest pair of order statistics that holds the median with ``level``, or the whole range."""
    ordered = np.sort(lags)
    k = int(binom.ppf((1 - level) / 2, len(ordered), 0.5))
    # P(fewer than k of n below the median) must stay within the tail.
    while k > 0 and binom.cdf(k - 1, len(ordered), 0.5) > (1 - level) / 2:
        k -= 1
    k = max(k, 1)
    return float(ordered[k - 1]), float(ordered[-k])


def share_interval(hits: int, n: int, z: float = 1.959964) -> tuple[float, float] | None:
    """Wilson's 95% interval of a share. None of nothing."""
    if n == 0:
        return None
    share, spread = hits / n, z**2 / n
    middle = (share + spread / 2) / (1 + spread)
    half = z * np.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return max(float(middle - half), 0.0), min(float(middle + half), 1.0)
