"""Thresholds shared by layers whose series are too short for thresholds of their own.

A few hundred values have too few downward peaks to fit a tail to; all layers of a run together have enough. Their
scores are in noise sd, each layer's own, so that what they share is the shape of the tail.
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
"""Scores that cannot be told stand between two layers', so that no row of values runs across."""


OWN_PEAKS = 24
"""Downward peaks of a layer from which on its own tail says more than that of all layers. With 8 to 24, heavy-tailed
noise opened up to 7 events per 10,000 where 1 is asked for."""


def too_short(usable: int, settings: SpikeSettings, peaks: int = OWN_PEAKS) -> bool:
    """Whether ``usable`` norms of a layer give fewer than so many peaks for a threshold of its own."""
    asked = settings.rule == "stablab" and settings.false_alarms_per_10k is not None
    return asked and PEAK_SHARE * (usable - settings.warmup) < peaks


def shared_thresholds(logs: Sequence[np.ndarray], settings: SpikeSettings) -> dict[int, float] | None:
    """How many in a row -> the score that all of them must pass, from the log norms (n,) of all short layers, NaN where
    there is none. None where even together they are too few."""
    down: list[np.ndarray] = []
    up: list[np.ndarray] = []
    gap = np.full(APART, -np.inf)
    for x in logs:
        present = ~np.isnan(x)
        if present.sum() <= settings.warmup:
            continue
        base = baseline(x, present, window=settings.window, warmup=settings.warmup)
        down += [score_of(-x, Baseline(-base.before, -base.after, base.scale)), gap]
        up += [score_of(x, base), gap]
    if not down:
        return None
    mirrored, score = np.concatenate(down), np.concatenate(up)
    if PEAK_SHARE * np.isfinite(mirrored).sum() < MIN_PEAKS:
        return None
    found = thresholds_of(mirrored, settings)
    return found | {1: skewed_threshold(score, mirrored, found[1], settings)}


def score_of(x: np.ndarray, base: Baseline) -> np.ndarray:
    """Noise sd above the higher median (n,); -inf where it cannot be told."""
    score = (x - np.fmax(base.before, base.after)) / base.scale
    return np.where(np.isnan(score) | np.isnan(base.before), -np.inf, score)
