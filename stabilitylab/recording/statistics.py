"""What was measured of one step, changed on the device: scaled, restricted to layers, summed up, or given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from stabilitylab.recording.measurement import Measured
from stabilitylab.recording.selection import Selection
from stabilitylab.signals import Signal

_LINEAR = ("grad_norm", "grad_max")
"""Signals that grow with the gradient."""


def scaled(stats: Measured, signals: Sequence[Signal], factor: float | Tensor) -> Measured:
    """The statistics of gradients times ``factor``."""
    values = stats.values.clone()
    for i, signal in enumerate(signals):
        if signal.name in _LINEAR:
            values[i] *= factor
    return Measured(values, stats.measured)


def of_layers(stats: Measured, signals: Sequence[Signal], layers: Sequence[bool]) -> Measured:
    """Signals of the gradient in ``layers`` alone; elsewhere they are not measured."""
    measured, keep = stats.measured.clone(), torch.tensor(layers, device=stats.measured.device)
    for i, signal in enumerate(signals):
        if signal.source == "gradient":
            measured[i] &= keep
    return Measured(stats.values, measured)


def joined(before: Measured, now: Measured, signals: Sequence[Signal]) -> Measured:
    """``now``, with the largest of both where a signal of the forward pass was measured in two parts."""
    values, measured = now.values.clone(), now.measured.clone()
    for i, signal in enumerate(signals):
        if signal.source == "forward":
            ours = torch.where(before.measured[i], before.values[i], -torch.inf)
            theirs = torch.where(now.measured[i], now.values[i], -torch.inf)
            measured[i] |= before.measured[i]
            values[i] = torch.where(measured[i], torch.maximum(ours, theirs), 0.0)
    return Measured(values, measured)


def global_norm(stats: Measured, signals: Sequence[Signal]) -> float:
    """The L2 norm over all layers; 0 where ``grad_norm`` is not measured. Waits for the device."""
    for i, signal in enumerate(signals):
        if signal.name == "grad_norm":
            return float(torch.where(stats.measured[i], stats.values[i].double(), 0.0).norm())
    return 0.0


def with_norms(stats: Measured, signals: Sequence[Signal], norms: Mapping[int, float | Tensor]) -> Measured:
    """The statistics with ``grad_norm`` as it is given, by layer."""
    values, measured = stats.values.clone(), stats.measured.clone()
    for i, signal in enumerate(signals):
        if signal.name == "grad_norm":
            measured[i] = False
            for layer, norm in norms.items():
                values[i, layer], measured[i, layer] = norm, True
    return Measured(values, measured)


def placed(value: Tensor | Measured | None, selection: Selection | None) -> Measured | None:
    """What a measurement gave, with its mask: a plain tensor is measured where ``selection`` has parameters."""
    if isinstance(value, Measured | None):
        return value
    return Measured(value, torch.ones_like(value, dtype=torch.bool) if selection is None else selection.seen)
