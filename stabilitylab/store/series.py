"""Cuts the rows of a run into one series a layer, without copying more than it must."""

from __future__ import annotations

import itertools

import numpy as np


def split_by_layer(
    layer_id: np.ndarray, iteration: np.ndarray, value: np.ndarray
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """layer_id -> (iteration, value), each by iteration, from three arrays of one length in any order.

    A compacted run comes in order and is only cut. Segments come by iteration; a stable sort by layer suffices.
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
    """A fetched column without a mask: NULL is NaN among numbers (then float64) and None among text."""
    if not isinstance(values, np.ma.MaskedArray):
        return values
    plain = np.array(values.data, dtype=object if values.dtype == object else np.float64)
    plain[np.ma.getmaskarray(values)] = None  # None becomes NaN among floats
    return plain
