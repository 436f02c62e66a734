"""Locate the spike of an experiment: its layer and its height."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stabilitylab.cause.replay import Replay
from stabilitylab.errors import ConfigError, StabilityLabError

USUAL = 50
"""Number of recorded iterations whose median is the usual norm of a layer."""
WINDOW = 10
"""The peak of the spike is searched up to this many iterations after the given one."""


@dataclass(frozen=True)
class SpikeAt:
    """``height``: log ratio of the largest norm to the usual one. ``peak``: iteration of the largest norm."""

    layer: str
    peak: int
    height: float


def usual_norm(replay: Replay, layer: str, before: int) -> float:
    """Median of the last recorded norms before iteration ``before``. Raises ConfigError without any."""
    iterations, norms, _ = replay.recorded
    values = norms[iterations < before][-USUAL:, replay.names.index(layer)]
    values = values[np.isfinite(values)]
    if not len(values):
        raise ConfigError(f"no norm of {layer} was recorded before iteration {before}, so its usual norm is unknown")
    return float(np.median(values))


def height(norms: np.ndarray, usual: float) -> float:
    """Log ratio of the largest of ``norms`` to the usual one; infinite if any is non-finite."""
    if not np.isfinite(norms).all():
        return float("inf")
    return float(np.log(max(norms.max(), 1e-300) / usual))


def find_spike(replay: Replay, at: int, layer: str | None = None) -> SpikeAt:
    """The spike at iteration ``at`` or up to ten iterations later: that of ``layer``, else of the layer that leads the
    episode, else of the layer that rises most."""
    iterations, norms, _ = replay.recorded
    inside = (iterations >= at) & (iterations <= at + WINDOW)
    if not inside.any():
        raise ConfigError(
            f"run {replay.run_dir.name} has no norms recorded at iteration {at}; choose a recorded iteration"
        )
    chosen = layer or _leader(replay, at)
    if chosen is not None:
        replay.layer(chosen)
    candidates = [chosen] if chosen is not None else [x.name for x in replay.layers if x.trainable]
    spikes = []
    for name in candidates:
        values = norms[inside, replay.names.index(name)]
        if np.isnan(values).all():
            continue
        peak = int(iterations[inside][np.nanargmax(np.where(np.isinf(values), 1e300, values))])
        spikes.append(SpikeAt(name, peak, height(values[~np.isnan(values)], usual_norm(replay, name, at))))
    if not spikes:
        raise ConfigError(f"run {replay.run_dir.name} has no gradient norms at iteration {at}; train with --log-grads")
    return max(spikes, key=lambda spike: spike.height)


def _leader(replay: Replay, at: int) -> str | None:
    from stabilitylab.run.answers import answer_run

    try:
        episodes = answer_run(replay.run_dir).analysis.episodes or ()
    except StabilityLabError:
        return None
    near = [e for e in episodes if e.start - WINDOW <= at <= e.end or at <= e.start <= at + WINDOW]
    return min(near, key=lambda e: abs(e.start - at)).leader if near else None
