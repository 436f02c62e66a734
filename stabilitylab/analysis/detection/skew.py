"""Noise whose upward excursions are larger than its downward ones, as those of real gradients are: hard batches.

Downward excursions then promise too little for upward ones. How much is read off the moderate peaks of both sides,
which spikes do not make: of the upward ones, those of events that last and those beyond the threshold are left out.
"""

from __future__ import annotations

import numpy as np

from stabilitylab.analysis.detection.settings import SpikeSettings
from stabilitylab.analysis.detection.tails import MIN_PEAKS

PEAK_SHARE = 0.02
LASTS = 3
"""Values in a row above ``z_close`` that make an event one that lasts: a single batch does not make it."""
SURE = 0.5
"""Standard errors by which the skew must exceed 1; only what exceeds that counts. Otherwise the threshold would
rise for symmetric noise, whose two sides differ by chance."""


def skewed_threshold(score: np.ndarray, mirrored: np.ndarray, threshold: float, settings: SpikeSettings) -> float:
    """The threshold for single upward values, at least ``threshold``, which ``mirrored`` (n,), the downward scores,
    gave: as many times farther out as moderate upward peaks of ``score`` (n,) reach farther than downward ones."""
    if not np.isfinite(threshold):
        return threshold
    down = _peaks(mirrored, settings.merge_gap)
    noise = _without_lasting(score, settings.z_close)
    moderate = _peaks(np.where(noise > threshold, -np.inf, noise), settings.merge_gap)
    if down is None or moderate is None:
        return threshold
    # As far above its quantile as the threshold lies above that of the other side: what is beyond may be spikes.
    # Looking farther would meet the rate on real noise in full, and take spikes of heavy-tailed noise for its skew.
    limit = moderate[0] + max(threshold - down[0], 0)
    up = _peaks(np.where(noise > limit, -np.inf, noise), settings.merge_gap)
    if up is None:
        return threshold
    (low, falls), (high, rises) = down, up
    usual = falls[falls <= max(threshold - low, 0)]
    if len(usual) < MIN_PEAKS or usual.mean() <= 0:
        return threshold
    if rises.mean() <= 0:
        return threshold
    error = np.hypot(_relative_error(rises), _relative_error(usual))
    skew = np.log(float(rises.mean()) / float(usual.mean())) - SURE * error
    return max(threshold, high + (threshold - low) * float(np.exp(skew))) if skew > 0 else threshold


def _relative_error(peaks: np.ndarray) -> float:
    return float(peaks.std() / np.sqrt(len(peaks)) / peaks.mean())


def _without_lasting(score: np.ndarray, level: float) -> np.ndarray:
    """Events that last, with as much again on either side: their flanks are no noise either."""
    starts, stops = stretches(score >= level, 1)
    kept = score.copy()
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        width = stop - start
        if width >= LASTS:
            kept[max(start - width, 0) : stop + width] = -np.inf
    return kept


def _peaks(score: np.ndarray, gap: int) -> tuple[float, np.ndarray] | None:
    """A high quantile and how far each declustered peak rises above it; None for too few."""
    usable = int((score > -np.inf).sum())
    keep = int(PEAK_SHARE * usable)
    if keep < MIN_PEAKS:
        return None
    high = score[score > 1]  # far fewer to sort, and hardly ever too few
    high = high if len(high) >= keep else score
    quantile = float(np.partition(high, len(high) - keep)[len(high) - keep])
    starts, stops = stretches(score > quantile, gap)
    if quantile <= 0 or len(starts) < MIN_PEAKS:
        return None
    edges = np.stack([starts, stops], 1).ravel()
    return quantile, np.maximum.reduceat(np.append(score, -np.inf), edges)[::2] - quantile


def stretches(mask: np.ndarray, gap: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and stops (exclusive) of true stretches; holes of at most ``gap`` are filled."""
    at = np.flatnonzero(mask)
    if len(at) == 0:
        return at, at
    apart = np.diff(at) > gap + 1
    return at[np.concatenate([[True], apart])], at[np.concatenate([apart, [True]])] + 1
