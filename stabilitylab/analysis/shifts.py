"""Statistics over all circular shifts of events, at a cost that depends on the number of events, not of iterations.

Every statistic is a step function of the shift that changes only at differences between events. Sorted differences and
unions of intervals therefore suffice to count the shifts with a given property.
"""

from __future__ import annotations

import numpy as np


def circular_differences(a: np.ndarray, b: np.ndarray, span: int) -> np.ndarray:
    """All differences b - a modulo ``span``, sorted."""
    return np.sort(np.subtract.outer(b, a).ravel() % span)


def unrolled(differences: np.ndarray, span: int, margin: int) -> np.ndarray:
    """Sorted differences, extended beyond either end of the circle by copies of those within ``margin``."""
    turns = -(-margin // span)
    copies = np.concatenate([differences + turn * span for turn in range(-turns, turns + 1)])
    return np.sort(copies[(copies >= -margin) & (copies < span + margin)])


def count_within(differences: np.ndarray, at: np.ndarray, bandwidth: int) -> np.ndarray:
    """Number of sorted ``differences`` within ``bandwidth`` of each value of ``at``."""
    stop = np.searchsorted(differences, at + bandwidth, side="right")
    return stop - np.searchsorted(differences, at - bandwidth, side="left")


def covered(low: np.ndarray, high: np.ndarray, first: int, stop: int) -> int:
    """Number of integers in [first, stop) that lie in at least one of the closed intervals [low, high]."""
    low, high = np.maximum(low, first), np.minimum(high, stop - 1)
    inside = low <= high
    if not inside.any():
        return 0
    order = np.argsort(low[inside], kind="stable")
    low, high = low[inside][order], np.maximum.accumulate(high[inside][order])
    # Count of each interval the part that lies beyond all intervals with an earlier start.
    begins = np.maximum(low, np.concatenate([[first], high[:-1] + 1]))
    return int(np.maximum(high - begins + 1, 0).sum())
