"""The time axis of a recording: its rows, the steps between them, and a clock that shortens long gaps.

Permutation tests shift events circularly through the recording. Events shifted into a long gap, which contains no
events, would never match, and the p-value would be too small. The clock therefore shortens long gaps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stabilitylab.analysis.resolution import MEANS_WIDER, mostly, recording_steps

LONGEST_GAP = 200
"""Longest gap on the clock, in iterations; two recording steps if that is longer."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """``rows`` (n,): recorded iterations, increasing. ``steps`` (n,): iterations since the previous row. ``clock``
    (n,): time of each row with long gaps shortened. ``span``: length of the clock. ``means``: whether rows are means
    over the step. ``mostly``: 95% of the rows are at most this many iterations after the previous row."""

    rows: np.ndarray
    steps: np.ndarray
    clock: np.ndarray
    span: int
    means: bool = False
    mostly: int = 1

    @classmethod
    def of(cls, rows: np.ndarray, *, means: bool = False) -> Timeline:
        """The timeline of the recorded iterations ``rows`` (n,), strictly increasing."""
        steps = recording_steps(rows)
        if len(rows) == 0:
            return cls(rows, steps, rows, 0, means)
        longest = max(LONGEST_GAP, 2 * int(np.median(steps)))
        clock = np.cumsum(np.minimum(steps, longest)) - min(int(steps[0]), longest)
        return cls(rows, steps, clock, int(clock[-1]) + min(int(steps[-1]), longest), means, mostly(steps[1:]))

    @property
    def step(self) -> int:
        """The median recording step."""
        return int(np.median(self.steps)) if len(self.steps) else 1

    @property
    def open_by(self) -> float:
        """Iterations by which an event may begin before the row that shows it, in 95% of the rows; 0 if every iteration
        is recorded."""
        return self.mostly * (MEANS_WIDER if self.means else 1.0) if self.mostly > 1 else 0.0

    def times(self, onsets: np.ndarray) -> np.ndarray:
        """(k,) iterations -> (k,) int64: times on the clock."""
        if len(self.rows) == 0:
            return onsets
        return np.rint(np.interp(onsets, self.rows, self.clock)).astype(np.int64)

    def uncertainty(self, onsets: np.ndarray) -> np.ndarray:
        """(k,): iterations by which an event may begin before the row that shows it; 0 if every iteration is
        recorded."""
        if len(self.rows) == 0:
            return np.zeros(len(onsets))
        steps = self.steps[np.minimum(np.searchsorted(self.rows, onsets), len(self.rows) - 1)]
        return np.where(steps > 1, steps * (MEANS_WIDER if self.means else 1.0), 0.0)
