"""Early warning for every pair of recorded signal and layer: how often the signal rises before the gradient spikes.

Each pair is judged like a signal in `early_warning`. The p-values are corrected over all pairs (Holm), so that the best
of many pairs is named only if chance does not explain it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from stabilitylab.analysis.detection.settings import SpikeSettings
from stabilitylab.analysis.detection.spikes import detect_spikes
from stabilitylab.analysis.early_warning import HORIZON, false_alarms_of
from stabilitylab.analysis.intervals import median_interval, share_interval
from stabilitylab.analysis.lag import MIN_MATCHES
from stabilitylab.analysis.results import EarlyWarning, Spike
from stabilitylab.analysis.series import LayerSeries, without_duplicates
from stabilitylab.analysis.timeline import Timeline

SHIFTS = 499
BUDGET = 1_000_000
"""Total number of values that are searched for alarms. In very long runs, only the layers with most spikes are used."""
MOST_CELLS = 2_000_000
LEVEL = 0.05


class SignalSource(Protocol):
    """Recorded signals other than the gradient norm. ``load`` returns one series per layer."""

    names: tuple[str, ...]

    def load(self, signal: str, layers: Sequence[str]) -> Sequence[LayerSeries]: ...


def warning_table(
    source: SignalSource,
    spikes: Sequence[Spike],
    timelines: Mapping[str, Timeline],
    settings: SpikeSettings,
    horizon: int = HORIZON,
) -> tuple[tuple[EarlyWarning, ...], str]:
    """One row per pair of signal and layer with spikes, and a note about skipped layers (empty without any)."""
    onsets: dict[str, list[Spike]] = {}
    for spike in spikes:
        onsets.setdefault(spike.layer, []).append(spike)
    names = sorted((name for name in onsets if name in timelines), key=lambda name: (-len(onsets[name]), name))
    kept: list[str] = []
    cost = 0
    for name in names:
        cost += len(timelines[name].rows) * len(source.names)
        if kept and cost > BUDGET:
            break
        kept.append(name)
    left = (
        f"early warning covers only the {len(kept)} layers with most spikes, of {len(names)}" if kept != names else ""
    )
    rows = []
    for signal in source.names if kept else ():
        for series in source.load(signal, kept):
            clean = without_duplicates(series)
            rows.append(_row(signal, clean, onsets[series.name], timelines[series.name], settings, horizon))
    return _corrected(rows), left


def best_warning(rows: Sequence[EarlyWarning]) -> EarlyWarning | None:
    """The pair with the highest hit rate above chance, among those significant after correction; None without any."""
    sure = [row for row in rows if row.p_holm is not None and row.p_holm < LEVEL and row.hit_rate is not None]
    return max(sure, key=lambda row: (row.hit_rate or 0) - (row.hit_rate_by_chance or 0), default=None)


def _row(
    signal: str, series: LayerSeries, spikes: Sequence[Spike], line: Timeline, settings: SpikeSettings, horizon: int
) -> EarlyWarning:
    nothing = EarlyWarning(signal, horizon, len(spikes), 0, 0, 0, layer=series.name)
    if 2 * line.mostly > horizon:
        why = f"not resolvable: rows are {line.mostly} iterations apart, and the horizon is {horizon} iterations"
        return replace(nothing, reason=why)
    if len(spikes) < MIN_MATCHES:
        return replace(nothing, reason=f"not enough data: {len(spikes)} spikes; at least {MIN_MATCHES} are needed")
    settings = replace(settings, rule="stablab", ratio_open=1.0)
    alarms = np.array([event.onset for event in detect_spikes(series, settings)], dtype=np.int64)
    if not len(alarms):
        return replace(nothing, reason=f"{signal} raised no alarm")
    onsets = np.array([spike.onset for spike in spikes], dtype=np.int64)
    first = np.searchsorted(alarms, onsets - horizon)
    warned = first < np.searchsorted(alarms, onsets)
    leads = (onsets - alarms[np.minimum(first, len(alarms) - 1)])[warned].astype(np.float64)
    by_chance = _by_chance(line.times(alarms), line.times(onsets), max(line.span, 1), horizon)
    false = false_alarms_of(spikes, alarms, horizon)
    interval = None
    if len(leads) >= MIN_MATCHES:
        low, high = median_interval(leads)
        wider = line.mostly if line.mostly > 1 else 0
        interval = (low - wider, high + wider)
    return replace(
        nothing,
        num_warned=len(leads),
        num_alarms=len(alarms),
        num_false=false,
        hit_rate=len(leads) / len(spikes),
        hit_ci95=share_interval(len(leads), len(spikes)),
        false_per_10k=10_000 * false / len(series.iteration),
        hit_rate_by_chance=float(by_chance.mean()) / len(spikes),
        p_value=(1 + int((by_chance >= len(leads)).sum())) / (1 + SHIFTS),
        median_lead=float(np.median(leads)) if len(leads) else None,
        lead_ci95=interval,
    )


def _by_chance(alarms: np.ndarray, onsets: np.ndarray, span: int, horizon: int) -> np.ndarray:
    """(SHIFTS,): number of predicted spikes under random circular shifts of all alarms."""
    moves = np.random.default_rng(0).integers(horizon + 1, max(span - horizon, horizon + 2), SHIFTS)
    counts = np.zeros(SHIFTS, dtype=np.int64)
    apart = (onsets[:, None] - alarms[None, :]).ravel()
    part = max(MOST_CELLS // len(apart), 1)
    for first in range(0, SHIFTS, part):
        moved = (apart[None, :] - moves[first : first + part, None]) % span
        warned = ((moved >= 1) & (moved <= horizon)).reshape(len(moved), len(onsets), len(alarms))
        counts[first : first + part] = warned.any(axis=2).sum(axis=1)
    return counts


def _corrected(rows: Sequence[EarlyWarning]) -> tuple[EarlyWarning, ...]:
    """Apply Holm's step-down correction to the rows that have a p-value."""
    known = sorted((row.p_value, i) for i, row in enumerate(rows) if row.p_value is not None)
    corrected, largest = list(rows), 0.0
    for rank, (p_value, i) in enumerate(known):
        largest = max(largest, min(1.0, p_value * (len(known) - rank)))
        corrected[i] = replace(corrected[i], p_holm=largest)
    return tuple(corrected)
