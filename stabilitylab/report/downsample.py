"""Fewer points for drawing, none of the spikes lost."""

from __future__ import annotations

from itertools import pairwise

import numpy as np


def min_max(x: np.ndarray, y: np.ndarray, bins: int = 1200) -> tuple[np.ndarray, np.ndarray]:
    """Keep each bin's smallest and largest value, in order. (n,) -> at most 2 ``bins`` points; all, if few.

    A value that is not finite is kept too: it breaks the line where it stands.
    """
    n = len(y)
    if n <= 2 * bins:
        return x, y
    edges = np.linspace(0, n, bins + 1).astype(int)
    finite = np.isfinite(y)
    low, high = np.where(finite, y, np.inf), np.where(finite, y, -np.inf)
    keep = set(np.flatnonzero(~finite).tolist())
    for start, stop in pairwise(edges):
        keep.add(start + int(np.argmin(low[start:stop])))
        keep.add(start + int(np.argmax(high[start:stop])))
    places = np.array(sorted(keep))
    return x[places], y[places]


def block_max(y: np.ndarray, columns: int = 500) -> np.ndarray:
    """The largest finite value of each of at most ``columns`` blocks of (n,); NaN where a block has none."""
    n = len(y)
    if n <= columns:
        return np.where(np.isfinite(y), y, np.nan)
    starts = np.linspace(0, n, columns + 1).astype(int)[:-1]
    out: np.ndarray = np.maximum.reduceat(np.where(np.isfinite(y), y, -np.inf), starts)
    return np.where(np.isfinite(out), out, np.nan)
