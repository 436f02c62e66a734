"""One run with its analysis: what a report, a plot and a comparison read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from stabilitylab.analysis.results import LayerSeries, RunAnalysis, RunSeries
from stabilitylab.comparison.arms import Arm, Settings, arms
from stabilitylab.comparison.effects import summarize_run
from stabilitylab.comparison.results import RunSummary
from stabilitylab.run.experiments import Experiment


@dataclass(frozen=True)
class AnalysedRun:
    """``loss`` is (iteration, loss); ``events`` are (iteration, kind, detail); ``accounts`` tell each episode in words,
    and what to try next; ``problems`` name what is damaged in the store. ``experiments`` were made on the run
    (`stablab cause`); ``next_experiments`` are commands for more."""

    series: RunSeries
    analysis: RunAnalysis
    config: dict[str, Any]
    status: str
    created_at: str
    loss: tuple[np.ndarray, np.ndarray] | None
    provenance: dict[str, str]
    events: Sequence[tuple[int, str, str]]
    accounts: Sequence[tuple[str, str]] = ()
    problems: Sequence[str] = ()
    experiments: Sequence[Experiment] = ()
    next_experiments: Sequence[str] = ()

    @property
    def name(self) -> str:
        return self.series.run

    @property
    def trained_layers(self) -> list[LayerSeries]:
        """The layers with gradients, from input to output."""
        return [layer for layer in self.series.layers if layer.trainable and len(layer.iteration)]

    @property
    def trained_here(self) -> bool:
        """Whether `stablab train` trained it, so that its options can be advised."""
        return "optim" in self.config

    @property
    def named(self) -> Settings:
        """Mitigation, seed and learning rate."""
        return Settings.of(self.config)

    @cached_property
    def summary(self) -> RunSummary:
        """The run's row in a comparison."""
        return summarize(self.series, self.analysis, self.config)


def summarize(series: RunSeries, analysis: RunAnalysis, config: dict[str, Any]) -> RunSummary:
    """A run's row in a comparison. A run without a configuration (imported) has seed 0 and no learning rate."""
    named = Settings.of(config)
    return summarize_run(series, analysis, mitigation=named.mitigation, seed=named.seed, base_lr=named.base_lr)


def last_finite(values: np.ndarray) -> float | None:
    """Where a curve ends; None where it never was a number."""
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if len(finite) else None


def arms_of(runs: Sequence[AnalysedRun]) -> tuple[Arm, ...]:
    """Which of the runs are drawn alike."""
    return arms([(run.name, run.named) for run in runs])
