"""The runs folder: create the folder of a run under a free name, and find a run by name."""

from __future__ import annotations

import difflib
import os
import re
import shutil
from pathlib import Path

from stabilitylab.errors import RunExists, RunNotFound, StoreError
from stabilitylab.store.compaction import SEGMENTS
from stabilitylab.store.database import DATABASE, check_path
from stabilitylab.store.listing import RunInfo, list_runs
from stabilitylab.store.manifest import MANIFEST

__all__ = ["RunInfo", "claim_run", "find_run", "list_runs", "runs_root", "unclaim"]

_NUMBERED = re.compile(r"run_([0-9]{1,18})")
_LONGEST_NAME = 200
SHOWN = 5
"""Number of names in a message about a run that does not exist."""


def runs_root(option: str | Path | None = None) -> Path:
    """The runs folder: `option`, else $STABLAB_RUNS, else ./runs."""
    return Path(option or os.environ.get("STABLAB_RUNS") or "runs")


def claim_run(root: Path | str, name: str | None = None) -> Path:
    """Create the folder of a new run, named `name` or the next free of run_001, run_002, ...

    Creating the folder reserves the name, so runs that start simultaneously never share one. Raises RunExists if the
    name is taken, StoreError if it is not a valid folder name.
    """
    root = Path(root)
    try:
        check_path(root)
        root.mkdir(parents=True, exist_ok=True)
        if name is not None:
            check_name(name)
            try:
                (root / name).mkdir()
            except FileExistsError:
                raise RunExists(f"run {name!r} already exists in {root}; choose another name") from None
            return root / name
        number = next_number(root)
        while True:
            path = root / f"run_{number:03d}"
            try:
                path.mkdir()
            except FileExistsError:
                number += 1
            else:
                return path
    except OSError as error:
        raise StoreError(
            f"cannot create a run in {root}: {error.strerror or error}; choose another folder with --runs-dir"
        ) from None


def unclaim(run_dir: Path) -> None:
    """Remove the folder of a run that could not be started. A folder that contains a run is kept."""
    if not (run_dir / DATABASE).exists() and not (run_dir / SEGMENTS / MANIFEST).exists():
        shutil.rmtree(run_dir, ignore_errors=True)


def next_number(root: Path) -> int:
    """The highest number of run_001, run_002, ... in `root`, plus one."""
    return 1 + max((int(m[1]) for p in root.iterdir() if (m := _NUMBERED.fullmatch(p.name))), default=0)


def check_name(name: str) -> str:
    """Return `name` if it is a valid name of a run. Raises StoreError with the reason otherwise."""
    if not name.strip():
        reason = "it is empty"
    elif name.startswith((".", "-")):
        reason = "it must not start with a dot or a dash"
    elif "/" in name or "\\" in name:
        reason = "it must not contain a slash"
    elif "?" in name:
        reason = "DuckDB cannot write below a folder with a question mark in its name"
    elif not name.isprintable():
        reason = "it contains non-printable characters"
    elif name != name.strip():
        reason = "it starts or ends with a space"
    elif len(name.encode()) > _LONGEST_NAME:
        reason = f"it is longer than {_LONGEST_NAME} bytes"
    else:
        return name
    raise StoreError(f"a run cannot be named {name!r}: {reason}")


def find_run(root: Path | str, name: str | Path) -> Path:
    """The folder of the run `name` in `root`. `name` may also be the path of a run's folder.

    Raises RunNotFound, which suggests similar names.
    """
    root = Path(root)
    text = str(name)
    if text and text not in (".", ".."):
        inside = root / text
        try:
            if "/" not in text and inside.is_dir():
                return inside
            path = Path(text).expanduser()
            if path.is_dir() and _looks_like_run(path):
                return path
        except (OSError, ValueError, RuntimeError):
            pass  # not a valid path: too long, contains NUL, or ~user of an unknown user
    names = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    names = [n for n in names if not n.startswith(".")]
    near = difflib.get_close_matches(Path(text).name, names, n=3, cutoff=0.6)
    if near:
        hint = f"similar: {', '.join(near)}"
    elif names:
        others = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        hint = f"its runs: {', '.join(names[-SHOWN:])}{others}"
    else:
        hint = "the folder has no runs; choose another with --runs-dir, or start a run with `stablab train`"
    raise RunNotFound(f"no run {_shortened(text)!r} in {root}; {hint}")


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."


def _looks_like_run(path: Path) -> bool:
    return any((path / part).exists() for part in (DATABASE, SEGMENTS, "config.toml"))
