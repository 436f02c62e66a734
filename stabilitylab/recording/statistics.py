"""Operations on the statistics of one step, on the device: scale, restrict to layers, join, replace norms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from stabilitylab.recording.measurement import Measured
from stabilitylab.recording.selection import Selection
from stabilitylab.signals import Signal

_LINEAR = ("grad_norm", "grad_max")
"""Signals that are proportional to the gradient."""


def scaled(stats: Measured, signals: Sequence[Signal], factor: float | Tensor) -> Measured:
    """The statistics as if the gradients were multiplied by ``factor``."""
    values = stats.values.clone()
    for i, signal in enumerate(signals):
        if signal.name in _LINEAR:
            values[i] *= factor
    return Measured(values, stats.measured)


def of_layers(stats: Measured, signals: Sequence[Signal], layers: Sequence[bool]) -> Measured:
    """Restrict gradient signals to ``layers``; in other layers they become not measured."""
    measured, keep = stats.measured.clone(), torch.tensor(layers, device=stats.measured.device)
    for i, signal in enumerate(signals):
        if signal.source == "gradient":
            measured[i] &= keep
    return Measured(stats.values, measured)


def joined(before: Measured, now: Measured, signals: Sequence[Signal]) -> Measured:
    """``now``, with the maximum of both for signals of the forward pass, if it ran in two parts."""
    values, measured = now.values.clone(), now.measured.clone()
    for i, signal in enumerate(signals):
        if signal.source == "forward":
            ours = torch.where(before.measured[i], before.values[i], -torch.inf)
            theirs = torch.where(now.measured[i], now.values[i], -torch.inf)
            measured[i] |= before.measured[i]
            values[i] = torch.where(measured[i], torch.maximum(ours, theirs), 0.0)
    return Measured(values, measured)


def with_gradients(old: Measured, new: Measured, signals: Sequence[Signal]) -> Measured:
    """``new``, with the signals of the weights as they are in ``old``."""
    of_weights = torch.tensor([[signal.source == "weights"] for signal in signals], device=new.values.device)
    pairs = zip(old, new, strict=True)
    values, measured = (torch.where(of_weights, before, now) for before, now in pairs)
    return Measured(values, measured)


def global_max(stats: Measured, signals: Sequence[Signal]) -> float:
    """The largest entry of the gradient over all layers; 0 if ``grad_max`` is not measured. Waits for the device."""
    for i, signal in enumerate(signals):
        if signal.name == "grad_max":
            return float(torch.where(stats.measured[i], stats.values[i].double(), 0.0).amax())
    return 0.0


def global_norm(stats: Measured, signals: Sequence[Signal]) -> float:
    """The L2 norm of the gradient over all layers; 0 if ``grad_norm`` is not measured. Waits for the device."""
    for i, signal in enumerate(signals):
        if signal.name == "grad_norm":
            return float(torch.where(stats.measured[i], stats.values[i].double(), 0.0).norm())
    return 0.0


def with_norms(stats: Measured, signals: Sequence[Signal], norms: Mapping[int, float | Tensor]) -> Measured:
    """Replace ``grad_norm`` by ``norms``, layer index -> norm."""
    values, measured = stats.values.clone(), stats.measured.clone()
    for i, signal in enumerate(signals):
        if signal.name == "grad_norm":
            measured[i] = False
            for layer, norm in norms.items():
                values[i, layer], measured[i, layer] = norm, True
    return Measured(values, measured)


def placed(value: Tensor | Measured | None, selection: Selection | None) -> Measured | None:
    """Add a mask to the result of a measurement: a plain tensor is measured where ``selection`` has parameters."""
    if isinstance(value, Measured | None):
        return value
    return Measured(value, torch.ones_like(value, dtype=torch.bool) if selection is None else selection.seen)
