"""List the runs in a folder: settings, progress and accuracy of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from stabilitylab.errors import StoreError
from stabilitylab.store.compaction import SEGMENTS
from stabilitylab.store.database import (
    DATABASE,
    LISTED,
    attach_base,
    connect,
    counts_for_list,
    json_object,
    one_line,
    stored_problems,
)
from stabilitylab.store.reader import open_run


@dataclass(frozen=True)
class RunInfo:
    """One line of the list. If the run cannot be read, `status` is `broken` and `problem` is the reason."""

    name: str
    path: Path
    status: str
    created_at: str = ""
    iterations: int = 0
    method: str = ""
    arch: str = ""
    data: str = ""
    mitigation: tuple[str, ...] = ()
    knn_top1: float | None = None
    problem: str = ""


def list_runs(root: Path | str) -> list[RunInfo]:
    """The runs in `root`, oldest first. Broken runs are included; folders without a run are not."""
    root = Path(root)
    if not root.is_dir():
        return []
    folders = [p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")]
    with connect(threads=1) as con:  # shared: starting DuckDB costs ten times as much as reading a file
        con.execute("PRAGMA disable_optimizer")  # it takes longer than these queries
        found = [_describe(con, p) for p in folders if _holds_run(p)]
    return sorted(found, key=lambda run: (run.created_at == "", run.created_at, run.name))


def _holds_run(path: Path) -> bool:
    return any((path / part).exists() for part in (DATABASE, SEGMENTS, "config.toml"))


def _describe(con: duckdb.DuckDBPyConnection, path: Path) -> RunInfo:
    try:
        if (path / SEGMENTS).exists() or not (path / DATABASE).exists():
            with open_run(path, merge=False) as run:
                return _info(path, run.meta | {"status": run.status}, run.problems, run.count_for_list)
        try:
            meta = attach_base(con, path.absolute() / DATABASE)
            return _info(path, meta, stored_problems(meta), lambda: counts_for_list(con, "base.main."))
        finally:
            con.execute("DETACH DATABASE IF EXISTS base")
    except (StoreError, OSError, duckdb.Error, UnicodeError) as error:
        return RunInfo(name=path.name, path=path, status="broken", problem=one_line(error))


def _info(
    path: Path, meta: Mapping[str, str], problems: list[str], count: Callable[[], tuple[int, float | None]]
) -> RunInfo:
    config = json_object(meta.get("config", ""))
    kept = json_object(meta.get(LISTED, "")) if meta.get("status") != "running" else {}
    iterations, knn = kept.get("iterations"), kept.get("knn_top1")
    if not isinstance(iterations, int) or not isinstance(knn, int | float | None):
        iterations, knn = count()
    return RunInfo(
        name=path.name,
        path=path,
        status=meta.get("status", "crashed"),
        created_at=meta.get("created_at", ""),
        iterations=iterations,
        method=_text(config, "method", "name"),
        arch=_text(config, "model", "arch"),
        data=_text(config, "data", "name"),
        mitigation=_mitigations(config.get("mitigation")),
        knn_top1=knn if knn is not None and math.isfinite(knn) else None,
        problem=problems[0] if problems else "",
    )


def _text(config: Mapping[str, Any], section: str, key: str) -> str:
    inner = config.get(section)
    value = inner.get(key) if isinstance(inner, Mapping) else None
    return "" if value is None else str(value)


def _mitigations(value: Any) -> tuple[str, ...]:
    if not value:
        return ()
    return (value,) if isinstance(value, str) else tuple(str(name) for name in value)
