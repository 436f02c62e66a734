"""Early warning: does a signal rise before a layer's gradient spikes?

An alarm is an event of the signal, found as spikes are, at the same false-alarm rate. A spike is warned of when an
alarm opens in its layer within the horizon before it; an alarm is false when no spike opens or runs within the
horizon after it. Both open at half their height, which is known only afterwards: a lead says what the signal knew, not
when somebody watching could have acted. Chance is what circular shifts of all alarms give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from stabilitylab.analysis.detection.settings import SpikeSettings
from stabilitylab.analysis.detection.spikes import detect_spikes
from stabilitylab.analysis.intervals import median_interval, share_interval
from stabilitylab.analysis.lag import MIN_MATCHES
from stabilitylab.analysis.results import EarlyWarning, LayerSeries, Spike

HORIZON = 20
"""RMS_t foresees spikes by 1 to 8 iterations (arXiv 2304.13013); later ones than 20 are hardly the same story."""
SHIFTS = 999


def early_warning(
    signal: str,
    series: Sequence[LayerSeries],
    spikes: Sequence[Spike],
    *,
    num_iterations: int,
    settings: SpikeSettings | None = None,
    horizon: int = HORIZON,
) -> EarlyWarning:
    """``series``: the signal of each layer. Spikes of layers without the signal are left out."""
    # A warning need not double anything: the ratio rule is for gradients.
    settings = replace(settings or SpikeSettings(), rule="stablab", ratio_open=1.0)
    alarms = {s.name: np.array([e.onset for e in detect_spikes(s, settings)], dtype=np.int64) for s in series}
    ours = {name: [s for s in spikes if s.layer == name] for name in alarms}
    num_spikes, num_alarms = sum(map(len, ours.values())), sum(map(len, alarms.values()))
    if not num_spikes or not num_alarms:
        what = f"no alarm of {signal}" if num_spikes else f"no spike in a layer whose {signal} is recorded"
        return EarlyWarning(signal, horizon, num_spikes, 0, num_alarms, num_alarms, reason=what)
    leads = _leads(ours, alarms, horizon)
    false = sum(_false(ours[name], found, horizon) for name, found in alarms.items())
    rng = np.random.default_rng(0)
    span = max(num_iterations, *(int(found.max(initial=0)) + 1 for found in alarms.values()))
    moves = rng.integers(horizon + 1, max(span - horizon, horizon + 2), SHIFTS)
    by_chance = np.array(
        [len(_leads(ours, {k: np.sort((v + move) % span) for k, v in alarms.items()}, horizon)) for move in moves]
    )
    enough = len(leads) >= MIN_MATCHES
    tested = sum(len(s.iteration) for s in series)
    return EarlyWarning(
        signal=signal,
        horizon=horizon,
        num_spikes=num_spikes,
        num_warned=len(leads),
        num_alarms=num_alarms,
        num_false=false,
        hit_rate=len(leads) / num_spikes,
        hit_ci95=share_interval(len(leads), num_spikes),
        false_per_10k=10_000 * false / tested,
        hit_rate_by_chance=float(by_chance.mean()) / num_spikes,
        p_value=(1 + int((by_chance >= len(leads)).sum())) / (1 + SHIFTS),
        median_lead=float(np.median(leads)) if len(leads) else None,
        lead_ci95=median_interval(leads) if enough else None,
        reason="" if enough else f"{len(leads)} spikes are warned of; an interval of the lead needs {MIN_MATCHES}",
    )


def _leads(spikes: Mapping[str, Sequence[Spike]], alarms: Mapping[str, np.ndarray], horizon: int) -> np.ndarray:
    """For every spike that is warned of: iterations from its first alarm within the horizon to its onset."""
    leads = []
    for name, found in spikes.items():
        onsets = np.array([s.onset for s in found], dtype=np.int64)
        first = np.searchsorted(alarms[name], onsets - horizon)
        warned = first < np.searchsorted(alarms[name], onsets)
        leads.append(
            (onsets - alarms[name][np.minimum(first, max(len(alarms[name]) - 1, 0))])[warned]
            if len(alarms[name])
            else onsets[:0]
        )
    return np.concatenate(leads).astype(np.float64)


def _false(spikes: Sequence[Spike], alarms: np.ndarray, horizon: int) -> int:
    """Alarms with no spike that opens, or still runs, from the alarm to the horizon after it."""
    answered = np.zeros(len(alarms), dtype=bool)
    for spike in spikes:
        answered |= (spike.onset <= alarms + horizon) & (spike.end >= alarms)
    return int((~answered).sum())
