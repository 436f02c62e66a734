"""Where a run came from: versions, Python, git commit."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

_LIBRARIES = ("stabilitylab", "torch", "timm", "duckdb", "numpy")


def provenance() -> dict[str, str]:
    """Versions, Python, git commit of the working folder: what a reader needs to repeat the run."""
    found = {f"{library}_version": version(library) for library in _LIBRARIES}
    try:
        git = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
        )
        commit = git.stdout.strip()
    except OSError:  # no git on this machine
        commit = ""
    return found | {"python_version": platform.python_version(), "git_commit": commit}
