"""Rows on their way to disk: checked, copied, typed, and still in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stabilitylab.store.schema import TABLES, Column, columns_of

_DTYPES: dict[str, Any] = {
    "SMALLINT": np.int16,
    "INTEGER": np.int32,
    "BIGINT": np.int64,
    "FLOAT": np.float32,
    "DOUBLE": np.float64,
    "BOOLEAN": np.bool_,
    "VARCHAR": object,
}


@dataclass(frozen=True)
class Cells:
    """One column: `values`, and `null` (True where there is no value; None if all are there)."""

    values: np.ndarray
    null: np.ndarray | None


@dataclass(frozen=True)
class Rows:
    """Some rows of one table. A column that is absent is NULL throughout."""

    table: str
    columns: dict[str, Cells]
    count: int

    @property
    def nbytes(self) -> int:
        # A string costs far more than its pointer; 100 bytes is a fair mean for names and details.
        return sum(
            cells.values.nbytes if cells.values.dtype != object else 100 * self.count for cells in self.columns.values()
        )

    def span(self) -> tuple[int, int] | tuple[None, None]:
        """The first and last iteration, or (None, None) for a table without iterations."""
        if self.count == 0 or "iteration" not in self.columns:
            return None, None
        iterations = self.columns["iteration"].values
        return int(iterations.min()), int(iterations.max())


def make_rows(table: str, columns: Mapping[str, np.ndarray | Sequence[Any] | Any]) -> Rows:
    """Copy `columns` (name -> 1-D values of one length, or a scalar for all rows) into rows of `table`.

    None and masked entries become NULL; NaN stays NaN, because a gradient that is not a number was measured.
    Raises ValueError for an unknown table or column, a missing required column, or unequal lengths.
    """
    if table not in TABLES:
        raise ValueError(f"no table {table!r}; the tables are {', '.join(TABLES)}")
    known = {column.name: column for column in columns_of(table, columns)}
    unknown = [name for name in columns if name not in known]
    if unknown:
        raise ValueError(f"{table} has no column {unknown[0]!r}; its columns are {', '.join(known)}")
    missing = [name for name, column in known.items() if column.required and name not in columns]
    if missing:
        raise ValueError(f"{table} needs a value for {missing[0]!r}")
    lengths = {name: len(values) for name, values in columns.items() if not _is_scalar(values)}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{table}: columns differ in length: {lengths}")
    count = next(iter(lengths.values()), 1)
    cells = {name: _cells(table, known[name], columns[name], count) for name in known if name in columns}
    return Rows(table=table, columns=cells, count=count)


def _is_scalar(values: Any) -> bool:
    return isinstance(values, str) or np.ndim(values) == 0


def _cells(table: str, column: Column, values: Any, count: int) -> Cells:
    if _is_scalar(values):
        values = [values] * count
    dtype = _DTYPES[column.type]
    null: np.ndarray | None = None
    if isinstance(values, np.ma.MaskedArray):
        null = np.ma.getmaskarray(values).copy()
        values = values.data
    array = values if isinstance(values, np.ndarray) else _from_sequence(values)
    if array.ndim != 1:
        raise ValueError(f"{table}.{column.name} must be 1-D, not of shape {array.shape}")
    if array.dtype == object:
        none = np.array([value is None for value in array], dtype=bool)
        null = none if null is None else null | none
    if dtype is object:
        typed = np.array([None if v is None else str(v) for v in array], dtype=object)
    else:
        if null is not None and array.dtype == object:
            array = np.where(null, 0, array)
        if array.dtype.kind in "US":
            raise ValueError(f"{table}.{column.name} must be numbers ({column.type}), not text")
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                typed = np.array(array, dtype=dtype)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{table}.{column.name} must be numbers ({column.type}): {error}") from None
    if null is not None and not null.any():
        null = None
    if column.required and null is not None:
        raise ValueError(f"{table}.{column.name} must have a value in every row")
    return Cells(typed, null)


def _from_sequence(values: Any) -> np.ndarray:
    items = list(values)
    if any(item is None or isinstance(item, str) for item in items):
        array = np.empty(len(items), dtype=object)
        array[:] = items
        return array
    return np.asarray(items)


def join(parts: Sequence[Rows]) -> Rows:
    """The rows of one table, one after the other."""
    if len(parts) == 1:
        return parts[0]
    columns: dict[str, Cells] = {}
    present = dict.fromkeys(name for part in parts for name in part.columns)
    for column in columns_of(parts[0].table, present):
        if not any(column.name in part.columns for part in parts):
            continue
        cells = [part.columns.get(column.name) or _all_null(column, part.count) for part in parts]
        null = None
        if any(c.null is not None for c in cells):
            null = np.concatenate([_mask(c) for c in cells])
        columns[column.name] = Cells(np.concatenate([c.values for c in cells]), null)
    return Rows(parts[0].table, columns, sum(part.count for part in parts))


def _all_null(column: Column, count: int) -> Cells:
    return Cells(np.zeros(count, dtype=_DTYPES[column.type]), np.ones(count, dtype=bool))


def _mask(cells: Cells) -> np.ndarray:
    return cells.null if cells.null is not None else np.zeros(len(cells.values), dtype=bool)
