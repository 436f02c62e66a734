"""What was recorded since the last flush, and its rows as columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

Scalar = float | int | Tensor


@dataclass
class Buffer:
    """What was recorded since the last flush."""

    stats: list[tuple[int, Tensor]] = field(default_factory=list)
    rows: list[dict[str, Scalar]] = field(default_factory=list)
    evals: list[tuple[int, str, float, int]] = field(default_factory=list)
    scalars: list[dict[str, Scalar]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)  # of the scalars
    skips: list[tuple[int, Tensor]] = field(default_factory=list)


def in_columns(rows: Sequence[dict[str, Scalar]]) -> dict[str, object]:
    """Rows to columns; a row without the column is masked."""
    columns: dict[str, object] = {}
    for name in dict.fromkeys(key for row in rows for key in row):
        values = [row.get(name) for row in rows]
        mask = [v is None for v in values]
        filled = np.array([0 if v is None else v for v in values])
        columns[name] = np.ma.masked_array(filled, mask) if any(mask) else filled
    return columns
