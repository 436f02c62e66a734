"""Mitigations that skip updates."""

from __future__ import annotations

import torch
from torch import Tensor

from stabilitylab.methods.base import Method
from stabilitylab.train.mitigations.gradient import global_norm
from stabilitylab.train.mitigations.stages import State

SPIKE_RATIO, SPIKE_WINDOW, SPIKE_WARMUP = 3.0, 100, 20


def is_spike(method: Method, value: float | None, state: State) -> Tensor:
    """Whether the gradient norm is not finite or above 3 times the median of the last 100. The median includes skipped
    norms, so that training resumes after a permanent rise."""
    norm = global_norm(method)
    recent = state.get("norms", norm.new_zeros(0))
    state["norms"] = torch.cat([recent, norm[None]])[-SPIKE_WINDOW:]
    if len(recent) < SPIKE_WARMUP:
        return ~norm.isfinite()
    return ~(norm <= SPIKE_RATIO * recent.nanmedian())
