"""The command line as a user runs it: a separate process, an empty folder, separate runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Stablab = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def stablab(tmp_path: Path) -> Stablab:
    """Run ``stablab ARGS`` in an empty folder. ``code`` is the exit code to expect."""

    def run(*args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if k != "STABLAB_RUNS"} | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "stabilitylab", *args],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    return run


@pytest.fixture
def refusal(stablab: Stablab) -> Callable[..., str]:
    """Run a command that must be refused: exit code 2, nothing on standard output, one line of reason."""

    def run(*args: str) -> str:
        done = stablab(*args, code=2)
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith("stablab: ")
        return done.stderr.strip().removeprefix("stablab: ")

    return run
