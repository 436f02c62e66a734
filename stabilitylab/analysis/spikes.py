"""Spikes of one layer: when its gradient norm leaves its own past, further than chance takes it.

The score of an iteration is how many noise sd the log norm lies above the higher of two medians, the one
before and the one after. The one after makes learning-rate drift and level shifts no spikes: a spike
comes back. An event opens where the score passes a threshold that the series' own *downward* excursions
set, so that chance opens one no more often than the rate asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stabilitylab.analysis.baseline import Baseline, baseline
from stabilitylab.analysis.results import FalseAlarms, LayerSeries, Spike
from stabilitylab.analysis.tails import tail_threshold


@dataclass(frozen=True, slots=True)
class SpikeSettings:
    """How spikes are found. Lengths in iterations (values, where a series has gaps), z in noise sd.

    ``false_alarms_per_10k`` events per 10,000 iterations and layer that chance alone may open; None uses
    ``z_open`` as it stands. ``z_open`` also stands in where a series is too short or too still to
    calibrate.
    """

    window: int = 200
    z_open: float = 6.0
    ratio_open: float = 2.0
    z_close: float = 3.0
    merge_gap: int = 3
    warmup: int = 50
    false_alarms_per_10k: float | None = 1.0
    rule: str = "stablab"

    def __post_init__(self) -> None:
        if self.window < 2 or self.warmup < 2:
            raise ValueError(f"window and warmup must be at least 2, not {self.window} and {self.warmup}")
        if self.false_alarms_per_10k is not None and not self.false_alarms_per_10k > 0:
            raise ValueError(f"false_alarms_per_10k must be above 0, not {self.false_alarms_per_10k}")
        if self.rule != "stablab":
            raise ValueError(f"unknown rule {self.rule!r}: use stablab")


MAX_PASSES = 4
MAX_PEAKS = 250
PEAK_SHARE = 0.02
MARGIN = 0.55
"""Share of the promised rate that is aimed at: on the heaviest tails tested the fit lets 1.6 times that through."""


def detect_spikes(series: LayerSeries, settings: SpikeSettings | None = None) -> tuple[Spike, ...]:
    """All events of a layer in order of onset. Nothing for a series shorter than the warm-up."""
    settings = settings or SpikeSettings()
    return tuple(_events(series, settings)[0])


def false_alarms(layers: Sequence[LayerSeries], settings: SpikeSettings | None = None) -> FalseAlarms:
    """The same detector on the mirrored series (1 / norm): what it flags there, chance flagged."""
    settings = settings or SpikeSettings()
    events = tested = 0
    for layer in layers:
        if layer.trainable:
            mirrored = _events(layer, settings)[1]
            events += mirrored
            tested += len(layer.iteration)
    return FalseAlarms(events, 10_000 * events / tested if tested else 0.0)


def log_norms(grad_norm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n,) -> log norms with NaN where there is none, and where the value was not finite. A norm of 0 is missing."""
    norm = np.asarray(grad_norm, dtype=np.float64)
    finite = np.isfinite(norm)
    x = np.full(len(norm), np.nan)
    positive = finite & (norm > 0)
    x[positive] = np.log(norm[positive])
    return x, ~finite


def _events(series: LayerSeries, settings: SpikeSettings) -> tuple[list[Spike], int]:
    """Spikes, and how many events the mirrored series has."""
    x, nonfinite = log_norms(series.grad_norm)
    spikes = _nonfinite_spikes(series, nonfinite, settings.merge_gap)
    flagged = np.zeros(len(x), dtype=bool)
    mirrored_flagged = flagged
    present = ~np.isnan(x)
    if present.sum() <= settings.warmup:
        return spikes, 0
    runs: list[tuple[int, int]] = []
    for _ in range(MAX_PASSES):
        base = baseline(x, present & ~flagged & ~mirrored_flagged, window=settings.window, warmup=settings.warmup)
        score = _score(x, base)
        mirrored = _score(-x, Baseline(-base.before, -base.after, base.scale))
        threshold = _threshold(mirrored, settings)
        runs = _runs(x, base.before, score, threshold, series.iteration, settings)
        mirrored_runs = _runs(-x, -base.before, mirrored, threshold, series.iteration, settings)
        now = _mask(runs, len(x))
        now_mirrored = _mask(mirrored_runs, len(x))
        settled = np.array_equal(now, flagged) and np.array_equal(now_mirrored, mirrored_flagged)
        flagged, mirrored_flagged = now, now_mirrored
        if settled:
            break
    for start, stop in runs:
        peak = start + int(np.nanargmax(x[start:stop]))
        height = x[peak] - base.before[peak]
        spikes.append(
            Spike(
                layer=series.name,
                onset=int(series.iteration[start]),
                peak=int(series.iteration[peak]),
                end=int(series.iteration[stop - 1]),
                ratio=float(np.exp(height)),
                z=float(height / base.scale[peak]),
            )
        )
    return sorted(spikes, key=lambda spike: spike.onset), len(mirrored_runs)


def _score(x: np.ndarray, base: Baseline) -> np.ndarray:
    """Noise sd above the higher median (n,); -inf where it cannot be told."""
    score = (x - np.fmax(base.before, base.after)) / base.scale
    return np.where(np.isnan(score) | np.isnan(base.before), -np.inf, score)


def _threshold(mirrored: np.ndarray, settings: SpikeSettings) -> float:
    """The score that chance passes at the rate asked for, from the mirrored scores' declustered peaks."""
    if settings.false_alarms_per_10k is None:
        return settings.z_open
    tested = np.isfinite(mirrored)
    n = int(tested.sum())
    keep = min(MAX_PEAKS, int(PEAK_SHARE * n))
    if keep < 1:
        return settings.z_open
    quantile = float(np.partition(mirrored, len(mirrored) - keep)[len(mirrored) - keep])
    above = mirrored > quantile
    starts, stops = _stretches(above, settings.merge_gap)
    if len(starts) == 0 or quantile <= 0:
        return settings.z_open
    peaks = np.array([mirrored[a:b].max() for a, b in zip(starts, stops, strict=True)])
    beyond = tail_threshold(peaks - quantile, MARGIN * settings.false_alarms_per_10k * n / 10_000)
    return settings.z_open if beyond is None else max(quantile + beyond, settings.z_close)


def _stretches(mask: np.ndarray, gap: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and stops (exclusive) of true stretches; holes of at most ``gap`` are filled."""
    edges = np.diff(np.concatenate([[0], mask.astype(np.int8), [0]]))
    starts, stops = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    apart = starts[1:] - stops[:-1] > gap
    return starts[np.concatenate([[True], apart])] if len(starts) else starts, (
        stops[np.concatenate([apart, [True]])] if len(stops) else stops
    )


def _runs(
    x: np.ndarray,
    before: np.ndarray,
    score: np.ndarray,
    threshold: float,
    iteration: np.ndarray,
    settings: SpikeSettings,
) -> list[tuple[int, int]]:
    """Events as index ranges: stretches above ``z_close`` that somewhere pass threshold and ratio."""
    with np.errstate(invalid="ignore"):
        opens = (score >= threshold) & (x - before >= np.log(settings.ratio_open))
    if not opens.any():
        return []
    starts, stops = _stretches(score >= min(settings.z_close, threshold), 0)
    opened = np.add.reduceat(np.concatenate([opens, [False]]).astype(np.int64), np.stack([starts, stops], 1).ravel())
    events: list[tuple[int, int]] = []
    for start, stop in zip(starts[opened[::2] > 0], stops[opened[::2] > 0], strict=True):
        if events and iteration[start] - iteration[events[-1][1] - 1] - 1 <= settings.merge_gap:
            events[-1] = (events[-1][0], int(stop))
        else:
            events.append((int(start), int(stop)))
    return events


def _mask(runs: list[tuple[int, int]], n: int) -> np.ndarray:
    mask = np.zeros(n, dtype=bool)
    for start, stop in runs:
        mask[start:stop] = True
    return mask


def _nonfinite_spikes(series: LayerSeries, nonfinite: np.ndarray, gap: int) -> list[Spike]:
    starts, stops = _stretches(nonfinite, gap)
    infinite = float("inf")
    return [
        Spike(
            series.name,
            onset=int(series.iteration[a]),
            peak=int(series.iteration[a]),
            end=int(series.iteration[b - 1]),
            ratio=infinite,
            z=infinite,
            kind="nonfinite",
        )
        for a, b in zip(starts, stops, strict=True)
    ]
