"""The threshold that keeps a false-alarm rate: a tail fitted to the series' own downward excursions.

Spikes go up; noise goes both ways. So the downward side shows how heavy the noise's tail is, whatever its
distribution and autocorrelation. Peaks over a high quantile are declustered and fitted with a generalised
Pareto distribution by probability-weighted moments (Hosking and Wallis 1987), and the level is read off at which
the asked rate is reached. Fixed z = 6 gives several false events per 10,000 values on Student-t noise of 3
degrees of freedom; this keeps to the rate.
"""

from __future__ import annotations

import math

import numpy as np

_QUANTILE = 0.95
_MIN_PEAKS = 15
_CLUSTER_GAP = 3


def tail_threshold(downward: np.ndarray, rate: float, *, floor: float, u_close: float) -> float:
    """The z at which noise like ``downward`` (n,), z-scores with the sign turned, opens ``rate`` events a value.

    Never below ``floor``. With too few excursions to fit, ``floor``.
    """
    values = downward[np.isfinite(downward)]
    if len(values) < _MIN_PEAKS / (1 - _QUANTILE):
        return floor
    start = float(np.quantile(values, _QUANTILE))
    peaks = _cluster_peaks(values, start)
    if len(peaks) < _MIN_PEAKS or start <= 0:
        return floor
    excess = np.sort(peaks - start)
    n = len(excess)
    mean = float(excess.mean())
    weighted = float((excess * (n - 1 - np.arange(n))).sum() / (n * (n - 1)))  # E[X (1 - F(X))]
    spread = mean - 2 * weighted
    if spread <= 0:
        return floor
    # A tail is taken to be at least exponential: short tails cannot be told from a small sample.
    shape = min(max(2 - mean / spread, 0.0), 0.9)
    scale = mean * (1 - shape)
    times = n / len(values) / rate  # how many times rarer than a cluster the asked event is
    if times <= 1:
        return floor
    reach = scale * (math.log(times) if shape < 1e-6 else (times**shape - 1) / shape)
    return max(floor, start + reach)


def _cluster_peaks(values: np.ndarray, start: float) -> np.ndarray:
    """The largest value of each cluster above ``start``; clusters are more than a few values apart."""
    places = np.flatnonzero(values > start)
    if not len(places):
        return places.astype(float)
    firsts = np.r_[0, np.flatnonzero(np.diff(places) > _CLUSTER_GAP) + 1]
    return np.maximum.reduceat(values[places], firsts)
