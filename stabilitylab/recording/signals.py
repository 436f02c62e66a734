"""The signals of gradients and weights, computed on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from stabilitylab.recording.measurement import Measured, Measurement, Step, measures, real
from stabilitylab.recording.norms import count_nonfinite, l2_norms
from stabilitylab.recording.passes import Snapshot
from stabilitylab.recording.selection import Selection


@measures("grad_norm")
def grad_norm(step: Step) -> Tensor:
    return step.chosen.l2(step.grad_norms[0])


@measures("grad_max")
def grad_max(step: Step) -> Tensor:
    return step.chosen.largest(step.grad_norms[1])


@measures("weight_norm")
def weight_norm(step: Step) -> Tensor:
    return step.held.l2(step.weight_norms)


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
        self._held: Selection | None = None
        self._copy: Snapshot | None = None
        self._now: Tensor | None = None  # (n,) norms of the weights that the copy was taken of, where they are known
        self._before: Tensor | None = None  # (layers,) norms of the weights before the update

    def prepare(self, step: Step) -> None:
        if step.settled and step.held is self._held and self._now is not None:
            step.weight_norms = self._now

    def measure(self, step: Step) -> None:
        if not (step.settled and step.held is self._held and self._now is not None):
            if step.held is not self._held or self._copy is None or not self._copy.fits(step.weights):
                self._copy = Snapshot(step.weights)
            else:
                self._copy.take(step.weights)
            self._held = step.held
        self._now = None
        self._before = step.held.l2(step.weight_norms)

    def after_update(self) -> Measured | None:
        if self._before is None or self._held is None or self._copy is None:
            return None
        held, before, self._before = self._held, self._before, None
        weights = [real(p) for p in held.parameters]
        changed, self._now = self._copy.advance(weights, lambda tensors: held.kinds.measure(l2_norms, tensors)[0])
        return Measured(held.l2(changed) / before.clamp(min=1e-30), held.seen)
