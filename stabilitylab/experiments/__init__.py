"""Runs: one, several side by side, a whole study."""

from stabilitylab.experiments.local import train_side_by_side
from stabilitylab.experiments.reading import load_series
from stabilitylab.experiments.running import FinishedRun, probe_run, provenance, resume_run, train_run

__all__ = [
    "FinishedRun",
    "load_series",
    "probe_run",
    "provenance",
    "resume_run",
    "train_run",
    "train_side_by_side",
]
