"""Notes about series that cannot be judged: one note per reason, however many layers it affects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stabilitylab.analysis.detection.settings import SpikeSettings
from stabilitylab.analysis.detection.shared import OWN_PEAKS, too_short
from stabilitylab.analysis.detection.tails import MIN_PEAKS
from stabilitylab.analysis.resolution import Resolution
from stabilitylab.analysis.series import LayerSeries


def layer_notes(layers: Sequence[LayerSeries], settings: SpikeSettings, resolution: Resolution) -> list[str]:
    """Notes about layers that cannot be judged and about the limits of the recording."""
    reasons: dict[str, list[str]] = {}
    for layer in layers:
        reason = _why_not(layer, settings)
        if reason:
            reasons.setdefault(reason, []).append(layer.name)
    notes = []
    for reason, names in reasons.items():
        who = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more layers"
        notes.append(f"{who}: {reason}")
    if resolution.in_words():
        notes.append(resolution.in_words())
    if any(_gaps(layer) for layer in layers):
        notes.append("iterations are missing from the record: spikes inside a gap cannot be detected")
    return notes


def short_notes(layers: Sequence[LayerSeries], settings: SpikeSettings, shared: bool) -> list[str]:
    """A note about layers too short for individual thresholds: they use shared thresholds, or ``z_open`` alone."""
    least = OWN_PEAKS if shared else MIN_PEAKS
    usable = [int((np.isfinite(x) & (x > 0)).sum()) for x in (np.asarray(layer.grad_norm) for layer in layers)]
    short = [
        n
        for n, layer in zip(usable, layers, strict=True)
        if too_short(n, settings, least) and not _why_not(layer, settings)
    ]
    if not short:
        return []
    if shared:
        return [f"{max(short)} values are too few for a threshold per layer: {len(short)} layers share one"]
    return [
        f"{max(short)} values are too few to fit a threshold: z = {settings.z_open:g} is used, and the requested "
        "false-alarm rate is not guaranteed"
    ]


def spikes_reason(layers: Sequence[LayerSeries], settings: SpikeSettings) -> str:
    """Why spikes are judged in no layer; empty if they are judged in at least one, or if there are no layers."""
    reasons = [_why_not(layer, settings) for layer in layers]
    if not reasons or not all(reasons):
        return ""
    return reasons[0].removeprefix("not enough data for spikes: ").removeprefix("not enough data: ")


def _why_not(layer: LayerSeries, settings: SpikeSettings) -> str:
    norm = np.asarray(layer.grad_norm, dtype=np.float64)
    finite = norm[np.isfinite(norm)]
    if len(norm) == 0:
        return "no gradients recorded"
    if len(finite) == 0:
        return "not enough data for spikes: every gradient is NaN or infinite"
    if settings.rule != "stablab":  # another rule decides by itself how many values it needs
        return ""
    if (finite > 0).sum() <= settings.warmup:
        usable = int((finite > 0).sum())
        return f"not enough data: {usable} usable values; more than {settings.warmup} are needed to detect spikes"
    if finite.min() == finite.max():
        return "not enough data: the gradient norm is constant, so there is no noise to compare spikes with"
    return ""


def _gaps(layer: LayerSeries) -> bool:
    step = np.diff(layer.iteration)
    return len(step) > 0 and bool(step.max() > step.min())
