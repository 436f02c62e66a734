"""Snapshots of a run, read from its store while it is being written or afterwards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from stabilitylab.analysis.detection.baseline import baseline
from stabilitylab.analysis.detection.spikes import SpikeSettings, detect, log_norms, shared_by
from stabilitylab.analysis.metrics import default_metric
from stabilitylab.analysis.results import LayerSeries, Spike

if TYPE_CHECKING:
    from stabilitylab.store.reader import RunReader

TAIL = 1500
"""Number of recorded iterations that each refresh analyses: several baseline windows, independent of the length."""
FIRST = 10_000
"""Number of recorded iterations in the first refresh, about a second for a deep model. `stablab analyze` uses all."""
SETTLED = SpikeSettings().window
"""Number of recorded iterations after a spike until it is final."""
_QUIET_EVENTS = ("checkpoint", "mitigation")


@dataclass(frozen=True, slots=True)
class LayerNow:
    """The latest gradient norm of a layer: as a multiple of its usual norm, and in noise sd above it (None: too
    early)."""

    name: str
    norm: float
    ratio: float | None
    z: float | None


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment. ``layers``: by decreasing z. ``spikes``: by onset, from iteration ``since`` on. ``evals``:
    values of ``metric``, by which the run is judged."""

    run: str
    status: str
    iterations: int
    total: int | None
    rate: float | None
    loss: np.ndarray
    evals: np.ndarray
    layers: tuple[LayerNow, ...]
    spikes: tuple[Spike, ...]
    events: tuple[str, ...]
    since: int = 0
    step: int = 1
    metric: str = ""

    def over(self) -> list[Spike]:
        """Spikes that have ended, according to the recorded values."""
        return [s for s in self.spikes if s.end < self.iterations - 4 * self.step or self.status != "running"]

    def provisional(self, spike: Spike) -> bool:
        """Whether later values may still change the result: a spike's score depends on the next 200 values."""
        return self.status == "running" and spike.end > self.iterations - SETTLED * self.step

    @property
    def seconds_left(self) -> float | None:
        if self.total is None or not self.rate or self.status != "running":
            return None
        return max(self.total - self.iterations, 0) / self.rate


@dataclass
class Watcher:
    """Takes snapshots of one run. It remembers earlier spikes, so that only the latest rows are read again."""

    reader: RunReader
    settings: SpikeSettings = field(default_factory=SpikeSettings)
    _spikes: dict[str, list[Spike]] = field(default_factory=dict)
    _seen: int = 0
    _since: int = 0

    def snapshot(self) -> Snapshot:
        """The current state of the run."""
        self.reader.refresh()
        reader, iterations = self.reader, self.reader.num_iterations
        table = reader.query("SELECT iteration, epoch, loss, seconds FROM iterations ORDER BY iteration").fetchnumpy()
        seconds = _plain(table["seconds"])[-50:]
        mean = float(seconds.mean()) if len(seconds) and np.isfinite(seconds).all() else 0.0
        curves = reader.evals()
        section = reader.config.get("analysis")
        metric = section.get("metric") if isinstance(section, dict) else None
        if metric not in curves:
            metric = default_metric(dict.fromkeys(curves)) or ""
        return Snapshot(
            run=reader.name,
            status=reader.status,
            iterations=iterations,
            total=_total(reader.config, table, iterations),
            rate=1 / mean if mean > 0 else None,
            loss=_plain(table["loss"]),
            metric=metric,
            evals=_plain(curves[metric]["value"]) if metric else np.array([]),
            layers=self._layers(iterations),
            spikes=tuple(
                sorted((s for spikes_of_layer in self._spikes.values() for s in spikes_of_layer), key=lambda s: s.onset)
            ),
            events=tuple(
                f"{event.kind} at {event.iteration}" + (f": {event.detail}" if event.detail else "")
                for event in reader.events()
                if event.kind not in _QUIET_EVENTS
            ),
            since=self._since,
            step=self._step(),
        )

    def _layers(self, iterations: int) -> tuple[LayerNow, ...]:
        # The first refresh reads many rows; later ones read only new rows and the baseline before them.
        step = self._step()
        if self._seen == 0:
            since = self._since = max(0, iterations - FIRST * step)
        else:
            since = max(self._since, min(self._seen, iterations) - TAIL * step)
        self._seen = iterations
        rows = self.reader.query(
            "SELECT layer_id, iteration, grad_norm FROM layer_stats WHERE grad_norm IS NOT NULL AND iteration >= ? "
            "ORDER BY layer_id, iteration",
            [since],
        ).fetchnumpy()
        ids, norms = rows["layer_id"], _plain(rows["grad_norm"])
        parts, tails = [], []
        for layer in self.reader.layers():
            start, stop = np.searchsorted(ids, [layer.layer_id, layer.layer_id + 1])
            if start == stop:
                continue
            series = LayerSeries(layer.name, layer.depth, rows["iteration"][start:stop], norms[start:stop])
            tails.append(series)
            parts.append(_now(series, self.settings))
        shared = shared_by(tails, self.settings)
        for series in tails:
            self._note(series, since, step, shared)
        return tuple(sorted(parts, key=lambda layer: -math.inf if layer.z is None else layer.z, reverse=True))

    def _step(self) -> int:
        """Median number of iterations between recorded rows."""
        rows = self.reader.query(
            "SELECT iteration FROM layer_stats WHERE layer_id = (SELECT min(layer_id) FROM layer_stats) "
            "ORDER BY iteration DESC LIMIT 50"
        ).fetchnumpy()
        iterations = np.unique(_plain(rows["iteration"]))
        return max(int(np.median(np.diff(iterations))), 1) if len(iterations) > 1 else 1

    def _note(self, series: LayerSeries, since: int, step: int, shared: Mapping[int, float] | None) -> None:
        """Merge the spikes of the latest rows. Their first values have no baseline, so earlier results are kept."""
        head = since + self.settings.window * step if since > self._since else since
        kept = [s for s in self._spikes.get(series.name, []) if s.onset < head]
        last = max((s.end for s in kept), default=-1)
        new = [s for s in detect(series, self.settings, shared).spikes if s.onset >= head and s.onset > last]
        self._spikes[series.name] = kept + new


def _now(series: LayerSeries, settings: SpikeSettings) -> LayerNow:
    x, _ = log_norms(series.grad_norm)
    base = baseline(x, ~np.isnan(x), window=settings.window, warmup=settings.warmup)
    height = float(x[-1] - base.before[-1])
    norm = float(series.grad_norm[-1])
    if not math.isfinite(norm):
        return LayerNow(series.name, norm, math.inf, math.inf)
    if not math.isfinite(height):
        return LayerNow(series.name, norm, None, None)
    return LayerNow(series.name, norm, math.exp(height), height / float(base.scale[-1]))


def _total(config: dict[str, Any], table: dict[str, Any], iterations: int) -> int | None:
    """Planned number of iterations: from the configuration, or extrapolated from the epochs so far."""
    train = config.get("train")
    if not isinstance(train, dict):
        return None
    if isinstance(train.get("iterations"), int):
        return int(train["iterations"])
    epochs, made = train.get("epochs"), _plain(table["epoch"])
    if not isinstance(epochs, (int, float)) or len(made) < 2 or not made[-1] > made[0]:
        return None
    a_epoch = float(table["iteration"][-1] - table["iteration"][0]) / float(made[-1] - made[0])
    return max(math.ceil(epochs * a_epoch - 1e-6), iterations)


def _plain(values: np.ndarray) -> np.ndarray:
    """A masked array as floats, with NaN for NULL."""
    return np.ma.filled(np.ma.asarray(values, dtype=np.float64), np.nan)
