"""The signals of gradients and weights, computed on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from stabilitylab.recording.measurement import Measured, Measurement, Step, measures, real
from stabilitylab.recording.norms import count_nonfinite, l2_norms
from stabilitylab.recording.selection import Selection


@measures("grad_norm")
def grad_norm(step: Step) -> Tensor:
    return step.chosen.l2(step.grad_norms[0])


@measures("grad_max")
def grad_max(step: Step) -> Tensor:
    return step.chosen.largest(step.grad_norms[1])


@measures("weight_norm")
def weight_norm(step: Step) -> Tensor:
    return step.held.l2(step.held.kinds.measure(l2_norms, step.weights)[0])


@measures("nonfinite")
def nonfinite(step: Step) -> Tensor:
    """Share of a layer's gradient entries that are NaN or infinite."""
    if step.chosen.device.type == "cpu":  # the largest entry is finite only if all entries are
        odd = ~step.grad_norms[1].isfinite()
        counts = torch.zeros_like(step.grad_norms[1])
        for i in odd.nonzero().flatten().tolist():
            counts[i] = (~step.grads[i].isfinite()).sum()
    else:
        counts = step.chosen.kinds.measure(count_nonfinite, step.grads)[0]
    return step.chosen.total(counts) / step.chosen.layer_sizes


@measures("update_ratio")
class UpdateRatio(Measurement):
    """L2 norm of the update divided by the L2 norm of the weights before it. Keeps a copy of the weights."""

    def __init__(self) -> None:
        self._before: tuple[Selection, list[Tensor]] | None = None

    def measure(self, step: Step) -> None:
        self._before = step.held, [w.clone() for w in step.weights]

    def after_update(self) -> Measured | None:
        if self._before is None:
            return None
        held, before = self._before
        self._before = None
        changes = torch._foreach_sub([real(p) for p in held.parameters], before)
        size = held.l2(held.kinds.measure(l2_norms, changes)[0])
        return Measured(size / held.l2(held.kinds.measure(l2_norms, before)[0]).clamp(min=1e-30), held.seen)
