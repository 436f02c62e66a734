"""Thresholds shared by layers whose series are too short for individual thresholds.

A few hundred values contain too few downward peaks to fit a tail; all layers of a run together contain enough. Each
layer's scores are in units of its own noise sd, so the layers share only the shape of the tail.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stabilitylab.analysis.detection.baseline import Baseline, baseline
from stabilitylab.analysis.detection.settings import SpikeSettings
from stabilitylab.analysis.detection.skew import skewed_threshold
from stabilitylab.analysis.detection.tails import MIN_PEAKS
from stabilitylab.analysis.detection.thresholds import IN_A_ROW, PEAK_SHARE, thresholds_of

APART = max(IN_A_ROW) + 8
"""Number of missing scores inserted between two layers, so that no run of values spans both."""


OWN_PEAKS = 24
"""With at least this many downward peaks, a layer's own tail is more accurate than the shared one. With 8 to 24 peaks,
individual thresholds let heavy-tailed noise open up to 7 events per 10,000 values where the target is 1."""


def too_short(usable: int, settings: SpikeSettings, peaks: int = OWN_PEAKS) -> bool:
    """Whether ``usable`` norms of a layer give fewer than ``peaks`` downward peaks."""
    asked = settings.rule == "stablab" and settings.false_alarms_per_10k is not None
    return asked and PEAK_SHARE * (usable - settings.warmup) < peaks


def shared_thresholds(logs: Sequence[np.ndarray], settings: SpikeSettings) -> dict[int, float] | None:
    """Thresholds fitted to all short layers together, as `thresholds_of` returns them.

    ``logs``: the log norms (n,) of each layer, NaN where missing. Returns None if there are too few values in total.
    """
    down: list[np.ndarray] = []
    up: list[np.ndarray] = []
    gap = np.full(APART, -np.inf)
    for x in logs:
        present = ~np.isnan(x)
        if present.sum() <= settings.warmup:
            continue
        base = baseline(x, present, window=settings.window, warmup=settings.warmup)
        down += [mirrored_score_of(x, base), gap]
        up += [score_of(x, base), gap]
    if not down:
        return None
    mirrored, score = np.concatenate(down), np.concatenate(up)
    if PEAK_SHARE * np.isfinite(mirrored).sum() < MIN_PEAKS:
        return None
    thresholds = thresholds_of(mirrored, settings)
    return thresholds | {1: skewed_threshold(score, mirrored, thresholds[1], settings)}


def score_of(x: np.ndarray, base: Baseline) -> np.ndarray:
    """Scores (n,): noise sd above the higher of the two medians; -inf where the score is unknown."""
    return _in_noise_sd(x - np.fmax(base.before, base.after), base)


def mirrored_score_of(x: np.ndarray, base: Baseline) -> np.ndarray:
    """Scores (n,) of the mirrored series: noise sd below the lower of the two medians; -inf where unknown."""
    return _in_noise_sd(np.fmin(base.before, base.after) - x, base)


def _in_noise_sd(distance: np.ndarray, base: Baseline) -> np.ndarray:
    distance /= base.scale
    np.putmask(distance, np.isnan(distance) | np.isnan(base.before), -np.inf)
    return distance
