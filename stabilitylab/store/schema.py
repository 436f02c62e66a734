"""The schema of a run: names, columns and types of its tables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from stabilitylab.signals import BUILT_IN, SIGNALS

SCHEMA_VERSION = 1

# Readable by DuckDB 1.4, the oldest supported version, and by every later one. In measurements it was as small and fast
# as the format of DuckDB 2.
STORAGE_VERSION = "v1.4.0"

EXPORT_FORMATS = ("parquet", "csv")
STATUSES = ("running", "finished", "stopped", "crashed")


@dataclass(frozen=True)
class LayerRow:
    """One layer of the model; `depth` orders the layers from input (0) to output."""

    layer_id: int
    name: str
    depth: int
    num_params: int
    trainable: bool = True


@dataclass(frozen=True)
class EventRow:
    """An event at an iteration. `kind` is nonfinite, checkpoint, resume, rows_lost, ..."""

    iteration: int
    kind: str
    detail: str


@dataclass(frozen=True)
class Column:
    """A column of a table. A column that is not `required` is NULL if nothing was measured."""

    name: str
    type: str
    required: bool = False


def _columns(*required: tuple[str, str], optional: tuple[tuple[str, str], ...] = ()) -> tuple[Column, ...]:
    must = tuple(Column(name, kind, required=True) for name, kind in required)
    return must + tuple(Column(name, kind) for name, kind in optional)


META = _columns(("key", "VARCHAR"), optional=(("value", "VARCHAR"),))

TABLES: dict[str, tuple[Column, ...]] = {
    "layers": _columns(
        ("layer_id", "SMALLINT"),
        ("name", "VARCHAR"),
        ("depth", "INTEGER"),
        ("num_params", "BIGINT"),
        ("trainable", "BOOLEAN"),
    ),
    "layer_stats": _columns(
        ("iteration", "INTEGER"),
        ("layer_id", "SMALLINT"),
        optional=tuple((name, SIGNALS[name].storage) for name in BUILT_IN),
    ),
    "iterations": _columns(
        ("iteration", "INTEGER"),
        optional=(
            ("epoch", "DOUBLE"),
            ("loss", "DOUBLE"),
            ("lr", "DOUBLE"),
            ("ema_momentum", "DOUBLE"),
            ("grad_norm", "DOUBLE"),
            ("seconds", "DOUBLE"),
            ("images", "BIGINT"),
        ),
    ),
    "evals": _columns(
        ("iteration", "INTEGER"),
        ("metric", "VARCHAR"),
        optional=(("value", "DOUBLE"), ("num_samples", "BIGINT")),
    ),
    "scalars": _columns(("iteration", "INTEGER"), ("name", "VARCHAR"), optional=(("value", "DOUBLE"),)),
    "events": _columns(("iteration", "INTEGER"), ("kind", "VARCHAR"), optional=(("detail", "VARCHAR"),)),
}

# A resumed run drops the rows of these tables at or after the resume point. Events are kept.
CUT_AT_RESUME = ("layer_stats", "iterations", "evals", "scalars")

# Sort order of compaction, so that the series of a layer is contiguous on disk.
ORDER_BY = {
    "layers": "layer_id",
    "layer_stats": "layer_id, iteration",
    "iterations": "iteration",
    "evals": "metric, iteration",
    "scalars": "name, iteration",
    "events": "iteration",
}

_SIGNAL_TYPES = ("FLOAT", "DOUBLE")


def columns_of(table: str, present: Iterable[str] = ()) -> tuple[Column, ...]:
    """The columns of `table`, followed by the signals of plugins among `present`."""
    known = {column.name for column in TABLES[table]}
    plugins = [name for name in present if table == "layer_stats" and name not in known and name in SIGNALS]
    return TABLES[table] + tuple(Column(name, SIGNALS[name].storage) for name in plugins)


def stored_columns(table: str, stored: Iterable[tuple[str, str]]) -> tuple[Column, ...]:
    """The columns of `table`, followed by the additional signals among `stored` (name, type), which may come from a
    plugin that is not installed or from a newer version of this package."""
    known = {column.name for column in TABLES[table]}
    signals = {
        name: kind
        for name, kind in stored
        if table == "layer_stats" and name not in known and name.isidentifier() and kind in _SIGNAL_TYPES
    }
    return TABLES[table] + tuple(Column(name, kind) for name, kind in signals.items())


def empty_select(table: str) -> str:
    """A SELECT with the columns and types of `table` and no rows."""
    typed = ", ".join(f"NULL::{column.type} AS {column.name}" for column in TABLES[table])
    return f"SELECT {typed} WHERE false"


def create_table(table: str, prefix: str = "", columns: Iterable[Column] | None = None) -> str:
    """The CREATE TABLE statement of `table` or `meta`. `columns` replaces the columns of the schema."""
    if columns is None:
        columns = META if table == "meta" else TABLES[table]
    body = ", ".join(f"{c.name} {c.type}{' NOT NULL' if c.required else ''}" for c in columns)
    return f"CREATE TABLE {prefix}{table} ({body})"


def quote(text: str) -> str:
    """`text` as an SQL string literal."""
    return "'" + text.replace("'", "''") + "'"
