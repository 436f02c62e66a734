"""List the runs in a folder: settings, progress and accuracy of each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import duckdb

from stabilitylab.errors import StoreError
from stabilitylab.store.compaction import SEGMENTS
from stabilitylab.store.database import (
    DATABASE,
    LISTED,
    attach_base,
    attach_many,
    connect,
    facts_for_list,
    json_object,
    limited,
    one_line,
    stored_problems,
)
from stabilitylab.store.reader import open_run

_AT_ONCE = 50
"""Number of databases that are attached together."""


@dataclass(frozen=True)
class ListedMetric:
    """The last finite value of an evaluation curve, the number of finite values, and the declared goal."""

    last: float
    count: int
    goal: str | None = None


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
    metrics: Mapping[str, ListedMetric] = field(default_factory=dict)
    judged: str = ""
    """The metric that the configuration names to judge the run by."""
    problem: str = ""

    @property
    def knn_top1(self) -> float | None:
        return self.metrics["knn_top1"].last if "knn_top1" in self.metrics else None


def list_runs(root: Path | str) -> list[RunInfo]:
    """The runs in `root`, oldest first. Broken runs are included; folders without a run are not."""
    root = Path(root)
    if not root.is_dir():
        return []
    folders = [p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")]
    with connect(threads=1) as con:  # shared: starting DuckDB costs ten times as much as reading a file
        con.execute("PRAGMA disable_optimizer")  # it takes longer than these queries
        runs = [p for p in folders if _holds_run(p)]
        listed = [info for k in range(0, len(runs), _AT_ONCE) for info in _describe_many(con, runs[k : k + _AT_ONCE])]
    return sorted(listed, key=lambda run: (run.created_at == "", run.created_at, run.name))


def _holds_run(path: Path) -> bool:
    return any((path / part).exists() for part in (DATABASE, SEGMENTS, "config.toml"))


def _describe_many(con: duckdb.DuckDBPyConnection, paths: list[Path]) -> list[RunInfo]:
    """Reads finished runs together, and one by one if any of them cannot be read."""
    finished = {f"run{i}": p for i, p in enumerate(paths) if (p / DATABASE).exists() and not (p / SEGMENTS).exists()}
    infos: dict[Path, RunInfo] = {}
    with contextlib.suppress(StoreError, OSError, duckdb.Error, UnicodeError):
        try:
            with limited(con, paths[0]):
                metas = attach_many(con, {name: path.absolute() / DATABASE for name, path in finished.items()})
                for name, meta in metas.items():
                    count = partial(facts_for_list, con, f"{name}.main.")
                    infos[finished[name]] = _info(finished[name], meta, stored_problems(meta), count)
        finally:
            for name in finished:
                con.execute(f"DETACH DATABASE IF EXISTS {name}")
    return [infos.get(path) or _describe(con, path) for path in paths]


def _describe(con: duckdb.DuckDBPyConnection, path: Path) -> RunInfo:
    try:
        if (path / SEGMENTS).exists() or not (path / DATABASE).exists():
            with open_run(path, merge=False) as run:
                return _info(path, run.meta | {"status": run.status}, run.problems, run.facts_for_list)
        try:
            meta = attach_base(con, path.absolute() / DATABASE)
            with limited(con, path):
                return _info(path, meta, stored_problems(meta), lambda: facts_for_list(con, "base.main."))
        finally:
            con.execute("DETACH DATABASE IF EXISTS base")
    except (StoreError, OSError, duckdb.Error, UnicodeError) as error:
        return RunInfo(name=path.name, path=path, status="broken", problem=one_line(error))


def _info(path: Path, meta: Mapping[str, str], problems: list[str], look: Callable[[], dict[str, Any]]) -> RunInfo:
    config = json_object(meta.get("config", ""))
    kept = json_object(meta.get(LISTED, "")) if meta.get("status") != "running" else {}
    if isinstance(kept.get("knn_top1"), float):  # as it was kept before there were other metrics
        kept["metrics"] = {"knn_top1": [kept["knn_top1"], 1]}
    if not isinstance(kept.get("metrics"), dict) or not isinstance(kept.get("iterations"), int):
        kept = look()
    return RunInfo(
        name=path.name,
        path=path,
        status=meta.get("status", "crashed"),
        created_at=meta.get("created_at", ""),
        iterations=kept["iterations"],
        method=_text(config, "method", "name"),
        arch=_text(config, "model", "arch"),
        data=_text(config, "data", "name"),
        mitigation=_mitigations(config.get("mitigation")),
        metrics=dict(_metrics(kept)),
        judged=_text(config, "analysis", "metric"),
        problem=problems[0] if problems else "",
    )


def _metrics(kept: Mapping[str, Any]) -> Iterator[tuple[str, ListedMetric]]:
    """The valid entries of a list that someone may have tampered with."""
    declared = kept.get("declared")
    objects = [json_object(text) for text in declared if isinstance(text, str)] if isinstance(declared, list) else []
    goals = {str(one.get("name")): one.get("goal") for one in objects}
    for name, pair in kept["metrics"].items():
        if isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(part, int | float) for part in pair):
            goal = goals.get(name)
            yield name, ListedMetric(float(pair[0]), int(pair[1]), goal if goal in ("max", "min") else None)


def _text(config: Mapping[str, Any], section: str, key: str) -> str:
    inner = config.get(section)
    value = inner.get(key) if isinstance(inner, Mapping) else None
    return "" if value is None else str(value)


def _mitigations(value: Any) -> tuple[str, ...]:
    if not value:
        return ()
    return (value,) if isinstance(value, str) else tuple(str(name) for name in value)
