"""Statistics of impulse responses: from arrays of log ratios to responses with intervals.

A difference is log(norm with the kick / norm without it), per layer and iteration. Both futures see the same batches,
so the noise of the data cancels: until the kick reaches a layer, its difference is exactly 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
FEWEST = 6
"""Independent differences required to test an arrival: with 6, the smallest p-value of a sign-flip test is 1 / 2^5."""
LEVEL = 0.95


@dataclass(frozen=True)
class Response:
    """Response of layer ``responding`` to kicks in layer ``kicked``, on the log scale, from the kicked iteration on.

    ``mean``, ``low``, ``high`` (T,): mean over kicks and its pointwise 95% bootstrap interval. ``reached``: whether the
    mean differs from 0 anywhere, at a family-wise level of 5% over all layers and offsets; None with too few starts.
    ``arrival``: first offset where it differs. ``peak``: mean at the offset ``peak_at`` where it is farthest from 0.
    ``decay``: time constant of the exponential fitted to the mean from the peak on, in iterations; inf if longer than
    the horizon, None if the layer was not reached.
    """

    kicked: str
    responding: str
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    reached: bool | None
    arrival: int | None
    peak: float
    peak_at: int
    peak_ci95: tuple[float, float]
    decay: float | None
    decay_ci95: tuple[float, float] | None


def respond(kicked: str, names: Sequence[str], differences: np.ndarray, seed: int = 0) -> list[Response]:
    """The responses of the layers ``names`` to kicks in one layer.

    ``differences`` (K, T, R): K independent samples, T offsets, R layers; NaN where a norm is missing. Kicks that share
    an unkicked future are not independent: pass their mean.
    """
    kicks, length, _ = differences.shape
    chosen = np.random.default_rng(seed).integers(0, kicks, (RESAMPLES, kicks))
    weights = np.stack([np.bincount(row, minlength=kicks) for row in chosen]) / kicks  # (B, K)
    left = _leaves_zero(differences, seed)
    found = []
    for column, name in enumerate(names):
        values = np.nan_to_num(differences[:, :, column])
        mean = values.mean(0)
        resampled = weights @ values  # (B, T)
        low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
        peak_at = int(np.abs(mean).argmax())
        arrived = np.flatnonzero(left[:, column])
        reached = None if kicks < FEWEST else bool(len(arrived))
        decay = decay_ci95 = None
        if reached and peak_at < length - 3:
            decay = float(time_constant(mean[None, peak_at:])[0])
            ends = np.percentile(time_constant(resampled[:, peak_at:]), [2.5, 97.5], method="nearest")
            decay_ci95 = (float(ends[0]), float(ends[1]))
        found.append(
            Response(
                kicked=kicked,
                responding=name,
                mean=mean,
                low=low,
                high=high,
                reached=reached,
                arrival=int(arrived[0]) if reached else None,
                peak=float(mean[peak_at]),
                peak_at=peak_at,
                peak_ci95=(float(low[peak_at]), float(high[peak_at])),
                decay=decay,
                decay_ci95=decay_ci95,
            )
        )
    return found


def _leaves_zero(differences: np.ndarray, seed: int) -> np.ndarray:
    """Mask (T, R): where the mean over kicks differs from 0, at a family-wise level of 5%.

    A sign-flip test: if kicks had no effect on average, each row could equally have the opposite sign. It is exact for
    symmetric distributions.
    """
    values = np.nan_to_num(differences)
    kicks = len(values)
    if kicks <= 12:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=kicks - 1)))
        signs = np.concatenate([np.ones((len(signs), 1)), signs], 1)  # the first row is the data itself
    else:
        drawn = np.random.default_rng(seed).choice((-1.0, 1.0), (RESAMPLES, kicks))
        signs = np.concatenate([np.ones((1, kicks)), drawn])
    flat = values.reshape(kicks, -1)
    squares = (flat**2).mean(0)

    def statistic(rows: np.ndarray) -> np.ndarray:
        means = rows @ flat / kicks
        spread = np.sqrt(np.maximum(squares - means**2, 0)).reshape(-1, *values.shape[1:])
        # With few kicks, the estimated spread is too small at some offsets: add the layer's median spread to all.
        spread = spread + np.median(spread, axis=1, keepdims=True)
        spread = spread.reshape(means.shape)
        return np.abs(np.divide(means, spread, out=np.zeros_like(means), where=spread > 1e-12 * np.abs(means).max()))

    largest = np.concatenate([statistic(part).max(1) for part in np.array_split(signs, max(len(signs) // 64, 1))])
    bound = np.quantile(largest, LEVEL, method="higher")
    return (statistic(signs[:1])[0] >= max(bound, 1e-300)).reshape(values.shape[1:])


def time_constant(curves: np.ndarray) -> np.ndarray:
    """Time constants (B,) of A exp(-t / tau), fitted by least squares to each row of ``curves`` (B, T) from t = 0 on.
    Infinite if longer than the row."""
    length = curves.shape[1]
    tau = np.geomspace(0.3, 4 * length, 400)
    shapes = np.exp(-np.arange(length) / tau[:, None])  # (G, T)
    shapes /= np.sqrt((shapes**2).sum(1, keepdims=True))
    best = tau[((curves @ shapes.T) ** 2).argmax(1)]
    return np.where(best > length, np.inf, best)


def directions(responses: Sequence[Response], order: Sequence[str]) -> dict[str, tuple[int, int]]:
    """``towards the output`` and ``towards the input`` -> (pairs of layers that a kick reached, pairs judged)."""
    place = {name: i for i, name in enumerate(order)}
    counts = {"towards the output": [0, 0], "towards the input": [0, 0]}
    for r in responses:
        if r.reached is None or r.responding not in place or r.kicked == r.responding:
            continue
        count = counts["towards the output" if place[r.kicked] < place[r.responding] else "towards the input"]
        count[0] += r.reached
        count[1] += 1
    return {name: (hit, judged) for name, (hit, judged) in counts.items()}
