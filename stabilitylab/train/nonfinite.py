"""Detect non-finite values with few device syncs."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor


class LossWatch:
    """Checks every loss, in batches of ``every`` iterations, because each check waits for the accelerator. ``latest``
    is the last loss checked."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.latest: float | None = None
        self._unseen: list[tuple[int, Tensor]] = []

    def note(self, iteration: int, loss: Tensor) -> list[tuple[int, float]]:
        """Add a loss. Returns (iteration, loss) of non-finite losses if a check was due, else an empty list."""
        self._unseen.append((iteration, loss))
        return self.look() if iteration % self.every == 0 else []

    def look(self) -> list[tuple[int, float]]:
        """Check all losses that have not been checked yet."""
        if not self._unseen:
            return []
        values: list[float] = torch.stack([loss for _, loss in self._unseen]).tolist()
        bad = [(i, v) for (i, _), v in zip(self._unseen, values, strict=True) if not math.isfinite(v)]
        self._unseen, self.latest = [], values[-1]
        return bad


@torch.no_grad()
def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Whether every entry is finite, a 0-d tensor on the device. NaN and infinity propagate through the norm."""
    all_tensors = list(tensors)
    if not all_tensors:
        return torch.tensor(True)
    return torch.stack(torch._foreach_norm(all_tensors, float("inf"))).isfinite().all()
