"""Merge the segments of a run that has ended into one run.duckdb."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path

import duckdb

from stabilitylab.errors import RunBroken, StoreError
from stabilitylab.store.database import DATABASE, LISTED, attach_base, connect, facts_for_list, stored_problems
from stabilitylab.store.locks import COMPACT_LOCK, WRITER_LOCK, try_lock
from stabilitylab.store.manifest import (
    MANIFEST,
    START,
    Manifest,
    Segment,
    check_segment,
    read_manifest,
    segment_table,
    sync,
)
from stabilitylab.store.schema import ORDER_BY, STORAGE_VERSION, TABLES, create_table, quote, stored_columns
from stabilitylab.store.segments import column_types, first_value, rows_sql
from stabilitylab.store.verify import find_row_problems

_LEFTOVER = re.compile(rf"\.{re.escape(DATABASE)}\.([0-9]+\.tmp(\.wal)?|spill-\w+)")
_HALF_WRITTEN = re.compile(r"\.[a-z_]+(-[0-9]+\.parquet|\.json)\.tmp")
SEGMENTS = "segments"
DAMAGED = "damaged"

# Rows of layer_stats sorted at a time: 4 million take about 0.5 GB.
SORT_ROWS = 4_000_000
MEMORY_LIMIT = "1GB"
# Measured on 15 million rows of noise: 13.3 bytes per row instead of 17 with DuckDB's default of 122,880, equally fast
# to read.
ROW_GROUP_SIZE = 245_760


def recover(run_dir: Path) -> bool:
    """Compact a run whose writer is gone. Returns False if another process is compacting it or the folder cannot be
    written."""
    folder = run_dir / SEGMENTS
    try:
        alone = try_lock(folder / COMPACT_LOCK)
        if alone is None:
            return False
    except OSError:
        return False
    try:
        # Shared, so that readers still see that no process writes, while a resume waits for the compaction.
        quiet = try_lock(folder / WRITER_LOCK, shared=True)
        if quiet is None:
            return False
        try:
            manifest, problems = read_manifest(folder)
            if manifest.status == "running":
                manifest = manifest.with_meta(status="crashed")
            compact(run_dir, manifest, problems)
            return True
        finally:
            quiet.release()
    except (OSError, duckdb.Error, StoreError):
        return False
    finally:
        alone.release()


def tidy(run_dir: Path) -> None:
    """Remove segments left by a merge that was killed after it removed the manifest: run.duckdb contains their rows."""
    folder = run_dir / SEGMENTS
    with contextlib.suppress(OSError):
        lock = try_lock(folder / WRITER_LOCK)
        if lock is None:
            return
        try:
            if (run_dir / DATABASE).is_file() and not (folder / MANIFEST).exists():
                _remove_segments(run_dir, [], keep_folder=False)
        finally:
            lock.release()


def compact(run_dir: Path, manifest: Manifest, problems: list[str], *, keep_folder: bool = False) -> list[str]:
    """Merge run.duckdb and the segments into a new run.duckdb, then remove the segments.

    The caller must hold the locks. If killed at any moment, it leaves either the old or the new state. Segments that do
    not match their checksum are moved to `damaged/`. Returns the problems found. Raises OSError or duckdb.Error (disk
    full, no permission) and leaves the segments untouched.
    """
    folder = run_dir / SEGMENTS
    target = run_dir / DATABASE
    _remove_leftovers(run_dir)
    problems = list(problems)
    bad: list[Segment] = []
    if not _already_compacted(target, manifest):
        good: list[Segment] = []
        for segment in manifest.segments:
            problem = check_segment(folder, segment)
            (good if problem is None else bad).append(segment)
            problems += [problem] if problem else []
        temporary = run_dir / f".{DATABASE}.{os.getpid()}.tmp"
        files = {table: [folder / s.file for s in good if s.table == table] for table in TABLES}
        try:
            problems = _build(temporary, target, manifest, files, problems)
            sync(temporary)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync(run_dir)
    _remove_segments(run_dir, [segment.file for segment in bad], keep_folder)
    return problems


def _already_compacted(target: Path, manifest: Manifest) -> bool:
    """Whether the file already contains the segments: a merge was killed before it removed them.

    Raises RunBroken if file and segments do not belong together, because a merge would destroy one of them.
    """
    if not target.exists():
        return False
    try:
        with connect() as con:
            same = attach_base(con, target).get("segments_id") == manifest.id
    except RunBroken:
        if manifest.cut is not None or not manifest.origin_known:
            raise
        _put_aside(target.parent, target)  # the run was never resumed, so its segments contain all rows
        return False
    if not same and manifest.cut is None:
        raise RunBroken(
            f"{target} and the segments beside it belong to different runs; neither was changed: move one of them away"
        )
    return same


def _build(
    temporary: Path, target: Path, manifest: Manifest, files: dict[str, list[Path]], problems: list[str]
) -> list[str]:
    spill = tempfile.mkdtemp(prefix=f".{DATABASE}.spill-", dir=temporary.parent)
    con = connect(memory_limit=MEMORY_LIMIT, temp_directory=spill)
    try:
        has_base = manifest.cut is not None
        if has_base:
            problems = stored_problems(attach_base(con, target)) + problems
        con.execute(
            f"ATTACH {quote(str(temporary))} AS out "
            f"(ROW_GROUP_SIZE {ROW_GROUP_SIZE}, STORAGE_VERSION {quote(STORAGE_VERSION)})"
        )
        for table in TABLES:
            source = rows_sql(con, table, base=has_base, cut=manifest.cut, files=files[table])
            columns = stored_columns(table, column_types(con, f"({source})").items())
            con.execute(create_table(table, "out.", columns))
            if table == "layer_stats":
                _insert_by_layer(con, source)
            else:
                con.execute(f"INSERT INTO out.{table} SELECT * FROM ({source}) ORDER BY {ORDER_BY[table]}")
        new_problems = [p for p in find_row_problems(con, "out.") if p not in problems]
        last = first_value(con, "SELECT coalesce(max(iteration), 0) FROM out.iterations")
        new = [p for p in problems + new_problems if p not in _noted(con)]
        for problem in new:
            con.execute("INSERT INTO out.events VALUES (?, 'problem', ?)", [last, problem])
        problems = problems + new_problems
        con.execute(create_table("meta", "out."))
        listed = json.dumps(facts_for_list(con, "out."))
        own = {"segments_id": manifest.id, "problems": json.dumps(problems), LISTED: listed}
        meta = {**manifest.meta, **own}
        con.executemany("INSERT INTO out.meta VALUES (?, ?)", list(meta.items()))
        con.execute("CHECKPOINT out")
        con.execute("DETACH out")
    finally:
        con.close()
        shutil.rmtree(spill, ignore_errors=True)
    return problems


def _noted(con: duckdb.DuckDBPyConnection) -> set[str]:
    return {row[0] for row in con.execute("SELECT detail FROM out.events WHERE kind = 'problem'").fetchall()}


def _insert_by_layer(con: duckdb.DuckDBPyConnection, source: str) -> None:
    """Sort and insert a few layers at a time, so that memory does not grow with the run."""
    counts = con.execute(f"SELECT layer_id, count(*) FROM ({source}) GROUP BY layer_id ORDER BY layer_id").fetchall()
    groups: list[list[int]] = []
    rows = 0
    for layer_id, count in counts:
        if not groups or rows + count > SORT_ROWS:
            groups.append([])
            rows = 0
        groups[-1].append(layer_id)
        rows += count
    for group in groups:
        con.execute(
            f"INSERT INTO out.layer_stats SELECT * FROM ({source}) "
            f"WHERE layer_id BETWEEN {group[0]} AND {group[-1]} ORDER BY layer_id, iteration"
        )


def _remove_leftovers(run_dir: Path) -> None:
    """Remove temporary files of merges that were killed."""
    for leftover in run_dir.glob(f".{DATABASE}.*"):
        if not _LEFTOVER.fullmatch(leftover.name):
            continue  # not ours
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _put_aside(run_dir: Path, path: Path) -> None:
    """Move a damaged file to `damaged/` under a free name. Damaged files are never deleted."""
    (run_dir / DAMAGED).mkdir(exist_ok=True)
    target, number = run_dir / DAMAGED / path.name, 1
    while target.exists():
        target, number = run_dir / DAMAGED / f"{path.name}.{number}", number + 1
    path.rename(target)


def _remove_segments(run_dir: Path, bad: list[str], keep_folder: bool) -> None:
    folder = run_dir / SEGMENTS
    for name in bad:
        if (folder / name).exists():
            _put_aside(run_dir, folder / name)
    # Remove the manifest first: segments without a manifest are ignored if we are killed here.
    for name in (MANIFEST, START):
        (folder / name).unlink(missing_ok=True)
    clean_folder(folder)
    if not keep_folder:
        for name in (WRITER_LOCK, COMPACT_LOCK):
            (folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()  # fails, and keeps the folder, if it contains other files


def clean_folder(folder: Path) -> None:
    """Remove segments and partially written files from a segments folder. Locks stay, since they may be held."""
    for path in folder.iterdir():
        if segment_table(path.name) or _HALF_WRITTEN.fullmatch(path.name):
            path.unlink(missing_ok=True)
