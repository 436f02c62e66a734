"""Values that are not finite: found without making an accelerator wait, and kept out of checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor


class LossWatch:
    """Every loss is looked at: at once with ``every`` 1, else together every so many iterations, since each look
    waits for an accelerator. ``latest`` is the last loss seen."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.latest: float | None = None
        self._unseen: list[tuple[int, Tensor]] = []

    def note(self, iteration: int, loss: Tensor) -> list[tuple[int, float]]:
        """Take a loss in. Returns (iteration, loss) of those found not finite, if this was an iteration to look at."""
        self._unseen.append((iteration, loss))
        return self.look() if iteration % self.every == 0 else []

    def look(self) -> list[tuple[int, float]]:
        """Look at all that were not looked at yet."""
        if not self._unseen:
            return []
        values: list[float] = torch.stack([loss for _, loss in self._unseen]).tolist()
        found = [(i, v) for (i, _), v in zip(self._unseen, values, strict=True) if not math.isfinite(v)]
        self._unseen, self.latest = [], values[-1]
        return found


@torch.no_grad()
def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Whether every entry is finite, a 0-d tensor on the device. A norm tells: NaN and infinity carry through it."""
    found = list(tensors)
    if not found:
        return torch.tensor(True)
    return torch.stack(torch._foreach_norm(found, float("inf"))).isfinite().all()
