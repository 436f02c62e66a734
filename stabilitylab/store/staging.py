"""Runs that appear whole or not at all: written in a hidden folder, renamed to their name at the end.

A process that is killed leaves a hidden folder that takes no name. The next import removes it, as soon as nobody holds
its lock.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stabilitylab.errors import RunExists, StoreError
from stabilitylab.store.compaction import SEGMENTS
from stabilitylab.store.database import DATABASE
from stabilitylab.store.location import check_name
from stabilitylab.store.locks import try_lock
from stabilitylab.store.reader import open_run

_PREFIX = ".importing-"
_LOCK = "lock"
_STARTING_SECONDS = 60.0
"""A hidden folder without a lock file that is younger than this may belong to a process that is about to lock it."""


class Staging:
    """Hands out folders for new runs and gives all of them their names at once, with ``publish``."""

    def __init__(self, root: Path, folder: Path) -> None:
        self._root, self._folder = root, folder
        self._staged: list[tuple[Path, str | None]] = []

    def new(self, name: str | None) -> Path:
        """A folder to write a run into. Raises RunExists for a name that is taken, StoreError for one that no run can
        have; without a name the run gets the next number when it is published."""
        if name is not None:
            check_name(name)
            if (self._root / name).exists() or any(given == name for _, given in self._staged):
                raise RunExists(f"run {name!r} already exists in {self._root}; choose another name")
        path = self._folder / str(len(self._staged)) / (name or self._next_number(len(self._staged)))
        path.mkdir(parents=True)
        self._staged.append((path, name))
        return path

    def publish(self) -> list[Path]:
        """Give the runs their names. Raises StoreError, and names none, if one of them is not whole."""
        for path, name in self._staged:
            _require_whole(path)
            if name is not None and (self._root / name).exists():
                raise RunExists(f"run {name!r} already exists in {self._root}; choose another name")
        published = []
        for path, name in self._staged:
            while True:
                target = self._root / (name or self._next_number())
                try:
                    if target.exists():
                        raise FileExistsError
                    path.rename(target)
                except OSError as error:
                    if name is None and target.exists():
                        continue
                    raise StoreError(f"cannot name {target}: {error.strerror or 'it exists'}; choose another") from None
                published.append(target)
                break
        return published

    def _next_number(self, later: int = 0) -> str:
        taken = (re.fullmatch(r"run_(\d+)", path.name) for path in self._root.iterdir())
        return f"run_{1 + later + max((int(match[1]) for match in taken if match), default=0):03d}"


@contextmanager
def stage_runs(root: Path) -> Iterator[Staging]:
    """A place for new runs below ``root``. What is not published when the block ends is removed."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(root)
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
        lock = try_lock(folder / _LOCK)
    except OSError as error:
        raise StoreError(
            f"cannot make a run in {root}: {error.strerror or error}; choose another folder with --runs-dir"
        ) from None
    try:
        yield Staging(root, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            lock.release()


def _remove_abandoned(root: Path) -> None:
    """Remove the hidden folders of imports that were killed: those whose lock nobody holds."""
    for folder in root.glob(f"{_PREFIX}*"):
        try:
            if folder.is_symlink() or not folder.is_dir():
                continue
            known = (folder / _LOCK).exists()
            if not known and time.time() - folder.stat().st_mtime < _STARTING_SECONDS:
                continue
            lock = try_lock(folder / _LOCK)
        except OSError:
            continue
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            lock.release()


def _require_whole(path: Path) -> None:
    if not (path / DATABASE).exists() or (path / SEGMENTS).exists():
        raise StoreError(f"not everything could be written to {path.parents[2]}: make room, then import again")
    with open_run(path, merge=False) as run:
        if run.problems:
            raise StoreError(f"not everything could be written: {run.problems[0]}; make room, then import again")
