"""Published detection rules with their published parameters, for comparison. All work on the norm, not on its log.

olmo    at least 7 sd above the mean of the last 1,000 values (OLMo 2, arXiv 2501.00656: its "spike score")
zscore  more than 3 sd above the mean of the last 200 values
ema     z above 2.5 relative to the exponential mean and variance, alpha 0.97, warm-up of 25 values; a flagged value
        enters the statistics clipped to mean + sd x 2.5^2 / z (ZClip, arXiv 2504.02507)
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from stabilitylab.analysis.detection.settings import RULES
from stabilitylab.registry import located

EMA_ALPHA = 0.97
EMA_WARMUP = 25


def published_score(norm: np.ndarray, rule: str, warmup: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores (n,) in sd above the mean that the rule expects (-inf where unknown), and that mean (n,).

    Non-finite norms are skipped, as if they were not part of the series.
    """
    usable = np.isfinite(norm)
    z, mean = located(RULES.choose(rule).score)(norm[usable], warmup)
    score, centre = np.full(len(norm), -np.inf), np.full(len(norm), np.nan)
    score[usable], centre[usable] = z, mean
    return score, centre


def olmo(values: np.ndarray, warmup: int) -> tuple[np.ndarray, np.ndarray]:
    return _rolling(values, 1000, warmup)


def zscore(values: np.ndarray, warmup: int) -> tuple[np.ndarray, np.ndarray]:
    return _rolling(values, 200, warmup)


def _rolling(values: np.ndarray, window: int, warmup: int) -> tuple[np.ndarray, np.ndarray]:
    past = pd.Series(values).rolling(window, min_periods=warmup)
    mean = past.mean().shift(1).to_numpy()
    sd = past.std().shift(1).to_numpy()
    known = sd > 1e-12 * np.abs(mean)  # NaN, and the rounding of a constant series, are not
    z = np.divide(values - mean, sd, out=np.full(len(values), -np.inf), where=known)
    return z, mean


def ema(values: np.ndarray, warmup: int) -> tuple[np.ndarray, np.ndarray]:
    z, centre = np.full(len(values), -np.inf), np.full(len(values), np.nan)
    if len(values) <= EMA_WARMUP:
        return z, centre
    limit = RULES["ema"].threshold
    mean, variance = float(values[:EMA_WARMUP].mean()), float(values[:EMA_WARMUP].var())
    for i, value in enumerate(values[EMA_WARMUP:].tolist(), EMA_WARMUP):
        sd = math.sqrt(variance)
        above = (value - mean) / sd if sd > 1e-12 * abs(mean) else 0.0
        z[i], centre[i] = above, mean
        taken = mean + sd * limit**2 / above if above > limit else value
        mean = EMA_ALPHA * mean + (1 - EMA_ALPHA) * taken
        variance = EMA_ALPHA * variance + (1 - EMA_ALPHA) * (taken - mean) ** 2
    return z, centre


def spike_score(norm: np.ndarray, warmup: int = 50) -> float | None:
    """OLMo 2's spike score: the share of values at least 7 sd above the mean of the last 1,000. None without scores."""
    score, centre = published_score(norm, "olmo", warmup)
    judged = np.isfinite(centre)
    return float((score[judged] >= RULES["olmo"].threshold).mean()) if judged.any() else None
