"""Create the first manifest of a writer, for a new run or a run that is resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb

from stabilitylab.errors import RunBroken, StoreError
from stabilitylab.store.compaction import SEGMENTS, clean_folder, compact
from stabilitylab.store.database import DATABASE, attach_base, connect, one_line
from stabilitylab.store.locks import FolderLock, lock_for_writing
from stabilitylab.store.manifest import MANIFEST, Manifest, read_manifest
from stabilitylab.store.rows import utf8
from stabilitylab.store.schema import SCHEMA_VERSION, STORAGE_VERSION


def first_manifest(run_dir: Path, config: Mapping[str, Any], meta: Mapping[str, str]) -> Manifest:
    """The manifest of a new run, without segments."""
    own = {
        "schema_version": str(SCHEMA_VERSION),
        "run_id": utf8(run_dir.name),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": _json(config),
    }
    return Manifest(meta={**own, **_file_meta(), **_texts(meta), "status": "running"})


def reopen(
    run_dir: Path, at_iteration: int, config: Mapping[str, Any] | None, meta: Mapping[str, str]
) -> tuple[Manifest, FolderLock, str]:
    """Lock a run that has ended, merge segments left by a crash, and return its next manifest, the lock and the old
    status.

    Raises RunBusy if the run is being written, RunBroken if there is no run, StoreError if it cannot be merged.
    """
    folder = run_dir / SEGMENTS
    if at_iteration < 0:
        raise StoreError(f"cannot resume {run_dir} at iteration {at_iteration}; it must be 0 or more")
    if not (run_dir / DATABASE).exists() and not (folder / MANIFEST).exists():
        raise RunBroken(f"{run_dir} contains no run to resume; start a new one")
    lock = lock_for_writing(folder)
    try:
        if (folder / MANIFEST).exists():
            old, problems = read_manifest(folder)
            if old.status == "running":
                old = old.with_meta(status="crashed")
            compact(run_dir, old, problems, keep_folder=True)
        else:
            clean_folder(folder)
        with connect() as con:
            base = attach_base(con, run_dir / DATABASE)
    except (OSError, duckdb.Error) as error:
        lock.release()
        raise StoreError(f"cannot resume {run_dir}: {one_line(error)}; free disk space and try again") from None
    except BaseException:
        lock.release()
        raise
    new = {**base, **_file_meta(), **_texts(meta), "status": "running"}
    if config is not None:
        new["config"] = _json(config)
    return Manifest(meta=new, cut=at_iteration), lock, base.get("status", "unknown")


def _file_meta() -> dict[str, str]:
    return {
        "duckdb_version": duckdb.__version__,
        "storage": f"DuckDB file format {STORAGE_VERSION}: readable by DuckDB 1.4 and later",
    }


def _json(config: Mapping[str, Any]) -> str:
    return json.dumps(dict(config), default=str)


def _texts(meta: Mapping[str, Any]) -> dict[str, str]:
    return {utf8(str(key)): utf8(str(value)) for key, value in meta.items()}
