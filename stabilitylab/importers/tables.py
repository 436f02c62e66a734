"""CSV, TSV and Parquet files, read column by column with DuckDB."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from stabilitylab.errors import LogFormatError
from stabilitylab.importers.dialect import BLANKS, number_sql, reads_as_number, without_units
from stabilitylab.importers.formats import Sample, is_gzip, is_utf16, open_log
from stabilitylab.importers.options import Options
from stabilitylab.importers.series import Refused
from stabilitylab.store.database import one_line
from stabilitylab.store.schema import quote

_MISSING = "('', 'None', 'none', 'null', 'NULL', 'NA', 'N/A', '<NA>', '-', '#N/A', '#NV', '#DIV/0!')"
_MEMORY = "400MB"
COLUMNS_AT_A_TIME = 8


class Table:
    """The columns of a file. ``rows``: number of rows read. ``refused``: rows that could not be read.

    Each number has a state: 0 for an empty cell, 1 for a number (including NaN and infinity), 2 for text.
    """

    def __init__(self, path: Path, format: str, refused: Refused, columns: list[str], source: str) -> None:
        self.path, self.format, self.refused, self.columns = path, format, refused, columns
        self._source = source
        self._con = duckdb.connect(":memory:", config={"memory_limit": _MEMORY})
        self._con.execute("SET enable_progress_bar = false")
        self._reported: set[str] = set()
        self.rows = 0
        self.delimiter, self.decimal = ",", "."
        self.skipped = 0  # lines before the header

    def numbers(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """Value (rows,) float64 and state (rows,) uint8 of one column."""
        return self.many_numbers([column])[column]

    def many_numbers(self, columns: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """The numbers of several columns, in one pass over the file."""
        parts = []
        for place, column in enumerate(columns):
            text = self._text(column)
            number = number_sql(text, self.decimal)
            parts.append(f"coalesce({number}, 'NaN'::DOUBLE) AS v{place}")
            parts.append(
                f"(CASE WHEN {text} IS NULL OR {text} IN {_MISSING} THEN 0 "
                f"WHEN {number} IS NULL THEN 2 ELSE 1 END)::UTINYINT AS s{place}"
            )
        cells = self._fetch(f"SELECT {', '.join(parts)} FROM {self._source}")
        return {column: (cells[f"v{i}"], cells[f"s{i}"]) for i, column in enumerate(columns)}

    def codes(self, columns: Sequence[str]) -> tuple[np.ndarray, list[tuple[str, ...]]]:
        """Codes (rows,) int32 of the combined text columns, numbered by first appearance, and the cells of each
        code."""
        texts = [f"coalesce({self._text(column)}, '')" for column in columns]
        joined = " || chr(31) || ".join(texts)
        kinds = self._con.execute(f"SELECT DISTINCT {joined} FROM {self._source}").fetchall()
        values = [row[0] for row in kinds]
        if not values:
            return np.zeros(0, np.int32), []
        # An ENUM preserves the order of the rows and costs two bytes per row.
        listed = ", ".join(quote(value) for value in values)
        self._con.execute("DROP TYPE IF EXISTS listed")
        self._con.execute(f"CREATE TYPE listed AS ENUM ({listed})")
        rows = self._fetch(f"SELECT enum_code(({joined})::listed)::INTEGER AS code FROM {self._source}")["code"]
        first = np.full(len(values), len(rows), np.int64)
        np.minimum.at(first, rows, np.arange(len(rows)))
        order = np.argsort(first, kind="stable")
        place = np.empty(len(values), np.int32)
        place[order] = np.arange(len(values), dtype=np.int32)
        return place[rows], [tuple(values[i].split("\x1f")) for i in order]

    def texts(self, column: str, most: int | None = None) -> list[str]:
        """The cells of a column as text; '' for empty cells."""
        limit = f" LIMIT {most}" if most is not None else ""
        rows = self._con.execute(f"SELECT coalesce({self._text(column)}, '') FROM {self._source}{limit}").fetchall()
        return [row[0] for row in rows]

    def looks_like_text(self, column: str) -> bool:
        """Whether most of the first non-empty cells of a column are not numbers."""
        cells = [cell for cell in self.texts(column, 2000) if cell and cell not in _MISSING]
        return bool(cells) and sum(not reads_as_number(cell) for cell in cells) > 0.5 * len(cells)

    def records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(line, row as a dictionary of text) of each row."""
        cells = [self.texts(column) for column in self.columns]
        for place, row in enumerate(zip(*cells, strict=True)):
            yield place + 2, dict(zip(self.columns, row, strict=True))

    def refuse_text(self, column: str, state: np.ndarray) -> None:
        """Refuse the rows in which a numeric column contains text."""
        text = np.flatnonzero(state == 2)
        if len(text) == 0 or column in self._reported:
            return
        self._reported.add(column)
        self.refuse_rows(state == 2, column, "is not a number")

    def refuse_rows(self, bad: np.ndarray, column: str, why: str) -> None:
        """Refuse rows because of the content of one cell, which the message shows."""
        rows = np.flatnonzero(bad)
        if len(rows) == 0:
            return
        row = int(rows[0])
        cell = self._con.execute(f"SELECT {self._text(column)} FROM {self._source} LIMIT 1 OFFSET {row}").fetchone()
        shown = "" if cell is None or cell[0] is None else str(cell[0])[:40]
        self.refused.add(self.line(row), f"{column} {shown!r} {why}", len(rows))

    def line(self, row: int) -> int:
        """The line of the file on which row ``row`` (counted from 0) ends."""
        if self.path.suffix.lower() in (".parquet", ".pq"):
            return row + 1
        with open_log(self.path) as raw, io.TextIOWrapper(raw, "utf-8-sig", "replace", newline="") as file:
            reader = csv.reader(file, delimiter=self.delimiter)
            place = -1
            try:
                for _ in range(self.skipped + 1):
                    next(reader, None)
                for cells in reader:
                    whole = len(cells) == len(self.columns) or self.delimiter == BLANKS
                    if whole and (len(cells) > 1 or cells[0].strip()):
                        place += 1
                    if place == row:
                        break
            except csv.Error:
                pass
            return reader.line_num

    def keep(self, condition: str) -> None:
        """Restrict the table to the rows that satisfy an SQL condition, in which `cell` names a column."""
        self._source = f"(SELECT * FROM {self._source} WHERE {condition})"
        count = self._con.execute(f"SELECT count(*) FROM {self._source}").fetchone()
        self.rows = 0 if count is None else int(count[0])

    def cell(self, column: str) -> str:
        """SQL expression of a column."""
        return f"c{self.columns.index(column)}"

    def _text(self, column: str) -> str:
        return f"trim(c{self.columns.index(column)}::VARCHAR)"

    def _fetch(self, sql: str) -> dict[str, Any]:
        try:
            return dict(self._con.execute(sql).fetchnumpy())
        except duckdb.Error as error:
            raise LogFormatError(f"{self.path} is not readable as a table: {one_line(error)[:200]}") from None


def open_table(path: Path, options: Options, format: str) -> Table:
    """Open a CSV, TSV or Parquet file. Raises LogFormatError for other files."""
    refused = Refused(path, options.strict)
    if path.suffix.lower() in (".parquet", ".pq"):
        return _parquet([path], path, format, refused)
    sample = Sample(path)
    if not sample.raw.strip():
        raise LogFormatError(f"{path} is empty")
    if not sample.head:
        raise LogFormatError(f"{path} is not a text file")
    dialect = sample.dialect
    if dialect is None:
        raise LogFormatError(f"{path} is not a table")
    plain = without_units(dialect.columns, [options.step, options.loss, *(m.name for m in options.metrics)])
    columns = _unique(plain)
    blanks = dialect.delimiter == BLANKS
    read_as = ["c0"] if blanks else [f"c{i}" for i in range(len(columns))]
    names = ", ".join(f"{quote(cell)}: 'VARCHAR'" for cell in read_as)
    skipped = sample.head[: sample.head.index(dialect.header)].count("\n")
    more = ("compression='gzip', " if is_gzip(path) else "") + ("encoding='utf-16', " if is_utf16(path) else "")

    def source(store: str) -> str:
        read = (
            f"read_csv({quote(_escaped(path))}, auto_detect=false, header=true, skip={skipped}, "
            f"delim={quote(chr(1) if blanks else dialect.delimiter)}, quote='\"', escape='\"', all_varchar=true, "
            f"ignore_errors=true, max_line_size=16000000, {more}{store}"
            f"columns={{{names}}})"
        )
        if not blanks:
            return read
        words = ", ".join(f"words[{i + 1}] AS c{i}" for i in range(len(columns)))
        return f"(SELECT {words} FROM (SELECT regexp_split_to_array(trim(c0), '\\s+') AS words FROM {read}))"

    table = Table(path, format, refused, columns, source(""))
    table.delimiter, table.decimal, table.skipped = dialect.delimiter, dialect.decimal, skipped
    con = table._con
    try:
        # Select every column: DuckDB does not check columns that a query does not use.
        every = ", ".join(f"count(c{i})" for i in range(len(columns)))
        count = con.execute(f"SELECT count(*), {every} FROM {source('store_rejects=true, ')}").fetchall()[0]
        lines = _rejected(con)
    except duckdb.Error as error:
        raise LogFormatError(f"{path} is not readable as CSV: {one_line(error)[:200]}") from None
    table.rows = int(count[0])
    if any(kind == "INVALID ENCODING" for _, kind in lines):
        # Every query must skip the same rows, so every query reads all cells.
        every = ", ".join(f"c{i}" for i in range(len(columns)))
        table.keep(f"hash({every}) IS NOT NULL")
    if lines:
        why = {"MISSING COLUMNS": "too few cells", "TOO MANY COLUMNS": "too many cells"}
        why["INVALID ENCODING"] = "not UTF-8 text"
        refused.add(int(lines[0][0]), why.get(lines[0][1], str(lines[0][1]).lower()), len(lines))
    return table


def _rejected(con: duckdb.DuckDBPyConnection) -> list[tuple[Any, ...]]:
    """(line, kind of fault) of the lines that DuckDB rejected."""
    sql = "SELECT line, any_value(error_type::VARCHAR) FROM reject_errors GROUP BY line ORDER BY line"
    try:
        return con.execute(sql).fetchall()
    except duckdb.CatalogException:  # the table exists only after the first fault
        return []


def open_parquet_folder(files: Sequence[Path], path: Path, options: Options, format: str) -> Table:
    """Open several Parquet files with the same columns as one table."""
    return _parquet(files, path, format, Refused(path, options.strict))


def _parquet(files: Sequence[Path], path: Path, format: str, refused: Refused) -> Table:
    listed = ", ".join(quote(_escaped(file)) for file in files)
    source = f"read_parquet([{listed}], union_by_name=true)"
    with duckdb.connect(":memory:") as con:
        try:
            columns = [row[0] for row in con.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()]
            count = con.execute(f"SELECT count(*) FROM {source}").fetchone()
        except duckdb.Error as error:
            raise LogFormatError(f"{path} is not readable as Parquet: {one_line(error)[:200]}") from None
    named = ", ".join(f'"{column.replace(chr(34), chr(34) * 2)}" AS c{i}' for i, column in enumerate(columns))
    table = Table(path, format, refused, _unique(columns), f"(SELECT {named} FROM {source})")
    table.rows = 0 if count is None else int(count[0])
    return table


def _unique(columns: Sequence[str]) -> list[str]:
    """Unique column names. A column without a name is named after its position."""
    seen: dict[str, int] = {}
    unique = []
    for place, column in enumerate(columns):
        name = column or f"column {place + 1}"
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return unique


def _escaped(path: Path) -> str:
    """A path in which the glob characters of DuckDB are escaped."""
    return re.sub(r"([*?\[])", r"[\1]", str(path))
