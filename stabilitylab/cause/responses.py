"""Statistics of impulse responses: from arrays of log ratios to responses with intervals.

A difference is log(norm with the kick / norm without it), per layer and iteration. Both futures see the same batches,
so the noise of the data cancels: until the kick reaches a layer, its difference is exactly 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
FEWEST = 6
"""Independent differences required to test an arrival: with 6, the smallest p-value of a sign-flip test is 1 / 2^5."""
LEVEL = 0.95
EARLY = 10
"""Number of iterations after a kick whose mean response is compared between layers or settings."""


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
    responses = []
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
        responses.append(
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
    return responses


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
    # p = share of sign patterns whose largest statistic is at least as large; it must not exceed 1 - LEVEL.
    bound = np.sort(largest)[-1 - int((1 - LEVEL) * len(largest))]
    return (statistic(signs[:1])[0] > bound * (1 + 1e-9)).reshape(values.shape[1:])


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


@dataclass(frozen=True)
class Travel:
    """Mean log response of the first `EARLY` iterations over all pairs of kicked layers, towards the ``output`` and
    towards the ``input``, and its ``difference`` (output minus input), each with a 95% bootstrap interval over
    ``starts``."""

    output: float
    output_ci95: tuple[float, float]
    input: float
    input_ci95: tuple[float, float]
    difference: float
    difference_ci95: tuple[float, float]
    pairs: int
    starts: int

    @property
    def verdict(self) -> str:
        """``output`` or ``input`` if the response in that direction is larger; ``both alike`` if there is one in both
        directions and they differ by less than `ALIKE`; ``nowhere`` if both are smaller than `ALIKE`; else
        ``inconclusive``."""
        if self.starts < FEWEST:
            return "inconclusive"
        if self.difference_ci95[0] > 0 and self.output_ci95[0] > 0:
            return "output"
        if self.difference_ci95[1] < 0 and self.input_ci95[0] > 0:
            return "input"
        ends = [abs(x) for ci in (self.output_ci95, self.input_ci95) for x in ci]
        if max(ends) < ALIKE:
            return "nowhere"
        both = self.output_ci95[0] > 0 and self.input_ci95[0] > 0
        return "both alike" if both and max(map(abs, self.difference_ci95)) < ALIKE else "inconclusive"


ALIKE = 0.05
"""Largest negligible log response, or difference of two."""


def travel(by_start: Mapping[str, np.ndarray], order: Sequence[str], seed: int = 0) -> Travel | None:
    """``by_start``: kicked layer -> responses (S, T, R), R in ``order``. None if fewer than two layers were kicked. All
    layers were kicked at the same starts, so starts are resampled jointly."""
    kicked = [name for name in order if name in by_start]
    pairs = list(itertools.combinations(kicked, 2))
    if not pairs:
        return None
    early = {name: np.nan_to_num(by_start[name][:, :EARLY]).mean(1) for name in kicked}  # (S, R)
    place = {name: i for i, name in enumerate(order)}
    ahead = np.stack([early[a][:, place[b]] for a, b in pairs]).mean(0)  # (S,)
    back = np.stack([early[b][:, place[a]] for a, b in pairs]).mean(0)
    return Travel(
        float(ahead.mean()),
        resampled_mean(ahead, seed),
        float(back.mean()),
        resampled_mean(back, seed),
        float((ahead - back).mean()),
        resampled_mean(ahead - back, seed),
        len(pairs),
        len(ahead),
    )


def resampled_mean(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95% bootstrap interval of the mean of ``values`` (K,)."""
    chosen = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.percentile(values[chosen].mean(1), [2.5, 97.5])
    return float(low), float(high)
