"""How high a score must be so that chance passes it at a named rate: a fitted tail, extrapolated.

Peaks over a high quantile follow a generalised Pareto distribution (Pickands 1975). Its shape is not
known from some hundred peaks, so the threshold solves for the *predictive* rate: averaged over the shapes
and scales that the peaks leave possible, with a prior between an exponential tail and that of Student's t5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

_SHAPES = np.linspace(-0.301, 0.899, 25)  # none is 0: the exponential tail's formula is another
_SHAPE_PRIOR_MEAN, _SHAPE_PRIOR_SD = 0.1, 0.2
_SCALES = np.exp(np.linspace(-1.2, 1.2, 41))
MIN_PEAKS = 8


@dataclass(frozen=True, slots=True)
class Tail:
    """``weights`` (shapes, scales): how likely each tail is beside ``num_peaks`` peaks that rose by ``mean``."""

    num_peaks: int
    mean: float
    weights: np.ndarray

    def threshold(self, wanted: float) -> float:
        """How far above the fitted quantile the expected number of peaks falls to ``wanted``, over the same stretch."""
        if wanted >= self.num_peaks:
            return 0.0

        def surplus(log_t: float) -> float:
            return np.log(self.num_peaks * self.passing(np.exp(log_t)) + 1e-300) - np.log(wanted)

        low, high = np.log(self.mean * 1e-3), np.log(self.mean * 1e6)
        if surplus(low) <= 0:
            return float(np.exp(low))
        if surplus(high) >= 0:
            return float("inf")
        return float(np.exp(brentq(surplus, low, high, xtol=1e-3)))

    def passing(self, excess: float) -> float:
        """Share of peaks that rise by more than ``excess``."""
        inside = np.maximum(1 + _SHAPES[:, None] * (excess / (self.mean * _SCALES[None, :])), 0.0)
        return float((self.weights * inside ** (-1 / _SHAPES[:, None])).sum())

    def slope(self, excess: float) -> float:
        """How much higher a threshold at ``excess`` becomes for a rate lower by a factor e, at first order."""
        step = 0.02 * max(excess, 1e-3 * self.mean)
        fall = np.log(self.passing(excess) + 1e-300) - np.log(self.passing(excess + step) + 1e-300)
        return step / max(float(fall), 1e-9)


def fit_tail(excess: np.ndarray) -> Tail:
    """``excess`` (k,): how far each chance peak rose above the quantile. ValueError with fewer than 8."""
    if len(excess) < MIN_PEAKS:
        raise ValueError(f"{len(excess)} peaks are too few to fit a tail to; it takes {MIN_PEAKS}")
    mean = max(float(excess.mean()), 1e-9)
    return Tail(len(excess), mean, _posterior(excess, _SHAPES[:, None], mean * _SCALES[None, :]))


def _posterior(excess: np.ndarray, shapes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Weights (shapes, scales) that sum to one: likelihood times priors (normal in shape, flat in log scale)."""
    log_weight = -0.5 * ((shapes - _SHAPE_PRIOR_MEAN) / _SHAPE_PRIOR_SD) ** 2 - len(excess) * np.log(scales)
    stretched = excess[None, :] / scales[0][:, None]
    furthest = stretched.max(axis=1)
    for i, shape in enumerate(_SHAPES):
        inside = shape * stretched
        inside += 1
        np.maximum(inside, 1e-12, out=inside)
        log_weight[i] -= (1 + 1 / shape) * np.log(inside, out=inside).sum(axis=1)
        log_weight[i][1 + shape * furthest <= 0] = -np.inf
    weights = np.exp(log_weight - log_weight.max())
    return weights / weights.sum()
