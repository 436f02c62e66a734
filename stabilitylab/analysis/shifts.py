"""Circular shifts of events, all of them, at the cost of the events and not of the iterations.

Everything that depends on the shift is a step function of it whose steps lie at differences of events: sorted
differences and unions of intervals say how many shifts do what.
"""

from __future__ import annotations

import numpy as np


def circular_differences(a: np.ndarray, b: np.ndarray, span: int) -> np.ndarray:
    """All b - a modulo ``span``, sorted."""
    return np.sort(np.subtract.outer(b, a).ravel() % span)


def unrolled(differences: np.ndarray, span: int, margin: int) -> np.ndarray:
    """Sorted differences with copies of those within ``margin`` beyond either end of the circle."""
    turns = -(-margin // span)
    copies = np.concatenate([differences + turn * span for turn in range(-turns, turns + 1)])
    return np.sort(copies[(copies >= -margin) & (copies < span + margin)])


def count_within(differences: np.ndarray, at: np.ndarray, bandwidth: int) -> np.ndarray:
    """How many sorted ``differences`` lie within ``bandwidth`` of each of ``at``."""
    stop = np.searchsorted(differences, at + bandwidth, side="right")
    return stop - np.searchsorted(differences, at - bandwidth, side="left")


def covered(low: np.ndarray, high: np.ndarray, first: int, stop: int) -> int:
    """How many integers of [first, stop) lie in at least one of the closed intervals [low, high]."""
    low, high = np.maximum(low, first), np.minimum(high, stop - 1)
    inside = low <= high
    if not inside.any():
        return 0
    order = np.argsort(low[inside], kind="stable")
    low, high = low[inside][order], np.maximum.accumulate(high[inside][order])
    # Of each interval, what lies beyond all that begin before it.
    begins = np.maximum(low, np.concatenate([[first], high[:-1] + 1]))
    return int(np.maximum(high - begins + 1, 0).sum())
