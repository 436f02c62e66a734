"""The command line as a user runs it, in an empty folder. `test_live`, `test_watch` and `test_chain` also run it as a
separate process."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import stablab_here

Stablab = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def stablab(tmp_path: Path) -> Stablab:
    """Run ``stablab ARGS`` in an empty folder. ``code`` is the exit code to expect."""

    def run(*args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = stablab_here(*args, cwd=tmp_path)
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
