"""Synthetic data with known truth for the benchmarks: noise, spikes, accuracy curves. It deliberately differs from
tests/synthetic.py, so that the tests do not tune the analysis to the benchmarks."""

from __future__ import annotations

import numpy as np
from scipy.signal import lfilter

from stabilitylab.analysis.results import LayerSeries


def ar_noise(rng: np.random.Generator, n: int, *, kind: str = "normal", phi: float = 0.0) -> np.ndarray:
    """(n,) AR(1) noise of unit variance with normal or Student-t (3 degrees of freedom) shocks."""
    burn = 300
    shocks = rng.standard_normal(n + burn) if kind == "normal" else rng.standard_t(3, n + burn) / np.sqrt(3)
    return np.sqrt(1 - phi**2) * lfilter([1.0], [1.0, -phi], shocks)[burn:]


def spaced(rng: np.random.Generator, n: int, count: int, *, apart: int, first: int = 300) -> np.ndarray:
    """``count`` onsets, at least ``apart`` iterations from each other."""
    free = n - first - 150 - count * apart
    if free < 0:
        raise ValueError(f"{count} spikes {apart} apart do not fit into {n} iterations")
    return first + np.sort(rng.integers(0, free + 1, count)) + apart * np.arange(count)


def add_spike(x: np.ndarray, onset: int, height: float, width: int) -> None:
    """Raise ``x`` by ``height`` for the first half of ``width`` iterations, then let it fall to a third of that."""
    shape = np.ones(width)
    half = (width + 1) // 2
    shape[half:] = np.linspace(1, 1 / 3, width - half + 1)[1:]
    stop = min(onset + width, len(x))
    if 0 <= onset < len(x):
        x[onset:stop] += height * shape[: stop - onset]


def layer(x: np.ndarray, name: str = "layer", depth: int = 0) -> LayerSeries:
    """The layer whose log gradient norm is ``x``."""
    return LayerSeries(name, depth, np.arange(len(x)), np.exp(x))
