"""Convert recorded statistics on the host to columns of the store's tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stabilitylab.recording.buffer import Scalar
from stabilitylab.signals import Signal


@dataclass
class LayerStats:
    """``values`` float and ``measured`` bool, both (iterations, signals, layers); ``iterations`` strictly increases."""

    signals: Sequence[Signal]
    iterations: np.ndarray
    values: np.ndarray
    measured: np.ndarray

    def of_gradient(self) -> list[int]:
        """Indices of the gradient signals."""
        return [i for i, signal in enumerate(self.signals) if signal.source == "gradient"]

    def measured_names(self) -> list[str]:
        """Names of the signals measured in at least one layer."""
        return [signal.name for i, signal in enumerate(self.signals) if self.measured[:, i].any()]

    def with_gradient(self) -> np.ndarray:
        """(layers,) whether any gradient signal was measured."""
        return np.asarray(self.measured[:, self.of_gradient()].any(axis=(0, 1)))

    def not_finite(self) -> set[int]:
        """The iterations at which a gradient was not finite."""
        bad = np.zeros(len(self.iterations), bool)
        for i in self.of_gradient():
            odd = self.values[:, i] > 0 if self.signals[i].flags_nonfinite else ~np.isfinite(self.values[:, i])
            bad |= (odd & self.measured[:, i]).any(axis=1)
        return set(self.iterations[bad].tolist())

    def drop_gradients(self, iterations: set[int]) -> None:
        """Skipped updates are stored as NULL so that they do not count as spikes; the share of NaN is kept."""
        rows = np.isin(self.iterations, list(iterations))
        for i in self.of_gradient():
            if not self.signals[i].flags_nonfinite:
                self.measured[rows, i] = False

    def layer_norms(self) -> np.ndarray | None:
        """(iterations, layers) gradient norms, 0 if not measured, of the iterations with any norm. None if gradient
        norms are not recorded."""
        for i, signal in enumerate(self.signals):
            if signal.name == "grad_norm":
                norms = np.where(self.measured[:, i], self.values[:, i].astype(np.float64), 0.0)
                return np.asarray(norms[self.measured[:, i].any(axis=1)])
        return None

    def global_norms(self) -> dict[int, float]:
        """iteration -> gradient norm over all layers, for iterations where any layer has one."""
        norms = self.layer_norms()
        if norms is None:
            return {}
        index = [signal.name for signal in self.signals].index("grad_norm")
        there = self.measured[:, index].any(axis=1)
        with np.errstate(invalid="ignore", over="ignore"):
            totals = np.sqrt((norms**2).sum(axis=1))
        return dict(zip(self.iterations[there].tolist(), totals.tolist(), strict=True))

    def columns(self, live: np.ndarray) -> dict[str, object]:
        """Columns of ``layer_stats``: one row per iteration and layer in ``live`` (layers,), masked if not measured."""
        layers = np.flatnonzero(live).astype(np.int16)
        columns: dict[str, object] = {
            "iteration": np.repeat(self.iterations, len(layers)),
            "layer_id": np.tile(layers, len(self.iterations)),
        }
        for i, signal in enumerate(self.signals):
            missing = ~self.measured[:, i, layers].ravel()
            columns[signal.name] = np.ma.masked_array(self.values[:, i, layers].ravel(), missing)
        return columns


def in_columns(rows: Sequence[dict[str, Scalar]]) -> dict[str, object]:
    """Convert rows to columns; a value missing from a row is masked."""
    columns: dict[str, object] = {}
    for name in dict.fromkeys(key for row in rows for key in row):
        values = [row.get(name) for row in rows]
        mask = [v is None for v in values]
        filled = np.array([0 if v is None else v for v in values])
        columns[name] = np.ma.masked_array(filled, mask) if any(mask) else filled
    return columns
