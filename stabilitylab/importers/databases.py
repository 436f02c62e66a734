"""Read-only access to the SQLite files of other tools."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from stabilitylab.errors import LogFormatError


def is_sqlite(raw: bytes) -> bool:
    return raw[:16] == b"SQLite format 3\0"


def tables_of(path: Path) -> dict[str, list[str]]:
    """table -> its columns; empty if SQLite cannot read the file."""
    try:
        with _opened(path) as con:
            tables = con.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            return {
                name: [row[1] for row in con.execute(f'PRAGMA table_info("{name}")').fetchall()]
                for (name,) in tables
                if '"' not in name
            }
    except sqlite3.Error:
        return {}


def rows_of(path: Path, sql: str) -> list[tuple[Any, ...]]:
    """The rows of a query. Raises LogFormatError if the file is damaged or lacks a table or column."""
    try:
        with _opened(path) as con:
            return con.execute(sql).fetchall()
    except sqlite3.Error as error:
        raise LogFormatError(f"{path} cannot be read as SQLite: {error}") from None


class _opened:  # noqa: N801
    """Context manager for a connection that neither writes to nor creates the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> sqlite3.Connection:
        uri = f"{self._path.resolve().as_uri()}?mode=ro"
        self._con = sqlite3.connect(uri, uri=True)
        return self._con

    def __exit__(self, *_: object) -> None:
        self._con.close()
