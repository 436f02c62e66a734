"""Lists the runs of a folder: what each was, how far it got, how well it did."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from stabilitylab.errors import StoreError
from stabilitylab.store.compaction import SEGMENTS
from stabilitylab.store.database import DATABASE
from stabilitylab.store.manifest import MANIFEST
from stabilitylab.store.reader import open_run


@dataclass(frozen=True)
class RunInfo:
    """One line of the list. `status` is `broken`, with the reason in `problem`, where the run cannot be read."""

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
    """The runs in `root`, oldest first; folders that hold no run are left out, runs that are broken are not."""
    root = Path(root)
    if not root.is_dir():
        return []
    folders = [p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")]
    found = [_describe(p) for p in folders if _holds_run(p)]
    return sorted(found, key=lambda run: (run.created_at == "", run.created_at, run.name))


def _holds_run(path: Path) -> bool:
    return any((path / part).exists() for part in (DATABASE, f"{SEGMENTS}/{MANIFEST}", SEGMENTS, "config.toml"))


def _describe(path: Path) -> RunInfo:
    try:
        with open_run(path, merge=False) as run:
            config = run.config
            best = run.query(
                "SELECT value FROM evals WHERE metric = 'knn_top1' ORDER BY iteration DESC LIMIT 1"
            ).fetchone()
            return RunInfo(
                name=path.name,
                path=path,
                status=run.status,
                created_at=run.meta.get("created_at", ""),
                iterations=run.num_iterations,
                method=_text(config, "method", "name"),
                arch=_text(config, "model", "arch"),
                data=_text(config, "data", "name"),
                mitigation=_mitigations(config.get("mitigation")),
                knn_top1=None if best is None else best[0],
                problem=run.problems[0] if run.problems else "",
            )
    except (StoreError, OSError, duckdb.Error, json.JSONDecodeError) as error:
        return RunInfo(name=path.name, path=path, status="broken", problem=str(error))


def _text(config: Mapping[str, Any], section: str, key: str) -> str:
    inner = config.get(section)
    value = inner.get(key) if isinstance(inner, Mapping) else None
    return "" if value is None else str(value)


def _mitigations(value: Any) -> tuple[str, ...]:
    if not value:
        return ()
    return (value,) if isinstance(value, str) else tuple(str(name) for name in value)
