"""Correction for skewed noise: hard batches make the upward excursions of real gradients larger than the downward ones.

A threshold fitted to downward excursions is then too low for upward ones. The skew is estimated from the 5% of the
values that lie highest on either side: there are so many of them that spikes hardly change where they begin, whereas
hard batches move the whole side. Larger excursions would show more skew, but spikes are among them, and spikes of one
or two iterations look like skew.
"""

from __future__ import annotations

import numpy as np

from stabilitylab.analysis.detection.settings import SpikeSettings
from stabilitylab.analysis.detection.tails import MIN_PEAKS

SHARE = 0.05
REACH = 3.0
"""The skew is extrapolated to at most this multiple of the quantile. Beyond it, tails are heavier than normal, and the
ratio of the two sides levels off."""
LASTS = 3
"""An event with at least this many consecutive values above ``z_close`` is lasting: a single batch cannot cause it."""
SURE = 1.0
"""This many standard errors are subtracted from the log of the skew. Without it, the threshold would also rise for
symmetric noise, whose two sides differ by chance."""


def skewed_threshold(score: np.ndarray, mirrored: np.ndarray, threshold: float, settings: SpikeSettings) -> float:
    """Raise the threshold for single upward values by the skew of the noise; never lower it.

    ``threshold`` was fitted to ``mirrored`` (n,), the downward scores. The skew is the ratio between the 95% quantiles
    of ``score`` (n,), without lasting events, and of ``mirrored``. Its logarithm grows in proportion to the distance
    from the centre, as in the second-order (Cornish-Fisher) expansion of skewed noise, so it is extrapolated from the
    quantile to the threshold.
    """
    if not np.isfinite(threshold):
        return threshold
    up = _high_level(_without_lasting(score, settings.z_close), settings.merge_gap)
    down = _high_level(mirrored, settings.merge_gap)
    if up is None or down is None:
        return threshold
    (high, high_error), (low, low_error) = up, down
    log_skew = np.log(high / low) - SURE * np.hypot(high_error, low_error)
    if log_skew <= 0:
        return threshold
    return threshold * float(np.exp(log_skew * min(threshold / low, REACH)))


def _high_level(score: np.ndarray, gap: int) -> tuple[float, float] | None:
    """The quantile of ``score`` that `SHARE` of the values exceed, and its relative standard error. None with too few
    values.

    The excesses over the quantile are close to exponential, and each cluster of them counts once. Their mean is taken
    from the median, on which spikes have little influence.
    """
    quantile = high_quantile(score, int(SHARE * np.count_nonzero(score > -np.inf)))
    if quantile is None:
        return None
    at = np.flatnonzero(score > quantile)
    first = heads(at, gap)
    if len(first) < MIN_PEAKS:
        return None
    excess = float(np.median(np.maximum.reduceat(score[at], first) - quantile)) / np.log(2)
    return quantile, float(excess / quantile / np.sqrt(len(first)))


def _without_lasting(score: np.ndarray, level: float) -> np.ndarray:
    """The scores without lasting events. Their own width is removed on either side too: the flanks are not noise."""
    starts, stops = stretches(score >= level, 1)
    lasting = stops - starts >= LASTS
    kept = score.copy()
    for start, stop in zip(starts[lasting].tolist(), stops[lasting].tolist(), strict=True):
        width = stop - start
        kept[max(start - width, 0) : stop + width] = -np.inf
    return kept


def high_quantile(score: np.ndarray, keep: int) -> float | None:
    """The ``keep``-th highest score; None unless it is positive."""
    if keep < 1:
        return None
    for least in (1.0, 0.0):  # partitioning the few scores above 1 is much faster, and they are nearly always enough
        high = score[score > least]
        if len(high) >= keep:
            return float(np.partition(high, len(high) - keep)[len(high) - keep])
    return None


def heads(at: np.ndarray, gap: int) -> np.ndarray:
    """Positions in the ascending indices ``at`` (k,) at which a new cluster begins: more than ``gap`` values after the
    previous index."""
    if len(at) == 0:
        return at
    return np.flatnonzero(np.concatenate([[True], at[1:] - at[:-1] > gap + 1]))


def stretches(mask: np.ndarray, gap: int) -> tuple[np.ndarray, np.ndarray]:
    """Start and stop (exclusive) of every run of True values. Gaps of at most ``gap`` values are filled."""
    at = np.flatnonzero(mask)
    if len(at) == 0:
        return at, at
    first = heads(at, gap)
    return at[first], at[np.append(first[1:], len(at)) - 1] + 1
