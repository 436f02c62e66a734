"""One run's whole answer."""

from __future__ import annotations

import numpy as np

from stabilitylab.analysis.dips import DipSettings, find_dips, link_dips
from stabilitylab.analysis.lag import measure_lag, propagation
from stabilitylab.analysis.results import Lag, LayerLag, LayerSeries, RunAnalysis, RunSeries, Spike
from stabilitylab.analysis.spikes import SpikeSettings, detect_spikes, false_alarms


def analyze_run(
    series: RunSeries,
    *,
    spikes: bool = True,
    lag: bool = True,
    dips: bool = True,
    settings: SpikeSettings | None = None,
    dip_settings: DipSettings | None = None,
) -> RunAnalysis:
    """Spikes of every trained layer, lag from the first trained layer, dips of ``knn_top1``.

    Where data does not suffice, ``notes`` say what is missing; no number is made up.
    """
    settings = settings or SpikeSettings()
    trained = [layer for layer in series.layers if layer.trainable and len(layer.iteration)]
    notes = _notes(series, trained, settings)
    found = tuple(
        sorted((s for layer in trained for s in detect_spikes(layer, settings)), key=lambda s: (s.onset, s.peak))
    )
    first_to_last, waves = _lag(series, trained, found, notes) if lag else (None, None)
    curve = series.evals.get("knn_top1")
    if dips and curve is None:
        notes.append("no kNN accuracy recorded: dips cannot be looked for")
    elif dips and curve is not None and np.isfinite(curve.value).sum() < 3:
        notes.append("fewer than 3 kNN evaluations: dips cannot be looked for")
    dipped = find_dips(curve, found, dip_settings) if dips and curve is not None else ()
    return RunAnalysis(
        run=series.run,
        iterations=series.iterations,
        layers=tuple((layer.name, layer.depth) for layer in series.layers),
        spikes=found if spikes else None,
        false_alarms=false_alarms(trained, settings) if spikes else None,
        lag=first_to_last,
        propagation=waves,
        dips=dipped if dips else None,
        dip_link=link_dips(dipped, found, series.iterations, dip_settings) if dips else None,
        notes=tuple(notes),
    )


def _notes(series: RunSeries, trained: list[LayerSeries], settings: SpikeSettings) -> list[str]:
    notes = []
    if not trained:
        notes.append("no gradients recorded: spikes and lag cannot be looked for")
    short = [layer.name for layer in trained if len(layer.iteration) <= settings.warmup]
    if short:
        notes.append(f"{_names(short)}: {settings.warmup} iterations or fewer, too short to tell a spike from a start")
    lost = [layer.name for layer in trained if len(layer.iteration) and not np.isfinite(layer.grad_norm).any()]
    if lost:
        notes.append(f"{_names(lost)}: no finite gradient at all")
    frozen = [layer.name for layer in series.layers if not layer.trainable]
    if frozen:
        notes.append(f"{_names(frozen)}: frozen, so without gradient")
    return notes


def _names(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _lag(
    series: RunSeries, trained: list[LayerSeries], found: tuple[Spike, ...], notes: list[str]
) -> tuple[Lag | None, tuple[LayerLag, ...] | None]:
    if len(trained) < 2:
        notes.append("fewer than two trained layers: there is no lag to measure")
        return None, None
    first, last = trained[0].name, trained[-1].name
    measured = measure_lag(
        [s for s in found if s.layer == first],
        [s for s in found if s.layer == last],
        source=first,
        target=last,
        num_iterations=series.iterations,
    )
    return measured, propagation(found, [(layer.name, layer.depth) for layer in trained], first)
