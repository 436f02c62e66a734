"""Read a finished or live run through the same tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import duckdb
import numpy as np

from stabilitylab.errors import RunBroken, StoreError
from stabilitylab.store.compaction import SEGMENTS
from stabilitylab.store.database import count_iterations, facts_for_list, json_object, one_line, refuse_without_memory
from stabilitylab.store.manifest import Segment
from stabilitylab.store.query import QueryResult, interrupted, interruptible, require_reading
from stabilitylab.store.schema import META, TABLES, EventRow, LayerRow
from stabilitylab.store.segments import column_types
from stabilitylab.store.series import split_by_layer, without_mask
from stabilitylab.store.snapshot import ATTEMPTS, take_snapshot
from stabilitylab.store.verify import find_damage, find_row_problems

_T = TypeVar("_T")


def open_run(run_dir: Path | str, *, merge: bool = True) -> RunReader:
    """Open a run for reading. Any number of processes can read it, also while it is being written.

    If the writer was killed, the first reader merges its segments, unless `merge` is false. Raises RunBroken if there
    is no run or it cannot be read.
    """
    return RunReader(Path(run_dir), merge=merge)


class RunReader:
    """A run as it was when opened or last refreshed. A context manager.

    `meta`: the table meta. `config`: the configuration of the run. `status`: running, finished, stopped or crashed.
    `problems`: each damaged part and the rows it contained. All other rows can be read.
    """

    def __init__(self, run_dir: Path, *, merge: bool = True) -> None:
        self.run_dir = run_dir.absolute()  # independent of a later chdir
        self._merge = merge
        self.meta: dict[str, str] = {}
        self.problems: list[str] = []
        self._checked: dict[Segment, str | None] = {}
        self._used: list[Segment] = []
        self._old: list[duckdb.DuckDBPyConnection] = []
        self._con = self._open()

    @property
    def name(self) -> str:
        """The name of the run's folder, which may have been renamed since it was recorded."""
        return self.run_dir.name

    @property
    def config(self) -> dict[str, Any]:
        return json_object(self.meta.get("config", ""))

    @property
    def status(self) -> str:
        return self.meta.get("status", "crashed")

    @property
    def num_iterations(self) -> int:
        """The last recorded iteration plus one; 0 if there is none."""
        return self._read_whole(lambda con: count_iterations(con, ""))

    def layers(self) -> list[LayerRow]:
        """The layers from input to output."""
        rows = self._rows("SELECT layer_id, name, depth, num_params, trainable FROM layers ORDER BY depth, layer_id")
        if not rows:
            # The segment with their names is damaged; numbers keep the series usable.
            ids = self._rows("SELECT DISTINCT layer_id FROM layer_stats ORDER BY layer_id")
            return [LayerRow(layer_id, f"layer_{layer_id}", layer_id, 0, True) for (layer_id,) in ids]
        return [LayerRow(*row) for row in rows]

    def signals(self) -> list[str]:
        """The signals for which the run has a column, even if nothing was measured."""
        return list(self._read(lambda con: column_types(con, "layer_stats")))[2:]

    def measured_signals(self) -> list[str]:
        """The signals with at least one recorded value."""
        names = self.signals()
        counts = self._rows(f"SELECT {', '.join(f'count({name})' for name in names)} FROM layer_stats")
        return [name for name, count in zip(names, counts[0], strict=True) if count]

    def layer_series(self, signal: str = "grad_norm") -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """layer_id -> (iteration int64 [N], value float64 [N]), sorted by iteration, where the signal was measured.

        Values can be NaN or infinite. The arrays are views into two large arrays. Raises StoreError for an unknown
        signal.
        """
        if signal not in self.signals():
            raise StoreError(f"no signal {signal!r}; the signals are {', '.join(self.signals())}")
        sql = (
            f"SELECT layer_id, iteration::BIGINT AS iteration, {signal}::DOUBLE AS value "
            f"FROM layer_stats WHERE {signal} IS NOT NULL"
        )
        columns = self._columns(sql)
        return split_by_layer(columns["layer_id"], columns["iteration"], columns["value"])

    def evals(self) -> dict[str, dict[str, np.ndarray]]:
        """metric -> {iteration int64, value float64, num_samples int64 (0 if unknown)}, sorted by iteration."""
        sql = (
            "SELECT metric, iteration::BIGINT AS iteration, coalesce(value, 'NaN'::DOUBLE) AS value, "
            "coalesce(num_samples, 0) AS num_samples FROM evals ORDER BY metric, iteration"
        )
        columns = self._columns(sql)
        metrics = columns.pop("metric")
        return {
            str(metric): {name: values[metrics == metric] for name, values in columns.items()}
            for metric in dict.fromkeys(metrics)
        }

    def table(self, name: str) -> dict[str, np.ndarray]:
        """A table as column -> values. NULL becomes NaN in numeric columns (then float64) and None in text."""
        if name not in TABLES and name != "meta":
            raise StoreError(f"no table {name!r}; the tables are meta, {', '.join(TABLES)}")
        columns = META if name == "meta" else TABLES[name]
        order = " ORDER BY iteration" if columns[0].name == "iteration" else ""
        fetched = self._columns(f"SELECT * FROM {name}{order}")
        return {column: without_mask(values) for column, values in fetched.items()}

    def events(self) -> list[EventRow]:
        """The events, sorted by iteration."""
        rows = self._rows("SELECT iteration, kind, coalesce(detail, '') FROM events ORDER BY iteration")
        return [EventRow(*row) for row in rows]

    def query(self, sql: str, params: Sequence[Any] | Mapping[str, Any] = ()) -> QueryResult:
        """The complete result of one SELECT over the run's tables.

        Raises StoreError for statements that write, for files outside the run and for invalid SQL.
        """
        require_reading(sql)

        def ask(con: duckdb.DuckDBPyConnection) -> QueryResult:
            cursor = con.cursor()
            return interruptible(cursor, lambda: QueryResult(cursor, sql, params))

        try:
            return self._read(ask)
        except (duckdb.Error, RuntimeError) as error:  # DuckDB raises RuntimeError on Ctrl-C
            interrupted(error)
            if not isinstance(error, duckdb.Error):
                raise
            unknown = "Table with name" in str(error)
            tables = f"; the tables are meta, {', '.join(TABLES)}" if unknown else ""
            raise StoreError(f"SQL: {one_line(error)}{tables}") from None

    def verify(self) -> list[str]:
        """All problems of the run: known ones, damaged blocks, duplicate and missing rows."""
        try:
            damage = self._read(self._find_damage)
        except duckdb.OutOfMemoryException as error:
            refuse_without_memory(error, self.run_dir)
            raise
        problems = list(self.problems)  # read afterwards, since a concurrent merge reopens the run
        if damage:
            return problems + damage
        rows = self._read(find_row_problems)
        return problems + [problem for problem in rows if problem not in problems]

    def _find_damage(self, con: duckdb.DuckDBPyConnection) -> list[str]:
        damage = find_damage(con, list(TABLES))
        if damage and not self._segments_are_there():
            raise duckdb.IOException("the segments were merged meanwhile")
        return damage

    def facts_for_list(self) -> dict[str, Any]:
        """What a list of runs shows; see `database.facts_for_list`."""
        return self._read(lambda con: facts_for_list(con, ""))

    def refresh(self) -> None:
        """Reopen the run to see the rows added since."""
        old = self._con
        self._con = self._open()
        old.close()

    def close(self) -> None:
        for con in (*self._old, self._con):
            con.close()

    def __enter__(self) -> RunReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _rows(self, sql: str) -> list[tuple[Any, ...]]:
        return self._read_whole(lambda con: con.execute(sql).fetchall())

    def _columns(self, sql: str) -> dict[str, np.ndarray]:
        fetched: Any = self._read_whole(lambda con: con.execute(sql).fetchnumpy())
        return dict(fetched)

    def _read_whole(self, ask: Callable[[duckdb.DuckDBPyConnection], _T]) -> _T:
        """`_read` for internal SQL. Raises RunBroken if a block of the run is damaged."""
        try:
            return self._read(ask)
        except (duckdb.Error, UnicodeDecodeError) as error:
            interrupted(error)
            refuse_without_memory(error, self.run_dir)
            raise RunBroken(
                f"{self.run_dir} is damaged: {one_line(error)}; restore it from a copy or export what can be read"
            ) from None

    def _read(self, ask: Callable[[duckdb.DuckDBPyConnection], _T]) -> _T:
        """Run `ask`; if the segments were merged meanwhile, reopen the run and try again."""
        for _ in range(ATTEMPTS):
            try:
                return ask(self._con)
            except duckdb.Error:
                # A missing file raises an IO error or, in the sandbox, a permission error.
                if self._segments_are_there():
                    raise
                self._old.append(self._con)  # a QueryResult may still need it
                self._con = self._open()
        raise RunBroken(f"{self.run_dir} keeps changing while it is read; try again")

    def _segments_are_there(self) -> bool:
        return all((self.run_dir / SEGMENTS / segment.file).exists() for segment in self._used)

    def _open(self) -> duckdb.DuckDBPyConnection:
        snapshot = take_snapshot(self.run_dir, merge=self._merge, checked=self._checked)
        self.meta, self.problems, self._used = snapshot.meta, snapshot.problems, snapshot.segments
        return snapshot.con
