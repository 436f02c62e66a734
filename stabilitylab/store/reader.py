"""Reads a run, finished or live, behind the same table names."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import duckdb
import numpy as np

from stabilitylab.errors import RunBroken, StoreError
from stabilitylab.store.compaction import SEGMENTS, recover
from stabilitylab.store.database import DATABASE, attach_base, one_line, stored_problems
from stabilitylab.store.locks import WRITER_LOCK, is_held
from stabilitylab.store.manifest import MANIFEST, Manifest, Segment, check_segment, read_manifest
from stabilitylab.store.query import QueryResult, require_reading
from stabilitylab.store.schema import META, TABLES, EventRow, LayerRow, create_table, quote
from stabilitylab.store.segments import column_types, first_value, glob_escaped, rows_sql
from stabilitylab.store.series import split_by_layer, without_mask
from stabilitylab.store.verify import find_damage, find_row_problems

_T = TypeVar("_T")
_ATTEMPTS = 8


def open_run(run_dir: Path | str, *, merge: bool = True) -> RunReader:
    """Open a run for reading. Any number of processes may, also while it is being written.

    The first to open a run whose writer was killed merges its segments, unless `merge` is false. Raises RunBroken if
    there is nothing to read or it cannot be read.
    """
    return RunReader(Path(run_dir), merge=merge)


class RunReader:
    """One run, as it was when it was opened or last refreshed. A context manager.

    `meta`: the table meta. `config`: what the run was started with. `status`: running, finished, stopped or crashed.
    `problems`: each damaged part, and what it would have held; what could be read is there nevertheless.
    """

    def __init__(self, run_dir: Path, *, merge: bool = True) -> None:
        self.run_dir = run_dir.absolute()  # a later chdir does not lead elsewhere
        self._merge = merge
        self.meta: dict[str, str] = {}
        self.problems: list[str] = []
        self._checked: dict[Segment, str | None] = {}
        self._used: list[Segment] = []
        self._old: list[duckdb.DuckDBPyConnection] = []
        self._con = self._open()

    @property
    def name(self) -> str:
        """The run's name: its folder's, whatever it was called when it was recorded."""
        return self.run_dir.name

    @property
    def config(self) -> dict[str, Any]:
        try:
            config = json.loads(self.meta.get("config", "{}"))
        except (ValueError, RecursionError):
            return {}
        return config if isinstance(config, dict) else {}

    @property
    def status(self) -> str:
        return self.meta.get("status", "crashed")

    @property
    def num_iterations(self) -> int:
        """One more than the last recorded iteration; 0 without any."""
        return self._read(
            lambda con: (
                first_value(
                    con,
                    "SELECT coalesce(max(i), -1) FROM (SELECT max(iteration) AS i FROM iterations "
                    "UNION ALL SELECT max(iteration) FROM layer_stats)",
                )
                + 1
            )
        )

    def layers(self) -> list[LayerRow]:
        """The layers from input to output."""
        found = self._rows("SELECT layer_id, name, depth, num_params, trainable FROM layers ORDER BY depth, layer_id")
        if not found:
            # The segment that named them is damaged: their numbers keep the series usable.
            ids = self._rows("SELECT DISTINCT layer_id FROM layer_stats ORDER BY layer_id")
            return [LayerRow(layer_id, f"layer_{layer_id}", layer_id, 0, True) for (layer_id,) in ids]
        return [LayerRow(*row) for row in found]

    def signals(self) -> list[str]:
        """The signals for which the run has a column, whether or not anything was measured."""
        return list(self._read(lambda con: column_types(con, "layer_stats")))[2:]

    def measured_signals(self) -> list[str]:
        """The signals of which at least one value was recorded."""
        names = self.signals()
        counts = self._rows(f"SELECT {', '.join(f'count({name})' for name in names)} FROM layer_stats")
        return [name for name, count in zip(names, counts[0], strict=True) if count]

    def layer_series(self, signal: str = "grad_norm") -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """layer_id -> (iteration int64 [N], value float64 [N]), by iteration, where the signal was measured.

        NaN and infinity are values. The arrays are views into two large ones. Raises StoreError for an unknown
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
        """metric -> {iteration int64, value float64, num_samples int64 (0 where unknown)}, by iteration."""
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
        """A whole table, column -> values. NULL is NaN in numbers (then float64) and None in text."""
        if name not in TABLES and name != "meta":
            raise StoreError(f"no table {name!r}; the tables are meta, {', '.join(TABLES)}")
        columns = META if name == "meta" else TABLES[name]
        order = " ORDER BY iteration" if columns[0].name == "iteration" else ""
        fetched = self._columns(f"SELECT * FROM {name}{order}")
        return {column: without_mask(values) for column, values in fetched.items()}

    def events(self) -> list[EventRow]:
        """What happened, by iteration."""
        rows = self._rows("SELECT iteration, kind, coalesce(detail, '') FROM events ORDER BY iteration")
        return [EventRow(*row) for row in rows]

    def query(self, sql: str, params: Sequence[Any] | Mapping[str, Any] = ()) -> QueryResult:
        """The result of one SELECT over the run's tables, fetched whole.

        Raises StoreError for anything that writes, for files outside the run, and for SQL that is wrong.
        """
        require_reading(sql)

        def ask(con: duckdb.DuckDBPyConnection) -> QueryResult:
            return QueryResult(con.cursor(), sql, params)

        try:
            return self._read(ask)
        except duckdb.Error as error:
            raise StoreError(f"SQL: {one_line(error)}") from None

    def verify(self) -> list[str]:
        """Everything that is wrong with the run: what is known, damaged blocks, double and missing rows."""
        problems = list(self.problems)
        damage = self._read(lambda con: find_damage(con, list(TABLES)))
        if damage:
            return problems + damage
        rows = self._read(lambda con: find_row_problems(con))
        return problems + [problem for problem in rows if problem not in problems]

    def refresh(self) -> None:
        """Look again: a live run has more rows by now."""
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
        return self._read(lambda con: con.execute(sql).fetchall())

    def _columns(self, sql: str) -> dict[str, np.ndarray]:
        fetched: Any = self._read(lambda con: con.execute(sql).fetchnumpy())
        return dict(fetched)

    def _read(self, ask: Callable[[duckdb.DuckDBPyConnection], _T]) -> _T:
        """Run `ask`; if the segments under it were merged away meanwhile, open the run anew and ask again."""
        for _ in range(_ATTEMPTS):
            try:
                return ask(self._con)
            except duckdb.Error:
                # A vanished file is an IO error, or, shut in as we are, a refused look for it.
                if self._segments_are_there():
                    raise
                self._old.append(self._con)  # a result in somebody's hands may still need it
                self._con = self._open()
        raise RunBroken(f"{self.run_dir} keeps changing while it is read; try again")

    def _segments_are_there(self) -> bool:
        return all((self.run_dir / SEGMENTS / segment.file).exists() for segment in self._used)

    def _open(self) -> duckdb.DuckDBPyConnection:
        """A connection with one view a table. Tries again while a writer or a compaction moves files."""
        for attempt in range(_ATTEMPTS):
            con = duckdb.connect(":memory:", config={"autoinstall_known_extensions": False})
            try:
                self._connect(con)
                return con
            except (FileNotFoundError, duckdb.IOException) as error:
                con.close()
                if attempt == _ATTEMPTS - 1:
                    raise RunBroken(f"{self.run_dir} cannot be read: {one_line(error)}; try again") from None
                time.sleep(0.02 * 2**attempt)
            except BaseException:
                con.close()
                raise
        raise AssertionError("unreachable")

    def _connect(self, con: duckdb.DuckDBPyConnection) -> None:
        folder = self.run_dir / SEGMENTS
        database = self.run_dir / DATABASE
        manifest, problems = self._manifest(folder)
        meta: dict[str, str] = {}
        has_base = database.exists()
        if manifest is None or manifest.cut is not None or has_base:
            if not has_base:
                raise RunBroken(f"{self.run_dir} holds no run; train into it, or choose another")
            meta = attach_base(con, database)
            if manifest is not None and meta.get("segments_id") == manifest.id:
                manifest, problems = None, []  # merged a moment ago, not yet removed
            problems = stored_problems(meta) + problems
        self._used = []
        if manifest is not None:
            meta = dict(manifest.meta)
            for segment in manifest.segments:
                if segment not in self._checked:
                    self._checked[segment] = check_segment(folder, segment)
                problem = self._checked[segment]
                if problem is None:
                    self._used.append(segment)
                else:
                    problems.append(problem)
            if len(self._used) < len(manifest.segments):
                self._require_unchanged(folder, manifest)
            if manifest.status == "running" and not is_held(folder / WRITER_LOCK):
                meta["status"] = "crashed"
        self._make_views(con, folder, manifest, has_base)
        con.execute(create_table("meta"))
        if meta:
            con.executemany("INSERT INTO meta VALUES (?, ?)", list(meta.items()))
        self._shut_in(con, folder)
        self.meta = meta
        self.problems = problems

    def _manifest(self, folder: Path) -> tuple[Manifest | None, list[str]]:
        if not (folder / MANIFEST).exists():
            return None, []
        if self._merge and not is_held(folder / WRITER_LOCK) and recover(self.run_dir):
            return None, []
        try:
            return read_manifest(folder)
        except FileNotFoundError:
            return None, []

    def _require_unchanged(self, folder: Path, manifest: Manifest) -> None:
        """A segment that is missing may have been merged since the manifest was read: that is no damage."""
        now, _ = read_manifest(folder)
        if now.segments != manifest.segments:
            self._checked.clear()
            raise FileNotFoundError("its segments are being merged")

    def _make_views(
        self, con: duckdb.DuckDBPyConnection, folder: Path, manifest: Manifest | None, has_base: bool
    ) -> None:
        for table in TABLES:
            files = [folder / segment.file for segment in self._used if segment.table == table]
            base = manifest is None or (has_base and manifest.cut is not None)
            cut = manifest.cut if manifest is not None else None
            con.execute(f"CREATE VIEW {table} AS {rows_sql(con, table, base=base, cut=cut, files=files)}")

    def _shut_in(self, con: duckdb.DuckDBPyConnection, folder: Path) -> None:
        """From here on, SQL reaches the run's own segments and nothing else on this machine."""
        paths = [folder / segment.file for segment in self._used]
        allowed = {str(path) for path in paths} | {glob_escaped(path) for path in paths}
        con.execute("SET python_enable_replacements = false")
        con.execute(f"SET allowed_paths = [{', '.join(map(quote, sorted(allowed)))}]")
        con.execute("SET enable_progress_bar = false")  # in a spawned process DuckDB would draw one on standard output
        con.execute("SET enable_external_access = false")
        con.execute("SET lock_configuration = true")
