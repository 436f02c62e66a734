"""Series with planted truth: spikes, lags and dips at known places, over noise of a known kind."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.signal import lfilter

from stabilitylab.analysis.results import EvalCurve, LayerSeries, RunSeries, Spike


def noise(n: int, *, seed: int, kind: str = "normal", phi: float = 0.0, sd: float = 0.25) -> np.ndarray:
    """(n,) log-scale noise of standard deviation ``sd``. ``kind``: normal or t3; ``phi`` its lag-1 correlation."""
    rng = np.random.default_rng(seed)
    burn = 200
    if kind == "normal":
        shocks = rng.standard_normal(n + burn)
    elif kind == "t3":
        shocks = rng.standard_t(3, n + burn) / np.sqrt(3)
    else:
        raise ValueError(f"unknown noise {kind!r}: use normal or t3")
    return sd * np.sqrt(1 - phi**2) * lfilter([1.0], [1.0, -phi], shocks)[burn:]


def plant(x: np.ndarray, onsets: Sequence[int], height: float, width: int = 5) -> np.ndarray:
    """A copy of log series ``x`` raised by ``height`` for ``width`` iterations from every onset."""
    raised = x.copy()
    for onset in onsets:
        raised[onset : onset + width] += height
    return raised


def layer_series(x: np.ndarray, name: str = "patch_embed", depth: int = 0) -> LayerSeries:
    """The layer whose log gradient norm is ``x``."""
    return LayerSeries(name, depth, np.arange(len(x)), np.exp(x))


def spikes_at(onsets: Sequence[int], layer: str = "patch_embed") -> list[Spike]:
    """Spikes as a detector would return them."""
    return [Spike(layer, int(o), int(o), int(o) + 2, 5.0, 10.0) for o in onsets]


def spread_onsets(rng: np.random.Generator, count: int, n: int, *, first: int = 250, apart: int = 80) -> np.ndarray:
    """``count`` random onsets at least ``apart`` iterations from each other."""
    free = n - first - 100 - count * apart
    if free < 0:
        raise ValueError(f"{count} onsets {apart} apart do not fit into {n} iterations")
    return first + np.sort(rng.integers(0, free + 1, count)) + apart * np.arange(count)


def accuracy_curve(
    n: int, *, seed: int, every: int = 10, num_samples: int = 400, dips: Sequence[tuple[int, int, float]] = ()
) -> EvalCurve:
    """A kNN curve that rises and levels off, with binomial noise. ``dips``: start, length (iterations), depth."""
    iteration = np.arange(0, n, every)
    truth = 0.85 - 0.6 * np.exp(-iteration / (0.15 * n))
    for start, length, depth in dips:
        truth[(iteration >= start) & (iteration < start + length)] -= depth
    drawn = np.random.default_rng(seed).binomial(num_samples, np.clip(truth, 0, 1))
    return EvalCurve(iteration, drawn / num_samples, np.full(len(iteration), num_samples))


@dataclass(frozen=True)
class PlantedRun:
    """A run and what was planted into it: onsets by layer, dip starts, the lag per layer of depth."""

    series: RunSeries
    onsets: dict[str, list[int]]
    dip_starts: list[int] = field(default_factory=list)


LAYERS = ("patch_embed", "blocks.0", "blocks.1", "projector", "predictor")


def planted_run(
    *,
    seed: int = 0,
    n: int = 3000,
    lag: int = 20,
    count: int = 12,
    height: float = 2.0,
    sd: float = 0.15,
    phi: float = 0.5,
    layers: Sequence[str] = LAYERS,
    dips: bool = True,
) -> PlantedRun:
    """Spikes in every layer, ``lag`` iterations later in the last than in the first, evenly spread in between.

    Every third spike is followed by a dip of the kNN curve.
    """
    rng = np.random.default_rng(seed)
    first = spread_onsets(rng, count, n, apart=150)
    onsets: dict[str, list[int]] = {}
    series = []
    for depth, name in enumerate(layers):
        delay = round(lag * depth / max(len(layers) - 1, 1))
        jitter = rng.integers(-1, 2, count) if 0 < depth < len(layers) - 1 else np.zeros(count, dtype=int)
        places = (first + delay + jitter).tolist()
        x = noise(n, seed=1000 * seed + depth, phi=phi, sd=sd) - 0.3 * depth
        series.append(layer_series(plant(x, places, height), name, depth))
        onsets[name] = places
    starts = (first[::3] + lag + 10).tolist() if dips else []
    curve = accuracy_curve(n, seed=seed, every=5, dips=[(s, 60, 0.2) for s in starts])
    run = RunSeries("planted", n, tuple(series), {"knn_top1": curve})
    return PlantedRun(run, onsets, starts)


def planted_grads_csv(path: Path, *, lag: int = 20, seed: int = 0) -> PlantedRun:
    """Write ``planted_run`` as a grads.csv (iteration,layer,grad_norm) and return what was planted."""
    planted = planted_run(lag=lag, seed=seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["iteration", "layer", "grad_norm"])
        for layer in planted.series.layers:
            for iteration, norm in zip(layer.iteration.tolist(), layer.grad_norm.tolist(), strict=True):
                writer.writerow([iteration, layer.name, repr(norm)])
    return planted
