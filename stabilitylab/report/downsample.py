"""Fewer points for drawing, none of the spikes lost."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import median_filter

from stabilitylab.analysis.results import LayerSeries

USUAL_WINDOW = 201


def min_max(x: np.ndarray, y: np.ndarray, bins: int = 1200) -> tuple[np.ndarray, np.ndarray]:
    """Keep each bin's smallest and largest value and the ``bins`` sharpest peaks, in order. (n,) -> at most
    3 ``bins`` points; all, if few.

    A peak's sharpness is its smaller step, up and down again, in log units where all values are positive. So a spike
    of one iteration stays even where a taller one shares its bin, and is there when the reader zooms in. The
    first of values that are not finite is kept too: it breaks the line where they stand.
    """
    n = len(y)
    if n <= 3 * bins:
        return x, y
    starts = np.linspace(0, n, bins + 1).astype(int)[:-1]
    finite = np.isfinite(y)
    keep = ~finite & np.append(True, finite[:-1])  # one gap a stretch
    for sign in (1.0, -1.0):
        keep[_first_largest(np.where(finite, sign * y, -np.inf), starts)] = True
    keep[_sharpest(y, finite, bins)] = True
    return x[keep], y[keep]


def _first_largest(y: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The place of the first largest value of each block."""
    largest = np.maximum.reduceat(y, starts)
    widths = np.diff(np.append(starts, len(y)))
    places = np.flatnonzero(y == np.repeat(largest, widths))
    blocks = np.searchsorted(starts, places, side="right")
    found: np.ndarray = places[np.unique(blocks, return_index=True)[1]]
    return found


def _sharpest(y: np.ndarray, finite: np.ndarray, count: int) -> np.ndarray:
    usable = y[finite]
    height = np.zeros(len(y))
    height[finite] = np.log(usable) if (usable > 0).all() else usable
    step = np.where(finite[1:] & finite[:-1], np.diff(height), 0.0)
    sharpness = np.minimum(step[:-1], -step[1:])  # of 1 ... n - 2
    best: np.ndarray = np.argpartition(sharpness, -count)[-count:]
    return best[sharpness[best] > 0] + 1


def relative_norms(layer: LayerSeries) -> np.ndarray:
    """(n,) log10 of a layer's gradient norm over its own running median: what a heat map shows."""
    with np.errstate(divide="ignore", invalid="ignore"):
        x = np.log10(layer.grad_norm)
    finite = np.isfinite(x)
    if not finite.any():
        return np.full(len(x), np.nan)
    filled = np.where(finite, x, np.median(x[finite])).astype(np.float32)
    usual: np.ndarray = median_filter(filled, size=min(USUAL_WINDOW, len(x)))
    return np.asarray(x - usual)


def heat_rows(layers: tuple[LayerSeries, ...], columns: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Column edges in iterations (columns + 1,), and the cells (layers, columns): each the largest
    ``relative_norms`` of its block, NaN where nothing was recorded. A layer begun late begins late here too."""
    recorded = [layer.iteration for layer in layers if len(layer.iteration)]
    first, last = min(int(x[0]) for x in recorded), max(int(x[-1]) for x in recorded)
    edges = np.linspace(first, last + 1, min(columns, max(map(len, recorded))) + 1)
    cells = np.full((len(layers), len(edges) - 1), -np.inf)
    for row, layer in zip(cells, layers, strict=True):
        if len(layer.iteration):
            value = relative_norms(layer)
            finite = np.isfinite(value)
            column = np.searchsorted(edges, layer.iteration[finite], side="right") - 1
            np.maximum.at(row, column, value[finite])
    return edges, np.where(np.isfinite(cells), cells, np.nan)
