"""Tail extrapolation: the score that noise exceeds at a given rate.

Peaks over a high quantile follow a generalised Pareto distribution (Pickands 1975). A few hundred peaks do not
determine its shape, so the threshold is solved for the *predictive* rate: the rate averaged over the posterior of shape
and scale, with a prior between an exponential tail and that of Student's t5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

_SHAPES = np.linspace(-0.301, 0.899, 25)  # excludes 0, for which the formula of the tail differs
_SHAPE_PRIOR_MEAN, _SHAPE_PRIOR_SD = 0.1, 0.2
_SCALES = np.exp(np.linspace(-1.2, 1.2, 41))
MIN_PEAKS = 8


@dataclass(frozen=True, slots=True)
class Tail:
    """``weights`` (shapes, scales): posterior of the tail, given ``num_peaks`` peaks with a mean excess ``mean``."""

    num_peaks: int
    mean: float
    weights: np.ndarray

    def threshold(self, wanted: float) -> float:
        """The excess over the fitted quantile at which the expected number of peaks in the same series is
        ``wanted``."""
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
        """Expected share of peaks that exceed the quantile by more than ``excess``."""
        inside = np.maximum(1 + _SHAPES[:, None] * (excess / (self.mean * _SCALES[None, :])), 0.0)
        return float((self.weights * inside ** (-1 / _SHAPES[:, None])).sum())

    def slope(self, excess: float) -> float:
        """First-order increase of a threshold at ``excess`` when the rate is divided by e."""
        step = 0.02 * max(excess, 1e-3 * self.mean)
        fall = np.log(self.passing(excess) + 1e-300) - np.log(self.passing(excess + step) + 1e-300)
        return step / max(float(fall), 1e-9)


def fit_tail(excess: np.ndarray) -> Tail:
    """Fit a tail to ``excess`` (k,), how far each noise peak rises above the quantile.

    Raises:
        ValueError: fewer than 8 peaks.
    """
    if len(excess) < MIN_PEAKS:
        raise ValueError(f"{len(excess)} peaks are too few to fit a tail; at least {MIN_PEAKS} are needed")
    mean = max(float(excess.mean()), 1e-9)
    return Tail(len(excess), mean, _posterior(excess, _SHAPES[:, None], mean * _SCALES[None, :]))


def _posterior(excess: np.ndarray, shapes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Posterior weights (shapes, scales), which sum to one. The priors are normal in shape and flat in log scale."""
    log_weight = -0.5 * ((shapes - _SHAPE_PRIOR_MEAN) / _SHAPE_PRIOR_SD) ** 2 - len(excess) * np.log(scales)
    stretched = excess[None, :] / scales[0][:, None]
    furthest = stretched.max(axis=1)
    inside = np.empty_like(stretched)
    for i, shape in enumerate(_SHAPES):
        np.multiply(shape, stretched, out=inside)
        inside += 1
        np.maximum(inside, 1e-12, out=inside)
        log_weight[i] -= (1 + 1 / shape) * np.log(inside, out=inside).sum(axis=1)
        log_weight[i][1 + shape * furthest <= 0] = -np.inf
    weights = np.exp(log_weight - log_weight.max())
    return weights / weights.sum()
