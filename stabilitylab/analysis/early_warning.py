"""Early warning: does a signal rise before a layer's gradient spikes?

An alarm is an event of the signal, detected like a spike and at the same false-alarm rate. A spike is predicted if an
alarm opens in its layer within the horizon before it. An alarm is false if no spike opens or continues within the
horizon after it. The onset of both is at half their height, which is known only afterwards: the lead measures the
information in the signal, not the time a live monitor would have to react. The p-value compares with circular shifts
of all alarms.
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
from stabilitylab.analysis.timeline import Timeline

HORIZON = 20
"""In iterations. RMS_t precedes spikes by 1 to 8 iterations (arXiv 2304.13013); beyond 20, a link is implausible."""
SHIFTS = 999


def early_warning(
    signal: str,
    series: Sequence[LayerSeries],
    spikes: Sequence[Spike],
    *,
    num_iterations: int,
    settings: SpikeSettings | None = None,
    horizon: int = HORIZON,
    timelines: Mapping[str, Timeline] | None = None,
) -> EarlyWarning:
    """Judge ``signal`` as an early warning of ``spikes``, over all layers.

    ``series``: the signal of each layer; spikes of layers without the signal are ignored. ``num_iterations``:
    iterations of the run. ``horizon``: in iterations. ``timelines``: the recorded iterations of each layer; None means
    every iteration. If rows are more than half a horizon apart, the lead is not resolvable.
    """
    # The minimum ratio applies to gradients only: an alarm need not double the signal.
    settings = replace(settings or SpikeSettings(), rule="stablab", ratio_open=1.0)
    alarms = {s.name: np.array([e.onset for e in detect_spikes(s, settings)], dtype=np.int64) for s in series}
    ours = {name: [s for s in spikes if s.layer == name] for name in alarms}
    num_spikes, num_alarms = sum(map(len, ours.values())), sum(map(len, alarms.values()))
    if not num_spikes or not num_alarms:
        what = f"{signal} raised no alarm" if num_spikes else f"no spike in a layer with recorded {signal}"
        return EarlyWarning(signal, horizon, num_spikes, 0, num_alarms, num_alarms, reason=what)
    step = max((line.mostly for name, line in (timelines or {}).items() if name in alarms), default=1)
    if 2 * step > horizon:
        why = f"not resolvable: rows are {step} iterations apart, and the horizon is {horizon} iterations"
        return EarlyWarning(signal, horizon, num_spikes, 0, num_alarms, 0, reason=why)
    leads = _leads(ours, alarms, horizon)
    false = sum(false_alarms_of(ours[name], onsets_of_layer, horizon) for name, onsets_of_layer in alarms.items())
    rng = np.random.default_rng(0)
    # Shift over recorded time only: events shifted into a long gap would never match.
    line = next(iter((timelines or {}).values()), None)
    span, held, raised = num_iterations, ours, alarms
    if line is not None and len(line.rows) and line.span != num_iterations:
        span = line.span
        raised = {k: line.times(v) for k, v in alarms.items()}
        held = {k: [replace(s, onset=int(line.times(np.array([s.onset]))[0])) for s in v] for k, v in ours.items()}
    span = max(span, *(int(onsets_of_layer.max(initial=0)) + 1 for onsets_of_layer in raised.values()))
    moves = rng.integers(horizon + 1, max(span - horizon, horizon + 2), SHIFTS)
    by_chance = np.array(
        [len(_leads(held, {k: np.sort((v + move) % span) for k, v in raised.items()}, horizon)) for move in moves]
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
        lead_ci95=_widened(median_interval(leads), step) if enough else None,
        reason="" if enough else f"{len(leads)} spikes predicted; the interval of the lead needs {MIN_MATCHES}",
    )


def _widened(interval: tuple[float, float], step: int) -> tuple[float, float]:
    """Widen the interval by a step on either side: an event may begin up to a step before the row that shows it."""
    return interval if step == 1 else (interval[0] - step, interval[1] + step)


def _leads(spikes: Mapping[str, Sequence[Spike]], alarms: Mapping[str, np.ndarray], horizon: int) -> np.ndarray:
    """For every predicted spike: iterations from its first alarm within the horizon to its onset."""
    leads = []
    for name, onsets_of_layer in spikes.items():
        onsets = np.array([s.onset for s in onsets_of_layer], dtype=np.int64)
        first = np.searchsorted(alarms[name], onsets - horizon)
        warned = first < np.searchsorted(alarms[name], onsets)
        leads.append(
            (onsets - alarms[name][np.minimum(first, max(len(alarms[name]) - 1, 0))])[warned]
            if len(alarms[name])
            else onsets[:0]
        )
    return np.concatenate(leads).astype(np.float64)


def false_alarms_of(spikes: Sequence[Spike], alarms: np.ndarray, horizon: int) -> int:
    """Number of alarms with no spike that opens or continues within the horizon after the alarm."""
    answered = np.zeros(len(alarms), dtype=bool)
    for spike in spikes:
        answered |= (spike.onset <= alarms + horizon) & (spike.end >= alarms)
    return int((~answered).sum())
