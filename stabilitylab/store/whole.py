"""Write runs atomically: an import that fails or is killed leaves no run and reserves no name."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stabilitylab.errors import RunExists, StoreError
from stabilitylab.store.database import DATABASE, check_path
from stabilitylab.store.location import check_name, next_number
from stabilitylab.store.schema import LayerRow
from stabilitylab.store.writer import RunWriter
from stabilitylab.unfinished import remove_unfinished

_UNFINISHED = re.compile(r"\.import-(?P<pid>[0-9]+)-[0-9a-f]{8}")


@dataclass(frozen=True)
class WholeRun:
    """A run to be written atomically: its name, or None for the next free number, and the arguments of
    `RunWriter.create`. `fill` appends its rows."""

    name: str | None
    fill: Callable[[RunWriter], None]
    config: Mapping[str, Any]
    meta: Mapping[str, str]
    layers: Sequence[LayerRow]


def write_run_whole(
    root: Path | str,
    name: str | None,
    fill: Callable[[RunWriter], None],
    *,
    config: Mapping[str, Any],
    meta: Mapping[str, str],
    layers: Sequence[LayerRow],
) -> Path:
    """Create a finished run in `root`, named `name` or the next free of run_001, run_002, ...; `fill` appends its rows.
    Returns its folder.

    The run is written under a hidden name and renamed when it is complete. Raises RunExists if the name is taken,
    StoreError if a row could not be written.
    """
    return write_runs_whole(root, [WholeRun(name, fill, config, meta, layers)])[0]


def write_runs_whole(root: Path | str, runs: Sequence[WholeRun]) -> list[Path]:
    """Create several runs in `root`. They are renamed only when all are complete, so a failure leaves none of them."""
    root = Path(root)
    folders: list[Path] = []
    try:
        try:
            check_path(root)
            root.mkdir(parents=True, exist_ok=True)
            for run in runs:
                if run.name is not None and os.path.lexists(root / check_name(run.name)):
                    raise RunExists(f"run {run.name!r} already exists in {root}; choose another name")
            remove_unfinished(root, _UNFINISHED)
            for _ in runs:
                folder = root / f".import-{os.getpid()}-{uuid.uuid4().hex[:8]}"
                folder.mkdir()
                folders.append(folder)
        except OSError as error:
            raise StoreError(
                f"cannot create a run in {root}: {error.strerror or error}; choose another folder with --runs-dir"
            ) from None
        for run, folder in zip(runs, folders, strict=True):
            _write(run, folder, root)
        return [_place(folder, root, run.name) for run, folder in zip(runs, folders, strict=True)]
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)  # created above; already renamed if the run was placed


def _write(run: WholeRun, folder: Path, root: Path) -> None:
    meta = {**run.meta, "run_id": run.name or ""}
    writer = RunWriter.create(folder, config=run.config, meta=meta, layers=run.layers)
    with writer:
        run.fill(writer)
    if writer.unwritten or not (folder / DATABASE).exists():
        reason = writer.unwritten[0].replace(str(folder), "it") if writer.unwritten else "it could not be merged"
        raise StoreError(f"nothing was imported into {root}: {reason}; free disk space and try again")


def _place(folder: Path, root: Path, name: str | None) -> Path:
    while True:
        target = root / (name or f"run_{next_number(root):03d}")
        try:
            if os.path.lexists(target):  # rename would replace an empty folder
                raise FileExistsError
            folder.rename(target)
        except OSError as error:
            if not target.exists():
                raise StoreError(f"cannot create a run in {root}: {error.strerror}") from None
            if name is not None:
                raise RunExists(f"run {name!r} already exists in {root}; choose another name") from None
        else:
            return target
