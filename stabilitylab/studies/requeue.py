"""Requeue a Slurm job that was interrupted and recognise its restart."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from stabilitylab.config import Config, from_dict, read_toml
from stabilitylab.errors import ConfigError


def is_restart(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether Slurm has restarted this job."""
    count = environment.get("SLURM_RESTART_COUNT", "0")
    return count.isdecimal() and int(count) > 0


def check_same(run_dir: Path, config: Config) -> None:
    """Raise ConfigError if the run found by a restarted job has another configuration."""
    if from_dict(read_toml(run_dir / "config.toml")) != config:
        raise ConfigError(
            f"run {run_dir.name} exists with a configuration that differs from this job's; choose another --name"
        )


def requeue(environment: Mapping[str, str] = os.environ) -> bool:
    """Ask Slurm to restart this job. Returns False outside Slurm or if Slurm refuses."""
    job = environment.get("SLURM_JOB_ID")
    if not job:
        return False
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
