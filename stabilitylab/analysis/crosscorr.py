"""Lag by cross-correlation: a second estimate that uses the layers' scores instead of detected events.

Scores (noise sd above the baseline) below 2 are set to 0 and scores above 10 to 10, so that neither the noise nor a
single huge spike dominates. The p-value compares with all circular shifts of one layer; the confidence interval comes
from a block bootstrap.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft
from scipy.ndimage import uniform_filter1d

from stabilitylab.analysis.results import CrossLag, LayerSeries
from stabilitylab.analysis.shifts import covered
from stabilitylab.analysis.timeline import Timeline

FLOOR, CUT = 2.0, 10.0
BLOCK_WINDOWS = 3
"""A bootstrap block is at least this many lag windows long, so that few pairs of spikes straddle two blocks."""
MIN_BLOCKS, MAX_BLOCKS = 5, 64
RESAMPLES = 200
MOST_CELLS = 4
"""Grid cells per recorded row, at most: time and memory are proportional to the number of rows."""
SMOOTH = 7
"""The correlation is averaged over this many iterations of lag, because spikes jitter by a few iterations."""


def cross_lags(
    layers: Sequence[LayerSeries], scores: Sequence[np.ndarray], timelines: Sequence[Timeline], window: int
) -> dict[str, CrossLag | None]:
    """Lag of every other layer behind the first, by name. None where there is too little data.

    ``scores``: one array (n,) per layer, resampled to a regular grid with the first layer's recording step.
    ``window``: largest lag considered, in iterations.
    """
    line = timelines[0]
    if len(line.rows) < 2:
        return {}
    step = max(line.step, -(-line.span // (MOST_CELLS * len(line.rows))))
    length = (int(line.clock[-1])) // step + 1

    def excess(layer: LayerSeries, score: np.ndarray) -> np.ndarray:
        same = layer.iteration is line.rows or np.array_equal(layer.iteration, line.rows)
        return on_grid(line.clock if same else line.times(layer.iteration), score, step, length)

    steps = max(window // step, 1)
    correlator = CrossCorrelator(excess(layers[0], scores[0]), window=steps, step=step)

    def lag_of(layer: LayerSeries, score: np.ndarray, other: Timeline) -> CrossLag | None:
        return correlator.lag_of(excess(layer, score), wider=max(line.open_by, other.open_by, step if step > 1 else 0))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        lags = pool.map(lag_of, layers[1:], scores[1:], timelines[1:])
        return dict(zip([layer.name for layer in layers[1:]], lags, strict=True))


def on_grid(time: np.ndarray, score: np.ndarray, step: int, length: int) -> np.ndarray:
    """(length,) float64: the clipped ``score`` at times 0, ``step``, 2 ``step`` ...; 0 where nothing was recorded."""
    excess = np.zeros(length)
    loud = np.flatnonzero(score >= FLOOR)
    np.maximum.at(excess, np.minimum(time[loud] // step, length - 1), np.minimum(score[loud], CUT))
    return excess


class CrossCorrelator:
    """Correlates other layers with one layer, whose Fourier transforms are cached.

    ``excess`` (n,): returned by `on_grid`. ``window``: largest lag, in grid cells of ``step`` iterations.
    """

    def __init__(self, excess: np.ndarray, *, window: int, step: int = 1) -> None:
        self.window, self.step = window, step
        self.smooth = max(SMOOTH // step, 1)
        self.n = len(excess)
        self.blocks = min(self.n // max(BLOCK_WINDOWS * window, 1), MAX_BLOCKS)
        self.level = float(excess.mean()) if self.n else 0.0
        self.power = float(np.square(excess - self.level).sum())
        if not self._enough():
            return
        self.whole = np.conj(rfft(excess - self.level))
        self.length = self.n // self.blocks
        self.size = next_fast_len(self.length + 2 * window, real=True)
        parts = (excess - self.level)[: self.blocks * self.length].reshape(self.blocks, self.length)
        self.parts = np.conj(rfft(parts, self.size))

    def _enough(self) -> bool:
        return self.blocks >= MIN_BLOCKS and self.power > 0

    def lag_of(self, excess: np.ndarray, *, wider: float = 0.0, seed: int = 0) -> CrossLag | None:
        """Lag of ``excess`` (n,) behind this layer, in iterations. None with too few blocks or without any excess.

        ``wider``: iterations added to either side of the interval, for the time between recorded rows.
        """
        if not self._enough() or not excess.any():
            return None
        other = excess - excess.mean()
        window, n = self.window, self.n
        products = irfft(self.whole * rfft(other), n)
        around = uniform_filter1d(products, self.smooth, mode="wrap")
        inside = np.concatenate([around[-window:], around[: window + 1]])
        best = int(np.argmax(inside))
        near = products[np.arange(best - window - self.smooth // 2, best - window + self.smooth // 2 + 1) % n]
        width = 2 * window + 1
        # Shifts whose window reaches as high a peak. Neighbouring shifts share their highest peak: only every width-th
        # one is independent.
        high = np.flatnonzero(around >= inside[best])
        high = np.concatenate([high - n, high, high + n])  # shifts are circular
        reached = covered(high - window, high + window, width, n - width)
        p_value = (1 + reached / width) / (1 + max(n - 2 * width, 0) / width)
        scale = np.sqrt(self.power * float(np.square(other).sum()))
        low, high = np.percentile(self._resampled(other, seed), [2.5, 97.5], method="inverted_cdf")
        return CrossLag(
            lag=float(self.step * (best - window)),
            ci95=(float(self.step * low) - wider, float(self.step * high) + wider),
            correlation=float(near.max() / scale),
            p_value=float(p_value),
        )

    def _resampled(self, other: np.ndarray, seed: int) -> np.ndarray:
        """(RESAMPLES,) lags of the highest correlation, one per bootstrap sample of the blocks."""
        window, span = self.window, self.length + 2 * self.window
        padded = np.concatenate([np.zeros(window), other, np.zeros(span)])
        views = np.lib.stride_tricks.sliding_window_view(padded, span)[: self.blocks * self.length : self.length]
        lags = irfft(self.parts * rfft(views, self.size), self.size)[:, : 2 * window + 1]
        counts = np.random.default_rng(seed).multinomial(self.blocks, [1 / self.blocks] * self.blocks, RESAMPLES)
        return np.argmax(uniform_filter1d(counts @ lags, self.smooth, axis=1, mode="nearest"), axis=1) - window
