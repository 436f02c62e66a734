"""Complete a run of a study: keep, resume or train it. Recorded data is never deleted."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from stabilitylab.config import Config
from stabilitylab.errors import RunBusy, RunExists, StoreError
from stabilitylab.store.compaction import SEGMENTS
from stabilitylab.store.database import DATABASE
from stabilitylab.store.locks import COMPACT_LOCK, WRITER_LOCK, lock_for_writing
from stabilitylab.store.manifest import MANIFEST
from stabilitylab.store.reader import open_run
from stabilitylab.studies.running import FinishedRun, resume_run, train_in, train_run

if TYPE_CHECKING:
    from stabilitylab.train.trainer import Progress


_PATIENCE = 10.0
"""Seconds to wait for another process to leave a run. A worker whose study was killed trains on until its next report,
and may even begin a run."""


class Preempted(Exception):  # noqa: N818
    """A signal stopped the run after a checkpoint. The next attempt resumes it."""


def is_complete(run_dir: Path) -> bool:
    """Whether a run is complete: it made all its iterations or stopped at a non-finite loss."""
    if not run_dir.is_dir():
        return False
    try:
        with open_run(run_dir) as reader:
            if reader.status == "stopped":  # by a non-finite loss or by the user
                return any(event.kind == "nonfinite" for event in reader.events())
            return reader.status == "finished"
    except StoreError:
        return False


def train_or_resume(
    config: Config,
    root: Path,
    name: str,
    progress: Callable[[Progress], None] = lambda _: None,
    *,
    interruptible: bool = False,
) -> Path:
    """Complete run ``name``: keep it if it is complete, resume it from its last checkpoint if it died, else train it.

    Recorded data is never deleted. A run that was killed before its first checkpoint is renamed and trained again.
    Raises StoreError for any other run that cannot be resumed, RunBusy if another process goes on writing it, and, if
    ``interruptible``, Preempted when a signal stops it.
    """
    patient_until = time.monotonic() + _PATIENCE
    while True:
        try:
            return _train_or_resume(config, root, name, progress, interruptible)
        except (RunBusy, RunExists):
            if time.monotonic() > patient_until:
                raise
        time.sleep(_PATIENCE / 50)


def _train_or_resume(
    config: Config, root: Path, name: str, progress: Callable[[Progress], None], interruptible: bool
) -> Path:
    from stabilitylab.train.checkpoint import checkpoints

    run_dir = root / name
    if is_complete(run_dir):
        return run_dir
    if not run_dir.exists():
        return _completed(train_run(config, root, name, progress, interruptible=interruptible))
    lock_for_writing(run_dir / SEGMENTS).release()  # raises RunBusy
    if checkpoints(run_dir / "checkpoints"):
        return _completed(resume_run(run_dir, progress, interruptible=interruptible))
    if (run_dir / DATABASE).exists() or (run_dir / SEGMENTS / MANIFEST).exists():
        set_aside(run_dir)
        return _completed(train_run(config, root, name, progress, interruptible=interruptible))
    if not is_bare_claim(run_dir):
        raise StoreError(f"{run_dir} contains other files; move them away, then rerun the same command")
    return train_in(run_dir, config, progress).path


def _completed(finished: FinishedRun) -> Path:
    """The folder of a run. Raises Preempted if a signal stopped it."""
    if finished.result.interrupted:
        raise Preempted(finished.result.stopped)
    return finished.path


def set_aside(run_dir: Path) -> Path:
    """Rename a run that was killed before its first checkpoint, so that its name is free. Returns its new folder.
    Raises StoreError for any other run, which is left unchanged."""
    with open_run(run_dir) as reader:
        had_checkpoint = any(event.kind == "checkpoint" for event in reader.events())
        if reader.problems:
            why = f"it is damaged ({reader.problems[0]})"
        elif had_checkpoint:
            why = "its checkpoints are missing"
        elif reader.status != "crashed":
            why = f"it is {reader.status} and has no checkpoint"
        else:
            why = ""
    if why:
        raise StoreError(
            f"run {run_dir.name} in {run_dir.parent} cannot be resumed: {why}; it was not changed. "
            "Restore what is missing or move the run away, then rerun the same command"
        )
    return rename_killed(run_dir)


def rename_killed(run_dir: Path) -> Path:
    """Rename a run that nobody is writing to ``NAME-killed-N``, so that its name is free. Returns its new folder.
    Raises RunBusy if another process is writing it."""
    number = 1
    while (target := run_dir.with_name(f"{run_dir.name}-killed-{number}")).exists():
        number += 1
    lock = lock_for_writing(run_dir / SEGMENTS)
    try:
        run_dir.rename(target)
    finally:
        lock.release()
    return target


def is_bare_claim(run_dir: Path) -> bool:
    """Whether a folder was claimed by a process that was killed before it recorded anything."""
    rest = {path.name for path in run_dir.iterdir()} - {"config.toml", "checkpoints", SEGMENTS}
    started = [path for name in ("checkpoints", SEGMENTS) for path in (run_dir / name).glob("*")]
    return not rest and all(path.name in (WRITER_LOCK, COMPACT_LOCK) for path in started if path.suffix != ".tmp")


def attempt(
    config: Config,
    root: Path,
    name: str,
    progress: Callable[[Progress], None] = lambda _: None,
    *,
    interruptible: bool = False,
) -> str:
    """Call `train_or_resume`. Returns the reason of a failure, or an empty string. BrokenPipeError and Preempted are
    raised: neither the death of the parent process nor preemption is a failure of the run."""
    try:
        train_or_resume(config, root, name, progress, interruptible=interruptible)
    except (BrokenPipeError, Preempted):
        raise
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
