"""The spike that an experiment is about: its layer, and how far it rises."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stabilitylab.cause.replay import Replay
from stabilitylab.errors import ConfigError, StabilityLabError

USUAL = 50
"""Recorded iterations whose median is a layer's usual norm."""
WINDOW = 10
"""Iterations after the named one in which the spike's peak is looked for."""


@dataclass(frozen=True)
class SpikeAt:
    """``height``: log of the largest norm over the usual one; ``peak``: the iteration of that norm."""

    layer: str
    peak: int
    height: float


def usual_norm(replay: Replay, layer: str, before: int) -> float:
    """The median norm of the last iterations before ``before`` that were recorded. ConfigError for none."""
    iterations, norms, _ = replay.recorded
    values = norms[iterations < before][-USUAL:, replay.names.index(layer)]
    values = values[np.isfinite(values)]
    if not len(values):
        raise ConfigError(f"no norm of {layer} was recorded before iteration {before}, so its usual size is not known")
    return float(np.median(values))


def height(norms: np.ndarray, usual: float) -> float:
    """Log of the largest of ``norms`` over the usual one; infinite where one is not finite."""
    if not np.isfinite(norms).all():
        return float("inf")
    return float(np.log(max(norms.max(), 1e-300) / usual))


def find_spike(replay: Replay, at: int, layer: str | None = None) -> SpikeAt:
    """The spike at iteration ``at`` or within ten iterations after it: of ``layer``, else of the layer that leads the
    episode there, else of the one that rises highest."""
    iterations, norms, _ = replay.recorded
    inside = (iterations >= at) & (iterations <= at + WINDOW)
    if not inside.any():
        raise ConfigError(
            f"run {replay.run_dir.name} has no norms recorded at iteration {at}; name one that it recorded"
        )
    chosen = layer or _leader(replay, at)
    if chosen is not None:
        replay.layer(chosen)
    candidates = [chosen] if chosen is not None else [x.name for x in replay.layers if x.trainable]
    found = []
    for name in candidates:
        values = norms[inside, replay.names.index(name)]
        if np.isnan(values).all():
            continue
        peak = int(iterations[inside][np.nanargmax(np.where(np.isinf(values), 1e300, values))])
        found.append(SpikeAt(name, peak, height(values[~np.isnan(values)], usual_norm(replay, name, at))))
    if not found:
        raise ConfigError(f"run {replay.run_dir.name} has no gradient norms at iteration {at}; train with --log-grads")
    return max(found, key=lambda spike: spike.height)


def _leader(replay: Replay, at: int) -> str | None:
    from stabilitylab.run.answers import answer_run

    try:
        episodes = answer_run(replay.run_dir).analysis.episodes or ()
    except StabilityLabError:
        return None
    near = [e for e in episodes if e.start - WINDOW <= at <= e.end or at <= e.start <= at + WINDOW]
    return min(near, key=lambda e: abs(e.start - at)).leader if near else None
