"""Spikes of the training loss, found as those of the gradients are, and their order against the layers' spikes."""

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
    """Spikes of the loss and the lag from them to each layer that spikes (negative: the layer first). A loss need not
    double: only the threshold that chance sets counts."""
    curve = series.scalars.get(LOSS)
    if curve is None or len(curve[0]) == 0:
        return LossSpikes((), (), reason="the training loss was not recorded")
    loss = without_duplicates(LayerSeries(LOSS, 0, np.asarray(curve[0], dtype=np.int64), np.asarray(curve[1])))
    usable = np.isfinite(loss.grad_norm)
    if (usable & (loss.grad_norm <= 0)).any():
        return LossSpikes((), (), reason="the loss is not always above 0: its spikes have no ratio")
    if usable.sum() <= settings.warmup:
        few = f"{int(usable.sum())} values, and more than {settings.warmup} are needed"
        return LossSpikes((), (), reason=f"not enough data for spikes of the loss: {few}")
    found = detect(loss, replace(settings, ratio_open=1.0)).spikes
    line = Timeline.of(loss.iteration)
    lags: list[Lag] = []
    for name in layers:
        own = [spike for spike in spikes if spike.layer == name]
        if not own or not found:
            continue
        lags.append(
            measure_lag(
                found,
                own,
                source=LOSS,
                target=name,
                num_iterations=series.iterations,
                timelines=(line, timelines.get(name, line)),
            )
        )
    return LossSpikes(found, tuple(lags))
