"""The time axis of a record: its rows, the steps between them, and a clock that skips what was not recorded.

Chance is measured by shifting events round the record. Shifted through a stretch without rows, which can hold no event,
they would pair up with nothing and chance would look smaller than it is: on the clock, a long gap is a short one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stabilitylab.analysis.resolution import recording_steps

LONGEST_GAP = 200
"""Iterations a gap takes on the clock at most, or two recording steps where those are more."""
MEANS_WIDER = 1.5
"""A mean over a step shows an event by its share of the rows: heights decide which row reaches half of it."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """``rows`` (n,) recorded iterations, rising; ``steps`` (n,) iterations since the row before; ``clock`` (n,) the
    time of each row with long gaps cut short; ``span`` the clock's length."""

    rows: np.ndarray
    steps: np.ndarray
    clock: np.ndarray
    span: int
    means: bool = False

    @classmethod
    def of(cls, rows: np.ndarray, *, means: bool = False) -> Timeline:
        """Of the recorded iterations (n,), strictly rising. ``means``: rows are means over the step."""
        steps = recording_steps(rows)
        if len(rows) == 0:
            return cls(rows, steps, rows, 0, means)
        longest = max(LONGEST_GAP, 2 * int(np.median(steps)))
        clock = np.cumsum(np.minimum(steps, longest)) - min(int(steps[0]), longest)
        return cls(rows, steps, clock, int(clock[-1]) + min(int(steps[-1]), longest), means)

    @property
    def step(self) -> int:
        """The median recording step."""
        return int(np.median(self.steps)) if len(self.steps) else 1

    def times(self, onsets: np.ndarray) -> np.ndarray:
        """(k,) iterations -> (k,) int64 times on the clock."""
        if len(self.rows) == 0:
            return onsets
        return np.rint(np.interp(onsets, self.rows, self.clock)).astype(np.int64)

    def uncertainty(self, onsets: np.ndarray) -> np.ndarray:
        """(k,) iterations by which an event may have begun before the row that shows it; 0 where every one is
        recorded."""
        if len(self.rows) == 0:
            return np.zeros(len(onsets))
        steps = self.steps[np.minimum(np.searchsorted(self.rows, onsets), len(self.rows) - 1)]
        return np.where(steps > 1, steps * (MEANS_WIDER if self.means else 1.0), 0.0)
