"""Correction for skewed noise: hard batches make the upward excursions of real gradients larger than the downward ones.

A threshold fitted to downward excursions is then too low for upward ones. The skew is estimated from moderate peaks on
both sides, which come from noise and not from spikes: upward peaks are excluded if their event lasts or if they exceed
the threshold.
"""

from __future__ import annotations

import numpy as np

from stabilitylab.analysis.detection.settings import SpikeSettings
from stabilitylab.analysis.detection.tails import MIN_PEAKS

PEAK_SHARE = 0.02
LASTS = 3
"""An event with at least this many consecutive values above ``z_close`` is lasting: a single batch cannot cause it."""
SURE = 0.5
"""This many standard errors are subtracted from the log of the skew. Without it, the threshold would also rise for
symmetric noise, whose two sides differ by chance."""


def skewed_threshold(score: np.ndarray, mirrored: np.ndarray, threshold: float, settings: SpikeSettings) -> float:
    """Raise the threshold for single upward values by the skew of the noise.

    ``threshold`` was fitted to ``mirrored`` (n,), the downward scores. The result is scaled by how much farther the
    moderate upward peaks of ``score`` (n,) reach than the downward ones, and is never below ``threshold``.
    """
    if not np.isfinite(threshold):
        return threshold
    down = _peaks(mirrored, settings.merge_gap)
    noise = _without_lasting(score, settings.z_close)
    moderate = _peaks(np.where(noise > threshold, -np.inf, noise), settings.merge_gap)
    if down is None or moderate is None:
        return threshold
    # Use upward peaks only up to the distance at which the threshold lies above the quantile on the mirrored side:
    # peaks beyond that may be spikes. A wider limit would meet the rate exactly on real noise, but would mistake the
    # spikes of heavy-tailed noise for skew.
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
    """The scores without lasting events. Their own width is removed on either side too: the flanks are not noise."""
    starts, stops = stretches(score >= level, 1)
    kept = score.copy()
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        width = stop - start
        if width >= LASTS:
            kept[max(start - width, 0) : stop + width] = -np.inf
    return kept


def _peaks(score: np.ndarray, gap: int) -> tuple[float, np.ndarray] | None:
    """A high quantile, and how far each declustered peak rises above it. None with too few peaks."""
    usable = int((score > -np.inf).sum())
    keep = int(PEAK_SHARE * usable)
    if keep < MIN_PEAKS:
        return None
    high = score[score > 1]  # partitioning this subset is much faster, and it is nearly always large enough
    high = high if len(high) >= keep else score
    quantile = float(np.partition(high, len(high) - keep)[len(high) - keep])
    starts, stops = stretches(score > quantile, gap)
    if quantile <= 0 or len(starts) < MIN_PEAKS:
        return None
    edges = np.stack([starts, stops], 1).ravel()
    return quantile, np.maximum.reduceat(np.append(score, -np.inf), edges)[::2] - quantile


def stretches(mask: np.ndarray, gap: int) -> tuple[np.ndarray, np.ndarray]:
    """Start and stop (exclusive) of every run of True values. Gaps of at most ``gap`` values are filled."""
    at = np.flatnonzero(mask)
    if len(at) == 0:
        return at, at
    apart = np.diff(at) > gap + 1
    return at[np.concatenate([[True], apart])], at[np.concatenate([apart, [True]])] + 1
