"""Confidence intervals of a median and of a proportion."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.stats import binom


def median_interval(lags: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Distribution-free interval of the median: the narrowest symmetric pair of order statistics that covers it with
    probability ``level``; the whole range if the sample is too small.

    >>> import numpy as np
    >>> median_interval(np.arange(1.0, 10.0))
    (2.0, 8.0)
    """
    ordered = np.sort(lags)
    k = _rank(len(ordered), level)
    return float(ordered[k - 1]), float(ordered[-k])


@lru_cache(maxsize=4096)
def _rank(n: int, level: float) -> int:
    """The k-th smallest and the k-th largest of ``n`` values are the ends of the interval."""
    k = int(binom.ppf((1 - level) / 2, n, 0.5))
    # P(fewer than k of n values below the median) must not exceed the tail probability.
    while k > 0 and binom.cdf(k - 1, n, 0.5) > (1 - level) / 2:
        k -= 1
    return max(k, 1)


def share_interval(hits: int, n: int, z: float = 1.959964) -> tuple[float, float] | None:
    """Wilson score interval of the proportion ``hits / n``, 95% by default. None for ``n`` = 0."""
    if n == 0:
        return None
    share, spread = hits / n, z**2 / n
    middle = (share + spread / 2) / (1 + spread)
    half = z * np.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return max(float(middle - half), 0.0), min(float(middle + half), 1.0)
