"""Correction for skewed noise: hard batches make the upward excursions of real gradients larger than the downward ones.

A threshold fitted to downward excursions is then too low for upward ones. Noise counts as skewed if the highest 5% of
its values begin farther from the centre than the lowest 5%: hard batches move the whole side, whereas a few spikes
hardly change where so many values begin. How much the threshold rises is estimated from moderate peaks on both sides;
upward peaks are excluded if their event lasts or if they exceed the threshold. These peaks alone could not tell whether
noise is skewed, because spikes of one or two iterations just below the threshold look the same.
"""

from __future__ import annotations

import numpy as np

from stabilitylab.analysis.detection.settings import SpikeSettings
from stabilitylab.analysis.detection.tails import MIN_PEAKS

BULK_SHARE = 0.05
SKEWED = 1.0
"""Noise is skewed if the bulk of one side reaches farther than that of the other by this many standard errors."""
PEAK_SHARE = 0.02
LASTS = 3
"""An event with at least this many consecutive values above ``z_close`` is lasting: a single batch cannot cause it."""
SURE = 0.5
"""This many standard errors are subtracted from the log of the skew. Without it, the threshold would also rise for
symmetric noise, whose two sides differ by chance."""


def skewed_threshold(score: np.ndarray, mirrored: np.ndarray, threshold: float, settings: SpikeSettings) -> float:
    """Raise the threshold for single upward values by the skew of the noise.

    ``threshold`` was fitted to ``mirrored`` (n,), the downward scores. The result is scaled by how much farther the
    moderate upward peaks of ``score`` (n,) reach than the downward ones, and is never below ``threshold``, nor above it
    if the bulk of the noise is not skewed.
    """
    if not np.isfinite(threshold):
        return threshold
    noise = _without_lasting(score, settings.z_close)
    if not _bulk_is_skewed(noise, mirrored, settings.merge_gap):
        return threshold
    down = _peaks(mirrored, settings.merge_gap)
    moderate = _peaks(noise, settings.merge_gap, most=threshold)
    if down is None or moderate is None:
        return threshold
    # Use upward peaks only up to the distance at which the threshold lies above the quantile on the mirrored side:
    # peaks beyond that may be spikes. A wider limit would meet the rate exactly on real noise, but would mistake the
    # spikes of heavy-tailed noise for skew.
    limit = moderate[0] + max(threshold - down[0], 0)
    up = _peaks(noise, settings.merge_gap, most=limit)
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


def _bulk_is_skewed(score: np.ndarray, mirrored: np.ndarray, gap: int) -> bool:
    """Whether the 95% quantile of ``score`` (n,) exceeds that of ``mirrored`` (n,) by more than `SKEWED` errors."""
    quantiles, errors = [], []
    for side in (score, mirrored):
        peaks = _peaks(side, gap, share=BULK_SHARE)
        if peaks is None:
            return False
        quantile, excess = peaks
        # Excesses over a high quantile are close to exponential. Spikes have little influence on their median.
        errors.append(float(np.median(excess)) / np.log(2) / quantile / np.sqrt(len(excess)))
        quantiles.append(quantile)
    return bool(np.log(quantiles[0] / quantiles[1]) > SKEWED * np.hypot(*errors))


def _relative_error(peaks: np.ndarray) -> float:
    return float(peaks.std() / np.sqrt(len(peaks)) / peaks.mean())


def _without_lasting(score: np.ndarray, level: float) -> np.ndarray:
    """The scores without lasting events. Their own width is removed on either side too: the flanks are not noise."""
    starts, stops = stretches(score >= level, 1)
    lasting = stops - starts >= LASTS
    kept = score.copy()
    for start, stop in zip(starts[lasting].tolist(), stops[lasting].tolist(), strict=True):
        width = stop - start
        kept[max(start - width, 0) : stop + width] = -np.inf
    return kept


def _peaks(
    score: np.ndarray, gap: int, most: float = np.inf, share: float = PEAK_SHARE
) -> tuple[float, np.ndarray] | None:
    """The quantile that ``share`` of the values exceed, and how far each declustered peak rises above it. None with too
    few peaks. Scores above ``most`` are left out."""
    known = np.count_nonzero(score > -np.inf)
    usable = known if most == np.inf else known - np.count_nonzero(score > most)
    keep = int(share * usable)
    if keep < MIN_PEAKS:
        return None
    for least in (1.0, 0.0):
        at = np.flatnonzero(score > least)
        high = score[at]
        if most < np.inf:
            at, high = at[high <= most], high[high <= most]
        if len(high) >= keep:
            break
    else:
        return None
    quantile = float(np.partition(high, len(high) - keep)[len(high) - keep])
    above = high > quantile
    at, high = at[above], high[above]
    first = heads(at, gap)
    if len(first) < MIN_PEAKS:
        return None
    return quantile, np.maximum.reduceat(high, first) - quantile


def high_quantile(score: np.ndarray, keep: int) -> float | None:
    """The ``keep``-th highest score; None unless it is positive."""
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
