"""Open run.duckdb read-only and sandboxed, attached as `base`, with clear errors.

A run may come from an untrusted source. Its file may contain views, macros or generated columns, which execute with the
permissions of this process when a table is read. Nothing is read until all tables are known to be plain tables.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import duckdb

from stabilitylab.errors import RunBroken, StoreError
from stabilitylab.store.schema import META, SCHEMA_VERSION, TABLES, quote, stored_columns

DATABASE = "run.duckdb"
LISTED = "listed"
"""The key of meta under which compaction stores `facts_for_list`, so that listing runs reads one table per run."""
_SHUT = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "allow_unsigned_extensions": False,
}
SECONDS = 60.0
"""Maximum time for opening a run.duckdb. A healthy one takes milliseconds."""
_COLUMN = re.compile(r'(?:"(?P<quoted>[^"]+)"|(?P<plain>\w+)) (?P<type>[A-Z]+)(?P<required> NOT NULL)?')
_META_ROWS = 1_000
"""Maximum rows of meta, which is read whole. A run has about 30."""
_ROWS, _ROWS_A_BYTE = 1_000_000, 10
"""A file with more rows than this and more rows per byte is a decompression bomb. A byte can encode up to 73 identical
rows, but less than one row of a real run."""


def _is_utf8(path: Path) -> bool:
    """Whether a path is valid UTF-8. Python represents other bytes by surrogates, which DuckDB refuses."""
    return not any("\ud800" <= char <= "\udfff" for char in str(path))


def check_path(run_dir: Path) -> Path:
    r"""Return the absolute path of `run_dir`. Raises StoreError for a path that is not UTF-8, which DuckDB refuses, or
    that it misinterprets: it replaces ``\`` with ``/`` and truncates at ``?``."""
    path = run_dir.absolute()
    bad = next((char for char in "\\?\0" if char in str(path)), None)
    if not _is_utf8(path):
        raise StoreError(
            f"DuckDB cannot open a file below {path}: the path contains bytes that are not UTF-8; rename that folder "
            "or choose another with --runs-dir"
        )
    if bad is not None:
        raise StoreError(
            f"DuckDB cannot open a file below {path.parent}: the path contains {bad!r}; rename that folder or "
            "choose another with --runs-dir"
        )
    return path


def connect(**config: str | int | bool) -> duckdb.DuckDBPyConnection:
    """A private in-memory DuckDB that neither loads nor installs extensions."""
    return duckdb.connect(":memory:", config={**_SHUT, **config})


def refuse_without_memory(error: BaseException, path: Path) -> None:
    """Raise StoreError if DuckDB ran out of memory, which says nothing about the file at `path`."""
    if isinstance(error, (duckdb.OutOfMemoryException, MemoryError)):
        raise StoreError(
            f"there is not enough memory to read {path}: {one_line(error)}; end other programs or raise the limit"
        ) from None


def attach_base(con: duckdb.DuckDBPyConnection, path: Path) -> dict[str, str]:
    """Attach `path` read-only as `base` and return its meta table.

    Raises RunBroken if the file is damaged, newer than this program, or contains anything but a run's plain tables.
    """
    try:
        with limited(con, path):
            return attach_many(con, {"base": path})["base"]
    except (FileNotFoundError, RunBroken):
        raise
    except duckdb.Error as error:
        if not path.exists():
            raise
        refuse_without_memory(error, path)
        text = one_line(error)
        if "newer version" in text or "version number" in text:
            raise RunBroken(
                f"{path} was written by a newer DuckDB than this one ({duckdb.__version__}); "
                "upgrade with: pip install -U duckdb"
            ) from None
        raise RunBroken(f"{path} cannot be read: {text}; restore it from a copy") from None
    except UnicodeDecodeError:
        raise RunBroken(f"{path} is damaged: its table meta contains text that is not UTF-8") from None


@contextlib.contextmanager
def limited(con: duckdb.DuckDBPyConnection, path: Path) -> Iterator[None]:
    """Interrupt the queries in this context after `SECONDS`, so that a file made by someone else cannot hang its
    reader. Raises RunBroken, which names `path`."""
    late = threading.Event()

    def interrupt() -> None:
        late.set()
        con.interrupt()

    timer = threading.Timer(SECONDS, interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    except duckdb.InterruptException:
        if not late.is_set():
            raise
        raise RunBroken(f"{path} takes more than {SECONDS:g} s to open; restore it from a copy") from None
    finally:
        timer.cancel()


def attach_many(con: duckdb.DuckDBPyConnection, paths: Mapping[str, Path]) -> dict[str, dict[str, str]]:
    """Attach each of `paths` read-only under its name and return their meta tables. One query serves all files, because
    a query takes a third of the time of attaching a file. Errors of DuckDB are not translated."""
    for name, path in paths.items():
        if path.exists() and not path.is_file():
            raise RunBroken(f"{path} is not a regular file; remove it or restore the run from a copy")
        con.execute(f"ATTACH {quote(str(path))} AS {name} (TYPE duckdb, READ_ONLY)")
    if not paths:
        return {}
    tables: dict[str, dict[str, tuple[str, int]]] = {name: {} for name in paths}
    columns = con.execute(  # without WHERE: filtering costs more than fetching the few rows
        "SELECT database_name, schema_name, table_name, sql, estimated_size FROM duckdb_tables()"
    ).fetchall()
    for name, schema, table, sql, size in columns:
        if name in tables and schema == "main":
            tables[name][table] = sql.replace(f"CREATE TABLE {name}.", "CREATE TABLE ", 1), size
    for name, path in paths.items():
        _require_plain_tables(tables[name], path)
    metas: dict[str, dict[str, str]] = {name: {} for name in paths}
    rows = " UNION ALL ".join(f"SELECT '{name}', key, value FROM {name}.main.meta" for name in paths)
    for name, key, value in con.execute(rows).fetchall():
        metas[name][str(key)] = "" if value is None else str(value)
    for name, meta in metas.items():
        version = meta.get("schema_version", "")
        if not re.fullmatch("[0-9]{1,9}", version) or int(version) > SCHEMA_VERSION:
            raise RunBroken(
                f"{paths[name]} has schema version {version[:40] or 'none'}, but this StabilityLab reads up to "
                f"{SCHEMA_VERSION}; upgrade with: pip install -U stabilitylab"
            )
    return metas


def _require_plain_tables(made: Mapping[str, tuple[str, int]], path: Path) -> None:
    """Raise RunBroken unless `made` (table: CREATE TABLE statement and number of rows) has every table of a run exactly
    as this package creates it: no view, no generated column, no expression of any kind."""
    most = _ROWS + _ROWS_A_BYTE * path.stat().st_size
    if "meta" not in made:
        raise RunBroken(f"{path} is not a StabilityLab run: it has no table meta")
    for table in ("meta", *TABLES):
        if table not in made:
            raise RunBroken(f"{path} is not a StabilityLab run: {table} is missing or is not a table")
        sql, size = made[table]
        reason = _difference(table, sql)
        if reason:
            raise RunBroken(f"{path} is not a StabilityLab run: {table} {reason}")
        if size > (_META_ROWS if table == "meta" else most):
            raise RunBroken(f"{path} is not a StabilityLab run: {table} claims {size:,} rows, too many for its size")


@lru_cache(maxsize=256)  # most runs have the same CREATE TABLE
def _difference(table: str, sql: str) -> str:
    """How a CREATE TABLE differs from the schema; empty if it does not."""
    inside = re.fullmatch(rf'CREATE TABLE (?:main\.)?"?{table}"?\((.*)\);', sql, re.DOTALL)
    parts = [_COLUMN.fullmatch(part) for part in inside[1].split(", ")] if inside else [None]
    columns = {part["quoted"] or part["plain"]: (part["type"], bool(part["required"])) for part in parts if part}
    if len(columns) < len(parts):
        return "has columns with generated values or constraints"
    schema = META if table == "meta" else stored_columns(table, [(name, kind) for name, (kind, _) in columns.items()])
    known = {column.name: (column.type, column.required) for column in schema}
    for name, given in columns.items():
        if known.get(name) != given:
            return f"has an unexpected column {name}"
    lacking = [column.name for column in schema if column.required and column.name not in columns]
    return f"lacks the column {lacking[0]}" if lacking else ""


def count_iterations(con: duckdb.DuckDBPyConnection, prefix: str) -> int:
    """The last recorded iteration plus one; 0 if there is none."""
    last = con.execute(
        f"SELECT coalesce(max(i), -1) + 1 FROM (SELECT max(iteration) AS i FROM {prefix}iterations "
        f"UNION ALL SELECT max(iteration) FROM {prefix}layer_stats)"
    ).fetchone()
    return last[0] if last else 0


def facts_for_list(con: duckdb.DuckDBPyConnection, prefix: str) -> dict[str, Any]:
    """What a list of runs shows: ``iterations``; in ``metrics``, the last finite value and the number of finite values
    of each metric; in ``declared``, the events that declare a metric's goal."""
    metrics = con.execute(
        f"SELECT metric, last(value ORDER BY iteration), count(*) FROM {prefix}evals WHERE isfinite(value) "
        "GROUP BY metric ORDER BY metric"
    ).fetchall()
    declared = con.execute(
        f"SELECT detail FROM {prefix}events WHERE kind = 'metric' ORDER BY iteration LIMIT 100"
    ).fetchall()
    return {
        "iterations": count_iterations(con, prefix),
        "metrics": {name: [value, count] for name, value, count in metrics},
        "declared": [detail for (detail,) in declared],
    }


def json_object(text: str) -> dict[str, Any]:
    """Parse an untrusted JSON object; returns an empty dict for anything else."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def stored_problems(meta: dict[str, str]) -> list[str]:
    """The problems that compaction stored in meta."""
    try:
        problems = json.loads(meta.get("problems", "[]"))
    except (ValueError, RecursionError):
        return []
    return [str(problem) for problem in problems] if isinstance(problems, list) else []


def one_line(error: BaseException) -> str:
    """The first line of an error message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
