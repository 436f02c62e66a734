"""What kicks do to layers: arrays of twin differences in, responses with intervals out.

A twin difference is log(norm with the kick / norm without it), layer by layer and iteration by iteration. Both futures
see the same batches, so the noise cancels: before a kick arrives the difference is exactly 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
FEWEST = 6
"""Independent differences that an arrival needs: of the 2^5 ways to flip their signs, one in 32 is as extreme as the
data by chance."""
LEVEL = 0.95


@dataclass(frozen=True)
class Response:
    """How layer ``responding`` answers kicks in layer ``kicked``, on the log scale; offset 0 is the kicked iteration.

    ``mean``, ``low``, ``high`` (T,): the mean over kicks and its pointwise 95% interval, by resampling kicks.
    ``reached``: does the mean leave 0 anywhere, at 5% over all layers and offsets together (None: too few starts);
    ``arrival``: the first offset where it does. ``peak``: the mean farthest from 0, at ``peak_at``. ``decay``: time
    constant of the exponential that fits the mean from the peak on, in iterations; inf beyond the horizon, None where
    nothing arrived.
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
    """The responses of layers ``names`` to the kicks in one layer. ``differences`` (K, T, R): a row each that is
    independent of the others, so the mean of the kicks that share an unkicked future; NaN where a norm is missing."""
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
    """(T, R) where the mean over kicks is farther from 0 than chance brings anywhere, at 5% over all of them: if kicks
    did nothing on average, each row could as well have the other sign. An exact test where signs are symmetric."""
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
        # A spread from few kicks is small by accident somewhere: a layer's usual spread is added everywhere.
        spread = spread + np.median(spread, axis=1, keepdims=True)
        spread = spread.reshape(means.shape)
        return np.abs(np.divide(means, spread, out=np.zeros_like(means), where=spread > 1e-12 * np.abs(means).max()))

    largest = np.concatenate([statistic(part).max(1) for part in np.array_split(signs, max(len(signs) // 64, 1))])
    bound = np.quantile(largest, LEVEL, method="higher")
    return (statistic(signs[:1])[0] >= max(bound, 1e-300)).reshape(values.shape[1:])


def time_constant(curves: np.ndarray) -> np.ndarray:
    """Time constant of A exp(-t / tau), fitted by least squares to each row of ``curves`` (B, T) from t = 0 on: (B,).
    Infinity where it is longer than the row."""
    length = curves.shape[1]
    tau = np.geomspace(0.3, 4 * length, 400)
    shapes = np.exp(-np.arange(length) / tau[:, None])  # (G, T)
    shapes /= np.sqrt((shapes**2).sum(1, keepdims=True))
    best = tau[((curves @ shapes.T) ** 2).argmax(1)]
    return np.where(best > length, np.inf, best)


def directions(responses: Sequence[Response], order: Sequence[str]) -> dict[str, tuple[int, int]]:
    """``towards the output`` and ``towards the input``: (pairs of layers that a kick reached, pairs judged)."""
    place = {name: i for i, name in enumerate(order)}
    counts = {"towards the output": [0, 0], "towards the input": [0, 0]}
    for r in responses:
        if r.reached is None or r.responding not in place or r.kicked == r.responding:
            continue
        way = counts["towards the output" if place[r.kicked] < place[r.responding] else "towards the input"]
        way[0] += r.reached
        way[1] += 1
    return {name: (hit, judged) for name, (hit, judged) in counts.items()}
