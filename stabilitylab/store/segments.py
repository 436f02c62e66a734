"""Write rows as immutable Parquet segments, and build the SQL that reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from stabilitylab.store.database import connect
from stabilitylab.store.manifest import Segment, file_sha256, sync
from stabilitylab.store.rows import Rows
from stabilitylab.store.schema import CUT_AT_RESUME, Column, columns_of, empty_select, quote, stored_columns


def writer_connection() -> duckdb.DuckDBPyConnection:
    """A private in-memory DuckDB for writing Parquet. It has one thread, so that it does not slow down training."""
    return connect(threads=1)


def write_segment(con: duckdb.DuckDBPyConnection, folder: Path, rows: Rows, number: int) -> Segment:
    """Write `rows` atomically to a new file. Raises OSError or duckdb.Error and leaves no partial file."""
    file = folder / f"{rows.table}-{number:06d}.parquet"
    source: dict[str, np.ndarray] = {"row_": np.zeros(rows.count, dtype=np.int8)}
    selected = []
    for column in columns_of(rows.table, rows.columns):
        name = column.name
        if name not in rows.columns:
            selected.append(f"NULL::{column.type} AS {name}")
            continue
        cells = rows.columns[name]
        source[name] = cells.values
        cases = ""
        if cells.null is not None:
            source[f"{name}_null"] = cells.null
            cases += f" WHEN {name}_null THEN NULL"
        # DuckDB reads NaN in a numpy array as NULL, so a separate mask keeps measured NaNs.
        if cells.values.dtype.kind == "f" and (nan := np.isnan(cells.values)).any():
            source[f"{name}_nan"] = nan
            cases += f" WHEN {name}_nan THEN 'NaN'::{column.type}"
        value = f"CASE{cases} ELSE {name} END" if cases else name
        selected.append(f"({value})::{column.type} AS {name}")
    try:
        con.register("rows_", source)
        count, sha256 = _write_atomically(con, f"SELECT {', '.join(selected)} FROM rows_", file)
    finally:
        con.unregister("rows_")
    first, last = rows.span()
    return Segment(file.name, rows.table, count, sha256, first, last)


def gather_segments(con: duckdb.DuckDBPyConnection, folder: Path, parts: Sequence[Segment], number: int) -> Segment:
    """Concatenate small segments of one table into a larger one. Raises OSError or duckdb.Error."""
    table = parts[0].table
    file = folder / f"{table}-{number:06d}.parquet"
    files = [folder / part.file for part in parts]
    count, sha256 = _write_atomically(con, rows_sql(con, table, base=False, cut=None, files=files), file)
    firsts = [part.first for part in parts if part.first is not None]
    lasts = [part.last for part in parts if part.last is not None]
    return Segment(
        file.name,
        table,
        count,
        sha256,
        min(firsts, default=None),
        max(lasts, default=None),
        parts[0].level + 1,
    )


def _write_atomically(con: duckdb.DuckDBPyConnection, select: str, file: Path) -> tuple[int, str]:
    """Write the rows of a SELECT to a Parquet file and sync it. Returns its number of rows and its sha256."""
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        count = copy_to(con, select, temporary)
        sync(temporary)
        sha256 = file_sha256(temporary)
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return count, sha256


def copy_to(con: duckdb.DuckDBPyConnection, select: str, path: Path) -> int:
    """COPY a SELECT into the Parquet file `path`. Returns the number of rows."""
    copy = f"COPY ({select}) TO {quote(str(path))} (FORMAT parquet, COMPRESSION zstd, USE_TMP_FILE false)"
    return int(con.execute(copy).fetchall()[0][0])


def glob_escaped(path: Path) -> str:
    """`path` escaped for DuckDB's table functions, which interpret [ * ? as patterns, even in a folder name."""
    return "".join(f"[{char}]" if char in "[*?" else char for char in str(path))


def rows_sql(con: duckdb.DuckDBPyConnection, table: str, *, base: bool, cut: int | None, files: Iterable[Path]) -> str:
    """A SELECT of all rows of `table`: those of the attached file `base` before `cut`, and those of the segments.

    The layers in the segments replace those in the file. A schema column that is missing in a source is NULL; signals
    that are not in the schema are kept.
    """
    paths = [quote(glob_escaped(path)) for path in files]
    sources = []
    if base and not (table == "layers" and paths):
        before = f" WHERE iteration < {cut}" if cut is not None and table in CUT_AT_RESUME else ""
        sources.append((f"base.{table}", before))
    if paths:
        stored_rows = f"read_parquet([{', '.join(paths)}], union_by_name = true)"
        sources.append((_latest_layers(stored_rows) if table == "layers" else stored_rows, ""))
    stored = [column_types(con, source) for source, _ in sources]
    columns = stored_columns(table, [column for part in stored for column in part.items()])
    parts = [
        f"SELECT {', '.join(_select(column, there) for column in columns)} FROM {source}{where}"
        for (source, where), there in zip(sources, stored, strict=True)
    ]
    return " UNION ALL ".join(parts) or empty_select(table)


def _latest_layers(source: str) -> str:
    """The last row of each layer. A layer that was skipped at first is written again when its depth is known."""
    numbered = f"SELECT *, row_number() OVER () AS written FROM {source}"
    last = "QUALIFY row_number() OVER (PARTITION BY layer_id ORDER BY written DESC) = 1"
    return f"(SELECT * EXCLUDE (written) FROM ({numbered}) {last})"


def column_types(con: duckdb.DuckDBPyConnection, source: str) -> dict[str, str]:
    """Column -> type of a table, a view, or any other SQL source after FROM."""
    rows = con.execute(f"SELECT column_name, column_type FROM (DESCRIBE SELECT * FROM {source})").fetchall()
    return dict(rows)


def _select(column: Column, there: Mapping[str, str]) -> str:
    return column.name if column.name in there else f"NULL::{column.type} AS {column.name}"


def first_value(con: duckdb.DuckDBPyConnection, sql: str) -> Any:
    """The first column of the first row of `sql`."""
    row = con.execute(sql).fetchone()
    return row[0] if row else None
