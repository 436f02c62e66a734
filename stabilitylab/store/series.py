"""Split the rows of a run into one series per layer with as few copies as possible."""

from __future__ import annotations

import itertools

import numpy as np


def split_by_layer(
    layer_id: np.ndarray, iteration: np.ndarray, value: np.ndarray
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """layer_id -> (iteration, value), sorted by iteration, from three arrays of equal length in any order.

    The rows of a compacted run are sorted and only need to be split. Segments are sorted by iteration, so a stable sort
    by layer is enough.
    """
    if len(layer_id) == 0:
        return {}
    if not (layer_id[1:] >= layer_id[:-1]).all():
        order = np.argsort(layer_id, kind="stable")
        layer_id, iteration, value = layer_id[order], iteration[order], value[order]
    same_layer = layer_id[1:] == layer_id[:-1]
    if (same_layer & (iteration[1:] < iteration[:-1])).any():
        order = np.lexsort((iteration, layer_id))
        layer_id, iteration, value = layer_id[order], iteration[order], value[order]
        same_layer = layer_id[1:] == layer_id[:-1]
    edges = np.concatenate(([0], np.flatnonzero(~same_layer) + 1, [len(layer_id)]))
    return {int(layer_id[start]): (iteration[start:end], value[start:end]) for start, end in itertools.pairwise(edges)}


def without_mask(values: np.ndarray) -> np.ndarray:
    """Convert a fetched column to a plain array: NULL becomes NaN in numbers (then float64) and None in text."""
    if not isinstance(values, np.ma.MaskedArray):
        return values
    plain = np.array(values.data, dtype=object if values.dtype == object else np.float64)
    plain[np.ma.getmaskarray(values)] = None  # None becomes NaN among floats
    return plain
