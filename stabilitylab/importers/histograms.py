"""Gradient norms from histograms."""

from __future__ import annotations

import ast
import json
import math
from typing import Any

import numpy as np


def histogram_norm(value: dict[str, Any] | str) -> float | None:
    """The approximate L2 norm of the values in a W&B histogram, from its bins. None for other values.

    Values are assumed to be uniform within a bin, so their mean square is middle^2 + width^2 / 12.
    """
    if isinstance(value, str):
        if "histogram" not in value[:400] and "histogram" not in value[-400:]:
            return None
        parsed = _parse(value)
        if parsed is None:
            return None
        value = parsed
    if value.get("_type") != "histogram":
        return None
    try:
        counts = np.array(value["values"], np.float64)
        edges = _edges(value, len(counts))
    except (KeyError, TypeError, ValueError):
        return None
    if edges is None or len(edges) != len(counts) + 1 or not np.isfinite(counts).all():
        return None
    middle, width = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    square = float((counts * (middle**2 + width**2 / 12)).sum())
    return math.sqrt(square) if square >= 0 else None


def _edges(value: dict[str, Any], bins: int) -> np.ndarray | None:
    if "bins" in value:
        return np.array(value["bins"], np.float64)
    packed = value.get("packedBins")
    if not isinstance(packed, dict) or int(packed["count"]) != bins:
        return None
    return float(packed["min"]) + float(packed["size"]) * np.arange(bins + 1)


def _parse(text: str) -> dict[str, Any] | None:
    """Parse a dictionary in JSON or Python syntax, as in a CSV file written from W&B's history."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        try:
            parsed = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
    return parsed if isinstance(parsed, dict) else None
