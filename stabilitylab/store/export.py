"""A run's tables as files that every tool reads."""

from __future__ import annotations

from pathlib import Path

import duckdb

from stabilitylab.errors import RunBusy, StoreError
from stabilitylab.store.compaction import SEGMENTS
from stabilitylab.store.database import DATABASE, one_line, quote
from stabilitylab.store.manifest import MANIFEST
from stabilitylab.store.reader import open_run
from stabilitylab.store.schema import TABLES

FORMATS = ("parquet", "csv")


def export_run(run_dir: Path, folder: Path, form: str = "parquet") -> list[Path]:
    """Write every table with rows to ``folder/<table>.<form>``, NULL kept apart from NaN. Files that exist are not
    replaced: StoreError. A run that is being written raises RunBusy."""
    if form not in FORMATS:
        raise StoreError(f"no export format {form!r}; take {' or '.join(FORMATS)}")
    with open_run(run_dir) as reader:  # merges what a crash left
        if reader.status == "running":
            raise RunBusy(f"{run_dir.name} is still being written; export it when it has ended")
    if (run_dir / SEGMENTS / MANIFEST).exists():
        raise StoreError(f"{run_dir} holds rows that could not be merged; make it writable, with room, and try again")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with duckdb.connect(str(run_dir / DATABASE), read_only=True) as con:
            counts = {t: con.execute(f"SELECT count(*) FROM {t}").fetchall()[0][0] for t in ("meta", *TABLES)}
            targets = {table: folder / f"{table}.{form}" for table, count in counts.items() if count}
            taken = [path for path in targets.values() if path.exists()]
            if taken:
                raise StoreError(f"{taken[0]} exists; export into another folder")
            options = "FORMAT parquet, COMPRESSION zstd" if form == "parquet" else "FORMAT csv, HEADER"
            for table, path in targets.items():
                con.execute(f"COPY {table} TO {quote(str(path))} ({options})")
    except (OSError, duckdb.Error) as error:
        raise StoreError(f"cannot export to {folder}: {one_line(error)}") from None
    return list(targets.values())
