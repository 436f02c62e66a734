"""Detect recorded norms that are wrong: measured after clipping or after zero_grad."""

from __future__ import annotations

import numpy as np

from stabilitylab.recording.columns import LayerStats

FIRST_LOOK = 16
"""Iterations before the first check."""
_ALIKE = 5
_CLOSE = 1e-4
"""At least `_ALIKE` total norms within this relative distance of the largest indicate clipping."""
_KEPT = 60


class NormChecks:
    """Checks the norms of each flush together with the most recent earlier ones. Each finding is reported once."""

    def __init__(self) -> None:
        self._norms: np.ndarray | None = None  # (iterations, layers), 0 where not measured
        self._told: set[str] = set()

    def look(self, stats: LayerStats) -> list[tuple[str, str]]:
        """Check a flush. Returns (event kind, text) of each new finding."""
        norms = stats.layer_norms()
        if norms is None or not len(norms):
            return []
        before = norms[:0] if self._norms is None else self._norms
        self._norms = np.concatenate([before, norms])[-_KEPT:]
        with np.errstate(all="ignore"):
            totals = np.sqrt((self._norms.astype(np.float64) ** 2).sum(axis=1))
        events = {"zero-gradient": self._zero(totals), "clipped": self._clipped(totals)}
        new = [(kind, text) for kind, text in events.items() if text and kind not in self._told]
        self._told |= {kind for kind, _ in new}
        return new

    def _zero(self, totals: np.ndarray) -> str:
        if len(totals) < _ALIKE or (totals[-_ALIKE:] != 0).any():
            return ""
        return (
            "every gradient is zero at rec.step(): call it after backward() and before optimizer.zero_grad(), "
            "or pass record(..., measure='backward')"
        )

    def _clipped(self, totals: np.ndarray) -> str:
        assert self._norms is not None
        finite = np.isfinite(totals) & (totals > 0)
        if finite.sum() < 2 * _ALIKE:
            return ""
        top = totals[finite].max()
        alike = finite & (totals > top * (1 - _CLOSE))
        if alike.sum() < _ALIKE:
            return ""
        shares = self._norms[alike] / totals[alike, None]
        if (shares.max(axis=0) - shares.min(axis=0)).max() < 100 * _CLOSE:
            return ""  # the same gradient every time, not clipping
        return (
            f"the total gradient norm is {top:.4g} in {alike.sum()} of {finite.sum()} iterations: gradients are "
            "clipped before rec.step(). Call rec.step() before clipping, or pass record(..., measure='backward')"
        )
