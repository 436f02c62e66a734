"""Export the tables of a run as Parquet or CSV files."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from stabilitylab.errors import RunBusy, StoreError
from stabilitylab.store.compaction import SEGMENTS
from stabilitylab.store.database import DATABASE, attach_base, check_path, connect, one_line
from stabilitylab.store.manifest import MANIFEST
from stabilitylab.store.reader import open_run
from stabilitylab.store.schema import EXPORT_FORMATS, TABLES, quote
from stabilitylab.store.segments import column_types
from stabilitylab.store.spreadsheet import cell_sql
from stabilitylab.unfinished import remove_unfinished

_UNFINISHED = re.compile(r"\.export-(?P<pid>[0-9]+)-[0-9a-f]{8}")


def export_run(run_dir: Path, folder: Path, form: str = "parquet") -> list[Path]:
    """Write every table with rows to ``folder/<table>.<form>``; NULL and NaN stay distinct. Raises StoreError if a file
    exists, RunBusy if the run is being written.

    The files are written to a temporary folder and moved when all are complete. In CSV files, text that a spreadsheet
    would run as a formula gets a leading apostrophe.
    """
    if form not in EXPORT_FORMATS:
        raise StoreError(f"no export format {form!r}; use {' or '.join(EXPORT_FORMATS)}")
    with open_run(run_dir) as reader:  # merges segments left by a crash
        if reader.status == "running":
            raise RunBusy(f"run {run_dir.name} is still being written; export it after it has ended")
    if (run_dir / SEGMENTS / MANIFEST).exists():
        raise StoreError(f"{run_dir} has unmerged rows; make it writable, free disk space and try again")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(folder, _UNFINISHED)
        with _scratch(folder) as scratch, connect() as con:
            attach_base(con, run_dir.absolute() / DATABASE)
            written = [path for table in ("meta", *TABLES) if (path := _write(con, table, scratch, form))]
            targets = [folder / path.name for path in written]
            taken = [path for path in targets if path.exists() or path.is_symlink()]
            if taken:
                raise StoreError(f"{taken[0]} exists; export into another folder")
            for path, target in zip(written, targets, strict=True):
                _move(path, target)
    except (OSError, duckdb.Error) as error:
        raise StoreError(f"cannot export to {folder}: {one_line(error)}") from None
    return targets


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A temporary folder for incomplete files: in `folder`, or in the system's if DuckDB cannot write there."""
    try:
        check_path(folder)
    except StoreError:
        with tempfile.TemporaryDirectory(prefix="stablab-export-") as elsewhere:
            yield Path(elsewhere)
        return
    path = folder.absolute() / f".export-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _write(con: duckdb.DuckDBPyConnection, table: str, scratch: Path, form: str) -> Path | None:
    """Write the file of a table and return its path; None for a table without rows."""
    source = f"base.main.{table}"
    if con.execute(f"SELECT count(*) FROM {source}").fetchall() == [(0,)]:
        return None
    path = scratch / f"{table}.{form}"
    if form == "parquet":
        con.execute(f"COPY {source} TO {quote(str(path))} (FORMAT parquet, COMPRESSION zstd)")
        return path
    columns = ", ".join(
        f'{cell_sql(name)} AS "{name}"' if kind == "VARCHAR" else f'"{name}"'
        for name, kind in column_types(con, source).items()
    )
    con.execute(f"COPY (SELECT {columns} FROM {source}) TO {quote(str(path))} (FORMAT csv, HEADER)")
    return path


def _move(path: Path, target: Path) -> None:
    """Move a file atomically to a path that does not exist, also to another file system."""
    try:
        path.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        part = target.with_name(f".{target.name}.part")
        try:
            shutil.copyfile(path, part)
            part.rename(target)
        finally:
            part.unlink(missing_ok=True)
