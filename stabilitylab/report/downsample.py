"""Reduce the number of points for drawing without losing spikes."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import median_filter

from stabilitylab.analysis.results import LayerSeries

USUAL_WINDOW = 201


def min_max(x: np.ndarray, y: np.ndarray, bins: int = 1200) -> tuple[np.ndarray, np.ndarray]:
    """Keep the smallest and largest value of each bin and the ``bins`` sharpest peaks, in order. (n,) -> at most
    3 ``bins`` points; series with no more points are returned unchanged.

    The sharpness of a peak is the smaller of its steps up and down, in log units if all values are positive. A spike of
    one iteration is therefore kept even if its bin contains a higher one, so that it is visible when zooming in. The
    first value of each non-finite stretch is kept too, so that the line breaks there.
    """
    n = len(y)
    if n <= 3 * bins:
        return x, y
    starts = np.linspace(0, n, bins + 1).astype(int)[:-1]
    finite = np.isfinite(y)
    keep = ~finite & np.append(True, finite[:-1])  # one gap per stretch
    for sign in (1.0, -1.0):
        keep[_first_largest(np.where(finite, sign * y, -np.inf), starts)] = True
    keep[_sharpest(y, finite, bins)] = True
    return x[keep], y[keep]


def _first_largest(y: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The index of the first maximum of each block."""
    largest = np.maximum.reduceat(y, starts)
    widths = np.diff(np.append(starts, len(y)))
    places = np.flatnonzero(y == np.repeat(largest, widths))
    blocks = np.searchsorted(starts, places, side="right")
    places_found: np.ndarray = places[np.unique(blocks, return_index=True)[1]]
    return places_found


def _sharpest(y: np.ndarray, finite: np.ndarray, count: int) -> np.ndarray:
    usable = y[finite]
    height = np.zeros(len(y))
    height[finite] = np.log(usable) if (usable > 0).all() else usable
    step = np.where(finite[1:] & finite[:-1], np.diff(height), 0.0)
    sharpness = np.minimum(step[:-1], -step[1:])  # of 1 ... n - 2
    best: np.ndarray = np.argpartition(sharpness, -count)[-count:]
    return best[sharpness[best] > 0] + 1


def relative_norms(layer: LayerSeries) -> np.ndarray:
    """(n,): log10 of the gradient norm of a layer divided by its running median, as shown in the heat map."""
    with np.errstate(divide="ignore", invalid="ignore"):
        x = np.log10(layer.grad_norm)
    finite = np.isfinite(x)
    if not finite.any():
        return np.full(len(x), np.nan)
    filled = np.where(finite, x, np.median(x[finite])).astype(np.float32)
    usual: np.ndarray = median_filter(filled, size=min(USUAL_WINDOW, len(x)))
    return np.asarray(x - usual)


def heat_rows(layers: tuple[LayerSeries, ...], columns: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Column edges in iterations (columns + 1,) and cells (layers, columns): the maximum of ``relative_norms`` in each
    block, NaN if nothing was recorded."""
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
