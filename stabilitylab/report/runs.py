"""What a report knows of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stabilitylab.analysis.results import LayerSeries, RunAnalysis, RunSeries
from stabilitylab.comparison.arms import Arm, Settings, arms


@dataclass(frozen=True)
class ReportRun:
    """One run of a report. ``loss`` is (iteration, loss); ``events`` are (iteration, kind, detail); ``accounts`` tell
    each episode in words, and what to try next."""

    series: RunSeries
    analysis: RunAnalysis
    config: dict[str, Any]
    status: str
    created_at: str
    loss: tuple[np.ndarray, np.ndarray] | None
    provenance: dict[str, str]
    events: Sequence[tuple[int, str, str]]
    accounts: Sequence[tuple[str, str]] = ()

    @property
    def trained_layers(self) -> list[LayerSeries]:
        return [layer for layer in self.series.layers if layer.trainable and len(layer.iteration)]

    @property
    def named(self) -> Settings:
        return Settings.of(self.config)


def last_finite(values: np.ndarray) -> float | None:
    """Where a curve ends; None where it never was a number."""
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if len(finite) else None


def arms_of(runs: Sequence[ReportRun]) -> tuple[Arm, ...]:
    """Which of the runs are drawn alike."""
    return arms([(run.series.run, run.named) for run in runs])
