"""How far a run was trained: an experiment starts from an iteration that it reached."""

from __future__ import annotations

from pathlib import Path

from stabilitylab.errors import ConfigError
from stabilitylab.store.reader import open_run


def require_reached(run_dir: Path, at: int, checkpoints: list[int]) -> None:
    """Raise ConfigError if the run ended early, before iteration ``at``, as its rows and ``checkpoints`` say."""
    with open_run(run_dir) as reader:
        reached = max(reader.num_iterations, *checkpoints)
        ended_early = reader.status != "finished"
    if ended_early and at > reached:
        raise ConfigError(f"run {run_dir.name} reached iteration {reached}, not {at}; choose an earlier iteration")
