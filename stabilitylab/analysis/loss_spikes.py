"""Spikes of the training loss, detected like gradient spikes, and their lag to the spikes of the layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from stabilitylab.analysis.detection.settings import SpikeSettings
from stabilitylab.analysis.detection.spikes import detect
from stabilitylab.analysis.lag import measure_lag
from stabilitylab.analysis.results import Lag, LossSpikes, Spike
from stabilitylab.analysis.series import LayerSeries, RunSeries, without_duplicates
from stabilitylab.analysis.timeline import Timeline

LOSS = "loss"


def find_loss_spikes(
    series: RunSeries,
    spikes: Sequence[Spike],
    layers: Sequence[str],
    settings: SpikeSettings,
    timelines: Mapping[str, Timeline],
) -> LossSpikes:
    """Spikes of the loss and the lag from them to each of ``layers`` with spikes (negative: the layer first).

    No minimum ratio applies: a loss spike need not double the loss.
    """
    curve = series.scalars.get(LOSS)
    if curve is None or len(curve[0]) == 0:
        return LossSpikes((), (), reason="the training loss was not recorded")
    loss = without_duplicates(LayerSeries(LOSS, 0, np.asarray(curve[0], dtype=np.int64), np.asarray(curve[1])))
    usable = np.isfinite(loss.grad_norm)
    if (usable & (loss.grad_norm <= 0)).any():
        return LossSpikes((), (), reason="the loss is not always positive, so its spikes have no ratio")
    if usable.sum() <= settings.warmup:
        few = f"{int(usable.sum())} values; more than {settings.warmup} are needed"
        return LossSpikes((), (), reason=f"not enough data for loss spikes: {few}")
    loss_spikes = detect(loss, replace(settings, ratio_open=1.0)).spikes
    line = Timeline.of(loss.iteration)
    lags: list[Lag] = []
    for name in layers:
        own = [spike for spike in spikes if spike.layer == name]
        if not own or not loss_spikes:
            continue
        lags.append(
            measure_lag(
                loss_spikes,
                own,
                source=LOSS,
                target=name,
                num_iterations=series.iterations,
                timelines=(line, timelines.get(name, line)),
            )
        )
    return LossSpikes(loss_spikes, tuple(lags))
