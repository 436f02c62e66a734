"""One run, from arrays to the whole answer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from stabilitylab.analysis.crosscorr import CrossCorrelator, on_grid
from stabilitylab.analysis.detection.spikes import Detection, SpikeSettings, chance_level, detect
from stabilitylab.analysis.detection.tails import MIN_PEAKS
from stabilitylab.analysis.detection.thresholds import PEAK_SHARE
from stabilitylab.analysis.dips import find_dips, link_dips
from stabilitylab.analysis.early_warning import early_warning
from stabilitylab.analysis.episodes import find_episodes, join_gap
from stabilitylab.analysis.lag import WINDOW, measure_lag, propagation
from stabilitylab.analysis.results import CrossLag, Dip, DipLink, LayerSeries, RunAnalysis, RunSeries

METRIC = "knn_top1"


def analyze_run(
    series: RunSeries,
    *,
    spikes: bool = True,
    lag: bool = True,
    dips: bool = True,
    settings: SpikeSettings | None = None,
    early: tuple[str, Sequence[LayerSeries]] | None = None,
) -> RunAnalysis:
    """Everything asked for. What lacks data is named in ``notes``; nothing is made up for it.

    ``early``: a signal's name and its series by layer, to be held against the spikes that follow.
    """
    settings = settings or SpikeSettings()
    layers = sorted((layer for layer in series.layers if layer.trainable), key=lambda layer: layer.depth)
    clean = [without_duplicates(layer) for layer in layers]
    notes = _layer_notes(clean, settings)
    # The running medians are numpy's and scipy's: threads share them out.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        detections = list(pool.map(lambda layer: detect(layer, settings), clean))
    found = sorted((spike for one in detections for spike in one.spikes), key=lambda spike: spike.onset)

    measured = travels = None
    if lag and layers:
        first, last = clean[0], clean[-1]
        cross = cross_lags(clean, detections, min(WINDOW, max(series.iterations // 5, 1)))
        measured = measure_lag(
            detections[0].spikes,
            detections[-1].spikes,
            source=first.name,
            target=last.name,
            num_iterations=series.iterations,
            cross=cross.get(last.name) if len(layers) > 1 else None,
        )
        names = [(layer.name, layer.depth) for layer in clean]
        travels = propagation(found, names, source=first.name, num_iterations=series.iterations, cross=cross)
        if len(layers) == 1:
            notes.append(f"not enough data for a lag: only one layer has a gradient ({first.name})")
    elif lag:
        notes.append("not enough data for a lag: no layer has a gradient")

    dipped: tuple[Dip, ...] | None = None
    link: DipLink | None = None
    if dips:
        curve = series.evals.get(METRIC)
        if curve is None or np.isfinite(curve.value).sum() < 3:
            have = 0 if curve is None else int(np.isfinite(curve.value).sum())
            few = f"{METRIC} has {have} values and at least 3 are needed (see --set eval.knn_every)"
            notes.append(f"not enough data for dips: {few}")
            dipped = ()
        else:
            dipped = find_dips(curve, found)
            link = link_dips(dipped, found, num_iterations=series.iterations)
    foreseen = None
    if early is not None:
        signal, recorded = early
        clean_signal = [without_duplicates(layer) for layer in recorded]
        foreseen = early_warning(signal, clean_signal, found, num_iterations=series.iterations, settings=settings)
    gap = join_gap(len(clean), settings.false_alarms_per_10k or 1.0)
    return RunAnalysis(
        run=series.run,
        iterations=series.iterations,
        layers=tuple((layer.name, layer.depth) for layer in series.layers),
        spikes=tuple(found) if spikes else None,
        false_alarms=chance_level(clean, detections, settings) if spikes else None,
        episodes=find_episodes(found, num_layers=len(clean), gap=gap) if spikes else None,
        lag=measured,
        propagation=travels,
        dips=dipped,
        dip_link=link,
        early_warning=foreseen,
        settings=settings,
        notes=tuple(notes),
    )


def cross_lags(
    layers: Sequence[LayerSeries], detections: Sequence[Detection], window: int
) -> dict[str, CrossLag | None]:
    """Every layer behind the first, by cross-correlation. Iterations are put on one regular grid."""
    first = layers[0].iteration
    if len(first) < 2:
        return {}
    start, step = int(first[0]), max(int(np.median(np.diff(first))), 1)
    length = (int(first[-1]) - start) // step + 1

    def excess(layer: LayerSeries, found: Detection) -> np.ndarray:
        return on_grid(layer.iteration, found.score, start, step, length)

    correlator = CrossCorrelator(excess(layers[0], detections[0]), window=max(window // step, 1), step=step)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        lags = pool.map(lambda layer, found: correlator.lag_of(excess(layer, found)), layers[1:], detections[1:])
        return dict(zip([layer.name for layer in layers[1:]], lags, strict=True))


def without_duplicates(layer: LayerSeries) -> LayerSeries:
    """Iterations in order and each once; of a repeated iteration the last row stands (a resumed run's)."""
    iteration = np.asarray(layer.iteration)
    if len(iteration) < 2 or bool((np.diff(iteration) > 0).all()):
        return layer
    order = np.argsort(iteration, kind="stable")
    iteration, norm = iteration[order], np.asarray(layer.grad_norm)[order]
    last = np.append(iteration[1:] != iteration[:-1], True)
    return LayerSeries(layer.name, layer.depth, iteration[last], norm[last], layer.trainable)


def _layer_notes(layers: list[LayerSeries], settings: SpikeSettings) -> list[str]:
    """Layers that cannot be judged, by reason, in plain words."""
    reasons: dict[str, list[str]] = {}
    for layer in layers:
        reason = _why_not(layer, settings)
        if reason:
            reasons.setdefault(reason, []).append(layer.name)
    notes = []
    for reason, names in reasons.items():
        who = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more layers"
        notes.append(f"{who}: {reason}")
    short = [layer for layer in layers if not _why_not(layer, settings) and _uncalibrated(layer, settings)]
    if short:
        values = max(len(layer.grad_norm) for layer in short)
        notes.append(
            f"{values} values are too few to fit a threshold to: z = {settings.z_open:g} is used, and the rate of "
            "false alarms asked for is not kept"
        )
    if any(_gaps(layer) for layer in layers):
        notes.append("iterations are missing from the record: a spike inside a gap is not seen")
    return notes


def _uncalibrated(layer: LayerSeries, settings: SpikeSettings) -> bool:
    """Whether the series has too few peaks for a fitted threshold."""
    asked = settings.rule == "stablab" and settings.false_alarms_per_10k is not None
    norm = np.asarray(layer.grad_norm, dtype=np.float64)
    return asked and PEAK_SHARE * ((np.isfinite(norm) & (norm > 0)).sum() - settings.warmup) < MIN_PEAKS


def _why_not(layer: LayerSeries, settings: SpikeSettings) -> str:
    norm = np.asarray(layer.grad_norm, dtype=np.float64)
    finite = norm[np.isfinite(norm)]
    if len(norm) == 0:
        return "no gradients recorded"
    if len(finite) == 0:
        return "not enough data for spikes: every gradient is NaN or infinite"
    if (finite > 0).sum() <= settings.warmup:
        usable = int((finite > 0).sum())
        return f"not enough data: {usable} usable values and more than {settings.warmup} are needed to judge a spike"
    if finite.min() == finite.max():
        return "not enough data: the gradient norm never changes, there is nothing to compare a spike with"
    return ""


def _gaps(layer: LayerSeries) -> bool:
    step = np.diff(layer.iteration)
    return len(step) > 0 and bool(step.max() > step.min())
