"""Rows in memory before they are written: validated, copied and typed."""

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
    """One column: `values` and the mask `null` (True where there is no value; None if there are no NULLs)."""

    values: np.ndarray
    null: np.ndarray | None


@dataclass(frozen=True)
class Rows:
    """Rows of one table. A missing column is NULL in every row."""

    table: str
    columns: dict[str, Cells]
    count: int
    notes: tuple[str, ...] = ()
    """One line for each kind of value that was changed or dropped because it cannot be stored."""

    @property
    def nbytes(self) -> int:
        # A string takes far more than its pointer; 100 bytes is a typical mean for names and details.
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
    """Copy `columns` (name -> 1-D values of equal length, or a scalar for all rows) into rows of `table`.

    None and masked entries become NULL; NaN stays NaN, because a NaN gradient is a measurement. Text that is not UTF-8
    is escaped. Numbers that do not fit the column type are clipped or dropped, with a line in `notes`. Raises
    ValueError for an unknown table or column, a missing required column, or unequal lengths.
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
    notes: list[str] = []
    cells = {name: _cells(table, known[name], columns[name], count, notes) for name in known if name in columns}
    lost = np.zeros(count, dtype=bool)
    for name, cell in cells.items():
        if known[name].required and cell.null is not None:
            lost |= cell.null  # only out-of-range values: missing ones have raised ValueError
    if lost.any():
        notes.append(f"{int(lost.sum())} rows of {table} are dropped")
        keep = ~lost
        cells = {
            name: Cells(c.values[keep], None if c.null is None or known[name].required else c.null[keep])
            for name, c in cells.items()
        }
    return Rows(table=table, columns=cells, count=count - int(lost.sum()), notes=tuple(notes))


def _is_scalar(values: Any) -> bool:
    return isinstance(values, str) or np.ndim(values) == 0


def _cells(table: str, column: Column, values: Any, count: int, notes: list[str]) -> Cells:
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
        typed = np.array([None if v is None else utf8(str(v)) for v in array], dtype=object)
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
    if dtype is not object and array.dtype != typed.dtype and array.dtype.kind in "iuf":
        typed, outside = _fitted(array, typed, null)
        if outside.any():
            what = "are dropped" if typed.dtype.kind in "iu" else "are stored as the nearest number that fits"
            notes.append(f"{int(outside.sum())} values of {table}.{column.name} do not fit {column.type} and {what}")
        if typed.dtype.kind in "iu" and outside.any():
            null = outside if null is None else null | outside
    return Cells(typed, null)


def _fitted(given: np.ndarray, typed: np.ndarray, null: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """``typed`` and a mask of the values that do not fit its dtype. Floats among them are set to the nearest value."""
    there = np.ones(len(given), dtype=bool) if null is None else ~null
    if typed.dtype.kind in "iu":
        with np.errstate(invalid="ignore"):
            return typed, there & (given.astype(np.float64) != typed.astype(np.float64))
    if typed.dtype.kind != "f":
        return typed, np.zeros(len(given), dtype=bool)
    limits = np.finfo(typed.dtype)
    over = there & np.isfinite(given) & np.isinf(typed)
    under = there & (given != 0) & (typed == 0)
    typed[over] = np.sign(given[over]) * limits.max
    typed[under] = np.sign(given[under]) * limits.smallest_subnormal
    return typed, over | under


def utf8(text: str) -> str:
    """``text`` with characters that UTF-8 cannot encode, as in a file name of another encoding, escaped."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def _from_sequence(values: Any) -> np.ndarray:
    items = list(values)
    if any(item is None or isinstance(item, str) for item in items):
        array = np.empty(len(items), dtype=object)
        array[:] = items
        return array
    return np.asarray(items)


def join(parts: Sequence[Rows]) -> Rows:
    """Concatenate rows of one table."""
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
