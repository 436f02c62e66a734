"""Cosine similarity between the gradients of a layer at consecutive measurements."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stabilitylab.recording.measurement import Measured, Measurement, Step, measures
from stabilitylab.recording.norms import l2_norms, portions
from stabilitylab.recording.selection import Selection

_ZERO = 1e-38
"""The norm of a zero gradient, which has no direction."""


@measures("grad_cosine")
class GradCosine(Measurement):
    """Keeps a copy of the last gradients. Not measured at the first iteration or when the set of parameters with a
    gradient changes."""

    def __init__(self) -> None:
        self._before: tuple[Selection, list[Tensor]] | None = None
        self._now: tuple[Selection, list[Tensor]] | None = None

    def measure(self, step: Step) -> Measured:
        chosen, grads = step.chosen, step.grads
        copies = list(torch._foreach_add(grads, 0)) if grads[0].is_cuda else _copies(grads)
        before, self._now = self._before, (chosen, copies)
        if before is None or before[0] is not chosen or any(a.shape != b.shape for a, b in zip(grads, before[1])):  # noqa: B905
            return step.nothing
        own = chosen.kinds.measure(l2_norms, grads)[0].clamp(min=_ZERO)
        other = chosen.kinds.measure(l2_norms, before[1])[0].clamp(min=_ZERO)
        dots = (_in_few_calls if grads[0].is_cuda else _one_by_one)(grads, before[1], own, other)
        share = own / chosen.l2(own)[chosen.owner], other / chosen.l2(other)[chosen.owner]
        return Measured(chosen.total(dots * share[0] * share[1]).clamp(-1, 1), chosen.seen)

    def recorded(self) -> None:
        self._before = self._now


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.clone() for t in tensors]


# Inner products (n,) of each two gradients divided by their norms (n,) first, so that a loss scale cancels and tiny
# gradients do not underflow.


def _one_by_one(now: Sequence[Tensor], last: Sequence[Tensor], own: Tensor, other: Tensor) -> Tensor:
    pairs = enumerate(zip(now, last, strict=True))
    return torch.stack([((a.float() / own[i]) * (b.float() / other[i])).sum() for i, (a, b) in pairs])


def _in_few_calls(now: Sequence[Tensor], last: Sequence[Tensor], own: Tensor, other: Tensor) -> Tensor:
    """1 - |a - b|^2 / 2, with a number of calls that does not depend on n."""
    squares = []
    for among in portions([t.numel() for t in now]):
        a = torch._foreach_div([t.float() for t in now[among]], list(own[among].unbind()))
        b = torch._foreach_div([t.float() for t in last[among]], list(other[among].unbind()))
        squares.append(torch.stack(torch._foreach_norm(torch._foreach_sub(a, b), 2, dtype=torch.float64)).square())
    known = (own > _ZERO) & (other > _ZERO)
    return torch.where(known, 1 - torch.cat(squares) / 2, 0).float()
