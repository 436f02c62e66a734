"""A snapshot of a finished or live run: a private, sandboxed DuckDB with one view per table."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from stabilitylab.errors import RunBroken
from stabilitylab.store.compaction import SEGMENTS, recover, tidy
from stabilitylab.store.database import (
    DATABASE,
    attach_base,
    check_path,
    connect,
    one_line,
    refuse_without_memory,
    stored_problems,
)
from stabilitylab.store.locks import WRITER_LOCK, is_held
from stabilitylab.store.manifest import MANIFEST, START, Manifest, Segment, check_segment, read_manifest
from stabilitylab.store.schema import TABLES, create_table, quote
from stabilitylab.store.segments import column_types, glob_escaped, rows_sql

ATTEMPTS = 8
MEMORY_LIMIT = "4GB"


@dataclass(frozen=True)
class Snapshot:
    """`segments`: those that the views read. `problems`: each damaged part and the rows it contained."""

    con: duckdb.DuckDBPyConnection
    meta: dict[str, str]
    problems: list[str]
    segments: list[Segment]


def take_snapshot(run_dir: Path, *, merge: bool, checked: dict[Segment, str | None]) -> Snapshot:
    """Open a run, retrying while a writer or a compaction moves files.

    `merge`: first merge segments left by a killed writer. `checked`: a cache of the results of checking each segment.
    Raises RunBroken if the run cannot be read.
    """
    check_path(run_dir)
    for attempt in range(ATTEMPTS):
        con = connect(memory_limit=MEMORY_LIMIT)
        try:
            return _take(con, run_dir, merge, checked)
        except (FileNotFoundError, duckdb.IOException) as error:
            con.close()
            if attempt == ATTEMPTS - 1:
                raise RunBroken(f"{run_dir} cannot be read: {one_line(error)}; try again") from None
            time.sleep(0.02 * 2**attempt)
        except duckdb.Error as error:
            con.close()
            refuse_without_memory(error, run_dir)
            raise RunBroken(f"{run_dir} cannot be read: {one_line(error)}; restore it from a copy") from None
        except BaseException:
            con.close()
            raise
    raise AssertionError("unreachable")


def _take(con: duckdb.DuckDBPyConnection, run_dir: Path, merge: bool, checked: dict[Segment, str | None]) -> Snapshot:
    folder, database = run_dir / SEGMENTS, run_dir / DATABASE
    manifest, problems = _manifest(run_dir, merge)
    meta: dict[str, str] = {}
    has_base = database.exists()
    if manifest is None or manifest.cut is not None or has_base:
        if not has_base:
            raise RunBroken(f"{run_dir} contains no run; train into it or choose another")
        meta = attach_base(con, database)
        if manifest is not None and meta.get("segments_id") == manifest.id:
            manifest, problems = None, []  # just merged, but not removed yet
        elif manifest is not None and not manifest.origin_known:
            count, manifest = len(manifest.segments), None
            problems = [f"{MANIFEST} and {START} are damaged: {count} segments are kept but not read"]
        elif manifest is not None and manifest.cut is None:
            problems = [*problems, f"{DATABASE} and the segments belong to different runs: the segments are read"]
        problems = stored_problems(meta) + problems
    used: list[Segment] = []
    if manifest is not None:
        meta = dict(manifest.meta)
        for segment in manifest.segments:
            if segment not in checked:
                checked[segment] = check_segment(folder, segment) or _unreadable(con, folder, segment)
            problem = checked[segment]
            if problem is None:
                used.append(segment)
            else:
                problems.append(problem)
        if len(used) < len(manifest.segments):
            _require_unchanged(folder, manifest, checked)
        if manifest.status == "running" and not is_held(folder / WRITER_LOCK):
            meta["status"] = "crashed"
    for table in TABLES:
        files = [folder / segment.file for segment in used if segment.table == table]
        base = manifest is None or (has_base and manifest.cut is not None)
        cut = manifest.cut if manifest is not None else None
        con.execute(f"CREATE VIEW {table} AS {rows_sql(con, table, base=base, cut=cut, files=files)}")
    con.execute(create_table("meta"))
    if meta:
        con.executemany("INSERT INTO meta VALUES (?, ?)", list(meta.items()))
    _shut_in(con, [folder / segment.file for segment in used])
    return Snapshot(con, meta, problems, used)


def _manifest(run_dir: Path, merge: bool) -> tuple[Manifest | None, list[str]]:
    folder = run_dir / SEGMENTS
    if not (folder / MANIFEST).exists():
        if merge and folder.is_dir():
            tidy(run_dir)
        return None, []
    if merge and not is_held(folder / WRITER_LOCK) and recover(run_dir):
        return None, []
    try:
        return read_manifest(folder)
    except FileNotFoundError:
        return None, []
    except OSError as error:
        raise RunBroken(f"{folder / MANIFEST} cannot be read: {error.strerror}") from None


def _require_unchanged(folder: Path, manifest: Manifest, checked: dict[Segment, str | None]) -> None:
    """Raise FileNotFoundError if the manifest has changed since it was read: segments are missing because they were
    merged, not because of damage."""
    now, _ = read_manifest(folder)
    if now.segments != manifest.segments:
        checked.clear()
        raise FileNotFoundError("its segments are being merged")


def _unreadable(con: duckdb.DuckDBPyConnection, folder: Path, segment: Segment) -> str | None:
    """A description of the damage of a segment without a checksum; None if DuckDB can read it."""
    if segment.sha256:
        return None
    try:
        source = f"read_parquet([{quote(glob_escaped(folder / segment.file))}])"
        column_types(con, source)
        con.execute(f"SELECT sum(hash(t)) FROM {source} AS t").fetchall()
    except duckdb.Error as error:
        return f"segment {segment.file} is damaged ({one_line(error)}): left out {segment.describe()}"
    return None


def _shut_in(con: duckdb.DuckDBPyConnection, paths: Sequence[Path]) -> None:
    """Restrict SQL to the run's own segments; nothing else on this machine can be read afterwards."""
    allowed = {str(path) for path in paths} | {glob_escaped(path) for path in paths}
    con.execute("SET python_enable_replacements = false")
    con.execute(f"SET allowed_paths = [{', '.join(map(quote, sorted(allowed)))}]")
    with contextlib.suppress(duckdb.InvalidInputException):  # raised in Jupyter without ipywidgets
        con.execute("SET enable_progress_bar = false")  # in a spawned process DuckDB would print it to standard output
    con.execute("SET enable_external_access = false")
    con.execute("SET lock_configuration = true")
