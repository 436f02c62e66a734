"""Steps that start again in every epoch, and the same steps counted on through the whole training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stabilitylab.importers.series import MAX_ITERATION, Log


@dataclass(frozen=True)
class Unrolled:
    """``step`` (n,) int64: counted from the first epoch on. ``length``: steps of an epoch. ``base``: number of the
    first epoch, 0 or 1."""

    step: np.ndarray
    length: int
    base: int

    def end_of(self, epoch: int) -> int:
        """The step after the last update of an epoch."""
        return (epoch - self.base + 1) * self.length

    def add_note(self, log: Log, name: str) -> None:
        epoch = "epoch" if self.base == 0 else f"(epoch - {self.base})"
        log.note(
            "epochs",
            f"{name} starts again in every epoch, so iteration = {epoch} x {self.length:,} + {name}; "
            f"{self.length:,} is the longest epoch in the log",
        )


def counted_on(step: np.ndarray, epoch: np.ndarray) -> Unrolled | None:
    """Steps (n,) that start again in every epoch (n,), counted on; None if they do not start again.

    The length of an epoch is its largest step plus the distance between two steps, less the smallest step.

    >>> counted_on(np.array([0, 1, 2, 0, 1, 2]), np.array([0, 0, 0, 1, 1, 1])).step.tolist()
    [0, 1, 2, 3, 4, 5]
    """
    epochs, place = np.unique(epoch, return_inverse=True)
    if len(epochs) < 2:
        return None
    low, high = np.full(len(epochs), MAX_ITERATION), np.full(len(epochs), -1)
    np.minimum.at(low, place, step)
    np.maximum.at(high, place, step)
    # Steps of the whole training may meet at the border of two epochs, but they do not overlap.
    if (low[1:] > high[:-1]).any() or not (low[1:] < high[:-1]).any():
        return None
    longest = np.unique(step[place == int(np.argmax(high))])
    distance = int(np.median(np.diff(longest))) if len(longest) > 1 else 1
    if low[1:].max() - low[1:].min() > distance or low[0] + distance < low[1:].min():
        return None  # the epochs do not begin at the same step; only the first may begin later
    length = int(high.max() - low.min()) + distance
    base = min(int(epochs[0]), 1)
    counted = (epoch - base) * length + step
    return Unrolled(counted, length, base) if counted.max() <= MAX_ITERATION else None


class EpochCounter:
    """Counts steps on through the epochs of a log that is read line by line.

    Epochs count from 1 if the first one is 1. If the steps go on rising in the second epoch, they already count on.
    """

    def __init__(self) -> None:
        self._base: int | None = None
        self._last = (0, 0)
        self._restarts: bool | None = None

    def __call__(self, epoch: int, place: int, length: int) -> int:
        if self._base is None:
            self._base = min(epoch, 1)
            self._last = (epoch, place)
        if self._restarts is None and epoch > self._last[0]:
            self._restarts = place <= self._last[1]
        self._last = (epoch, place)
        return place if self._restarts is False else max(epoch - self._base, 0) * length + place
