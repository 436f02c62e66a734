"""Cosine similarity between the gradients of a layer at consecutive measurements."""

from __future__ import annotations

import torch
from torch import Tensor

from stabilitylab.recording.measurement import Measured, Measurement, Step, measures
from stabilitylab.recording.norms import l2_norms
from stabilitylab.recording.selection import Selection


@measures("grad_cosine")
class GradCosine(Measurement):
    """Keeps a copy of the last gradients. Not measured at the first iteration or when the set of parameters with a
    gradient changes."""

    def __init__(self) -> None:
        self._before: tuple[Selection, list[Tensor]] | None = None
        self._now: tuple[Selection, list[Tensor]] | None = None

    def measure(self, step: Step) -> Measured:
        chosen, grads = step.chosen, step.grads
        before, self._now = self._before, (chosen, [g.clone() for g in grads])
        if before is None or before[0] is not chosen or any(a.shape != b.shape for a, b in zip(grads, before[1])):  # noqa: B905
            return step.nothing
        # Normalise first, so that a loss scale cancels and tiny gradients do not underflow.
        dots = []
        own = chosen.kinds.measure(l2_norms, grads)[0].clamp(min=1e-38)
        other = chosen.kinds.measure(l2_norms, before[1])[0].clamp(min=1e-38)
        for i, (now, last) in enumerate(zip(grads, before[1], strict=True)):
            dots.append(((now.float() / own[i]) * (last.float() / other[i])).sum())
        share = own / chosen.l2(own)[chosen.owner], other / chosen.l2(other)[chosen.owner]
        return Measured(chosen.total(torch.stack(dots) * share[0] * share[1]).clamp(-1, 1), chosen.seen)

    def recorded(self) -> None:
        self._before = self._now
