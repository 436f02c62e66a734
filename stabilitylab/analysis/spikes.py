"""Gradient spikes of one layer: robust, one-sided, scale free, with a false-alarm rate that is kept.

On x = log(grad_norm) an event opens where z >= the threshold and the value is at least twice its baseline, and
ends where z falls below 3; gaps of up to 3 iterations are bridged. Flagged values never enter the baseline.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from stabilitylab.analysis.baseline import trailing_baseline
from stabilitylab.analysis.results import FalseAlarms, LayerSeries, Spike
from stabilitylab.analysis.tail import tail_threshold

_MAX_ROUNDS = 12


@dataclass(frozen=True, slots=True)
class SpikeSettings:
    """``false_alarms_per_10k``: events that noise alone may raise, per 10,000 iterations and layer.

    ``max_width``: an event that lasts longer is a change of level, and the baseline starts anew there.
    """

    window: int = 201
    z_open: float = 6.0
    ratio_open: float = 2.0
    z_close: float = 3.0
    merge_gap: int = 3
    warmup: int = 50
    max_width: int = 100
    false_alarms_per_10k: float = 1.0


@dataclass(frozen=True, slots=True)
class _Event:
    onset: int
    peak: int
    end: int


@dataclass(frozen=True, slots=True)
class _Detection:
    """Positions, not iterations. ``z`` (n,) is NaN where there is no baseline."""

    events: tuple[_Event, ...]
    z: np.ndarray
    ratio: np.ndarray
    shifts: tuple[_Event, ...] = ()


def detect_spikes(series: LayerSeries, settings: SpikeSettings | None = None) -> tuple[Spike, ...]:
    """Spikes and non-finite events of a layer, by onset. Non-finite values are events of their own kind."""
    settings = settings or SpikeSettings()
    with np.errstate(divide="ignore", invalid="ignore"):
        x = np.log(np.asarray(series.grad_norm, np.float64))
    nonfinite = ~np.isfinite(np.asarray(series.grad_norm, np.float64))
    x[~np.isfinite(x)] = np.nan  # a zero gradient has no logarithm and is no spike
    found = _detect(x, settings)
    at = series.iteration
    spikes = [
        Spike(series.name, *_span(at, e), ratio=float(found.ratio[e.peak]), z=float(found.z[e.peak]), kind=kind)
        for events, kind in ((found.events, "spike"), (found.shifts, "level-shift"))
        for e in events
    ]
    spikes += [
        Spike(series.name, int(at[a]), int(at[a]), int(at[b]), math.inf, math.inf, "nonfinite")
        for a, b in _runs(nonfinite, settings.merge_gap)
    ]
    return tuple(sorted(spikes, key=lambda spike: spike.onset))


def false_alarms(layers: Iterable[LayerSeries], settings: SpikeSettings | None = None) -> FalseAlarms:
    """What chance alone flags: the same detector on the mirrored series, whose spikes are downward excursions."""
    settings = settings or SpikeSettings()
    events = tested = 0
    for layer in layers:
        with np.errstate(divide="ignore", invalid="ignore"):
            x = -np.log(np.asarray(layer.grad_norm, np.float64))
        x[~np.isfinite(x)] = np.nan
        found = _detect(x, settings)
        events += len(found.events)
        tested += int(np.isfinite(found.z).sum())
    return FalseAlarms(events, 10_000 * events / tested if tested else 0.0)


def _span(at: np.ndarray, event: _Event) -> tuple[int, int, int]:
    return int(at[event.onset]), int(at[event.peak]), int(at[event.end])


def _detect(x: np.ndarray, settings: SpikeSettings) -> _Detection:
    """Detect on the log series ``x`` (n,), NaN where there is no value. Starts anew after a change of level."""
    n = len(x)
    z, ratio = np.full(n, np.nan), np.full(n, np.nan)
    events: list[_Event] = []
    shifts: list[_Event] = []
    start = 0
    while start < n:
        part, part_z, part_ratio = _detect_stationary(x[start:], settings)
        long = next((e for e in part if e.end - e.onset >= settings.max_width), None)
        stop = start + long.onset if long else n
        kept = [
            _Event(e.onset + start, e.peak + start, e.end + start) for e in part if long is None or e.end < long.onset
        ]
        events += kept
        z[start:stop], ratio[start:stop] = part_z[: stop - start], part_ratio[: stop - start]
        if long:
            z[stop], ratio[stop] = part_z[long.onset], part_ratio[long.onset]
            shifts.append(_Event(stop, stop, stop))
        start = stop if stop > start else n
    return _Detection(tuple(events), z, ratio, tuple(shifts))


def _detect_stationary(x: np.ndarray, settings: SpikeSettings) -> tuple[list[_Event], np.ndarray, np.ndarray]:
    """Events, z and ratio.

    Flags and baseline depend on each other, but the baseline of a value depends on earlier flags alone. So
    recomputing both until nothing changes gives exactly what going through the series value by value gives.
    """
    flagged = np.zeros(len(x), bool)
    events: list[_Event] = []
    seen: set[bytes] = set()
    for _ in range(_MAX_ROUNDS):
        baseline = trailing_baseline(x, flagged, settings.window, settings.warmup)
        residual = x - baseline.median
        with np.errstate(invalid="ignore", over="ignore"):
            z, ratio = residual / baseline.scale, np.exp(residual)
        opening = tail_threshold(
            -z[~flagged], settings.false_alarms_per_10k / 10_000, floor=settings.z_open, u_close=settings.z_close
        )
        events = _events(z, ratio, opening, settings)
        now = np.zeros(len(x), bool)
        for event in events:
            now[event.onset : event.end + 1] = True
        if np.array_equal(now, flagged) or now.tobytes() in seen:
            break
        seen.add(now.tobytes())
        flagged = now
    return events, z, ratio


def _events(z: np.ndarray, ratio: np.ndarray, opening: float, settings: SpikeSettings) -> list[_Event]:
    with np.errstate(invalid="ignore"):
        opens = (z >= opening) & (ratio >= settings.ratio_open)
        lasts = z >= settings.z_close
    if not opens.any():
        return []
    found = []
    for first, last in _runs(lasts, settings.merge_gap):
        inside = np.flatnonzero(opens[first : last + 1])
        if len(inside):
            onset = first + int(inside[0])
            found.append(_Event(onset, onset + int(np.nanargmax(z[onset : last + 1])), last))
    return found


def _runs(mask: np.ndarray, gap: int) -> list[tuple[int, int]]:
    """First and last position of each run of True, runs at most ``gap`` False values apart merged."""
    places = np.flatnonzero(mask)
    if not len(places):
        return []
    breaks = np.flatnonzero(np.diff(places) > gap + 1)
    firsts, lasts = places[np.r_[0, breaks + 1]], places[np.r_[breaks, len(places) - 1]]
    return [(int(a), int(b)) for a, b in zip(firsts, lasts, strict=True)]
