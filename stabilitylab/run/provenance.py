"""The provenance of a run: library versions, Python, git commit and processor."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from stabilitylab.version import __version__

_LIBRARIES = ("torch", "timm", "duckdb", "numpy")


def provenance() -> dict[str, str]:
    """Library versions, Python, git commit of the user's code and processor, as needed to reproduce the run."""
    facts = {"stabilitylab_version": __version__} | {f"{library}_version": _version(library) for library in _LIBRARIES}
    try:
        git = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=_users_folder(), check=False
        )
        commit = git.stdout.strip()
    except OSError:  # no git on this machine
        commit = ""
    return facts | {"python_version": platform.python_version(), "git_commit": commit, "cpu_model": cpu_model()}


def _version(library: str) -> str:
    """The version in the metadata of an installation or else in the module itself; empty if neither has it."""
    try:
        return version(library)
    except PackageNotFoundError:  # built from source, or found on PYTHONPATH
        return str(getattr(sys.modules.get(library), "__version__", ""))


def _users_folder() -> Path:
    """The folder of the user's code: that of the running script, or the working directory."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    if script is None or Path(script).resolve().is_relative_to(Path(sys.prefix).resolve()):
        return Path.cwd()  # a notebook, or a command that a package installed
    return Path(script).resolve().parent


def cpu_model() -> str:
    """The model name of the processor; empty if the system does not provide it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
