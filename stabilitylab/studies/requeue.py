"""A Slurm job that is cut short and started again with the same command."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from stabilitylab.config import Config, from_dict, read_toml
from stabilitylab.errors import ConfigError


def is_restart(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether Slurm has started this job before."""
    count = environment.get("SLURM_RESTART_COUNT", "0")
    return count.isdecimal() and int(count) > 0


def check_same(run_dir: Path, config: Config) -> None:
    """ConfigError where the run that a restarted job finds under its name is of another configuration."""
    if from_dict(read_toml(run_dir / "config.toml")) != config:
        raise ConfigError(
            f"run {run_dir.name} exists with another configuration than this restarted job's; choose another --name"
        )


def requeue(environment: Mapping[str, str] = os.environ) -> bool:
    """Ask Slurm to start this job again. False outside Slurm, or where it does not requeue."""
    job = environment.get("SLURM_JOB_ID")
    if not job:
        return False
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
