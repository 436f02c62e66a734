"""Series with planted spikes, lags and dips: the truth that tests hold analysis against."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stabilitylab.analysis.results import EvalCurve, LayerSeries


def noise(n: int, seed: int, *, rho: float = 0.0, df: float | None = None, sd: float = 0.2) -> np.ndarray:
    """AR(1) noise of unit-variance Gaussian or Student-t innovations, scaled to standard deviation ``sd``."""
    rng = np.random.default_rng(seed)
    innovations = rng.normal(size=n) if df is None else rng.standard_t(df, n) / np.sqrt(df / (df - 2))
    out = np.empty(n)
    out[0] = innovations[0]
    for t in range(1, n):
        out[t] = rho * out[t - 1] + np.sqrt(1 - rho**2) * innovations[t]
    return sd * out


def layer(x: np.ndarray, name: str = "a", depth: int = 0) -> LayerSeries:
    """A layer whose log gradient norm is ``x``."""
    return LayerSeries(name, depth, np.arange(len(x)), np.exp(x))


def plant(x: np.ndarray, onsets: np.ndarray, height: float, width: int = 5) -> np.ndarray:
    """Add a spike of ``height`` log units that decays over ``width`` iterations at each onset."""
    out = x.copy()
    for onset in onsets:
        stop = min(onset + width, len(x))
        out[onset:stop] += height * np.linspace(1, 0.6, width)[: stop - onset]
    return out


def curve(truth: np.ndarray, seed: int, *, every: int = 10, num_samples: int = 397) -> EvalCurve:
    """A kNN curve: binomial draws around ``truth``, one each ``every`` iterations."""
    value = np.random.default_rng(seed).binomial(num_samples, truth) / num_samples
    return EvalCurve(np.arange(len(truth)) * every, value, np.full(len(truth), num_samples))


@dataclass(frozen=True)
class Planted:
    """Where spikes stand in a file: layer -> onsets."""

    onsets: dict[str, list[int]]


def planted_grads_csv(path: Path, *, lag: int, seed: int, n: int = 3000, count: int = 12) -> Planted:
    """Write a grads.csv of three layers whose spikes travel: ``stem``, ``middle`` half the lag later, ``head``."""
    rng = np.random.default_rng(seed)
    onsets = np.arange(count) * (n - 400) // count + 300 + rng.integers(0, 120, count)
    rows, planted = ["iteration,layer,grad_norm"], {}
    for index, name in enumerate(("stem", "middle", "head")):
        places = onsets + round(lag * index / 2)
        planted[name] = places.tolist()
        x = plant(noise(n, seed + index, rho=0.5), places, height=2.0)
        rows += [f"{t},{name},{value:.6g}" for t, value in enumerate(np.exp(x) * 10.0 ** (index - 4))]
    path.write_text("\n".join(rows) + "\n")
    return Planted(planted)
