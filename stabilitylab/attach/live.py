"""``record(on_spike=...)``: call a function during training when a gradient spike was detected."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from stabilitylab.analysis.detection.settings import SpikeSettings
from stabilitylab.analysis.detection.spikes import detect, shared_by
from stabilitylab.analysis.events import Spike
from stabilitylab.analysis.series import LayerSeries, without_duplicates
from stabilitylab.recording.recorder import Sink

KEPT = 1500
"""Number of recorded iterations that are searched: several baseline windows, independent of the length of the run."""
OnSpike = Callable[[Spike], object]


class SpikeSink:
    """Forwards rows to ``sink`` and calls ``on_spike`` once for each spike, after the spike has ended and its rows are
    published. Exceptions from ``on_spike`` propagate to ``rec.step()``, so the function can stop the training."""

    def __init__(self, sink: Sink, names: Sequence[str], on_spike: OnSpike) -> None:
        self.sink, self.names, self.on_spike = sink, list(names), on_spike
        self.settings = SpikeSettings()
        self._rows: dict[int, tuple[list[np.ndarray], list[np.ndarray]]] = {}
        self._reported: dict[str, int] = {}
        self._new = False

    def append(self, table: str, columns: Mapping[str, Any]) -> None:
        self.sink.append(table, columns)
        if table != "layer_stats" or columns.get("grad_norm") is None:
            return
        norms = np.ma.filled(np.ma.asarray(columns["grad_norm"], dtype=np.float64), np.nan)
        missing = np.ma.getmaskarray(np.ma.asarray(columns["grad_norm"]))
        iteration = np.broadcast_to(np.asarray(columns["iteration"]), norms.shape)
        ids = np.broadcast_to(np.asarray(columns["layer_id"]), norms.shape)
        for layer_id in np.unique(ids[~missing]).tolist():
            own = (ids == layer_id) & ~missing
            rows = self._rows.setdefault(layer_id, ([], []))
            rows[0].append(iteration[own].astype(np.int64))
            rows[1].append(norms[own])
            self._new = True

    def event(self, iteration: int, kind: str, detail: str = "") -> None:
        self.sink.event(iteration, kind, detail)

    def publish(self, wait: bool = False) -> None:
        self.sink.publish(wait)
        if self._new:
            self._new = False
            for spike in self._found():
                self.on_spike(spike)

    def _found(self) -> list[Spike]:
        layers = []
        for layer_id, (iterations, norms) in self._rows.items():
            iteration, norm = np.concatenate(iterations)[-KEPT:], np.concatenate(norms)[-KEPT:]
            self._rows[layer_id] = ([iteration], [norm])
            layers.append(without_duplicates(LayerSeries(self.names[layer_id], layer_id, iteration, norm)))
        shared = shared_by(layers, self.settings)
        new_spikes = []
        for layer in layers:
            if len(layer.iteration) < 2:
                continue
            step = max(int(np.median(np.diff(layer.iteration))), 1)
            over = int(layer.iteration[-1]) - (self.settings.merge_gap + 1) * step
            for spike in detect(layer, self.settings, shared).spikes:
                if spike.end <= over and spike.onset > self._reported.get(layer.name, -1):
                    self._reported[layer.name] = spike.end
                    new_spikes.append(spike)
        return sorted(new_spikes, key=lambda spike: spike.onset)
