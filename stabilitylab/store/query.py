"""Run a user's SQL if it only reads; refuse anything else."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from typing import Any, TypeVar

import duckdb
import numpy as np

from stabilitylab.errors import StoreError
from stabilitylab.store.database import one_line

_T = TypeVar("_T")
_COMMENT = r"(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/)"
_EXPLAIN = re.compile(rf"^{_COMMENT}*explain\b{_COMMENT}*(?:analyze\b|\([^)]*\))?", re.IGNORECASE | re.DOTALL)


def interrupted(error: BaseException) -> None:
    """Raise KeyboardInterrupt if a DuckDB error was caused by Ctrl-C."""
    if isinstance(error, duckdb.InterruptException) or "interrupt" in str(error).lower()[:40]:
        raise KeyboardInterrupt from None


def interruptible(con: duckdb.DuckDBPyConnection, work: Callable[[], _T]) -> _T:
    """Run a query in a thread, so that Ctrl-C ends it. DuckDB does not check for signals while it runs a query."""
    if threading.current_thread() is not threading.main_thread():
        return work()
    future: Future[_T] = Future()
    begun = threading.Lock()  # taken by the query or by Ctrl-C, whichever comes first

    def answer() -> None:
        if not begun.acquire(blocking=False):
            return
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    try:
        # No executor: it would wait for the query for ever if Ctrl-C came while it starts its thread.
        threading.Thread(target=answer, daemon=True).start()
        while not future.done():
            # A signal that another thread receives does not end a wait, so the wait is short.
            wait([future], timeout=0.2)
        return future.result()
    except KeyboardInterrupt:
        if not begun.acquire(blocking=False):
            while not future.done():
                con.interrupt()  # has no effect before the query has started
                wait([future], timeout=0.1)
        raise


def require_reading(sql: str) -> None:
    """Raise StoreError unless `sql` is a single read-only statement."""
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise StoreError(f"SQL: {one_line(error)}") from None
    if len(statements) != 1:
        raise StoreError(f"SQL: expected one statement, got {len(statements)}")
    kind = statements[0].type
    if kind == duckdb.StatementType.SELECT:
        return
    if kind == duckdb.StatementType.EXPLAIN:
        # EXPLAIN ANALYZE executes the statement.
        explained, explains = _EXPLAIN.subn("", statements[0].query, count=1)
        if explains:
            require_reading(explained)
            return
    raise StoreError(f"SQL: a run is read-only: use SELECT, not {kind.name}")


class QueryResult:
    """The rows of a query, held in memory. Valid until the run is closed or refreshed.

    `columns` and `types` are the names and SQL types. Fetch rows, numpy columns or a pandas DataFrame.
    """

    def __init__(self, con: duckdb.DuckDBPyConnection, sql: str, params: Sequence[Any] | Mapping[str, Any]) -> None:
        self._cursor = con  # kept open, because closing it would discard the rows
        relation = con.sql(sql, params=params or None)
        # DuckDB 2 renamed execute() to materialize(), and dropped fetchone() from relations.
        run = "materialize" if hasattr(relation, "materialize") else "execute"
        self._relation: Any = getattr(relation, run)()
        self.columns: list[str] = [str(name) for name in self._relation.columns]
        self.types: list[str] = [str(kind) for kind in self._relation.types]
        self._rows: list[tuple[Any, ...]] | None = None
        self._next = 0

    @property
    def description(self) -> list[Any]:
        """The columns as in the Python DB-API."""
        return list(self._relation.description)

    def __len__(self) -> int:
        return len(self._all())

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.fetchall())

    def fetchall(self) -> list[tuple[Any, ...]]:
        """The remaining rows."""
        rows = self._all()[self._next :]
        self._next += len(rows)
        return rows

    def fetchmany(self, size: int = 1) -> list[tuple[Any, ...]]:
        """The next `size` rows, or fewer at the end."""
        rows = self._all()[self._next : self._next + size]
        self._next += len(rows)
        return rows

    def fetchone(self) -> tuple[Any, ...] | None:
        """The next row, or None."""
        rows = self.fetchmany(1)
        return rows[0] if rows else None

    def fetchnumpy(self) -> dict[str, np.ndarray]:
        """All rows as column -> array; a masked array if the column contains NULL."""
        columns: dict[str, np.ndarray] = self._relation.fetchnumpy()
        return columns

    def df(self) -> Any:
        """All rows as a pandas DataFrame."""
        return self._relation.df()

    fetchdf = df

    def _all(self) -> list[tuple[Any, ...]]:
        if self._rows is None:
            self._rows = self._relation.fetchall()
        return self._rows
