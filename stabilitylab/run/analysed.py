"""A run together with its analysis: the input of reports, plots and comparisons."""

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
    """``loss`` is (iteration, loss); ``events`` are (iteration, kind, detail); ``explanations`` are (description, next
    step) of each episode; ``problems`` describe damage in the store. ``experiments`` are those made on the run
    (`stablab cause`); ``next_experiments`` are commands for further ones."""

    series: RunSeries
    analysis: RunAnalysis
    config: dict[str, Any]
    status: str
    created_at: str
    loss: tuple[np.ndarray, np.ndarray] | None
    provenance: dict[str, str]
    events: Sequence[tuple[int, str, str]]
    explanations: Sequence[tuple[str, str]] = ()
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
        """Whether `stablab train` produced the run, so that advice can name its options."""
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
    """A run's row in a comparison. A run without a configuration (imported) gets seed 0 and no learning rate."""
    named = Settings.of(config)
    return summarize_run(series, analysis, mitigation=named.mitigation, seed=named.seed, base_lr=named.base_lr)


def last_finite(values: np.ndarray) -> float | None:
    """The last finite value of a curve; None if there is none."""
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if len(finite) else None


def arms_of(runs: Sequence[AnalysedRun]) -> tuple[Arm, ...]:
    """Group the runs into arms, which share a style in plots."""
    return arms([(run.name, run.named) for run in runs])
