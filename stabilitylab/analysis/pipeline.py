"""The analysis of one run: from arrays to a `RunAnalysis`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from stabilitylab.analysis.collapse import Collapse, find_collapse
from stabilitylab.analysis.crosscorr import cross_lags
from stabilitylab.analysis.detection.spikes import SpikeSettings, chance_level, detect, shared_by
from stabilitylab.analysis.dips import find_dips, link_dips
from stabilitylab.analysis.drift import find_drifts
from stabilitylab.analysis.early_warning import early_warning
from stabilitylab.analysis.ends import find_ends
from stabilitylab.analysis.episodes import find_episodes, join_gap
from stabilitylab.analysis.lag import Reach, measure_lag, propagation
from stabilitylab.analysis.loss_spikes import find_loss_spikes
from stabilitylab.analysis.metrics import Metric, choose_metric
from stabilitylab.analysis.notes import layer_notes, short_notes, spikes_reason
from stabilitylab.analysis.resolution import resolution_of
from stabilitylab.analysis.results import Dip, DipLink, JudgedMetric, RunAnalysis
from stabilitylab.analysis.series import EvalCurve, LayerSeries, RunSeries, without_duplicates
from stabilitylab.analysis.timeline import Timeline
from stabilitylab.analysis.warning_table import SignalSource, warning_table
from stabilitylab.errors import NoDataError


def analyze_run(
    series: RunSeries,
    *,
    spikes: bool = True,
    lag: bool = True,
    dips: bool = True,
    settings: SpikeSettings | None = None,
    metric: str | None = None,
    goal: str | None = None,
    first: str | None = None,
    last: str | None = None,
    early: tuple[str, Sequence[LayerSeries]] | None = None,
    signals: SignalSource | None = None,
) -> RunAnalysis:
    """Analyse one run. Parts that lack data are None or inconclusive, and ``notes`` says why.

    ``spikes``, ``lag``, ``dips``: which parts to compute. ``settings``: of spike detection. ``metric``, ``goal``: the
    metric in which dips are detected; the default is the one that the run names, else that of `choose_metric`.
    ``first``, ``last``: the layers between which the lag is measured; see `find_ends`. ``early``: name and series by
    layer of a signal to test as an early warning. ``signals``: all recorded signals other than the gradient norm, for
    the table of early warnings.

    Raises:
        NoDataError: ``metric`` was not recorded or has no values.
        ConfigError: ``goal`` contradicts the metric, or see `find_ends`.
    """
    settings = settings or SpikeSettings()
    layers = sorted((layer for layer in series.layers if layer.trainable), key=lambda layer: layer.depth)
    clean = [without_duplicates(layer) for layer in layers]
    chosen, why_not = _metric(series, metric, goal)
    evaluations = None if chosen is None else chosen.curve.iteration
    resolution = resolution_of(clean, rows=series.rows, evaluations=evaluations)
    notes = layer_notes(clean, settings, resolution)
    timelines = _timelines(clean, means=series.rows == "mean")
    _reuse_freed_memory()
    # The running medians of numpy and scipy release the GIL, so threads run them in parallel.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        shared = shared_by(clean, settings)
        detections = list(pool.map(lambda layer: detect(layer, settings, shared), clean))
    notes += short_notes(clean, settings, shared is not None)
    all_spikes = sorted((spike for one in detections for spike in one.spikes), key=lambda spike: spike.onset)

    unjudged = spikes_reason(clean, settings)
    measured = travels = None
    ends = find_ends(clean, series, first=first, last=last)
    if lag and ends is not None:
        notes += ends.notes
        on_path = [clean[i] for i in ends.path]
        source, target = clean[ends.first], clean[ends.last]
        window = Reach.of(resolution.mostly, series.iterations).window
        lines = [timelines[layer.name] for layer in on_path]
        cross = cross_lags(on_path, [detections[i].score for i in ends.path], lines, window)
        measured = measure_lag(
            detections[ends.first].spikes,
            detections[ends.last].spikes,
            source=source.name,
            target=target.name,
            num_iterations=series.iterations,
            cross=cross.get(target.name) if len(on_path) > 1 else None,
            timelines=(timelines[source.name], timelines[target.name]),
        )
        if unjudged and len(on_path) > 1:
            measured = replace(measured, reason=f"spikes are not judged: {unjudged}")
        names = [(layer.name, layer.depth) for layer in on_path]
        travels = propagation(
            all_spikes, names, source=source.name, num_iterations=series.iterations, cross=cross, timelines=timelines
        )
        if len(on_path) == 1:
            travels = ()  # propagation needs two layers
            notes.append(f"not enough data for a lag: only one layer has a gradient ({source.name})")
    elif lag:
        notes.append("not enough data for a lag: no layer has a gradient")

    dipped: tuple[Dip, ...] | None = None
    link: DipLink | None = None
    judged: JudgedMetric | None = None
    if dips:
        if chosen is None:
            judged = JudgedMetric(name="", chosen=why_not)
            notes.append(f"dips are not judged: {why_not}")
        else:
            judged = chosen.summary()
            dipped = find_dips(chosen.judged, all_spikes, min_depth=chosen.min_depth, binomial=chosen.binomial)
            since = min((int(layer.iteration[0]) for layer in clean if len(layer.iteration)), default=0)
            link = link_dips(dipped, all_spikes, num_iterations=series.iterations, first=since)
    foreseen = None
    if early is not None:
        signal, recorded = early
        clean_signal = [without_duplicates(layer) for layer in recorded]
        foreseen = early_warning(
            signal, clean_signal, all_spikes, num_iterations=series.iterations, settings=settings, timelines=timelines
        )
    warnings = None
    if signals is not None and spikes:
        warnings, left_out = warning_table(signals, all_spikes, timelines, settings)
        if left_out:
            notes.append(left_out)
    drifts, few_for_drift = find_drifts(clean)
    if spikes and few_for_drift and clean:
        notes.append(few_for_drift)
    step = resolution.step
    gap = join_gap(len(clean), settings.false_alarms_per_10k or 1.0, step)
    return RunAnalysis(
        run=series.run,
        iterations=series.iterations,
        layers=tuple((layer.name, layer.depth) for layer in series.layers),
        spikes=tuple(all_spikes) if spikes else None,
        spikes_reason=unjudged,
        false_alarms=chance_level(clean, detections, settings) if spikes else None,
        episodes=find_episodes(all_spikes, num_layers=len(clean), gap=gap, step=resolution.mostly) if spikes else None,
        lag=measured,
        propagation=travels,
        dips=dipped,
        dip_link=link,
        metric=judged,
        early_warning=foreseen,
        early_warnings=warnings,
        settings=settings,
        notes=tuple(notes),
        resolution=resolution,
        drifts=drifts if spikes else None,
        collapse=_collapse(series, chosen) if dips else None,
        loss_spikes=find_loss_spikes(series, all_spikes, [layer.name for layer in clean], settings, timelines)
        if spikes
        else None,
    )


LARGEST_HEAP_BLOCK = 31 << 20


def _reuse_freed_memory() -> None:
    """Let the allocator keep freed arrays, for the next layer, in place of returning each to the operating system.

    glibc serves blocks from its heap up to the size of the largest block freed so far, at most 32 MB. Without this, a
    sixth of the processor time of the analysis is spent on page faults. Other allocators are not affected.
    """
    np.empty(LARGEST_HEAP_BLOCK, dtype=np.uint8)


def _collapse(series: RunSeries, chosen: Metric | None) -> Collapse:
    if chosen is None:
        return find_collapse(series, why="no metric has enough evaluations")
    return find_collapse(series, _accuracy(chosen))


def _accuracy(chosen: Metric | None) -> tuple[str, EvalCurve] | None:
    """Name and judged curve if the metric is a proportion for which higher is better; else None."""
    return (chosen.name, chosen.judged) if chosen is not None and chosen.share and chosen.goal == "max" else None


def _timelines(layers: Sequence[LayerSeries], *, means: bool) -> dict[str, Timeline]:
    """Timeline of each layer. Layers with the same iterations share one."""
    made: list[tuple[np.ndarray, Timeline]] = []
    timelines = {}
    for layer in layers:
        known = next((line for rows, line in made if rows is layer.iteration), None)
        known = known or next((line for rows, line in made if np.array_equal(rows, layer.iteration)), None)
        if known is None:
            known = Timeline.of(layer.iteration, means=means)
            made.append((layer.iteration, known))
        timelines[layer.name] = known
    return timelines


def _metric(series: RunSeries, metric: str | None, goal: str | None) -> tuple[Metric | None, str]:
    """The judged metric, or None and the reason. Raises NoDataError only for a metric that the caller named."""
    own = series.metric if metric is None else metric
    towards = series.goal if goal is None and metric is None else goal
    try:
        return choose_metric(series.evals, series.loss, metric=own, goal=towards), ""
    except NoDataError as error:
        if metric is not None:
            raise
        return None, str(error)
