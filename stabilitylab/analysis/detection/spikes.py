"""Spike detection for one layer: stretches in which the gradient norm exceeds its baseline by more than noise explains.

The score of an iteration is the distance of the log norm from the higher of two running medians, one before and one
after the iteration, in noise sd. The median after it excludes drift and level shifts: a spike returns to its level. An
event opens where one score, or several consecutive ones, pass a threshold. The threshold is calibrated on the
*downward* excursions of the same series, so that noise opens events at no more than the configured rate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stabilitylab.analysis.detection.baseline import Baseline, baseline
from stabilitylab.analysis.detection.rules import published_score
from stabilitylab.analysis.detection.settings import RULES, SpikeSettings
from stabilitylab.analysis.detection.shared import mirrored_score_of, score_of, shared_thresholds, too_short
from stabilitylab.analysis.detection.skew import heads, skewed_threshold, stretches
from stabilitylab.analysis.detection.thresholds import thresholds_of
from stabilitylab.analysis.detection.timing import Ranges, longest_of, onsets_of, peaks_of
from stabilitylab.analysis.results import FalseAlarms, LayerSeries, Spike, chance_of

__all__ = ["Detection", "SpikeSettings", "chance_level", "detect", "detect_spikes", "false_alarms", "log_norms"]


MAX_PASSES = 2
"""Detection is repeated: flagged values are removed from the baseline, and the new baseline may flag others."""
STAYED, HIGHER = 1.0, 2.0
"""In noise sd, see `_joined`."""


@dataclass(frozen=True, slots=True)
class Detection:
    """The events of one layer.

    ``spikes``: in order of onset. ``mirrored_events``: number of events in the mirrored series. ``score`` (n,) float32:
    noise sd above the baseline, -inf where unknown. ``starts``: the iteration at which each event first exceeds the
    closing level, at or before its onset. ``threshold``: the score that a single value must pass; NaN for other rules
    and for series that are too short.
    """

    spikes: tuple[Spike, ...]
    mirrored_events: int
    score: np.ndarray
    starts: tuple[int, ...]
    threshold: float = float("nan")


def detect_spikes(series: LayerSeries, settings: SpikeSettings | None = None) -> tuple[Spike, ...]:
    """All events of a layer in order of onset. Empty for a series no longer than the warm-up.

    >>> import numpy as np
    >>> norm = np.exp(np.random.default_rng(0).normal(0, 0.1, 1000))
    >>> norm[500:504] *= 20
    >>> [spike.onset for spike in detect_spikes(LayerSeries("proj", 0, np.arange(1000), norm))]
    [500]
    """
    return detect(series, settings).spikes


def false_alarms(layers: Sequence[LayerSeries], settings: SpikeSettings | None = None) -> FalseAlarms:
    """Estimate the false alarms by running the same detector on the mirrored series (1 / norm), which has no spikes."""
    trained = [layer for layer in layers if layer.trainable]
    return chance_level(trained, [detect(layer, settings) for layer in trained], settings)


def chance_level(
    layers: Sequence[LayerSeries], detections: Sequence[Detection], settings: SpikeSettings | None = None
) -> FalseAlarms:
    """As `false_alarms`, from detections that were already made."""
    asked = (settings or SpikeSettings()).false_alarms_per_10k or 0.0
    events = sum(detection.mirrored_events for detection in detections)
    tested = sum(len(layer.iteration) for layer in layers)
    expected = max(float(events), asked * tested / 10_000)
    spikes = sum(spike.kind == "spike" for detection in detections for spike in detection.spikes)
    return FalseAlarms(events, 10_000 * events / tested if tested else 0.0, expected, chance_of(spikes, expected))


def log_norms(grad_norm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log norms (n,) with NaN for missing values, and a mask (n,) of non-finite values. A norm of 0 is missing."""
    norm = np.asarray(grad_norm, dtype=np.float64)
    finite = np.isfinite(norm)
    x = np.full(len(norm), np.nan)
    np.log(norm, out=x, where=finite & (norm > 0))
    return x, ~finite


def shared_by(layers: Sequence[LayerSeries], settings: SpikeSettings) -> dict[int, float] | None:
    """Thresholds shared by the short layers. None with fewer than two short layers, or too few values in total."""
    short = []
    for layer in layers:
        norm = np.asarray(layer.grad_norm)
        if too_short(int(np.count_nonzero(np.isfinite(norm) & (norm > 0))), settings):
            short.append(log_norms(norm)[0])
    return shared_thresholds(short, settings) if len(short) > 1 else None


def detect(
    series: LayerSeries, settings: SpikeSettings | None = None, shared: Mapping[int, float] | None = None
) -> Detection:
    """Detect the events of one layer with the rule of ``settings``. ``shared``: used if the layer is too short."""
    settings = settings or SpikeSettings()
    x, nonfinite = log_norms(series.grad_norm)
    spikes = [(spike.onset, spike) for spike in _nonfinite_spikes(series, nonfinite, settings.merge_gap)]
    if settings.rule == "stablab":
        own = not too_short(int(np.count_nonzero(~np.isnan(x))), settings)
        events = _search(x, series.iteration, settings, None if own else shared)
    else:
        events = _search_published(x, series, settings)
    if events.runs:
        spikes += _spikes(series, settings, x, events)
    spikes.sort(key=lambda one: one[1].onset)
    return Detection(
        spikes=tuple(spike for _, spike in spikes),
        mirrored_events=events.mirrored_events,
        score=events.score.astype(np.float32),
        starts=tuple(start for start, _ in spikes),
        threshold=events.threshold,
    )


def _spikes(series: LayerSeries, settings: SpikeSettings, x: np.ndarray, events: _Events) -> list[tuple[int, Spike]]:
    """The spikes, each with the iteration at which it first exceeds the closing level."""
    ranges = Ranges.of(events.runs)
    score = events.score[ranges.at]
    starts = ranges.at[ranges.first]
    peak = peaks_of(x, ranges)
    onset = starts
    if events.scale is not None:
        onset = np.minimum(onsets_of(score * events.scale[ranges.at], ranges), peak)
    above = x[peak] - events.centre[peak]
    height = events.score[peak] if events.scale is None else above / events.scale[peak]
    lasted = np.zeros(len(peak), dtype=np.int64)
    # With gaps between rows, the number of consecutive values does not tell how long a spike lasted.
    if len(series.iteration) > 1 and _step(series.iteration) == 1:
        level = settings.z_close if settings.rule == "stablab" else RULES[settings.rule].threshold
        lasted = longest_of(score, level, ranges)
    ends = np.array([stop - 1 for _, stop in events.runs])
    times = (series.iteration[at].tolist() for at in (starts, onset, peak, ends))
    rows = zip(*times, np.exp(above).tolist(), height.tolist(), lasted.tolist(), strict=True)
    return [
        (start, Spike(series.name, onset=begins, peak=top, end=end, ratio=ratio, z=z, lasted=count))
        for start, begins, top, end, ratio, z, count in rows
    ]


@dataclass(frozen=True, slots=True)
class _Events:
    """``runs``: events as index ranges. ``centre`` (n,): log of the baseline. ``score`` (n,): what the events were
    detected by. ``scale`` (n,): noise sd, in which the score is measured; None for published rules, whose events begin
    with their first value."""

    runs: list[tuple[int, int]]
    mirrored_events: int
    centre: np.ndarray
    score: np.ndarray
    scale: np.ndarray | None = None
    threshold: float = float("nan")


def _search(
    x: np.ndarray, iteration: np.ndarray, settings: SpikeSettings, shared: Mapping[int, float] | None
) -> _Events:
    present = ~np.isnan(x)
    if np.count_nonzero(present) <= settings.warmup:
        return _Events([], 0, x, np.full(len(x), -np.inf))
    flagged = mirrored_flagged = np.zeros(len(x), dtype=bool)
    skew_shift: float | None = None  # correction for skew, set in the first pass
    base: Baseline | None = None
    for _ in range(MAX_PASSES):
        usable = present & ~flagged & ~mirrored_flagged
        base = baseline(x, usable, window=settings.window, warmup=settings.warmup, earlier=base)
        score = score_of(x, base)
        mirrored = mirrored_score_of(x, base)
        thresholds = thresholds_of(mirrored, settings) if shared is None else shared
        if skew_shift is None:
            skew_shift = 0.0
            if shared is None and settings.false_alarms_per_10k is not None:
                skew_shift = skewed_threshold(score, mirrored, thresholds[1], settings) - thresholds[1]
        raised = {**thresholds, 1: thresholds[1] + skew_shift}
        runs = _runs(x, base.before, score, raised, iteration, settings)
        mirrored_runs = _runs(x, base.before, mirrored, thresholds, iteration, settings, sign=-1)
        now, now_mirrored = _mask(runs, len(x)), _mask(mirrored_runs, len(x))
        settled = np.array_equal(now, flagged) and np.array_equal(now_mirrored, mirrored_flagged)
        flagged, mirrored_flagged = now, now_mirrored
        if settled:
            break
    assert base is not None
    runs = _joined(runs, score, iteration, settings.merge_gap)
    return _Events(runs, len(mirrored_runs), base.before, score, base.scale, float(raised[1]))


def _search_published(x: np.ndarray, series: LayerSeries, settings: SpikeSettings) -> _Events:
    """Detect events with a published rule, on the norm and on 1 / norm."""
    events = []
    for sign in (1, -1):
        score, centre = published_score(np.exp(sign * x), settings.rule, settings.warmup)
        starts, stops = stretches(score >= RULES[settings.rule].threshold, 0)
        events.append((_merged(starts, stops, series.iteration, settings.merge_gap), score, np.log(centre)))
    runs, score, centre = events[0]
    return _Events(runs, len(events[1][0]), centre, score)


def _runs(
    x: np.ndarray,
    before: np.ndarray,
    score: np.ndarray,
    thresholds: Mapping[int, float],
    iteration: np.ndarray,
    settings: SpikeSettings,
    sign: int = 1,
) -> list[tuple[int, int]]:
    """Events as index ranges: stretches above ``z_close`` with at least one value that exceeds the ratio and belongs to
    a run of consecutive scores that is long enough for one of the thresholds."""
    at = np.flatnonzero(score >= min(settings.z_close, *thresholds.values()))
    if len(at) == 0:
        return []
    far = sign * (x[at] - before[at]) >= np.log(settings.ratio_open)
    if not far.any():
        return []
    reached, passes = score[at], np.zeros(len(at), dtype=bool)
    for count, threshold in thresholds.items():
        above = np.flatnonzero(reached >= threshold)
        lengths = np.diff(np.append(heads(at[above], 0), len(above)))
        passes[above[np.repeat(lengths >= count, lengths)]] = True
    first = heads(at, 0)
    opened = np.logical_or.reduceat(passes & far, first)
    stops = at[np.append(first[1:], len(at)) - 1] + 1
    return _merged(at[first][opened], stops[opened], iteration, settings.merge_gap)


def _step(iteration: np.ndarray) -> int:
    """The median recording step. ``iteration`` has at least two rows."""
    if iteration[-1] - iteration[0] == len(iteration) - 1:
        return 1
    return max(int(np.median(np.diff(iteration))), 1)


def _merged(starts: np.ndarray, stops: np.ndarray, iteration: np.ndarray, gap: int) -> list[tuple[int, int]]:
    """Merge stretches that are at most ``gap`` recording steps apart."""
    events: list[tuple[int, int]] = []
    step = _step(iteration) if len(starts) > 1 else 1
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        if events and iteration[start] - iteration[events[-1][1] - 1] - step <= gap * step:
            events[-1] = (events[-1][0], stop)
        else:
            events.append((start, stop))
    return events


def _joined(
    runs: Sequence[tuple[int, int]], score: np.ndarray, iteration: np.ndarray, gap: int
) -> list[tuple[int, int]]:
    """Join events between which the series did not return to its baseline, such as the parts of a slow decay.

    It has returned if the scores in between have a mean below `STAYED`, or two consecutive ones a mean of at most 0 (in
    a noisy tail, a single low value is common). It may have returned where more than ``gap`` rows are missing. A later
    part that is higher than the event so far by more than `HIGHER` is a new spike.
    """
    events: list[tuple[int, int]] = []
    step = _step(iteration) if len(runs) > 1 else 1
    for start, stop in runs:
        if events and start - events[-1][1] > 1:
            first, end = events[-1]
            between = score[end:start]
            stayed = between.mean() >= STAYED and (between[1:] + between[:-1]).min() > 0
            lower = score[start:stop].max() <= score[first:end].max() + HIGHER
            if stayed and lower and np.diff(iteration[end - 1 : start + 1]).max() <= (gap + 1) * step:
                events[-1] = (first, stop)
                continue
        events.append((start, stop))
    return events


def _mask(runs: Iterable[tuple[int, int]], n: int) -> np.ndarray:
    mask = np.zeros(n, dtype=bool)
    for start, stop in runs:
        mask[start:stop] = True
    return mask


def _nonfinite_spikes(series: LayerSeries, nonfinite: np.ndarray, gap: int) -> list[Spike]:
    starts, stops = stretches(nonfinite, gap)
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
